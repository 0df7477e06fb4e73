//! The sink's processes: the real [`Lane`], one for each partition that a process owns, carried out step by step.

use crate::{
    broker::Request,
    clickhouse::{Fate, Insert, Statement, TOKENS_SURE},
    event::{Address, Answer, Asker, Call, Event, Process},
    fault::Fault,
    mutant::Mutant,
    schedule::{MS, SECOND},
    seat::{Kind, Seat},
    world::World,
};
pub(crate) use central::sink::core::{Found, Tables};
use central::{
    log::{CommitError, Committed, Offset, Partition, StoredRecord},
    sink::{
        core::{Answer as Told, Event as Happened, Item, Lane, Pace, Step},
        intent::Intent,
        limits::{BACKOFF_MAX, BACKOFF_MIN, INSERT_TIMEOUT, QUIET, SURE},
    },
};
use record::StreamName;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// How long the network may keep the commit of an offset.
const OFFSET_TIMEOUT: u64 = 10 * SECOND;
/// Records of one read.
const READ_RECORDS: usize = 6;

pub(crate) const fn ns(d: Duration) -> u64 {
    d.as_nanos() as u64
}

#[derive(Debug, Default)]
pub(crate) struct Sink {
    pub(crate) seat: Seat,
    lanes: BTreeMap<u32, LaneTask>,
}

/// What a lane waits for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Nothing,
    Start,
    Read,
    /// Records before this offset.
    Range(Offset),
    Commit,
    Insert,
    ReadBack,
}

#[derive(Debug)]
struct LaneTask {
    lease: u64,
    lane: Lane,
    asked: Asked,
    /// The number of the question, or of the moment, that it waits for.
    question: u64,
    asked_at: u64,
    waits_for_tail: bool,
    hands: BTreeMap<Offset, StoredRecord>,
    max: Option<Offset>,
    pending: BTreeSet<StreamName>,
    told: Vec<(StreamName, Told)>,
    /// The partition is to be let go of when the commit under way has ended.
    revoked: bool,
}

fn pace(mutant: Option<Mutant>, rows_max: u64) -> Pace {
    Pace {
        rows_max,
        bytes_max: 400,
        linger_ns: 150 * MS,
        quiet_ns: if mutant == Some(Mutant::NoQuiet) { 0 } else { ns(QUIET) },
        sure_ns: ns(SURE),
        tokens: if mutant == Some(Mutant::NoRetryForViews) { 0 } else { TOKENS_SURE },
        backoff_min_ns: ns(BACKOFF_MIN),
        backoff_max_ns: ns(BACKOFF_MAX),
    }
}

impl World {
    /// A sink process begins.
    pub(crate) fn sink_starts(&mut self, n: usize) {
        let address = self.address(Process::Sink(n));
        self.sinks[n] = Sink::default();
        self.sinks[n].seat.member = self.join(address);
    }

    pub(crate) fn sink_hears(&mut self, n: usize, call: Call) {
        match call {
            Call::Wake(place, question) if self.waits(n, place, question) => self.lane_works(n, place),
            Call::Answer(place, question, answer) if self.waits(n, place, question) => {
                self.lane_hears(n, place, answer);
            }
            _ => {}
        }
    }

    fn waits(&self, n: usize, place: u32, question: u64) -> bool {
        self.sinks[n].lanes.get(&place).is_some_and(|t| t.question == question)
    }

    fn lane(&mut self, n: usize, place: u32) -> Option<&mut LaneTask> {
        self.sinks[n].lanes.get_mut(&place)
    }

    pub(crate) fn lane_begins(&mut self, n: usize, place: u32, lease: u64) {
        let lane = Lane::new("sim", pace(self.mutant, self.rows_max));
        let task = LaneTask {
            lease,
            lane,
            asked: Asked::Nothing,
            question: 0,
            asked_at: 0,
            waits_for_tail: false,
            hands: BTreeMap::new(),
            max: None,
            pending: BTreeSet::new(),
            told: Vec::new(),
            revoked: false,
        };
        self.say(|_| format!("sink {n} begins partition {place} under lease {lease}"));
        self.sinks[n].lanes.insert(place, task);
        self.lane_works(n, place);
    }

    /// The lane's partition is taken back: at once, unless a commit is under way.
    pub(crate) fn lane_revoked(&mut self, n: usize, place: u32) {
        match self.lane(n, place) {
            Some(task) if matches!(task.asked, Asked::Commit) => task.revoked = true,
            _ => self.lane_ends(n, place),
        }
    }

    pub(crate) fn lane_ends(&mut self, n: usize, place: u32) {
        self.say(|_| format!("sink {n} ends partition {place}"));
        self.sinks[n].lanes.remove(&place);
        self.sinks[n].seat.owned.remove(&place);
        let member = self.sinks[n].seat.member;
        self.let_go(Kind::Sink, member, place);
    }

