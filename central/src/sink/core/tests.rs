use super::*;
use crate::log::Partition;
use record::{
    Digest, Seq,
    clock::{Random, SeededRandom},
};

const MS: u64 = 1_000_000;
const PACE: Pace = Pace {
    rows_max: 50,
    bytes_max: 10_000,
    linger_ns: 100 * MS,
    quiet_ns: 5_000 * MS,
    sure_ns: 20_000 * MS,
    tokens: 5,
    backoff_min_ns: 10 * MS,
    backoff_max_ns: 1_000 * MS,
};

fn item(offset: u64) -> Item {
    let stream = ["raw", "hot", "sums"][offset as usize % 3];
    Item {
        offset: Offset(offset),
        stream: StreamName::new(stream).expect("valid"),
        rows: 1 + (offset % 7) as u32,
        first_seq: Seq(offset * 10),
        last_seq: Seq(offset * 10 + offset % 7),
        bytes: 100 + offset as usize % 50,
        hash: Digest::of(&offset.to_le_bytes()),
    }
}

fn step(lane: &mut Lane, now: u64, high: Offset) -> Step {
    lane.step(now, now / 1_000_000_000, high)
}

/// An insert into one table.
#[derive(Debug, Clone)]
struct Request {
    token: String,
    table: StreamName,
    offsets: Vec<Offset>,
}

/// A log, a store of offsets, and a ClickHouse that forgets, doubts and delays.
struct World {
    now: u64,
    records: Vec<Item>,
    committed: Option<Committed>,
    /// Times each offset stands in its table.
    rows: BTreeMap<Offset, u64>,
    tokens: BTreeSet<String>,
    /// Inserts whose client has given up and that the server carries out later.
    late: Vec<(u64, Request)>,
    random: SeededRandom,
    faults: bool,
    events: Vec<Event>,
}

impl World {
    fn new(seed: u64, records: u64) -> Self {
        // Offsets have gaps, as after aborted transactions.
        let records = (0..records).map(|n| item(n + n / 5)).collect();
        Self {
            now: 1,
            records,
            committed: None,
            rows: BTreeMap::new(),
            tokens: BTreeSet::new(),
            late: Vec::new(),
            random: SeededRandom::new(seed),
            faults: true,
            events: Vec::new(),
        }
    }

    fn below(&self, n: u64) -> u64 {
        self.random.next_u64() % n
    }

    fn fault(&self, one_in: u64) -> bool {
        self.faults && self.below(one_in) == 0
    }

    /// The log grows with time.
    fn high(&self) -> Offset {
        let there = (self.now / (20 * MS)) as usize + 3;
        let last = &self.records[there.min(self.records.len()) - 1];
        // Now and then the log ends in a gap.
        Offset(last.offset.0 + 1 + u64::from(there.is_multiple_of(11)))
    }

    fn apply(&mut self, request: &Request) {
        if self.tokens.insert(format!("{} {}", request.table, request.token)) {
            for offset in &request.offsets {
                *self.rows.entry(*offset).or_default() += 1;
            }
        }
    }

    fn pass_time(&mut self, to: u64) {
        self.now = to;
        let due: Vec<Request> =
            self.late.iter().filter(|(at, _)| *at <= to).map(|(_, r)| r.clone()).collect();
        self.late.retain(|(at, _)| *at > to);
        for request in due {
            self.apply(&request);
        }
    }

    fn insert(&mut self, request: &Request) -> Answer {
        let doubt = |ended| Answer::Doubt { ended, reason: "fault".into() };
        if !self.fault(4) {
            self.apply(request);
            return Answer::Done;
        }
        match self.below(5) {
            0 => doubt(true),
            1 => {
                self.apply(request);
                doubt(true)
            }
            2 => {
                self.apply(request);
                doubt(false)
            }
            3 => {
                let at = self.now + self.below(PACE.quiet_ns);
                self.late.push((at, request.clone()));
                doubt(false)
            }
            // The server remembers the token, but the part is gone.
            _ => {
                self.tokens.insert(format!("{} {}", request.table, request.token));
                doubt(true)
            }
        }
    }

    fn commit(&mut self, offset: Offset, metadata: String) -> Result<(), String> {
        let unknown = self.fault(12);
        if !unknown || self.below(2) == 0 {
            let before = self.committed.as_ref().map_or(Offset(0), |c| c.offset);
            assert!(before <= offset, "the offset goes back from {before} to {offset}");
            self.committed = Some(Committed { offset, metadata });
        }
        if unknown { Err("unknown".into()) } else { Ok(()) }
    }

