//! Encoding of what a server sends. Every function appends one whole packet to `out`.
//!
//! The acknowledgements without properties, which are the hot path, are four fixed bytes.

use bytes::{BufMut, BytesMut};

use crate::packet::{PacketId, ReasonCode, Version};
use crate::property::id;

const CONNACK: u8 = 0x20;
const PUBACK: u8 = 0x40;
const PUBREC: u8 = 0x50;
const PUBREL: u8 = 0x62;
const PUBCOMP: u8 = 0x70;
const SUBACK: u8 = 0x90;
const UNSUBACK: u8 = 0xb0;
const PINGRESP: u8 = 0xd0;
const DISCONNECT: u8 = 0xe0;

/// Longest reason string or assigned client id that is sent, in bytes; longer ones are left out.
const TEXT_BYTES_MAX: usize = 1_024;

/// What CONNACK tells a client of MQTT 5 about this server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnAckProperties<'a> {
    /// Session Expiry Interval in seconds, when it is not what the client asked for.
    pub session_expiry_s: Option<u32>,
    /// Receive Maximum.
    pub receive_maximum: Option<u16>,
    /// Maximum QoS: 0 or 1; `None` means 2.
    pub maximum_qos: Option<u8>,
    /// Maximum Packet Size in bytes.
    pub maximum_packet_size: Option<u32>,
    /// Assigned Client Identifier.
    pub assigned_client_id: Option<&'a str>,
    /// Topic Alias Maximum.
    pub topic_alias_maximum: Option<u16>,
    /// Server Keep Alive in seconds.
    pub server_keep_alive_s: Option<u16>,
    /// This server takes no subscriptions: wildcards, identifiers and sharing are not available.
    pub no_subscriptions: bool,
    /// Reason String, for people.
    pub reason: Option<&'a str>,
}

/// CONNACK of MQTT 5.
pub fn connack_v5(
    out: &mut BytesMut,
    session_present: bool,
    reason: ReasonCode,
    with: &ConnAckProperties<'_>,
) {
    let mut block = Block::default();
    block.four(id::SESSION_EXPIRY, with.session_expiry_s);
    block.two(id::RECEIVE_MAXIMUM, with.receive_maximum);
    block.one(id::MAXIMUM_QOS, with.maximum_qos);
    block.four(id::MAXIMUM_PACKET_SIZE, with.maximum_packet_size);
    block.text(id::ASSIGNED_CLIENT_ID, with.assigned_client_id);
    block.two(id::TOPIC_ALIAS_MAXIMUM, with.topic_alias_maximum);
    block.two(id::SERVER_KEEP_ALIVE, with.server_keep_alive_s);
    block.text(id::REASON_STRING, with.reason);
    if with.no_subscriptions {
        block.one(id::WILDCARD_SUBSCRIPTION_AVAILABLE, Some(0));
        block.one(id::SUBSCRIPTION_IDENTIFIER_AVAILABLE, Some(0));
        block.one(id::SHARED_SUBSCRIPTION_AVAILABLE, Some(0));
    }
    packet(out, CONNACK, &[u8::from(session_present), reason.0], Some(&block), &[]);
}

/// CONNACK of MQTT 3.1 and 3.1.1. MQTT 3.1 has no session-present flag: its byte is reserved and stays 0.
pub fn connack_v3(out: &mut BytesMut, version: Version, session_present: bool, code: u8) {
    let present = session_present && version == Version::V311 && code == 0;
    packet(out, CONNACK, &[u8::from(present), code], None, &[]);
}

/// The return code of MQTT 3 that says the same as a reason code (table 3.1 of MQTT 3.1.1).
pub fn connack_code_v3(reason: ReasonCode) -> u8 {
    match reason {
        ReasonCode::SUCCESS => 0,
        ReasonCode::UNSUPPORTED_PROTOCOL_VERSION => 1,
        ReasonCode::CLIENT_ID_NOT_VALID => 2,
        ReasonCode::BAD_USER_NAME_OR_PASSWORD => 4,
        ReasonCode::NOT_AUTHORIZED | ReasonCode::BAD_AUTHENTICATION_METHOD => 5,
        _ => 3,
    }
}

/// PUBACK for a stored publish.
#[inline]
pub fn puback(out: &mut BytesMut, id: PacketId) {
    short_ack(out, PUBACK, id);
}

/// PUBACK with a reason; MQTT 3 has no reasons, so it gets a plain one.
pub fn puback_with(
    out: &mut BytesMut,
    version: Version,
    id: PacketId,
    reason: ReasonCode,
    text: Option<&str>,
) {
    ack_with(out, PUBACK, version, id, reason, text);
}

/// PUBREC.
#[inline]
pub fn pubrec(out: &mut BytesMut, id: PacketId) {
    short_ack(out, PUBREC, id);
}

/// PUBREC with a reason.
pub fn pubrec_with(
    out: &mut BytesMut,
    version: Version,
    id: PacketId,
    reason: ReasonCode,
    text: Option<&str>,
) {
    ack_with(out, PUBREC, version, id, reason, text);
}

