//! The packets that a client sends, borrowed from the bytes of the read.

use std::num::NonZeroU16;

use crate::property::Properties;

/// A protocol version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// MQTT 3.1 (`MQIsdp`, level 3).
    V31,
    /// MQTT 3.1.1 (level 4).
    V311,
    /// MQTT 5.
    V5,
}

/// A packet id: never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PacketId(NonZeroU16);

impl PacketId {
    /// `None` for zero.
    #[inline]
    pub fn new(id: u16) -> Option<Self> {
        NonZeroU16::new(id).map(Self)
    }

    /// The number.
    #[inline]
    pub fn get(self) -> u16 {
        self.0.get()
    }
}

/// Quality of service of a publish, as sent: the id stands where the protocol has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// QoS 0.
    AtMostOnce,
    /// QoS 1.
    AtLeastOnce(PacketId),
    /// QoS 2.
    ExactlyOnce(PacketId),
}

impl Delivery {
    /// 0, 1 or 2.
    pub fn qos(self) -> u8 {
        match self {
            Self::AtMostOnce => 0,
            Self::AtLeastOnce(_) => 1,
            Self::ExactlyOnce(_) => 2,
        }
    }
}

/// PUBLISH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish<'a> {
    /// Without wildcards; empty only when `alias` is given.
    pub topic: &'a str,
    /// The application message.
    pub payload: &'a [u8],
    /// QoS and packet id.
    pub delivery: Delivery,
    /// The client says that it has sent this before.
    pub dup: bool,
    /// The client asks for retention.
    pub retain: bool,
    /// Topic alias (MQTT 5).
    pub alias: Option<NonZeroU16>,
    /// MQTT 5 properties.
    pub properties: Properties<'a>,
}

/// The will inside a CONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Will<'a> {
    /// Never empty, without wildcards.
    pub topic: &'a str,
    /// The application message.
    pub payload: &'a [u8],
    /// 0, 1 or 2.
    pub qos: u8,
    /// The client asks for retention.
    pub retain: bool,
    /// MQTT 5 will properties.
    pub properties: Properties<'a>,
}

/// CONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connect<'a> {
    /// Protocol version of the connection.
    pub version: Version,
    /// May be empty.
    pub client_id: &'a str,
    /// Clean session (MQTT 3) or clean start (MQTT 5).
    pub clean: bool,
    /// Zero: none.
    pub keep_alive_s: u16,
    /// The will.
    pub will: Option<Will<'a>>,
    /// User name.
    pub user: Option<&'a str>,
    /// Password.
    pub password: Option<&'a [u8]>,
    /// MQTT 5 properties.
    pub properties: Properties<'a>,
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledgement<'a> {
    /// The id of the publish.
    pub packet_id: PacketId,
    /// Success unless MQTT 5 says otherwise.
    pub reason: ReasonCode,
    /// MQTT 5 properties.
    pub properties: Properties<'a>,
}

/// SUBSCRIBE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subscribe<'a> {
    /// To be answered under this id.
    pub packet_id: PacketId,
    /// MQTT 5 properties.
    pub properties: Properties<'a>,
    pub(crate) list: &'a [u8],
}

/// UNSUBSCRIBE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsubscribe<'a> {
    /// To be answered under this id.
    pub packet_id: PacketId,
    /// MQTT 5 properties.
    pub properties: Properties<'a>,
    pub(crate) list: &'a [u8],
}

/// A packet that a client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the specification")]
pub enum Packet<'a> {
    Connect(Connect<'a>),
    Publish(Publish<'a>),
    PubAck(Acknowledgement<'a>),
    PubRec(Acknowledgement<'a>),
    PubRel(Acknowledgement<'a>),
    PubComp(Acknowledgement<'a>),
    Subscribe(Subscribe<'a>),
    Unsubscribe(Unsubscribe<'a>),
    PingReq,
    Disconnect { reason: ReasonCode, properties: Properties<'a> },
    Auth { reason: ReasonCode, properties: Properties<'a> },
}

/// A reason code of MQTT 5 (section 2.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReasonCode(pub u8);

#[allow(missing_docs, reason = "the names are those of the specification")]
impl ReasonCode {
    pub const SUCCESS: Self = Self(0x00);
    pub const DISCONNECT_WITH_WILL: Self = Self(0x04);
    pub const UNSPECIFIED: Self = Self(0x80);
    pub const MALFORMED_PACKET: Self = Self(0x81);
    pub const PROTOCOL_ERROR: Self = Self(0x82);
    pub const UNSUPPORTED_PROTOCOL_VERSION: Self = Self(0x84);
    pub const CLIENT_ID_NOT_VALID: Self = Self(0x85);
    pub const BAD_USER_NAME_OR_PASSWORD: Self = Self(0x86);
    pub const NOT_AUTHORIZED: Self = Self(0x87);
    pub const SERVER_UNAVAILABLE: Self = Self(0x88);
    pub const SERVER_BUSY: Self = Self(0x89);
    pub const SERVER_SHUTTING_DOWN: Self = Self(0x8b);
    pub const BAD_AUTHENTICATION_METHOD: Self = Self(0x8c);
    pub const KEEP_ALIVE_TIMEOUT: Self = Self(0x8d);
    pub const SESSION_TAKEN_OVER: Self = Self(0x8e);
    pub const TOPIC_FILTER_INVALID: Self = Self(0x8f);
    pub const TOPIC_NAME_INVALID: Self = Self(0x90);
    pub const PACKET_ID_NOT_FOUND: Self = Self(0x92);
    pub const RECEIVE_MAXIMUM_EXCEEDED: Self = Self(0x93);
    pub const TOPIC_ALIAS_INVALID: Self = Self(0x94);
    pub const PACKET_TOO_LARGE: Self = Self(0x95);
    pub const QUOTA_EXCEEDED: Self = Self(0x97);
    pub const PAYLOAD_FORMAT_INVALID: Self = Self(0x99);
    pub const QOS_NOT_SUPPORTED: Self = Self(0x9b);
}
