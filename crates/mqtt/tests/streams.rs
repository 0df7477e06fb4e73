//! Whole connections as byte streams: however they are cut into reads, the session does the same; whatever is changed
//! in them, it neither panics nor acknowledges what its sink did not get.

#![allow(clippy::unwrap_used, reason = "what fails in a helper of a test fails the test")]

mod support;

use bytes::BytesMut;
use mqtt::{
    Accept, Admission, Config, Ended, Incoming, PacketId, Progress, PublishSink, Session, Ticket, Version,
};
use proptest::prelude::*;
use support::{Connect, Sent, sent_later, version};

#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    publishes: Vec<(String, Vec<u8>, Option<u16>)>,
    out: Vec<u8>,
    end: Option<Result<(), Ended>>,
}

struct Sink<'a>(&'a mut Vec<(String, Vec<u8>, Option<u16>)>);

impl PublishSink for Sink<'_> {
    fn publish(&mut self, publish: &Incoming<'_>) -> Admission {
        let id = publish.packet_id.map(PacketId::get);
        self.0.push((publish.topic.into(), publish.payload.into(), id));
        Admission::Taken
    }
}

/// Gives the stream to a session in pieces that end at `cuts`; everything is durable at the end.
fn run(stream: &[u8], cuts: &[usize]) -> Seen {
    let mut seen = Seen::default();
    let mut session = Session::new(Config::default(), 0);
    let (mut input, mut out) = (BytesMut::new(), BytesMut::new());
    let mut from = 0;
    for to in cuts.iter().copied().chain([stream.len()]) {
        input.extend_from_slice(&stream[from..to]);
        from = to;
        while seen.end.is_none() {
            match session.drain(&mut input, 0, &mut Sink(&mut seen.publishes), &mut out) {
                Ok(Progress::NeedMore) => break,
                Ok(Progress::Connect(_)) => session.accept(&Accept::default(), 0, &mut out),
                Ok(Progress::SinkFull) => unreachable!("this sink is never full"),
                Ok(Progress::Left) => seen.end = Some(Ok(())),
                Err(ended) => seen.end = Some(Err(ended)),
            }
        }
        session.assign(Ticket(1));
    }
    session.durable(Ticket(1), &mut out);
    seen.out = out.to_vec();
    seen
}

fn stream(version: Version, packets: &[Sent]) -> Vec<u8> {
    let connect = Connect {
        client_id: "dev".into(),
        clean: true,
        keep_alive_s: 0,
        user: None,
        password: None,
        will: None,
        properties: Vec::new(),
    };
    let mut bytes = Sent::Connect(connect).encode(version);
    packets.iter().for_each(|packet| bytes.extend(packet.encode(version)));
    bytes
}

proptest! {
    #[test]
    fn cuts_change_nothing(
        version in version(),
        packets in proptest::collection::vec(sent_later(), 0..8),
        cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..12),
    ) {
        let stream = stream(version, &packets);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
        cuts.sort_unstable();
        let whole = run(&stream, &[]);
        prop_assert_eq!(run(&stream, &cuts), whole);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn byte_by_byte_is_the_same(version in version(), packets in proptest::collection::vec(sent_later(), 0..5)) {
        let stream = stream(version, &packets);
        let every: Vec<usize> = (0..stream.len()).collect();
        prop_assert_eq!(run(&stream, &every), run(&stream, &[]));
    }
}

/// SplitMix64, so that a failure is replayed by its seed alone.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % n as u64).unwrap()
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let publish = |qos: u8, id: u16, properties: &[u8]| {
        Sent::Publish(support::Publish {
            topic: "machines/7/telemetry".into(),
            payload: br#"{"temperature":21.5}"#.to_vec(),
            qos,
            id,
            dup: false,
            retain: false,
            properties: properties.to_vec(),
        })
    };
    let packets = [
        publish(1, 1, &[]),
        publish(0, 0, &[]),
        publish(1, 2, &[0x23, 0, 1]),
        Sent::Ping,
        Sent::Subscribe(3, vec![("a/+/#".into(), 1)]),
        Sent::Unsubscribe(4, vec!["a".into()]),
        Sent::Ack(6, 9),
        publish(1, 5, &[0x01, 1, 0x26, 0, 1, b'k', 0, 1, b'v']),
        Sent::Disconnect,
    ];
    [Version::V31, Version::V311, Version::V5].iter().map(|version| stream(*version, &packets)).collect()
}

/// How many of the packets that the session wrote are PUBACKs; all of them are short.
fn pubacks(mut out: &[u8]) -> usize {
    let mut count = 0;
    while let [first, bytes, ..] = out {
        assert!(*bytes < 0x80, "a long packet");
        count += usize::from(*first == 0x40);
        out = &out[2 + usize::from(*bytes)..];
    }
    count
}

/// What continuous integration has of fuzzing: seeded changes of whole connections.
#[test]
fn changed_streams_are_judged_the_same_however_they_are_cut() {
    let seeds = seeds();
    for seed in 0..20_000u64 {
        let mut random = Random(seed);
        let mut bytes = seeds[random.below(seeds.len())].clone();
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len());
            match random.below(5) {
                0 => bytes[at] = u8::try_from(random.below(256)).unwrap(),
                1 => bytes[at] ^= 1 << random.below(8),
                2 if bytes.len() > 1 => drop(bytes.remove(at)),
                3 => bytes.insert(at, u8::try_from(random.below(256)).unwrap()),
                _ => bytes.truncate(at.max(1)),
            }
        }
        let whole = run(&bytes, &[]);
        let cut = random.below(bytes.len());
        assert_eq!(run(&bytes, &[cut]), whole, "seed {seed}, cut at {cut}");
        let acknowledgeable = whole.publishes.iter().filter(|(_, _, id)| id.is_some()).count();
        let acknowledged = pubacks(&whole.out);
        assert!(acknowledged <= acknowledgeable, "seed {seed}");
    }
}

#[test]
fn a_topic_of_64_kib_is_taken() {
    let topic = "t".repeat(65_535);
    let publish = support::Publish {
        topic: topic.clone(),
        payload: Vec::new(),
        qos: 1,
        id: 1,
        dup: false,
        retain: false,
        properties: Vec::new(),
    };
    for version in [Version::V31, Version::V311, Version::V5] {
        let seen = run(&stream(version, &[Sent::Publish(publish.clone())]), &[100, 70_000 - 65_000]);
        assert_eq!(seen.publishes, [(topic.clone(), Vec::new(), Some(1))]);
        assert_eq!(seen.out[seen.out.len() - 4..], [0x40, 2, 0, 1]);
    }
}
