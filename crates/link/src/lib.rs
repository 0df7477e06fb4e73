//! The link between gateways and central: one gRPC session per gateway over mutual TLS.
//!
//! [`forward`] (gateway) and [`receive`] (central) are state machines without I/O; [`client`] and [`server`] are the thin
//! drivers that connect them to sockets; [`pki`] and [`tls`] make and check identities.
//!
//! Invariants:
//! - a gateway is who its certificate says it is;
//! - a block is acknowledged only after it is stored, and stored at most once;
//! - every field that comes from the other end is checked in [`wire`] before anything looks at it.

pub mod client;
pub mod forward;
pub mod limits;
pub mod message;
pub mod pki;
pub mod receive;
pub mod server;
pub mod tls;
pub mod wire;

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(c) = cause {
        let more = c.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = c.source();
    }
    text
}
