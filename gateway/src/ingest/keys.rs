//! `Idempotency-Key`s of HTTP requests, remembered for a bounded time and number.

use crate::limits::{IDEMPOTENCY_KEYS_MAX, IDEMPOTENCY_WINDOW};
use std::collections::{HashSet, VecDeque};

/// Hashes of the keys seen lately, oldest first.
#[derive(Debug, Default, Clone)]
pub(super) struct Keys {
    order: VecDeque<(u64, i64)>,
    known: HashSet<u64>,
}

impl Keys {
    /// Whether the key was seen within the window that ends at `now_ns` (wall clock, as the receive times).
    pub(super) fn knows(&self, key: u64, now_ns: i64) -> bool {
        let oldest = now_ns.saturating_sub(window_ns());
        self.known.contains(&key) && self.order.iter().rev().any(|(k, at)| *k == key && *at >= oldest)
    }

    /// Remembers a key; forgets what is too old or too much.
    pub(super) fn add(&mut self, key: u64, received_ns: i64) {
        if self.known.insert(key) {
            self.order.push_back((key, received_ns));
        } else if let Some(entry) = self.order.iter_mut().rev().find(|(k, _)| *k == key) {
            entry.1 = entry.1.max(received_ns);
        }
        let oldest = received_ns.saturating_sub(window_ns());
        while let Some((key, at)) = self.order.front().copied() {
            if at >= oldest && self.order.len() <= IDEMPOTENCY_KEYS_MAX {
                break;
            }
            self.order.pop_front();
            self.known.remove(&key);
        }
    }

    /// Appends `u32` count and the pairs, little-endian.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.order.len() as u32).to_le_bytes());
        for (key, at) in &self.order {
            out.extend_from_slice(&key.to_le_bytes());
            out.extend_from_slice(&at.to_le_bytes());
        }
    }

    /// Reads what [`Keys::encode`] wrote and returns the rest.
    pub(super) fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (count, mut rest) = bytes.split_first_chunk::<4>()?;
        let mut keys = Self::default();
        for _ in 0..u32::from_le_bytes(*count) {
            let (key, tail) = rest.split_first_chunk::<8>()?;
            let (at, tail) = tail.split_first_chunk::<8>()?;
            keys.add(u64::from_le_bytes(*key), i64::from_le_bytes(*at));
            rest = tail;
        }
        Some((keys, rest))
    }
}

fn window_ns() -> i64 {
    i64::try_from(IDEMPOTENCY_WINDOW.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_for_the_window_only() {
        let mut k = Keys::default();
        k.add(7, 0);
        assert!(k.knows(7, window_ns()));
        assert!(!k.knows(7, window_ns() + 1));
        assert!(!k.knows(8, 0));
        k.add(9, window_ns() + 5);
        assert_eq!(k.order.len(), 1, "the old one is forgotten");
    }

    #[test]
    fn bounded_and_round_trip() {
        let mut k = Keys::default();
        for i in 0..IDEMPOTENCY_KEYS_MAX as u64 + 10 {
            k.add(i, i as i64);
        }
        assert_eq!(k.order.len(), IDEMPOTENCY_KEYS_MAX);
        let mut out = Vec::new();
        k.encode(&mut out);
        out.push(99);
        let (back, rest) = Keys::decode(&out).expect("whole");
        assert_eq!((back.order, rest), (k.order, &[99_u8][..]));
        assert!(Keys::decode(&out[..20]).is_none());
    }
}