    fn turn(&mut self, lane: &mut Lane) {
        let unread = |w: &Self| if w.fault(30) { Some("unreadable".to_owned()) } else { None };
        self.pass_time(self.now + 1 + self.below(5 * MS));
        let high = self.high();
        match step(lane, self.now, high) {
            Step::Start => {
                let max = self.rows.keys().max().copied();
                let answer = unread(self).map_or(Ok((self.committed.clone(), max)), Err);
                lane.on_start(self.now, answer);
            }
            Step::Read(from) => {
                let mut items: Vec<Item> =
                    self.records.iter().filter(|i| i.offset >= from && i.offset < high).cloned().collect();
                items.truncate(1 + self.below(9) as usize);
                lane.on_read(self.now, unread(self).map_or(Ok(items), Err));
            }
            Step::ReadRange(from, to) => {
                let items =
                    self.records.iter().filter(|i| i.offset >= from && i.offset < to).cloned().collect();
                lane.on_range(self.now, unread(self).map_or(Ok(items), Err));
            }
            Step::Commit(offset, metadata) => {
                let answer = self.commit(offset, metadata);
                lane.on_commit(self.now, answer);
            }
            Step::Insert(intent, offsets) => {
                let stored = self.committed.clone().expect("an intent is stored");
                assert_eq!(
                    stored,
                    Committed { offset: intent.from, metadata: intent.encode() },
                    "no insert without its intent"
                );
                let mut tables: BTreeMap<StreamName, Vec<Offset>> = BTreeMap::new();
                for offset in offsets {
                    let item = self.records.iter().find(|i| i.offset == offset).expect("a record");
                    tables.entry(item.stream.clone()).or_default().push(offset);
                }
                let mut answers = Vec::new();
                for (table, offsets) in tables {
                    let token = intent.token(Partition(0), table.as_str(), 0);
                    let answer = self.insert(&Request { token, table: table.clone(), offsets });
                    answers.push((table, answer));
                }
                lane.on_insert(self.now, answers);
            }
            Step::ReadBack(intent) => {
                let found = self.rows.range(intent.from..intent.to).map(|(offset, times)| {
                    let i = self.records.iter().find(|i| i.offset == *offset).expect("a record");
                    let rows = times * u64::from(i.rows);
                    (
                        *offset,
                        Found { rows, first_seq: i.first_seq.0, last_seq: i.last_seq.0, ..Found::default() },
                    )
                });
                let tables = Tables { found: found.collect(), newer: BTreeMap::new() };
                lane.on_read_back(self.now, unread(self).map_or(Ok(tables), Err));
            }
            Step::Wait(until) => self.pass_time(until.unwrap_or(self.now + 20 * MS)),
            Step::Sleep(until) => self.pass_time(until),
        }
        self.events.extend(lane.take_events());
    }

    fn assert_exactly_once(&self, seed: u64) {
        for record in &self.records {
            let times = self.rows.get(&record.offset).copied().unwrap_or_default();
            assert_eq!(times, 1, "seed {seed}: offset {} is there {times} times", record.offset);
        }
    }
}

#[test]
fn each_record_is_there_once_whatever_is_cut_off() {
    let mut renamed = 0;
    for seed in 0..1_500 {
        let mut world = World::new(seed, 80);
        let mut lane = Lane::new("l", PACE);
        for turn in 0..4_000 {
            world.turn(&mut lane);
            if world.fault(25) {
                lane = Lane::new("l", PACE);
            }
            // The second half of the run is calm, so that it can end.
            world.faults &= turn < 600;
            let done = world.committed.as_ref().is_some_and(|c| c.offset > world.records[79].offset);
            if done && !world.faults && world.late.is_empty() {
                break;
            }
        }
        world.assert_exactly_once(seed);
        let halted = world.events.iter().find(|e| matches!(e, Event::Halted(_)));
        assert_eq!(halted, None, "seed {seed}");
        renamed += world.events.iter().filter(|e| matches!(e, Event::Renamed(_))).count();
    }
    // The rarest path was walked, not only the easy ones.
    assert!(renamed > 100, "{renamed} renamed ranges");
}

/// A calm world and a lane that has just stored an intent for records 0.. and is about to insert.
fn about_to_insert() -> (World, Lane, Intent, Vec<Offset>) {
    let mut world = World::new(1, 40);
    world.faults = false;
    let mut lane = Lane::new("l", PACE);
    loop {
        world.now += 30 * MS;
        if let Step::Insert(intent, offsets) = step(&mut lane, world.now, world.high()) {
            return (world, lane, intent, offsets);
        }
        world.turn(&mut lane);
    }
}