    /// Everything that the process had is gone.
    pub(crate) fn sink_loses_all(&mut self, n: usize) {
        self.sinks[n].lanes.clear();
        self.sinks[n].seat.owned.clear();
    }

    /// The tail of a partition moved: who waits for that goes on.
    pub(crate) fn tail_moved(&mut self, place: u32) {
        for n in 0..self.sinks.len() {
            let address = self.address(Process::Sink(n));
            let within = self.chance.between(MS, 20 * MS);
            if let Some(task) = self.lane(n, place).filter(|t| t.waits_for_tail) {
                task.waits_for_tail = false;
                let question = task.question;
                self.call(within, address, Call::Wake(place, question));
            }
        }
    }

    fn lane_works(&mut self, n: usize, place: u32) {
        let (number, real) = (self.number(), self.schedule.now());
        let (high, address) = (self.broker.stable(place), self.address(Process::Sink(n)));
        let careless = self.mutant == Some(Mutant::OldCertainty);
        let high = if self.mutant == Some(Mutant::SinkReadsUncommitted) { Offset(high.0 + 1) } else { high };
        let Some(task) = self.lane(n, place) else { return };
        let now = if careless && task.asked_at > 0 { task.asked_at } else { real };
        let step = task.lane.step(now, now / SECOND, high);
        (task.question, task.asked_at, task.waits_for_tail) = (number, real, false);
        self.say(|_| format!("sink {n} partition {place}: {step:?}"));
        let asker = Asker { address, place, question: number, heard: true };
        self.stepped(address);
        let reads = matches!(step, Step::Start | Step::Read(_) | Step::ReadRange(..) | Step::ReadBack(_));
        let fails = reads && self.chance.strikes(Fault::ReadFailed);
        let within = self.chance.between(MS, 10 * MS);
        match step {
            Step::Wait(until) => {
                self.wait(n, place, true, until);
            }
            Step::Sleep(until) => self.wait(n, place, false, Some(until)),
            _ if fails => {
                self.asks(n, place, &step);
                self.call(within, address, Call::Answer(place, number, Answer::Unreadable));
            }
            Step::Start => {
                self.asks(n, place, &step);
                self.ask_server(within, Statement::MaxOffset(asker));
            }
            Step::Read(from) => {
                self.asks(n, place, &step);
                let most = 1 + self.chance.below(READ_RECORDS as u64) as usize;
                self.broker_later(within, Request::Read(asker, from, most));
            }
            Step::ReadRange(from, to) => {
                self.asks(n, place, &step);
                self.broker_later(within, Request::Read(asker, from, (to.0 - from.0) as usize));
            }
            Step::ReadBack(ref intent) => {
                self.asks(n, place, &step);
                let hands = self.lane(n, place).map(|t| &t.hands);
                let streams = hands.into_iter().flat_map(|h| h.range(intent.from..intent.to));
                let streams = streams.map(|(_, r)| r.headers.stream.clone()).collect();
                self.ask_server(within, Statement::ReadBack(asker, streams, intent.clone()));
            }
            Step::Commit(offset, metadata) => self.commit_offset(n, asker, offset, metadata),
            Step::Insert(intent, offsets) => self.inserts(n, asker, &intent, &offsets),
        }
    }

    fn wait(&mut self, n: usize, place: u32, tail: bool, until: Option<u64>) {
        let address = self.address(Process::Sink(n));
        let Some(task) = self.lane(n, place) else { return };
        (task.asked, task.waits_for_tail) = (Asked::Nothing, tail);
        let question = task.question;
        if let Some(until) = until {
            self.call_at(until, address, Call::Wake(place, question));
        }
    }

    /// Remembers what is asked, and what of it must be known for the answer.
    fn asks(&mut self, n: usize, place: u32, step: &Step) {
        let Some(task) = self.lane(n, place) else { return };
        task.asked = match step {
            Step::Start => {
                task.hands.clear();
                Asked::Start
            }
            Step::Read(_) => Asked::Read,
            Step::ReadRange(_, to) => Asked::Range(*to),
            _ => Asked::ReadBack,
        };
    }

    fn ask_server(&mut self, within: u64, statement: Statement) {
        let at = self.schedule.now() + within;
        self.schedule.at(at, Event::Server(statement));
    }

