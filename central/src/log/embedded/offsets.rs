//! Where each group stands in each partition: one small log, one frame a commit, synced before it counts.

use super::{
    super::{CommitError, Committed, Offset, Partition},
    OpenError,
    frames::{OFFSET, OffsetEntry, decode_offsets, encode_offsets},
};
use journal::{Disk, FrameSeq, LogOptions};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

type Table = BTreeMap<(String, Partition), Committed>;

pub(super) struct Offsets<D: Disk> {
    log: Mutex<journal::Log<D>>,
    /// What is durable.
    table: Mutex<Table>,
    groups: Mutex<Vec<String>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // Values behind these locks are replaced in one assignment; a panic elsewhere leaves nothing half done.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

fn entries(table: &Table) -> Vec<OffsetEntry> {
    table.iter().map(|((g, p), c)| (g.clone(), p.0, c.offset, c.metadata.clone())).collect()
}

fn apply(table: &mut Table, entries: Vec<OffsetEntry>) {
    for (group, partition, offset, metadata) in entries {
        table.insert((group, Partition(partition)), Committed { offset, metadata });
    }
}

impl<D: Disk> Offsets<D> {
    pub(super) fn open(disk: D, dir: &Path, options: LogOptions) -> Result<Self, OpenError> {
        let (log, recovery) = journal::Log::open(disk, dir, options)?;
        let mut table = Table::new();
        let bad = |why: String| OpenError::Mismatch { path: dir.to_owned(), why };
        let mut from = recovery.first.unwrap_or(FrameSeq(1));
        if let Some(checkpoint) = log.newest_checkpoint()? {
            apply(&mut table, decode_offsets(&checkpoint.payload).map_err(|e| bad(e.to_string()))?);
            from = checkpoint.seq.next();
        }
        let mut reader = log.reader(from);
        while let Some(frame) = reader.next_meta()? {
            if frame.kind == OFFSET {
                apply(&mut table, decode_offsets(&frame.meta).map_err(|e| bad(e.to_string()))?);
            }
        }
        for gap in reader.take_gaps() {
            // A position that is behind is safe: the sink reads back what is there before it inserts.
            tracing::error!(dir = %dir.display(), first = %gap.first, last = %gap.last, "committed offsets were damaged on disk");
        }
        Ok(Self { log: Mutex::new(log), table: Mutex::new(table), groups: Mutex::default() })
    }

    /// Groups without which nothing is deleted.
    pub(super) fn register(&self, groups: &[String]) {
        *lock(&self.groups) = groups.to_vec();
    }

    pub(super) fn get(&self, group: &str, partition: Partition) -> Option<Committed> {
        lock(&self.table).get(&(group.to_owned(), partition)).cloned()
    }

    /// What every registered group has committed; nothing while one of them has not begun.
    pub(super) fn lowest(&self, partition: Partition) -> Offset {
        let groups = lock(&self.groups).clone();
        let of = |g: String| self.get(&g, partition).map_or(Offset(0), |c| c.offset);
        groups.into_iter().map(of).min().unwrap_or(Offset(0))
    }

    /// Durable when it returns. Blocks.
    pub(super) fn commit(
        &self,
        group: &str,
        partition: Partition,
        committed: Committed,
    ) -> Result<(), CommitError> {
        let mut log = lock(&self.log);
        let entry = (group.to_owned(), partition.0, committed.offset, committed.metadata.clone());
        let before = entries(&lock(&self.table));
        let unknown = |e: journal::JournalError| CommitError::Unknown(e.to_string());
        log.append(OFFSET, &encode_offsets(&[entry]), &[], &mut || encode_offsets(&before))
            .map_err(unknown)?;
        log.sync().map_err(unknown)?;
        lock(&self.table).insert((group.to_owned(), partition), committed);
        // Everything before the newest checkpoint is in it, and its segment is never deleted.
        log.trim(log.durable()).map_err(unknown)?;
        Ok(())
    }
}
