//! The bytes of the embedded log's frames. Every meta and checkpoint begins with a version byte.

use super::super::{
    DataRecord, Offset, ProgressKey, ProgressRecord, RecordHeaders,
    codec::{CodecError, Reader, Writer, put_headers, take_headers},
};
use std::collections::BTreeMap;

/// Frames that hold one group.
pub(super) const GROUP: u8 = 1;
/// Frames that hold one committed offset.
pub(super) const OFFSET: u8 = 2;
const VERSION: u8 = 1;

/// The meta of a group: what is in its payload, and the progress beside it.
#[derive(Debug, PartialEq)]
pub(super) struct GroupMeta {
    /// Offset of the first record; that of the next record when there is none.
    pub(super) base: Offset,
    /// Headers and length of each record, in the order of the payload.
    pub(super) records: Vec<(RecordHeaders, usize)>,
    /// Progress records.
    pub(super) progress: Vec<ProgressRecord>,
}

impl GroupMeta {
    /// One past the last record.
    pub(super) fn end(&self) -> Offset {
        Offset(self.base.0 + self.records.len() as u64)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut r = versioned(bytes)?;
        let base = Offset(r.u64()?);
        let count = r.u32()?;
        let mut records = Vec::new();
        for _ in 0..count {
            let headers = take_headers(&mut r)?;
            records.push((headers, r.u32()? as usize));
        }
        let progress = take_progress(&mut r)?;
        r.end()?;
        Ok(Self { base, records, progress })
    }
}

/// Reads base and number of records only.
pub(super) fn group_extent(bytes: &[u8]) -> Result<(Offset, Offset), CodecError> {
    let mut r = versioned(bytes)?;
    let base = r.u64()?;
    Ok((Offset(base), Offset(base + u64::from(r.u32()?))))
}

fn versioned(bytes: &[u8]) -> Result<Reader<'_>, CodecError> {
    let mut r = Reader::new(bytes);
    match r.u8()? {
        VERSION => Ok(r),
        n => Err(CodecError(format!("version {n}"))),
    }
}

fn put_progress<'a>(w: &mut Writer, progress: impl ExactSizeIterator<Item = &'a ProgressRecord>) {
    w.u32(u32::try_from(progress.len()).unwrap_or(u32::MAX));
    progress.for_each(|p| w.bytes(&p.encode()));
}

fn take_progress(r: &mut Reader<'_>) -> Result<Vec<ProgressRecord>, CodecError> {
    let count = r.u32()?;
    (0..count).map(|_| ProgressRecord::decode(r.bytes()?)).collect()
}

/// The meta of a group.
pub(super) fn encode_group(base: Offset, records: &[DataRecord], progress: &[ProgressRecord]) -> Vec<u8> {
    let mut w = Writer::default();
    w.u8(VERSION);
    w.u64(base.0);
    w.u32(u32::try_from(records.len()).unwrap_or(u32::MAX));
    for r in records {
        put_headers(&mut w, &r.headers);
        w.u32(u32::try_from(r.bytes.len()).unwrap_or(u32::MAX));
    }
    put_progress(&mut w, progress.iter());
    w.0
}

/// A partition's checkpoint: the next offset and the newest progress of every key.
pub(super) fn encode_checkpoint(next: Offset, progress: &BTreeMap<ProgressKey, ProgressRecord>) -> Vec<u8> {
    let mut w = Writer::default();
    w.u8(VERSION);
    w.u64(next.0);
    put_progress(&mut w, progress.values());
    w.0
}

/// Reads what [`encode_checkpoint`] wrote.
pub(super) fn decode_checkpoint(bytes: &[u8]) -> Result<(Offset, Vec<ProgressRecord>), CodecError> {
    let mut r = versioned(bytes)?;
    let next = Offset(r.u64()?);
    let progress = take_progress(&mut r)?;
    r.end()?;
    Ok((next, progress))
}

/// A committed offset: group, partition, offset, metadata.
pub(super) type OffsetEntry = (String, u32, Offset, String);

fn put_offset(w: &mut Writer, (group, partition, offset, metadata): &OffsetEntry) {
    w.text(group);
    w.u32(*partition);
    w.u64(offset.0);
    w.text(metadata);
}

fn take_offset(r: &mut Reader<'_>) -> Result<OffsetEntry, CodecError> {
    Ok((r.text()?.to_owned(), r.u32()?, Offset(r.u64()?), r.text()?.to_owned()))
}

/// The entries of an OFFSET frame (one) or of the offsets' checkpoint (all).
pub(super) fn encode_offsets(entries: &[OffsetEntry]) -> Vec<u8> {
    let mut w = Writer::default();
    w.u8(VERSION);
    w.u32(u32::try_from(entries.len()).unwrap_or(u32::MAX));
    entries.iter().for_each(|e| put_offset(&mut w, e));
    w.0
}

/// Reads what [`encode_offsets`] wrote.
pub(super) fn decode_offsets(bytes: &[u8]) -> Result<Vec<OffsetEntry>, CodecError> {
    let mut r = versioned(bytes)?;
    let count = r.u32()?;
    let entries = (0..count).map(|_| take_offset(&mut r)).collect::<Result<_, _>>()?;
    r.end()?;
    Ok(entries)
}