    fn commit_offset(&mut self, n: usize, mut asker: Asker, offset: Offset, mut metadata: String) {
        let place = asker.place;
        let (member, generation) = (self.sinks[n].seat.member, self.sinks[n].seat.generation);
        let Some(task) = self.sinks[n].lanes.get_mut(&place) else { return };
        let (lease, intends) = (task.lease, !metadata.is_empty());
        task.asked = Asked::Commit;
        let mut stored = offset;
        match self.mutant {
            Some(Mutant::NoIntent) => metadata.clear(),
            Some(Mutant::OffsetPastRange) if !intends => stored = Offset(offset.0 + 1),
            _ => {}
        }
        if !self.sinks[n].seat.holds(place, lease) {
            let fenced = Answer::OffsetCommitted(Err(CommitError::Fenced));
            return self.call(MS, asker.address, Call::Answer(place, asker.question, fenced));
        }
        if self.mutant == Some(Mutant::InsertBeforeIntent) && intends {
            // The answer that counts is not waited for.
            self.call(0, asker.address, Call::Answer(place, asker.question, Answer::OffsetCommitted(Ok(()))));
            asker.heard = false;
        }
        let committed = Committed { offset: stored, metadata };
        let lost = self.chance.strikes(Fault::OffsetLost);
        let late = self.chance.strikes(Fault::OffsetLate);
        let unanswered = self.chance.strikes(Fault::OffsetUnanswered);
        if lost || late || unanswered {
            asker.heard = false;
            let out = Call::Answer(place, asker.question, Answer::TimedOut);
            self.call(OFFSET_TIMEOUT, asker.address, out);
        }
        let within = if late {
            self.chance.between(OFFSET_TIMEOUT, 4 * OFFSET_TIMEOUT)
        } else {
            self.chance.between(MS, 10 * MS)
        };
        if !lost {
            self.broker_later(within, Request::CommitOffset { asker, member, generation, committed });
        }
    }

    fn inserts(&mut self, n: usize, asker: Asker, intent: &Intent, offsets: &[Offset]) {
        let place = asker.place;
        let number = self.number();
        let Some(task) = self.sinks[n].lanes.get_mut(&place) else { return };
        task.asked = Asked::Insert;
        task.told.clear();
        let mut by_stream: BTreeMap<StreamName, Vec<StoredRecord>> = BTreeMap::new();
        for record in offsets.iter().filter_map(|o| task.hands.get(o)) {
            by_stream.entry(record.headers.stream.clone()).or_default().push(record.clone());
        }
        task.pending = by_stream.keys().cloned().collect();
        for (table, records) in by_stream {
            let mut token = intent.token(Partition(place), table.as_str(), 0);
            match self.mutant {
                Some(Mutant::TokenPerTry) => token = format!("{token}-{number}"),
                Some(Mutant::TokenWithoutGeneration) => {
                    let first = Intent { generation: 0, ..intent.clone() };
                    token = first.token(Partition(place), table.as_str(), 0);
                }
                _ => {}
            }
            self.send_insert(asker, Insert { table, token, records, fate: Fate::Done });
        }
    }

    fn send_insert(&mut self, mut asker: Asker, mut insert: Insert) {
        let fates = [
            (Fault::InsertRefused, Fate::Refused),
            (Fault::InsertThenError, Fate::ThenError),
            (Fault::ViewFailed, Fate::ViewFailed),
            (Fault::PartLost, Fate::PartLost),
        ];
        for (fault, fate) in fates {
            if self.chance.strikes(fault) {
                insert.fate = fate;
            }
        }
        let lost = self.chance.strikes(Fault::InsertLost);
        let late = self.chance.strikes(Fault::InsertLate);
        let timeout = ns(INSERT_TIMEOUT);
        if lost || late || self.chance.strikes(Fault::InsertUnanswered) {
            asker.heard = false;
            let out = Answer::Inserted(insert.table.clone(), Err(false));
            self.call(timeout, asker.address, Call::Answer(asker.place, asker.question, out));
        }
        let most = if late { ns(QUIET) - SECOND } else { 50 * MS };
        let within = self.chance.between(MS, most);
        if !lost {
            self.server.running += 1;
            let life = self.server.life;
            self.ask_server(within, Statement::Insert(asker, insert, life));
        }
    }

