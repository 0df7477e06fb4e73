//! Gateways: a folder with a durable log of entries, and the real [`Forwarder`] that reads it.
//!
//! What a folder ever held is kept for the judgement at the end; a position that was trimmed is never read again.

use crate::{
    event::{Address, Call, Down, Process},
    fault::Fault,
    mutant::Mutant,
    schedule::{MS, SECOND},
    world::World,
};
use bytes::Bytes;
use link::{
    forward::{Config, Entry, Forwarder, Item, Output, Position},
    limits::PROTOCOL,
    message::{Batch, Hello, Loss, Lost, StreamHello, StreamLedger, ToCentral, ToGateway},
};
use record::{
    BlockHeader, Counts, Digest, GatewayId, Incarnation, Seq, StreamName, StreamSchema, chain_hash,
};
use std::collections::{BTreeMap, BTreeSet};

/// The streams of every gateway.
pub(crate) const STREAMS: [&str; 2] = ["hot", "raw"];

/// A data folder, and the process on it.
#[derive(Debug)]
pub(crate) struct Folder {
    pub(crate) gateway: GatewayId,
    pub(crate) incarnation: Incarnation,
    /// All that was ever written; the tail may not be synced.
    pub(crate) entries: Vec<Entry>,
    pub(crate) durable: usize,
    /// Gone from the disk up to here.
    pub(crate) trimmed: usize,
    /// The last seq and hash of each stream, with what is not synced, and without.
    written: Vec<(Seq, Digest)>,
    pub(crate) heads: Vec<(Seq, Digest)>,
    pub(crate) losses: Vec<BTreeMap<u64, Loss>>,
    /// Streams that it was told are refused.
    pub(crate) told: BTreeSet<StreamName>,
    /// It may rightly be refused: it was restored or cloned.
    pub(crate) suspect: bool,
    /// Something on its way was swallowed or altered: it may be refused for a while.
    pub(crate) molested: bool,
    /// It does not run any more and will not again.
    pub(crate) over: bool,
    to_make: u32,
    program: Option<Program>,
}

#[derive(Debug)]
struct Program {
    core: Forwarder,
    /// Read up to this position.
    read: usize,
    reading: bool,
    connection: Option<usize>,
    turn: usize,
    owner: Option<usize>,
    tick_at: Option<u64>,
    known_losses: BTreeMap<StreamName, u64>,
}

fn config() -> Config {
    Config { in_flight_batches: 5, in_flight_bytes: 200, ..Config::default() }
}

pub(crate) fn stream(n: usize) -> StreamName {
    StreamName::new(STREAMS[n]).expect("the names above are valid")
}

fn place(name: &StreamName) -> usize {
    STREAMS.iter().position(|s| *s == name.as_str()).unwrap_or_default()
}

impl Folder {
    pub(crate) fn new(gateway: GatewayId, incarnation: u64, to_make: u32) -> Self {
        let nothing = vec![(Seq(0), Digest::default()); STREAMS.len()];
        Self {
            gateway,
            incarnation: Incarnation(incarnation),
            entries: Vec::new(),
            durable: 0,
            trimmed: 0,
            written: nothing.clone(),
            heads: nothing,
            losses: vec![BTreeMap::new(); STREAMS.len()],
            told: BTreeSet::new(),
            suspect: false,
            molested: false,
            over: false,
            to_make,
            program: None,
        }
    }

    /// A copy of what is durable, as a backup has it.
    pub(crate) fn copy(&self) -> Self {
        let mut copy = Self::new(self.gateway.clone(), self.incarnation.0, self.to_make);
        copy.entries = self.entries[..self.durable].to_vec();
        (copy.durable, copy.trimmed) = (self.durable, self.trimmed);
        (copy.written, copy.heads) = (self.heads.clone(), self.heads.clone());
        copy.losses = self.losses.clone();
        copy.molested = self.molested;
        copy
    }

    pub(crate) fn may_still_make(&self) -> u32 {
        self.to_make
    }

    /// What its program knows to be stored.
    pub(crate) fn through(&self) -> usize {
        self.program.as_ref().map_or(self.trimmed, |p| p.core.through().0 as usize)
    }

