//! The property blocks of MQTT 5: checked when a packet is decoded, then walked without further errors.

use crate::error::DecodeError;
use crate::wire::Reader;

/// One property (section 2.2.2.2 of the MQTT 5 specification) that a client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the specification")]
pub enum Property<'a> {
    PayloadFormatUtf8(bool),
    MessageExpiryIntervalS(u32),
    ContentType(&'a str),
    ResponseTopic(&'a str),
    CorrelationData(&'a [u8]),
    SubscriptionIdentifier(u32),
    SessionExpiryIntervalS(u32),
    AuthenticationMethod(&'a str),
    AuthenticationData(&'a [u8]),
    RequestProblemInformation(bool),
    WillDelayIntervalS(u32),
    RequestResponseInformation(bool),
    ReasonString(&'a str),
    ReceiveMaximum(u16),
    TopicAliasMaximum(u16),
    TopicAlias(u16),
    MaximumPacketSize(u32),
    UserProperty(&'a str, &'a str),
}

pub(crate) mod id {
    pub(crate) const SESSION_EXPIRY: u8 = 0x11;
    pub(crate) const ASSIGNED_CLIENT_ID: u8 = 0x12;
    pub(crate) const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub(crate) const AUTHENTICATION_METHOD: u8 = 0x15;
    pub(crate) const AUTHENTICATION_DATA: u8 = 0x16;
    pub(crate) const REASON_STRING: u8 = 0x1f;
    pub(crate) const RECEIVE_MAXIMUM: u8 = 0x21;
    pub(crate) const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub(crate) const MAXIMUM_QOS: u8 = 0x24;
    pub(crate) const USER_PROPERTY: u8 = 0x26;
    pub(crate) const MAXIMUM_PACKET_SIZE: u8 = 0x27;
    pub(crate) const WILDCARD_SUBSCRIPTION_AVAILABLE: u8 = 0x28;
    pub(crate) const SUBSCRIPTION_IDENTIFIER_AVAILABLE: u8 = 0x29;
    pub(crate) const SHARED_SUBSCRIPTION_AVAILABLE: u8 = 0x2a;
}

/// A set of property identifiers; all of them are below 64.
#[derive(Clone, Copy)]
pub(crate) struct Allowed(u64);

impl Allowed {
    const fn of(ids: &[u8]) -> Self {
        let mut bits = 0;
        let mut at = 0;
        while at < ids.len() {
            bits |= 1 << ids[at];
            at += 1;
        }
        Self(bits)
    }

    pub(crate) const CONNECT: Self = Self::of(&[0x11, 0x15, 0x16, 0x17, 0x19, 0x21, 0x22, 0x26, 0x27]);
    pub(crate) const WILL: Self = Self::of(&[0x01, 0x02, 0x03, 0x08, 0x09, 0x18, 0x26]);
    pub(crate) const PUBLISH: Self = Self::of(&[0x01, 0x02, 0x03, 0x08, 0x09, 0x23, 0x26]);
    pub(crate) const ACKNOWLEDGEMENT: Self = Self::of(&[0x1f, 0x26]);
    pub(crate) const SUBSCRIBE: Self = Self::of(&[0x0b, 0x26]);
    pub(crate) const UNSUBSCRIBE: Self = Self::of(&[0x26]);
    pub(crate) const DISCONNECT: Self = Self::of(&[0x11, 0x1f, 0x26]);
    pub(crate) const AUTH: Self = Self::of(&[0x15, 0x16, 0x1f, 0x26]);
}

/// A property block that has been checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Properties<'a>(&'a [u8]);

impl<'a> Properties<'a> {
    /// Reads the length and the block, and checks every property in it.
    #[inline]
    pub(crate) fn read(reader: &mut Reader<'a>, allowed: Allowed) -> Result<Self, DecodeError> {
        let bytes = reader.variable()?;
        let block = reader.take(usize::try_from(bytes).map_err(|_| DecodeError::CutShort)?)?;
        if !block.is_empty() {
            check(block, allowed)?;
        }
        Ok(Self(block))
    }

    /// True when the packet carries none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The block as it stood in the packet, without its length.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }

    /// The properties in the order of the packet.
    pub fn iter(&self) -> impl Iterator<Item = Property<'a>> + use<'a> {
        let mut reader = Reader::new(self.0);
        std::iter::from_fn(move || {
            if reader.is_empty() {
                return None;
            }
            // The block has passed `check`, so no error can come here.
            read_one(&mut reader).ok().map(|(_, property)| property)
        })
    }
}

fn check(block: &[u8], allowed: Allowed) -> Result<(), DecodeError> {
    let mut reader = Reader::new(block);
    let mut seen = 0u64;
    while let Some(&id) = reader.rest().first() {
        if id >= 64 || !known(id) {
            return Err(DecodeError::PropertyUnknown(id));
        }
        let bit = 1u64 << id;
        if allowed.0 & bit == 0 {
            return Err(DecodeError::PropertyForeign(id));
        }
        if seen & bit != 0 && id != self::id::USER_PROPERTY {
            return Err(DecodeError::PropertyTwice(id));
        }
        seen |= bit;
        read_one(&mut reader)?;
    }
    let has = |id: u8| seen & (1u64 << id) != 0;
    if has(id::AUTHENTICATION_DATA) && !has(id::AUTHENTICATION_METHOD) {
        return Err(DecodeError::AuthenticationMethod);
    }
    Ok(())
}

/// Identifiers of table 2-4.
fn known(id: u8) -> bool {
    matches!(id, 1..=3 | 8 | 9 | 0x0b | 0x11..=0x13 | 0x15..=0x1a | 0x1c | 0x1f | 0x21..=0x2a)
}

#[inline]
fn read_one<'a>(reader: &mut Reader<'a>) -> Result<(u8, Property<'a>), DecodeError> {
    let id = reader.byte()?;
    let flag = |byte: u8| match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::PropertyValue(id)),
    };
    let positive = |n: u32| if n == 0 { Err(DecodeError::PropertyValue(id)) } else { Ok(n) };
    let positive_two = |n: u16| if n == 0 { Err(DecodeError::PropertyValue(id)) } else { Ok(n) };
    let property = match id {
        0x01 => Property::PayloadFormatUtf8(flag(reader.byte()?)?),
        0x02 => Property::MessageExpiryIntervalS(reader.four()?),
        0x03 => Property::ContentType(reader.string()?),
        0x08 => Property::ResponseTopic(reader.topic_name()?),
        0x09 => Property::CorrelationData(reader.binary()?),
        0x0b => Property::SubscriptionIdentifier(positive(reader.variable()?)?),
        id::SESSION_EXPIRY => Property::SessionExpiryIntervalS(reader.four()?),
        id::AUTHENTICATION_METHOD => Property::AuthenticationMethod(reader.string()?),
        id::AUTHENTICATION_DATA => Property::AuthenticationData(reader.binary()?),
        0x17 => Property::RequestProblemInformation(flag(reader.byte()?)?),
        0x18 => Property::WillDelayIntervalS(reader.four()?),
        0x19 => Property::RequestResponseInformation(flag(reader.byte()?)?),
        id::REASON_STRING => Property::ReasonString(reader.string()?),
        id::RECEIVE_MAXIMUM => Property::ReceiveMaximum(positive_two(reader.two()?)?),
        id::TOPIC_ALIAS_MAXIMUM => Property::TopicAliasMaximum(reader.two()?),
        0x23 => Property::TopicAlias(positive_two(reader.two()?)?),
        id::USER_PROPERTY => Property::UserProperty(reader.string()?, reader.string()?),
        id::MAXIMUM_PACKET_SIZE => Property::MaximumPacketSize(positive(reader.four()?)?),
        other => return Err(DecodeError::PropertyForeign(other)),
    };
    Ok((id, property))
}
