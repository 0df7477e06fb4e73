//! The door: every source hands its events over here, and acknowledges when the ticket it got is durable.
//!
//! Invariants:
//! - an event is in the input log once for all the lanes that want it, or, when none wants it, counted and forgotten,
//!   except for the packet id of a publish whose session's ids are followed (see [`mqtt::redelivery`]);
//! - what is recognised as a repeat (a redelivered publish, a known `Idempotency-Key`) is not stored again, and may be
//!   acknowledged only when everything taken before it is durable, since the first copy may still be on its way;
//! - a push is taken whole or not at all: a source that is told "full" keeps its events and tries again.
//!
//! It never decodes a payload and never acknowledges anything itself.

mod keys;
mod meta;
mod repeats;
pub mod route;

pub use meta::{InputMeta, events_by_stream};

use crate::event::{Delivery, Event, cut_payload};
use crate::limits::EVENT_PAYLOAD_BYTES_MAX;
use daemon::metrics::{Counter, CounterVec, Registry};
use journal::{FrameSeq, Hub, HubOptions, JournalError, Log, PushError, RealDisk, Ticket};
use keys::Keyed;
use meta::Shared;
use record::{SourceName, clock::Clock};
use repeats::{Memory, NOT_STORED, Note, SessionNote, Written, publish_hash};
use route::{LaneIndex, RouteCache, Routes};
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};
use tokio::sync::watch;

/// Publishes of a scratch that are searched for the first copy of a repeat.
const SCRATCH_SEARCH_MAX: usize = 1_024;

/// The kind of input frames that hold events.
pub const EVENTS: u8 = 1;

/// The door of a gateway.
pub struct Door {
    hub: Hub<InputMeta>,
    durable: watch::Receiver<u64>,
    routes: Arc<Routes>,
    shared: Arc<Shared>,
    live: Mutex<Memory>,
    /// The newest ticket given out.
    newest: AtomicU64,
    clock: Arc<dyn Clock>,
    metrics: DoorMetrics,
}

struct DoorMetrics {
    events: CounterVec,
    bytes: CounterVec,
    unmatched: CounterVec,
    repeats: CounterVec,
    too_large: CounterVec,
}

impl DoorMetrics {
    fn new(registry: &Registry) -> Self {
        let by_source = |name: &str, help: &str| registry.counter_vec(name, help, &["source"]);
        Self {
            events: by_source("tidegate_ingest_events_total", "Events taken into the input log."),
            bytes: by_source("tidegate_ingest_bytes_total", "Bytes of payload taken into the input log."),
            unmatched: by_source("tidegate_ingest_unmatched_total", "Events whose topic no stream wants."),
            repeats: by_source(
                "tidegate_ingest_repeats_total",
                "Redeliveries recognised and not stored again.",
            ),
            too_large: by_source(
                "tidegate_ingest_too_large_total",
                "Events over the size limit: dead letters over MQTT, refused over HTTP.",
            ),
        }
    }
}

/// What a source is made from.
pub struct DoorParts {
    /// The input log, opened.
    pub log: Log<RealDisk>,
    /// How rounds are collected and bounded.
    pub options: HubOptions,
    /// Which streams want what.
    pub routes: Arc<Routes>,
    /// Receive times.
    pub clock: Arc<dyn Clock>,
}

impl Door {
    /// Rebuilds the memory of repeats from the newest checkpoint and the frames after it, and opens.
    pub fn open(parts: DoorParts, registry: &Registry) -> Result<Arc<Self>, JournalError> {
        let DoorParts { log, options, routes, clock } = parts;
        let live = rebuild(&log)?;
        // The second copy is decoded from the first one's bytes: both must know the same.
        let written = Written::new(Memory::decode(&live.encode()).unwrap_or_default());
        let names = routes.streams().map(|s| s.as_str().to_owned()).collect();
        let shared = Arc::new(Shared { names, written });
        let for_checkpoints = shared.clone();
        let options = HubOptions { kind: EVENTS, ..options };
        let hub = Hub::start(log, options, Box::new(move || for_checkpoints.written.checkpoint()))?;
        let metrics = DoorMetrics::new(registry);
        Ok(Arc::new(Self {
            durable: hub.watch(),
            hub,
            routes,
            shared,
            live: Mutex::new(live),
            newest: AtomicU64::new(0),
            clock,
            metrics,
        }))
    }

