//! The log between `link` and `sink`: what a gateway was acknowledged for stands here until ClickHouse has it.
//!
//! A log has partitions, which hold records, and shards, which hold progress; a gateway belongs to one of each
//! ([`partition_of`], [`shard_of`]), and the larger number is a multiple of the smaller, so that a shard writes to few
//! partitions. A record is one block of one stream. The link role owns shards: it commits records **and** the progress
//! of their streams in one atomic step. The sink role owns partitions: it reads records by offset and commits its own
//! position together with a line of metadata (its intent). What this process owns may change at any time where the log
//! is shared by several processes: [`Owned`] says what, [`Lease`] tells one time of owning from the next.
//!
//! [`Outlet`] is what a log may have beside that: topics of single events, for the fan-out.
//!
//! [`embedded`] is made of the same segment log as the gateway's buffer and belongs to one process, which owns all of it.
//!
//! Invariants:
//! - after `commit_group` returned `Ok`, records and progress survive a power cut; after an error the caller knows
//!   nothing and claims the shard again: what is stored is the truth;
//! - a group of an owner whose shard was claimed by another one since is never committed;
//! - readers see committed records only, in offset order; offsets grow, with gaps;
//! - `commit_offset` returns only after the offset and its metadata are durable, and refuses a lease that has ended;
//! - nothing that a registered group has not committed is removed before its time.
//!
//! It never opens a block and never judges a sequence: that is the link's and the sink's work.

mod codec;
pub mod embedded;
pub mod kafka;
mod outlet;
mod owned;
mod progress;

pub use outlet::{Outlet, StreamEvents};
pub use owned::{Panicked, for_each_owned};
pub use progress::{
    Counted, Head, LossEntry, Progress, ProgressKey, ProgressKind, ProgressRecord, Quarantined,
};

use async_trait::async_trait;
use bytes::Bytes;
use record::{Digest, GatewayId, Incarnation, Seq, StreamName};
use std::{collections::BTreeMap, fmt};
use thiserror::Error;
use tokio::sync::watch;

/// Which part of the log; counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(pub u32);

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which part of the progress; counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shard(pub u32);

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One time of owning a partition: another one begins whenever it was owned by somebody else meanwhile, or may have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lease(pub u64);

/// What this process owns, each with the lease under which it does.
pub type Owned<T> = watch::Receiver<BTreeMap<T, Lease>>;

/// The position of a record in its partition; grows, not always by one. A committed offset is that of the next record
/// to take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub u64);

impl Offset {
    /// The offset after this one.
    pub const fn next(self) -> Offset {
        Offset(self.0 + 1)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the bytes of a record are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentType {
    /// An Arrow IPC stream with one batch, as [`record::block::encode`] writes it.
    ArrowStream,
}

impl ContentType {
    /// The media type.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::ArrowStream => "application/vnd.apache.arrow.stream",
        }
    }
}

/// What a record is, without opening it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordHeaders {
    /// What the bytes are.
    pub content_type: ContentType,
    /// The gateway's stream whose rows the record holds.
    pub stream: StreamName,
    /// Fingerprint of the rows' schema ([`record::StreamSchema::fingerprint`]).
    pub schema: u64,
    /// The gateway, by its certificate.
    pub gateway: GatewayId,
    /// The life of the gateway's folder that the seqs belong to.
    pub incarnation: Incarnation,
    /// Seq of the first row.
    pub first_seq: Seq,
    /// Seq of the last row.
    pub last_seq: Seq,
    /// Number of rows, `last_seq - first_seq + 1`.
    pub rows: u32,
    /// Hash of the block before it in its stream.
    pub prev_hash: Digest,
    /// Hash of this block ([`record::chain_hash`]).
    pub hash: Digest,
    /// When central took it, in nanoseconds since the epoch by central's clock.
    pub produced_at_ns: i64,
}

/// A record to be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataRecord {
    /// What it is.
    pub headers: RecordHeaders,
    /// The block.
    pub bytes: Bytes,
}

/// A record as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRecord {
    /// Where it stands.
    pub offset: Offset,
    /// What it is.
    pub headers: RecordHeaders,
    /// The block.
    pub bytes: Bytes,
}

/// A consumer group's position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The next record to take.
    pub offset: Offset,
    /// What the group stored beside it; ASCII, at most [`crate::limits::OFFSET_METADATA_BYTES_MAX`] bytes.
    pub metadata: String,
}

/// Size and extent of a partition, for metrics and the API.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PartitionStatus {
    /// The oldest offset that may still be read.
    pub low: Offset,
    /// One past the newest committed record.
    pub high: Offset,
    /// Bytes on disk, where this process holds the disk.
    pub bytes: u64,
}

/// Why a group or an offset was not committed, as far as known. Messages name the place.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum CommitError {
    /// Another owner took it; this one can commit nothing any more.
    #[error("it is owned by someone newer")]
    Fenced,
    /// The log has reached its quota; nothing was written and a later attempt may succeed.
    #[error("the log is full: {used} of {quota} bytes are used and the slowest group has not moved on")]
    Full {
        /// Bytes in use.
        used: u64,
        /// Bytes allowed.
        quota: u64,
    },
    /// It may or may not have been committed: claim the shard again, or read the committed offset again.
    #[error("the outcome of a commit is unknown: {0}")]
    Unknown(String),
    /// The request breaks a limit; nothing was written and no later attempt will succeed.
    #[error("the log refuses a commit: {0}")]
    Refused(String),
}