/// PUBREL with a reason.
pub fn pubrel_with(out: &mut BytesMut, version: Version, id: PacketId, reason: ReasonCode) {
    ack_with(out, PUBREL, version, id, reason, None);
}

/// PUBCOMP.
#[inline]
pub fn pubcomp(out: &mut BytesMut, id: PacketId) {
    short_ack(out, PUBCOMP, id);
}

/// PUBCOMP with a reason.
pub fn pubcomp_with(out: &mut BytesMut, version: Version, id: PacketId, reason: ReasonCode) {
    ack_with(out, PUBCOMP, version, id, reason, None);
}

/// SUBACK with one code per filter; `text` goes to MQTT 5 clients only.
pub fn suback(out: &mut BytesMut, version: Version, id: PacketId, codes: &[ReasonCode], text: Option<&str>) {
    listed(out, SUBACK, version, id, codes, text);
}

/// UNSUBACK; its codes exist in MQTT 5 only.
pub fn unsuback(out: &mut BytesMut, version: Version, id: PacketId, codes: &[ReasonCode]) {
    let codes = if version == Version::V5 { codes } else { &[] };
    listed(out, UNSUBACK, version, id, codes, None);
}

/// PINGRESP.
#[inline]
pub fn pingresp(out: &mut BytesMut) {
    out.put_slice(&[PINGRESP, 0]);
}

/// DISCONNECT; only MQTT 5 servers send it.
pub fn disconnect(out: &mut BytesMut, reason: ReasonCode, text: Option<&str>) {
    let mut block = Block::default();
    block.text(id::REASON_STRING, text);
    packet(out, DISCONNECT, &[reason.0], Some(&block), &[]);
}

#[inline]
fn short_ack(out: &mut BytesMut, first: u8, id: PacketId) {
    let [high, low] = id.get().to_be_bytes();
    out.put_slice(&[first, 2, high, low]);
}

fn ack_with(
    out: &mut BytesMut,
    first: u8,
    version: Version,
    id: PacketId,
    reason: ReasonCode,
    text: Option<&str>,
) {
    if version != Version::V5 || (reason == ReasonCode::SUCCESS && text.is_none()) {
        return short_ack(out, first, id);
    }
    let [high, low] = id.get().to_be_bytes();
    let mut block = Block::default();
    block.text(id::REASON_STRING, text);
    packet(out, first, &[high, low, reason.0], Some(&block), &[]);
}

fn listed(
    out: &mut BytesMut,
    first: u8,
    version: Version,
    id: PacketId,
    codes: &[ReasonCode],
    text: Option<&str>,
) {
    let mut block = Block::default();
    block.text(id::REASON_STRING, text);
    let block = (version == Version::V5).then_some(&block);
    packet(out, first, &id.get().to_be_bytes(), block, codes);
}

/// A property block in the making.
#[derive(Default)]
struct Block(Vec<u8>);

impl Block {
    fn one(&mut self, id: u8, value: Option<u8>) {
        if let Some(value) = value {
            self.0.extend_from_slice(&[id, value]);
        }
    }

    fn two(&mut self, id: u8, value: Option<u16>) {
        if let Some(value) = value {
            self.0.push(id);
            self.0.extend_from_slice(&value.to_be_bytes());
        }
    }

    fn four(&mut self, id: u8, value: Option<u32>) {
        if let Some(value) = value {
            self.0.push(id);
            self.0.extend_from_slice(&value.to_be_bytes());
        }
    }

    fn text(&mut self, id: u8, value: Option<&str>) {
        let Some(value) = value.filter(|text| text.len() <= TEXT_BYTES_MAX) else { return };
        let Ok(bytes) = u16::try_from(value.len()) else { return };
        self.0.push(id);
        self.0.extend_from_slice(&bytes.to_be_bytes());
        self.0.extend_from_slice(value.as_bytes());
    }
}

fn packet(out: &mut BytesMut, first: u8, head: &[u8], block: Option<&Block>, codes: &[ReasonCode]) {
    let block_bytes = block.map_or(0, |block| variable_bytes(block.0.len()) + block.0.len());
    let remaining = head.len() + block_bytes + codes.len();
    out.reserve(1 + variable_bytes(remaining) + remaining);
    out.put_u8(first);
    put_variable(out, remaining);
    out.put_slice(head);
    if let Some(block) = block {
        put_variable(out, block.0.len());
        out.put_slice(&block.0);
    }
    out.extend(codes.iter().map(|code| code.0));
}

/// Bytes of a variable byte integer.
pub(crate) fn variable_bytes(value: usize) -> usize {
    match value {
        0..=0x7f => 1,
        0x80..=0x3fff => 2,
        0x4000..=0x1f_ffff => 3,
        _ => 4,
    }
}

/// Appends a variable byte integer; `value` must be below 2^28.
pub(crate) fn put_variable(out: &mut BytesMut, mut value: usize) {
    debug_assert!(value <= crate::limits::REMAINING_LENGTH_MAX as usize);
    loop {
        let low = u8::try_from(value & 0x7f).unwrap_or(0);
        value >>= 7;
        out.put_u8(if value == 0 { low } else { low | 0x80 });
        if value == 0 {
            return;
        }
    }
}