#[test]
fn a_duplicate_answer_is_no_proof() {
    let (mut world, mut lane, intent, offsets) = about_to_insert();
    // The server keeps every token and loses every part.
    let tables: BTreeSet<StreamName> = offsets.iter().map(|o| item(o.0).stream).collect();
    for table in &tables {
        world.tokens.insert(format!("{table} {}", intent.token(Partition(0), table.as_str(), 0)));
    }
    let answers = |a: Answer| tables.iter().map(|t| (t.clone(), a.clone())).collect::<Vec<_>>();
    lane.on_insert(world.now, answers(Answer::Doubt { ended: true, reason: "500".into() }));
    for _ in 0..200 {
        world.turn(&mut lane);
    }
    let renamed: Vec<&Event> = world.events.iter().filter(|e| matches!(e, Event::Renamed(_))).collect();
    assert!(matches!(renamed[..], [Event::Renamed(i)] if i.generation == 1 && i.from == intent.from));
    assert!(offsets.iter().all(|o| world.rows.get(o) == Some(&1)));
}

#[test]
fn a_new_name_waits_for_the_old_one() {
    let (mut world, mut lane, intent, offsets) = about_to_insert();
    let begun = world.now;
    // One table's insert is clearly answered but its part is lost, another one's insert is still at work.
    let tables: BTreeSet<StreamName> = offsets.iter().map(|o| item(o.0).stream).collect();
    let lost = tables.first().expect("a table").clone();
    world.tokens.insert(format!("{lost} {}", intent.token(Partition(0), lost.as_str(), 0)));
    let answers = tables.iter().map(|t| {
        let answer =
            if *t == lost { Answer::Done } else { Answer::Doubt { ended: false, reason: "time-out".into() } };
        (t.clone(), answer)
    });
    lane.on_insert(world.now, answers.collect());
    for table in tables.iter().filter(|t| **t != lost) {
        let offsets = offsets.iter().copied().filter(|o| item(o.0).stream == *table).collect();
        let token = intent.token(Partition(0), table.as_str(), 0);
        world.late.push((begun + PACE.quiet_ns - 1, Request { token, table: table.clone(), offsets }));
    }
    while !world.events.iter().any(|e| matches!(e, Event::Renamed(_))) {
        world.turn(&mut lane);
    }
    assert!(world.now >= begun + PACE.quiet_ns);
    for _ in 0..200 {
        world.turn(&mut lane);
    }
    assert!(offsets.iter().all(|o| world.rows.get(o) == Some(&1)), "{:?}", world.rows);
}

#[test]
fn what_contradicts_itself_halts_the_lane() {
    let committed = |metadata: &str| Some(Committed { offset: Offset(5), metadata: metadata.into() });
    for (committed, max) in [
        (committed("nonsense"), None),
        (committed("2 5 9 4 0 0 0 another"), None),
        (committed("2 6 9 4 0 0 0 l"), None),
        (committed("2 5 9 4 0 0 0 l"), Some(Offset(9))),
        (committed(""), Some(Offset(5))),
        (None, Some(Offset(0))),
    ] {
        let mut lane = Lane::new("l", PACE);
        assert_eq!(step(&mut lane, 1, Offset(9)), Step::Start);
        lane.on_start(1, Ok((committed.clone(), max)));
        assert!(matches!(lane.take_events()[..], [Event::Halted(_)]), "{committed:?} {max:?}");
        assert!(matches!(step(&mut lane, 2, Offset(9)), Step::Sleep(_)));
    }
    let (mut world, mut lane, _, offsets) = about_to_insert();
    let stream = item(offsets[0].0).stream;
    lane.on_insert(world.now, vec![(stream, Answer::Doubt { ended: true, reason: "500".into() })]);
    world.rows.insert(offsets[0], 2);
    for _ in 0..20 {
        world.turn(&mut lane);
    }
    assert!(world.events.iter().any(|e| matches!(e, Event::Halted(_))));
    assert_eq!(lane.position(), Offset(0), "it does not move on");
}

#[test]
fn quarantined_records_count_as_stored() {
    let (mut world, mut lane, _, offsets) = about_to_insert();
    let stream = item(offsets[0].0).stream;
    lane.on_insert(world.now, vec![(stream, Answer::Doubt { ended: true, reason: "500".into() })]);
    world.now += PACE.backoff_max_ns;
    assert!(matches!(step(&mut lane, world.now, Offset(0)), Step::ReadBack(_)));
    let found = offsets.iter().map(|o| (*o, Found { quarantined: 1, ..Found::default() })).collect();
    lane.on_read_back(world.now, Ok(Tables { found, newer: BTreeMap::new() }));
    assert!(matches!(step(&mut lane, world.now, Offset(0)), Step::Commit(to, _) if to > offsets[0]));
}

