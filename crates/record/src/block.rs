//! A block: a batch encoded once (Arrow IPC stream, zstd inside the IPC body), with a header that says what it is.
//!
//! The bytes are written to the output log, sent over the link, put as one record into central's log and decoded only
//! by the sink.

use crate::{
    Batch, Digest, Incarnation, RecordError, Seq, StreamName,
    limits::{BATCH_ROWS_MAX, BLOCK_BYTES_MAX, BLOCK_DECODED_BYTES_MAX},
};
use arrow_ipc::{
    CompressionType,
    reader::StreamReader,
    writer::{IpcWriteOptions, StreamWriter},
};
use sha2::Digest as _;

/// What a block is, without opening it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockHeader {
    /// Stream whose rows it holds.
    pub stream: StreamName,
    /// Life of the gateway's folder that the seqs belong to.
    pub incarnation: Incarnation,
    /// Seq of the first row.
    pub first: Seq,
    /// Seq of the last row; `last - first + 1` rows.
    pub last: Seq,
    /// Fingerprint of the schema ([`crate::StreamSchema::fingerprint`]).
    pub schema: u64,
    /// Hash of the block before it in its stream; zeros before the first.
    pub prev_hash: Digest,
    /// [`chain_hash`] of this block.
    pub hash: Digest,
}

impl BlockHeader {
    /// Number of rows that the header claims; 0 when first and last do not make sense.
    pub fn rows(&self) -> u64 {
        if self.first.0 == 0 { 0 } else { (self.last.0 + 1).saturating_sub(self.first.0) }
    }
}

/// The hash that stands for a block and all before it in its stream: SHA-256 over a version byte, the previous hash,
/// the length-prefixed stream name, incarnation, first seq, last seq and schema (little-endian), then the bytes.
pub fn chain_hash(
    prev: &Digest,
    stream: &StreamName,
    incarnation: Incarnation,
    first: Seq,
    last: Seq,
    schema: u64,
    bytes: &[u8],
) -> Digest {
    let mut h = sha2::Sha256::new();
    h.update([1]);
    h.update(prev.0);
    h.update((stream.as_str().len() as u64).to_le_bytes());
    h.update(stream.as_str());
    for n in [incarnation.0, first.0, last.0, schema] {
        h.update(n.to_le_bytes());
    }
    h.update(bytes);
    Digest(h.finalize().into())
}

/// Encodes a batch. An error when it has no rows, more than [`BATCH_ROWS_MAX`], or is larger than
/// [`BLOCK_BYTES_MAX`] when encoded: then the caller halves the batch and tries again.
pub fn encode(batch: &Batch) -> Result<Vec<u8>, RecordError> {
    if batch.rows() == 0 || batch.rows() > BATCH_ROWS_MAX {
        return Err(RecordError::Block(format!("{} rows, allowed are 1 to {BATCH_ROWS_MAX}", batch.rows())));
    }
    let fail = |e: arrow_schema::ArrowError| RecordError::Block(e.to_string());
    let options =
        IpcWriteOptions::default().try_with_compression(Some(CompressionType::ZSTD)).map_err(fail)?;
    let mut writer =
        StreamWriter::try_new_with_options(Vec::new(), &batch.arrow().schema(), options).map_err(fail)?;
    writer.write(batch.arrow()).map_err(fail)?;
    writer.finish().map_err(fail)?;
    let bytes = writer.into_inner().map_err(fail)?;
    if bytes.len() > BLOCK_BYTES_MAX {
        return Err(RecordError::Block(format!("{} bytes, the limit is {BLOCK_BYTES_MAX}", bytes.len())));
    }
    Ok(bytes)
}

/// Encodes a batch as few blocks as fit: halves it until each part is within [`BLOCK_BYTES_MAX`]. An error names the
/// row that is too large alone.
pub fn encode_split(batch: &Batch) -> Result<Vec<(Batch, Vec<u8>)>, RecordError> {
    if batch.rows() == 0 {
        return Ok(Vec::new());
    }
    let mut out = Vec::new();
    let mut rest = vec![batch.clone()];
    while let Some(part) = rest.pop() {
        match encode(&part) {
            Ok(bytes) => out.push((part, bytes)),
            Err(e) if part.rows() == 1 => return Err(e),
            Err(_) => {
                let half = part.rows() / 2;
                rest.push(part.slice(half, part.rows() - half));
                rest.push(part.slice(0, half));
            }
        }
    }
    Ok(out)
}

