//! The log between `link` and `sink`: what a gateway was acknowledged for stands here until ClickHouse has it.
//!
//! A log has partitions; a gateway belongs to one of them ([`partition_of`]). A record is one block of one stream. The
//! link role commits records **and** the progress of their streams in one atomic step; the sink role reads records by
//! offset and commits its own position together with a line of metadata (its intent). The one implementation of
//! [`Log`] is [`embedded`], made of the same segment log as the gateway's buffer; Kafka fits behind the trait, but is not there.
//!
//! Invariants:
//! - after `commit_group` returned `Ok`, records and progress survive a power cut; after an error the caller knows
//!   nothing and reads the progress again: what is stored is the truth;
//! - readers see committed records only, in offset order; offsets grow, with gaps;
//! - `commit_offset` returns only after the offset and its metadata are durable;
//! - nothing that a registered group has not committed is ever removed.
//!
//! It never opens a block and never judges a sequence: that is the link's and the sink's work.

mod codec;
pub mod embedded;
mod progress;

pub use progress::{
    Counted, Head, LossEntry, Progress, ProgressKey, ProgressKind, ProgressRecord, Quarantined,
};

use async_trait::async_trait;
use bytes::Bytes;
use record::{Digest, GatewayId, Incarnation, Seq, StreamName};
use std::fmt;
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

/// Why a group, an offset or a progress was not committed, as far as known.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum CommitError {
    /// Another owner took the partition; this one can commit nothing any more.
    #[error("partition {partition} is owned by someone newer")]
    Fenced {
        /// The partition.
        partition: Partition,
    },
    /// The log has reached its quota; nothing was written and a later attempt may succeed.
    #[error(
        "partition {partition} is full: {used} of {quota} bytes are used and the slowest group has not moved on"
    )]
    Full {
        /// The partition.
        partition: Partition,
        /// Bytes in use.
        used: u64,
        /// Bytes allowed.
        quota: u64,
    },
    /// It may or may not have been committed: read the progress again.
    #[error("the outcome of a commit to partition {partition} is unknown: {reason}")]
    Unknown {
        /// The partition.
        partition: Partition,
        /// What happened.
        reason: String,
    },
    /// The request breaks a limit; nothing was written and no later attempt will succeed.
    #[error("partition {partition}: {reason}")]
    Refused {
        /// The partition.
        partition: Partition,
        /// Which limit.
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

    /// Commits records and progress in one atomic step and returns the new high watermark. One caller a partition.
    async fn commit_group(
        &self,
        partition: Partition,
        records: Vec<DataRecord>,
        progress: Vec<ProgressRecord>,
    ) -> Result<Offset, CommitError>;

    /// The committed progress of every gateway and stream of a partition, one record a key.
    async fn load_progress(&self, partition: Partition) -> Result<Vec<ProgressRecord>, ReadError>;

    /// Committed records from an offset on: at least one where there is one, then as many as fit in `bytes_max`. Empty at the tail.
    async fn read(
        &self,
        partition: Partition,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<StoredRecord>, ReadError>;

    /// The high watermark, and word of each move of it.
    fn tail_moved(&self, partition: Partition) -> watch::Receiver<Offset>;

    /// One past the newest committed record.
    fn high_watermark(&self, partition: Partition) -> Offset {
        *self.tail_moved(partition).borrow()
    }

    /// Where a group stands; `None` when it never committed.
    async fn committed(&self, group: &str, partition: Partition) -> Result<Option<Committed>, ReadError>;

    /// Stores where a group stands; durable when it returns.
    async fn commit_offset(
        &self,
        group: &str,
        partition: Partition,
        offset: Offset,
        metadata: &str,
    ) -> Result<(), CommitError>;

    /// Size and extent of a partition.
    async fn status(&self, partition: Partition) -> Result<PartitionStatus, ReadError>;
}

/// The partition of a gateway: all its streams are in one, so that a commit of a gateway touches one partition. The
/// first eight bytes of the SHA-256 of its id, little-endian, modulo the number of partitions.
pub fn partition_of(gateway: &GatewayId, partitions: u32) -> Partition {
    let digest = Digest::of(gateway.as_str().as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest.0[..8]);
    let index = u64::from_le_bytes(first) % u64::from(partitions.max(1));
    Partition(u32::try_from(index).unwrap_or_default())
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
}
