//! `Idempotency-Key`s of HTTP requests, remembered for a bounded time and number, each with what was sent under it.

use crate::limits::{IDEMPOTENCY_KEYS_MAX, IDEMPOTENCY_WINDOW};
use std::collections::{HashMap, VecDeque};

/// One request with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Keyed {
    /// Hash of stream and key.
    pub(super) key: u64,
    /// Hash of what was sent under it.
    pub(super) fingerprint: u64,
    /// When it came.
    pub(super) received_ns: i64,
}

/// The keys seen lately.
#[derive(Debug, Default, Clone)]
pub(super) struct Keys {
    /// Oldest first.
    order: VecDeque<u64>,
    known: HashMap<u64, (u64, i64)>,
}

impl Keys {
    /// The fingerprint of the request that had this key, if it came within the window that ends at `now_ns` (wall
    /// clock, as the receive times).
    pub(super) fn find(&self, key: u64, now_ns: i64) -> Option<u64> {
        let oldest = now_ns.saturating_sub(window_ns());
        self.known.get(&key).filter(|(_, at)| *at >= oldest).map(|(fingerprint, _)| *fingerprint)
    }

    /// Remembers a request; forgets what is too old or too much.
    pub(super) fn add(&mut self, keyed: &Keyed) {
        let Keyed { key, fingerprint, received_ns } = *keyed;
        if self.known.insert(key, (fingerprint, received_ns)).is_some() {
            // Rare: a key comes again only after its window.
            self.order.retain(|other| *other != key);
        }
        self.order.push_back(key);
        let oldest = received_ns.saturating_sub(window_ns());
        while let Some(key) = self.order.front().copied() {
            let is_old = self.known.get(&key).is_none_or(|(_, at)| *at < oldest);
            if !is_old && self.order.len() <= IDEMPOTENCY_KEYS_MAX {
                break;
            }
            self.order.pop_front();
            self.known.remove(&key);
        }
    }

    /// Appends `u32` count and the requests, oldest first.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.order.len() as u32).to_le_bytes());
        for key in &self.order {
            let (fingerprint, received_ns) = self.known.get(key).copied().unwrap_or_default();
            Keyed { key: *key, fingerprint, received_ns }.encode(out);
        }
    }

    /// Reads what [`Keys::encode`] wrote and returns the rest.
    pub(super) fn decode(mut bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (count, rest) = bytes.split_first_chunk::<4>()?;
        bytes = rest;
        let mut keys = Self::default();
        for _ in 0..u32::from_le_bytes(*count) {
            keys.add(&Keyed::decode(&mut bytes)?);
        }
        Some((keys, bytes))
    }
}

impl Keyed {
    /// Appends `u64` key, `u64` fingerprint, `i64` time, little-endian.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.key.to_le_bytes());
        out.extend_from_slice(&self.fingerprint.to_le_bytes());
        out.extend_from_slice(&self.received_ns.to_le_bytes());
    }

    /// Reads one off the front.
    pub(super) fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let mut number = || {
            let (number, rest) = bytes.split_first_chunk::<8>()?;
            *bytes = rest;
            Some(*number)
        };
        let (key, fingerprint) = (u64::from_le_bytes(number()?), u64::from_le_bytes(number()?));
        Some(Self { key, fingerprint, received_ns: i64::from_le_bytes(number()?) })
    }
}

fn window_ns() -> i64 {
    i64::try_from(IDEMPOTENCY_WINDOW.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(keys: &mut Keys, key: u64, received_ns: i64) {
        keys.add(&Keyed { key, fingerprint: key + 1, received_ns });
    }

    #[test]
    fn known_for_the_window_only() {
        let mut k = Keys::default();
        add(&mut k, 7, 0);
        assert_eq!(k.find(7, window_ns()), Some(8));
        assert_eq!(k.find(7, window_ns() + 1), None);
        assert_eq!(k.find(8, 0), None);
        add(&mut k, 9, window_ns() + 5);
        assert_eq!(k.order.len(), 1, "the old one is forgotten");
    }

    #[test]
    fn bounded_and_round_trip() {
        let mut k = Keys::default();
        for i in 0..IDEMPOTENCY_KEYS_MAX as u64 + 10 {
            add(&mut k, i, i as i64);
        }
        assert_eq!((k.order.len(), k.known.len()), (IDEMPOTENCY_KEYS_MAX, IDEMPOTENCY_KEYS_MAX));
        let mut out = Vec::new();
        k.encode(&mut out);
        out.push(99);
        let (back, rest) = Keys::decode(&out).expect("whole");
        assert_eq!((back.order, back.known, rest), (k.order, k.known, &[99_u8][..]));
        assert!(Keys::decode(&out[..20]).is_none());
    }
}