/// A lane in doubt about a range whose rows are all there, and what the tables hold of it.
fn all_there_and_unanswered(newer: u64) -> (Lane, u64, Vec<Offset>, Tables) {
    let (world, mut lane, _, offsets) = about_to_insert();
    let tables: BTreeSet<StreamName> = offsets.iter().map(|o| item(o.0).stream).collect();
    let doubt = Answer::Doubt { ended: true, reason: "the view failed".into() };
    lane.on_insert(world.now, tables.iter().map(|t| (t.clone(), doubt.clone())).collect());
    let found = |o: &Offset| {
        let i = item(o.0);
        let (rows, first_seq, last_seq) = (u64::from(i.rows), i.first_seq.0, i.last_seq.0);
        (*o, Found { rows, first_seq, last_seq, ..Found::default() })
    };
    let found = offsets.iter().map(found).collect();
    let newer = tables.into_iter().map(|t| (t, newer)).collect();
    (lane, world.now + PACE.backoff_max_ns, offsets, Tables { found, newer })
}

#[test]
fn what_is_there_is_sent_again_for_its_views_until_it_is_answered() {
    let (mut lane, now, offsets, found) = all_there_and_unanswered(PACE.tokens - 1);
    assert!(matches!(step(&mut lane, now, Offset(0)), Step::ReadBack(_)));
    lane.on_read_back(now, Ok(found.clone()));
    let Step::Insert(intent, again) = step(&mut lane, now, Offset(0)) else { panic!("an insert") };
    assert_eq!((intent.generation, again.iter().collect::<BTreeSet<_>>()), (0, offsets.iter().collect()));
    let tables: BTreeSet<StreamName> = offsets.iter().map(|o| item(o.0).stream).collect();
    lane.on_insert(now, tables.into_iter().map(|t| (t, Answer::Done)).collect());
    assert!(matches!(step(&mut lane, now, Offset(0)), Step::ReadBack(_)), "the answer is no proof");
    lane.on_read_back(now, Ok(found));
    assert!(matches!(step(&mut lane, now, Offset(0)), Step::Commit(to, _) if to == intent.to));
}

#[test]
fn a_token_that_may_be_forgotten_is_not_used_again() {
    let (mut lane, now, _, found) = all_there_and_unanswered(PACE.tokens);
    assert!(matches!(step(&mut lane, now, Offset(0)), Step::ReadBack(_)));
    lane.on_read_back(now, Ok(found));
    assert!(matches!(step(&mut lane, now, Offset(0)), Step::Commit(..)), "the rows are there: it goes on");
    assert!(lane.take_events().iter().any(|e| matches!(e, Event::ViewsUnsure(_))), "and says so");
}

#[test]
fn what_is_gone_and_may_be_in_a_view_is_said_when_its_token_may_be_forgotten() {
    for (newer, said) in [(PACE.tokens - 1, false), (PACE.tokens, true)] {
        let (world, mut before, intent, offsets) = about_to_insert();
        drop(before.take_events());
        // Another process knows the range by its intent alone; nothing of it is in the tables.
        let mut lane = Lane::new("l", PACE);
        lane.on_start(world.now, Ok((world.committed.clone(), None)));
        lane.on_range(world.now, Ok(offsets.iter().map(|o| item(o.0)).collect()));
        lane.on_commit(world.now, Ok(()));
        let tables: BTreeSet<StreamName> = offsets.iter().map(|o| item(o.0).stream).collect();
        let newer = tables.iter().map(|t| (t.clone(), newer)).collect();
        let empty = Tables { found: BTreeMap::new(), newer };
        for _ in 0..2 {
            assert!(matches!(step(&mut lane, world.now, Offset(0)), Step::ReadBack(_)));
            lane.on_read_back(world.now, Ok(empty.clone()));
            let Step::Insert(again, _) = step(&mut lane, world.now, Offset(0)) else { panic!("an insert") };
            assert_eq!(again, intent, "for the table it is right");
            let doubt = Answer::Doubt { ended: true, reason: "500".into() };
            lane.on_insert(world.now, tables.iter().map(|t| (t.clone(), doubt.clone())).collect());
            lane.state = State::ReadBack;
        }
        let events = lane.take_events();
        let times = events.iter().filter(|e| **e == Event::ViewsUnsure(intent.clone())).count();
        assert_eq!(times, usize::from(said), "once, if at all: {events:?}");
    }
}

