//! Why a packet is refused.

use crate::packet::ReasonCode;

/// A packet that a server must refuse; the connection ends with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A field reaches past the end of its packet or property block.
    #[error("a field reaches past the end of the packet")]
    CutShort,
    /// Bytes are left after the last field.
    #[error("bytes are left after the last field")]
    TrailingBytes,
    /// A variable byte integer has more than four bytes.
    #[error("a variable byte integer has more than four bytes")]
    IntegerTooLong,
    /// A variable byte integer is not in its shortest form (MQTT 5 only).
    #[error("a variable byte integer is not in its shortest form")]
    IntegerOverlong,
    /// The packet is larger than this server accepts.
    #[error("the packet of {bytes} bytes is larger than the limit of {limit}")]
    TooLarge {
        /// Remaining length that the packet claims, in bytes.
        bytes: u32,
        /// The limit, in bytes.
        limit: u32,
    },
    /// Reserved bits of the fixed header do not have their fixed value.
    #[error("reserved bits of the fixed header are wrong")]
    HeaderFlags,
    /// A packet type that no client may send.
    #[error("packet type {0} is not for servers")]
    PacketType(u8),
    /// The protocol name is neither `MQTT` nor `MQIsdp`.
    #[error("the protocol name is not MQTT")]
    ProtocolName,
    /// The protocol is MQTT, its level is not one of 3.1, 3.1.1 and 5.
    #[error("protocol level {0} is not supported")]
    ProtocolLevel(u8),
    /// The connect flags contradict each other or set the reserved bit.
    #[error("connect flags are contradictory")]
    ConnectFlags,
    /// QoS 3, or DUP on QoS 0.
    #[error("QoS 3, or DUP on QoS 0")]
    PublishFlags,
    /// A string is not well-formed UTF-8.
    #[error("a string is not well-formed UTF-8")]
    NotUtf8,
    /// A string contains U+0000.
    #[error("a string contains U+0000")]
    NulCharacter,
    /// A topic name contains a wildcard or is empty without an alias.
    #[error("a topic name is empty or contains a wildcard")]
    TopicName,
    /// A topic filter is empty or misplaces a wildcard.
    #[error("a topic filter is empty or misplaces a wildcard")]
    TopicFilter,
    /// Packet id 0.
    #[error("packet id 0")]
    PacketIdZero,
    /// A property that does not exist.
    #[error("property {0:#04x} does not exist")]
    PropertyUnknown(u8),
    /// A property that does not belong into this packet.
    #[error("property {0:#04x} does not belong into this packet")]
    PropertyForeign(u8),
    /// A property that may stand once stands twice.
    #[error("property {0:#04x} stands twice")]
    PropertyTwice(u8),
    /// The value of a property is outside its range.
    #[error("the value of property {0:#04x} is outside its range")]
    PropertyValue(u8),
    /// Authentication data without a method, or AUTH without one.
    #[error("authentication method is missing")]
    AuthenticationMethod,
    /// A reason code that a client may not send in this packet.
    #[error("reason code {0:#04x} is not for this packet")]
    ReasonCode(u8),
    /// SUBSCRIBE or UNSUBSCRIBE without a filter.
    #[error("no topic filter")]
    NoFilter,
    /// Reserved bits or values in subscription options.
    #[error("subscription options are invalid")]
    SubscriptionOptions,
}

impl DecodeError {
    /// The reason code that MQTT 5 has for it.
    pub fn reason(self) -> ReasonCode {
        match self {
            Self::TooLarge { .. } => ReasonCode::PACKET_TOO_LARGE,
            Self::ProtocolName | Self::ProtocolLevel(_) => ReasonCode::UNSUPPORTED_PROTOCOL_VERSION,
            Self::TopicName => ReasonCode::TOPIC_NAME_INVALID,
            Self::TopicFilter => ReasonCode::TOPIC_FILTER_INVALID,
            Self::AuthenticationMethod
            | Self::PropertyTwice(_)
            | Self::PropertyForeign(_)
            | Self::PropertyValue(_)
            | Self::NoFilter
            | Self::PacketType(_)
            | Self::ReasonCode(_) => ReasonCode::PROTOCOL_ERROR,
            _ => ReasonCode::MALFORMED_PACKET,
        }
    }
}
