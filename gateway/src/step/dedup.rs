//! Recognising rows that were sent twice.
//!
//! A row whose key was seen before and whose content is the same is a repeat. One with the same key and other content is
//! a conflict: it is kept as a dead letter, because one of the two is wrong and nobody here knows which.
//!
//! A key is remembered from its arrival for the length of the window, by the time at which events were *accepted*, not
//! by their event time: what repeats is a device or broker that did not hear the acknowledgement, shortly after, and
//! a device that sends a month of backlog in a minute must have its repeats recognised as well as one that sends live.
//! At most `max_keys` are remembered, the newest ones. A row whose key is not remembered any more cannot be judged and
//! is kept.
//!
//! State: each step adds one chunk of keys; chunks leave whole, oldest first. A key is 16 bytes of SHA-256, its content
//! 8 bytes.

use super::{
    cells::{Cells, Pick},
    effects::Effects,
    keys,
};
use crate::config::Dedup as Settings;
use journal::StateImage;
use record::{Batch, Digest, StreamName, StreamSchema};
use std::collections::{HashMap, VecDeque};

/// Bytes of the durable state that one remembered key takes.
pub const DEDUP_ENTRY_BYTES: usize = 24;

/// The keys of one stream.
#[derive(Debug)]
pub(super) struct Dedup {
    stream: StreamName,
    key: Vec<Pick>,
    content: Vec<Pick>,
    window_ns: i64,
    keys_max: usize,
    seen: HashMap<u128, u64>,
    chunks: VecDeque<Chunk>,
    next_chunk: u64,
    newest_ns: i64,
    adding: Chunk,
    scratch: Vec<u8>,
}

#[derive(Debug, Default)]
struct Chunk {
    number: u64,
    newest_ns: i64,
    keys: Vec<u128>,
    /// The entries as they stand in the state; only while the chunk is being made.
    bytes: Vec<u8>,
}

/// What became of a batch's rows.
#[derive(Debug, Default)]
pub(super) struct Judged {
    /// Bit i keeps row i.
    pub(super) keep: Vec<u64>,
    pub(super) repeats: u64,
    pub(super) conflicts: Vec<usize>,
}

impl Dedup {
    /// The keys as they stand in the state; `None` when a key column is not declared or the state is damaged.
    pub(super) fn new(
        stream: &StreamName,
        schema: &StreamSchema,
        settings: &Settings,
        image: &StateImage,
    ) -> Option<Self> {
        let key = settings.key.iter().map(|name| Pick::named(schema, name)).collect::<Option<Vec<_>>>()?;
        let mut me = Self {
            stream: stream.clone(),
            key,
            content: Pick::all(schema),
            window_ns: i64::try_from(settings.window.as_nanos()).unwrap_or(i64::MAX),
            keys_max: settings.max_keys,
            seen: HashMap::new(),
            chunks: VecDeque::new(),
            next_chunk: 1,
            newest_ns: i64::MIN,
            adding: Chunk::default(),
            scratch: Vec::new(),
        };
        let prefix = keys::dedup(stream);
        for (key, value) in image.scan_prefix(&prefix) {
            me.load(u64::from_be_bytes(key[prefix.len()..].try_into().ok()?), value)?;
        }
        Some(me)
    }

    fn load(&mut self, number: u64, value: &[u8]) -> Option<()> {
        let (newest, entries) = value.split_first_chunk::<8>()?;
        let mut chunk = Chunk { number, newest_ns: i64::from_le_bytes(*newest), ..Chunk::default() };
        for entry in entries.chunks(DEDUP_ENTRY_BYTES) {
            let (key, content) = entry.split_first_chunk::<16>()?;
            let key = u128::from_le_bytes(*key);
            self.seen.insert(key, u64::from_le_bytes(content.try_into().ok()?));
            chunk.keys.push(key);
        }
        self.newest_ns = self.newest_ns.max(chunk.newest_ns);
        self.next_chunk = number + 1;
        self.chunks.push_back(chunk);
        Some(())
    }

    /// Judges rows in order; `received_ns` says when a row's event was accepted.
    pub(super) fn judge(&mut self, batch: &Batch, received_ns: impl Fn(usize) -> i64) -> Judged {
        let mut judged = Judged { keep: vec![0; batch.rows().div_ceil(64)], ..Judged::default() };
        let (key_cells, content_cells) = (Cells::new(batch, &self.key), Cells::new(batch, &self.content));
        for row in 0..batch.rows() {
            let key = u128::from_le_bytes(first_bytes(&key_cells, row, &mut self.scratch));
            let content = u64::from_le_bytes(first_bytes(&content_cells, row, &mut self.scratch));
            match self.seen.get(&key) {
                Some(known) if *known == content => judged.repeats += 1,
                Some(_) => judged.conflicts.push(row),
                None => {
                    judged.keep[row / 64] |= 1 << (row % 64);
                    self.add(key, content, received_ns(row));
                }
            }
        }
        judged
    }

    fn add(&mut self, key: u128, content: u64, received_ns: i64) {
        self.seen.insert(key, content);
        if self.adding.keys.is_empty() {
            self.adding.newest_ns = i64::MIN;
        }
        self.adding.keys.push(key);
        self.adding.bytes.extend_from_slice(&key.to_le_bytes());
        self.adding.bytes.extend_from_slice(&content.to_le_bytes());
        self.adding.newest_ns = self.adding.newest_ns.max(received_ns);
        self.newest_ns = self.newest_ns.max(received_ns);
    }

    /// The end of a step: what was added becomes a chunk, what is too old or too much leaves.
    pub(super) fn close(&mut self, effects: &mut Effects) {
        if self.adding.keys.is_empty() {
            return;
        }
        let mut chunk = std::mem::take(&mut self.adding);
        chunk.number = self.next_chunk;
        self.next_chunk += 1;
        let mut value = chunk.newest_ns.to_le_bytes().to_vec();
        value.append(&mut std::mem::take(&mut chunk.bytes));
        effects.put(keys::dedup_chunk(&self.stream, chunk.number), value);
        self.chunks.push_back(chunk);
        let horizon = self.newest_ns.saturating_sub(self.window_ns);
        while let Some(oldest) = self.chunks.front() {
            let too_many = self.seen.len() > self.keys_max && self.chunks.len() > 1;
            if oldest.newest_ns >= horizon && !too_many {
                break;
            }
            let Some(oldest) = self.chunks.pop_front() else { break };
            for key in &oldest.keys {
                self.seen.remove(key);
            }
            effects.delete(keys::dedup_chunk(&self.stream, oldest.number));
        }
    }
}

/// The first bytes of the SHA-256 of a row's cells.
fn first_bytes<const N: usize>(cells: &Cells<'_>, row: usize, scratch: &mut Vec<u8>) -> [u8; N] {
    scratch.clear();
    cells.append(row, scratch);
    let digest = Digest::of(scratch).0;
    let mut out = [0; N];
    out.copy_from_slice(&digest[..N]);
    out
}
