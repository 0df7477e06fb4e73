//! Strict decoding of what a client sends: no allocation, nothing copied, everything checked that the specification
//! tells a server to check.
//!
//! [`frame`] finds the next whole packet in the bytes of a read; [`packet`] (or, for the hot path, [`publish`]) takes
//! it apart.

use crate::error::DecodeError;
use crate::packet::{
    Acknowledgement, Connect, Delivery, Packet, Publish, ReasonCode, Subscribe, Unsubscribe, Version, Will,
};
use crate::property::{Allowed, Properties, Property};
use crate::wire::{self, Reader};

/// Packet types, the upper half of the first byte.
pub(crate) mod kind {
    pub(crate) const CONNECT: u8 = 1;
    pub(crate) const PUBLISH: u8 = 3;
    pub(crate) const PUBACK: u8 = 4;
    pub(crate) const PUBREC: u8 = 5;
    pub(crate) const PUBREL: u8 = 6;
    pub(crate) const PUBCOMP: u8 = 7;
    pub(crate) const SUBSCRIBE: u8 = 8;
    pub(crate) const UNSUBSCRIBE: u8 = 10;
    pub(crate) const PINGREQ: u8 = 12;
    pub(crate) const DISCONNECT: u8 = 14;
    pub(crate) const AUTH: u8 = 15;
}

/// A whole packet: its first byte and what follows the fixed header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Packet type and flags.
    pub first: u8,
    /// Variable header and payload.
    pub body: &'a [u8],
    /// Bytes of the whole packet.
    pub bytes: usize,
}

/// The packet at the head of `bytes`; `None` when more bytes are needed. A packet whose remaining length is above
/// `limit` is refused before its bytes are waited for.
#[inline]
pub fn frame(bytes: &[u8], version: Version, limit: u32) -> Result<Option<Frame<'_>>, DecodeError> {
    let Some((&first, rest)) = bytes.split_first() else { return Ok(None) };
    let Some((remaining, used)) = wire::variable(rest, version == Version::V5)? else { return Ok(None) };
    if remaining > limit {
        return Err(DecodeError::TooLarge { bytes: remaining, limit });
    }
    let body_at = 1 + used;
    let end = body_at + remaining as usize;
    Ok(bytes.get(body_at..end).map(|body| Frame { first, body, bytes: end }))
}

/// Takes a packet apart. `version` is that of the connection; a CONNECT brings its own.
pub fn packet<'a>(version: Version, frame: Frame<'a>) -> Result<Packet<'a>, DecodeError> {
    let Frame { first, body, .. } = frame;
    let kind = first >> 4;
    if kind == kind::PUBLISH {
        return publish(version, first, body).map(Packet::Publish);
    }
    check_flags(version, kind, first & 0x0f)?;
    match kind {
        kind::CONNECT => connect(body).map(Packet::Connect),
        kind::PUBACK => acknowledgement(version, body, PUBACK_REASONS).map(Packet::PubAck),
        kind::PUBREC => acknowledgement(version, body, PUBACK_REASONS).map(Packet::PubRec),
        kind::PUBREL => acknowledgement(version, body, PUBREL_REASONS).map(Packet::PubRel),
        kind::PUBCOMP => acknowledgement(version, body, PUBREL_REASONS).map(Packet::PubComp),
        kind::SUBSCRIBE => subscribe(version, body).map(Packet::Subscribe),
        kind::UNSUBSCRIBE => unsubscribe(version, body).map(Packet::Unsubscribe),
        kind::PINGREQ => Reader::new(body).end().map(|()| Packet::PingReq),
        kind::DISCONNECT => disconnect(version, body),
        kind::AUTH if version == Version::V5 => auth(body),
        other => Err(DecodeError::PacketType(other)),
    }
}

/// The lower half of the first byte is fixed for every packet but PUBLISH (section 2.1.3).
fn check_flags(version: Version, kind: u8, flags: u8) -> Result<(), DecodeError> {
    let fixed = match kind {
        kind::PUBREL | kind::SUBSCRIBE | kind::UNSUBSCRIBE => 2,
        _ => 0,
    };
    // MQTT 3.1 sets DUP when it repeats PUBREL, SUBSCRIBE or UNSUBSCRIBE.
    let repeated = version == Version::V31 && fixed == 2 && flags == 0b1010;
    if flags == fixed || repeated { Ok(()) } else { Err(DecodeError::HeaderFlags) }
}

