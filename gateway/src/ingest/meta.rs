//! What an input frame says about itself beside its records: how many events it holds for each root stream, so that a
//! lane knows its backlog, and skips what is not for it, without reading payloads.
//!
//! Layout, little-endian: `u8` version 1, `u16` number of entries, then per entry `u8` length of the stream's name, the
//! name, `u32` events.

use super::repeats::{Note, Written};
use journal::FrameMeta;
use std::sync::Arc;

const VERSION: u8 = 1;

/// Collected while a round fills.
#[derive(Debug, Default)]
pub struct InputMeta {
    /// Names of the streams by lane, and the writer's memory of repeats; set by the first push of a round.
    pub(super) shared: Option<Arc<Shared>>,
    /// Events per lane.
    pub(super) lanes: Vec<u32>,
    /// What must be remembered to recognise repeats of this round's events.
    pub(super) notes: Vec<Note>,
}

/// What all rounds share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) names: Vec<String>,
    pub(super) written: Written,
}

impl FrameMeta for InputMeta {
    fn encode(&self, out: &mut Vec<u8>) {
        let Some(shared) = &self.shared else { return };
        shared.written.next_frame(&self.notes);
        out.push(VERSION);
        let used = || shared.names.iter().zip(&self.lanes).filter(|(_, n)| **n > 0);
        out.extend_from_slice(&(used().count() as u16).to_le_bytes());
        for (name, events) in used() {
            out.push(name.len() as u8);
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(&events.to_le_bytes());
        }
    }

    fn clear(&mut self) {
        self.lanes.fill(0);
        self.notes.clear();
    }
}

/// Reads a frame's meta: streams and their events. `None` when it is damaged.
pub fn events_by_stream(mut meta: &[u8]) -> Option<Vec<(&str, u32)>> {
    let mut take = |n: usize| {
        let (head, rest) = meta.split_at_checked(n)?;
        meta = rest;
        Some(head)
    };
    if take(1)? != [VERSION] {
        return None;
    }
    let count = u16::from_le_bytes(take(2)?.try_into().ok()?);
    let mut out = Vec::with_capacity(usize::from(count.min(256)));
    for _ in 0..count {
        let len = usize::from(*take(1)?.first()?);
        let name = std::str::from_utf8(take(len)?).ok()?;
        out.push((name, u32::from_le_bytes(take(4)?.try_into().ok()?)));
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_round_trip() {
        let names = vec!["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let shared = Arc::new(Shared { names, written: Written::default() });
        let meta = InputMeta { shared: Some(shared), lanes: vec![3, 0, 7], notes: Vec::new() };
        let mut out = Vec::new();
        meta.encode(&mut out);
        assert_eq!(events_by_stream(&out), Some(vec![("a", 3), ("c", 7)]));
        for cut in 0..out.len() {
            assert_eq!(events_by_stream(&out[..cut]), None);
        }
    }
}
