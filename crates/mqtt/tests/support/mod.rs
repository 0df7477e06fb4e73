//! Packets of clients as the specification writes them, built by hand, and random ones of them.

#![allow(dead_code, reason = "each test uses its part")]

use mqtt::Version;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

/// A property block in the making.
pub(crate) type Block = Vec<u8>;

pub(crate) fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u16::try_from(bytes.len()).unwrap().to_be_bytes());
    out.extend_from_slice(bytes);
}

pub(crate) fn variable(out: &mut Vec<u8>, mut value: usize) {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        out.push(if value == 0 { low } else { low | 0x80 });
        if value == 0 {
            return;
        }
    }
}

pub(crate) fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    variable(&mut out, body.len());
    out.extend_from_slice(body);
    out
}

fn block(out: &mut Vec<u8>, version: Version, properties: &[u8]) {
    if version == Version::V5 {
        variable(out, properties.len());
        out.extend_from_slice(properties);
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Publish {
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) qos: u8,
    pub(crate) id: u16,
    pub(crate) dup: bool,
    pub(crate) retain: bool,
    pub(crate) properties: Block,
}

#[derive(Debug, Clone)]
pub(crate) struct Connect {
    pub(crate) client_id: String,
    pub(crate) clean: bool,
    pub(crate) keep_alive_s: u16,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Vec<u8>>,
    pub(crate) will: Option<(String, Vec<u8>, u8, bool)>,
    pub(crate) properties: Block,
}

#[derive(Debug, Clone)]
pub(crate) enum Sent {
    Connect(Connect),
    Publish(Publish),
    /// PUBACK, PUBREC, PUBREL or PUBCOMP by its packet type.
    Ack(u8, u16),
    Subscribe(u16, Vec<(String, u8)>),
    Unsubscribe(u16, Vec<String>),
    Ping,
    Disconnect,
}

impl Sent {
    pub(crate) fn encode(&self, version: Version) -> Vec<u8> {
        let mut body = Vec::new();
        match self {
            Self::Connect(connect) => connect.encode(version),
            Self::Publish(publish) => {
                text(&mut body, publish.topic.as_bytes());
                if publish.qos > 0 {
                    body.extend_from_slice(&publish.id.to_be_bytes());
                }
                block(&mut body, version, &publish.properties);
                body.extend_from_slice(&publish.payload);
                let dup = if publish.dup { 8 } else { 0 };
                packet(0x30 | dup | publish.qos << 1 | u8::from(publish.retain), &body)
            }
            Self::Ack(kind, id) => packet(kind << 4 | if *kind == 6 { 2 } else { 0 }, &id.to_be_bytes()),
            Self::Subscribe(id, filters) => {
                body.extend_from_slice(&id.to_be_bytes());
                block(&mut body, version, &[]);
                for (filter, options) in filters {
                    text(&mut body, filter.as_bytes());
                    body.push(*options);
                }
                packet(0x82, &body)
            }
            Self::Unsubscribe(id, filters) => {
                body.extend_from_slice(&id.to_be_bytes());
                block(&mut body, version, &[]);
                filters.iter().for_each(|filter| text(&mut body, filter.as_bytes()));
                packet(0xa2, &body)
            }
            Self::Ping => vec![0xc0, 0],
            Self::Disconnect => vec![0xe0, 0],
        }
    }
}

impl Connect {
    fn encode(&self, version: Version) -> Vec<u8> {
        let (name, level): (&[u8], u8) = match version {
            Version::V31 => (b"MQIsdp", 3),
            Version::V311 => (b"MQTT", 4),
            Version::V5 => (b"MQTT", 5),
        };
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        let will = self.will.as_ref().map_or(0, |(_, _, qos, retain)| 4 | qos << 3 | flag(*retain, 0x20));
        let flags = flag(self.clean, 2)
            | will
            | flag(self.user.is_some(), 0x80)
            | flag(self.password.is_some(), 0x40);
        let mut body = Vec::new();
        text(&mut body, name);
        body.extend_from_slice(&[level, flags]);
        body.extend_from_slice(&self.keep_alive_s.to_be_bytes());
        block(&mut body, version, &self.properties);
        text(&mut body, self.client_id.as_bytes());
        if let Some((topic, payload, ..)) = &self.will {
            block(&mut body, version, &[]);
            text(&mut body, topic.as_bytes());
            text(&mut body, payload);
        }
        if let Some(user) = &self.user {
            text(&mut body, user.as_bytes());
        }
        if let Some(password) = &self.password {
            text(&mut body, password);
        }
        packet(0x10, &body)
    }
}

pub(crate) fn version() -> impl Strategy<Value = Version> {
    prop_oneof![Just(Version::V31), Just(Version::V311), Just(Version::V5)]
}

/// Topic names: no wildcards, no U+0000, not empty.
fn topic() -> impl Strategy<Value = String> {
    "[a-z0-9äé温 $/._-]{1,40}"
}

fn filter() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z]{1,5}(/[a-z]{0,3}){0,3}",
        Just("a/+/b".to_owned()),
        Just("#".into()),
        Just("+/#".into())
    ]
}

