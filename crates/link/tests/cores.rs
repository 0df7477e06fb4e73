//! The two state machines without sockets: each row of the table of verdicts, each way a session can go wrong.

use bytes::Bytes;
use link::{
    forward::{Config, Entry, Forwarder, Halt, Item, Output as Out, Position},
    message::{
        Ack, Batch, Hello, Loss, Lost, Refuse, RefuseCode, StreamHello, StreamLedger, StreamWelcome,
        ToGateway,
    },
    receive::{Head, Known, Output, Receiver, SessionId},
};
use record::{
    BlockHeader, Counts, Digest, GatewayId, Incarnation, Seq, StreamName, StreamSchema, chain_hash,
    clock::SeededRandom,
};
use std::sync::Arc;

const LIFE: Incarnation = Incarnation(7);
const S1: SessionId = SessionId(1);
const S2: SessionId = SessionId(2);

fn gateway() -> GatewayId {
    GatewayId::new("plant-7").expect("valid")
}

fn stream(name: &str) -> StreamName {
    StreamName::new(name).expect("valid")
}

/// A gateway's output: blocks of one stream, chained.
struct Chain {
    stream: StreamName,
    life: Incarnation,
    last: Seq,
    hash: Digest,
}

impl Chain {
    fn new(name: &str, life: Incarnation) -> Self {
        Self { stream: stream(name), life, last: Seq(0), hash: Digest::default() }
    }

    fn block(&mut self, rows: u64, fill: u8) -> Batch {
        let (first, last) = (self.last.next(), Seq(self.last.0 + rows));
        let bytes = Bytes::from(vec![fill; 10]);
        let hash = chain_hash(&self.hash, &self.stream, self.life, first, last, 1, &bytes);
        let header = BlockHeader {
            stream: self.stream.clone(),
            incarnation: self.life,
            first,
            last,
            schema: 1,
            prev_hash: self.hash,
            hash,
        };
        (self.last, self.hash) = (last, hash);
        Batch { header, bytes }
    }

    fn hello(&self) -> Hello {
        Hello {
            gateway: gateway(),
            incarnation: self.life,
            protocol: 1,
            software: "test".into(),
            streams: vec![StreamHello {
                stream: self.stream.clone(),
                schema: StreamSchema::default(),
                last: self.last,
                hash: self.hash,
            }],
        }
    }
}

fn commit(r: &mut Receiver) -> (usize, Vec<Output>) {
    let group = r.take_group();
    (group.records.len(), r.committed())
}

fn acked(out: &[Output]) -> Vec<u64> {
    let acks = out.iter().filter_map(|o| match o {
        Output::Send(_, ToGateway::Acks(a)) => Some(a.iter().map(|a| a.last.0)),
        _ => None,
    });
    acks.flatten().collect()
}

fn refused(out: &[Output]) -> Option<&Refuse> {
    out.iter().find_map(|o| match o {
        Output::Send(_, ToGateway::Refuse(r)) => Some(r),
        _ => None,
    })
}

fn welcome_last(out: &[Output]) -> u64 {
    let last = out.iter().find_map(|o| match o {
        Output::Send(_, ToGateway::Welcome(w)) => Some(w.first().map_or(0, |s| s.last.0)),
        _ => None,
    });
    last.expect("a Welcome")
}

/// A receiver that has stored three blocks of a stream, the blocks, and the chain that made them.
fn stored() -> (Receiver, Vec<Batch>, Chain) {
    let mut chain = Chain::new("m", LIFE);
    let mut r = Receiver::new([]);
    r.hello(S1, &chain.hello(), vec![], 0);
    let blocks: Vec<Batch> = (0..3).map(|i| chain.block(10, i)).collect();
    for b in &blocks {
        assert!(r.batch(S1, b.clone(), 0).is_empty(), "nothing is acknowledged before it is stored");
    }
    let (records, out) = commit(&mut r);
    assert_eq!((records, acked(&out)), (3, vec![30]));
    (r, blocks, chain)
}

#[test]
fn a_repeat_is_acknowledged_again_and_not_stored() {
    let (mut r, blocks, _) = stored();
    for b in &blocks {
        assert_eq!(acked(&r.batch(S1, b.clone(), 0)), vec![30]);
    }
    assert_eq!(commit(&mut r).0, 0);
}

#[test]
fn a_repeat_of_what_is_not_yet_stored_waits_for_the_commit() {
    let (mut r, _, mut chain) = stored();
    let b = chain.block(5, 9);
    assert!(r.batch(S1, b.clone(), 0).is_empty());
    // The connection breaks, the gateway comes back and sends it again, all before the commit.
    let out = r.hello(S2, &chain.hello(), vec![], 0);
    assert!(out.contains(&Output::Superseded(S1, gateway())));
    assert_eq!(welcome_last(&out), 30, "only what is stored is welcomed");
    assert!(r.batch(S2, b, 0).is_empty());
    let (records, out) = commit(&mut r);
    assert_eq!((records, acked(&out)), (1, vec![35]));
    assert!(matches!(out[..], [Output::Send(S2, _)]), "the new session is told");
}

