//! Each way of losing or doubling a row is found and named; a sound installation is balanced.

use super::*;
use crate::log::{ContentType, Counted, Head, LossEntry, Offset, Partition, RecordHeaders};
use record::{Digest, Seq};

const P: Partition = Partition(0);

fn key() -> TallyKey {
    TallyKey {
        gateway: GatewayId::new("plant-7").expect("valid"),
        stream: StreamName::new("machine").expect("valid"),
        incarnation: Incarnation(1),
    }
}

fn headers(first: u64, last: u64) -> RecordHeaders {
    let hash = |n: u64| if n == 0 { Digest::default() } else { Digest::of(&n.to_le_bytes()) };
    RecordHeaders {
        content_type: ContentType::ArrowStream,
        stream: key().stream,
        schema: 1,
        gateway: key().gateway,
        incarnation: Incarnation(1),
        first_seq: Seq(first),
        last_seq: Seq(last),
        rows: u32::try_from(last + 1 - first).expect("small"),
        prev_hash: hash(first - 1),
        hash: hash(last),
        produced_at_ns: 0,
    }
}

fn scan(blocks: &[RecordHeaders]) -> Scan {
    let mut s = Scan::default();
    for (i, h) in blocks.iter().enumerate() {
        feed(&mut s, i as u64, h);
    }
    s
}

/// Counts a record whose bytes are what its header says.
fn feed(scan: &mut Scan, offset: u64, h: &RecordHeaders) {
    scan.feed(P, Offset(offset), h, h.hash);
}

/// Three blocks of ten rows; the sink has committed two of them.
fn sound() -> Evidence {
    let blocks = [headers(1, 10), headers(11, 20), headers(21, 30)];
    let head = Head {
        incarnation: Incarnation(1),
        last: Seq(30),
        hash: blocks[2].hash,
        rows: 30,
        lost: 0,
        rows_before: 0,
        retired: Vec::new(),
    };
    let counts =
        Counts { received: 50, repeats: 3, kept: 35, filtered: 12, produced: 35, ..Counts::default() };
    let counted = Counted {
        incarnation: Incarnation(1),
        counts,
        earlier: Counts::default(),
        as_of: Seq(35),
        heard_at_ns: 0,
        losses: Vec::new(),
    };
    let stream = StreamState { head: Some(head), counted: Some(counted), ..StreamState::default() };
    let gateway =
        GatewayState { streams: BTreeMap::from([(key().stream, stream)]), ..GatewayState::default() };
    Evidence {
        gateways: BTreeMap::from([(key().gateway, gateway)]),
        committed: scan(&blocks[..2]),
        whole: scan(&blocks),
        tables: BTreeMap::from([(key(), TableRows { rows: 20, unique: 20, first_seq: 1, last_seq: 20 })]),
        totals: BTreeMap::from([(("plant-7".to_owned(), key().stream), 20)]),
        ..Evidence::default()
    }
}

fn stream(e: &mut Evidence) -> &mut StreamState {
    let g = e.gateways.get_mut(&key().gateway).expect("there");
    g.streams.get_mut(&key().stream).expect("there")
}

fn table(e: &mut Evidence) -> &mut TableRows {
    e.tables.get_mut(&key()).expect("there")
}

fn expect(e: &Evidence, lost: u64, duplicated: u64, problem: &str) {
    let r = judge(e);
    assert!(!r.balanced);
    assert_eq!((r.lost, r.duplicated), (lost, duplicated), "{:?}", r.problems);
    assert!(r.problems.iter().any(|p| p.contains(problem)), "{problem} is not among {:?}", r.problems);
}

#[test]
fn a_sound_installation_is_balanced() {
    let r = judge(&sound());
    assert!(r.balanced, "{:?}", r.problems);
    assert_eq!((r.in_flight, r.buffered, r.lost, r.duplicated), (10, 5, 0, 0));
    let s = &r.gateways[0].streams[0];
    assert_eq!((s.log_rows, s.table_rows, s.last_seq, s.as_of), (20, 20, Some(30), Some(35)));
    assert_eq!(Scan::decode(&sound().whole.encode()), Ok(sound().whole));
}

