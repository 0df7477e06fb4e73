//! Our decoder beside rmqtt-codec, on packets as clients write them and on mutations of these. What ours takes, the
//! other takes as well and reads the same; the converse does not hold, since ours is the stricter one (see `cases`).

#![allow(clippy::unwrap_used, reason = "what fails in a helper of a test fails the test")]

mod support;

use bytes::BytesMut;
use mqtt::packet::Packet;
use mqtt::{PacketId, ReasonCode};
use mqtt::{Version, decode, encode};
use proptest::prelude::*;
use rmqtt_codec::{v3, v5};
use support::{Sent, sent, version};
use tokio_util::codec::Decoder;

/// What both decoders can be asked about a packet.
#[derive(Debug, PartialEq, Eq)]
enum Read {
    Connect {
        client_id: String,
        clean: bool,
        keep_alive_s: u16,
        user: Option<String>,
        password: Option<Vec<u8>>,
        will: Option<(String, Vec<u8>, u8, bool)>,
    },
    Publish {
        topic: String,
        payload: Vec<u8>,
        qos: u8,
        id: u16,
        dup: bool,
        retain: bool,
    },
    Ack(u8, u16),
    Subscribe(u16, Vec<String>),
    Unsubscribe(u16, Vec<String>),
    Ping,
    Disconnect,
    Auth,
}

fn ours(version: Version, bytes: &[u8]) -> Option<(Read, usize)> {
    let frame = decode::frame(bytes, version, 1 << 20).ok()??;
    let read = match decode::packet(version, frame).ok()? {
        Packet::Connect(c) => Read::Connect {
            client_id: c.client_id.into(),
            clean: c.clean,
            keep_alive_s: c.keep_alive_s,
            user: c.user.map(Into::into),
            password: c.password.map(Into::into),
            will: c.will.map(|w| (w.topic.into(), w.payload.into(), w.qos, w.retain)),
        },
        Packet::Publish(p) => Read::Publish {
            topic: p.topic.into(),
            payload: p.payload.into(),
            qos: p.delivery.qos(),
            id: match p.delivery {
                mqtt::packet::Delivery::AtMostOnce => 0,
                mqtt::packet::Delivery::AtLeastOnce(id) | mqtt::packet::Delivery::ExactlyOnce(id) => id.get(),
            },
            dup: p.dup,
            retain: p.retain,
        },
        Packet::PubAck(a) => Read::Ack(4, a.packet_id.get()),
        Packet::PubRec(a) => Read::Ack(5, a.packet_id.get()),
        Packet::PubRel(a) => Read::Ack(6, a.packet_id.get()),
        Packet::PubComp(a) => Read::Ack(7, a.packet_id.get()),
        Packet::Subscribe(s) => {
            Read::Subscribe(s.packet_id.get(), s.filters().map(|(filter, _)| filter.into()).collect())
        }
        Packet::Unsubscribe(u) => Read::Unsubscribe(u.packet_id.get(), u.filters().map(Into::into).collect()),
        Packet::PingReq => Read::Ping,
        Packet::Disconnect { .. } => Read::Disconnect,
        Packet::Auth { .. } => Read::Auth,
    };
    Some((read, frame.bytes))
}

fn theirs(version: Version, bytes: &[u8]) -> Option<Read> {
    let mut bytes = BytesMut::from(bytes);
    if version == Version::V5 {
        theirs_v5(v5::Codec::new(0, 0).decode(&mut bytes).ok()??.0)
    } else {
        theirs_v3(v3::Codec::new(1 << 20).decode(&mut bytes).ok()??.0)
    }
}

fn theirs_v3(packet: v3::Packet) -> Option<Read> {
    Some(match packet {
        v3::Packet::Connect(c) => Read::Connect {
            client_id: c.client_id.to_string(),
            clean: c.clean_session,
            keep_alive_s: c.keep_alive,
            user: c.username.map(|text| text.to_string()),
            password: c.password.map(|bytes| bytes.to_vec()),
            will: c.last_will.map(|w| (w.topic.to_string(), w.message.to_vec(), w.qos.value(), w.retain)),
        },
        v3::Packet::Publish(p) => published(&p),
        v3::Packet::PublishAck { packet_id } => Read::Ack(4, packet_id.get()),
        v3::Packet::PublishReceived { packet_id } => Read::Ack(5, packet_id.get()),
        v3::Packet::PublishRelease { packet_id } => Read::Ack(6, packet_id.get()),
        v3::Packet::PublishComplete { packet_id } => Read::Ack(7, packet_id.get()),
        v3::Packet::Subscribe { packet_id, topic_filters } => Read::Subscribe(
            packet_id.get(),
            topic_filters.iter().map(|(filter, _)| filter.to_string()).collect(),
        ),
        v3::Packet::Unsubscribe { packet_id, topic_filters } => {
            Read::Unsubscribe(packet_id.get(), topic_filters.iter().map(ToString::to_string).collect())
        }
        v3::Packet::PingRequest => Read::Ping,
        v3::Packet::Disconnect => Read::Disconnect,
        _ => return None,
    })
}