/// The session before may have been that of a clone.
#[test]
fn a_session_is_acknowledged_only_for_what_it_sent() {
    let (mut r, _, mut ours) = stored();
    let mut twin = Chain { stream: ours.stream.clone(), life: ours.life, last: ours.last, hash: ours.hash };
    r.batch(S1, ours.block(5, 1), 0);
    r.batch(S1, ours.block(5, 2), 0);
    let (theirs, _) = (twin.block(5, 3), twin.block(6, 4));
    r.hello(S2, &twin.hello(), vec![], 0);
    let (records, out) = commit(&mut r);
    assert_eq!((records, acked(&out)), (2, vec![]), "what the older session sent may be other rows");
    let out = r.batch(S2, theirs, 0);
    assert_eq!(refused(&out).map(|r| r.code), Some(RefuseCode::Quarantined));
    assert_eq!(acked(&out), [0; 0]);
}

#[test]
fn a_gap_is_refused_with_the_seq_expected() {
    let (mut r, _, mut chain) = stored();
    chain.block(5, 1);
    let out = r.batch(S1, chain.block(5, 2), 0);
    let refuse = refused(&out).expect("refused");
    assert_eq!((refuse.code, refuse.expected), (RefuseCode::Gap, Seq(31)));
    assert!(r.batch(S1, chain.block(5, 3), 0).is_empty(), "said once");
    assert_eq!(commit(&mut r).0, 0);
}

#[test]
fn the_same_seq_with_another_hash_is_quarantined() {
    for n in 1..=3 {
        let (mut r, ..) = stored();
        let mut clone = Chain::new("m", LIFE);
        let last = (0..n).map(|_| clone.block(10, 77)).next_back().expect("one");
        let out = r.batch(S1, last, 5);
        assert_eq!(refused(&out).expect("refused").code, RefuseCode::Quarantined, "block {n}");
        let group = r.take_group();
        assert_eq!((group.records.len(), group.strangers.len(), group.strangers[0].at_ns), (0, 1, 5));
    }
}

#[test]
fn other_cuts_of_the_same_seqs_are_quarantined() {
    for rows in [15, 35] {
        let (mut r, ..) = stored();
        let out = r.batch(S1, Chain::new("m", LIFE).block(rows, 0), 0);
        assert_eq!(refused(&out).expect("refused").code, RefuseCode::Quarantined, "{rows} rows");
    }
}

#[test]
fn a_broken_chain_is_named() {
    let (mut r, _, mut chain) = stored();
    let right = chain.hash;
    chain.hash = Digest::of(b"elsewhere");
    let out = r.batch(S1, chain.block(5, 1), 0);
    let message = &refused(&out).expect("refused").message;
    assert!(message.contains("chain breaks at seq 31"), "{message}");
    assert!(message.contains(&right.to_hex()) && message.contains(&Digest::of(b"elsewhere").to_hex()));
}

#[test]
fn bytes_that_are_not_those_of_the_hash_are_quarantined() {
    let (mut r, _, mut chain) = stored();
    let mut b = chain.block(5, 1);
    b.bytes = Bytes::from_static(b"other");
    let out = r.batch(S1, b, 0);
    assert!(refused(&out).expect("refused").message.contains("have the hash"));
}

#[test]
fn a_folder_restored_from_a_backup_is_refused_at_hello() {
    let (mut r, blocks, mut chain) = stored();
    (chain.last, chain.hash) = (blocks[1].header.last, blocks[1].header.hash);
    let out = r.hello(S2, &chain.hello(), vec![], 0);
    let refuse = refused(&out).expect("refused");
    assert_eq!((refuse.code, refuse.expected), (RefuseCode::Quarantined, Seq(31)));
    assert!(r.batch(S2, chain.block(10, 50), 0).is_empty());
    assert_eq!(commit(&mut r).0, 0);
}

#[test]
fn a_cloned_folder_is_refused_at_hello() {
    let (mut r, ..) = stored();
    let mut clone = Chain::new("m", LIFE);
    clone.block(30, 1);
    assert!(refused(&r.hello(S2, &clone.hello(), vec![], 0)).expect("refused").message.contains("cloned"));
}

