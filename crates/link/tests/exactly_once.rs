//! Both state machines against each other over a network that loses, and a central and a gateway that crash: whatever
//! happens, the log ends with every row once and in order.
//!
//! Each seed is one run; a failure names it.

use bytes::Bytes;
use link::{
    forward::{Config, Entry, Forwarder, Item, Output as Out, Position},
    message::{Batch, Hashed, Hello, Lost, StreamHello, ToCentral, ToGateway},
    receive::{Head, Known, Output, Receiver, SessionId},
};
use record::{
    BlockHeader, Digest, GatewayId, Incarnation, Seq, StreamName, StreamSchema, chain_hash,
    clock::{Random, SeededRandom},
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

const STREAMS: usize = 3;
const ENTRIES: usize = 120;

struct World {
    random: Arc<SeededRandom>,
    seed: u64,
    now: u64,
    // the gateway
    log: Vec<Entry>,
    heads: Vec<(Seq, Digest)>,
    forwarder: Forwarder,
    read: usize,
    trimmed: Position,
    saved: Position,
    // the network, in order both ways, cut at random
    up: VecDeque<ToCentral>,
    down: VecDeque<ToGateway>,
    session: Option<SessionId>,
    sessions: u64,
    // central
    receiver: Receiver,
    stored: BTreeMap<StreamName, Vec<u64>>,
    heads_stored: BTreeMap<StreamName, Head>,
    cuts: u32,
}

fn gateway() -> GatewayId {
    GatewayId::new("plant-7").expect("valid")
}

fn stream(i: usize) -> StreamName {
    StreamName::new(&format!("s{i}")).expect("valid")
}

impl World {
    fn new(seed: u64) -> Self {
        let random = Arc::new(SeededRandom::new(seed));
        let mut me = Self {
            seed,
            now: 0,
            log: Vec::new(),
            heads: vec![(Seq(0), Digest::default()); STREAMS],
            forwarder: Forwarder::new(config(), random.clone(), Position(0)),
            read: 0,
            trimmed: Position(0),
            saved: Position(0),
            up: VecDeque::new(),
            down: VecDeque::new(),
            session: None,
            sessions: 0,
            receiver: Receiver::new([]),
            stored: BTreeMap::new(),
            heads_stored: BTreeMap::new(),
            cuts: 0,
            random,
        };
        for p in 1..=ENTRIES {
            let entry = me.make_entry(p as u64);
            me.log.push(entry);
        }
        me
    }

    fn roll(&self, sides: u64) -> u64 {
        self.random.next_u64() % sides
    }

    /// Up to four blocks of any streams; now and then rows that the gateway has lost.
    fn make_entry(&mut self, position: u64) -> Entry {
        let mut items = Vec::new();
        for _ in 0..self.roll(5) {
            let i = self.roll(STREAMS as u64) as usize;
            let (last, prev) = self.heads[i];
            let (first, end) = (last.next(), Seq(last.0 + 1 + self.roll(9)));
            let bytes = Bytes::from(first.0.to_le_bytes().to_vec());
            let hash = chain_hash(&prev, &stream(i), Incarnation(1), first, end, 1, &bytes);
            self.heads[i] = (end, hash);
            items.push(if self.roll(40) == 0 {
                Item::Lost(Lost { stream: stream(i), first, last: end, hash, reason: "damaged".into() })
            } else {
                let header = BlockHeader {
                    stream: stream(i),
                    incarnation: Incarnation(1),
                    first,
                    last: end,
                    schema: 1,
                    prev_hash: prev,
                    hash,
                };
                Item::Block(Batch { header, bytes })
            });
        }
        Entry { position: Position(position), items }
    }

    fn hello(&self) -> Hello {
        let streams = (0..STREAMS).map(|i| StreamHello {
            stream: stream(i),
            schema: StreamSchema::default(),
            last: self.heads[i].0,
            hash: self.heads[i].1,
        });
        Hello {
            gateway: gateway(),
            incarnation: Incarnation(1),
            protocol: 1,
            software: String::new(),
            streams: streams.collect(),
        }
    }

    fn cut(&mut self) {
        self.cuts += 1;
        // What is on the way may still arrive at central, or not.
        if self.roll(2) == 0 {
            while self.roll(8) != 0 && self.central_receives() {}
        }
        if let Some(id) = self.session.take()
            && self.roll(2) == 0
        {
            // Else central has not noticed yet: a half-open connection.
            self.receiver.disconnected(id);
        }
        self.up.clear();
        self.down.clear();
        self.forwarder.disconnected(self.now);
    }

    fn gateway_outputs(&mut self) {
        while let Some(out) = self.forwarder.next_output() {
            match out {
                Out::Connect if self.roll(4) == 0 => self.forwarder.disconnected(self.now),
                Out::Connect => {
                    self.sessions += 1;
                    self.session = Some(SessionId(self.sessions));
                    self.forwarder.connected(self.now);
                }
                Out::SayHello => self.up.push_back(ToCentral::Hello(self.hello())),
                Out::Seek(p) => {
                    assert!(p >= self.trimmed, "seed {}: {p:?} is already trimmed", self.seed);
                    self.read = p.0 as usize;
                }
                Out::Send(Item::Block(b)) => self.up.push_back(ToCentral::Batch(b)),
                Out::Send(Item::Lost(l)) => self.up.push_back(ToCentral::Lost(l)),
                Out::Close(_) => {
                    self.session = None;
                    self.up.clear();
                    self.down.clear();
                }
                Out::Acked(..) => {}
                Out::Through(p) => {
                    assert!(p > self.trimmed, "seed {}: {p:?} goes back", self.seed);
                    self.trimmed = p;
                    if self.roll(3) == 0 {
                        self.saved = p;
                    }
                }
                Out::Halted(s, why) => panic!("seed {}: {s} halted: {why}", self.seed),
            }
        }
    }

    fn central_receives(&mut self) -> bool {
        let (Some(id), Some(message)) = (self.session, self.up.pop_front()) else { return false };
        let out = match message {
            ToCentral::Hello(h) => self.receiver.hello(id, &h, vec![], 0),
            ToCentral::Batch(b) => self.receiver.batch(id, Hashed::of(b), 0),
            ToCentral::Lost(l) => self.receiver.lost(id, &l),
            ToCentral::Ledger(_) => unreachable!("none is sent here"),
        };
        self.central_outputs(out);
        true
    }

    fn central_outputs(&mut self, outputs: Vec<Output>) {
        for o in outputs {
            match o {
                Output::Send(id, m) if Some(id) == self.session => self.down.push_back(m),
                Output::Send(..) | Output::Superseded(..) => {}
                Output::Refused(_, r) => panic!("seed {}: refused {r:?}", self.seed),
                Output::Reborn(..) => panic!("seed {}: reborn", self.seed),
            }
        }
    }

    /// A commit succeeds; or its outcome is unknown, and either way central begins anew from what is stored.
    fn central_commits(&mut self) {
        let group = self.receiver.take_group();
        let fate = self.roll(12);
        if fate != 0 {
            for r in &group.records {
                let rows = self.stored.entry(r.batch.header.stream.clone()).or_default();
                rows.extend(r.batch.header.first.0..=r.batch.header.last.0);
            }
            self.heads_stored.extend(group.heads.into_iter().map(|((_, s), h)| (s, h)));
        }
        if fate > 1 {
            let out = self.receiver.committed();
            return self.central_outputs(out);
        }
        let known = self.heads_stored.iter().map(|(s, h)| Known {
            gateway: gateway(),
            stream: s.clone(),
            head: Some(h.clone()),
            loss: None,
        });
        self.receiver = Receiver::new(known.collect::<Vec<_>>());
        self.cut();
    }

    fn gateway_crashes(&mut self) {
        self.cut();
        // What it remembers of its trimming may be older than what was done, which is harmless; here the log is not
        // really cut, so reading what central has again is allowed.
        self.trimmed = self.saved;
        self.forwarder = Forwarder::new(config(), self.random.clone(), self.saved);
    }

    fn step(&mut self) {
        self.gateway_outputs();
        match self.roll(100) {
            0..30 if self.forwarder.wants_entry() => {
                if let Some(entry) = self.log.get(self.read).cloned() {
                    self.read += 1;
                    self.forwarder.entry(self.now, entry);
                }
            }
            30..60 => {
                self.central_receives();
            }
            60..70 => self.central_commits(),
            70..95 => match self.down.pop_front() {
                Some(ToGateway::Welcome(w)) => self.forwarder.welcome(self.now, w),
                Some(ToGateway::Acks(a)) => self.forwarder.acks(self.now, a),
                Some(other) => panic!("seed {}: {other:?}", self.seed),
                None => {}
            },
            95 if self.roll(3) == 0 => self.cut(),
            96 if self.roll(6) == 0 => self.gateway_crashes(),
            _ => {}
        }
        self.now += 1_000_000;
        self.forwarder.tick(self.now);
    }

    fn run(mut self) -> u32 {
        for _ in 0..1_000_000 {
            if self.trimmed.0 as usize == ENTRIES {
                self.check();
                return self.cuts;
            }
            self.step();
        }
        panic!("seed {}: not done; trimmed through {:?}", self.seed, self.trimmed);
    }

    fn check(&self) {
        let mut expected: BTreeMap<StreamName, Vec<u64>> = BTreeMap::new();
        for item in self.log.iter().flat_map(|e| &e.items) {
            if let Item::Block(b) = item {
                let rows = expected.entry(b.header.stream.clone()).or_default();
                rows.extend(b.header.first.0..=b.header.last.0);
            }
        }
        assert_eq!(self.stored, expected, "seed {}", self.seed);
        for (s, h) in &self.heads_stored {
            let i: usize = s.as_str()[1..].parse().expect("a number");
            assert_eq!((h.last, h.hash), self.heads[i], "seed {}", self.seed);
        }
    }
}

fn config() -> Config {
    Config { in_flight_batches: 6, in_flight_bytes: 60, ..Config::default() }
}

#[test]
fn every_row_once_whatever_happens() {
    let mut cuts = 0;
    for seed in 0..400 {
        cuts += World::new(seed).run();
    }
    assert!(cuts > 2_000, "the network was too kind: {cuts} cuts");
}
