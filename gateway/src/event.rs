//! One accepted event, as the input log holds it.
//!
//! Layout, little-endian; a frame's payload is records one after the other:
//!
//! ```text
//! u32  bytes after this field
//! u8   version, 1
//! u8   flags: bits 0-1 QoS, bit 2 DUP, bit 3 came over HTTP (then the topic may be empty and `client` is the device),
//!      bit 4 cut (only the beginning of the payload is kept), bit 5 noted (no stream wants it: only its packet id counts)
//! u16  packet id, 0 when there was none
//! u64  session, a hash that stands for source and client; 0 when there was none
//! i64  receive time, nanoseconds since the epoch
//! u8   length of the source's name   source
//! u8   length of the stream's name   stream (named by the caller; empty when the topic decides)
//! u16  length of the client id       client id
//! u16  length of the topic           topic
//!      payload, up to the end
//! ```

use crate::limits::{CUT_PAYLOAD_BYTES, TOPIC_BYTES_MAX};

const VERSION: u8 = 1;
const FIXED_BYTES: usize = 1 + 1 + 2 + 8 + 8;
/// What a record takes beside its texts and its payload.
pub const REST_BYTES_MAX: usize = 4 + FIXED_BYTES + 6;

/// How an event came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Delivery {
    /// MQTT quality of service, 0 to 2.
    pub qos: u8,
    /// The sender said that this may be a repeat.
    pub dup: bool,
    /// Over HTTP, not MQTT.
    pub http: bool,
    /// The payload was larger than allowed; only its beginning is kept, for the dead letter, behind the hash of the
    /// whole: see [`cut_payload`].
    pub cut: bool,
    /// No stream wants it, and it goes to none: it stands here for its packet id.
    pub noted: bool,
    /// MQTT packet id; 0 without.
    pub packet_id: u16,
    /// Stands for source and client; 0 without.
    pub session: u64,
}

/// What is kept of a payload that is too large: its hash, 8 bytes little-endian, and its beginning.
pub fn cut_payload(payload: &[u8], hash: u64) -> Vec<u8> {
    [&hash.to_le_bytes(), &payload[..payload.len().min(CUT_PAYLOAD_BYTES)]].concat()
}

/// The hash of the whole payload and the beginning of it; the reverse of [`cut_payload`].
pub fn of_cut_payload(kept: &[u8]) -> (u64, &[u8]) {
    kept.split_first_chunk().map_or((0, kept), |(hash, beginning)| (u64::from_le_bytes(*hash), beginning))
}

/// An accepted event, borrowed from the frame that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Event<'a> {
    /// How it came in.
    pub delivery: Delivery,
    /// When it was accepted, nanoseconds since the epoch.
    pub received_ns: i64,
    /// The source's name in the configuration.
    pub source: &'a str,
    /// The stream that the caller named; empty when the topic decides.
    pub stream: &'a str,
    /// MQTT client id, or over HTTP the device that the request named.
    pub client: &'a str,
    /// MQTT topic; may be empty over HTTP.
    pub topic: &'a str,
    /// What the device sent.
    pub payload: &'a [u8],
}

/// Bytes that are no event record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an input frame holds bytes that are no event record")]
pub struct BadRecord;

impl Event<'_> {
    /// Appends the record. Names and topics longer than their fields are cut; callers check them first.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let source = cut(self.source, usize::from(u8::MAX));
        let stream = cut(self.stream, usize::from(u8::MAX));
        let client = cut(self.client, usize::from(u16::MAX));
        let topic = cut(self.topic, TOPIC_BYTES_MAX);
        let rest =
            FIXED_BYTES + 6 + source.len() + stream.len() + client.len() + topic.len() + self.payload.len();
        out.reserve(4 + rest);
        out.extend_from_slice(&(rest as u32).to_le_bytes());
        let d = &self.delivery;
        out.extend_from_slice(&[VERSION, flags(d)]);
        out.extend_from_slice(&d.packet_id.to_le_bytes());
        out.extend_from_slice(&d.session.to_le_bytes());
        out.extend_from_slice(&self.received_ns.to_le_bytes());
        for text in [source, stream] {
            out.push(text.len() as u8);
            out.extend_from_slice(text.as_bytes());
        }
        for text in [client, topic] {
            out.extend_from_slice(&(text.len() as u16).to_le_bytes());
            out.extend_from_slice(text.as_bytes());
        }
        out.extend_from_slice(self.payload);
    }
}

fn flags(d: &Delivery) -> u8 {
    (d.qos & 3) | u8::from(d.dup) << 2 | u8::from(d.http) << 3 | u8::from(d.cut) << 4 | u8::from(d.noted) << 5
}

fn cut(text: &str, max: usize) -> &str {
    text.get(..max).unwrap_or(text)
}

/// Goes through the records of a frame's payload.
#[derive(Debug, Clone)]
pub struct Events<'a>(&'a [u8]);

impl<'a> Events<'a> {
    /// The records of this payload.
    pub fn new(payload: &'a [u8]) -> Self {
        Self(payload)
    }
}

impl<'a> Iterator for Events<'a> {
    type Item = Result<Event<'a>, BadRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let read = read(&mut self.0);
        if read.is_none() {
            self.0 = &[];
        }
        Some(read.ok_or(BadRecord))
    }
}

fn read<'a>(input: &mut &'a [u8]) -> Option<Event<'a>> {
    let (len, rest) = input.split_first_chunk::<4>()?;
    let (mut body, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    *input = rest;
    let (fixed, tail) = body.split_first_chunk::<FIXED_BYTES>()?;
    body = tail;
    let [VERSION, flags, packet_low, packet_high, numbers @ ..] = fixed else { return None };
    let (session, received) = numbers.split_first_chunk::<8>()?;
    let delivery = Delivery {
        qos: flags & 3,
        dup: flags & 4 != 0,
        http: flags & 8 != 0,
        cut: flags & 16 != 0,
        noted: flags & 32 != 0,
        packet_id: u16::from_le_bytes([*packet_low, *packet_high]),
        session: u64::from_le_bytes(*session),
    };
    Some(Event {
        delivery,
        received_ns: i64::from_le_bytes(received.try_into().ok()?),
        source: text(&mut body, 1)?,
        stream: text(&mut body, 1)?,
        client: text(&mut body, 2)?,
        topic: text(&mut body, 2)?,
        payload: body,
    })
}

fn text<'a>(body: &mut &'a [u8], length_bytes: usize) -> Option<&'a str> {
    let (length, rest) = body.split_at_checked(length_bytes)?;
    let length = length.iter().rev().fold(0, |n, b| n << 8 | usize::from(*b));
    let (text, rest) = rest.split_at_checked(length)?;
    *body = rest;
    std::str::from_utf8(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn records_round_trip(qos in 0u8..3, dup: bool, http: bool, cut: bool, noted: bool, packet_id: u16, session: u64, received_ns: i64,
                source in "[a-z]{0,20}", client in ".{0,30}", topic in ".{0,60}",
                payload in proptest::collection::vec(any::<u8>(), 0..100), copies in 1usize..4) {
            let delivery = Delivery { qos, dup, http, cut, noted, packet_id, session };
            let event = Event { delivery, received_ns, source: &source, stream: "", client: &client, topic: &topic,
                payload: &payload };
            let mut bytes = Vec::new();
            (0..copies).for_each(|_| event.encode(&mut bytes));
            let back: Result<Vec<_>, _> = Events::new(&bytes).collect();
            prop_assert_eq!(back, Ok(vec![event; copies]));
        }

        #[test]
        fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Events::new(&bytes).count();
        }
    }
}