    /// A place for one connection or request of a source to put its events.
    pub fn intake(self: &Arc<Self>, source: &SourceName) -> Intake {
        let name = source.as_str();
        let m = &self.metrics;
        Intake {
            cache: RouteCache::new(self.routes.clone(), source.clone()),
            source: source.clone(),
            scratch: Vec::new(),
            events: 0,
            noted: 0,
            payload_bytes: 0,
            lanes: vec![0; self.shared.names.len()],
            notes: Vec::new(),
            in_flight: 0,
            persistent: false,
            counters: IntakeCounters {
                events: m.events.with(&[name]),
                bytes: m.bytes.with(&[name]),
                unmatched: m.unmatched.with(&[name]),
                repeats: m.repeats.with(&[name]),
                too_large: m.too_large.with(&[name]),
            },
            door: self.clone(),
        }
    }

    /// The newest durable ticket; closed when the input log is poisoned or closed.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.hub.watch()
    }

    /// Bytes waiting for the next commit.
    pub fn backlog_bytes(&self) -> usize {
        self.hub.backlog_bytes()
    }

    /// Whether pushes are refused because the buffer is full.
    pub fn is_over_quota(&self) -> bool {
        self.hub.is_over_quota()
    }

    /// The hand-off to the input log.
    pub fn hub(&self) -> &Hub<InputMeta> {
        &self.hub
    }

    /// The routes.
    pub fn routes(&self) -> &Arc<Routes> {
        &self.routes
    }

    /// The ticket after which everything taken so far is durable.
    pub fn newest_ticket(&self) -> Ticket {
        Ticket(self.newest.load(Ordering::SeqCst))
    }

    /// Whether a session of a client ([`session_hash`]) is known that outlives its connections, also from an earlier run.
    pub fn knows_session(&self, session: u64) -> bool {
        self.live().knows_session(session)
    }

    fn live(&self) -> std::sync::MutexGuard<'_, Memory> {
        // Every change leaves the memory usable at each step, so a panic elsewhere does not spoil it.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn rebuild(log: &Log<RealDisk>) -> Result<Memory, JournalError> {
    let checkpoint = log.newest_checkpoint()?;
    let (mut memory, from) = match &checkpoint {
        Some(frame) => match Memory::decode(&frame.payload) {
            Some(memory) => (memory, FrameSeq(frame.seq.0 + 1)),
            None => {
                tracing::warn!(
                    frame = frame.seq.0,
                    "the input log's checkpoint is unreadable: repeats from before it are not recognised"
                );
                (Memory::default(), FrameSeq(frame.seq.0 + 1))
            }
        },
        None => (Memory::default(), FrameSeq(1)),
    };
    let mut reader = log.reader(from);
    while let Some(frame) = reader.next()? {
        if frame.kind == EVENTS {
            let (sessions, keys) = meta::notes(&frame.meta).unwrap_or_default();
            memory.add_frame(&frame.payload, &sessions, &keys);
        }
    }
    Ok(memory)
}

/// What became of an event at the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It stands in the scratch and goes with the next push.
    Stored,
    /// It is a repeat: acknowledge it with the next ticket, store nothing.
    Repeat,
    /// No stream wants it.
    Unmatched,
    /// A request's event is larger than [`EVENT_PAYLOAD_BYTES_MAX`].
    TooLarge,
}

/// What became of a request with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    /// Its events are taken.
    Stored(Ticket),
    /// It was taken before; nothing more is stored.
    Repeated(Ticket),
    /// The key belongs to another request; nothing is stored.
    OtherRequest,
}

/// A publish as it came in.
#[derive(Debug, Clone, Copy)]
pub struct Publish<'a> {
    /// The client's id.
    pub client: &'a str,
    /// Stands for source and client ([`session_hash`]).
    pub session: u64,
    /// Topic, checked by the codec.
    pub topic: &'a str,
    /// Payload.
    pub payload: &'a [u8],
    /// 0 or 1.
    pub qos: u8,
    /// The DUP flag.
    pub dup: bool,
    /// Packet id; 0 for QoS 0.
    pub packet_id: u16,
}

/// A number that stands for a source and a client of it, the same in every run; never 0.
pub fn session_hash(source: &SourceName, client: &str) -> u64 {
    mqtt::hash::xxh64(client.as_bytes(), mqtt::hash::xxh64(source.as_str().as_bytes(), 0)).max(1)
}

/// Collects the events of one read or request and pushes them at once.
pub struct Intake {
    door: Arc<Door>,
    source: SourceName,
    cache: RouteCache,
    scratch: Vec<u8>,
    /// Records in the scratch.
    events: u32,
    /// Those of them that no stream wants.
    noted: u32,
    payload_bytes: u64,
    lanes: Vec<u32>,
    notes: Vec<Note>,
    /// Most publishes that the client of the session can have in flight.
    in_flight: u16,
    persistent: bool,
    counters: IntakeCounters,
}

