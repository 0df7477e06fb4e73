//! The gateway's end of the link as a state machine without I/O: what to send, when to connect, what is safe to trim.
//!
//! The gateway's output log is read entry by entry (one frame, its blocks). Blocks go out while the window allows;
//! central acknowledges per stream. When a connection ends, everything unacknowledged is forgotten here and read again
//! from the log behind the last position of which everything is known to be stored.
//!
//! Invariants:
//! - [`Output::Through`] never names a position before all blocks up to it are stored by central, and never goes back;
//! - what central already has (its Welcome says so) is not sent again, and counts as stored only when the block that ends
//!   where central stands is seen to be the same: in a folder that was restored or cloned it is another one, and the
//!   blocks before it are others, too;
//! - blocks of a stream leave in order and without gaps; a stream that cannot go on is halted alone, its data stays in
//!   the log, and it is tried again with a new session after a while;
//! - memory is bounded by the window plus one entry.
//!
//! It never sleeps, never asks a clock and never looks into a block.

use crate::{
    limits::{IN_FLIGHT_BATCHES, IN_FLIGHT_BYTES, REDIRECTS_IN_A_ROW},
    message::{Ack, Batch, Lost, Refuse, RefuseCode, StreamWelcome},
};
use record::{Digest, Seq, StreamName, clock::Random};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

/// A place in the gateway's output log; dense, 0 before the first entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

/// One frame of the output log, as far as the link cares.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Where it stands.
    pub position: Position,
    /// What it asks to be forwarded, in order; may be empty.
    pub items: Vec<Item>,
}

/// Something to tell central, in order with the stream's other items.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// A block.
    Block(Batch),
    /// Rows that cannot be sent any more.
    Lost(Lost),
}

impl Item {
    fn stream(&self) -> &StreamName {
        match self {
            Self::Block(b) => &b.header.stream,
            Self::Lost(l) => &l.stream,
        }
    }
    fn range(&self) -> (Seq, Seq) {
        match self {
            Self::Block(b) => (b.header.first, b.header.last),
            Self::Lost(l) => (l.first, l.last),
        }
    }
    fn hash(&self) -> Digest {
        match self {
            Self::Block(b) => b.header.hash,
            Self::Lost(l) => l.hash,
        }
    }
    fn bytes(&self) -> usize {
        match self {
            Self::Block(b) => b.bytes.len(),
            Self::Lost(_) => 0,
        }
    }
}

/// Windows and times.
#[derive(Debug, Clone)]
pub struct Config {
    /// Most blocks sent and not yet acknowledged.
    pub in_flight_batches: usize,
    /// Most bytes sent and not yet acknowledged (one block may go over it when nothing else is in flight).
    pub in_flight_bytes: usize,
    /// First wait after a failure; doubles with each further one.
    pub backoff_min: Duration,
    /// Longest wait.
    pub backoff_max: Duration,
    /// Longest wait within `backoff_max` of an answer of central: it is there, the gateway's shard moves, or the process
    /// has just gone.
    pub backoff_answered: Duration,
    /// A connection that has not said Welcome by then is given up.
    pub greeting_timeout: Duration,
    /// A connection on which nothing is acknowledged for so long although something is in flight is given up.
    pub ack_timeout: Duration,
    /// A halted stream is tried again after so long.
    pub halted_retry: Duration,
    /// How often central is asked again before a gap halts a stream: a process that lost the gateway's shard and has not heard
    /// so yet knows less than was acknowledged.
    pub gap_tries: u32,
    /// From one such try to the next. What such a process is sent meanwhile it cannot commit, which tells it.
    pub gap_retry: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            in_flight_batches: IN_FLIGHT_BATCHES,
            in_flight_bytes: IN_FLIGHT_BYTES,
            backoff_min: Duration::from_millis(200),
            backoff_max: Duration::from_secs(10),
            backoff_answered: Duration::from_secs(1),
            greeting_timeout: Duration::from_secs(15),
            ack_timeout: Duration::from_secs(30),
            halted_retry: Duration::from_secs(60),
            gap_tries: 5,
            gap_retry: Duration::from_secs(1),
        }
    }
}

