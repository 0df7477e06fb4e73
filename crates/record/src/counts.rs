//! The terms of the conservation equation (invariant 5).

use serde::{Deserialize, Serialize};

/// What became of the rows offered to one stream, since the gateway's incarnation began.
///
/// `received = repeats + kept + filtered + aggregated + dead_lettered + dropped` at every frame; what is not yet
/// received is still buffered in the input log. `produced` counts the stream's own rows given a seq and written to the
/// output log: for a root or filter stream that is forwarded it equals `kept`.
///
/// An aggregate or a transform makes rows of its own out of those that `aggregated` counts. A result that it could not
/// give, or that no block holds, is received and dead-lettered at once: so the equation holds, and `dead_lettered` of
/// all streams together is the number of rows of the stream `dead_letters`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Rows offered by the parent stream, or events taken from the input log; and the stream's own results that became
    /// dead letters.
    pub received: u64,
    /// Recognised repeats (redelivery, dedup key, idempotency key).
    pub repeats: u64,
    /// Rows that became rows of this stream.
    pub kept: u64,
    /// Rows that a filter left out.
    pub filtered: u64,
    /// Rows consumed by an aggregate or a transform.
    pub aggregated: u64,
    /// Rows, and results of the stream, that became dead letters.
    pub dead_lettered: u64,
    /// Rows given up by the stream's policy when the buffer was full; each has a ledger entry.
    pub dropped: u64,
    /// Rows of this stream that were given a seq and written to the output log.
    pub produced: u64,
}

impl Counts {
    /// Adds a step's share.
    pub fn add(&mut self, d: &Counts) {
        self.received += d.received;
        self.repeats += d.repeats;
        self.kept += d.kept;
        self.filtered += d.filtered;
        self.aggregated += d.aggregated;
        self.dead_lettered += d.dead_lettered;
        self.dropped += d.dropped;
        self.produced += d.produced;
    }

    /// What the right-hand side of the equation lacks (positive) or has too much (negative); 0 when it balances.
    pub fn missing(&self) -> i128 {
        let out = [self.repeats, self.kept, self.filtered, self.aggregated, self.dead_lettered, self.dropped];
        i128::from(self.received) - out.into_iter().map(i128::from).sum::<i128>()
    }

    /// The eight terms in declaration order, little-endian, as frames and the link carry them.
    pub fn to_bytes(&self) -> [u8; 64] {
        let mut out = [0; 64];
        let terms = [
            self.received,
            self.repeats,
            self.kept,
            self.filtered,
            self.aggregated,
            self.dead_lettered,
            self.dropped,
            self.produced,
        ];
        for (slot, term) in out.chunks_exact_mut(8).zip(terms) {
            slot.copy_from_slice(&term.to_le_bytes());
        }
        out
    }

    /// Reads what [`Counts::to_bytes`] wrote; `None` when the length is another.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 64] = bytes.try_into().ok()?;
        let mut terms = bytes.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().unwrap_or_default()));
        let mut next = || terms.next().unwrap_or_default();
        Some(Self {
            received: next(),
            repeats: next(),
            kept: next(),
            filtered: next(),
            aggregated: next(),
            dead_lettered: next(),
            dropped: next(),
            produced: next(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip_and_balance() {
        let c = Counts {
            received: 10,
            repeats: 1,
            kept: 2,
            filtered: 3,
            aggregated: 0,
            dead_lettered: 4,
            dropped: 0,
            produced: 2,
        };
        assert_eq!(Counts::from_bytes(&c.to_bytes()), Some(c));
        assert_eq!(c.missing(), 0);
        assert_eq!(Counts { received: 11, ..c }.missing(), 1);
        assert_eq!(Counts::from_bytes(&[0; 63]), None);
    }
}
