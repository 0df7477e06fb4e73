//! One partition: a segment log with the progress of its gateways.

use super::{
    super::{
        CommitError, DataRecord, Offset, Partition, PartitionStatus, ProgressKey, ProgressRecord, ReadError,
        StoredRecord,
    },
    OpenError,
    frames::{GROUP, GroupMeta, decode_checkpoint, encode_checkpoint, encode_group, group_extent},
};
use bytes::Bytes;
use journal::{Disk, Frame, FrameSeq, GapCause, JournalError, LogHandle, LogOptions, Quota, Reader};
use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

/// Readers that are kept open, so that whoever reads on does not search again.
const CURSORS_MAX: usize = 4;

pub(super) struct Part<D: Disk> {
    pub(super) partition: Partition,
    writer: Mutex<Writer<D>>,
    handle: LogHandle<D>,
    high: watch::Sender<Offset>,
    /// What is durable.
    progress: Mutex<BTreeMap<ProgressKey, ProgressRecord>>,
    cursors: Mutex<Vec<Cursor<D>>>,
    /// First frame and next offset of the segments as far as known, oldest first.
    starts: Mutex<VecDeque<(FrameSeq, Offset)>>,
    keep_bytes: u64,
    quota: Quota,
}

struct Writer<D: Disk> {
    log: journal::Log<D>,
    next: Offset,
}

/// A reader that stands somewhere, with what is left of the frame it read last.
struct Cursor<D: Disk> {
    next: Offset,
    reader: Reader<D>,
    rest: VecDeque<StoredRecord>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // Values behind these locks are replaced in one step; a panic elsewhere leaves nothing half done.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<D: Disk> Part<D> {
    pub(super) fn open(
        disk: D,
        dir: &Path,
        partition: Partition,
        options: LogOptions,
        keep_bytes: u64,
        quota: Quota,
    ) -> Result<Self, OpenError> {
        let (log, recovery) = journal::Log::open(disk, dir, options)?;
        let bad = |why: String| OpenError::Mismatch { path: dir.to_owned(), why };
        let mut next = Offset(0);
        let mut progress = BTreeMap::new();
        let mut from = recovery.first.unwrap_or(FrameSeq(1));
        let mut starts = VecDeque::new();
        if let Some(checkpoint) = log.newest_checkpoint()? {
            let (at, records) = decode_checkpoint(&checkpoint.payload).map_err(|e| bad(e.to_string()))?;
            next = at;
            progress.extend(records.into_iter().map(|r| (r.key(), r)));
            from = checkpoint.seq.next();
            starts.push_back((checkpoint.seq, next));
        }
        let mut reader = log.reader(from);
        while let Some(frame) = reader.next_meta()? {
            if frame.kind == GROUP {
                let meta = GroupMeta::decode(&frame.meta).map_err(|e| bad(e.to_string()))?;
                next = next.max(meta.end());
                progress.extend(meta.progress.into_iter().map(|r| (r.key(), r)));
            }
        }
        for gap in reader.take_gaps() {
            tracing::error!(%partition, first = %gap.first, last = %gap.last, "groups were damaged on disk; their records are lost");
        }
        if recovery.torn_bytes > 0 {
            tracing::warn!(%partition, bytes = recovery.torn_bytes, "cut a group that was never acknowledged");
        }
        let handle = log.handle();
        if let Some(first) = recovery.first
            && starts.front().is_some_and(|(f, _)| *f > first)
        {
            starts.push_front((first, Offset(0)));
        }
        Ok(Self {
            partition,
            writer: Mutex::new(Writer { log, next }),
            handle,
            high: watch::channel(next).0,
            progress: Mutex::new(progress),
            cursors: Mutex::default(),
            starts: Mutex::new(starts),
            keep_bytes,
            quota,
        })
    }