/// Why a stream is not forwarded for now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Halt {
    /// Central refused it.
    #[error("central refuses the stream ({}, it waits for seq {}): {}", .0.code.name(), .0.expected, .0.message)]
    Refused(Refuse),
    /// Central waits for rows that this log no longer holds.
    #[error("central waits for seq {expected}, the buffer goes on at {found}")]
    Gap {
        /// What central waits for.
        expected: Seq,
        /// What is next in the log.
        found: Seq,
    },
    /// Central has other rows under the same seqs.
    #[error(
        "central stored another block up to seq {last}: this folder was restored from a backup or cloned"
    )]
    Diverged {
        /// Central's last seq.
        last: Seq,
    },
}

impl Halt {
    /// For metrics and log lines.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Refused(r) => r.code.name(),
            Self::Gap { .. } => RefuseCode::Gap.name(),
            Self::Diverged { .. } => "diverged",
        }
    }
}

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Open a connection; answer with `connected` or `disconnected`.
    Connect,
    /// Say Hello on the new connection.
    SayHello,
    /// Read on behind this position.
    Seek(Position),
    /// Send this.
    Send(Item),
    /// Close the connection; no answer is wanted.
    Close(String),
    /// Everything of the stream up to this seq is stored.
    Acked(StreamName, Seq),
    /// Everything up to this position is stored: it may be trimmed.
    Through(Position),
    /// The stream is not forwarded until the next session.
    Halted(StreamName, Halt),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting { until_ns: u64 },
    Connecting,
    Greeting { since_ns: u64 },
    Open { since_ns: u64 },
}

#[derive(Debug, Default)]
struct Stream {
    /// What central has: the seq and hash of its Welcome.
    welcome: (Seq, Digest),
    /// Acknowledged through.
    acked: Seq,
    /// Sent (or known to be stored) through.
    sent: Seq,
    /// The first block before the seq of the Welcome that was read, until the block that ends there is seen to be the same.
    unproven: Option<Position>,
    halted: bool,
    in_flight: VecDeque<InFlight>,
}

#[derive(Debug)]
struct InFlight {
    last: Seq,
    bytes: usize,
    position: Position,
}

/// Entries read and not wholly stored. `covers` is the position of the last entry that rides on this one: entries
/// without anything to wait for are folded into the one before them, so that the queue is no longer than the window.
#[derive(Debug)]
struct Open {
    position: Position,
    covers: Position,
    waiting: usize,
}

/// The core; see the module.
pub struct Forwarder {
    config: Config,
    random: Arc<dyn Random>,
    phase: Phase,
    failures: u32,
    redirects: u32,
    /// When a process of central last answered.
    answered_ns: Option<u64>,
    streams: BTreeMap<StreamName, Stream>,
    queue: VecDeque<(Position, Item)>,
    open: VecDeque<Open>,
    in_flight: (usize, usize),
    through: Position,
    /// The lowest position that holds a block of a halted stream.
    stuck: Option<Position>,
    halted_since_ns: Option<u64>,
    /// How often each stream met a gap since it last went on.
    gaps: BTreeMap<StreamName, u32>,
    /// A gap of this session is not told yet.
    retry_soon: bool,
    last_ack_ns: u64,
    outputs: VecDeque<Output>,
}

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forwarder")
            .field("phase", &self.phase)
            .field("through", &self.through)
            .field("in_flight", &self.in_flight)
            .field("queue", &self.queue.len())
            .finish_non_exhaustive()
    }
}

impl Forwarder {
    /// A core that connects at once; everything up to `through` is known to be stored.
    pub fn new(config: Config, random: Arc<dyn Random>, through: Position) -> Self {
        let mut me = Self {
            config,
            random,
            phase: Phase::Waiting { until_ns: 0 },
            failures: 0,
            redirects: 0,
            answered_ns: None,
            streams: BTreeMap::new(),
            queue: VecDeque::new(),
            open: VecDeque::new(),
            in_flight: (0, 0),
            through,
            stuck: None,
            halted_since_ns: None,
            gaps: BTreeMap::new(),
            retry_soon: false,
            last_ack_ns: 0,
            outputs: VecDeque::new(),
        };
        me.tick(0);
        me
    }