/// Takes a PUBLISH apart; `first` is the first byte of the packet, `body` what follows the fixed header.
#[inline]
pub fn publish<'a>(version: Version, first: u8, body: &'a [u8]) -> Result<Publish<'a>, DecodeError> {
    let (qos, dup) = ((first >> 1) & 3, first & 8 != 0);
    // MQTT 3.1 only says that DUP has a meaning above QoS 0.
    if qos == 3 || (dup && qos == 0 && version != Version::V31) {
        return Err(DecodeError::PublishFlags);
    }
    let mut reader = Reader::new(body);
    let topic = reader.topic_name()?;
    let delivery = match qos {
        0 => Delivery::AtMostOnce,
        1 => Delivery::AtLeastOnce(reader.packet_id()?),
        _ => Delivery::ExactlyOnce(reader.packet_id()?),
    };
    let mut properties = Properties::default();
    let mut alias = None;
    if version == Version::V5 {
        properties = Properties::read(&mut reader, Allowed::PUBLISH)?;
        if !properties.is_empty() {
            alias = properties.iter().find_map(|property| match property {
                Property::TopicAlias(number) => std::num::NonZeroU16::new(number),
                _ => None,
            });
        }
    }
    if topic.is_empty() && alias.is_none() {
        return Err(DecodeError::TopicName);
    }
    Ok(Publish { topic, payload: reader.rest(), delivery, dup, retain: first & 1 != 0, alias, properties })
}

const FLAG_RESERVED: u8 = 0x01;
const FLAG_CLEAN: u8 = 0x02;
const FLAG_WILL: u8 = 0x04;
const FLAG_WILL_RETAIN: u8 = 0x20;
const FLAGS_WILL_DETAILS: u8 = 0x38;
const FLAG_PASSWORD: u8 = 0x40;
const FLAG_USER: u8 = 0x80;

fn connect(body: &[u8]) -> Result<Connect<'_>, DecodeError> {
    let mut reader = Reader::new(body);
    let name = reader.binary()?;
    let version = match (name, reader.byte()?) {
        (b"MQTT", 5) => Version::V5,
        (b"MQTT", 4) => Version::V311,
        (b"MQIsdp", 3) => Version::V31,
        (b"MQTT" | b"MQIsdp", level) => return Err(DecodeError::ProtocolLevel(level)),
        _ => return Err(DecodeError::ProtocolName),
    };
    let flags = reader.byte()?;
    check_connect_flags(version, flags)?;
    let keep_alive_s = reader.two()?;
    let properties = properties_of(version, &mut reader, Allowed::CONNECT)?;
    let client_id = reader.string()?;
    let will = if flags & FLAG_WILL == 0 { None } else { Some(will(version, flags, &mut reader)?) };
    // In MQTT 3.1 the length of the packet takes precedence over these two flags.
    let present = |reader: &Reader<'_>| version != Version::V31 || !reader.is_empty();
    let user = if flags & FLAG_USER != 0 && present(&reader) { Some(reader.string()?) } else { None };
    let password = if flags & FLAG_PASSWORD != 0 && present(&reader) { Some(reader.binary()?) } else { None };
    reader.end()?;
    let clean = flags & FLAG_CLEAN != 0;
    Ok(Connect { version, client_id, clean, keep_alive_s, will, user, password, properties })
}

fn check_connect_flags(version: Version, flags: u8) -> Result<(), DecodeError> {
    let will = flags & FLAG_WILL != 0;
    let bad = flags & FLAG_RESERVED != 0
        || (flags >> 3) & 3 == 3
        || (!will && flags & FLAGS_WILL_DETAILS != 0)
        // MQTT 5 allows a password without a user name, which MQTT 3 does not.
        || (version != Version::V5 && flags & FLAG_PASSWORD != 0 && flags & FLAG_USER == 0);
    if bad { Err(DecodeError::ConnectFlags) } else { Ok(()) }
}

fn will<'a>(version: Version, flags: u8, reader: &mut Reader<'a>) -> Result<Will<'a>, DecodeError> {
    let properties = properties_of(version, reader, Allowed::WILL)?;
    let topic = reader.topic_name()?;
    if topic.is_empty() {
        return Err(DecodeError::TopicName);
    }
    let payload = reader.binary()?;
    Ok(Will { topic, payload, qos: (flags >> 3) & 3, retain: flags & FLAG_WILL_RETAIN != 0, properties })
}

fn properties_of<'a>(
    version: Version,
    reader: &mut Reader<'a>,
    allowed: Allowed,
) -> Result<Properties<'a>, DecodeError> {
    if version == Version::V5 { Properties::read(reader, allowed) } else { Ok(Properties::default()) }
}

/// Reason codes of PUBACK and PUBREC (tables 3-4 and 3-5).
const PUBACK_REASONS: &[u8] = &[0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99];
/// Reason codes of PUBREL and PUBCOMP (tables 3-6 and 3-7).
const PUBREL_REASONS: &[u8] = &[0x00, 0x92];
/// Reason codes that a client may put into DISCONNECT (table 3-13).
const DISCONNECT_REASONS: &[u8] =
    &[0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99];