    fn lane_hears(&mut self, n: usize, place: u32, answer: Answer) {
        let address = self.address(Process::Sink(n));
        let (now, mutant) = (self.schedule.now(), self.mutant);
        let Some(task) = self.sinks[n].lanes.get_mut(&place) else { return };
        let now = if mutant == Some(Mutant::OldCertainty) { task.asked_at } else { now };
        let asker = Asker { address, place, question: task.question, heard: true };
        match (&task.asked, answer) {
            (Asked::Start, Answer::MaxOffset(max)) => {
                task.max = max;
                let within = self.chance.between(MS, 10 * MS);
                return self.broker_later(within, Request::Offset(asker));
            }
            (Asked::Start, Answer::Committed(committed)) => {
                task.lane.on_start(now, Ok((committed, task.max)))
            }
            (Asked::Start, _) => task.lane.on_start(now, Err("unreadable".into())),
            (Asked::Read, Answer::Records(read)) => {
                let items = task.keep(read);
                task.lane.on_read(now, Ok(items));
            }
            (Asked::Read, _) => task.lane.on_read(now, Err("unreadable".into())),
            (Asked::Range(to), Answer::Records(read)) => {
                let to = *to;
                let items = task.keep(read.into_iter().filter(|r| r.offset < to).collect());
                task.lane.on_range(now, Ok(items));
            }
            (Asked::Range(_), _) => task.lane.on_range(now, Err("unreadable".into())),
            (Asked::ReadBack, Answer::Found(mut tables)) => {
                if mutant == Some(Mutant::NoReadBack) {
                    tables.found = task.hands.values().map(all_there).collect();
                }
                task.lane.on_read_back(now, Ok(tables));
            }
            (Asked::ReadBack, _) => task.lane.on_read_back(now, Err("unreadable".into())),
            (Asked::Insert, Answer::Inserted(stream, result)) => {
                if !task.pending.remove(&stream) {
                    return;
                }
                let told = match result {
                    Ok(()) => Told::Done,
                    Err(_) if mutant == Some(Mutant::DoubtIsDone) => Told::Done,
                    Err(ended) => Told::Doubt { ended, reason: "in doubt".into() },
                };
                task.told.push((stream, told));
                if !task.pending.is_empty() {
                    return;
                }
                let told = std::mem::take(&mut task.told);
                task.lane.on_insert(now, told);
            }
            (Asked::Commit, answer) => return self.offset_committed(n, place, answer),
            _ => return,
        }
        self.lane_tells(n, place);
        self.lane_works(n, place);
    }

    fn offset_committed(&mut self, n: usize, place: u32, answer: Answer) {
        let address = self.address(Process::Sink(n));
        let in_doubt = matches!(answer, Answer::TimedOut);
        let result = match answer {
            Answer::OffsetCommitted(result) => result.map_err(|e| e.to_string()),
            _ => Err("unknown".to_owned()),
        };
        let now = self.schedule.now();
        let Some(task) = self.sinks[n].lanes.get_mut(&place) else { return };
        let now = if self.mutant == Some(Mutant::OldCertainty) { task.asked_at } else { now };
        task.lane.on_commit(now, result);
        let position = task.lane.position();
        task.hands = task.hands.split_off(&position);
        let revoked = task.revoked;
        self.lane_tells(n, place);
        if in_doubt && self.mutant != Some(Mutant::NoRejoin) {
            // A commit that still lies on the way must belong to a member that is gone.
            let within = self.chance.between(0, 60 * MS);
            self.call(within, address, Call::Rejoin);
        }
        if revoked { self.lane_ends(n, place) } else { self.lane_works(n, place) }
    }

    fn lane_tells(&mut self, n: usize, place: u32) {
        let Some(task) = self.sinks[n].lanes.get_mut(&place) else { return };
        for event in task.lane.take_events() {
            self.say(|_| format!("sink {n} partition {place}: {event:?}"));
            match event {
                Happened::Renamed(intent) => self.renamed.push((place, intent.from, intent.to)),
                // The mutant would say so, too, and hide.
                Happened::ViewsUnsure(_) if self.mutant == Some(Mutant::NoRetryForViews) => {}
                Happened::ViewsUnsure(intent) => self.unsure.push((place, intent.from, intent.to)),
                Happened::Halted(reason) => self.fail("a lane is stopped", reason),
                Happened::Stored(_) | Happened::Doubted(_) => {}
            }
        }
    }
}

impl LaneTask {
    fn keep(&mut self, read: Vec<StoredRecord>) -> Vec<Item> {
        let item = |r: &StoredRecord| Item {
            offset: r.offset,
            stream: r.headers.stream.clone(),
            rows: r.headers.rows,
            first_seq: r.headers.first_seq,
            last_seq: r.headers.last_seq,
            bytes: r.bytes.len(),
            hash: r.headers.hash,
        };
        let items = read.iter().map(item).collect();
        self.hands.extend(read.into_iter().map(|r| (r.offset, r)));
        items
    }
}

fn all_there(r: &StoredRecord) -> (Offset, Found) {
    let h = &r.headers;
    let found = Found {
        rows: u64::from(h.rows),
        first_seq: h.first_seq.0,
        last_seq: h.last_seq.0,
        ..Found::default()
    };
    (r.offset, found)
}

/// Who the lanes of a process belong to.
pub(crate) fn seat_of(world: &mut World, address: Address) -> Option<&mut Seat> {
    match address.process {
        Process::Sink(n) => Some(&mut world.sinks[n].seat),
        Process::Link(n) => Some(&mut world.links[n].seat),
        Process::Gateway(_) => None,
    }
}