#[test]
fn a_new_life_begins_at_one_and_the_old_one_cannot_come_back() {
    let (mut r, _, mut old) = stored();
    let mut new = Chain::new("m", Incarnation(8));
    let out = r.hello(S2, &new.hello(), vec![], 0);
    assert_eq!((welcome_last(&out), refused(&out)), (0, None));
    let out = r.batch(S2, new.block(4, 1), 0);
    assert!(matches!(out[..], [Output::Reborn(..)]));
    let group = r.take_group();
    let head = group.heads.values().next().expect("one");
    assert_eq!((head.last, head.rows, head.rows_before, head.retired.clone()), (Seq(4), 4, 30, vec![LIFE]));
    assert_eq!(acked(&r.committed()), vec![4]);

    old.block(5, 1);
    let out = r.hello(SessionId(3), &old.hello(), vec![], 0);
    assert!(refused(&out).expect("refused").message.contains("was replaced"));
    // A new life that does not begin at its beginning has lost rows.
    let mut third = Chain::new("m", Incarnation(9));
    third.block(3, 1);
    r.hello(SessionId(4), &third.hello(), vec![], 0);
    let out = r.batch(SessionId(4), third.block(3, 1), 0);
    assert_eq!(refused(&out).map(|r| (r.code, r.expected)), Some((RefuseCode::Gap, Seq(1))));
}

#[test]
fn a_receiver_goes_on_from_what_is_stored() {
    let (mut r, blocks, mut chain) = stored();
    let next = chain.block(5, 1);
    r.batch(S1, next.clone(), 0);
    let head = r.take_group().heads.into_values().next();
    // The outcome of that commit is unknown: a new receiver knows what is stored, whichever it was.
    for (stored, expect_records) in [(head, 0), (None, 1)] {
        let head = stored.or_else(|| {
            let h = &blocks[2].header;
            Some(Head {
                incarnation: LIFE,
                last: h.last,
                hash: h.hash,
                rows: 30,
                lost: 0,
                rows_before: 0,
                retired: vec![],
            })
        });
        let mut r = Receiver::new([Known { gateway: gateway(), stream: stream("m"), head, loss: None }]);
        r.hello(S2, &chain.hello(), vec![], 0);
        let out = r.batch(S2, next.clone(), 0);
        let (records, more) = commit(&mut r);
        assert_eq!((records, acked(&out).len() + acked(&more).len()), (expect_records, 1));
        // Older than what is remembered: acknowledged, not judged.
        assert_eq!(acked(&r.batch(S2, blocks[0].clone(), 0)), vec![35]);
    }
}

#[test]
fn declared_losses_carry_the_chain_on() {
    let (mut r, _, mut chain) = stored();
    let gone = chain.block(5, 1);
    let lost = Lost {
        stream: stream("m"),
        first: gone.header.first,
        last: gone.header.last,
        hash: gone.header.hash,
        reason: "damaged".into(),
    };
    assert!(r.lost(S1, &lost).is_empty());
    r.batch(S1, chain.block(5, 2), 0);
    let group = r.take_group();
    let head = group.heads.values().next().expect("one");
    assert_eq!((head.last, head.rows, head.lost), (Seq(40), 35, 5));
    assert_eq!(acked(&r.committed()), vec![40]);
    assert_eq!(acked(&r.lost(S1, &lost)), vec![40], "told twice, counted once");
    let far = Lost { first: Seq(60), last: Seq(70), ..lost };
    assert_eq!(refused(&r.lost(S1, &far)).map(|r| r.code), Some(RefuseCode::Gap));
}

#[test]
fn loss_entries_are_taken_once() {
    let (mut r, _, chain) = stored();
    let loss = |(ordinal, rows)| Loss {
        ordinal,
        first: Seq(0),
        last: Seq(0),
        first_time_ns: 0,
        last_time_ns: 0,
        rows,
        reason: "full".into(),
    };
    let ledger = |entries: &[(u64, u64)]| {
        let losses = entries.iter().map(|entry| loss(*entry)).collect();
        vec![StreamLedger { stream: stream("m"), counts: Counts::default(), as_of: Seq(30), losses }]
    };
    let heard = |r: &mut Receiver| {
        let group = r.take_group();
        let heard = group.ledgers.values().next().expect("one");
        heard.ledger.losses.iter().map(|l| (l.ordinal, l.rows)).collect::<Vec<_>>()
    };
    r.ledger(S1, ledger(&[(1, 1), (2, 1)]), 0);
    // An entry may have grown by the time that it is told again, until a newer one follows it.
    r.ledger(S1, ledger(&[(1, 9), (2, 5), (3, 1)]), 0);
    assert_eq!(heard(&mut r), vec![(1, 1), (2, 5), (3, 1)]);
    r.committed();
    r.ledger(S1, ledger(&[(3, 2)]), 0);
    assert_eq!(heard(&mut r), vec![(3, 2)]);
    r.committed();
    let out = r.hello(S2, &chain.hello(), vec![], 0);
    let Some(Output::Send(_, ToGateway::Welcome(w))) = out.iter().find(|o| matches!(o, Output::Send(..)))
    else {
        panic!("a Welcome");
    };
    assert_eq!(w[0].loss_ordinal, 3);
}

// ---- the gateway's end

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
