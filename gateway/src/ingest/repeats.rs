//! What must be remembered to recognise repeats, kept twice: by the door, for what was taken, and by the writer of the
//! input log, for what stands in frames.
//!
//! Only the second may go into a checkpoint: were a checkpoint to know an event whose frame a crash then tears, its
//! redelivery would be acknowledged though it is nowhere. So a frame's notes join the writer's memory when the next
//! frame is made, never earlier.

use super::keys::Keys;
use super::window::Window;
use crate::event::{Event, Events};
use std::sync::{Mutex, PoisonError};

const VERSION: u8 = 1;

/// One thing to remember.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Note {
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
    Key {
        /// Hash of stream and key.
        key: u64,
        /// When it came.
        received_ns: i64,
    },
}

impl Note {
    /// What an event of the input log asks to be remembered.
    pub(super) fn of(event: &Event<'_>) -> Option<Self> {
        let d = &event.delivery;
        if d.session == 0 {
            None
        } else if d.http {
            Some(Self::Key { key: d.session, received_ns: event.received_ns })
        } else if d.qos > 0 {
            let hash = publish_hash(event.topic, event.payload);
            Some(Self::Publish { session: d.session, packet_id: d.packet_id, hash })
        } else {
            None
        }
    }
}

/// The hash that a publish is recognised by: XXH64 of its payload, seeded with that of its topic.
pub(super) fn publish_hash(topic: &str, payload: &[u8]) -> u64 {
    mqtt::hash::xxh64(payload, mqtt::hash::xxh64(topic.as_bytes(), 0))
}

/// The memory itself.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) publishes: Window,
    pub(super) keys: Keys,
}

impl Memory {
    /// Adds a note.
    pub(super) fn add(&mut self, note: &Note) {
        match *note {
            Note::Publish { session, packet_id, hash } => self.publishes.store(session, packet_id, hash),
            Note::Key { key, received_ns } => self.keys.add(key, received_ns),
        }
    }

    /// Adds what the events of a frame ask for; damaged records are stepped over.
    pub(super) fn add_frame(&mut self, payload: &[u8]) {
        for event in Events::new(payload).flatten() {
            if let Some(note) = Note::of(&event) {
                self.add(&note);
            }
        }
    }

    /// A checkpoint's payload: version, keys, publishes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        self.keys.encode(&mut out);
        self.publishes.encode(&mut out);
        out
    }

    /// Reads a checkpoint's payload.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&VERSION, rest) = bytes.split_first()? else { return None };
        let (keys, rest) = Keys::decode(rest)?;
        let publishes = Window::decode(rest)?;
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
        newest.iter().for_each(|n| memory.add(n));
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

    #[test]
    fn a_checkpoint_knows_only_frames_before_it() {
        let written = Written::default();
        written.next_frame(&[Note::Key { key: 1, received_ns: 10 }]);
        let knows = |key| Memory::decode(&written.checkpoint()).expect("whole").keys.knows(key, 10);
        assert!(!knows(1), "its frame may still be torn");
        written.next_frame(&[Note::Key { key: 2, received_ns: 10 }]);
        assert!(knows(1) && !knows(2));
    }

    #[test]
    fn damaged_checkpoints_are_none() {
        assert!(Memory::decode(&[]).is_none());
        assert!(Memory::decode(&[9, 0, 0, 0, 0]).is_none());
    }
}