    /// What to do next, until `None`.
    pub fn next_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Whether the next entry of the log may be given.
    pub fn wants_entry(&self) -> bool {
        matches!(self.phase, Phase::Open { .. }) && self.queue.is_empty() && self.has_room(1)
    }

    /// Whether a session stands.
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open { .. })
    }

    /// Blocks and bytes sent and not yet acknowledged.
    pub fn in_flight(&self) -> (usize, usize) {
        self.in_flight
    }

    /// Everything up to here is stored.
    pub fn through(&self) -> Position {
        self.through
    }

    /// When `tick` should be called at the latest, on the monotonic clock.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        let after = |t: u64, d: Duration| t.saturating_add(nanos(d));
        match self.phase {
            Phase::Waiting { until_ns } => Some(until_ns),
            Phase::Connecting => None,
            Phase::Greeting { since_ns } => Some(after(since_ns, self.config.greeting_timeout)),
            Phase::Open { .. } => {
                let ack = (self.in_flight.0 > 0).then(|| after(self.last_ack_ns, self.config.ack_timeout));
                ack.into_iter().chain(self.retry_ns()).min()
            }
        }
    }

    /// Time went by.
    pub fn tick(&mut self, now_ns: u64) {
        if self.next_deadline_ns().is_none_or(|d| now_ns < d) {
            return;
        }
        match self.phase {
            Phase::Waiting { .. } => {
                self.phase = Phase::Connecting;
                self.outputs.push_back(Output::Connect);
            }
            Phase::Connecting => {}
            Phase::Greeting { .. } => self.close(now_ns, "central did not answer Hello"),
            Phase::Open { .. } if self.retry_ns().is_some_and(|t| now_ns >= t) => {
                // Nothing failed: the new session comes at once.
                self.failures = 0;
                self.close(now_ns, "trying the halted streams again");
            }
            Phase::Open { .. } => self.close(now_ns, "central acknowledges nothing"),
        }
    }

    /// When a new session tries the halted streams again.
    fn retry_ns(&self) -> Option<u64> {
        let after = if self.retry_soon { self.config.gap_retry } else { self.config.halted_retry };
        self.halted_since_ns.map(|since| since.saturating_add(nanos(after)))
    }

    /// The connection stands.
    pub fn connected(&mut self, now_ns: u64) {
        if self.phase == Phase::Connecting {
            self.phase = Phase::Greeting { since_ns: now_ns };
            self.outputs.push_back(Output::SayHello);
        }
    }

    /// The connection failed or ended.
    pub fn disconnected(&mut self, now_ns: u64) {
        if matches!(self.phase, Phase::Waiting { .. }) {
            return;
        }
        let was_good = |since: u64| now_ns.saturating_sub(since) >= nanos(self.config.backoff_max);
        if let Phase::Open { since_ns } = self.phase {
            self.answered_ns = Some(now_ns);
            if was_good(since_ns) {
                self.failures = 0;
            }
        }
        let wait = self.backoff_ns(now_ns);
        self.failures = self.failures.saturating_add(1);
        self.wait(now_ns.saturating_add(wait));
    }

    /// Another process commits this gateway's streams. When central says which (`known`), the next connection comes at
    /// once, unless it was sent around too often; otherwise as after a failure.
    pub fn elsewhere(&mut self, now_ns: u64, known: bool) {
        if matches!(self.phase, Phase::Waiting { .. }) {
            return;
        }
        self.answered_ns = Some(now_ns);
        if known && self.redirects < REDIRECTS_IN_A_ROW {
            self.redirects += 1;
            self.wait(now_ns);
        } else {
            self.redirects = 0;
            self.disconnected(now_ns);
        }
    }

    fn wait(&mut self, until_ns: u64) {
        self.queue.clear();
        self.open.clear();
        self.streams.clear();
        self.in_flight = (0, 0);
        self.stuck = None;
        self.halted_since_ns = None;
        self.retry_soon = false;
        self.phase = Phase::Waiting { until_ns };
    }

    fn close(&mut self, now_ns: u64, why: &str) {
        self.outputs.push_back(Output::Close(why.to_owned()));
        self.disconnected(now_ns);
    }

    /// Exponential with jitter: half of the step for certain, half by chance, so that a fleet does not come back as one.
    fn backoff_ns(&self, now_ns: u64) -> u64 {
        let lately = |t: u64| now_ns.saturating_sub(t) < nanos(self.config.backoff_max);
        let answered = self.answered_ns.is_some_and(lately);
        let most = if answered { self.config.backoff_answered } else { self.config.backoff_max };
        let step = nanos(self.config.backoff_min).saturating_mul(1 << self.failures.min(20));
        let step = step.min(nanos(most));
        step / 2 + self.random.next_u64() % (step / 2 + 1)
    }

    /// Central answered Hello.
    pub fn welcome(&mut self, now_ns: u64, streams: Vec<StreamWelcome>) {
        if !matches!(self.phase, Phase::Greeting { .. }) {
            return self.close(now_ns, "central said Welcome twice");
        }
        self.phase = Phase::Open { since_ns: now_ns };
        self.redirects = 0;
        self.last_ack_ns = now_ns;
        for s in streams {
            let known =
                Stream { welcome: (s.last, s.hash), acked: s.last, sent: s.last, ..Stream::default() };
            self.outputs.push_back(Output::Acked(s.stream.clone(), s.last));
            self.streams.insert(s.stream, known);
        }
        self.outputs.push_back(Output::Seek(self.through));
    }

    /// The next entry of the log, asked for by [`Forwarder::wants_entry`].
    pub fn entry(&mut self, now_ns: u64, entry: Entry) {
        if !self.is_open() {
            return;
        }
        let mut waiting = 0;
        for mut item in entry.items {
            if self.judge(now_ns, entry.position, &mut item) {
                waiting += 1;
                self.queue.push_back((entry.position, item));
            }
        }
        // From a held position on nothing can be trimmed, so nothing needs to be remembered there.
        if self.stuck.is_none_or(|s| entry.position < s) {
            match self.open.back_mut() {
                Some(last) if waiting == 0 => last.covers = entry.position,
                _ => self.open.push_back(Open { position: entry.position, covers: entry.position, waiting }),
            }
        }
        self.advance();
        self.send(now_ns);
    }

    /// Whether the item has to be sent: it is new to central and follows what it has.
    fn judge(&mut self, now_ns: u64, position: Position, item: &mut Item) -> bool {
        let stream = self.streams.entry(item.stream().clone()).or_default();
        if stream.halted {
            self.hold(position);
            return false;
        }
        // A part of what is lost here may have reached central before it was lost.
        if let Item::Lost(l) = item
            && l.first <= stream.sent
            && stream.sent < l.last
        {
            l.first = stream.sent.next();
        }
        let (first, last) = item.range();
        let (known, known_hash) = stream.welcome;
        let halt = if last == known && item.hash() != known_hash {
            Halt::Diverged { last: known }
        } else if last <= stream.sent {
            // The chain of hashes makes one block the proof of all before it.
            stream.unproven = if last < known { stream.unproven.or(Some(position)) } else { None };
            return false;
        } else if first <= stream.sent {
            Halt::Diverged { last: stream.sent }
        } else if first != stream.sent.next() {
            Halt::Gap { expected: stream.sent.next(), found: first }
        } else {
            (stream.sent, stream.unproven) = (last, None);
            self.gaps.remove(item.stream());
            return true;
        };
        self.halt(now_ns, item.stream().clone(), halt);
        self.hold(position);
        false
    }

    /// Nothing from this position on may be trimmed before the next session.
    fn hold(&mut self, position: Position) {
        let stuck = self.stuck.map_or(position, |s| s.min(position));
        self.stuck = Some(stuck);
        while self.open.pop_back_if(|o| o.position >= stuck).is_some() {}
        if let Some(last) = self.open.back_mut() {
            last.covers = last.covers.min(Position(stuck.0.saturating_sub(1)));
        }
    }

    fn halt(&mut self, now_ns: u64, name: StreamName, why: Halt) {
        let stream = self.streams.entry(name.clone()).or_default();
        if std::mem::replace(&mut stream.halted, true) {
            return;
        }
        // What of it is under way counts as not stored: it holds its position until the next session.
        for gone in std::mem::take(&mut stream.in_flight) {
            self.in_flight.0 -= 1;
            self.in_flight.1 -= gone.bytes;
            self.hold(gone.position);
        }
        if let Some(position) = self.streams.get_mut(&name).and_then(|s| s.unproven.take()) {
            self.hold(position);
        }
        let held: Vec<Position> =
            self.queue.iter().filter(|(_, i)| *i.stream() == name).map(|(p, _)| *p).collect();
        self.queue.retain(|(_, i)| *i.stream() != name);
        held.into_iter().for_each(|p| self.hold(p));
        self.halted_since_ns.get_or_insert(now_ns);
        if matches!(why, Halt::Gap { .. }) {
            let gaps = self.gaps.entry(name.clone()).or_default();
            *gaps = gaps.saturating_add(1);
            if *gaps <= self.config.gap_tries {
                self.retry_soon = true;
                return;
            }
        }
        self.outputs.push_back(Output::Halted(name, why));
    }

    fn has_room(&self, bytes: usize) -> bool {
        let (batches, used) = self.in_flight;
        batches == 0
            || (batches < self.config.in_flight_batches && used + bytes <= self.config.in_flight_bytes)
    }

    fn send(&mut self, now_ns: u64) {
        while self.queue.front().is_some_and(|(_, item)| self.has_room(item.bytes())) {
            let Some((position, item)) = self.queue.pop_front() else { return };
            if self.in_flight.0 == 0 {
                self.last_ack_ns = now_ns;
            }
            let flying = InFlight { last: item.range().1, bytes: item.bytes(), position };
            self.in_flight.0 += 1;
            self.in_flight.1 += flying.bytes;
            self.streams.entry(item.stream().clone()).or_default().in_flight.push_back(flying);
            self.outputs.push_back(Output::Send(item));
        }
    }

    /// Central stored something.
    pub fn acks(&mut self, now_ns: u64, acks: Vec<Ack>) {
        if !self.is_open() {
            return;
        }
        for ack in acks {
            let Some(stream) = self.streams.get_mut(&ack.stream) else {
                return self.close(now_ns, "central acknowledged a stream that it was not sent");
            };
            if stream.halted {
                continue;
            }
            let flying = stream.in_flight.back().map_or(stream.acked, |f| f.last);
            if ack.last > flying {
                return self.close(now_ns, "central acknowledged more than it was sent");
            }
            if ack.last > stream.acked {
                stream.acked = ack.last;
                self.failures = 0;
                self.last_ack_ns = now_ns;
                self.outputs.push_back(Output::Acked(ack.stream, ack.last));
            }
            while let Some(done) = stream.in_flight.pop_front_if(|f| f.last <= ack.last) {
                self.in_flight.0 -= 1;
                self.in_flight.1 -= done.bytes;
                if let Ok(i) = self.open.binary_search_by_key(&done.position, |o| o.position) {
                    self.open[i].waiting -= 1;
                }
            }
        }
        self.advance();
        self.send(now_ns);
    }

    /// Central takes no more of a stream in this session.
    pub fn refuse(&mut self, now_ns: u64, refuse: Refuse) {
        if self.is_open() {
            self.halt(now_ns, refuse.stream.clone(), Halt::Refused(refuse));
            self.send(now_ns);
        }
    }

    /// Moves `through` over the entries that are done, but not over what is not proven to be stored.
    fn advance(&mut self) {
        let before = self.through;
        let unproven = self.streams.values().filter_map(|s| s.unproven).min();
        let end = unproven.map_or(u64::MAX, |p| p.0.saturating_sub(1));
        while let Some(first) = self.open.pop_front_if(|o| o.waiting == 0 && o.covers.0 <= end) {
            self.through = self.through.max(first.covers);
        }
        if let Some(first) = self.open.front().filter(|o| o.waiting == 0 && o.position.0 <= end) {
            self.through = self.through.max(Position(end.min(first.covers.0)));
        }
        if self.through > before {
            self.outputs.push_back(Output::Through(self.through));
        }
    }
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}