fn user_properties() -> impl Strategy<Value = Block> {
    vec(("[a-z]{0,5}", "[a-zä]{0,5}"), 0..3).prop_map(|pairs| {
        let mut out = Vec::new();
        for (key, value) in pairs {
            out.push(0x26);
            text(&mut out, key.as_bytes());
            text(&mut out, value.as_bytes());
        }
        out
    })
}

/// A property of PUBLISH each, which may or may not stand there.
fn publish_properties() -> impl Strategy<Value = Block> {
    let one = (
        option::of(0u8..2),
        option::of(1u32..),
        option::of("[a-z/]{0,9}"),
        option::of("[a-z/]{1,9}"),
        option::of(vec(any::<u8>(), 0..5)),
        option::of(1u16..),
        user_properties(),
    );
    one.prop_map(|(format, expiry, content, response, correlation, alias, user)| {
        let mut out = Vec::new();
        format.into_iter().for_each(|byte| out.extend_from_slice(&[0x01, byte]));
        if let Some(seconds) = expiry {
            out.push(0x02);
            out.extend_from_slice(&seconds.to_be_bytes());
        }
        let texts = [
            (0x03, content.map(String::into_bytes)),
            (0x08, response.map(String::into_bytes)),
            (0x09, correlation),
        ];
        for (id, bytes) in texts {
            if let Some(bytes) = bytes {
                out.push(id);
                text(&mut out, &bytes);
            }
        }
        if let Some(alias) = alias {
            out.push(0x23);
            out.extend_from_slice(&alias.to_be_bytes());
        }
        out.extend(user);
        out
    })
}

fn connect_properties() -> impl Strategy<Value = Block> {
    (option::of(any::<u32>()), option::of(1u16..), option::of(any::<u16>()), user_properties()).prop_map(
        |(expiry, receive, alias, user)| {
            let mut out = Vec::new();
            if let Some(seconds) = expiry {
                out.push(0x11);
                out.extend_from_slice(&seconds.to_be_bytes());
            }
            for (id, value) in [(0x21, receive), (0x22, alias)] {
                if let Some(value) = value {
                    out.push(id);
                    out.extend_from_slice(&value.to_be_bytes());
                }
            }
            out.extend(user);
            out
        },
    )
}

fn publish() -> impl Strategy<Value = Sent> {
    let parts = (
        topic(),
        vec(any::<u8>(), 0..300),
        0u8..3,
        1u16..,
        any::<bool>(),
        any::<bool>(),
        publish_properties(),
    );
    parts.prop_map(|(topic, payload, qos, id, dup, retain, properties)| {
        Sent::Publish(Publish { topic, payload, qos, id, dup: dup && qos > 0, retain, properties })
    })
}

fn connect() -> impl Strategy<Value = Sent> {
    let will = (topic(), vec(any::<u8>(), 0..20), 0u8..3, any::<bool>());
    let credentials = option::of(("[a-zä]{0,9}", option::of(vec(any::<u8>(), 0..9))));
    let parts = (
        "[a-zA-Z0-9]{1,23}",
        any::<bool>(),
        any::<u16>(),
        credentials,
        option::of(will),
        connect_properties(),
    );
    parts.prop_map(|(client_id, clean, keep_alive_s, credentials, will, properties)| {
        let (user, password) = credentials.map_or((None, None), |(user, password)| (Some(user), password));
        Sent::Connect(Connect { client_id, clean, keep_alive_s, user, password, will, properties })
    })
}

/// Any packet that a client may send in any version.
pub(crate) fn sent() -> impl Strategy<Value = Sent> {
    prop_oneof![
        4 => publish(),
        2 => connect(),
        1 => (4u8..8, 1u16..).prop_map(|(kind, id)| Sent::Ack(kind, id)),
        1 => (1u16.., vec((filter(), 0u8..3), 1..4)).prop_map(|(id, filters)| Sent::Subscribe(id, filters)),
        1 => (1u16.., vec(filter(), 1..4)).prop_map(|(id, filters)| Sent::Unsubscribe(id, filters)),
        1 => Just(Sent::Ping),
        1 => Just(Sent::Disconnect),
    ]
}

/// A packet that may follow a CONNECT.
pub(crate) fn sent_later() -> impl Strategy<Value = Sent> {
    sent().prop_filter("no second CONNECT", |sent| !matches!(sent, Sent::Connect(_)))
}
