//! The gateway's end: windows, acknowledgements, halts, waits.

use crate::{Chain, LIFE, stream};
use link::{
    forward::{Config, Entry, Forwarder, Halt, Item, Output as Out, Position},
    message::{Ack, Batch, Refuse, RefuseCode, StreamWelcome},
};
use record::{Digest, Seq, clock::SeededRandom};
use std::sync::Arc;

fn forwarder() -> Forwarder {
    let config = Config { in_flight_batches: 3, in_flight_bytes: 35, ..Config::default() };
    Forwarder::new(config, Arc::new(SeededRandom::new(1)), Position(0))
}

fn drain(f: &mut Forwarder) -> Vec<Out> {
    std::iter::from_fn(|| f.next_output()).collect()
}

fn opened(streams: Vec<StreamWelcome>) -> Forwarder {
    let mut f = forwarder();
    assert_eq!(drain(&mut f), vec![Out::Connect]);
    f.connected(0);
    assert_eq!(drain(&mut f), vec![Out::SayHello]);
    f.welcome(0, streams);
    assert!(drain(&mut f).contains(&Out::Seek(Position(0))));
    f
}

fn welcome(name: &str, last: u64, hash: Digest) -> StreamWelcome {
    StreamWelcome { stream: stream(name), last: Seq(last), hash, loss_ordinal: 0 }
}

fn entry(position: u64, blocks: Vec<Batch>) -> Entry {
    Entry { position: Position(position), items: blocks.into_iter().map(Item::Block).collect() }
}

fn ack(name: &str, last: u64) -> Vec<Ack> {
    vec![Ack { stream: stream(name), last: Seq(last) }]
}

fn sent(out: &[Out]) -> Vec<u64> {
    let blocks = out.iter().filter_map(|o| match o {
        Out::Send(Item::Block(b)) => Some(b.header.last.0),
        _ => None,
    });
    blocks.collect()
}

fn through(out: &[Out]) -> Option<u64> {
    out.iter().rev().find_map(|o| match o {
        Out::Through(p) => Some(p.0),
        _ => None,
    })
}

#[test]
fn the_window_holds_and_acks_open_it() {
    let mut f = opened(vec![]);
    let mut chain = Chain::new("m", LIFE);
    for p in 1..=3 {
        assert!(f.wants_entry());
        f.entry(0, entry(p, vec![chain.block(1, 0)]));
    }
    assert!(!f.wants_entry(), "three blocks are in flight");
    assert_eq!(sent(&drain(&mut f)), vec![1, 2, 3]);
    f.acks(1, ack("m", 2));
    assert_eq!(through(&drain(&mut f)), Some(2));
    f.entry(1, entry(4, vec![chain.block(1, 0), chain.block(1, 0), chain.block(1, 0)]));
    let out = drain(&mut f);
    assert_eq!(sent(&out), vec![4, 5], "the last one waits for room");
    assert!(!f.wants_entry());
    f.acks(2, ack("m", 5));
    let out = drain(&mut f);
    assert_eq!((sent(&out), through(&out)), (vec![6], Some(3)), "entry 4 is not whole yet");
    f.acks(3, ack("m", 6));
    assert_eq!(through(&drain(&mut f)), Some(4));
    assert_eq!(f.in_flight(), (0, 0));
}

#[test]
fn entries_without_blocks_move_the_position_on() {
    let mut f = opened(vec![]);
    f.entry(0, entry(1, vec![]));
    assert_eq!(through(&drain(&mut f)), Some(1));
    let mut chain = Chain::new("m", LIFE);
    f.entry(0, entry(2, vec![chain.block(1, 0)]));
    f.entry(0, entry(3, vec![]));
    f.entry(0, entry(4, vec![]));
    assert_eq!(through(&drain(&mut f)), None);
    f.acks(0, ack("m", 1));
    assert_eq!(through(&drain(&mut f)), Some(4));
}

#[test]
fn what_central_has_is_not_sent_again() {
    let mut chain = Chain::new("m", LIFE);
    let blocks: Vec<Batch> = (0..3).map(|_| chain.block(10, 0)).collect();
    let mut f = opened(vec![welcome("m", 20, blocks[1].header.hash)]);
    for (i, b) in blocks.into_iter().enumerate() {
        f.entry(0, entry(i as u64 + 1, vec![b]));
    }
    let out = drain(&mut f);
    assert_eq!((sent(&out), through(&out)), (vec![30], Some(2)));
}

