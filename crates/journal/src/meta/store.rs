//! Keys and values in one sled tree, by the rules that its measurements gave: values of at most 4 KiB (longer
//! ones in chunks, since anything over 128 KiB would go to files that sled never syncs), at most 100 operations
//! a batch, a small cache, no compression, no long scans.
//!
//! A user's key becomes `u`, the key with each 0 byte as 0 255, 0 1, and the chunk's number; so chunks stand
//! together, in order, and keys keep their order and prefixes. The first chunk starts with the value's length
//! and checksum.

use super::{MetaEntry, MetaError, Wanted};
use crate::{frame::FrameSeq, image::Changes, limits};
use std::path::Path;

const COMMIT_SEQ: &[u8] = b"mcommit_seq";
const USER: u8 = b'u';
const VALUE_HEAD: usize = 8;

pub(super) struct Store {
    db: sled::Db,
}

impl Store {
    pub(super) fn open(dir: &Path) -> Result<Self, MetaError> {
        let config = sled::Config::new()
            .path(dir)
            .mode(sled::Mode::LowSpace)
            .cache_capacity(limits::META_CACHE_BYTES)
            .use_compression(false)
            .flush_every_ms(Some(limits::META_FLUSH_MS));
        Ok(Self { db: config.open().map_err(damaged)? })
    }

    pub(super) fn commit_seq(&self) -> Result<Option<FrameSeq>, MetaError> {
        let Some(bytes) = self.db.get(COMMIT_SEQ).map_err(damaged)? else { return Ok(None) };
        let bytes: [u8; 8] =
            bytes.as_ref().try_into().map_err(|_| MetaError::Damaged("commit_seq".into()))?;
        Ok(Some(FrameSeq(u64::from_le_bytes(bytes))))
    }

    /// Puts and deletes, in batches, and then, last of all, the position that they bring the store to.
    pub(super) fn apply(&self, changes: &Changes, seq: Option<FrameSeq>) -> Result<(), MetaError> {
        let mut batch = Batch { store: self, batch: sled::Batch::default(), operations: 0 };
        for key in &changes.deletes {
            let prefix = stored(key);
            for chunk in 0..self.chunks(&prefix)? {
                batch.remove(chunk_key(&prefix, chunk))?;
            }
        }
        for (key, value) in &changes.puts {
            self.put(&mut batch, &stored(key), value)?;
        }
        if let Some(seq) = seq {
            batch.insert(COMMIT_SEQ.to_vec(), seq.0.to_le_bytes().to_vec())?;
        }
        batch.finish()
    }

    fn put(&self, batch: &mut Batch<'_>, prefix: &[u8], value: &[u8]) -> Result<(), MetaError> {
        let before = self.chunks(prefix)?;
        let first = value.len().min(limits::META_CHUNK_BYTES - VALUE_HEAD);
        let mut head = Vec::with_capacity(VALUE_HEAD + first);
        head.extend_from_slice(&(value.len() as u32).to_le_bytes());
        head.extend_from_slice(&crc32fast::hash(value).to_le_bytes());
        head.extend_from_slice(&value[..first]);
        batch.insert(chunk_key(prefix, 0), head)?;
        let mut number = 1;
        for chunk in value[first..].chunks(limits::META_CHUNK_BYTES) {
            batch.insert(chunk_key(prefix, number), chunk.to_vec())?;
            number += 1;
        }
        for left in number..before {
            batch.remove(chunk_key(prefix, left))?;
        }
        Ok(())
    }

    /// How many chunks a stored value has; 0 when it is not there.
    fn chunks(&self, prefix: &[u8]) -> Result<u16, MetaError> {
        let head = self.db.get(chunk_key(prefix, 0)).map_err(damaged)?;
        head.map_or(Ok(0), |head| Ok(chunk_count(parse_head(&head)?.0)))
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError> {
        let prefix = stored(key);
        let Some(head) = self.db.get(chunk_key(&prefix, 0)).map_err(damaged)? else { return Ok(None) };
        let (len, crc) = parse_head(&head)?;
        let mut value = head[VALUE_HEAD..].to_vec();
        for chunk in 1..chunk_count(len) {
            let bytes = self.db.get(chunk_key(&prefix, chunk)).map_err(damaged)?;
            value.extend_from_slice(&bytes.ok_or_else(|| MetaError::Damaged("a chunk is missing".into()))?);
        }
        checked(value, len, crc).map(Some)
    }

    /// At most `limit` entries with the prefix, after `after` if that is given.
    pub(super) fn scan(&self, wanted: &Wanted) -> Result<Vec<MetaEntry>, MetaError> {
        let prefix = escaped(&wanted.prefix);
        let start = match &wanted.after {
            // Behind the last chunk that a key can have.
            Some(key) => [stored(key), vec![0xff; 3]].concat(),
            None => prefix.clone(),
        };
        let mut entries: Vec<MetaEntry> = Vec::new();
        let mut value: Option<(u32, u32)> = None;
        for entry in self.db.range(start..) {
            let (stored_key, bytes) = entry.map_err(damaged)?;
            if !stored_key.starts_with(&prefix) {
                break;
            }
            let (key, chunk) = unescaped(&stored_key)?;
            if chunk > 0 {
                let last = entries.last_mut().filter(|(last, _)| *last == key);
                last.ok_or_else(|| MetaError::Damaged("a chunk without a value".into()))?
                    .1
                    .extend_from_slice(&bytes);
                continue;
            }
            finish_last(&mut entries, value)?;
            if entries.len() >= wanted.limit {
                return Ok(entries);
            }
            value = Some(parse_head(&bytes)?);
            entries.push((key, bytes[VALUE_HEAD..].to_vec()));
        }
        finish_last(&mut entries, value)?;
        Ok(entries)
    }

    pub(super) fn flush(&self) -> Result<(), MetaError> {
        self.db.flush().map(drop).map_err(damaged)
    }
}

/// Collects operations and applies them when there are enough.
struct Batch<'a> {
    store: &'a Store,
    batch: sled::Batch,
    operations: usize,
}

