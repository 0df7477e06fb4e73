//! Bounds of the server; what is over a bound gets a clear error.

use std::time::Duration;

/// Engine connections that may write; each runs one statement at a time.
pub(crate) const WRITERS: usize = 8;
/// Engine connections of the read-only pool.
pub(crate) const READERS: usize = 4;
/// Requests that run or wait for a connection, over both pools; one more is answered 503.
pub(crate) const REQUESTS_MAX: usize = 64;
/// Longest SQL text, in bytes; also given to the engine as `max_query_size`.
pub(crate) const STATEMENT_BYTES_MAX: usize = 1 << 20;
/// Largest body that carries SQL (with the data of an insert behind it), in bytes: it is held whole.
pub(crate) const SQL_BODY_BYTES_MAX: usize = 16 << 20;
/// Largest body of an insert whose SQL stands in the URL, in bytes as sent: it is streamed, never held whole.
pub(crate) const INSERT_BODY_BYTES_MAX: usize = 1 << 30;
/// Largest block of a compressed body, in bytes, compressed or not.
pub(crate) const FRAME_BYTES_MAX: usize = 256 << 20;
/// Pieces of an insert body, or of a result, between the network and the engine.
pub(crate) const PIECES_IN_FLIGHT: usize = 8;
/// Settings and parameters of one request.
pub(crate) const SETTINGS_MAX: usize = 128;
/// A body that delivers nothing for this long is given up, and its connection freed.
pub(crate) const BODY_IDLE: Duration = Duration::from_secs(60);
/// How long a shutdown waits for running requests.
pub(crate) const SHUTDOWN: Duration = Duration::from_secs(10);
/// How often the parent is looked for.
pub(crate) const PARENT_POLL: Duration = Duration::from_millis(250);
/// Default of `max_execution_time` in the read-only pool, in seconds.
pub(crate) const READ_SECONDS_MAX: u64 = 300;

const _: () = assert!(STATEMENT_BYTES_MAX <= SQL_BODY_BYTES_MAX);
const _: () = assert!(WRITERS + READERS < REQUESTS_MAX);
