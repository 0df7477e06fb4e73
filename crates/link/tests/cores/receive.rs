//! Central's end: each row of the table of verdicts, each way a session can go wrong.

use crate::{Chain, LIFE, S1, S2, batch, gateway, stream};
use bytes::Bytes;
use link::{
    message::{Batch, Loss, Lost, Refuse, RefuseCode, StreamLedger, ToGateway},
    receive::{Head, Known, Output, Receiver, SessionId},
};
use record::{Counts, Digest, Incarnation, Seq};

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
        assert!(batch(&mut r, S1, b.clone(), 0).is_empty(), "nothing is acknowledged before it is stored");
    }
    let (records, out) = commit(&mut r);
    assert_eq!((records, acked(&out)), (3, vec![30]));
    (r, blocks, chain)
}

#[test]
fn a_repeat_is_acknowledged_again_and_not_stored() {
    let (mut r, blocks, _) = stored();
    for b in &blocks {
        assert_eq!(acked(&batch(&mut r, S1, b.clone(), 0)), vec![30]);
    }
    assert_eq!(commit(&mut r).0, 0);
}

#[test]
fn a_repeat_of_what_is_not_yet_stored_waits_for_the_commit() {
    let (mut r, _, mut chain) = stored();
    let b = chain.block(5, 9);
    assert!(batch(&mut r, S1, b.clone(), 0).is_empty());
    // The connection breaks, the gateway comes back and sends it again, all before the commit.
    let out = r.hello(S2, &chain.hello(), vec![], 0);
    assert!(out.contains(&Output::Superseded(S1, gateway())));
    assert_eq!(welcome_last(&out), 30, "only what is stored is welcomed");
    assert!(batch(&mut r, S2, b, 0).is_empty());
    let (records, out) = commit(&mut r);
    assert_eq!((records, acked(&out)), (1, vec![35]));
    assert!(matches!(out[..], [Output::Send(S2, _)]), "the new session is told");
}

/// The session before may have been that of a clone.
#[test]
fn a_session_is_acknowledged_only_for_what_it_sent() {
    let (mut r, _, mut ours) = stored();
    let mut twin = Chain { stream: ours.stream.clone(), life: ours.life, last: ours.last, hash: ours.hash };
    batch(&mut r, S1, ours.block(5, 1), 0);
    batch(&mut r, S1, ours.block(5, 2), 0);
    let (theirs, _) = (twin.block(5, 3), twin.block(6, 4));
    r.hello(S2, &twin.hello(), vec![], 0);
    let (records, out) = commit(&mut r);
    assert_eq!((records, acked(&out)), (2, vec![]), "what the older session sent may be other rows");
    let out = batch(&mut r, S2, theirs, 0);
    assert_eq!(refused(&out).map(|r| r.code), Some(RefuseCode::Quarantined));
    assert_eq!(acked(&out), [0; 0]);
}

#[test]
fn a_gap_is_refused_with_the_seq_expected() {
    let (mut r, _, mut chain) = stored();
    chain.block(5, 1);
    let out = batch(&mut r, S1, chain.block(5, 2), 0);
    let refuse = refused(&out).expect("refused");
    assert_eq!((refuse.code, refuse.expected), (RefuseCode::Gap, Seq(31)));
    assert!(batch(&mut r, S1, chain.block(5, 3), 0).is_empty(), "said once");
    assert_eq!(commit(&mut r).0, 0);
}

#[test]
fn the_same_seq_with_another_hash_is_quarantined() {
    for n in 1..=3 {
        let (mut r, ..) = stored();
        let mut clone = Chain::new("m", LIFE);
        let last = (0..n).map(|_| clone.block(10, 77)).next_back().expect("one");
        let out = batch(&mut r, S1, last, 5);
        assert_eq!(refused(&out).expect("refused").code, RefuseCode::Quarantined, "block {n}");
        let group = r.take_group();
        assert_eq!((group.records.len(), group.strangers.len(), group.strangers[0].at_ns), (0, 1, 5));
    }
}

#[test]
fn other_cuts_of_the_same_seqs_are_quarantined() {
    for rows in [15, 35] {
        let (mut r, ..) = stored();
        let out = batch(&mut r, S1, Chain::new("m", LIFE).block(rows, 0), 0);
        assert_eq!(refused(&out).expect("refused").code, RefuseCode::Quarantined, "{rows} rows");
    }
}

#[test]
fn a_broken_chain_is_named() {
    let (mut r, _, mut chain) = stored();
    let right = chain.hash;
    chain.hash = Digest::of(b"elsewhere");
    let out = batch(&mut r, S1, chain.block(5, 1), 0);
    let message = &refused(&out).expect("refused").message;
    assert!(message.contains("chain breaks at seq 31"), "{message}");
    assert!(message.contains(&right.to_hex()) && message.contains(&Digest::of(b"elsewhere").to_hex()));
}

#[test]
fn bytes_that_are_not_those_of_the_hash_are_quarantined() {
    let (mut r, _, mut chain) = stored();
    let mut b = chain.block(5, 1);
    b.bytes = Bytes::from_static(b"other");
    let out = batch(&mut r, S1, b, 0);
    assert!(refused(&out).expect("refused").message.contains("have the hash"));
}

#[test]
fn a_folder_restored_from_a_backup_is_refused_at_hello() {
    let (mut r, blocks, mut chain) = stored();
    (chain.last, chain.hash) = (blocks[1].header.last, blocks[1].header.hash);
    let out = r.hello(S2, &chain.hello(), vec![], 0);
    let refuse = refused(&out).expect("refused");
    assert_eq!((refuse.code, refuse.expected), (RefuseCode::Quarantined, Seq(31)));
    assert!(batch(&mut r, S2, chain.block(10, 50), 0).is_empty());
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
    let out = batch(&mut r, S2, new.block(4, 1), 0);
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
    let out = batch(&mut r, SessionId(4), third.block(3, 1), 0);
    assert_eq!(refused(&out).map(|r| (r.code, r.expected)), Some((RefuseCode::Gap, Seq(1))));
}

#[test]
fn a_receiver_goes_on_from_what_is_stored() {
    let (mut r, blocks, mut chain) = stored();
    let next = chain.block(5, 1);
    batch(&mut r, S1, next.clone(), 0);
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
        let out = batch(&mut r, S2, next.clone(), 0);
        let (records, more) = commit(&mut r);
        assert_eq!((records, acked(&out).len() + acked(&more).len()), (expect_records, 1));
        // Older than what is remembered: acknowledged, not judged.
        assert_eq!(acked(&batch(&mut r, S2, blocks[0].clone(), 0)), vec![35]);
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
    batch(&mut r, S1, chain.block(5, 2), 0);
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