struct IntakeCounters {
    events: Counter,
    bytes: Counter,
    unmatched: Counter,
    repeats: Counter,
    too_large: Counter,
}

impl Intake {
    /// The session that the publishes belong to from now on. `opens`: nothing that is known of the client counts any
    /// more, from now on. `persistent`: the session outlives its connections. `in_flight`: see [`mqtt::redelivery`].
    pub fn begin_session(&mut self, session: u64, opens: bool, persistent: bool, in_flight: u16) {
        self.in_flight = in_flight;
        self.persistent = persistent;
        let note = Note::Session(SessionNote { before: self.events, session, opens, persistent, in_flight });
        self.door.live().add(&note, 0);
        self.notes.push(note);
    }

    /// The client may have more publishes in flight than was known; a smaller bound than the present one is ignored.
    pub fn raise_in_flight(&mut self, session: u64, in_flight: u16) {
        if in_flight > self.in_flight {
            self.begin_session(session, false, self.persistent, in_flight);
        }
    }

    /// Takes a publish into the scratch. A stored QoS 1 publish is remembered as soon as it is pushed. One that is too
    /// large is stored with the beginning of its payload only and becomes a dead letter: refusing it would make its
    /// sender repeat it for ever.
    pub fn publish(&mut self, p: &Publish<'_>) -> Taken {
        let lanes = self.cache.by_topic(p.topic);
        if lanes.is_empty() {
            self.counters.unmatched.inc();
            self.note_unmatched(p);
            return Taken::Unmatched;
        }
        let cut = p.payload.len() > EVENT_PAYLOAD_BYTES_MAX;
        let hash = if cut || p.qos > 0 { publish_hash(p.topic, p.payload) } else { 0 };
        if cut {
            self.counters.too_large.inc();
        }
        if p.qos > 0 {
            if p.dup && self.is_repeat(p, hash, &lanes) {
                self.counters.repeats.inc();
                return Taken::Repeat;
            }
            self.notes.push(Note::Publish { session: p.session, packet_id: p.packet_id, hash });
        }
        let delivery = Delivery {
            qos: p.qos,
            dup: p.dup,
            http: false,
            cut,
            noted: false,
            packet_id: p.packet_id,
            session: if p.qos > 0 { p.session } else { 0 },
        };
        let kept = cut.then(|| cut_payload(p.payload, hash));
        self.store(delivery, "", p.client, p.topic, kept.as_deref().unwrap_or(p.payload), &lanes);
        Taken::Stored
    }

    /// The packet id of a publish that is not to be stored goes into the log where those of its session are followed:
    /// without it, the client's ids could come round to a publish that was stored, and nobody would know.
    pub fn note_unmatched(&mut self, p: &Publish<'_>) {
        let is_mine = |note: &Note| matches!(note, Note::Publish { session, .. } if *session == p.session);
        if p.qos == 0 || !(self.notes.iter().any(is_mine) || self.door.live().follows(p.session)) {
            return;
        }
        self.notes.push(Note::Publish { session: p.session, packet_id: p.packet_id, hash: NOT_STORED });
        let Publish { qos, dup, packet_id, session, .. } = *p;
        let delivery = Delivery { qos, dup, noted: true, packet_id, session, ..Delivery::default() };
        self.store(delivery, "", "", "", &[], &[]);
        self.noted += 1;
    }

    /// Whether a publish with DUP repeats one that was stored, or one that stands in this scratch: that one is not
    /// acknowledged, so that its packet id can stand for nothing else.
    fn is_repeat(&self, p: &Publish<'_>, hash: u64, lanes: &[LaneIndex]) -> bool {
        let mine = Note::Publish { session: p.session, packet_id: p.packet_id, hash };
        if self.notes.iter().rev().take(SCRATCH_SEARCH_MAX).any(|note| *note == mine) {
            return true;
        }
        let durable = *self.door.durable.borrow();
        let live = self.door.live();
        live.is_redelivery(p.session, p.packet_id, hash, self.in_flight, durable)
            || (self.door.routes.are_timed(lanes) && live.is_same_reading(p.session, p.packet_id, hash))
    }