#[test]
fn a_lost_ack_and_a_lost_connection_read_again_from_the_safe_position() {
    let mut f = opened(vec![]);
    let mut chain = Chain::new("m", LIFE);
    let (a, b) = (chain.block(1, 0), chain.block(1, 0));
    f.entry(0, entry(1, vec![a.clone()]));
    f.entry(0, entry(2, vec![b.clone()]));
    f.acks(0, ack("m", 1));
    drain(&mut f);
    f.disconnected(0);
    let again = f.next_deadline_ns().expect("a time to come back");
    assert!((100_000_000..=200_000_000).contains(&again), "{again}");
    f.tick(again - 1);
    assert!(drain(&mut f).is_empty());
    f.tick(again);
    f.connected(again);
    f.welcome(again, vec![welcome("m", 2, b.header.hash)]);
    assert!(drain(&mut f).contains(&Out::Seek(Position(1))));
    f.entry(again, entry(2, vec![b]));
    let out = drain(&mut f);
    assert_eq!((sent(&out), through(&out)), (vec![], Some(2)), "stored, only the ack was lost");
}

#[test]
fn a_refused_stream_is_held_alone_and_tried_again() {
    let mut f = opened(vec![]);
    let (mut m, mut n) = (Chain::new("m", LIFE), Chain::new("n", LIFE));
    f.entry(0, entry(1, vec![n.block(1, 0)]));
    f.entry(0, entry(2, vec![m.block(1, 0), n.block(1, 0)]));
    drain(&mut f);
    let code = RefuseCode::TypeConflict;
    let refuse = Refuse { stream: stream("m"), code, expected: Seq(1), message: "types".into() };
    f.refuse(5, refuse.clone());
    assert_eq!(drain(&mut f), vec![Out::Halted(stream("m"), Halt::Refused(refuse))]);
    f.acks(6, ack("n", 2));
    for p in 3..200 {
        assert!(f.wants_entry(), "the other stream goes on");
        f.entry(6, entry(p, vec![m.block(1, 0), n.block(1, 0)]));
        f.acks(6, ack("n", p));
    }
    let out = drain(&mut f);
    assert_eq!(through(&out), Some(1), "what the held stream has not delivered stays");
    assert!(sent(&out).contains(&199));
    let retry = f.next_deadline_ns().expect("a retry");
    assert_eq!(retry, 60_000_000_005);
    f.tick(retry);
    assert!(matches!(drain(&mut f)[..], [Out::Close(_)]));
    let again = f.next_deadline_ns().expect("a time to come back");
    f.tick(again);
    f.connected(again);
    f.welcome(again, vec![welcome("n", 199, n.hash)]);
    assert!(drain(&mut f).contains(&Out::Seek(Position(1))));
}

#[test]
fn other_rows_halt_the_stream() {
    let mut f = opened(vec![welcome("m", 1, Digest::of(b"x"))]);
    f.entry(0, entry(1, vec![Chain::new("m", LIFE).block(1, 0)]));
    let out = drain(&mut f);
    assert!(out.iter().any(|o| matches!(o, Out::Halted(_, Halt::Diverged { .. }))), "{out:?}");
    assert_eq!(through(&out), None);
}

/// A process that lost its shard and has not heard so greets from what it knew.
#[test]
fn missing_rows_halt_the_stream_when_central_was_asked_again() {
    let mut chain = Chain::new("m", LIFE);
    let (a, b) = (chain.block(1, 0), chain.block(1, 0));
    let stale = || vec![welcome("m", 0, Digest::default())];
    let (mut f, mut now) = (opened(stale()), 0);
    for tries in 0..=5 {
        f.entry(now, entry(1, vec![b.clone()]));
        let out = drain(&mut f);
        assert_eq!(through(&out), None);
        let told = out.iter().any(|o| matches!(o, Out::Halted(_, Halt::Gap { .. })));
        assert_eq!(told, tries == 5);
        let retry = f.next_deadline_ns().expect("a retry");
        assert_eq!(retry - now, if told { 60_000_000_000 } else { 1_000_000_000 });
        f.tick(retry);
        now = f.next_deadline_ns().expect("a time to come back");
        f.tick(now);
        f.connected(now);
        f.welcome(now, if told { vec![welcome("m", 1, a.header.hash)] } else { stale() });
        drain(&mut f);
    }
    f.entry(now, entry(1, vec![b]));
    assert_eq!(sent(&drain(&mut f)), [2]);
}

/// A folder that was restored holds other rows under the seqs that central has: they are the only copy.
#[test]
fn rows_before_the_one_that_differs_are_not_let_go() {
    let (mut ours, mut theirs) = (Chain::new("m", LIFE), Chain::new("m", LIFE));
    let theirs = (theirs.block(10, 1), theirs.block(10, 1)).1;
    let mut f = opened(vec![welcome("m", 20, theirs.header.hash)]);
    let mut other = Chain::new("n", LIFE);
    f.entry(0, entry(1, vec![ours.block(10, 2)]));
    f.entry(0, entry(2, vec![]));
    assert_eq!(through(&drain(&mut f)), None, "not before it is known that they are the same rows");
    f.entry(0, entry(3, vec![other.block(1, 3), ours.block(10, 2)]));
    let out = drain(&mut f);
    assert!(matches!(out[..], [Out::Halted(_, Halt::Diverged { last: Seq(20) }), Out::Send(_)]), "{out:?}");
    f.acks(0, ack("n", 1));
    assert_eq!(through(&drain(&mut f)), None);
}

