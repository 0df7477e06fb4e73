//! The sink's protocol for one partition, without I/O: what to do next, and what each answer means.
//!
//! A range of the log goes into its tables in these steps, and each can be cut off anywhere:
//!
//! 1. the committed offset and its metadata, the intent, are read;
//! 2. with an intent, its range is read again, the intent is committed as it is, and the range is looked for in the tables
//!    (*read back*) before anything is sent. The commit is refused where another process owns the partition by now: else one
//!    that does not know it yet might send what that one has just named, and the owner's first insert of it would be
//!    answered from the token alone;
//! 3. without one, records are gathered until rows, bytes or time trigger; the intent is committed;
//! 4. the range is inserted, one block a table, under a token that names range and generation;
//! 5. success: the offset is committed, with the next intent when there is one already;
//! 6. doubt (an error, a time-out): pause, read back; what is missing is sent again under the same token, and read back
//!    again, since "already there" is an answer, not a proof. What is there but was never answered for is sent again,
//!    too: it adds nothing to the table, and a view that failed behind it gets what it lacks;
//! 7. what is still missing after a clear answer, or is missing in part, gets a new generation: its intent is committed
//!    first, and it waits until no older insert can still be at work;
//! 8. an ambiguous commit: everything is forgotten and read again; what is stored is the truth. So it is after the
//!    process stood still between being sure of a range and sending it: others may have gone on meanwhile.
//!
//! Invariants: no insert without an intent for exactly its range that this lane has committed, asked for a short while ago; a
//! range that was named here is sent by others only after they own the partition; a token names
//! one set of records, and is used again only while the table remembers it for certain; the offset moves only past
//! records that were answered for without doubt or seen in the tables.
//!
//! It never sees a block: an [`Item`] is what its headers say.

mod words;

pub use words::{Answer, Event, Found, Item, Pace, Step, Tables};

use super::intent::{self, Intent};
use crate::log::{Committed, Offset};
use record::StreamName;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// One range under way.
#[derive(Debug)]
struct Work {
    intent: Intent,
    items: Vec<Item>,
    /// What was sent under this generation, per table, and whether it was clearly answered. `None` when a process
    /// before this one sent it and it is not known what.
    sent: Option<BTreeMap<StreamName, Sent>>,
    /// Until then an insert of this range may still be at work in the server.
    quiet_until: u64,
    doubted: bool,
    /// It was said that the views are not sure of it.
    unsure: bool,
}

#[derive(Debug, Default)]
struct Sent {
    offsets: BTreeSet<Offset>,
    answered: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Start,
    Range,
    /// Commit the intent that was found, then look for its range.
    Confirm,
    Idle,
    /// Commit the intent of `work`, then insert these.
    Intend(Vec<Offset>),
    Insert(Vec<Offset>),
    ReadBack,
    /// The range is in: move on.
    Settled(Offset),
    /// The commit of [`State::Settled`] is under way, with the next intent or without.
    Moving(Offset),
    Pause(u64, Box<State>),
}

/// The protocol of one partition.
#[derive(Debug)]
pub struct Lane {
    log: String,
    pace: Pace,
    state: State,
    /// The first offset that is not stored.
    position: Offset,
    /// The next offset to read.
    next_read: Offset,
    /// The end of the log at the last read, and the one at which a read gave nothing (a log may end in a gap).
    asked_at: Offset,
    dry_at: Option<Offset>,
    pending: VecDeque<Item>,
    work: Option<Work>,
    /// When the last insert began.
    inserted_at: Option<u64>,
    /// When the question was asked whose answer allows the next insert.
    sure_since: u64,
    /// Seconds of the epoch at the last step.
    wall: u64,
    failures: u32,
    events: Vec<Event>,
}

impl Lane {
    /// A lane over the log of this id.
    pub fn new(log: &str, pace: Pace) -> Self {
        Self {
            log: log.to_owned(),
            pace,
            state: State::Start,
            position: Offset(0),
            next_read: Offset(0),
            asked_at: Offset(0),
            dry_at: None,
            pending: VecDeque::new(),
            work: None,
            inserted_at: None,
            sure_since: 0,
            wall: 0,
            failures: 0,
            events: Vec::new(),
        }
    }

    /// What happened since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Records before this offset are not needed again.
    pub fn position(&self) -> Offset {
        self.position
    }

    /// The next record to read, unless what is known is thrown away.
    pub fn next_read(&self) -> Offset {
        self.next_read
    }