    fn hello(&self) -> Hello {
        let streams = (0..STREAMS.len()).map(|n| StreamHello {
            stream: stream(n),
            schema: StreamSchema::default(),
            last: self.heads[n].0,
            hash: self.heads[n].1,
        });
        Hello {
            gateway: self.gateway.clone(),
            incarnation: self.incarnation,
            protocol: PROTOCOL,
            software: String::new(),
            streams: streams.collect(),
        }
    }

    fn ledger(&self, known: &BTreeMap<StreamName, u64>) -> Vec<StreamLedger> {
        let ledger = |n: usize| {
            let stream = stream(n);
            let last = self.heads[n].0;
            let from = known.get(&stream).copied().unwrap_or_default();
            StreamLedger {
                stream,
                counts: Counts { received: last.0, kept: last.0, produced: last.0, ..Counts::default() },
                as_of: last,
                losses: self.losses[n].range(from..).map(|(_, l)| l.clone()).collect(),
            }
        };
        (0..STREAMS.len()).map(ledger).collect()
    }

    fn sync(&mut self, to: usize) {
        for entry in &self.entries[self.durable.min(to)..to] {
            for item in &entry.items {
                let (name, head) = match item {
                    Item::Block(b) => (&b.header.stream, (b.header.last, b.header.hash)),
                    Item::Lost(l) => (&l.stream, (l.last, l.hash)),
                };
                self.heads[place(name)] = head;
            }
        }
        self.durable = self.durable.max(to);
    }

    /// A block becomes unreadable: it is declared lost instead.
    pub(crate) fn damage(&mut self, position: usize) {
        let Some(entry) = self.entries.get_mut(position) else { return };
        let Some(item) = entry.items.iter_mut().find(|i| matches!(i, Item::Block(_))) else { return };
        let Item::Block(b) = item else { return };
        let h = b.header.clone();
        let losses = &mut self.losses[place(&h.stream)];
        let ordinal = losses.len() as u64 + 1;
        losses.insert(
            ordinal,
            Loss {
                ordinal,
                first: h.first,
                last: h.last,
                first_time_ns: 0,
                last_time_ns: 0,
                rows: h.rows(),
                reason: "damaged".into(),
            },
        );
        let (first, last) = (h.first, h.last);
        *item = Item::Lost(Lost { stream: h.stream, first, last, hash: h.hash, reason: "damaged".into() });
    }
}

impl World {
    /// The program on a folder begins.
    pub(crate) fn gateway_starts(&mut self, n: usize) {
        let (random, now) = (self.chance.split(), self.schedule.now());
        let turn = self.chance.below(self.links.len() as u64) as usize;
        let address = self.address(Process::Gateway(n));
        let folder = &mut self.folders[n];
        let mut core = Forwarder::new(config(), random, Position(folder.trimmed as u64));
        core.tick(now);
        folder.program = Some(Program {
            core,
            read: folder.trimmed,
            reading: false,
            connection: None,
            turn,
            owner: None,
            tick_at: None,
            known_losses: BTreeMap::new(),
        });
        if folder.to_make > 0 {
            let within = self.chance.between(MS, 2 * SECOND);
            self.call(within, address, Call::Produce);
        }
        self.gateway_goes_on(n);
    }

    /// The program on a folder is gone, and with it what was not synced.
    pub(crate) fn gateway_dies(&mut self, n: usize) {
        let kept = {
            let folder = &self.folders[n];
            let unsynced = folder.entries.len() - folder.durable;
            if unsynced > 0 && self.chance.strikes(Fault::SyncLost) {
                folder.durable
            } else {
                folder.durable + unsynced
            }
        };
        let folder = &mut self.folders[n];
        folder.entries.truncate(kept);
        folder.sync(kept);
        folder.written.clone_from(&folder.heads);
        folder.program = None;
    }

    pub(crate) fn gateway_hears(&mut self, n: usize, call: Call) {
        let now = self.schedule.now();
        match call {
            Call::Produce => self.make_entries(n),
            Call::Synced(to) => self.folders[n].sync(to),
            Call::Trimmed(to) => {
                let folder = &mut self.folders[n];
                folder.trimmed = folder.trimmed.max(to);
                return;
            }
            Call::Tick => self.core(n, |core| core.tick(now)),
            Call::ReadEntry => self.read_entry(n),
            Call::Connected(connection, stands) if self.is_on(n, connection) => {
                if stands {
                    self.core(n, |core| core.connected(now));
                } else {
                    self.off(n, |core| core.disconnected(now));
                }
            }
            Call::Lost(connection) if self.is_on(n, connection) => {
                self.off(n, |core| core.disconnected(now));
            }
            Call::Down(connection, down) if self.is_on(n, connection) => self.central_says(n, down),
            _ => return,
        }
        self.gateway_goes_on(n);
    }