fn theirs_v5(packet: v5::Packet) -> Option<Read> {
    Some(match packet {
        v5::Packet::Connect(c) => Read::Connect {
            client_id: c.client_id.to_string(),
            clean: c.clean_start,
            keep_alive_s: c.keep_alive,
            user: c.username.map(|text| text.to_string()),
            password: c.password.map(|bytes| bytes.to_vec()),
            will: c.last_will.map(|w| (w.topic.to_string(), w.message.to_vec(), w.qos.value(), w.retain)),
        },
        v5::Packet::Publish(p) => published(&p),
        v5::Packet::PublishAck(a) => Read::Ack(4, a.packet_id.get()),
        v5::Packet::PublishReceived(a) => Read::Ack(5, a.packet_id.get()),
        v5::Packet::PublishRelease(a) => Read::Ack(6, a.packet_id.get()),
        v5::Packet::PublishComplete(a) => Read::Ack(7, a.packet_id.get()),
        v5::Packet::Subscribe(s) => Read::Subscribe(
            s.packet_id.get(),
            s.topic_filters.iter().map(|(filter, _)| filter.to_string()).collect(),
        ),
        v5::Packet::Unsubscribe(u) => {
            Read::Unsubscribe(u.packet_id.get(), u.topic_filters.iter().map(ToString::to_string).collect())
        }
        v5::Packet::PingRequest => Read::Ping,
        v5::Packet::Disconnect(_) => Read::Disconnect,
        v5::Packet::Auth(_) => Read::Auth,
        _ => return None,
    })
}

fn published(p: &rmqtt_codec::types::Publish) -> Read {
    Read::Publish {
        topic: p.topic.to_string(),
        payload: p.payload.to_vec(),
        qos: p.qos.value(),
        id: p.packet_id.map_or(0, std::num::NonZeroU16::get),
        dup: p.dup,
        retain: p.retain,
    }
}

/// What was sent, in the words of both decoders.
fn expected(sent: &Sent) -> Read {
    match sent.clone() {
        Sent::Connect(c) => Read::Connect {
            client_id: c.client_id,
            clean: c.clean,
            keep_alive_s: c.keep_alive_s,
            user: c.user,
            password: c.password,
            will: c.will,
        },
        Sent::Publish(p) => Read::Publish {
            topic: p.topic,
            payload: p.payload,
            qos: p.qos,
            id: if p.qos > 0 { p.id } else { 0 },
            dup: p.dup,
            retain: p.retain,
        },
        Sent::Ack(kind, id) => Read::Ack(kind, id),
        Sent::Subscribe(id, filters) => {
            Read::Subscribe(id, filters.into_iter().map(|(filter, _)| filter).collect())
        }
        Sent::Unsubscribe(id, filters) => Read::Unsubscribe(id, filters),
        Sent::Ping => Read::Ping,
        Sent::Disconnect => Read::Disconnect,
    }
}

/// rmqtt-codec refuses two things that the specification allows: a message expiry interval of zero (3.3.2.3.3), and
/// the credentials that an MQTT 3.1 CONNECT may leave out although their flags are set. MQTT 3.1 also has DUP on
/// packets other than PUBLISH.
fn refused_by_theirs_alone(version: Version, bytes: &[u8]) -> bool {
    version == Version::V31
        || (version == Version::V5 && bytes.windows(5).any(|five| five == [2, 0, 0, 0, 0]))
}