    /// The next step, at `now` and `wall` seconds of the epoch, with records up to `high` in the log.
    pub fn step(&mut self, now: u64, wall: u64, high: Offset) -> Step {
        if let State::Pause(until, _) = &self.state {
            if now < *until {
                return Step::Sleep(*until);
            }
            if let State::Pause(_, then) = std::mem::replace(&mut self.state, State::Start) {
                self.state = *then;
            }
        }
        if matches!(self.state, State::Insert(_)) && now > self.sure_since.saturating_add(self.pace.sure_ns) {
            let reason = "the process stood still before an insert: what is stored is read again".to_owned();
            self.events.push(Event::Doubted(reason));
            self.state = State::Start;
        }
        self.wall = wall;
        let step = self.next_step(now, high);
        if matches!(step, Step::Commit(..) | Step::ReadBack(_)) {
            self.sure_since = now;
        }
        step
    }

    fn next_step(&mut self, now: u64, high: Offset) -> Step {
        match &self.state {
            State::Start | State::Pause(..) => Step::Start,
            State::Range | State::Confirm | State::ReadBack | State::Intend(_) | State::Insert(_) => {
                self.work_step()
            }
            State::Idle => self.idle_step(now, high),
            State::Settled(to) => {
                let to = *to;
                if self.wants_more(high) {
                    self.asked_at = high;
                    return Step::Read(self.next_read);
                }
                // The next intent rides on this commit when its range is there already.
                if self.due(now) {
                    self.take_range(to);
                } else {
                    self.work = None;
                }
                self.state = State::Moving(to);
                self.moving_step(to)
            }
            State::Moving(to) => self.moving_step(*to),
        }
    }

    fn moving_step(&self, to: Offset) -> Step {
        let metadata = self.work.as_ref().map(|w| w.intent.encode()).unwrap_or_default();
        Step::Commit(to, metadata)
    }

    fn work_step(&self) -> Step {
        let Some(work) = &self.work else { return Step::Start };
        let (from, to) = (work.intent.from, work.intent.to);
        match &self.state {
            State::Range => Step::ReadRange(from, to),
            State::ReadBack => Step::ReadBack(work.intent.clone()),
            State::Insert(offsets) => Step::Insert(work.intent.clone(), offsets.clone()),
            _ => Step::Commit(from, work.intent.encode()),
        }
    }

    fn idle_step(&mut self, now: u64, high: Offset) -> Step {
        if self.wants_more(high) {
            self.asked_at = high;
            return Step::Read(self.next_read);
        }
        if self.pending.is_empty() {
            return Step::Wait(None);
        }
        if !self.due(now) {
            return Step::Wait(self.inserted_at.map(|at| at + self.pace.linger_ns));
        }
        self.take_range(self.position);
        let offsets = self.work.as_ref().map(|w| w.items.iter().map(|i| i.offset).collect());
        self.state = State::Intend(offsets.unwrap_or_default());
        self.work_step()
    }

    fn full(&self) -> bool {
        self.pending.iter().map(|i| u64::from(i.rows)).sum::<u64>() >= self.pace.rows_max
            || self.pending.iter().map(|i| i.bytes).sum::<usize>() >= self.pace.bytes_max
    }

    fn wants_more(&self, high: Offset) -> bool {
        self.next_read < high && self.dry_at != Some(high) && !self.full()
    }

    /// Small batches wait for each other; the first one after a rest does not wait.
    fn due(&self, now: u64) -> bool {
        !self.pending.is_empty()
            && (self.full() || self.inserted_at.is_none_or(|at| now >= at + self.pace.linger_ns))
    }

    /// Makes the pending records, as many as fit, the next range; it begins at `from`, so that gaps are passed over.
    fn take_range(&mut self, from: Offset) {
        let (mut rows, mut bytes, mut items) = (0, 0, Vec::new());
        while let Some(item) = self.pending.front() {
            rows += u64::from(item.rows);
            bytes += item.bytes;
            if !items.is_empty() && (rows > self.pace.rows_max || bytes > self.pace.bytes_max) {
                break;
            }
            items.extend(self.pending.pop_front());
        }
        let Some(last) = items.last() else { return };
        let intent = Intent {
            from,
            to: last.offset.next(),
            rows: items.iter().map(|i| u64::from(i.rows)).sum(),
            digest: intent::digest(items.iter().map(|i| i.hash)),
            generation: 0,
            named_at: self.wall,
            log: self.log.clone(),
        };
        let sent = Some(BTreeMap::new());
        self.work = Some(Work { intent, items, sent, quiet_until: 0, doubted: false, unsure: false });
    }

