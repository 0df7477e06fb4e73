//! What a lane has in its hands: records that it read and did not store yet, and blocks that it opened ahead.
//!
//! While a range is inserted, the lane mostly waits: for the server's work and for disks. In that time the records after
//! the range are read and their blocks opened, as many as make the next range, so that its insert can begin at once.
//! What was prepared is a copy and no more: a lane that starts again throws it away, and a block that was not opened
//! ahead is opened at its insert.

use super::{
    block::{self, Opened},
    core::Item,
};
use crate::{
    SINK_GROUP,
    log::{Log, Offset, Partition, StoredRecord},
};
use std::collections::BTreeMap;

/// Records by offset, as far as they are read.
#[derive(Default)]
pub(super) struct Hands {
    records: BTreeMap<Offset, StoredRecord>,
    opened: BTreeMap<Offset, Opened>,
    /// What a read from this offset gave, before anybody asked.
    ahead: Option<(Offset, Vec<StoredRecord>)>,
}

/// A record to insert, with its block when that is open already.
pub(super) type Prepared = (StoredRecord, Option<Opened>);

impl Hands {
    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// What was read ahead from this offset. Anything else that was read ahead is of no use then.
    pub(super) fn take_ahead(&mut self, from: Offset) -> Option<Vec<StoredRecord>> {
        self.ahead.take().filter(|(at, _)| *at == from).map(|(_, read)| read)
    }

    /// Keeps the records, and gives what the core must know of them.
    pub(super) fn keep(&mut self, read: Vec<StoredRecord>) -> Vec<Item> {
        let mut items = Vec::with_capacity(read.len());
        for record in read {
            let h = &record.headers;
            items.push(Item {
                offset: record.offset,
                stream: h.stream.clone(),
                rows: h.rows,
                first_seq: h.first_seq,
                last_seq: h.last_seq,
                bytes: record.bytes.len(),
                hash: h.hash,
            });
            self.records.insert(record.offset, record);
        }
        items
    }

    /// These records, for an insert. Their open blocks go with them.
    pub(super) fn give(&mut self, offsets: &[Offset]) -> Vec<Prepared> {
        let chosen =
            offsets.iter().filter_map(|o| Some((self.records.get(o)?.clone(), self.opened.remove(o))));
        chosen.collect()
    }

    /// The records of a range.
    pub(super) fn range(&self, from: Offset, to: Offset) -> impl Iterator<Item = &StoredRecord> {
        self.records.range(from..to).map(|(_, record)| record)
    }

    /// The records before this offset, which are no longer needed.
    pub(super) fn let_go(&mut self, before: Offset) {
        self.records = self.records.split_off(&before);
        self.opened = self.opened.split_off(&before);
    }

    /// Reads on from `next`, unless that is done, and opens the blocks behind `after` up to `rows_max` rows. A read that
    /// fails says so when the lane itself asks for it.
    pub(super) async fn prepare(
        &mut self,
        log: &dyn Log,
        partition: Partition,
        (after, next): (Offset, Offset),
        (rows_max, bytes_max): (u64, usize),
    ) {
        let rows = |records: &mut dyn Iterator<Item = &StoredRecord>| -> u64 {
            records.map(|r| u64::from(r.headers.rows)).sum()
        };
        let here = rows(&mut self.records.range(after..).map(|(_, r)| r));
        if here < rows_max && self.ahead.as_ref().is_none_or(|(at, _)| *at != next) {
            let read = log.read(SINK_GROUP, partition, next, bytes_max).await.unwrap_or_default();
            self.ahead = (!read.is_empty()).then_some((next, read));
        }
        let ahead = self.ahead.iter().flat_map(|(_, read)| read);
        let mut wanted = Vec::new();
        let mut taken = 0;
        for record in self.records.range(after..).map(|(_, r)| r).chain(ahead) {
            taken += u64::from(record.headers.rows);
            if taken > rows_max {
                break;
            }
            if !self.opened.contains_key(&record.offset) {
                wanted.push(record.clone());
            }
        }
        if wanted.is_empty() {
            return;
        }
        // A block that does not open is judged at its insert, which puts it into quarantine.
        let open =
            move || wanted.iter().filter_map(|r| Some((r.offset, block::open(r).ok()?))).collect::<Vec<_>>();
        if let Ok(opened) = tokio::task::spawn_blocking(open).await {
            self.opened.extend(opened);
        }
    }
}
