//! Bounds of this program, in one place. Sizes in bytes unless the name says otherwise.

use std::time::Duration;

/// Largest payload of one event. A dead letter carries it in base64 (4/3 as long), and a row must fit a block alone.
pub const EVENT_PAYLOAD_BYTES_MAX: usize = 512 << 10;
/// What is kept of a larger payload, for its dead letter.
pub const CUT_PAYLOAD_BYTES: usize = 1 << 10;
/// Longest payload of a dead letter; a longer one is cut. All that an event may hold fits, in base64 too.
pub const DEAD_LETTER_PAYLOAD_BYTES_MAX: usize = EVENT_PAYLOAD_BYTES_MAX.div_ceil(3) * 4;
/// Longest topic: the protocol's own bound.
pub const TOPIC_BYTES_MAX: usize = 65_535;
/// Nesting of a JSON payload, its outermost object or list counted.
pub const JSON_DEPTH_MAX: usize = 64;
/// Longest error text kept in a dead letter.
pub const ERROR_BYTES_MAX: usize = 500;

/// Largest body of one HTTP request.
pub const HTTP_BODY_BYTES_MAX: usize = 1 << 20;
/// Most events in one HTTP request.
pub const HTTP_EVENTS_MAX: usize = 16_384;
/// Longest `Idempotency-Key`.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 256;
/// Most `Idempotency-Key`s that are remembered; the oldest are forgotten first.
pub const IDEMPOTENCY_KEYS_MAX: usize = 100_000;
/// How long an `Idempotency-Key` is remembered.
pub const IDEMPOTENCY_WINDOW: Duration = Duration::from_secs(24 * 3600);
/// How long a request waits for its events to be durable; then the answer is that this is open.
pub const HTTP_DURABLE_WAIT: Duration = Duration::from_secs(10);
/// How long a connection may take for the head of its next request.
pub const HTTP_HEAD_WAIT: Duration = Duration::from_secs(20);
/// Longest head of a request; also what a connection reads at once.
pub const HTTP_HEAD_BYTES_MAX: usize = 64 << 10;
/// How long a request may take for its body. As long it holds one of the places for requests.
pub const HTTP_BODY_WAIT: Duration = Duration::from_secs(20);
/// Connections of an HTTP source for each request that it takes at a time.
pub const HTTP_CONNECTIONS_PER_REQUEST: usize = 8;
/// How long a connection over the bound has to read that it is.
pub const HTTP_REFUSAL_WAIT: Duration = Duration::from_secs(2);
/// What a caller is told to wait when the buffer is full.
pub const RETRY_AFTER: Duration = Duration::from_secs(2);

/// The first and the longest wait between tries to connect to a broker.
pub const BROKER_BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// Largest packet that is taken from a broker: above the size of an event, so that an oversized message becomes a dead
/// letter instead of ending the connection again and again.
pub const BROKER_PACKET_BYTES_MAX: usize = 32 << 20;
/// Bytes of a broker's messages that may wait for the buffer; at more the connection is not read.
pub const BROKER_UNPUSHED_BYTES_MAX: usize = 512 << 10;

/// One read of a busy MQTT connection.
pub const LISTENER_READ_BYTES: usize = 64 << 10;
/// Events of one MQTT connection that are pushed at once; at more the session pauses.
pub const LISTENER_SCRATCH_BYTES_MAX: usize = 512 << 10;
/// Answers that a device may leave unread before it is not read itself.
pub const LISTENER_OUT_BYTES_MAX: usize = 64 << 10;
/// Input that a connection holds above this is a large packet…
pub const LARGE_PACKET_BYTES: usize = 64 << 10;
/// …of which this many may be under way at a time.
pub const LARGE_PACKETS_MAX: usize = 32;
/// Connections over the bound that are told so at a time; further ones are closed without a word.
pub const REFUSED_AT_ONCE_MAX: usize = 64;
/// Longest MQTT client id: it is the name of a device.
pub const CLIENT_ID_BYTES_MAX: usize = record::limits::DEVICE_BYTES_MAX;
/// How often a connection that had no room in the buffer tries again.
pub const OVER_QUOTA_RETRY: Duration = Duration::from_millis(50);
/// How long a connection waits for the end of the one whose client id it takes over.
pub const TAKE_OVER_WAIT: Duration = Duration::from_secs(10);
/// How long what an ended connection left, its will for instance, waits for room.
pub const LAST_PUSH_WAIT: Duration = Duration::from_secs(5);

/// Topics whose routes are remembered; at more the memory starts anew.
pub const ROUTE_CACHE_MAX: usize = 65_536;
/// Most streams of one gateway.
pub const STREAMS_MAX: usize = 256;
/// Most sources of one gateway.
pub const SOURCES_MAX: usize = 64;
/// Most connections of one listener.
pub const CONNECTIONS_MAX: usize = 10_000;

/// A step takes whole input frames until it has this many events…
pub const STEP_EVENTS: usize = 8_192;
/// …or this many bytes of them.
pub const STEP_BYTES: usize = 1 << 20;
/// …or the first of them has waited so long for more, by default.
pub const STEP_INTERVAL: Duration = Duration::from_millis(10);
/// What waits for the next sync of the input log is one frame and one step, so with a small quota less may wait than
/// the journal's own bounds: this share of the quota…
pub const ROUND_QUOTA_SHARE: u64 = 16;
/// …and with one push more this share, but never less than what a connection pushes at once.
pub const PUSH_QUOTA_SHARE: u64 = 8;
/// What any push may come to, however small the quota: what a connection collects and one event more.
pub const PUSH_BYTES_MIN: usize = 5 << 18;
/// Most bytes of rows and changes of state that one step may come to: a frame holds them…
pub const STEP_OUT_BYTES_MAX: usize = 30 << 20;
/// …and at most this share of the quota, or a frame might never find room.
pub const STEP_OUT_QUOTA_SHARE: u64 = 4;
/// Steps of one lane that may wait for the writer of the output log.
pub const STEPS_WAITING_MAX: usize = 4;
/// Most frames that the writer puts under one sync.
pub const STEPS_PER_SYNC_MAX: usize = 64;

