//! The MQTT front door without any I/O: a strict codec and a server session for MQTT 3.1, 3.1.1 and 5.
//!
//! - [`decode`] and [`encode`]: what a client may send, what a server answers. PUBLISH is parsed in place and borrowed
//!   from the read buffer; nothing is allocated per publish.
//! - [`Session`]: one connection. Bytes and the time go in; publishes, answers and decisions come out.
//! - [`redelivery::Window`]: tells a repeated QoS 1 publish from a new one, where that is certain.
//! - [`Clients`]: which connection a client id belongs to, take-over, session present.
//! - [`TopicFilter`]: which topics a stream takes.
//!
//! Invariants:
//! - a publish is acknowledged only after its driver has said that it is durable, and in the order of receipt;
//! - what the specification tells a server to refuse is refused, and the same bytes give the same result however
//!   they were cut into reads;
//! - everything that a client can make grow has a bound (see [`limits`]).
//!
//! This crate never touches a socket, a clock or a disk, and never delivers a message to a subscriber: it is the
//! front of an ingest pipeline, not a broker.

mod clients;
pub mod decode;
pub mod encode;
mod error;
pub mod hash;
pub mod limits;
pub mod packet;
pub mod property;
pub mod redelivery;
mod session;
pub mod topic;
mod wire;

pub use clients::{Attached, Clients, ConnectionId};
pub use error::DecodeError;
pub use packet::{PacketId, ReasonCode, Version};
pub use session::{
    Accept, Admission, Config, ConnectRequest, Ended, Incoming, Progress, PublishSink, Session, Ticket,
    WillMessage,
};
pub use topic::{FilterError, TopicFilter};
