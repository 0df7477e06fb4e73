//! Bounds of the sink.

use std::time::Duration;

/// Rows of one insert into one table; the engine splits larger ones, and then a token no longer names one block.
pub const BLOCK_ROWS_MAX: usize = 1_000_000;
/// Bytes of one insert, decoded; the same reason.
pub const BLOCK_BYTES_MAX: usize = 128 << 20;
/// How long an insert may take, also in the server (`max_execution_time`).
pub const INSERT_TIMEOUT: Duration = Duration::from_secs(30);
/// After an insert whose end is unknown, how long the server may still be at work on it: a new token must wait.
pub const QUIET: Duration = Duration::from_secs(40);
/// A lane inserts within this of asking for what allows it (the commit of the intent, a read-back). One that stood still for
/// longer reads again what is stored: others may have stored the range, so long ago that its token is forgotten.
pub const SURE: Duration = Duration::from_secs(60);
/// How long a read-back or a change of a table may take.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a gateway's hello may wait for what the tables say.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// First pause after a failure; doubles.
pub const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest pause after a failure.
pub const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// How far the clocks of central and of its ClickHouse server may be apart, when inserts are counted since a moment.
pub const CLOCK_SKEW: Duration = Duration::from_secs(60);
/// From one insert of a lane to its next, unless ranges are full.
pub const LINGER: Duration = Duration::from_millis(150);
/// Lanes that may write one table at their full rate, with room to a log of the default size.
pub const LANES_PER_TABLE: u64 = 18;
/// Blocks that a table remembers tokens of; every insert of every lane takes one.
pub const DEDUPLICATION_WINDOW: u64 = 25_000;
/// A token is used again only while fewer inserts came since: the other half of the window is for what all lanes insert
/// while that insert is on its way, for [`SURE`] and [`QUIET`] at most.
pub const TOKENS_SURE: u64 = DEDUPLICATION_WINDOW / 2;

const _: () = assert!(
    LANES_PER_TABLE as u128 * ((SURE.as_millis() + QUIET.as_millis()) / LINGER.as_millis())
        <= TOKENS_SURE as u128
);
const _: () = assert!(QUIET.as_secs() > INSERT_TIMEOUT.as_secs());
// A slow server is no reason to doubt: a read-back that was answered in time allows its insert.
const _: () = assert!(SURE.as_secs() >= STATEMENT_TIMEOUT.as_secs());
// The engine's own bounds, with room: 1,048,449 rows and 256 MiB.
const _: () = assert!(BLOCK_ROWS_MAX + record::limits::BATCH_ROWS_MAX < 1_048_449);
