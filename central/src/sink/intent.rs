//! The intent: what the sink is about to insert, stored beside its committed offset before the first attempt.

use crate::log::{Offset, Partition};
use record::Digest;

/// One range of one partition, and the name under which it is inserted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// The first offset.
    pub from: Offset,
    /// One past the last offset.
    pub to: Offset,
    /// Rows of all records in the range.
    pub rows: u64,
    /// [`digest`] of the range.
    pub digest: u64,
    /// 0 for the first name; one more when the range had to be inserted in part under a new name.
    pub generation: u32,
    /// When it got this name, in seconds of the epoch: no insert under it is older.
    pub named_at: u64,
    /// The log that the offsets belong to.
    pub log: String,
}

/// The first eight bytes of the SHA-256 over the hashes of the range's blocks.
pub fn digest(hashes: impl Iterator<Item = Digest>) -> u64 {
    let all: Vec<u8> = hashes.flat_map(|h| h.0).collect();
    let mut first = [0; 8];
    first.copy_from_slice(&Digest::of(&all).0[..8]);
    u64::from_be_bytes(first)
}

impl Intent {
    /// As it is stored: ASCII, below 300 bytes.
    pub fn encode(&self) -> String {
        let Self { from, to, rows, digest, generation, named_at, log } = self;
        format!("2 {from} {to} {rows} {digest:016x} {generation} {named_at} {log}")
    }

    /// Reads what [`Intent::encode`] wrote; `None` for the empty text, which says that there is no intent.
    pub fn decode(text: &str) -> Result<Option<Self>, String> {
        if text.is_empty() {
            return Ok(None);
        }
        let bad = || format!("{text:?} is not an intent of this version");
        let mut fields = text.splitn(8, ' ');
        let mut next = || fields.next().ok_or_else(bad);
        if next()? != "2" {
            return Err(bad());
        }
        let number = |field: &str| field.parse::<u64>().map_err(|_| bad());
        let intent = Self {
            from: Offset(number(next()?)?),
            to: Offset(number(next()?)?),
            rows: number(next()?)?,
            digest: u64::from_str_radix(next()?, 16).map_err(|_| bad())?,
            generation: next()?.parse().map_err(|_| bad())?,
            named_at: number(next()?)?,
            log: next()?.to_owned(),
        };
        if intent.from >= intent.to { Err(bad()) } else { Ok(Some(intent)) }
    }

    /// The deduplication token of an insert into a table. The range may be so large that a table needs several
    /// inserts: `piece` counts them.
    pub fn token(&self, partition: Partition, table: &str, piece: usize) -> String {
        let Self { log, from, to, generation, .. } = self;
        format!("{log}-{partition}-{from}-{to}-{generation}-{table}-{piece}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intents_round_trip_and_others_are_refused() {
        let intent = Intent {
            from: Offset(5),
            to: Offset(900),
            rows: 7,
            digest: 0xabc,
            generation: 2,
            named_at: 1_790_000_000,
            log: "6f1c".into(),
        };
        let text = intent.encode();
        assert!(text.is_ascii() && text.len() < 300);
        assert_eq!(Intent::decode(&text), Ok(Some(intent.clone())));
        assert_eq!(Intent::decode(""), Ok(None));
        for bad in ["x", "1 5 900 7 0 2 l", "2 9 9 1 0 0 5 l", "2 5 900 7 0 2 9", "2 5 9 7 zz 2 9 l"] {
            assert!(Intent::decode(bad).is_err(), "{bad}");
        }
        assert_eq!(intent.token(Partition(3), "m", 0), "6f1c-3-5-900-2-m-0");
    }
}
