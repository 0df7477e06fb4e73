//! Bounds of the central daemon; every queue, group and record stands here.

use record::limits::BLOCK_BYTES_MAX;
use std::time::Duration;

/// Longest metadata beside a committed offset, in bytes; Kafka's brokers allow 4,096.
pub const OFFSET_METADATA_BYTES_MAX: usize = 4_096;
/// Longest name of a consumer group, in bytes.
pub const GROUP_NAME_BYTES_MAX: usize = 128;
/// Loss entries kept per gateway and stream; older ones live on in the totals.
pub const LOSS_ENTRIES_MAX: usize = 64;
/// Longest reason in a loss or quarantine entry, in bytes; longer ones are cut.
pub const REASON_BYTES_MAX: usize = 512;

/// Messages of sessions that may wait for the committer of a shard; each is at most a block.
pub const COMMITTER_INPUTS: usize = 16;
/// First pause before a shard is claimed again; doubles.
pub const CLAIM_BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest pause before a shard is claimed again.
pub const CLAIM_BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Schemas that a session remembers as let in; beyond it every block of a further one is looked at.
pub const SCHEMAS_PER_SESSION_MAX: usize = 4_096;
/// A connection that does not say Hello by then is ended.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a standing session's certificate is looked up in the list of revoked ones.
pub const REVOCATION_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// A group is committed at once when it holds so many bytes of blocks; it may go over by one block. A gateway that has much
/// to send must be able to fill one while the one before is committed: if its window held no more than a group, each would
/// wait for the commit interval.
pub const GROUP_BYTES: usize = 4 << 20;
/// The same with small blocks: a group is committed at once when one gateway has half of its window in it.
pub const BLOCKS_OF_ONE: usize = ::link::limits::IN_FLIGHT_BATCHES / 2;
/// Most connections that can be configured.
pub const CONNECTIONS_MAX: i64 = 1 << 20;
/// How often the extent of the log is asked for the metrics.
pub const LOG_STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// How long a process that ends may take to let go of what it owns, so that others need not wait until it is missed.
pub const LET_GO_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a gateway waits where it knocks while its shard is nobody's.
pub const SHARD_WAIT: Duration = Duration::from_secs(3);
/// How often it is looked meanwhile whether somebody else has taken it.
pub const SHARD_LOOK: Duration = Duration::from_millis(100);
/// After the wish to stop, the stages have so long.
pub const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// Largest frame that a group makes: its blocks, one more, and their headers.
pub const GROUP_FRAME_BYTES_MAX: u64 = 16 << 20;

const _: () = assert!(2 * (GROUP_BYTES + BLOCK_BYTES_MAX) <= ::link::limits::IN_FLIGHT_BYTES);
const _: () = assert!(GROUP_BYTES + BLOCK_BYTES_MAX < GROUP_FRAME_BYTES_MAX as usize);
const _: () = assert!(GROUP_BYTES + BLOCK_BYTES_MAX < journal::limits::PAYLOAD_BYTES_MAX);