/// Decodes what [`encode`] wrote. Foreign bytes give an error, never a panic and never unbounded memory.
pub fn decode(bytes: &[u8]) -> Result<Batch, RecordError> {
    if bytes.len() > BLOCK_BYTES_MAX {
        return Err(RecordError::Block(format!("{} bytes, the limit is {BLOCK_BYTES_MAX}", bytes.len())));
    }
    guard::check_claims(bytes)?;
    let fail = |e: arrow_schema::ArrowError| RecordError::Block(e.to_string());
    // Arrow's reader asserts some relations of a corrupt message instead of returning them; a panic on foreign bytes
    // would take the lane with it, so it ends here.
    let read = std::panic::catch_unwind(|| {
        let mut reader = StreamReader::try_new(bytes, None).map_err(fail)?;
        let first =
            reader.next().ok_or_else(|| RecordError::Block("no batch inside".into()))?.map_err(fail)?;
        match reader.next() {
            None => Ok(first),
            Some(_) => Err(RecordError::Block("more than one batch inside".into())),
        }
    });
    let batch = read.map_err(|_| RecordError::Block("not a valid Arrow IPC stream".into()))??;
    Batch::from_arrow(batch)
}

mod guard {
    //! Refuses a compressed buffer that claims more than a block may hold before Arrow reserves memory for it.

    use super::{BLOCK_DECODED_BYTES_MAX, RecordError};
    use arrow_ipc::root_as_message;

    /// Walks the encapsulated messages and adds up the uncompressed length that each compressed buffer claims.
    pub(super) fn check_claims(bytes: &[u8]) -> Result<(), RecordError> {
        let bad = |why: &str| RecordError::Block(why.to_owned());
        let (mut at, mut total) = (0_usize, 0_usize);
        while let Some(head) = bytes.get(at..at + 8) {
            let word = |b: &[u8]| b.try_into().map(u32::from_le_bytes).unwrap_or_default();
            if word(&head[..4]) != u32::MAX {
                return Err(bad("no Arrow IPC message at the beginning"));
            }
            let meta_len = word(&head[4..]) as usize;
            if meta_len == 0 {
                return Ok(());
            }
            let start = at + 8;
            let meta = bytes.get(start..start.saturating_add(meta_len)).ok_or_else(|| bad("cut short"))?;
            let message = root_as_message(meta).map_err(|e| RecordError::Block(e.to_string()))?;
            let body_len =
                usize::try_from(message.bodyLength()).map_err(|_| bad("a body of negative length"))?;
            let body_at = start + meta_len;
            let body =
                bytes.get(body_at..body_at.saturating_add(body_len)).ok_or_else(|| bad("cut short"))?;
            let batch =
                message.header_as_record_batch().or_else(|| message.header_as_dictionary_batch()?.data());
            for buffer in batch.and_then(|b| b.buffers()).into_iter().flatten() {
                let offset = usize::try_from(buffer.offset()).map_err(|_| bad("a buffer before its body"))?;
                let claim = body
                    .get(offset..offset.saturating_add(8))
                    .map_or(0, |b| b.try_into().map(i64::from_le_bytes).unwrap_or_default());
                // -1 says that the buffer is stored as it is.
                if buffer.length() > 8 && claim > 0 {
                    total = total.saturating_add(usize::try_from(claim).unwrap_or(usize::MAX));
                }
            }
            if total > BLOCK_DECODED_BYTES_MAX {
                return Err(RecordError::Block(format!(
                    "claims {total} bytes, the limit is {BLOCK_DECODED_BYTES_MAX}"
                )));
            }
            at = body_at + body_len;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::tests::sample;
    use crate::clock::{Random, SeededRandom};

    #[test]
    fn encode_decode_round_trip() {
        let b = sample(1_000);
        let bytes = encode(&b).expect("encodes");
        assert_eq!(decode(&bytes), Ok(b));
    }

    #[test]
    fn foreign_bytes_never_panic() {
        let good = encode(&sample(200)).expect("encodes");
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        for seed in 0..2_000_u64 {
            let r = SeededRandom::new(seed);
            let mut bytes = good.clone();
            for _ in 0..1 + r.next_u64() % 4 {
                let at = (r.next_u64() as usize) % bytes.len();
                bytes[at] = r.next_u64() as u8;
            }
            bytes.truncate(1 + (r.next_u64() as usize) % bytes.len());
            let _ = decode(&bytes);
        }
        std::panic::set_hook(hook);
        assert!(decode(b"").is_err());
        assert!(decode(b"garbage garbage garbage").is_err());
    }

    #[test]
    fn split_keeps_rows_and_order() {
        let b = sample(16_384);
        let parts = encode_split(&b).expect("splits");
        let rows: usize = parts.iter().map(|(p, _)| p.rows()).sum();
        assert_eq!(rows, 16_384);
        assert!(encode_split(&Batch::empty(b.schema().clone())).expect("empty").is_empty());
    }

    #[test]
    fn the_chain_depends_on_everything() {
        let s = StreamName::new("m").expect("valid");
        let h = |p: Digest, first, last, b: &[u8]| {
            chain_hash(&p, &s, Incarnation(1), Seq(first), Seq(last), 7, b)
        };
        let base = h(Digest::default(), 1, 2, b"x");
        assert_ne!(base, h(base, 1, 2, b"x"));
        assert_ne!(base, h(Digest::default(), 1, 3, b"x"));
        assert_ne!(base, h(Digest::default(), 1, 2, b"y"));
    }
}
