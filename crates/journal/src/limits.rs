//! Bounds of this crate, in one place. Sizes in bytes.

use std::time::Duration;

/// A segment's file, preallocated to this when nothing else is configured.
pub const SEGMENT_BYTES: u64 = 64 << 20;
/// The smallest segment that can be configured: tests use small ones.
pub const SEGMENT_BYTES_MIN: u64 = 512;
/// What a frame's meta may hold: positions and state changes of one step.
pub const META_BYTES_MAX: usize = 16 << 20;
/// What a frame's payload may hold.
pub const PAYLOAD_BYTES_MAX: usize = 32 << 20;
/// What a checkpoint may hold: the full window state of a gateway.
pub const CHECKPOINT_BYTES_MAX: usize = 256 << 20;
/// Frames start at multiples of this, so that a search for the next whole frame tries an eighth of the places.
pub const FRAME_ALIGN: u64 = 8;
/// One read of a reader that goes through a log from front to back.
pub const READ_CHUNK_BYTES: usize = 256 << 10;
/// One read while hopping over payloads.
pub const HOP_CHUNK_BYTES: usize = 4 << 10;
/// A place is noted in a segment's sparse index about this often.
pub const INDEX_EVERY_BYTES: u64 = 1 << 20;
/// Damaged ranges that a reader keeps apart until they are taken; beyond that the last one is widened.
pub const GAPS_MAX: usize = 1024;
/// What is skipped when the disk itself refuses to read a place.
pub const UNREADABLE_STEP_BYTES: usize = 4 << 10;

/// The time the hand-off waits for more events before it writes a round.
pub const HUB_WINDOW: Duration = Duration::from_millis(5);
/// A round is written at once when this much waits.
pub const HUB_ROUND_BYTES: usize = 1 << 20;
/// When this much waits in memory, connections are told [`crate::PushError::Full`]. A frame of the log is hardly larger,
/// and whoever reads the log holds whole frames.
pub const HUB_BACKLOG_BYTES: usize = 2 << 20;
/// Most that is pushed at once. One push is taken as long as the round is not full: a round holds this much more than
/// the above at most.
pub const HUB_PUSH_BYTES_MAX: usize = 20 << 20;
/// What the two buffers of an idle hand-off keep.
pub const HUB_IDLE_BYTES: usize = 1 << 20;
/// How often a round that met a full disk is tried again.
pub const HUB_STALL_RETRY: Duration = Duration::from_millis(50);

/// Free space that is left to the rest of the machine and to the index.
pub const HEADROOM_BYTES: u64 = 128 << 20;

const _: () = assert!(HUB_BACKLOG_BYTES + HUB_PUSH_BYTES_MAX <= PAYLOAD_BYTES_MAX, "a round is one frame");
const _: () = assert!(HUB_ROUND_BYTES <= HUB_BACKLOG_BYTES, "a full round fits the buffer");
const _: () = assert!(CHECKPOINT_BYTES_MAX < u32::MAX as usize, "lengths are 32 bits on disk");

/// sled's page cache. It is no bound of its memory, only a wish.
pub const META_CACHE_BYTES: u64 = 16 << 20;
/// How often sled writes what it holds back.
pub const META_FLUSH_MS: u64 = 500;
/// Operations in one batch: thousands leak.
pub const META_BATCH_OPERATIONS: usize = 100;
/// A stored value; longer ones are cut into chunks.
pub const META_CHUNK_BYTES: usize = 4 << 10;
/// A value as the caller sees it.
pub const META_VALUE_BYTES_MAX: usize = 1 << 20;
/// Entries of one scan.
pub const META_SCAN_MAX: usize = 10_000;
/// Requests that wait for the index.
pub const META_QUEUE: usize = 256;
/// Time for opening an index that is there.
pub const META_OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// More time for making an empty one.
pub const META_FRESH_DEADLINE: Duration = Duration::from_secs(20);
/// Time for one request, with its wait.
pub const META_REQUEST_DEADLINE: Duration = Duration::from_secs(10);

const _: () =
    assert!(META_VALUE_BYTES_MAX / META_CHUNK_BYTES < u16::MAX as usize, "chunks are numbered in 16 bits");
