//! One run: everything that there is, the order in which it happens, and when it is over.

use crate::{
    Failure, Outcome,
    broker::{Broker, Request},
    clickhouse::{Server, TOKENS_KEPT},
    event::{Address, Answer, Asker, Call, Event, Process, Trouble},
    fault::Chance,
    gateway::Folder,
    link::Link,
    mutant::Mutant,
    network::Connection,
    schedule::{MS, SECOND, Schedule},
    seat::{Kind, News},
    sink::{Sink, seat_of},
};
use central::log::Offset;
use record::GatewayId;
use std::collections::VecDeque;

/// Events after which a run counts as stuck.
const EVENTS_MAX: u64 = 60_000;
/// Simulated time after the last fault after which a run counts as stuck.
const DRAIN_MAX: u64 = 600 * SECOND;
/// Lines of a trace that are kept for a failure.
const TRACE_LINES: usize = 60;

/// What is said about a run while it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trace {
    /// Nothing.
    Off,
    /// The last lines are kept for the failure.
    Last,
    /// Every line is printed as it comes.
    Print,
}

/// One life of a process after the other.
#[derive(Debug, Default)]
pub(crate) struct Life {
    number: u32,
    up: bool,
    paused: bool,
    /// What came while it stood still.
    waiting: VecDeque<Call>,
}

pub(crate) struct World {
    pub(crate) mutant: Option<Mutant>,
    pub(crate) schedule: Schedule<Event>,
    pub(crate) chance: Chance,
    pub(crate) folders: Vec<Folder>,
    pub(crate) backups: Vec<Option<Folder>>,
    pub(crate) connections: Vec<Connection>,
    pub(crate) links: Vec<Link>,
    pub(crate) sinks: Vec<Sink>,
    pub(crate) broker: Broker,
    pub(crate) server: Server,
    gateways: Vec<Life>,
    link_lives: Vec<Life>,
    sink_lives: Vec<Life>,
    /// Ranges of a partition that were sent under a new name.
    pub(crate) renamed: Vec<(u32, Offset, Offset)>,
    /// Ranges of which the sink says that views may lack them.
    pub(crate) unsure: Vec<(u32, Offset, Offset)>,
    pub(crate) rows_max: u64,
    pub(crate) interval: u64,
    numbers: u64,
    failure: Option<(&'static str, String)>,
    trace: Trace,
    lines: VecDeque<String>,
    /// When the last thing went wrong, or will.
    pub(crate) calm_at: u64,
    /// The longest rest of a gateway between two bursts.
    pub(crate) rest: u64,
}

/// Runs one seed.
pub(crate) fn run(seed: u64, mutant: Option<Mutant>, trace: Trace) -> Outcome {
    let mut world = World::new(seed, mutant, trace);
    world.begin();
    let mut events = 0;
    while world.failure.is_none() {
        let Some(event) = world.schedule.next() else {
            world.fail("stuck", "nothing is left to happen".into());
            break;
        };
        events += 1;
        if events > EVENTS_MAX {
            let text = world.undone();
            world.fail("stuck", text);
            break;
        }
        if matches!(event, Event::Trouble(Trouble::Look)) {
            if world.looks() {
                world.judge();
                break;
            }
        } else {
            world.happens(event);
        }
    }
    let faults = world.chance.happened.clone();
    let failure = world.failure.map(|(kind, text)| Failure {
        kind: kind.to_owned(),
        text,
        trace: world.lines.into_iter().collect(),
    });
    Outcome { events, simulated_ns: world.schedule.now(), faults, failure }
}

impl World {
    fn new(seed: u64, mutant: Option<Mutant>, trace: Trace) -> Self {
        let chance = Chance::new(seed);
        let (partitions, shards) = [(2, 2), (1, 2), (2, 1)][chance.below(3) as usize];
        let (gateways, links, sinks) = (chance.between(1, 3), chance.between(1, 3), chance.between(1, 3));
        let mut folders = Vec::new();
        for n in 0..gateways {
            let id = GatewayId::new(&format!("g{n}-{}", chance.below(1_000))).expect("a valid name");
            folders.push(Folder::new(id, 1 + chance.below(1 << 40), chance.between(3, 12) as u32));
        }
        let calm_at = chance.between(30, if chance.one_in(2) { 100 } else { 400 }) * SECOND;
        let life = || Life { number: 1, ..Life::default() };
        Self {
            mutant,
            schedule: Schedule::new(),
            backups: folders.iter().map(|_| None).collect(),
            gateways: folders.iter().map(|_| life()).collect(),
            folders,
            connections: Vec::new(),
            links: (0..links).map(|_| Link::default()).collect(),
            sinks: (0..sinks).map(|_| Sink::default()).collect(),
            broker: Broker::new(partitions, shards),
            server: Server::default(),
            link_lives: (0..links).map(|_| life()).collect(),
            sink_lives: (0..sinks).map(|_| life()).collect(),
            renamed: Vec::new(),
            unsure: Vec::new(),
            rows_max: chance.between(4, 20),
            interval: chance.between(20, 200) * MS,
            numbers: 0,
            failure: None,
            trace,
            lines: VecDeque::new(),
            calm_at,
            rest: calm_at / 8,
            chance,
        }
    }