#[test]
fn rows_missing_or_doubled_in_the_table() {
    let mut e = sound();
    *table(&mut e) = TableRows { rows: 19, unique: 19, first_seq: 1, last_seq: 20 };
    expect(&e, 1, 0, "1 rows of the log are not in the table");
    let mut e = sound();
    table(&mut e).rows = 22;
    expect(&e, 0, 2, "2 rows stand twice in the table");
    let mut e = sound();
    table(&mut e).last_seq = 21;
    expect(&e, 0, 0, "the table holds seqs 1 to 21, the log 1 to 20");
    let mut e = sound();
    e.totals.insert(("plant-7".to_owned(), key().stream), 21);
    expect(&e, 0, 0, "1 rows of the table belong to no record");
    let mut e = sound();
    e.tables.clear();
    e.totals.clear();
    expect(&e, 20, 0, "20 rows of the log");
}

#[test]
fn gaps_breaks_and_repeats_in_the_log() {
    let mut e = sound();
    e.whole = scan(&[headers(1, 10), headers(13, 20), headers(21, 30)]);
    expect(&e, 2, 0, "seqs 11 to 12 are missing before offset 1 of partition 0");
    stream(&mut e).head.as_mut().expect("there").lost = 2;
    stream(&mut e).head.as_mut().expect("there").rows = 28;
    assert_eq!(judge(&e).lost, 0, "a declared loss is no loss unexplained");
    let mut e = sound();
    e.whole = scan(&[
        headers(1, 10),
        RecordHeaders { prev_hash: Digest::of(b"other"), ..headers(11, 20) },
        headers(21, 30),
    ]);
    expect(&e, 0, 0, "the hash chain is broken: the block of seqs 11 to 20 at offset 1");
    let mut e = sound();
    e.whole = scan(&[headers(1, 10), headers(11, 20), headers(11, 20), headers(21, 30)]);
    expect(&e, 0, 10, "10 seqs stand twice in the log: seq 11 stands again at offset 2");
}

#[test]
fn what_was_acknowledged_must_be_there() {
    let mut e = sound();
    stream(&mut e).head.as_mut().expect("there").last = Seq(33);
    stream(&mut e).head.as_mut().expect("there").rows = 33;
    expect(&e, 3, 0, "3 acknowledged seqs are not in the log: the log ends at seq 30");
    let mut e = sound();
    stream(&mut e).head.as_mut().expect("there").hash = Digest::of(b"other");
    expect(&e, 0, 0, "the chain ends in");
    let mut e = sound();
    stream(&mut e).head.as_mut().expect("there").rows = 29;
    expect(&e, 0, 0, "acknowledged up to seq 30, but 29 rows stored");
}

#[test]
fn the_gateways_own_equation() {
    let mut e = sound();
    stream(&mut e).counted.as_mut().expect("there").counts.filtered -= 2;
    expect(&e, 2, 0, "2 rows received by the gateway are unaccounted for");
    let mut e = sound();
    stream(&mut e).counted.as_mut().expect("there").counts.filtered += 2;
    expect(&e, 0, 0, "accounted for too often");
    let mut e = sound();
    stream(&mut e).counted.as_mut().expect("there").as_of = Seq(34);
    expect(&e, 0, 0, "produced 35 rows and stands at seq 34");
    let mut e = sound();
    let c = &mut stream(&mut e).counted.as_mut().expect("there").counts;
    (c.filtered, c.dead_lettered) = (11, 1);
    expect(&e, 0, 0, "its streams counted 1 dead letters, 0 were written");
    let mut e = sound();
    let damage = LossEntry {
        ordinal: 1,
        first_seq: Seq(0),
        last_seq: Seq(0),
        first_time_ns: 1,
        last_time_ns: 2,
        rows: 0,
        reason: "input frames were damaged".to_owned(),
    };
    stream(&mut e).counted.as_mut().expect("there").losses.push(damage);
    expect(&e, 0, 0, "input frames were damaged");
}

