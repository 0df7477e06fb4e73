//! The redelivery window against simulated devices on a lossy wire, with crashes of the server: nothing may be lost,
//! whatever way a device chooses its packet ids, and a device that counts up is not stored twice.
//!
//! Every event has the same topic and payload, so that packet ids alone must tell them apart: the worst case.

#![allow(clippy::unwrap_used, reason = "what fails in a helper of a test fails the test")]

use std::collections::{HashMap, HashSet, VecDeque};

use mqtt::redelivery::{ClientKey, Limits, Run, Verdict, Window};
use mqtt::{PacketId, Ticket};

const HASH: u64 = 42;
const CLIENT: ClientKey = ClientKey(7);

/// How a device chooses packet ids.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Ids {
    /// 1, 2, …, 65,535, 1, …, starting after the given one.
    CountUp(u16),
    /// The lowest that is not in flight.
    LowestFree,
    /// 1 to the given number and round again.
    Circle(u16),
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

#[derive(Clone, Copy)]
struct Message {
    id: PacketId,
    event: u64,
    dup: bool,
}

struct World {
    random: Random,
    ids: Ids,
    in_flight_max: usize,
    bound: u16,
    last_id: u16,
    next_event: u64,
    /// Sent and not acknowledged, in the order of sending.
    outstanding: VecDeque<(PacketId, u64)>,
    acknowledged: Vec<u64>,
    to_server: VecDeque<Message>,
    to_client: VecDeque<PacketId>,
    window: Window,
    /// Log of the server: runs since the checkpoint.
    log: Vec<Vec<u8>>,
    checkpoint: Vec<u8>,
    stored: HashMap<u64, u32>,
    /// Received and not yet durable: the run, its events, and repeats of what is not durable either.
    buffered: Vec<(Vec<u8>, Vec<u64>)>,
    acks_waiting: VecDeque<(Ticket, PacketId)>,
    round: u64,
}

impl World {
    fn new(seed: u64, ids: Ids, in_flight_max: usize, bound: u16) -> Self {
        let mut checkpoint = Vec::new();
        Window::new(Limits::default()).encode(Ticket(0), &mut checkpoint);
        Self {
            random: Random(seed),
            ids,
            in_flight_max,
            bound,
            last_id: if let Ids::CountUp(start) = ids { start } else { 0 },
            next_event: 0,
            outstanding: VecDeque::new(),
            acknowledged: Vec::new(),
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            window: Window::new(Limits::default()),
            log: Vec::new(),
            checkpoint,
            stored: HashMap::new(),
            buffered: Vec::new(),
            acks_waiting: VecDeque::new(),
            round: 1,
        }
    }

    fn fresh_id(&mut self) -> PacketId {
        let taken: HashSet<u16> = self.outstanding.iter().map(|(id, _)| id.get()).collect();
        let next = match self.ids {
            Ids::CountUp(_) => {
                (0..).map(|n| self.last_id.wrapping_add(1 + n)).find(|id| *id != 0 && !taken.contains(id))
            }
            Ids::LowestFree => (1..).find(|id| !taken.contains(id)),
            Ids::Circle(size) => {
                (0..size).map(|n| (self.last_id + n) % size + 1).find(|id| !taken.contains(id))
            }
        };
        self.last_id = next.unwrap();
        PacketId::new(self.last_id).unwrap()
    }

    fn publish(&mut self) {
        if self.outstanding.len() >= self.in_flight_max {
            return;
        }
        let id = self.fresh_id();
        let event = self.next_event;
        self.next_event += 1;
        self.outstanding.push_back((id, event));
        self.to_server.push_back(Message { id, event, dup: false });
    }

    /// The server reads up to a few messages at once.
    fn receive(&mut self) {
        let reads = 1 + self.random.below(6);
        let mut run = Run::continued(CLIENT, true, self.bound);
        let mut events = Vec::new();
        for _ in 0..reads {
            let Some(message) = self.to_server.pop_front() else { break };
            if message.dup {
                self.take(&mut run, &mut events);
                if let Verdict::Repeat(ticket) =
                    self.window.judge(CLIENT, message.id, HASH, self.bound, Ticket(self.round - 1))
                {
                    self.acks_waiting.push_back((ticket, message.id));
                    continue;
                }
            }
            run.push(message.id, HASH);
            events.push(message.event);
            self.acks_waiting.push_back((Ticket(self.round), message.id));
        }
        self.take(&mut run, &mut events);
    }

    fn take(&mut self, run: &mut Run, events: &mut Vec<u64>) {
        self.window.record(run, Ticket(self.round));
        let mut bytes = Vec::new();
        run.encode(&mut bytes);
        self.buffered.push((bytes, std::mem::take(events)));
        run.reset(self.bound);
    }