    fn begin(&mut self) {
        self.central().into_iter().for_each(|process| self.start(process));
        for n in 0..self.folders.len() {
            self.start(Process::Gateway(n));
            let at = self.chance.below(self.calm_at);
            self.schedule.at(at, Event::Trouble(Trouble::Backup(n)));
        }
        self.schedule.at(SECOND, Event::Trouble(Trouble::Strike));
        self.schedule.at(self.calm_at, Event::Trouble(Trouble::Calm));
    }

    /// All processes of central.
    pub(crate) fn central(&self) -> Vec<Process> {
        let links = (0..self.links.len()).map(Process::Link);
        links.chain((0..self.sinks.len()).map(Process::Sink)).collect()
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Call(address, call) => self.reaches(address, call),
            Event::Broker(request) => self.broker_does(request),
            Event::Server(statement) => self.server_does(statement),
            Event::Trouble(trouble) => self.trouble(trouble),
        }
    }

    fn reaches(&mut self, address: Address, call: Call) {
        let life = self.life(address.process);
        if !life.up || life.number != address.life {
            return;
        }
        if life.paused {
            return life.waiting.push_back(call);
        }
        let now = self.schedule.now();
        let lost = match &call {
            Call::Up(c, _) => now > self.connections[*c].up_until,
            Call::Down(c, _) => now > self.connections[*c].down_until,
            _ => false,
        };
        if lost {
            return;
        }
        match (address.process, call) {
            (_, Call::Seat(member, news)) => self.seat_hears(address, member, news),
            (_, Call::Rejoin) => self.rejoins(address),
            (Process::Gateway(n), call) => self.gateway_hears(n, call),
            (Process::Link(n), call) => self.link_hears(n, call),
            (Process::Sink(n), call) => self.sink_hears(n, call),
        }
    }

    fn seat_hears(&mut self, address: Address, member: u64, news: News) {
        let Some(seat) = seat_of(self, address).filter(|s| s.member == member) else { return };
        match (news, address.process) {
            (News::Generation(generation), _) => seat.generation = generation,
            (News::Assigned(place), Process::Link(n)) => {
                let lease = seat.assigned(place);
                self.shard_begins(n, place, lease);
            }
            (News::Assigned(place), Process::Sink(n)) => {
                let lease = seat.assigned(place);
                self.lane_begins(n, place, lease);
            }
            (News::Revoked(place), Process::Link(n)) => self.shard_revoked(n, place),
            (News::Revoked(place), Process::Sink(n)) => self.lane_revoked(n, place),
            (News::Expelled, _) => self.rejoins(address),
            (_, Process::Gateway(_)) => {}
        }
    }

    /// A process lets go of all that it has, leaves its group and joins again.
    pub(crate) fn rejoins(&mut self, address: Address) {
        let kind = Kind::of(address.process);
        let Some(member) = seat_of(self, address).map(|s| s.member) else { return };
        self.say(|_| format!("{:?} joins its group again", address.process));
        match address.process {
            Process::Link(n) => self.link_loses_all(n),
            Process::Sink(n) => self.sink_loses_all(n),
            Process::Gateway(_) => {}
        }
        self.leave(kind, member);
        let member = self.join(address);
        if let Some(seat) = seat_of(self, address) {
            seat.member = member;
        }
    }

    pub(crate) fn life(&mut self, process: Process) -> &mut Life {
        match process {
            Process::Gateway(n) => &mut self.gateways[n],
            Process::Link(n) => &mut self.link_lives[n],
            Process::Sink(n) => &mut self.sink_lives[n],
        }
    }

    fn lives(&self, process: Process) -> &Life {
        match process {
            Process::Gateway(n) => &self.gateways[n],
            Process::Link(n) => &self.link_lives[n],
            Process::Sink(n) => &self.sink_lives[n],
        }
    }

    pub(crate) fn is_up(&self, process: Process) -> bool {
        self.lives(process).up
    }

    pub(crate) fn is_paused(&self, process: Process) -> bool {
        self.lives(process).paused
    }

    /// The present life of a process.
    pub(crate) fn address(&self, process: Process) -> Address {
        Address { process, life: self.lives(process).number }
    }

    pub(crate) fn add_folder(&mut self, folder: Folder) -> usize {
        self.folders.push(folder);
        self.backups.push(None);
        self.gateways.push(Life { number: 1, ..Life::default() });
        self.folders.len() - 1
    }

    pub(crate) fn start(&mut self, process: Process) {
        let over = matches!(process, Process::Gateway(n) if self.folders[n].over);
        let life = self.life(process);
        if life.up || over {
            return;
        }
        life.up = true;
        self.say(|_| format!("{process:?} starts"));
        match process {
            Process::Gateway(n) => self.gateway_starts(n),
            Process::Link(n) => self.link_starts(n),
            Process::Sink(n) => self.sink_starts(n),
        }
    }