/// Most keys (devices, for instance) of one windowed stream. At more, silent ones are forgotten; rows of keys for which
/// there is no room then are dead letters.
pub const WINDOW_KEYS_MAX: usize = 200_000;
/// Most open windows of one stream; rows that would open more are dead letters.
pub const WINDOWS_OPEN_MAX: usize = 400_000;
/// Most dedup keys that a stream may ask to remember.
pub const DEDUP_KEYS_MAX: i64 = 2_000_000;

/// Rows that may fail one after the other before a module is suspended.
pub const MODULE_FAILURES_MAX: u32 = 16;
/// How long a suspended module rests before it is tried again.
pub const MODULE_REST: Duration = Duration::from_secs(60);
/// The first and the longest wait before a held lane tries again.
pub const HOLD_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// How often a held lane whose stream may lose rows looks whether the buffer is nearly full…
pub const HELD_LOOK: Duration = Duration::from_millis(600);
/// …and how many segments of input it then gives up.
pub const HELD_GIVE_UP_SEGMENTS: u64 = 2;
/// How often at once a module is given the states of its open windows, each time in a fresh instance and in smaller parts.
pub const LOADS_AT_ONCE: u32 = 3;
/// After more tries than this of a lane that waits for it…
pub const LOAD_TRIES_MAX: u32 = 10;
/// …and so much time, a module that still cannot take the states loses them, where its policy is not to wait.
pub const LOAD_PATIENCE: Duration = Duration::from_secs(120);
/// Largest uploaded module.
pub const MODULE_BYTES_MAX: usize = 32 << 20;

/// Dead letters that the index remembers, the newest ones.
pub const INDEXED_DEAD_LETTERS_MAX: usize = 5_000;
/// Dead letters of one hand-over to the index; of a flood the older ones are passed over.
pub const INDEXED_AT_ONCE_MAX: usize = 500;
/// Loss entries kept per stream, the newest of them; central has the others.
pub const LOSS_ENTRIES_MAX: usize = 256;
/// Losses of rows that had no seq yet are one entry as long as no longer pause than this is between them.
pub const LOSS_PAUSE_NS_MAX: i64 = 60_000_000_000;

/// Free space of the file system that the logs leave to others, at most: a small quota leaves less.
pub const DISK_HEADROOM_BYTES: u64 = 128 << 20;
/// Segments of room that are left when streams with a dropping policy begin to drop: more than what makes sources wait,
/// so that with such streams alone sources never wait.
pub const DROP_BELOW_SEGMENTS: u64 = 4;
/// How long the stages have to finish after SIGTERM.
pub const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(15);

/// Whatever a dead letter says beside its payload and topic, and what a block says of its columns.
const DEAD_LETTER_REST_BYTES: usize = 64 << 10;
const _: () = assert!(ERROR_BYTES_MAX + record::limits::DEVICE_BYTES_MAX < DEAD_LETTER_REST_BYTES / 2);
// A dead letter fits a block even where nothing can be compressed: else its lane could never go on.
const _: () = assert!(
    DEAD_LETTER_PAYLOAD_BYTES_MAX + TOPIC_BYTES_MAX + DEAD_LETTER_REST_BYTES
        < record::limits::BLOCK_BYTES_MAX
);
// The writer adds positions, chains, counts and columns.
const _: () = assert!(STEP_OUT_BYTES_MAX + (1 << 20) < journal::limits::PAYLOAD_BYTES_MAX);
// Every request within the bounds fits one push: each event carries its source, stream and device.
const _: () = assert!(
    HTTP_BODY_BYTES_MAX
        + HTTP_EVENTS_MAX
            * (crate::event::REST_BYTES_MAX
                + 2 * record::limits::NAME_BYTES_MAX
                + record::limits::DEVICE_BYTES_MAX)
        <= journal::limits::HUB_PUSH_BYTES_MAX
);
const _: () = assert!(LAST_PUSH_WAIT.as_nanos() < TAKE_OVER_WAIT.as_nanos());
// What a connection collects, with the event that went over its bound, fits one push: else it would wait for ever.
const _: () = {
    let event = EVENT_PAYLOAD_BYTES_MAX + TOPIC_BYTES_MAX + CLIENT_ID_BYTES_MAX + 1024;
    assert!(LISTENER_SCRATCH_BYTES_MAX + event <= PUSH_BYTES_MIN);
    assert!(BROKER_UNPUSHED_BYTES_MAX + event <= PUSH_BYTES_MIN);
    assert!(PUSH_BYTES_MIN <= journal::limits::HUB_PUSH_BYTES_MAX);
};
const _: () = assert!(INDEXED_DEAD_LETTERS_MAX + INDEXED_AT_ONCE_MAX <= journal::limits::META_SCAN_MAX);
const _: () = assert!(STEP_EVENTS <= record::limits::BATCH_ROWS_MAX);