/// Why a shard was not claimed.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum ClaimError {
    /// It is not this process' any more.
    #[error("shard {0} is owned by another process")]
    NotOwner(Shard),
    /// The log did not answer, or not in time; a later attempt may succeed.
    #[error("shard {shard} cannot be claimed: {reason}")]
    Unavailable {
        /// The shard.
        shard: Shard,
        /// What happened.
        reason: String,
    },
    /// This process can no longer use the log; a start anew recovers it.
    #[error("shard {shard} gives no progress: {reason}")]
    Failed {
        /// The shard.
        shard: Shard,
        /// What happened.
        reason: String,
    },
}

/// Why nothing could be read.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum ReadError {
    /// The records asked for are no longer kept.
    #[error("offset {from} of partition {partition} is no longer kept; the oldest is {first}")]
    Trimmed {
        /// The partition.
        partition: Partition,
        /// What was asked for.
        from: Offset,
        /// The oldest record that is kept.
        first: Offset,
    },
    /// There is no such partition.
    #[error("there is no partition {0}")]
    NoPartition(Partition),
    /// The storage failed; a later attempt may succeed.
    #[error("partition {partition} cannot be read: {reason}")]
    Storage {
        /// The partition.
        partition: Partition,
        /// What happened.
        reason: String,
    },
}

/// The log; see the module.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// The identity of this log, ASCII and at most 36 bytes: another one when the log was made anew, so that offsets of
    /// two logs are never taken for each other.
    fn id(&self) -> &str;

    /// How many partitions there are; never changes in a log's life.
    fn partitions(&self) -> u32;

    /// How many shards there are; never changes in a log's life.
    fn shards(&self) -> u32;

    /// The shards that the link role of this process owns.
    fn shards_owned(&self) -> Owned<Shard>;

    /// The partitions that this process owns in a group.
    fn partitions_owned(&self, group: &str) -> Owned<Partition>;

    /// Where gateways find the owner of a shard, a URL, when that is another process and known.
    fn owner(&self, shard: Shard) -> Option<String>;

    /// Begins to own a shard: whoever did before can commit nothing any more, and what it committed is read. One record
    /// a key.
    async fn claim(&self, shard: Shard) -> Result<Vec<ProgressRecord>, ClaimError>;

    /// Commits records and progress in one atomic step. One caller a shard, which has claimed it; the gateways of all
    /// records and of all progress belong to the shard.
    async fn commit_group(
        &self,
        shard: Shard,
        records: Vec<DataRecord>,
        progress: Vec<ProgressRecord>,
    ) -> Result<(), CommitError>;

    /// The committed progress of every gateway and stream of a shard, whoever owns it: all that was committed before the
    /// call. One record a key.
    async fn progress(&self, shard: Shard) -> Result<Vec<ProgressRecord>, ReadError>;

    /// Committed records from an offset on: at least one where there is one, then as many as fit in `bytes_max`. Empty at
    /// the tail. `reader` names who reads: each of them goes through a partition in order, mostly.
    async fn read(
        &self,
        reader: &str,
        partition: Partition,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<StoredRecord>, ReadError>;

    /// Where the records of a partition end as far as a reader may see them, and word of each move.
    fn tail_moved(&self, reader: &str, partition: Partition) -> watch::Receiver<Offset>;

    /// Where a group stands; `None` when it never committed.
    async fn committed(&self, group: &str, partition: Partition) -> Result<Option<Committed>, ReadError>;

    /// Stores where a group stands; durable when it returns. The lease is the one under which the partition is owned.
    async fn commit_offset(
        &self,
        group: &str,
        partition: Partition,
        lease: Lease,
        offset: Offset,
        metadata: &str,
    ) -> Result<(), CommitError>;

    /// Keeps a record that cannot be used, with the reason, where people look for such; kept once although it may be said
    /// again. Durable when it returns.
    async fn quarantine(
        &self,
        partition: Partition,
        record: &StoredRecord,
        reason: &str,
    ) -> Result<(), CommitError>;

    /// Size and extent of a partition, as of now.
    async fn status(&self, partition: Partition) -> Result<PartitionStatus, ReadError>;

    /// Lets go of everything that this process owns, so that others need not wait until it is missed.
    async fn close(&self);
}

/// The first eight bytes of the SHA-256 of a gateway's id, little-endian.
fn spread(gateway: &GatewayId) -> u64 {
    let digest = Digest::of(gateway.as_str().as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest.0[..8]);
    u64::from_le_bytes(first)
}

fn place(gateway: &GatewayId, among: u32) -> u32 {
    u32::try_from(spread(gateway) % u64::from(among.max(1))).unwrap_or_default()
}

/// The partition of a gateway: all its streams are in one. The hash modulo the number of partitions.
pub fn partition_of(gateway: &GatewayId, partitions: u32) -> Partition {
    Partition(place(gateway, partitions))
}

/// The shard of a gateway, likewise.
pub fn shard_of(gateway: &GatewayId, shards: u32) -> Shard {
    Shard(place(gateway, shards))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_spread_and_stay() {
        let mut per = [0; 4];
        for i in 0..400 {
            let id = GatewayId::new(&format!("plant-{i}")).expect("valid");
            let p = partition_of(&id, 4);
            assert_eq!(p, partition_of(&id, 4));
            per[p.0 as usize] += 1;
        }
        assert!(per.iter().all(|n| (60..=140).contains(n)), "{per:?}");
    }

    #[test]
    fn a_shard_writes_to_few_partitions() {
        for i in 0..400 {
            let id = GatewayId::new(&format!("plant-{i}")).expect("valid");
            assert_eq!(partition_of(&id, 16).0 % 4, shard_of(&id, 4).0);
            assert_eq!(shard_of(&id, 16).0 % 4, partition_of(&id, 4).0);
        }
    }
}