    /// Takes an event of an HTTP request for the named lane.
    pub fn post(&mut self, lane: LaneIndex, stream: &str, device: &str, payload: &[u8]) -> Taken {
        if payload.len() > EVENT_PAYLOAD_BYTES_MAX {
            self.counters.too_large.inc();
            return Taken::TooLarge;
        }
        let delivery = Delivery { http: true, ..Delivery::default() };
        self.store(delivery, stream, device, "", payload, &[lane]);
        Taken::Stored
    }

    fn store(
        &mut self,
        delivery: Delivery,
        stream: &str,
        client: &str,
        topic: &str,
        payload: &[u8],
        lanes: &[LaneIndex],
    ) {
        let received_ns = self.door.clock.wall_ns();
        let source = self.source.as_str();
        Event { delivery, received_ns, source, stream, client, topic, payload }.encode(&mut self.scratch);
        self.events += 1;
        self.payload_bytes += payload.len() as u64;
        for lane in lanes {
            if let Some(n) = self.lanes.get_mut(usize::from(*lane)) {
                *n += 1;
            }
        }
    }

    /// Events in the scratch.
    pub fn events(&self) -> u32 {
        self.events
    }

    /// Those of them that came with QoS 0.
    pub fn events_of_qos_0(&self) -> u32 {
        let noted = self.notes.iter().filter(|note| matches!(note, Note::Publish { .. })).count();
        self.events.saturating_sub(u32::try_from(noted).unwrap_or(u32::MAX))
    }

    /// Bytes in the scratch.
    pub fn bytes(&self) -> usize {
        self.scratch.len()
    }

    /// Pushes the scratch. The ticket covers it and everything taken before it; with an empty scratch it covers what
    /// was taken before. On an error the scratch stays as it is, to be pushed again.
    pub fn push(&mut self) -> Result<Ticket, PushError> {
        if self.events == 0 {
            return Ok(self.door.newest_ticket());
        }
        // Held across the push: a repeat that comes over another connection meanwhile must find the notes.
        let mut live = (!self.notes.is_empty()).then(|| self.door.live());
        let ticket = self.hand_over()?;
        if let Some(live) = &mut live {
            self.notes.iter().for_each(|n| live.add(n, ticket.0));
        }
        drop(live);
        self.clear_counted();
        Ok(ticket)
    }

    /// Pushes an HTTP request's events unless its key is known. `fingerprint` stands for all that was sent.
    pub fn push_keyed(&mut self, key: u64, fingerprint: u64) -> Result<Keeping, PushError> {
        let received_ns = self.door.clock.wall_ns();
        // Held until the key is noted: of two requests at a time with one key, the second finds the first.
        let mut live = self.door.live();
        if let Some(first) = live.keys.find(key, received_ns) {
            drop(live);
            if first != fingerprint {
                self.discard();
                return Ok(Keeping::OtherRequest);
            }
            self.counters.repeats.inc_by(self.events.into());
            self.discard();
            return Ok(Keeping::Repeated(self.door.newest_ticket()));
        }
        if self.events == 0 {
            // Nothing goes into the log, so there is no round to wait for and nothing that a repeat could double.
            return Ok(Keeping::Stored(self.door.newest_ticket()));
        }
        let keyed = Keyed { key, fingerprint, received_ns };
        self.notes.push(Note::Key(keyed));
        match self.hand_over() {
            Ok(ticket) => {
                live.keys.add(&keyed);
                drop(live);
                self.clear_counted();
                Ok(Keeping::Stored(ticket))
            }
            Err(e) => {
                self.notes.pop();
                Err(e)
            }
        }
    }

    fn hand_over(&self) -> Result<Ticket, PushError> {
        let ticket = self.door.hub.push(&self.scratch, self.events, |meta| {
            if meta.shared.is_none() {
                meta.shared = Some(self.door.shared.clone());
            }
            meta.lanes.resize(self.lanes.len(), 0);
            meta.lanes.iter_mut().zip(&self.lanes).for_each(|(total, n)| *total += n);
            let before = meta.events;
            meta.notes.extend(self.notes.iter().map(|note| note.after(before)));
            meta.events += self.events;
        })?;
        self.door.newest.fetch_max(ticket.0, Ordering::SeqCst);
        Ok(ticket)
    }

    fn clear_counted(&mut self) {
        self.counters.events.inc_by((self.events - self.noted).into());
        self.counters.bytes.inc_by(self.payload_bytes);
        self.discard();
    }

    /// Forgets what is in the scratch.
    pub fn discard(&mut self) {
        self.scratch.clear();
        self.notes.clear();
        self.lanes.fill(0);
        self.events = 0;
        self.noted = 0;
        self.payload_bytes = 0;
    }
}
