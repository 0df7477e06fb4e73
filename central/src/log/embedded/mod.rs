//! The log in this process's own folder: the gateway's segment log, one per partition, and a small one for offsets.
//!
//! ```text
//! log.id                 identity and number of partitions; written first, never changed
//! partition-0000/        frames of kind GROUP: records and progress of one commit_group
//! offsets/               frames of kind OFFSET: one commit_offset each
//! ```
//!
//! A group is **one frame**, so records and progress are stored together or not at all. At the start of each segment
//! stands a checkpoint: the next offset and the newest progress of every key, so opening reads one segment. Offsets count
//! records, from 0, without gaps.
//!
//! A shard is the partition of the same number. The one process that has the folder owns all of them, always.
//!
//! Invariants: see [`super::Log`]; besides, a segment is deleted only when every registered group has committed past it
//! and more than the configured bytes are kept.
//!
//! It never decodes a block and never keeps one in memory.

mod frames;
mod offsets;
mod partition;

use super::{
    ClaimError, CommitError, Committed, DataRecord, Lease, Log, Offset, Owned, Partition, PartitionStatus,
    ProgressRecord, ReadError, Shard, StoredRecord,
};
use crate::limits::{GROUP_FRAME_BYTES_MAX, GROUP_NAME_BYTES_MAX};
use async_trait::async_trait;
use journal::{Disk, DiskFile, JournalError, LogOptions, Quota, RealDisk};
use offsets::Offsets;
use partition::Part;
use record::clock::Random;
use std::{
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
};
use thiserror::Error;
use tokio::sync::watch;

/// How the embedded log is opened.
#[derive(Debug, Clone)]
pub struct EmbeddedOptions {
    /// Number of partitions of a new log; an existing one must have as many.
    pub partitions: u32,
    /// Bytes of a segment file.
    pub segment_bytes: u64,
    /// Most bytes on disk; a group that finds no room is refused with [`CommitError::Full`].
    pub quota_bytes: u64,
    /// Bytes of a partition that are kept although every group has them; less where the quota is small.
    pub keep_bytes: u64,
    /// The groups that read the log: nothing that one of them has not committed is deleted.
    pub groups: Vec<String>,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            partitions: 2,
            segment_bytes: 64 << 20,
            quota_bytes: 16 << 30,
            keep_bytes: 256 << 20,
            groups: vec!["sink".into()],
        }
    }
}

impl EmbeddedOptions {
    /// The smallest quota that works: the newest segment of a partition is never deleted and may hold one group more
    /// than its size, and the next one needs room beside it.
    pub fn quota_bytes_min(&self) -> u64 {
        self.segment_bytes.max(GROUP_FRAME_BYTES_MAX).saturating_mul(2 * u64::from(self.partitions))
    }

    /// What a partition keeps: what is asked for, as long as it is neither needed for new groups nor more than half of
    /// the quota. Otherwise what nobody needs would keep the log full for ever.
    fn kept_bytes(&self) -> u64 {
        let spare = self.quota_bytes.saturating_sub(self.quota_bytes_min()).min(self.quota_bytes / 2);
        self.keep_bytes.min(spare / u64::from(self.partitions.max(1)))
    }
}

/// Why the log cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// A segment log.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The identity file.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is another log than the configuration describes, or of a newer version.
    #[error("{}: {why}", path.display())]
    Mismatch {
        /// Which file.
        path: PathBuf,
        /// What differs.
        why: String,
    },
}

/// The embedded log; see the module.
pub struct Embedded<D: Disk = RealDisk> {
    id: String,
    parts: Vec<Arc<Part<D>>>,
    offsets: Arc<Offsets<D>>,
    quota: Quota,
}

impl<D: Disk> std::fmt::Debug for Embedded<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedded").field("id", &self.id).field("partitions", &self.parts.len()).finish()
    }
}