    /// Answers [`Step::Start`]: the committed position, and the largest offset of this partition in any table.
    pub fn on_start(&mut self, now: u64, answer: Result<(Option<Committed>, Option<Offset>), String>) {
        let (committed, in_tables) = match answer {
            Ok(read) => read,
            Err(reason) => return self.failed(now, reason, State::Start),
        };
        self.pending.clear();
        self.work = None;
        let committed = committed.unwrap_or(Committed { offset: Offset(0), metadata: String::new() });
        let intent = match Intent::decode(&committed.metadata) {
            Ok(intent) => intent,
            Err(reason) => return self.halted(now, reason, State::Start),
        };
        if let Some(i) = &intent
            && (i.log != self.log || i.from != committed.offset)
        {
            let reason =
                format!("the stored intent {:?} is not one of log {} at {}", i, self.log, committed.offset);
            return self.halted(now, reason, State::Start);
        }
        let end = intent.as_ref().map_or(committed.offset, |i| i.to);
        if let Some(max) = in_tables.filter(|max| *max >= end) {
            let reason = format!(
                "the tables hold rows of offset {max}, but only those before {end} were ever sent: they belong to \
                 another log; name another database, or drop the tables"
            );
            return self.halted(now, reason, State::Start);
        }
        self.failures = 0;
        self.position = committed.offset;
        self.next_read = committed.offset;
        self.dry_at = None;
        self.state = match intent {
            None => State::Idle,
            Some(intent) => {
                // Whoever stored it may have sent it; the server may still be at work on it.
                let quiet_until = now + self.pace.quiet_ns;
                let (items, sent, doubted, unsure) = (Vec::new(), None, true, false);
                self.work = Some(Work { intent, items, sent, quiet_until, doubted, unsure });
                State::Range
            }
        };
    }

    /// Answers [`Step::Read`].
    pub fn on_read(&mut self, now: u64, answer: Result<Vec<Item>, String>) {
        match answer {
            Ok(items) => {
                match items.last() {
                    Some(last) => self.next_read = last.offset.next(),
                    None => self.dry_at = Some(self.asked_at),
                }
                self.pending.extend(items);
            }
            Err(reason) => {
                let then = match &self.state {
                    State::Settled(to) => State::Settled(*to),
                    _ => State::Idle,
                };
                self.failed(now, reason, then);
            }
        }
    }

    /// Answers [`Step::ReadRange`].
    pub fn on_range(&mut self, now: u64, answer: Result<Vec<Item>, String>) {
        let items = match answer {
            Ok(items) => items,
            Err(reason) => return self.failed(now, reason, State::Range),
        };
        let Some(work) = &mut self.work else { return };
        let rows: u64 = items.iter().map(|i| u64::from(i.rows)).sum();
        let same =
            rows == work.intent.rows && intent::digest(items.iter().map(|i| i.hash)) == work.intent.digest;
        if !same {
            let reason = format!(
                "the log's records {}..{} are not those of the intent",
                work.intent.from, work.intent.to
            );
            return self.halted(now, reason, State::Range);
        }
        if work.intent.generation == 0 {
            // The first generation always names all records of the range.
            let mut sent: BTreeMap<StreamName, Sent> = BTreeMap::new();
            for item in &items {
                sent.entry(item.stream.clone()).or_default().offsets.insert(item.offset);
            }
            work.sent = Some(sent);
        }
        self.next_read = work.intent.to;
        work.items = items;
        self.state = State::Confirm;
    }

    /// Answers [`Step::Commit`]. On an error nobody knows what is stored, so it is read again.
    pub fn on_commit(&mut self, now: u64, answer: Result<(), String>) {
        if let Err(reason) = answer {
            self.pending.clear();
            self.work = None;
            return self.failed(now, reason, State::Start);
        }
        match std::mem::replace(&mut self.state, State::Start) {
            State::Intend(offsets) => self.state = State::Insert(offsets),
            State::Confirm => self.state = State::ReadBack,
            State::Moving(to) => {
                self.position = to;
                self.failures = 0;
                self.events.push(Event::Stored(to));
                self.state = match &self.work {
                    Some(work) => State::Insert(work.items.iter().map(|i| i.offset).collect()),
                    None => State::Idle,
                };
            }
            other => self.state = other,
        }
    }

    /// Answers [`Step::Insert`]; one answer a table.
    pub fn on_insert(&mut self, now: u64, answers: Vec<(StreamName, Answer)>) {
        let State::Insert(offsets) = &self.state else { return };
        let offsets: BTreeSet<Offset> = offsets.iter().copied().collect();
        let Some(work) = &mut self.work else { return };
        self.inserted_at = Some(now);
        let sent = work.sent.get_or_insert_default();
        for item in work.items.iter().filter(|i| offsets.contains(&i.offset)) {
            let table = sent.entry(item.stream.clone()).or_default();
            table.offsets.insert(item.offset);
            table.answered = false;
        }
        let mut doubt = None;
        for (stream, answer) in answers {
            match answer {
                Answer::Done => sent.entry(stream).or_default().answered = true,
                Answer::Doubt { ended, reason } => {
                    if !ended {
                        work.quiet_until = now + self.pace.quiet_ns;
                    }
                    doubt = Some(reason);
                }
            }
        }
        let unanswered = sent.values().any(|s| !s.offsets.is_disjoint(&offsets) && !s.answered);
        if let Some(reason) = doubt {
            work.doubted = true;
            return self.failed(now, reason, State::ReadBack);
        }
        self.state = if work.doubted || unanswered {
            work.doubted = true;
            State::ReadBack
        } else {
            State::Settled(work.intent.to)
        };
    }

