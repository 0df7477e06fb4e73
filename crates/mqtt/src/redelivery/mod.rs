//! Tells a repeated QoS 1 publish from a new one, where that is certain.
//!
//! A device that did not get its PUBACK sends the publish again with the DUP flag. If the first copy was stored, the
//! second must be acknowledged and not stored. If it is a *new* event that merely looks the same, it must be stored:
//! dropping it would lose an event, and losing is worse than doubling. So a publish counts as a repeat only when all
//! of this holds:
//!
//! 1. it carries DUP. Without DUP nothing is ever guessed (rumqttc 0.25 repeats without it);
//! 2. the window of its client holds a stored publish with the same packet id and the same hash of topic and payload;
//! 3. that stored publish is **certain**, or it is not durable yet: then it was not acknowledged, so that its packet id
//!    is still in use (MQTT-2.2.1-3) and can stand for nothing else.
//!
//! # What certain means
//!
//! The danger is a client that gets a PUBACK, uses the same packet id for a new event with an equal payload, loses it
//! on the wire, and repeats it with DUP. From the server it looks exactly like a repeat of the first. It happens with
//! clients that take the lowest free id (1, 1, 1, …, or 1, 2, 1, 3, …) and with clients whose ids go round in a small
//! circle (1 to 100 and again).
//!
//! Let `F` be the most packet ids that the client can hold at once (publishes in flight, and a few for SUBSCRIBE), and let the session's stored publishes be
//! numbered 1, 2, 3, … since its packet ids began to count up without interruption: every id a small step (1 to
//! [`PACKET_ID_STEP_MAX`](crate::limits::PACKET_ID_STEP_MAX)) ahead of the one before, from 65,535 on to 1. A stored
//! publish is certain when its number is greater than `F`:
//!
//! - a client that takes the lowest free id never reaches such a number: its ids are at most `F`, so an interruption
//!   comes within `F` publishes;
//! - a client whose ids go round in a circle of `M` has had more ids than its number says without an interruption.
//!   To use the id of the stored publish anew it must first send all ids between the newest stored one and this one,
//!   none of which has been stored, so that all of them are in flight. These are at least as many as the number of
//!   the stored publish, which is more than `F`: impossible.
//!
//! Publishes that nobody wants and nobody stores use packet ids like all others: wherever this speaks of stored
//! publishes, they count as such, with [`NO_CONTENT`] for their hash, and are in the journal before they are
//! acknowledged. Only those that come before the first publish of the client in the window may be left out
//! ([`Window::follows`]): that makes numbers smaller, never larger, and there is nothing yet that could be mistaken.
//!
//! The argument needs what the protocol demands of a client (MQTT-4.6.0-1: it repeats in the order of sending) and a
//! true `F`. MQTT 5 clients are told theirs (Receive Maximum), and it is enforced. MQTT 3 has no such word, so
//! [`Session::in_flight_bound`](crate::Session::in_flight_bound) assumes
//! [`IN_FLIGHT_ASSUMED`](crate::limits::IN_FLIGHT_ASSUMED) and raises it to twice the most that was seen waiting at
//! once. The first `F` publishes of a session, and those after an interruption, are never certain: their repeats are
//! stored twice, and a stream's dedup key is what removes these.
//!
//! # When payloads carry their time
//!
//! The danger is a *new* event that looks like the old one. Where every payload carries the time of its reading, it
//! would have to be another reading of the same device with the same values at the same time, sent under the same
//! packet id, and lost on the wire: nobody could tell such rows apart. There [`Window::resembles`] decides, also for the
//! first publishes of a session.
//!
//! # Life of a window
//!
//! - [`Window::judge`] reads; [`Window::record`] writes, in the same critical section in which the publishes get
//!   their ticket, so that the window never knows a publish that the journal does not have.
//! - The same [`Run`] goes into the meta of the input log's frame; after a restart [`Window::decode`] of the newest
//!   checkpoint and a [`Window::record`] per later run give the window back.
//! - A checkpoint leaves out what is not durable when it is written ([`Window::encode`]'s `through`): a window that
//!   remembered a publish which the crash took would acknowledge its repeat and lose it.
//! - A clean start forgets the client ([`Run::opened`]): another process may use the same client id.
//!
//! Bounds: records per client, records over all clients, clients; the client that has been silent longest goes first.
//! What is forgotten is stored again when it is repeated, never lost.

mod codec;
mod window;

pub use codec::WindowError;
pub use window::{ClientKey, Limits, Run, Verdict, Window};

use crate::hash::xxh64;

/// Stands for the content of a publish that was not stored and can have no repeat; no content has this hash.
pub const NO_CONTENT: u64 = 0;

/// The hash by which a repeat is recognised. It stands in logs and never changes.
#[inline]
pub fn content_hash(topic: &str, payload: &[u8]) -> u64 {
    xxh64(payload, xxh64(topic.as_bytes(), 0)).max(NO_CONTENT + 1)
}

#[cfg(test)]
mod tests;