impl<D: Disk> Embedded<D> {
    /// Opens the log in a folder, or makes it. Reads the newest segment of each partition.
    pub fn open(
        disk: D,
        dir: &Path,
        options: &EmbeddedOptions,
        random: &dyn Random,
    ) -> Result<Self, OpenError> {
        let file = |source| OpenError::File { path: dir.to_owned(), source };
        disk.create_dir_all(dir).map_err(file)?;
        let id = identity(&disk, dir, options.partitions, random)?;
        let quota = Quota::new(&disk, dir, options.quota_bytes, journal::limits::HEADROOM_BYTES)?;
        let log_options = |segment_bytes, quota| LogOptions { segment_bytes, salt: random.next_u64(), quota };
        // Offsets are what frees the log, so they are not refused when it is full.
        let offsets = Offsets::open(
            disk.clone(),
            &dir.join("offsets"),
            log_options(options.segment_bytes.min(4 << 20), None),
        )?;
        let offsets = Arc::new(offsets);
        let mut parts = Vec::new();
        for n in 0..options.partitions {
            let part = Part::open(
                disk.clone(),
                &dir.join(format!("partition-{n:04}")),
                Partition(n),
                log_options(options.segment_bytes, Some(quota.clone())),
                options.kept_bytes(),
                quota.clone(),
            )?;
            parts.push(Arc::new(part));
        }
        let me = Self { id, parts, offsets, quota };
        me.offsets.register(&options.groups);
        for part in &me.parts {
            part.trim(me.offsets.lowest(part.partition));
        }
        Ok(me)
    }

    /// What the partitions take on disk, and may take.
    pub fn quota(&self) -> &Quota {
        &self.quota
    }

    fn part(&self, partition: Partition) -> Option<&Arc<Part<D>>> {
        self.parts.get(partition.0 as usize)
    }

    fn readable(&self, partition: Partition) -> Result<&Arc<Part<D>>, ReadError> {
        self.part(partition).ok_or(ReadError::NoPartition(partition))
    }

    fn writable(&self, partition: Partition) -> Result<&Arc<Part<D>>, CommitError> {
        self.part(partition).ok_or_else(|| CommitError::Refused(format!("there is no partition {partition}")))
    }

    fn count(&self) -> u32 {
        u32::try_from(self.parts.len()).unwrap_or(u32::MAX)
    }
}

/// Reads or makes `log.id`: two lines, the identity and the number of partitions.
fn identity<D: Disk>(
    disk: &D,
    dir: &Path,
    partitions: u32,
    random: &dyn Random,
) -> Result<String, OpenError> {
    let path = dir.join("log.id");
    let mismatch = |why: String| OpenError::Mismatch { path: path.clone(), why };
    let file = |source| OpenError::File { path: path.clone(), source };
    match disk.open_read(&path) {
        Ok(f) => {
            let mut text = [0; 256];
            let n = f.read_at(&mut text, 0).map_err(file)?;
            let text = String::from_utf8_lossy(&text[..n]).into_owned();
            let mut lines = text.lines();
            let (id, count) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
            let count: u32 = count.parse().map_err(|_| mismatch("is not the identity of a log".into()))?;
            if id.is_empty() || id.len() > 36 || !id.chars().all(|c| c.is_ascii_alphanumeric()) {
                return Err(mismatch("is not the identity of a log".into()));
            }
            if count != partitions {
                return Err(mismatch(format!(
                    "the log has {count} partitions and the configuration says {partitions}; the number of an existing log stays"
                )));
            }
            Ok(id.to_owned())
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let id = format!("{:016x}{:016x}", random.next_u64(), random.next_u64());
            let text = format!("{id}\n{partitions}\n");
            let temporary = dir.join("log.id.new");
            // A file left by an earlier start that did not get this far.
            let _ = disk.remove(&temporary);
            let made = disk.create(&temporary).and_then(|f| {
                f.write_at(&[IoSlice::new(text.as_bytes())], 0)?;
                f.sync_data()?;
                disk.rename(&temporary, &path)?;
                disk.sync_dir(dir)
            });
            made.map_err(file)?;
            Ok(id)
        }
        Err(e) => Err(file(e)),
    }
}

/// The one time of owning: as long as the process lives.
const LEASE: Lease = Lease(1);

/// A value that never changes.
fn constant<T>(value: T) -> watch::Receiver<T> {
    watch::channel(value).1
}

