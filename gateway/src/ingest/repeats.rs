//! What must be remembered to recognise repeats, kept twice: by the door, for what was taken, and by the writer of the
//! input log, for what stands in frames.
//!
//! Only the second may go into a checkpoint: were a checkpoint to know an event whose frame a crash then tears, its
//! redelivery would be acknowledged though it is nowhere. So a frame's notes join the writer's memory when the next
//! frame is made, never earlier.

use super::keys::{Keyed, Keys};
use crate::event::{Event, Events, of_cut_payload};
use mqtt::redelivery::{ClientKey, Limits, Run, Verdict, Window};
use mqtt::{PacketId, Ticket};
use std::sync::{Mutex, PoisonError};

const VERSION: u8 = 2;

/// One thing to remember.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Note {
    /// A session began, or its bound grew.
    Session(SessionNote),
    /// A QoS 1 publish.
    Publish {
        /// Stands for source and client.
        session: u64,
        /// Its packet id.
        packet_id: u16,
        /// Hash of topic and payload.
        hash: u64,
    },
    /// A request with an `Idempotency-Key`.
    Key(Keyed),
}

/// What is known of an MQTT session beside its publishes; see [`mqtt::redelivery`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SessionNote {
    /// Events that stand before it, in the scratch or in the frame.
    pub(super) before: u32,
    /// Stands for source and client.
    pub(super) session: u64,
    /// What was known of the client is forgotten.
    pub(super) opens: bool,
    /// It outlives its connections.
    pub(super) persistent: bool,
    /// Most publishes that the client can have in flight.
    pub(super) in_flight: u16,
}

impl SessionNote {
    fn run(&self) -> Run {
        let make = if self.opens { Run::opened } else { Run::continued };
        make(client(self.session), self.persistent, self.in_flight)
    }
}

fn client(session: u64) -> ClientKey {
    ClientKey(session.into())
}

impl Note {
    /// The same, in a frame that has this many events already.
    pub(super) fn after(self, events: u32) -> Self {
        match self {
            Self::Session(session) => {
                Self::Session(SessionNote { before: session.before.saturating_add(events), ..session })
            }
            other => other,
        }
    }

    /// What an event of the input log asks to be remembered; keys stand in the frame's meta.
    pub(super) fn of(event: &Event<'_>) -> Option<Self> {
        let d = &event.delivery;
        if d.session == 0 || d.qos == 0 {
            None
        } else if d.noted {
            Some(Self::Publish { session: d.session, packet_id: d.packet_id, hash: NOT_STORED })
        } else {
            let whole = || publish_hash(event.topic, event.payload);
            let hash = if d.cut { of_cut_payload(event.payload).0 } else { whole() };
            Some(Self::Publish { session: d.session, packet_id: d.packet_id, hash })
        }
    }
}

/// The hash of a publish that was not stored: no publish is recognised by it.
pub(super) const NOT_STORED: u64 = mqtt::redelivery::NO_CONTENT;

/// The hash that a publish is recognised by.
pub(super) fn publish_hash(topic: &str, payload: &[u8]) -> u64 {
    mqtt::redelivery::content_hash(topic, payload)
}

/// The memory itself.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) publishes: Window,
    pub(super) keys: Keys,
}

impl Memory {
    /// Adds a note of what went into the log under this ticket; 0 for what was there at start.
    pub(super) fn add(&mut self, note: &Note, ticket: u64) {
        match *note {
            Note::Session(session) => self.publishes.begin(&session.run(), Ticket(ticket)),
            Note::Publish { session, packet_id, hash } => {
                if let Some(id) = PacketId::new(packet_id) {
                    self.publishes.store(client(session), id, hash, Ticket(ticket));
                }
            }
            Note::Key(keyed) => self.keys.add(&keyed),
        }
    }

    /// Adds what a frame asks for; damaged records are stepped over.
    pub(super) fn add_frame(&mut self, payload: &[u8], sessions: &[SessionNote], keys: &[Keyed]) {
        keys.iter().for_each(|keyed| self.keys.add(keyed));
        let mut sessions = sessions.iter().peekable();
        for (at, event) in Events::new(payload).enumerate() {
            while let Some(session) = sessions.next_if(|s| s.before as usize <= at) {
                self.add(&Note::Session(*session), 0);
            }
            if let Some(note) = event.ok().as_ref().and_then(Note::of) {
                self.add(&note, 0);
            }
        }
        for session in sessions {
            self.add(&Note::Session(*session), 0);
        }
    }