    fn is_on(&self, n: usize, connection: usize) -> bool {
        self.folders[n].program.as_ref().is_some_and(|p| p.connection == Some(connection))
    }

    fn core(&mut self, n: usize, f: impl FnOnce(&mut Forwarder)) {
        if let Some(program) = &mut self.folders[n].program {
            f(&mut program.core);
        }
    }

    /// The connection is over; the next address has its turn.
    fn off(&mut self, n: usize, f: impl FnOnce(&mut Forwarder)) {
        if let Some(program) = &mut self.folders[n].program {
            program.connection = None;
            program.turn += 1;
            f(&mut program.core);
        }
    }

    fn central_says(&mut self, n: usize, down: Down) {
        self.say(|_| format!("gateway {n} hears {down:?}"));
        let now = self.schedule.now();
        match down {
            Down::Message(ToGateway::Welcome(streams)) => {
                if let Some(program) = &mut self.folders[n].program {
                    program.known_losses =
                        streams.iter().map(|s| (s.stream.clone(), s.loss_ordinal)).collect();
                }
                self.core(n, |core| core.welcome(now, streams));
            }
            Down::Message(ToGateway::Acks(acks)) => self.core(n, |core| core.acks(now, acks)),
            Down::Message(ToGateway::Refuse(refuse)) => self.core(n, |core| core.refuse(now, refuse)),
            Down::Message(ToGateway::WrongNode { owner }) => {
                if let Some(program) = &mut self.folders[n].program {
                    program.owner = owner.parse().ok();
                    program.connection = None;
                    program.core.elsewhere(now, true);
                }
            }
            Down::Goodbye(true) => self.off(n, |core| core.elsewhere(now, false)),
            Down::Goodbye(false) => self.off(n, |core| core.disconnected(now)),
        }
    }

    fn make_entries(&mut self, n: usize) {
        let address = self.address(Process::Gateway(n));
        let burst = self.chance.between(1, 3);
        for _ in 0..burst {
            if self.folders[n].to_make == 0 {
                break;
            }
            self.make_entry(n);
        }
        let slow = self.chance.one_in(4);
        let within = self.chance.between(MS, if slow { 2 * SECOND } else { 20 * MS });
        let written = self.folders[n].entries.len();
        self.call(within, address, Call::Synced(written));
        if self.folders[n].to_make > 0 {
            let within = self.chance.between(10 * MS, self.rest);
            self.call(within, address, Call::Produce);
        }
    }

    fn make_entry(&mut self, n: usize) {
        let blocks = self.chance.between(1, 2);
        let mut items = Vec::new();
        for _ in 0..blocks {
            let (which, rows) = (self.chance.below(STREAMS.len() as u64) as usize, self.chance.between(1, 5));
            let nonce = self.number();
            let folder = &mut self.folders[n];
            let (last, prev_hash) = folder.written[which];
            let (first, last, stream) = (last.next(), Seq(last.0 + rows), stream(which));
            let bytes = Bytes::copy_from_slice(&nonce.to_le_bytes());
            let hash = chain_hash(&prev_hash, &stream, folder.incarnation, first, last, 1, &bytes);
            folder.written[which] = (last, hash);
            let incarnation = folder.incarnation;
            let header = BlockHeader { stream, incarnation, first, last, schema: 1, prev_hash, hash };
            items.push(Item::Block(Batch { header, bytes }));
        }
        let folder = &mut self.folders[n];
        folder.to_make -= 1;
        let position = Position(folder.entries.len() as u64 + 1);
        self.say(|_| format!("gateway {n} writes entry {}", position.0));
        self.folders[n].entries.push(Entry { position, items });
    }

    fn read_entry(&mut self, n: usize) {
        let (now, address, mutant) = (self.schedule.now(), self.address(Process::Gateway(n)), self.mutant);
        let folder = &mut self.folders[n];
        let there = readable(folder, mutant);
        let Some(program) = &mut folder.program else { return };
        program.reading = false;
        let next = program.read.max(folder.trimmed);
        if !program.core.wants_entry() || next >= there {
            return;
        }
        program.read = next + 1;
        program.core.entry(now, folder.entries[next].clone());
        self.stepped(address);
        if mutant == Some(Mutant::TrimAtSend) {
            self.call(MS, address, Call::Trimmed(next + 1));
        }
    }

