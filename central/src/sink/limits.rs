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
/// Least number of blocks that a table remembers tokens of; every insert of every lane takes one.
pub const DEDUPLICATION_WINDOW_MIN: u64 = 25_000;
/// Inserts of one lane into one table while an insert is on its way, at most.
const INSERTS_OF_A_LANE: u64 = ((SURE.as_millis() + QUIET.as_millis()) / LINGER.as_millis() + 1) as u64;

/// Blocks that a table remembers tokens of, when so many lanes may write it at their full rate. A token is used again only
/// while fewer inserts than half of them came since ([`tokens_sure`]): the other half is for what all lanes insert while
/// that insert is on its way, for [`SURE`] and [`QUIET`] at most.
pub const fn deduplication_window(lanes: u32) -> u64 {
    let needed = 2 * INSERTS_OF_A_LANE * lanes as u64;
    if needed > DEDUPLICATION_WINDOW_MIN { needed } else { DEDUPLICATION_WINDOW_MIN }
}

/// A token is used again while the table took fewer inserts since.
pub const fn tokens_sure(lanes: u32) -> u64 {
    deduplication_window(lanes) / 2
}

const _: () = assert!(deduplication_window(18) == DEDUPLICATION_WINDOW_MIN);
const _: () = assert!(QUIET.as_secs() > INSERT_TIMEOUT.as_secs());
// A slow server is no reason to doubt: a read-back that was answered in time allows its insert.
const _: () = assert!(SURE.as_secs() >= STATEMENT_TIMEOUT.as_secs());
// The engine's own bounds, with room: 1,048,449 rows and 256 MiB.
const _: () = assert!(BLOCK_ROWS_MAX + record::limits::BATCH_ROWS_MAX < 1_048_449);