    /// Whether a publish with DUP is certain to repeat one that was taken. `durable` is the newest durable ticket.
    pub(super) fn is_redelivery(
        &self,
        session: u64,
        packet_id: u16,
        hash: u64,
        in_flight: u16,
        durable: u64,
    ) -> bool {
        PacketId::new(packet_id).is_some_and(|id| {
            let verdict = self.publishes.judge(client(session), id, hash, in_flight, Ticket(durable));
            verdict != Verdict::Store
        })
    }

    /// Whether a publish with DUP, whose payload carries the time of its reading, repeats one that was taken.
    pub(super) fn is_same_reading(&self, session: u64, packet_id: u16, hash: u64) -> bool {
        PacketId::new(packet_id).is_some_and(|id| self.publishes.resembles(client(session), id, hash))
    }

    /// Whether a publish of this session is remembered, so that the packet ids of all others count.
    pub(super) fn follows(&self, session: u64) -> bool {
        self.publishes.follows(client(session))
    }

    /// Whether this session is known and outlives its connections.
    pub(super) fn knows_session(&self, session: u64) -> bool {
        self.publishes.knows(client(session))
    }

    /// A checkpoint's payload: version, keys, publishes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        self.keys.encode(&mut out);
        // The writer's memory holds only what is durable, so nothing is to be left out.
        self.publishes.encode(Ticket(u64::MAX), &mut out);
        out
    }

    /// Reads a checkpoint's payload.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&VERSION, rest) = bytes.split_first()? else { return None };
        let (keys, rest) = Keys::decode(rest)?;
        let publishes = Window::decode(rest, Limits::default()).ok()?;
        Some(Self { publishes, keys })
    }
}

/// The writer's memory.
#[derive(Debug, Default)]
pub(super) struct Written(Mutex<WrittenState>);

#[derive(Debug, Default)]
struct WrittenState {
    memory: Memory,
    /// Notes of the frame made last, which may not be on disk yet.
    newest: Vec<Note>,
}

impl Written {
    pub(super) fn new(memory: Memory) -> Self {
        Self(Mutex::new(WrittenState { memory, newest: Vec::new() }))
    }

    /// A frame with these notes is being made; the one before it is on disk.
    pub(super) fn next_frame(&self, notes: &[Note]) {
        let mut state = self.lock();
        let WrittenState { memory, newest } = &mut *state;
        newest.iter().for_each(|n| memory.add(n, 0));
        newest.clear();
        newest.extend_from_slice(notes);
    }

    /// What a new segment starts with.
    pub(super) fn checkpoint(&self) -> Vec<u8> {
        self.lock().memory.encode()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, WrittenState> {
        // Every change leaves the state usable at each step, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Delivery;

    #[test]
    fn a_checkpoint_knows_only_frames_before_it() {
        let written = Written::default();
        let note = |key| Note::Key(Keyed { key, fingerprint: 5, received_ns: 10 });
        written.next_frame(&[note(1)]);
        let knows = |key| Memory::decode(&written.checkpoint()).expect("whole").keys.find(key, 10).is_some();
        assert!(!knows(1), "its frame may still be torn");
        written.next_frame(&[note(2)]);
        assert!(knows(1) && !knows(2));
    }

    #[test]
    fn session_notes_stand_between_the_events_of_a_frame() {
        let delivery = |packet_id| Delivery { qos: 1, packet_id, session: 7, ..Delivery::default() };
        let mut payload = Vec::new();
        for id in 1..=300 {
            Event { delivery: delivery(id), topic: "t", ..Event::default() }.encode(&mut payload);
        }
        let opens = |before| SessionNote { before, session: 7, opens: true, persistent: true, in_flight: 10 };
        let hash = publish_hash("t", b"");
        let known = |sessions: &[SessionNote], id| {
            let mut memory = Memory::default();
            memory.add_frame(&payload, sessions, &[]);
            let memory = Memory::decode(&memory.encode()).expect("whole");
            assert!(memory.knows_session(7));
            memory.is_redelivery(7, id, hash, 10, 0)
        };
        assert!(known(&[opens(0)], 100));
        assert!(!known(&[opens(0)], 20), "too near to the beginning of the session");
        assert!(!known(&[opens(0), opens(100)], 100));
        assert!(known(&[opens(0), opens(100)], 127));
        assert!(!known(&[opens(0), opens(300)], 300), "the session began after all events");
    }

    #[test]
    fn damaged_checkpoints_are_none() {
        assert!(Memory::decode(&[]).is_none());
        assert!(Memory::decode(&[9, 0, 0, 0, 0]).is_none());
    }
}
