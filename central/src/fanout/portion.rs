//! What a lane has in its hands: records that it read, and the portion of their rows that is published next.

use super::{
    core::{Portion, Position},
    json::Rows,
    limits::TRANSACTION_BYTES,
};
use crate::{
    log::{Offset, StoredRecord, StreamEvents},
    sink::block,
};
use record::StreamName;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Records, oldest first.
#[derive(Default)]
pub(super) struct Hands(VecDeque<StoredRecord>);

/// A portion and what came of its records.
#[derive(Default)]
pub(super) struct Filled {
    pub(super) portion: Portion,
    pub(super) events: Vec<StreamEvents>,
    /// Records whose block is none, with the reason.
    pub(super) unreadable: Vec<(Offset, String)>,
    /// Rows that are larger than an event may be.
    pub(super) too_large: u64,
}

impl Hands {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn hold(&mut self, records: Vec<StoredRecord>) {
        self.0 = records.into();
    }

    /// The rows from `from` on, as many as a transaction takes, of the streams that are wanted. Works for milliseconds.
    pub(super) fn fill(
        &mut self,
        from: Position,
        wanted: Option<&BTreeSet<StreamName>>,
        event_bytes_max: usize,
    ) -> Filled {
        let mut filled = Filled { portion: Portion { next: from, left: false }, ..Filled::default() };
        let mut by_stream: BTreeMap<StreamName, Vec<(String, Vec<u8>)>> = BTreeMap::new();
        let mut bytes = 0;
        while let Some(record) = self.0.front() {
            let h = &record.headers;
            let begin = if record.offset == from.offset { from.row as usize } else { 0 };
            if record.offset >= from.offset && wanted.is_none_or(|w| w.contains(&h.stream)) {
                match block::open(record) {
                    Ok(opened) => {
                        let rows = Rows::new(&opened.batch, &h.gateway, h.incarnation, h.first_seq);
                        let events = by_stream.entry(h.stream.clone()).or_default();
                        for row in begin..rows.count() {
                            if bytes >= TRANSACTION_BYTES {
                                let row = u32::try_from(row).unwrap_or(u32::MAX);
                                filled.portion =
                                    Portion { next: Position { offset: record.offset, row }, left: true };
                                filled.events = listed(by_stream);
                                return filled;
                            }
                            let (key, value) = (rows.device(row).to_owned(), rows.value(row));
                            if key.len() + value.len() > event_bytes_max {
                                filled.too_large += 1;
                                continue;
                            }
                            bytes += key.len() + value.len();
                            events.push((key, value));
                        }
                    }
                    Err(reason) => filled.unreadable.push((record.offset, reason)),
                }
            }
            filled.portion.next = filled.portion.next.max(Position::at(record.offset.next()));
            self.0.pop_front();
        }
        filled.events = listed(by_stream);
        filled
    }
}

fn listed(by_stream: BTreeMap<StreamName, Vec<(String, Vec<u8>)>>) -> Vec<StreamEvents> {
    let all = by_stream.into_iter().filter(|(_, events)| !events.is_empty());
    all.map(|(stream, events)| StreamEvents { stream, events }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::block::tests::stored;
    use record::ColumnType;

    fn hands(records: &[StoredRecord]) -> Hands {
        let mut hands = Hands::default();
        hands.hold(records.to_vec());
        hands
    }

    #[test]
    fn a_portion_begins_in_the_middle_of_a_block_and_passes_what_is_none() {
        let good = stored(4, "g1", ("t", ColumnType::Float64), 1, 10);
        let mut poison = stored(6, "g1", ("t", ColumnType::Float64), 11, 3);
        poison.headers.schema ^= 1;
        let last = stored(9, "g2", ("s", ColumnType::String), 1, 2);
        let records = [good, poison, last];
        let from = Position { offset: Offset(4), row: 7 };
        let filled = hands(&records).fill(from, None, 1 << 20);
        let portion = Portion { next: Position::at(Offset(10)), left: false };
        assert_eq!((filled.portion, filled.too_large), (portion, 0));
        assert_eq!(filled.unreadable.iter().map(|(o, _)| *o).collect::<Vec<_>>(), [Offset(6)]);
        let [machine] = &filled.events[..] else { panic!("one stream") };
        let seqs: Vec<u64> = machine
            .events
            .iter()
            .map(|(_, v)| serde_json::from_slice::<serde_json::Value>(v).expect("JSON")["seq"].as_u64())
            .map(|seq| seq.expect("a number"))
            .collect();
        assert_eq!(seqs, [8, 9, 10, 1, 2]);
        let other = BTreeSet::from([StreamName::new("other").expect("valid")]);
        let filled = hands(&records).fill(from, Some(&other), 1 << 20);
        assert_eq!(
            (filled.portion, filled.events.len()),
            (portion, 0),
            "streams that nobody wants are passed"
        );
        let filled = hands(&records).fill(from, None, 50);
        assert_eq!((filled.portion, filled.too_large, filled.events.len()), (portion, 5, 0));
    }

    #[test]
    fn a_transaction_is_bounded_and_the_next_one_goes_on() {
        let records: Vec<StoredRecord> =
            (0..8).map(|i| stored(i, "g", ("t", ColumnType::Float64), i * 16_000 + 1, 16_000)).collect();
        let (mut at, mut rows, mut portions) = (Position::default(), 0, 0);
        let mut hands = hands(&records);
        loop {
            let filled = hands.fill(at, None, 1 << 20);
            let events: Vec<_> = filled.events.iter().flat_map(|s| &s.events).collect();
            let bytes: usize = events.iter().map(|(k, v)| k.len() + v.len()).sum();
            assert!(bytes < TRANSACTION_BYTES + 1_000, "{bytes}");
            rows += events.len();
            portions += 1;
            at = filled.portion.next;
            if !filled.portion.left {
                break;
            }
        }
        assert_eq!((rows, at), (128_000, Position::at(Offset(8))));
        assert!(portions > 1, "{portions}");
    }
}