proptest! {
    #[test]
    fn both_read_what_was_sent(version in version(), sent in sent()) {
        let bytes = sent.encode(version);
        let wanted = expected(&sent);
        let (read, used) = ours(version, &bytes).expect("a valid packet");
        prop_assert_eq!(used, bytes.len());
        prop_assert_eq!(&read, &wanted);
        prop_assert_eq!(theirs(version, &bytes), Some(wanted));
    }

    #[test]
    fn what_ours_takes_theirs_takes_and_reads_the_same(
        version in version(),
        sent in sent(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>(), 0u8..4), 1..4),
    ) {
        let mut bytes = sent.encode(version);
        for (at, byte, kind) in changes {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes[at] ^= 1 << (byte & 7),
                2 if bytes.len() > 1 => { bytes.remove(at); }
                _ => bytes.insert(at, byte),
            }
        }
        if let Some((read, used)) = ours(version, &bytes) && !refused_by_theirs_alone(version, &bytes[..used]) {
            prop_assert_eq!(theirs(version, &bytes[..used]), Some(read));
        }
    }

    #[test]
    fn any_bytes_are_judged_without_a_panic(version in version(), bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = ours(version, &bytes);
    }

    #[test]
    fn theirs_reads_our_acknowledgements(id in 1u16.., codes in proptest::collection::vec(prop_oneof![Just(0x80u8), Just(0x87)], 1..5), present: bool) {
        let id = PacketId::new(id).unwrap();
        let codes: Vec<ReasonCode> = codes.into_iter().map(ReasonCode).collect();
        let mut out = BytesMut::new();
        encode::puback(&mut out, id);
        encode::puback_with(&mut out, Version::V5, id, ReasonCode::NOT_AUTHORIZED, Some("no"));
        encode::pubrec(&mut out, id);
        encode::pubrec_with(&mut out, Version::V5, id, ReasonCode::QUOTA_EXCEEDED, None);
        encode::pubrel_with(&mut out, Version::V5, id, ReasonCode::PACKET_ID_NOT_FOUND);
        encode::pubcomp(&mut out, id);
        encode::suback(&mut out, Version::V5, id, &codes, Some("no"));
        encode::pingresp(&mut out);
        let mut with = encode::ConnAckProperties { maximum_qos: Some(1), receive_maximum: Some(id.get()), assigned_client_id: Some("auto"), no_subscriptions: true, ..Default::default() };
        with.maximum_packet_size = Some(77);
        encode::connack_v5(&mut out, present, ReasonCode::SUCCESS, &with);
        encode::disconnect(&mut out, ReasonCode::SERVER_SHUTTING_DOWN, Some("bye"));
        let mut codec = v5::Codec::new(0, 0);
        let mut read = Vec::new();
        while let Some((packet, _)) = codec.decode(&mut out).unwrap() {
            read.push(packet);
        }
        prop_assert!(out.is_empty());
        prop_assert_eq!(read.len(), 10);
        let v5::Packet::ConnectAck(ack) = &read[8] else { panic!("no CONNACK") };
        prop_assert_eq!((ack.session_present, ack.receive_max.get(), ack.max_packet_size), (present, id.get(), Some(77)));
        prop_assert_eq!(ack.assigned_client_id.as_deref(), Some("auto"));
        prop_assert!(!ack.wildcard_subscription_available && !ack.shared_subscription_available);
        let v5::Packet::SubscribeAck(ack) = &read[6] else { panic!("no SUBACK") };
        prop_assert_eq!(ack.status.len(), codes.len());
        let v5::Packet::PublishAck(ack) = &read[1] else { panic!("no PUBACK") };
        prop_assert_eq!(ack.reason_string.as_deref(), Some("no"));
    }

    #[test]
    fn theirs_reads_our_mqtt_3_answers(id in 1u16.., count in 1usize..5) {
        let id = PacketId::new(id).unwrap();
        let mut out = BytesMut::new();
        encode::connack_v3(&mut out, Version::V311, true, 0);
        encode::connack_v3(&mut out, Version::V311, true, 5);
        encode::puback_with(&mut out, Version::V311, id, ReasonCode::NOT_AUTHORIZED, Some("no"));
        encode::suback(&mut out, Version::V311, id, &vec![ReasonCode::UNSPECIFIED; count], Some("no"));
        encode::unsuback(&mut out, Version::V311, id, &vec![ReasonCode::SUCCESS; count]);
        let mut codec = v3::Codec::new(1 << 20);
        let mut read = Vec::new();
        while let Some((packet, _)) = codec.decode(&mut out).unwrap() {
            read.push(packet);
        }
        prop_assert!(out.is_empty());
        prop_assert_eq!(read.len(), 5);
        let packet_id = std::num::NonZeroU16::new(id.get()).unwrap();
        prop_assert_eq!(&read[2], &v3::Packet::PublishAck { packet_id });
        let status = vec![v3::SubscribeReturnCode::Failure; count];
        prop_assert_eq!(&read[3], &v3::Packet::SubscribeAck { packet_id, status });
    }
}