#[test]
fn central_refuses_before_the_rows_that_differ_are_read() {
    let mut ours = Chain::new("m", LIFE);
    let mut f = opened(vec![welcome("m", 20, Digest::of(b"another folder"))]);
    f.entry(0, entry(1, vec![]));
    f.entry(0, entry(2, vec![ours.block(10, 2)]));
    assert_eq!(through(&drain(&mut f)), Some(1));
    let message = "restored".to_owned();
    f.refuse(0, Refuse { stream: stream("m"), code: RefuseCode::Quarantined, expected: Seq(21), message });
    f.entry(0, entry(3, vec![]));
    assert_eq!(through(&drain(&mut f)), None);
}

#[test]
fn what_central_has_is_let_go_when_its_last_block_is_the_same() {
    let mut chain = Chain::new("m", LIFE);
    let (first, second) = (chain.block(10, 1), chain.block(10, 2));
    let mut f = opened(vec![welcome("m", 20, second.header.hash)]);
    f.entry(0, entry(1, vec![first]));
    f.entry(0, entry(2, vec![]));
    assert_eq!(through(&drain(&mut f)), None);
    f.entry(0, entry(3, vec![second]));
    assert_eq!(through(&drain(&mut f)), Some(3));
}

#[test]
fn silence_and_nonsense_end_the_connection() {
    let mut f = opened(vec![]);
    let mut chain = Chain::new("m", LIFE);
    f.entry(5, entry(1, vec![chain.block(1, 0)]));
    drain(&mut f);
    assert_eq!(f.next_deadline_ns(), Some(30_000_000_005));
    f.tick(30_000_000_005);
    assert!(matches!(drain(&mut f)[..], [Out::Close(_)]), "no ack in time");

    let mut f = opened(vec![welcome("m", 0, Digest::default())]);
    f.acks(0, ack("m", 9));
    assert!(matches!(drain(&mut f)[..], [Out::Close(_)]), "more acknowledged than sent");

    let mut f = forwarder();
    drain(&mut f);
    f.connected(0);
    drain(&mut f);
    f.tick(15_000_000_000);
    assert!(matches!(drain(&mut f)[..], [Out::Close(_)]), "no Welcome in time");
}

#[test]
fn waits_grow_to_their_bound_and_start_over_after_success() {
    let mut f = forwarder();
    let mut now = 0;
    let mut waits = Vec::new();
    for _ in 0..12 {
        f.disconnected(now);
        let at = f.next_deadline_ns().expect("a time to come back");
        waits.push(at - now);
        now = at;
        f.tick(now);
    }
    assert!(waits[0] <= 200_000_000 && waits[4] > 1_000_000_000, "{waits:?}");
    assert!(waits.iter().all(|w| *w <= 10_000_000_000) && waits[11] >= 5_000_000_000, "{waits:?}");
    drain(&mut f);
    f.connected(now);
    f.welcome(now, vec![]);
    f.entry(now, entry(1, vec![Chain::new("m", LIFE).block(1, 0)]));
    f.acks(now, ack("m", 1));
    f.disconnected(now);
    assert!(f.next_deadline_ns().expect("a time") - now <= 200_000_000);
}

#[test]
fn a_gateway_follows_central_to_the_owner_at_once_but_not_in_circles() {
    let config = Config::default();
    let mut f = Forwarder::new(config, Arc::new(SeededRandom::new(1)), Position(0));
    let mut now = 0;
    let mut waits = Vec::new();
    for _ in 0..12 {
        assert!(drain(&mut f).contains(&Out::Connect));
        f.connected(now);
        f.elsewhere(now, true);
        let next = f.next_deadline_ns().expect("a time to come back");
        waits.push(next - now);
        now = next;
        f.tick(now);
    }
    let rests = waits.iter().filter(|w| **w > 0).count();
    assert_eq!((rests, waits[4] > 0, waits[9] > 0), (2, true, true), "{waits:?}");
    // A process that was asked last is gone, but central answered a moment ago: no long rests.
    for _ in 0..8 {
        f.disconnected(now);
        let next = f.next_deadline_ns().expect("a time to come back");
        assert!(next - now <= 1_000_000_000, "{}", next - now);
        now = next;
        f.tick(now);
    }
    // Nobody answers for long: the usual rests.
    for _ in 0..12 {
        f.disconnected(now);
        now = f.next_deadline_ns().expect("a time to come back");
        f.tick(now);
    }
    f.disconnected(now);
    assert!(f.next_deadline_ns().expect("a time") - now >= 5_000_000_000);
}
