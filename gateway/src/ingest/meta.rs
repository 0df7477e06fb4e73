//! What an input frame says about itself beside its records: how many events it holds for each root stream, so that a
//! lane knows its backlog, and skips what is not for it, without reading payloads; and what is to be remembered of MQTT
//! sessions beside their publishes, and of the `Idempotency-Key`s of HTTP requests.
//!
//! Layout, little-endian: `u8` version 2, `u16` number of entries, then per entry `u8` length of the stream's name, the
//! name, `u32` events; `u32` number of session notes, then per note `u32` events of the frame before it, `u64` session,
//! `u8` flags (1 opens, 2 persistent), `u16` most publishes in flight; `u32` number of keys, then per key `u64` hash of
//! stream and key, `u64` fingerprint of the request, `i64` receive time.

use super::keys::Keyed;
use super::repeats::{Note, SessionNote, Written};
use journal::FrameMeta;
use std::sync::Arc;

const VERSION: u8 = 2;
const FLAG_OPENS: u8 = 1;
const FLAG_PERSISTENT: u8 = 2;

/// Collected while a round fills.
#[derive(Debug, Default)]
pub struct InputMeta {
    /// Names of the streams by lane, and the writer's memory of repeats; set by the first push of a round.
    pub(super) shared: Option<Arc<Shared>>,
    /// Events of the round.
    pub(super) events: u32,
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
        encode_sessions(&self.notes, out);
        encode_keys(&self.notes, out);
    }

    fn clear(&mut self) {
        self.events = 0;
        self.lanes.fill(0);
        self.notes.clear();
    }
}

fn encode_sessions(notes: &[Note], out: &mut Vec<u8>) {
    let at = out.len();
    let mut count: u32 = 0;
    out.extend_from_slice(&count.to_le_bytes());
    for note in notes {
        let Note::Session(s) = note else { continue };
        count += 1;
        out.extend_from_slice(&s.before.to_le_bytes());
        out.extend_from_slice(&s.session.to_le_bytes());
        let flag = |on, bit| if on { bit } else { 0 };
        out.push(flag(s.opens, FLAG_OPENS) | flag(s.persistent, FLAG_PERSISTENT));
        out.extend_from_slice(&s.in_flight.to_le_bytes());
    }
    out[at..at + 4].copy_from_slice(&count.to_le_bytes());
}

fn encode_keys(notes: &[Note], out: &mut Vec<u8>) {
    let keys =
        || notes.iter().filter_map(|note| if let Note::Key(keyed) = note { Some(keyed) } else { None });
    out.extend_from_slice(&(keys().count() as u32).to_le_bytes());
    keys().for_each(|keyed| keyed.encode(out));
}

fn take<'a>(meta: &mut &'a [u8], bytes: usize) -> Option<&'a [u8]> {
    let (head, rest) = meta.split_at_checked(bytes)?;
    *meta = rest;
    Some(head)
}

fn take_array<const N: usize>(meta: &mut &[u8]) -> Option<[u8; N]> {
    take(meta, N)?.try_into().ok()
}

/// Reads a frame's meta: streams and their events. `None` when it is damaged.
pub fn events_by_stream(mut meta: &[u8]) -> Option<Vec<(&str, u32)>> {
    take_streams(&mut meta)
}

fn take_streams<'a>(meta: &mut &'a [u8]) -> Option<Vec<(&'a str, u32)>> {
    if take(meta, 1)? != [VERSION] {
        return None;
    }
    let count = u16::from_le_bytes(take_array(meta)?);
    let mut out = Vec::with_capacity(usize::from(count.min(256)));
    for _ in 0..count {
        let len = usize::from(*take(meta, 1)?.first()?);
        let name = std::str::from_utf8(take(meta, len)?).ok()?;
        out.push((name, u32::from_le_bytes(take_array(meta)?)));
    }
    Some(out)
}

/// Reads a frame's meta: what it says of sessions and keys. `None` when it is damaged.
pub(super) fn notes(mut meta: &[u8]) -> Option<(Vec<SessionNote>, Vec<Keyed>)> {
    let meta = &mut meta;
    take_streams(meta)?;
    let count = u32::from_le_bytes(take_array(meta)?);
    let note = |meta: &mut &[u8]| {
        let before = u32::from_le_bytes(take_array(meta)?);
        let session = u64::from_le_bytes(take_array(meta)?);
        let [flags] = take_array(meta)?;
        let in_flight = u16::from_le_bytes(take_array(meta)?);
        let (opens, persistent) = (flags & FLAG_OPENS != 0, flags & FLAG_PERSISTENT != 0);
        Some(SessionNote { before, session, opens, persistent, in_flight })
    };
    let sessions = (0..count).map(|_| note(meta)).collect::<Option<_>>()?;
    let count = u32::from_le_bytes(take_array(meta)?);
    let keys = (0..count).map(|_| Keyed::decode(meta)).collect::<Option<_>>()?;
    Some((sessions, keys))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_round_trip() {
        let names = vec!["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let shared = Arc::new(Shared { names, written: Written::default() });
        let note = SessionNote { before: 4, session: 9, opens: true, persistent: false, in_flight: 128 };
        let other = SessionNote { before: 6, session: 8, opens: false, persistent: true, in_flight: 1 };
        let key = Keyed { key: 1, fingerprint: 3, received_ns: 2 };
        let all = vec![Note::Session(note), Note::Key(key), Note::Session(other)];
        let meta = InputMeta { shared: Some(shared), events: 10, lanes: vec![3, 0, 7], notes: all };
        let mut out = Vec::new();
        meta.encode(&mut out);
        assert_eq!(events_by_stream(&out), Some(vec![("a", 3), ("c", 7)]));
        assert_eq!(notes(&out), Some((vec![note, other], vec![key])));
        for cut in 0..out.len() {
            assert_eq!(notes(&out[..cut]), None);
        }
    }
}