    /// A process is gone at once; what was on its way to it is lost.
    pub(crate) fn kill(&mut self, process: Process) {
        let life = self.life(process);
        (life.up, life.paused) = (false, false);
        life.number += 1;
        life.waiting.clear();
        let member = match process {
            Process::Gateway(n) => {
                self.gateway_dies(n);
                None
            }
            Process::Link(n) => Some(std::mem::take(&mut self.links[n]).seat.member),
            Process::Sink(n) => Some(std::mem::take(&mut self.sinks[n]).seat.member),
        };
        if let Some(member) = member {
            let missed = Request::Missed(Kind::of(process), member, 0);
            self.broker_later(crate::seat::SESSION, missed);
        }
        self.cut_all_of(process);
    }

    /// A process stands still.
    pub(crate) fn pause(&mut self, process: Process, time: u64) {
        let address = self.address(process);
        self.life(process).paused = true;
        if let Some(member) = seat_of(self, address).map(|s| s.member)
            && time > crate::seat::SESSION
        {
            self.broker_later(crate::seat::SESSION, Request::Missed(Kind::of(process), member, 1));
        }
        let at = self.schedule.now() + time;
        self.schedule.at(at, Event::Trouble(Trouble::GoOn(address)));
    }

    pub(crate) fn go_on(&mut self, address: Address) {
        let life = self.life(address.process);
        if life.number != address.life || !std::mem::take(&mut life.paused) {
            return;
        }
        let waiting = std::mem::take(&mut life.waiting);
        // What it does now is the last that goes wrong.
        self.calm_at = self.calm_at.max(self.schedule.now());
        self.say(|_| format!("{:?} goes on", address.process));
        waiting.into_iter().for_each(|call| self.call(0, address, call));
    }

    /// The broker misses a member.
    pub(crate) fn missed(&mut self, kind: Kind, member: u64, paused: u32) {
        if paused == 0 { self.leave(kind, member) } else { self.expel(kind, member) }
    }

    pub(crate) fn call(&mut self, within: u64, address: Address, call: Call) {
        let at = self.schedule.now() + within;
        self.schedule.at(at, Event::Call(address, call));
    }

    pub(crate) fn call_at(&mut self, at: u64, address: Address, call: Call) {
        self.schedule.at(at, Event::Call(address, call));
    }

    /// Answers a question, unless nobody will hear it.
    pub(crate) fn answer(&mut self, asker: Asker, answer: Answer) {
        if asker.heard {
            let within = self.chance.between(MS / 2, 5 * MS);
            self.call(within, asker.address, Call::Answer(asker.place, asker.question, answer));
        }
    }

    /// A number that was not given before.
    pub(crate) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// The first failure counts.
    pub(crate) fn fail(&mut self, kind: &'static str, text: String) {
        self.say(|_| format!("FAILED: {kind}: {text}"));
        self.failure.get_or_insert((kind, text));
    }

    /// A line of the trace; made only when somebody reads it.
    pub(crate) fn say(&mut self, line: impl FnOnce(&Self) -> String) {
        if self.trace == Trace::Off {
            return;
        }
        let at = self.schedule.now();
        let line = format!("{:>5}.{:03} s  {}", at / SECOND, at % SECOND / MS, line(self));
        if self.trace == Trace::Print {
            println!("{line}");
        }
        if self.lines.len() == TRACE_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// Whether everything has arrived; if not, it is looked at again a little later.
    fn looks(&mut self) -> bool {
        let now = self.schedule.now();
        let suspects = self.folders.iter().any(|f| f.suspect);
        // Those that may be refused try again now and then: what they do has to be seen, too.
        let least = if suspects { 150 * SECOND } else { TOKENS_KEPT };
        if now >= self.calm_at + least && self.undone().is_empty() {
            return true;
        }
        if now > self.calm_at + DRAIN_MAX {
            let text = self.undone();
            self.fail("stuck", text);
        }
        self.schedule.at(now + 5 * SECOND, Event::Trouble(Trouble::Look));
        false
    }

    /// What has not arrived yet, in words.
    fn undone(&self) -> String {
        let mut undone = Vec::new();
        for (n, f) in self.folders.iter().enumerate().filter(|(_, f)| !f.over && !f.suspect) {
            if f.through() < f.entries.len() || f.durable < f.entries.len() {
                undone.push(format!("gateway {n} stands at {} of {}", f.through(), f.entries.len()));
            }
        }
        for (p, committed) in self.broker.offsets.iter().enumerate() {
            let from = committed.as_ref().map_or(Offset(0), |c| c.offset);
            let left = self.broker.records(p as u32, from).count();
            if left > 0 || committed.as_ref().is_some_and(|c| !c.metadata.is_empty()) {
                undone.push(format!("partition {p} stands at {from}, {left} records are left"));
            }
        }
        let still = self.central().into_iter().filter(|p| self.is_paused(*p)).count();
        if still > 0 {
            undone.push(format!("{still} processes stand still"));
        }
        if !self.broker.quiet() {
            undone.push("a transaction is open".into());
        }
        if self.server.running > 0 {
            undone.push(format!("{} inserts are under way", self.server.running));
        }
        undone.join("; ")
    }
}
