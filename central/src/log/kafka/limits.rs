//! Bounds of the log in Kafka.

use record::limits::BLOCK_BYTES_MAX;
use std::time::Duration;

/// The largest record with its headers: a broker's default is 1,048,588 bytes.
pub(super) const MESSAGE_BYTES_MAX: usize = 1_040_000;
/// What topics that are made take: a broker's default.
pub(super) const BROKER_MESSAGE_BYTES: usize = 1_048_588;
/// Bytes that a producer holds for the brokers, in KiB; one that is full waits.
pub(super) const PRODUCER_KIB_MAX: usize = 65_536;
/// Bytes of blocks that a partition's buffer holds before it is not fetched any further.
pub(super) const BUFFER_BYTES_MAX: usize = 48 << 20;
/// Bytes that the library fetches ahead of a reader, in KiB.
pub(super) const FETCHED_KIB_MAX: usize = 32_768;

/// How long a transactional producer waits for its first connection before it begins: as long as the library would.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// What the broker gives a transaction of the link; then it aborts it.
pub(super) const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Within this everything of a transaction has been taken by the broker, or it is given up.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(7);
/// How often it is looked whether it has.
pub(super) const DELIVERY_POLL: Duration = Duration::from_micros(200);

/// Within this readers of committed records see what was committed, or it counts as in doubt.
pub(super) const SEEN_TIMEOUT: Duration = Duration::from_secs(5);
/// The blocks of a transaction are looked for from so long before its progress on: more than it may stand open, and than the
/// clocks of two brokers may differ.
pub(super) const SINCE_MARGIN: Duration = Duration::from_secs(60);
/// How often that is looked at.
pub(super) const SEEN_POLL: Duration = Duration::from_millis(1);

/// A member that is silent for so long has lost what it had: the least that a broker takes by default.
pub(super) const SESSION_TIMEOUT: Duration = Duration::from_secs(6);
/// A member hears of a change with its heartbeat: what one process lets go of is another's within this.
pub(super) const HEARTBEAT: Duration = Duration::from_millis(100);
/// How long the network may keep a commit of an offset waiting.
pub(super) const MEMBER_SOCKET_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client is polled before its thread looks whether anybody wants something else of it.
pub(super) const POLL: Duration = Duration::from_millis(50);
/// The same for a reader, which is asked for records.
pub(super) const READER_POLL: Duration = Duration::from_millis(10);
/// How long a broker may hold a fetch that finds nothing.
pub(super) const FETCH_WAIT: Duration = Duration::from_millis(50);
/// How long a read waits for the broker.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a question (offsets, extents) may take.
pub(super) const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// Clients for whole partitions that stay connected when nobody needs them.
pub(super) const WHOLE_CLIENTS_MAX: usize = 4;
/// How long a whole partition of progress, of identities or of what is in quarantine may take to be read.
pub(super) const WHOLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of a record's value that are kept in quarantine: those of a block whole, of anything larger the beginning.
pub(super) const QUARANTINED_BYTES_MAX: usize = BLOCK_BYTES_MAX;
/// Bytes of a record's own headers that are kept with it.
pub(super) const QUARANTINED_HEADERS_BYTES_MAX: usize = 16 << 10;
/// Places in quarantine that are remembered of a partition.
pub(super) const QUARANTINED_PLACES_MAX: usize = 1 << 16;
/// Bytes of a foreign name or value that are quoted where something is said of it.
pub(super) const QUOTED_BYTES_MAX: usize = 64;
/// How often the age of what is not stored is measured, and how long that may take.
pub(super) const AGE_INTERVAL: Duration = Duration::from_secs(30);
/// See [`AGE_INTERVAL`].
pub(super) const AGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a record of the quarantine may take to be stored.
pub(super) const QUARANTINE_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a broker may take to answer what is asked at the start, once.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(15);
/// A broker that was away is tried again after so long at most; the library's own 10 s are added to every outage.
pub(super) const RECONNECT_MAX: Duration = Duration::from_secs(1);
/// From one ask to the next, when the answer may be another one in a moment.
pub(super) const ASK_AGAIN: Duration = Duration::from_millis(250);
/// How often it is asked: a broker that has just started answers some questions long before others.
pub(super) const START_ASKS: u32 = 8;
/// How long a start waits for brokers that are away or busy.
pub(super) const START_PATIENCE: Duration = Duration::from_secs(120);
/// Processes that begin together fence each other; one of them gets through.
pub(super) const IDENTITY_TRIES: u32 = 40;
/// How long what nobody could read is kept in quarantine, at least.
pub(super) const QUARANTINE_RETENTION: Duration = Duration::from_secs(90 * 86_400);

const _: () =
    assert!(BLOCK_BYTES_MAX + 4_096 < MESSAGE_BYTES_MAX && MESSAGE_BYTES_MAX < BROKER_MESSAGE_BYTES);
const _: () = assert!(QUARANTINED_BYTES_MAX + QUARANTINED_HEADERS_BYTES_MAX + 4_096 < MESSAGE_BYTES_MAX);
const _: () = assert!(MESSAGE_BYTES_MAX < PRODUCER_KIB_MAX << 10);
const _: () = assert!(DRAIN_TIMEOUT.as_millis() < TRANSACTION_TIMEOUT.as_millis());
const _: () = assert!(HEARTBEAT.as_millis() * 3 < SESSION_TIMEOUT.as_millis());

/// As the library's options want it.
pub(super) fn ms(time: Duration) -> String {
    time.as_millis().to_string()
}