#[test]
fn a_loss_that_no_policy_explains_is_damage() {
    let lost = |policy: &[u64]| {
        let mut e = sound();
        e.whole = scan(&[headers(1, 10), headers(13, 20), headers(21, 30)]);
        let s = stream(&mut e);
        let head = s.head.as_mut().expect("there");
        (head.rows, head.lost) = (28, 2);
        let c = s.counted.as_mut().expect("there");
        (c.as_of, c.counts.produced) = (Seq(30), 30);
        c.losses.extend(policy.iter().map(|rows| LossEntry {
            ordinal: 1,
            first_seq: Seq(11),
            last_seq: Seq(12),
            first_time_ns: 1,
            last_time_ns: 2,
            rows: *rows,
            reason: "buffer full: drop-oldest".to_owned(),
        }));
        e
    };
    expect(&lost(&[]), 2, 0, "declared 2 rows lost that its policy did not give up");
    expect(&lost(&[1]), 1, 0, "declared 1 rows lost that its policy did not give up");
    let r = judge(&lost(&[2]));
    assert!(!r.problems.iter().any(|p| p.contains("policy")) && r.dropped >= 2, "{:?}", r.problems);
    let mut behind = lost(&[]);
    stream(&mut behind).counted.as_mut().expect("there").as_of = Seq(35);
    assert!(!judge(&behind).problems.iter().any(|p| p.contains("policy")), "its ledger may be on its way");
}

#[test]
fn a_log_that_has_changed_since_it_was_counted() {
    let again = |blocks: &[(u64, RecordHeaders)], from: u64, changed: Option<u64>| {
        let mut e = sound();
        let mut s = Scan::default();
        s.skip_to(P, Offset(from));
        for (offset, h) in blocks {
            let found = if changed == Some(*offset) { Digest::of(b"flipped") } else { h.hash };
            s.feed(P, Offset(*offset), h, found);
        }
        e.again = Some(Again { scan: s, from: Positions::from([(0, from)]), ..Again::default() });
        e
    };
    let (one, two, three) = (headers(1, 10), headers(11, 20), headers(21, 30));
    let all = [(0, one.clone()), (1, two.clone()), (2, three.clone())];
    assert!(judge(&again(&all, 0, None)).balanced);
    assert!(judge(&again(&all[1..], 1, None)).balanced, "what was trimmed is not missed");
    let changed = "the log has changed since it was counted: the block of seqs 11 to 20 at offset 1 of partition 0 has the hash";
    expect(&again(&all, 0, Some(1)), 0, 0, changed);
    expect(
        &again(&[all[0].clone(), all[2].clone()], 0, None),
        0,
        0,
        "10 seqs of the log cannot be read any more: seqs 11 to 20",
    );
    expect(&again(&all[1..], 0, None), 0, 0, "seqs 1 to 10 of the log cannot be read any more");
    expect(&again(&all[..2], 0, None), 0, 0, "seqs 21 to 30 of the log cannot be read any more");
    expect(&again(&[], 0, None), 0, 0, "none of its records in the log can be read any more");
    let mut altered = again(&all, 0, None);
    let place = |offset: u64| Altered { key: key(), place: format!("column \"a\" at offset {offset}") };
    altered.again.as_mut().expect("there").altered = vec![place(1), place(2)];
    let said = "2 records have other values in the table than in the log, first column \"a\" at offset 1";
    expect(&altered, 0, 0, said);
    let mut cut = again(&all[..2], 0, None);
    cut.again.as_mut().expect("there").is_cut = true;
    assert!(judge(&cut).balanced, "what there was no time for is not missed");
    // A block whose bytes are wrong when they are first read breaks the chain for good.
    let mut e = sound();
    e.whole = Scan::default();
    for (offset, h) in &all {
        let found = if *offset == 1 { Digest::of(b"flipped") } else { h.hash };
        e.whole.feed(P, Offset(*offset), h, found);
    }
    expect(
        &e,
        0,
        0,
        "the hash chain is broken: the block of seqs 11 to 20 at offset 1 of partition 0 has the hash",
    );
}