/// Reason codes that a client may put into AUTH (table 3-14): continue, authenticate again.
const AUTH_REASONS: &[u8] = &[0x18, 0x19];

fn reason(reader: &mut Reader<'_>, allowed: &[u8]) -> Result<ReasonCode, DecodeError> {
    let code = reader.byte()?;
    if allowed.contains(&code) { Ok(ReasonCode(code)) } else { Err(DecodeError::ReasonCode(code)) }
}

fn acknowledgement<'a>(
    version: Version,
    body: &'a [u8],
    reasons: &[u8],
) -> Result<Acknowledgement<'a>, DecodeError> {
    let mut reader = Reader::new(body);
    let packet_id = reader.packet_id()?;
    let mut code = ReasonCode::SUCCESS;
    let mut properties = Properties::default();
    if version == Version::V5 && !reader.is_empty() {
        code = reason(&mut reader, reasons)?;
        if !reader.is_empty() {
            properties = Properties::read(&mut reader, Allowed::ACKNOWLEDGEMENT)?;
        }
    }
    reader.end()?;
    Ok(Acknowledgement { packet_id, reason: code, properties })
}

fn subscribe(version: Version, body: &[u8]) -> Result<Subscribe<'_>, DecodeError> {
    let mut reader = Reader::new(body);
    let packet_id = reader.packet_id()?;
    let properties = properties_of(version, &mut reader, Allowed::SUBSCRIBE)?;
    let list = reader.rest();
    if list.is_empty() {
        return Err(DecodeError::NoFilter);
    }
    while !reader.is_empty() {
        let filter = reader.topic_filter()?;
        let options = reader.byte()?;
        check_options(version, filter, options)?;
    }
    Ok(Subscribe { packet_id, properties, list })
}

fn check_options(version: Version, filter: &str, options: u8) -> Result<(), DecodeError> {
    let (qos, no_local, retain_handling) = (options & 3, options & 4 != 0, (options >> 4) & 3);
    let bad = if version == Version::V5 {
        qos == 3 || retain_handling == 3 || options & 0xc0 != 0 || (no_local && filter.starts_with("$share/"))
    } else {
        options > 2
    };
    if bad { Err(DecodeError::SubscriptionOptions) } else { Ok(()) }
}

fn unsubscribe(version: Version, body: &[u8]) -> Result<Unsubscribe<'_>, DecodeError> {
    let mut reader = Reader::new(body);
    let packet_id = reader.packet_id()?;
    let properties = properties_of(version, &mut reader, Allowed::UNSUBSCRIBE)?;
    let list = reader.rest();
    if list.is_empty() {
        return Err(DecodeError::NoFilter);
    }
    while !reader.is_empty() {
        reader.topic_filter()?;
    }
    Ok(Unsubscribe { packet_id, properties, list })
}

fn disconnect(version: Version, body: &[u8]) -> Result<Packet<'_>, DecodeError> {
    let mut reader = Reader::new(body);
    let mut code = ReasonCode::SUCCESS;
    let mut properties = Properties::default();
    if version == Version::V5 && !reader.is_empty() {
        code = reason(&mut reader, DISCONNECT_REASONS)?;
        if !reader.is_empty() {
            properties = Properties::read(&mut reader, Allowed::DISCONNECT)?;
        }
    }
    reader.end()?;
    Ok(Packet::Disconnect { reason: code, properties })
}

/// A client's AUTH always has a reason code (an absent one means success, which only servers say) and a method.
fn auth(body: &[u8]) -> Result<Packet<'_>, DecodeError> {
    let mut reader = Reader::new(body);
    if reader.is_empty() {
        return Err(DecodeError::ReasonCode(0));
    }
    let code = reason(&mut reader, AUTH_REASONS)?;
    if reader.is_empty() {
        return Err(DecodeError::AuthenticationMethod);
    }
    let properties = Properties::read(&mut reader, Allowed::AUTH)?;
    reader.end()?;
    if !properties.iter().any(|property| matches!(property, Property::AuthenticationMethod(_))) {
        return Err(DecodeError::AuthenticationMethod);
    }
    Ok(Packet::Auth { reason: code, properties })
}

impl<'a> Subscribe<'a> {
    /// The filters with their option bytes.
    pub fn filters(&self) -> impl Iterator<Item = (&'a str, u8)> + use<'a> {
        let mut reader = Reader::new(self.list);
        // The list was walked when the packet was decoded, so an error can only be its end.
        std::iter::from_fn(move || Some((reader.string().ok()?, reader.byte().ok()?)))
    }
}

impl<'a> Unsubscribe<'a> {
    /// The filters.
    pub fn filters(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let mut reader = Reader::new(self.list);
        std::iter::from_fn(move || reader.string().ok())
    }
}
