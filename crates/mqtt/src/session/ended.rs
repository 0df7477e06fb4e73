//! Why a connection ends.

use crate::error::DecodeError;
use crate::packet::ReasonCode;

/// Why a connection ends from this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// A packet that must be refused.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The first packet is not a CONNECT.
    #[error("the first packet is not a CONNECT")]
    ConnectExpected,
    /// A second CONNECT.
    #[error("a second CONNECT")]
    SecondConnect,
    /// No CONNECT in time.
    #[error("no CONNECT in time")]
    ConnectTimeout,
    /// Silence for one and a half times the keep alive.
    #[error("silent for one and a half times the keep alive")]
    KeepAliveTimeout,
    /// A publish of QoS 2.
    #[error("QoS 2 is not supported")]
    QosNotSupported,
    /// More publishes in flight than the client was told.
    #[error("more publishes in flight than the receive maximum")]
    ReceiveMaximumExceeded,
    /// A topic alias above the maximum.
    #[error("topic alias {0} is above the maximum")]
    AliasAboveMaximum(u16),
    /// A topic alias that no publish has defined.
    #[error("topic alias {0} is not defined")]
    AliasUnknown(u16),
    /// A packet that does not fit the state of the connection.
    #[error("a packet that does not fit the state of the connection")]
    Protocol,
    /// The CONNECT was refused.
    #[error("the connection was refused with reason {:#04x}", .0.0)]
    Rejected(ReasonCode),
    /// The driver closed the connection.
    #[error("closed by the server with reason {:#04x}", .0.0)]
    Closed(ReasonCode),
}

impl Ended {
    /// The reason code that MQTT 5 has for it.
    pub fn reason(self) -> ReasonCode {
        match self {
            Self::Decode(error) => error.reason(),
            Self::ConnectExpected | Self::SecondConnect | Self::AliasUnknown(_) | Self::Protocol => {
                ReasonCode::PROTOCOL_ERROR
            }
            Self::ConnectTimeout | Self::KeepAliveTimeout => ReasonCode::KEEP_ALIVE_TIMEOUT,
            Self::QosNotSupported => ReasonCode::QOS_NOT_SUPPORTED,
            Self::ReceiveMaximumExceeded => ReasonCode::RECEIVE_MAXIMUM_EXCEEDED,
            Self::AliasAboveMaximum(_) => ReasonCode::TOPIC_ALIAS_INVALID,
            Self::Rejected(reason) | Self::Closed(reason) => reason,
        }
    }
}
