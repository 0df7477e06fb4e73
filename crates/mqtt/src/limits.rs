//! Bounds of packets, sessions and the redelivery window.

/// Largest packet that a session accepts unless configured otherwise, in bytes after the fixed header.
pub const PACKET_BYTES_DEFAULT: u32 = 1 << 20;
/// Largest remaining length that the protocol can express, in bytes.
pub const REMAINING_LENGTH_MAX: u32 = 268_435_455;
/// Most unacknowledged QoS 1 publishes of a client, announced as Receive Maximum and enforced on MQTT 5. With a commit
/// every 5 ms it lets a connection have 50,000 acknowledged publishes a second; a larger one makes more publishes at the
/// head of a session uncertain (see [`crate::redelivery`]).
pub const RECEIVE_MAXIMUM_DEFAULT: u16 = 256;
/// Most topic aliases of a connection.
pub const TOPIC_ALIASES_DEFAULT: u16 = 16;
/// How long a connection may take to send its CONNECT, in nanoseconds.
pub const CONNECT_TIMEOUT_NS: u64 = 10_000_000_000;
/// A session asks its driver to stop reading once this many acknowledgements wait for the disk. One read of 64 KiB can
/// add about 9,000 more.
pub const PENDING_ACKS_MAX: usize = 16_384;

/// Most publishes that an MQTT 3 client, which cannot be told a Receive Maximum, is taken to have in flight when
/// nothing else is known. mosquitto's default is 20, Paho's 10 or 20, rumqttc's 100. A session that is seen to have
/// more in flight raises its own bound.
pub const IN_FLIGHT_ASSUMED: u16 = 128;
/// A larger in-flight bound than this leaves too few of the 65,535 packet ids to tell old from new.
pub const IN_FLIGHT_JUDGED_MAX: u16 = 16_384;
/// Packet ids that SUBSCRIBE and UNSUBSCRIBE may hold beside the publishes in flight.
pub const OTHER_IDS_IN_FLIGHT: u16 = 16;
/// Most publishes remembered per client.
pub const WINDOW_RECORDS_PER_CLIENT: usize = 1_024;
/// Most publishes remembered over all clients.
pub const WINDOW_RECORDS_TOTAL: usize = 131_072;
/// Most clients remembered.
pub const WINDOW_CLIENTS: usize = 10_000;
/// Largest forward step between two packet ids that still counts as counting up: SUBSCRIBE and UNSUBSCRIBE draw from
/// the same counter, and careful clients skip ids that are in use.
pub const PACKET_ID_STEP_MAX: u16 = 16;

const _: () = assert!(RECEIVE_MAXIMUM_DEFAULT as usize <= WINDOW_RECORDS_PER_CLIENT);
const _: () = assert!(WINDOW_RECORDS_PER_CLIENT <= WINDOW_RECORDS_TOTAL);
const _: () = assert!(
    IN_FLIGHT_JUDGED_MAX as usize
        + OTHER_IDS_IN_FLIGHT as usize
        + (WINDOW_RECORDS_PER_CLIENT * PACKET_ID_STEP_MAX as usize)
        < u16::MAX as usize
);