#[test]
fn what_another_process_named_is_confirmed_before_it_is_touched() {
    let (world, _, intent, offsets) = about_to_insert();
    let found = |lane: &mut Lane, now| {
        lane.on_start(now, Ok((world.committed.clone(), None)));
        lane.on_range(now, Ok(offsets.iter().map(|o| item(o.0)).collect()));
        assert_eq!(step(lane, now, Offset(0)), Step::Commit(intent.from, intent.encode()));
    };
    let mut lane = Lane::new("l", PACE);
    found(&mut lane, world.now);
    lane.on_commit(world.now, Err("it is owned by someone newer".into()));
    let later = world.now + PACE.backoff_max_ns;
    assert_eq!(step(&mut lane, later, Offset(0)), Step::Start, "it is not this lane's to send");
    found(&mut lane, later);
    lane.on_commit(later, Ok(()));
    assert_eq!(step(&mut lane, later, Offset(0)), Step::ReadBack(intent));
}

#[test]
fn a_lane_that_stood_still_before_an_insert_reads_again_what_is_stored() {
    let (world, mut lane, ..) = about_to_insert();
    assert!(matches!(step(&mut lane, world.now + PACE.sure_ns / 2, Offset(0)), Step::Insert(..)));
    assert_eq!(step(&mut lane, world.now + PACE.sure_ns + PACE.backoff_max_ns, Offset(0)), Step::Start);
}

#[test]
fn what_was_read_is_read_again_after_a_commit_in_doubt() {
    let mut lane = Lane::new("l", PACE);
    lane.on_start(0, Ok((None, None)));
    let high = Offset(2);
    assert_eq!(step(&mut lane, 0, high), Step::Read(Offset(0)));
    lane.on_read(0, Ok(vec![item(0)]));
    // The log ends in a gap, so there is nothing more.
    assert_eq!(step(&mut lane, 0, high), Step::Read(Offset(1)));
    lane.on_read(0, Ok(Vec::new()));
    assert!(matches!(step(&mut lane, 0, high), Step::Commit(..)));
    lane.on_commit(0, Err("another generation of the group".into()));
    assert_eq!(step(&mut lane, PACE.backoff_min_ns, high), Step::Start);
    lane.on_start(PACE.backoff_min_ns, Ok((None, None)));
    assert_eq!(
        step(&mut lane, PACE.backoff_min_ns, high),
        Step::Read(Offset(0)),
        "the log need not grow for it"
    );
}

#[test]
fn small_batches_wait_for_each_other_and_the_first_does_not() {
    let mut lane = Lane::new("l", PACE);
    lane.on_start(0, Ok((None, None)));
    assert_eq!(step(&mut lane, 0, Offset(0)), Step::Wait(None));
    let now = 10_000 * MS;
    assert_eq!(step(&mut lane, now, Offset(1)), Step::Read(Offset(0)));
    lane.on_read(now, Ok(vec![item(0)]));
    assert!(matches!(step(&mut lane, now, Offset(1)), Step::Commit(Offset(0), _)), "at once");
    lane.on_commit(now, Ok(()));
    assert!(matches!(step(&mut lane, now, Offset(1)), Step::Insert(..)));
    lane.on_insert(now, vec![(item(0).stream, Answer::Done)]);
    // One more record comes while the first is being stored: it waits for company.
    assert_eq!(step(&mut lane, now, Offset(2)), Step::Read(Offset(1)));
    lane.on_read(now, Ok(vec![item(1)]));
    assert_eq!(step(&mut lane, now, Offset(2)), Step::Commit(Offset(1), String::new()));
    lane.on_commit(now, Ok(()));
    assert_eq!(step(&mut lane, now, Offset(2)), Step::Wait(Some(now + PACE.linger_ns)));
    // Enough rows do not wait.
    assert_eq!(step(&mut lane, now, Offset(30)), Step::Read(Offset(2)));
    lane.on_read(now, Ok((2..30).map(item).collect()));
    assert!(matches!(step(&mut lane, now, Offset(30)), Step::Commit(Offset(1), _)));
    lane.on_commit(now, Ok(()));
    let Step::Insert(intent, _) = step(&mut lane, now, Offset(30)) else { panic!("an insert") };
    assert!(intent.rows <= PACE.rows_max && intent.to < Offset(30));
    lane.on_insert(now, [1, 2, 3].map(|o| (item(o).stream, Answer::Done)).to_vec());
    // The next intent rides on the commit.
    let Step::Commit(at, metadata) = step(&mut lane, now + PACE.linger_ns, Offset(30)) else {
        panic!("a commit")
    };
    assert_eq!((at, metadata.is_empty()), (intent.to, false));
}