#[test]
fn views_that_differ_or_double_are_named() {
    let view = |problem: Option<&str>| View {
        view: "tidegate.v".into(),
        stream: "machine".into(),
        source: "tidegate.machine".into(),
        target: "tidegate.t".into(),
        engine: "MergeTree".into(),
        window: 10_000,
        problem: problem.map(str::to_owned),
        select: String::new(),
        into: None,
    };
    let mut e = sound();
    e.views.push(ViewRows { view: view(Some("it is a Memory")), differences: Err("no columns".into()) });
    let r = judge(&e);
    assert!(r.balanced, "that rows may double is no rows doubled: {:?}", r.problems);
    assert_eq!(r.unsafe_tables, ["view tidegate.v of stream machine: it is a Memory"]);
    assert_eq!((r.views[0].safe, r.views[0].not_compared.as_deref()), (false, Some("no columns")));
    let d = |offset, held, given| Difference { partition: 1, offset, held, given };
    e.views.push(ViewRows { view: view(None), differences: Ok(vec![d(5, 1, 3), d(7, 6, 3), d(9, 2, 2)]) });
    expect(
        &e,
        0,
        0,
        "view tidegate.v of stream machine: 3 rows are missing and 4 too many, first at offset 5 of partition 1",
    );
}

#[test]
fn a_second_life_and_a_late_auditor() {
    let mut e = sound();
    let second = TallyKey { incarnation: Incarnation(2), ..key() };
    let late = RecordHeaders { incarnation: Incarnation(2), ..headers(1, 5) };
    feed(&mut e.committed, 3, &late);
    feed(&mut e.whole, 3, &late);
    e.tables.insert(second, TableRows { rows: 5, unique: 5, first_seq: 1, last_seq: 5 });
    e.totals.insert(("plant-7".to_owned(), key().stream), 25);
    let r = judge(&e);
    assert!(r.balanced, "{:?}", r.problems);
    assert_eq!(r.gateways[0].streams.len(), 2);
    stream(&mut e).head.as_mut().expect("there").rows_before = 6;
    expect(&e, 1, 0, "6 rows of earlier incarnations were stored, the log held 5");

    let mut e = sound();
    let mut s = Scan::default();
    s.skip_to(P, Offset(1));
    feed(&mut s, 1, &headers(11, 20));
    e.committed = s.clone();
    feed(&mut s, 2, &headers(21, 30));
    e.whole = s;
    *table(&mut e) = TableRows { rows: 10, unique: 10, first_seq: 11, last_seq: 20 };
    let r = judge(&e);
    assert!(r.balanced, "{:?}", r.problems);
    assert!(r.notes[0].contains("10 rows are older"), "{:?}", r.notes);
}

/// The log is trimmed faster than it is counted: what was not counted is not called lost, what is lost behind it is.
#[test]
fn records_that_were_trimmed_uncounted_are_not_lost() {
    let mut e = sound();
    let mut s = scan(&[headers(1, 10)]);
    s.skip_to(P, Offset(2));
    // Nothing came after the cut yet.
    (e.committed, e.whole) = (s.clone(), s.clone());
    *table(&mut e) = TableRows { rows: 10, unique: 10, first_seq: 1, last_seq: 10 };
    let r = judge(&e);
    assert!(r.balanced, "{:?}", r.problems);
    assert!(r.notes[0].contains("10 rows are older"), "{:?}", r.notes);

    // The tally begins anew behind the cut, also when it was stored in between.
    let mut s = Scan::decode(&s.encode()).expect("just encoded");
    feed(&mut s, 2, &headers(21, 30));
    (e.committed, e.whole) = (s.clone(), s.clone());
    *table(&mut e) = TableRows { rows: 10, unique: 10, first_seq: 21, last_seq: 30 };
    let r = judge(&e);
    assert!(r.balanced, "{:?}", r.problems);

    // From there on a loss is a loss.
    feed(&mut s, 4, &headers(41, 50));
    e.whole = s;
    let head = stream(&mut e).head.as_mut().expect("there");
    (head.last, head.rows, head.hash) = (Seq(50), 50, headers(41, 50).hash);
    expect(&e, 10, 0, "10 acknowledged seqs are not in the log: seqs 31 to 40 are missing");
}

/// Everything of a stream was trimmed before the first audit.
#[test]
fn a_stream_that_was_never_counted_is_not_lost() {
    let mut e = sound();
    let mut s = Scan::default();
    s.skip_to(P, Offset(3));
    (e.committed, e.whole) = (s.clone(), s);
    e.tables.clear();
    let r = judge(&e);
    assert!(r.balanced, "{:?}", r.problems);
    assert!(r.notes[0].contains("20 rows are older"), "{:?}", r.notes);
}