    /// Carries out what the core wants, and lets it wait.
    fn gateway_goes_on(&mut self, n: usize) {
        let address = self.address(Process::Gateway(n));
        while let Some(output) = self.folders[n].program.as_mut().and_then(|p| p.core.next_output()) {
            self.gateway_does(n, address, output);
        }
        let now = self.schedule.now();
        let folder = &mut self.folders[n];
        let there = readable(folder, self.mutant);
        let Some(program) = &mut folder.program else { return };
        let deadline = program.core.next_deadline_ns();
        let due = |planned: u64, at: u64| at < planned || planned <= now;
        let tick = deadline.filter(|at| program.tick_at.is_none_or(|planned| due(planned, *at)));
        if tick.is_some() {
            program.tick_at = tick;
        }
        let reads =
            !program.reading && program.core.wants_entry() && program.read.max(folder.trimmed) < there;
        program.reading |= reads;
        if let Some(at) = tick {
            self.call_at(at, address, Call::Tick);
        }
        if reads {
            let within = self.chance.between(MS / 10, MS);
            self.call(within, address, Call::ReadEntry);
        }
    }

    fn gateway_does(&mut self, n: usize, address: Address, output: Output) {
        let links = self.links.len();
        let folder = &mut self.folders[n];
        let Some(program) = &mut folder.program else { return };
        match output {
            Output::Connect => {
                let to = program.owner.take().unwrap_or(program.turn) % links;
                self.say(|_| format!("gateway {n} connects to link {to}"));
                let connection = self.connect(address, to);
                if let Some(program) = &mut self.folders[n].program {
                    program.connection = Some(connection);
                }
            }
            Output::SayHello => {
                let hello = folder.hello();
                self.up(n, ToCentral::Hello(hello));
            }
            Output::Seek(position) => {
                program.read = position.0 as usize;
                self.tell_ledger(n);
            }
            Output::Send(Item::Block(b)) => self.up(n, ToCentral::Batch(b)),
            Output::Send(Item::Lost(l)) => self.up(n, ToCentral::Lost(l)),
            Output::Close(_) => {
                if let Some(connection) = program.connection.take() {
                    self.close(connection);
                }
            }
            Output::Acked(..) => {}
            Output::Through(position) => {
                let to = position.0 as usize;
                let all = to == folder.entries.len();
                let within = self.chance.between(0, 200 * MS);
                self.call(within, address, Call::Trimmed(to));
                if all {
                    self.tell_ledger(n);
                }
            }
            Output::Halted(stream, why) => {
                self.say(|_| format!("gateway {n} halts {stream}: {why}"));
                let folder = &mut self.folders[n];
                let right = folder.suspect || folder.molested;
                folder.told.insert(stream.clone());
                if !right {
                    self.fail("an honest gateway is refused", format!("gateway {n}, {stream}: {why}"));
                }
            }
        }
    }

    fn up(&mut self, n: usize, message: ToCentral) {
        if let Some(connection) = self.folders[n].program.as_ref().and_then(|p| p.connection) {
            self.send_up(connection, message);
        }
    }

    fn tell_ledger(&mut self, n: usize) {
        let folder = &mut self.folders[n];
        let Some(program) = &mut folder.program else { return };
        let known = std::mem::take(&mut program.known_losses);
        let ledger = folder.ledger(&known);
        if let Some(program) = &mut folder.program {
            program.known_losses = known;
            for (n, losses) in folder.losses.iter().enumerate() {
                program.known_losses.insert(stream(n), losses.len() as u64);
            }
        }
        self.up(n, ToCentral::Ledger(ledger));
    }

    /// Something on the way of a gateway was swallowed or altered.
    pub(crate) fn may_be_refused(&mut self, process: Process) {
        if let Process::Gateway(n) = process {
            self.folders[n].molested = true;
        }
    }
}

/// How many entries may be read.
fn readable(folder: &Folder, mutant: Option<Mutant>) -> usize {
    if mutant == Some(Mutant::ForwardBeforeDurable) { folder.entries.len() } else { folder.durable }
}