    /// One round of the journal becomes durable; now and then a checkpoint comes before it.
    fn sync(&mut self) {
        if self.random.below(8) == 0 {
            self.checkpoint.clear();
            self.window.encode(Ticket(self.round - 1), &mut self.checkpoint);
            self.log.clear();
        }
        for (run, events) in self.buffered.drain(..) {
            self.log.push(run);
            for event in events {
                *self.stored.entry(event).or_default() += 1;
            }
        }
        while let Some(&(_, id)) = self.acks_waiting.front().filter(|(ticket, _)| ticket.0 <= self.round) {
            self.acks_waiting.pop_front();
            self.to_client.push_back(id);
        }
        self.round += 1;
    }

    fn hear(&mut self) {
        let Some(id) = self.to_client.pop_front() else { return };
        let at = self.outstanding.iter().position(|(known, _)| *known == id).expect("acks match what is out");
        let (_, event) = self.outstanding.remove(at).unwrap();
        self.acknowledged.push(event);
    }

    /// The connection breaks: what was on the wire is gone, and the client sends again what it has no answer for.
    fn reconnect(&mut self) {
        let reaches = self.random.below(self.to_client.len() as u64 + 1);
        for _ in 0..reaches {
            self.hear();
        }
        self.to_server.clear();
        self.to_client.clear();
        self.acks_waiting.clear();
        let again = self.outstanding.iter().map(|&(id, event)| Message { id, event, dup: true });
        self.to_server.extend(again);
    }

    /// The server is killed: what is not durable is gone.
    fn crash(&mut self) {
        self.buffered.clear();
        self.window = Window::decode(&self.checkpoint, Limits::default()).unwrap();
        for run in &self.log {
            let mut bytes = run.as_slice();
            self.window.record(&Run::decode(&mut bytes).unwrap(), Ticket(0));
            assert!(bytes.is_empty());
        }
        self.round = 1;
        let mut checkpoint = Vec::new();
        self.window.encode(Ticket(0), &mut checkpoint);
        self.checkpoint = checkpoint;
        self.log.clear();
        self.reconnect();
    }

    fn step(&mut self, trouble: bool) {
        match self.random.below(if trouble { 100 } else { 96 }) {
            0..45 => self.publish(),
            45..65 => self.receive(),
            65..80 => self.sync(),
            80..96 => self.hear(),
            96..99 => self.reconnect(),
            _ => self.crash(),
        }
    }

    fn settle(&mut self) {
        self.reconnect();
        while !self.outstanding.is_empty() {
            self.receive();
            self.sync();
            self.hear();
        }
    }

    fn lost(&self) -> usize {
        self.acknowledged.iter().filter(|event| !self.stored.contains_key(event)).count()
    }

    fn doubled(&self) -> usize {
        self.stored.values().filter(|times| **times > 1).count()
    }
}

#[test]
fn nothing_is_lost_whatever_way_ids_are_chosen() {
    let ways = [
        Ids::CountUp(0),
        Ids::CountUp(65_400),
        Ids::LowestFree,
        Ids::Circle(20),
        Ids::Circle(64),
        Ids::Circle(300),
    ];
    for seed in 0..40 {
        for ids in ways {
            for in_flight_max in [1, 5, 20] {
                let mut world = World::new(seed, ids, in_flight_max, 20);
                for _ in 0..2_000 {
                    world.step(true);
                }
                world.settle();
                assert_eq!(world.acknowledged.len() as u64, world.next_event);
                assert_eq!(world.lost(), 0, "seed {seed}, {ids:?}, {in_flight_max} in flight");
            }
        }
    }
}

#[test]
fn a_device_that_counts_up_is_stored_once_after_its_first_publishes() {
    for seed in 0..200 {
        let mut world = World::new(seed, Ids::CountUp(if seed % 2 == 0 { 0 } else { 65_300 }), 20, 20);
        while world.stored.len() < 100 {
            world.step(false);
        }
        for _ in 0..3_000 {
            world.step(true);
        }
        world.settle();
        assert_eq!((world.lost(), world.doubled()), (0, 0), "seed {seed}");
    }
}

#[test]
fn devices_that_reuse_ids_are_never_judged_certain() {
    for ids in [Ids::LowestFree, Ids::Circle(20)] {
        for seed in 0..40 {
            let mut world = World::new(seed, ids, 20, 20);
            for _ in 0..3_000 {
                world.step(true);
                for id in 1..=20 {
                    let verdict =
                        world.window.judge(CLIENT, PacketId::new(id).unwrap(), HASH, 20, Ticket(u64::MAX));
                    assert_eq!(verdict, Verdict::Store, "seed {seed}, {ids:?}, id {id}");
                }
            }
        }
    }
}
