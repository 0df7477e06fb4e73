//! A connection's bytes, whole and cut once: the session must do the same. The first two bytes say where to cut.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use mqtt::{Accept, Admission, Config, Ended, Incoming, Progress, Session, Ticket};

fuzz_target!(|bytes: &[u8]| {
    let Some((cut, stream)) = bytes.split_first_chunk::<2>() else { return };
    let cut = usize::from(u16::from_le_bytes(*cut)) % (stream.len() + 1);
    let (first, second) = stream.split_at(cut);
    assert_eq!(run(&[stream]), run(&[first, second]));
});

#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    publishes: Vec<(String, Vec<u8>, u8)>,
    out: BytesMut,
    end: Option<Result<(), Ended>>,
}

fn run(reads: &[&[u8]]) -> Seen {
    let config = Config { packet_bytes_max: 4096, receive_maximum: 8, topic_aliases: 4, ..Config::default() };
    let mut session = Session::new(config, 0);
    let mut seen = Seen::default();
    let mut input = BytesMut::new();
    for read in reads {
        input.extend_from_slice(read);
        while seen.end.is_none() {
            let publishes = &mut seen.publishes;
            let mut sink = |publish: &Incoming<'_>| {
                publishes.push((publish.topic.into(), publish.payload.into(), publish.qos()));
                Admission::Taken
            };
            match session.drain(&mut input, 0, &mut sink, &mut seen.out) {
                Ok(Progress::NeedMore | Progress::SinkFull) => break,
                Ok(Progress::Connect(_)) => session.accept(&Accept::default(), 0, &mut seen.out),
                Ok(Progress::Left) => seen.end = Some(Ok(())),
                Err(ended) => seen.end = Some(Err(ended)),
            }
        }
    }
    session.assign(Ticket(1));
    session.durable(Ticket(1), &mut seen.out);
    seen
}
