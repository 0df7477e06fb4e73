//! State by key, as it stands in a checkpoint: an ordered map of bytes, changed by puts and deletes.

use std::collections::BTreeMap;

const VERSION: u8 = 1;

/// Puts and deletes of one step; encoded into a frame's meta.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// New or replaced entries.
    pub puts: Vec<(Vec<u8>, Vec<u8>)>,
    /// Keys that are gone.
    pub deletes: Vec<Vec<u8>>,
}

/// Bytes that are no image or no changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The bytes end too early or go on too long.
    #[error("state image: wrong length")]
    Length,
    /// Written by another version of this program.
    #[error("state image: version {0} is not known")]
    Version(u8),
}

/// All state by key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StateImage {
    entries: BTreeMap<Vec<u8>, Vec<u8>>,
    bytes: usize,
}

impl StateImage {
    /// An image without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies one step: its deletes, then its puts.
    pub fn apply(&mut self, changes: Changes) {
        for key in &changes.deletes {
            self.delete(key);
        }
        for (key, value) in changes.puts {
            self.put(key, value);
        }
    }

    /// Sets one entry.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        let added = key.len() + value.len();
        let key_bytes = key.len();
        self.bytes += added;
        if let Some(old) = self.entries.insert(key, value) {
            self.bytes -= key_bytes + old.len();
        }
    }

    /// Takes one entry away.
    pub fn delete(&mut self, key: &[u8]) {
        if let Some(old) = self.entries.remove(key) {
            self.bytes -= key.len() + old.len();
        }
    }

    /// One entry.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.entries.get(key).map(Vec::as_slice)
    }

    /// Entries whose key starts with `prefix`, in the order of keys.
    pub fn scan_prefix<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.entries
            .range::<[u8], _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (key.as_slice(), value.as_slice()))
    }

    /// All entries, in the order of keys.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entries.iter().map(|(key, value)| (key.as_slice(), value.as_slice()))
    }

    /// How many entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of all keys and values: what a checkpoint will hold, but for eight bytes an entry.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The checkpoint's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(1 + 8 + self.bytes + 8 * self.entries.len());
        out.push(VERSION);
        out.extend_from_slice(&(self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            put_bytes(&mut out, key);
            put_bytes(&mut out, value);
        }
        out
    }

    /// Reads a checkpoint's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, ImageError> {
        let mut input = Input::versioned(bytes)?;
        let count = input.u64()?;
        let mut image = Self::new();
        for _ in 0..count {
            let key = input.bytes()?.to_vec();
            image.put(key, input.bytes()?.to_vec());
        }
        input.end()?;
        Ok(image)
    }
}

impl Changes {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.deletes.is_empty()
    }

    /// Appends the bytes for a frame's meta.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        out.extend_from_slice(&(self.puts.len() as u64).to_le_bytes());
        for (key, value) in &self.puts {
            put_bytes(out, key);
            put_bytes(out, value);
        }
        out.extend_from_slice(&(self.deletes.len() as u64).to_le_bytes());
        for key in &self.deletes {
            put_bytes(out, key);
        }
    }

    /// Reads what [`Changes::encode`] wrote; the bytes must end with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, ImageError> {
        let mut input = Input::versioned(bytes)?;
        let mut changes = Self::default();
        for _ in 0..input.u64()? {
            let key = input.bytes()?.to_vec();
            changes.puts.push((key, input.bytes()?.to_vec()));
        }
        for _ in 0..input.u64()? {
            changes.deletes.push(input.bytes()?.to_vec());
        }
        input.end()?;
        Ok(changes)
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    // Keys and values are far below 4 GiB: a checkpoint as a whole is bounded.
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn versioned(bytes: &'a [u8]) -> Result<Self, ImageError> {
        match bytes.split_first() {
            Some((&VERSION, rest)) => Ok(Self(rest)),
            Some((&other, _)) => Err(ImageError::Version(other)),
            None => Err(ImageError::Length),
        }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], ImageError> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(ImageError::Length)?;
        self.0 = rest;
        Ok(head)
    }

    fn u64(&mut self) -> Result<u64, ImageError> {
        let mut out = [0; 8];
        out.copy_from_slice(self.take(8)?);
        Ok(u64::from_le_bytes(out))
    }

    fn bytes(&mut self) -> Result<&'a [u8], ImageError> {
        let mut out = [0; 4];
        out.copy_from_slice(self.take(4)?);
        self.take(u32::from_le_bytes(out) as usize)
    }

    fn end(&self) -> Result<(), ImageError> {
        if self.0.is_empty() { Ok(()) } else { Err(ImageError::Length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn small() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 0..5)
    }

    fn changes() -> impl Strategy<Value = Changes> {
        (proptest::collection::vec((small(), small()), 0..6), proptest::collection::vec(small(), 0..6))
            .prop_map(|(puts, deletes)| Changes { puts, deletes })
    }

    proptest! {
        #[test]
        fn changes_and_image_survive_their_bytes(steps in proptest::collection::vec(changes(), 0..8)) {
            let (mut image, mut plain) = (StateImage::new(), BTreeMap::new());
            for step in steps {
                let mut bytes = Vec::new();
                step.encode(&mut bytes);
                prop_assert_eq!(Changes::decode(&bytes), Ok(step.clone()));
                for key in &step.deletes { plain.remove(key); }
                plain.extend(step.puts.iter().cloned());
                image.apply(step);
            }
            prop_assert_eq!(image.bytes(), plain.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>());
            prop_assert_eq!(&image.entries, &plain);
            prop_assert_eq!(StateImage::decode(&image.encode()), Ok(image.clone()));
            let found: Vec<_> = image.scan_prefix(&[1]).map(|(k, _)| k.to_vec()).collect();
            let expected: Vec<_> = plain.keys().filter(|k| k.first() == Some(&1)).cloned().collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn any_bytes_give_an_answer(mut bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = StateImage::decode(&bytes);
            if let Some(first) = bytes.first_mut() { *first = VERSION; }
            let _ = (StateImage::decode(&bytes), Changes::decode(&bytes));
        }
    }
}