    /// Answers [`Step::ReadBack`].
    pub fn on_read_back(&mut self, now: u64, answer: Result<Tables, String>) {
        let tables = match answer {
            Ok(tables) => tables,
            Err(reason) => return self.failed(now, reason, State::ReadBack),
        };
        let Some(work) = &mut self.work else { return };
        let mut missing: BTreeMap<StreamName, BTreeSet<Offset>> = BTreeMap::new();
        for item in &work.items {
            let there = tables.of(item.offset);
            if there == Found::default() {
                missing.entry(item.stream.clone()).or_default().insert(item.offset);
            } else if !is_exactly(item, &there) {
                let reason = format!(
                    "offset {} of stream {} should have the {} rows {} to {}, the tables hold {there:?}",
                    item.offset, item.stream, item.rows, item.first_seq, item.last_seq
                );
                return self.halted(now, reason, State::ReadBack);
            }
        }
        // The same name again only for exactly what it named, and only while nobody has answered for it.
        let same_name = work.sent.as_ref().is_some_and(|sent| {
            missing.iter().all(|(stream, m)| sent.get(stream).is_some_and(|s| s.offsets == *m && !s.answered))
        });
        let remembered = |stream: &StreamName| tables.newer.get(stream).is_none_or(|n| *n < self.pace.tokens);
        let (mut again, unsure) = unanswered(work, &tables, &remembered);
        // A part that the server lost may have reached a view, which takes it twice once the name is forgotten.
        let forgotten = same_name && !missing.keys().all(remembered);
        let offsets: Vec<Offset> = missing.into_values().flatten().collect();
        if same_name {
            again.extend(&offsets);
        }
        let waits = again.is_empty() && !offsets.is_empty() && now < work.quiet_until;
        if (forgotten || unsure && again.is_empty() && !waits) && !work.unsure {
            work.unsure = true;
            self.events.push(Event::ViewsUnsure(work.intent.clone()));
        }
        if !again.is_empty() {
            self.state = State::Insert(again);
        } else if offsets.is_empty() {
            self.state = State::Settled(work.intent.to);
        } else if waits {
            self.state = State::Pause(work.quiet_until, Box::new(State::ReadBack));
        } else {
            work.intent.generation += 1;
            work.intent.named_at = self.wall;
            work.sent = Some(BTreeMap::new());
            self.events.push(Event::Renamed(work.intent.clone()));
            self.state = State::Intend(offsets);
        }
    }

    fn failed(&mut self, now: u64, reason: String, then: State) {
        let pause = self.pace.backoff_min_ns.saturating_mul(1 << self.failures.min(20));
        self.failures = self.failures.saturating_add(1);
        self.events.push(Event::Doubted(reason));
        self.state = State::Pause(now + pause.min(self.pace.backoff_max_ns), Box::new(then));
    }

    fn halted(&mut self, now: u64, reason: String, then: State) {
        self.events.push(Event::Halted(reason));
        self.state = State::Pause(now + self.pace.backoff_max_ns, Box::new(then));
    }
}

/// Records that are there though nobody has answered for their insert: those of tables that remember its token for
/// certain, and whether there are others.
fn unanswered(
    work: &Work,
    tables: &Tables,
    remembered: &impl Fn(&StreamName) -> bool,
) -> (Vec<Offset>, bool) {
    let Some(sent) = &work.sent else { return (Vec::new(), true) };
    let (mut again, mut unsure) = (Vec::new(), false);
    for (stream, table) in sent.iter().filter(|(_, s)| !s.answered) {
        // Nothing of it is there, or it is missing in part and gets another name.
        if !table.offsets.iter().any(|o| tables.of(*o).rows > 0) {
            continue;
        }
        let whole = table.offsets.iter().all(|o| tables.of(*o) != Found::default());
        if whole && remembered(stream) {
            again.extend(&table.offsets);
        } else {
            unsure = true;
        }
    }
    (again, unsure)
}

/// Whether the tables hold this record exactly once, in its table or in quarantine.
fn is_exactly(item: &Item, found: &Found) -> bool {
    let in_table = found.rows == u64::from(item.rows)
        && found.first_seq == item.first_seq.0
        && found.last_seq == item.last_seq.0
        && found.quarantined == 0;
    in_table || (found.rows == 0 && found.quarantined == 1)
}

#[cfg(test)]
mod tests;
