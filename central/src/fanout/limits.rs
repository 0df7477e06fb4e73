//! Bounds of the fan-out.

use std::time::Duration;

/// A transaction is closed when it holds so many bytes of keys and values; it may go over by one event.
pub const TRANSACTION_BYTES: usize = 8 << 20;
/// Bytes of blocks that a lane reads at once, encoded: what it has in its hands.
pub const READ_BYTES: usize = 4 << 20;
/// Least time from one transaction of a partition to the next while there is less than a transaction takes.
pub const LINGER: Duration = Duration::from_millis(50);
/// First pause after a failure; doubles.
pub const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest pause after a failure.
pub const BACKOFF_MAX: Duration = Duration::from_secs(5);