    pub(super) fn high(&self) -> Offset {
        *self.high.borrow()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Offset> {
        self.high.subscribe()
    }

    /// What is stored; an error once the log has failed: then only opening it again tells.
    pub(super) fn progress(&self) -> Result<Vec<ProgressRecord>, ReadError> {
        match self.handle.poisoned() {
            Some(reason) => Err(ReadError::Storage { partition: self.partition, reason }),
            None => Ok(lock(&self.progress).values().cloned().collect()),
        }
    }

    /// Records and progress in one frame, durable when it returns. Blocks.
    pub(super) fn commit(
        &self,
        records: &[DataRecord],
        progress: Vec<ProgressRecord>,
    ) -> Result<Offset, CommitError> {
        let mut writer = lock(&self.writer);
        let writer = &mut *writer;
        let meta = encode_group(writer.next, records, &progress);
        let payload: Vec<&[u8]> = records.iter().map(|r| r.bytes.as_ref()).collect();
        let (next, mut rolled) = (writer.next, false);
        let appended = writer.log.append(GROUP, &meta, &payload, &mut || {
            rolled = true;
            encode_checkpoint(next, &lock(&self.progress))
        });
        let seq = appended.map_err(|e| self.refusal(e))?;
        writer.log.sync().map_err(|e| self.refusal(e))?;
        if rolled {
            lock(&self.starts).push_back((FrameSeq(seq.0 - 1), next));
        }
        writer.next = Offset(next.0 + records.len() as u64);
        lock(&self.progress).extend(progress.into_iter().map(|r| (r.key(), r)));
        self.high.send_replace(writer.next);
        Ok(writer.next)
    }

    fn refusal(&self, e: JournalError) -> CommitError {
        match e {
            JournalError::OverQuota { used, limit, .. } => CommitError::Full { used, quota: limit },
            JournalError::NoSpace { .. } => {
                CommitError::Full { used: self.quota.used(), quota: self.quota.limit() }
            }
            JournalError::FrameTooLarge { .. } => CommitError::Refused(e.to_string()),
            other => CommitError::Unknown(other.to_string()),
        }
    }

    /// Blocks.
    pub(super) fn status(&self) -> Result<PartitionStatus, ReadError> {
        Ok(PartitionStatus { low: self.low()?, high: self.high(), bytes: self.handle.bytes() })
    }

    /// The offset of the oldest record that can still be read.
    fn low(&self) -> Result<Offset, ReadError> {
        let mut reader = self.handle.reader(self.handle.first());
        Ok(self.next_extent(&mut reader)?.map_or(self.high(), |(_, base, _)| base))
    }

    /// The next group's frame and extent.
    fn next_extent(&self, reader: &mut Reader<D>) -> Result<Option<(FrameSeq, Offset, Offset)>, ReadError> {
        while let Some(frame) = reader.next_meta().map_err(|e| self.storage(&e))? {
            if frame.kind == GROUP {
                let (base, end) = group_extent(&frame.meta).map_err(|e| self.storage(&e))?;
                return Ok(Some((frame.seq, base, end)));
            }
        }
        Ok(None)
    }

    fn storage(&self, e: &dyn std::error::Error) -> ReadError {
        ReadError::Storage { partition: self.partition, reason: e.to_string() }
    }

    /// The first frame that holds a record at or behind an offset, by bisection over the frames' numbers.
    fn locate(&self, offset: Offset) -> Result<FrameSeq, ReadError> {
        let (mut low, mut high) = (self.handle.first().0, self.handle.durable().0 + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            let mut reader = self.handle.reader(FrameSeq(middle));
            match self.next_extent(&mut reader)? {
                Some((seq, _, end)) if end <= offset => low = seq.0 + 1,
                _ => high = middle,
            }
        }
        Ok(FrameSeq(low))
    }

    /// Records from an offset on. Blocks.
    pub(super) fn read(&self, from: Offset, bytes_max: usize) -> Result<Vec<StoredRecord>, ReadError> {
        let high = self.high();
        let mut cursor = self.cursor(from)?;
        let (mut out, mut bytes) = (Vec::new(), 0_usize);
        loop {
            let Some(record) = cursor.rest.front() else {
                let Some(frame) = cursor.reader.next().map_err(|e| self.storage(&e))? else { break };
                self.stepped_over(&mut cursor)?;
                if frame.kind == GROUP {
                    cursor.rest = self.split(frame)?;
                    cursor.rest.retain(|r| r.offset >= from);
                }
                continue;
            };
            // A group is known to readers when its commit has returned, not when its frame is on disk.
            let full = !out.is_empty() && bytes + record.bytes.len() > bytes_max;
            if full || record.offset >= high {
                break;
            }
            bytes += record.bytes.len();
            cursor.next = record.offset.next();
            out.extend(cursor.rest.pop_front());
        }
        let mut cursors = lock(&self.cursors);
        if cursors.len() == CURSORS_MAX {
            cursors.remove(0);
        }
        cursors.push(cursor);
        Ok(out)
    }

    /// A reader that stands at an offset: the one that stopped there, or a new one.
    fn cursor(&self, from: Offset) -> Result<Cursor<D>, ReadError> {
        let mut cursors = lock(&self.cursors);
        if let Some(i) = cursors.iter().position(|c| c.next == from) {
            return Ok(cursors.remove(i));
        }
        drop(cursors);
        let first = self.low()?;
        if from < first {
            return Err(ReadError::Trimmed { partition: self.partition, from, first });
        }
        let reader = self.handle.reader(self.locate(from)?);
        Ok(Cursor { next: from, reader, rest: VecDeque::new() })
    }

    /// What a reader could not read: deleted meanwhile, or damaged.
    fn stepped_over(&self, cursor: &mut Cursor<D>) -> Result<(), ReadError> {
        for gap in cursor.reader.take_gaps() {
            if gap.cause != GapCause::Trimmed {
                tracing::error!(partition = %self.partition, first = %gap.first, last = %gap.last, "groups cannot be read; their records are lost");
                continue;
            }
            // Frames without records may go from under a reader that stands behind the last record.
            let (from, first) = (cursor.next, self.low()?);
            if first > from {
                return Err(ReadError::Trimmed { partition: self.partition, from, first });
            }
        }
        Ok(())
    }

    /// The records of a group, sharing the frame's bytes.
    fn split(&self, frame: Frame) -> Result<VecDeque<StoredRecord>, ReadError> {
        let meta = GroupMeta::decode(&frame.meta).map_err(|e| self.storage(&e))?;
        let mut payload = Bytes::from(frame.payload);
        let mut out = VecDeque::with_capacity(meta.records.len());
        let mut offset = meta.base;
        for (headers, len) in meta.records {
            if len > payload.len() {
                let reason = format!("frame {} is shorter than it says", frame.seq);
                return Err(ReadError::Storage { partition: self.partition, reason });
            }
            out.push_back(StoredRecord { offset, headers, bytes: payload.split_to(len) });
            offset = offset.next();
        }
        Ok(out)
    }

    /// Deletes segments that end before an offset, as long as more than `keep_bytes` are there. Blocks.
    pub(super) fn trim(&self, before: Offset) {
        let mut starts = lock(&self.starts);
        while let Some((frame, next)) = starts.get(1).copied() {
            if next > before || self.handle.bytes() <= self.keep_bytes {
                return;
            }
            match self.handle.trim(frame) {
                Ok(_) => starts.pop_front(),
                Err(error) => {
                    // Tried again with the next committed offset.
                    return tracing::warn!(partition = %self.partition, %error, "old groups could not be deleted");
                }
            };
        }
    }
}