impl Batch<'_> {
    fn insert(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), MetaError> {
        self.batch.insert(key, value);
        self.counted()
    }

    fn remove(&mut self, key: Vec<u8>) -> Result<(), MetaError> {
        self.batch.remove(key);
        self.counted()
    }

    fn counted(&mut self) -> Result<(), MetaError> {
        self.operations += 1;
        if self.operations >= limits::META_BATCH_OPERATIONS {
            self.operations = 0;
            self.store.db.apply_batch(std::mem::take(&mut self.batch)).map_err(damaged)?;
        }
        Ok(())
    }

    fn finish(self) -> Result<(), MetaError> {
        self.store.db.apply_batch(self.batch).map_err(damaged)
    }
}

fn finish_last(entries: &mut [MetaEntry], head: Option<(u32, u32)>) -> Result<(), MetaError> {
    if let (Some((len, crc)), Some((_, value))) = (head, entries.last_mut()) {
        *value = checked(std::mem::take(value), len, crc)?;
    }
    Ok(())
}

fn checked(value: Vec<u8>, len: u32, crc: u32) -> Result<Vec<u8>, MetaError> {
    if value.len() == len as usize && crc32fast::hash(&value) == crc {
        return Ok(value);
    }
    Err(MetaError::Damaged("a value differs from its checksum".into()))
}

fn parse_head(bytes: &[u8]) -> Result<(u32, u32), MetaError> {
    let (Some(len), Some(crc)) =
        (bytes.first_chunk::<4>(), bytes.get(4..).and_then(|b| b.first_chunk::<4>()))
    else {
        return Err(MetaError::Damaged("a value without its head".into()));
    };
    let len = u32::from_le_bytes(*len);
    if len as usize > limits::META_VALUE_BYTES_MAX {
        return Err(MetaError::Damaged("a value of impossible length".into()));
    }
    Ok((len, u32::from_le_bytes(*crc)))
}

fn chunk_count(len: u32) -> u16 {
    let rest = (len as usize).saturating_sub(limits::META_CHUNK_BYTES - VALUE_HEAD);
    // The bound of a value keeps this far below 65,536; limits.rs asserts it.
    1 + rest.div_ceil(limits::META_CHUNK_BYTES) as u16
}

fn escaped(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 5);
    out.push(USER);
    for &byte in key {
        out.push(byte);
        if byte == 0 {
            out.push(255);
        }
    }
    out
}

fn stored(key: &[u8]) -> Vec<u8> {
    let mut out = escaped(key);
    out.extend_from_slice(&[0, 1]);
    out
}

fn chunk_key(stored: &[u8], chunk: u16) -> Vec<u8> {
    let mut out = Vec::with_capacity(stored.len() + 2);
    out.extend_from_slice(stored);
    out.extend_from_slice(&chunk.to_be_bytes());
    out
}

/// The user's key and the chunk's number.
fn unescaped(stored: &[u8]) -> Result<(Vec<u8>, u16), MetaError> {
    let wrong = || MetaError::Damaged("a key of another form".into());
    let mut key = Vec::with_capacity(stored.len());
    let mut rest = stored.strip_prefix(&[USER]).ok_or_else(wrong)?;
    loop {
        match rest {
            [0, 255, tail @ ..] => {
                key.push(0);
                rest = tail;
            }
            [0, 1, hi, lo] => return Ok((key, u16::from_be_bytes([*hi, *lo]))),
            [byte, tail @ ..] if *byte != 0 => {
                key.push(*byte);
                rest = tail;
            }
            _ => return Err(wrong()),
        }
    }
}

fn damaged(error: sled::Error) -> MetaError {
    MetaError::Damaged(error.to_string())
}
