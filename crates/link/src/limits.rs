//! Bounds of the link, on both ends.

use record::limits::{BLOCK_BYTES_MAX, COLUMNS_MAX};

/// The version of the protocol that this build speaks.
pub const PROTOCOL: u32 = 1;
/// Largest message of the protocol, in bytes: a block and its header, or a Hello.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Most streams that a gateway may announce.
pub const STREAMS_MAX: usize = 1_024;
/// Most loss entries in one ledger message, per stream.
pub const LOSSES_PER_MESSAGE_MAX: usize = 64;
/// Longest free text (software, reason, message) that is taken, in bytes; longer ones are cut.
pub const TEXT_BYTES_MAX: usize = 512;
/// Blocks sent and not yet acknowledged, by default.
pub const IN_FLIGHT_BATCHES: usize = 64;
/// Bytes sent and not yet acknowledged, by default.
pub const IN_FLIGHT_BYTES: usize = 12 << 20;
/// Retired incarnations remembered per stream.
pub const RETIRED_MAX: usize = 16;
/// Blocks per stream whose hashes central remembers, to tell a repeat from a stranger.
pub const RECENT_BLOCKS: usize = 64;
/// Messages waiting to be sent to one gateway; a gateway that does not read is cut off.
pub const OUTBOUND_MESSAGES: usize = 256;
/// Receive window of one session, in bytes (HTTP/2 flow control).
pub const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// TLS handshakes going on at once; further connections wait in the kernel's queue.
pub const HANDSHAKES_MAX: usize = 64;

const _: () = assert!(BLOCK_BYTES_MAX + 64 * 1024 < MESSAGE_BYTES_MAX);
const _: () = assert!(COLUMNS_MAX <= 1_024);
const _: () = assert!(IN_FLIGHT_BYTES >= 2 * BLOCK_BYTES_MAX);

/// So often in a row a gateway follows central's word to another process at once; then it rests like after a failure.
pub const REDIRECTS_IN_A_ROW: u32 = 4;
