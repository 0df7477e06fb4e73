//! What goes into a session and what comes out of it.

use crate::limits;
use crate::packet::{PacketId, ReasonCode, Version};
use crate::property::Properties;

/// A round of the journal: everything given to it under a ticket is durable once that ticket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ticket(pub u64);

/// What a listener grants its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Largest remaining length of a packet, in bytes.
    pub packet_bytes_max: u32,
    /// Most unacknowledged QoS 1 publishes; at least 1. Told to MQTT 5 clients and enforced on them.
    pub receive_maximum: u16,
    /// Most topic aliases of a connection.
    pub topic_aliases: u16,
    /// Longest keep alive; MQTT 5 clients that ask for more, or for none, are told this one.
    pub keep_alive_s_max: Option<u16>,
    /// Time allowed from the connection to its CONNECT.
    pub connect_timeout_ns: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            packet_bytes_max: limits::PACKET_BYTES_DEFAULT,
            receive_maximum: limits::RECEIVE_MAXIMUM_DEFAULT,
            topic_aliases: limits::TOPIC_ALIASES_DEFAULT,
            keep_alive_s_max: None,
            connect_timeout_ns: limits::CONNECT_TIMEOUT_NS,
        }
    }
}

/// A publish of QoS 0 or 1, borrowed from the read.
#[derive(Debug, Clone, Copy)]
pub struct Incoming<'a> {
    /// Never empty, without wildcards; aliases are resolved.
    pub topic: &'a str,
    /// The application message.
    pub payload: &'a [u8],
    /// Present for QoS 1.
    pub packet_id: Option<PacketId>,
    /// The client says that it has sent this before.
    pub dup: bool,
    /// The client asks for retention.
    pub retain: bool,
    /// MQTT 5 properties.
    pub properties: Properties<'a>,
}

impl Incoming<'_> {
    /// 0 or 1.
    pub fn qos(&self) -> u8 {
        u8::from(self.packet_id.is_some())
    }
}

/// What the sink did with a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Taken, or known to be stored already: acknowledged when the ticket that covers it is durable.
    Taken,
    /// Not taken: MQTT 5 clients read the reason in PUBACK, in turn. MQTT 3 has no negative acknowledgement, so its
    /// clients get a plain one.
    Refused(ReasonCode),
}

/// Takes the publishes of a read, in order.
pub trait PublishSink {
    /// Called once per publish.
    fn publish(&mut self, publish: &Incoming<'_>) -> Admission;

    /// True when the next publish must wait until the sink was emptied. A small publish can stand for much more than
    /// its bytes in the read, when its topic is an alias for instance.
    fn is_full(&self) -> bool {
        false
    }
}

impl<F: FnMut(&Incoming<'_>) -> Admission> PublishSink for F {
    #[inline]
    fn publish(&mut self, publish: &Incoming<'_>) -> Admission {
        self(publish)
    }
}

/// Where a call of [`drain`](super::Session::drain) stopped.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// All whole packets are handled.
    NeedMore,
    /// The driver must [`accept`](super::Session::accept) or [`reject`](super::Session::reject).
    Connect(Box<ConnectRequest>),
    /// The sink is full: empty it and drain again.
    SinkFull,
    /// The client has disconnected.
    Left,
}

/// A client that wants to come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectRequest {
    /// Protocol version.
    pub version: Version,
    /// Empty: the driver chooses one (MQTT 5 clients are told it with [`Accept::assigned_client_id`]).
    pub client_id: String,
    /// The client discards what both sides know of an earlier session.
    pub clean: bool,
    /// How long the session outlives the connection, in seconds; `u32::MAX`: for ever.
    pub session_expiry_s: u32,
    /// User name.
    pub user: Option<String>,
    /// Password.
    pub password: Option<Vec<u8>>,
}

impl ConnectRequest {
    /// True when the session outlives the connection.
    pub fn persistent(&self) -> bool {
        self.session_expiry_s > 0
    }
}

/// The driver's yes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Accept<'a> {
    /// This server remembers the client's session.
    pub session_present: bool,
    /// The id given to an MQTT 5 client that came without one.
    pub assigned_client_id: Option<&'a str>,
}

/// What a client wants published when it vanishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WillMessage {
    /// Never empty, without wildcards.
    pub topic: String,
    /// The application message.
    pub payload: Vec<u8>,
    /// The client asks for retention.
    pub retain: bool,
}