/// Runs what may wait for the disk on a thread that may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())
}

#[async_trait]
impl<D: Disk> Log for Embedded<D> {
    fn id(&self) -> &str {
        &self.id
    }

    fn partitions(&self) -> u32 {
        self.count()
    }

    fn shards(&self) -> u32 {
        self.count()
    }

    fn shards_owned(&self) -> Owned<Shard> {
        constant((0..self.count()).map(|n| (Shard(n), LEASE)).collect())
    }

    fn partitions_owned(&self, _group: &str) -> Owned<Partition> {
        constant((0..self.count()).map(|n| (Partition(n), LEASE)).collect())
    }

    fn owner(&self, _shard: Shard) -> Option<String> {
        None
    }

    async fn claim(&self, shard: Shard) -> Result<Vec<ProgressRecord>, ClaimError> {
        let progress = self.progress(shard).await;
        progress.map_err(|e| ClaimError::Failed { shard, reason: e.to_string() })
    }

    async fn commit_group(
        &self,
        shard: Shard,
        records: Vec<DataRecord>,
        progress: Vec<ProgressRecord>,
    ) -> Result<(), CommitError> {
        let part = self.writable(Partition(shard.0))?.clone();
        blocking(move || part.commit(&records, progress).map(drop))
            .await
            .unwrap_or_else(|reason| Err(CommitError::Unknown(reason)))
    }

    async fn progress(&self, shard: Shard) -> Result<Vec<ProgressRecord>, ReadError> {
        self.readable(Partition(shard.0))?.progress()
    }

    async fn read(
        &self,
        _reader: &str,
        partition: Partition,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<StoredRecord>, ReadError> {
        let part = self.readable(partition)?.clone();
        if from >= part.high() {
            return Ok(Vec::new());
        }
        blocking(move || part.read(from, bytes_max))
            .await
            .unwrap_or_else(|reason| Err(ReadError::Storage { partition, reason }))
    }

    fn tail_moved(&self, _reader: &str, partition: Partition) -> watch::Receiver<Offset> {
        match self.part(partition) {
            Some(part) => part.watch(),
            // Nobody asks for a partition that is not there; it has an end, and it never moves.
            None => constant(Offset(0)),
        }
    }

    async fn committed(&self, group: &str, partition: Partition) -> Result<Option<Committed>, ReadError> {
        self.readable(partition)?;
        Ok(self.offsets.get(group, partition))
    }

    async fn commit_offset(
        &self,
        group: &str,
        partition: Partition,
        _lease: Lease,
        offset: Offset,
        metadata: &str,
    ) -> Result<(), CommitError> {
        let part = self.writable(partition)?.clone();
        let refused = CommitError::Refused;
        if group.is_empty() || group.len() > GROUP_NAME_BYTES_MAX {
            return Err(refused(format!("a group's name of {} bytes", group.len())));
        }
        if metadata.len() > crate::limits::OFFSET_METADATA_BYTES_MAX || !metadata.is_ascii() {
            return Err(refused(format!("{} bytes of metadata, or not ASCII", metadata.len())));
        }
        if offset > part.high() {
            return Err(refused(format!("offset {offset} is behind the newest record")));
        }
        let offsets = self.offsets.clone();
        let committed = Committed { offset, metadata: metadata.to_owned() };
        let group = group.to_owned();
        let done = blocking(move || {
            offsets.commit(&group, partition, committed)?;
            part.trim(offsets.lowest(partition));
            Ok(())
        });
        done.await.unwrap_or_else(|reason| Err(CommitError::Unknown(reason)))
    }

    /// The tables keep what cannot be rows; this log, which nobody else reads or writes, has no other place for it.
    async fn quarantine(&self, _: Partition, _: &StoredRecord, _: &str) -> Result<(), CommitError> {
        Ok(())
    }

    async fn status(&self, partition: Partition) -> Result<PartitionStatus, ReadError> {
        let part = self.readable(partition)?.clone();
        blocking(move || part.status())
            .await
            .unwrap_or_else(|reason| Err(ReadError::Storage { partition, reason }))
    }

    async fn close(&self) {}
}

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod tests;
