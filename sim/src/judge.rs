//! What must hold when everything has arrived.
//!
//! - Each record of the log is a block that a folder of its gateway wrote; seqs and hashes of a stream follow each other
//!   without gap but for rows declared lost.
//! - The progress of a stream is what the log holds: last seq and hash, rows, rows lost; and so is what was counted.
//! - Each record is in its table once, and nothing else is. It is in the view once, too, unless the sink said that its range
//!   had to be sent under a new name (it may be there more often), or that the view may lack it.
//! - What a folder let go of is stored or declared lost. What an honest one holds is stored, all of it; what a suspect one
//!   holds is stored, or still there and its stream was said to be refused.

use crate::{
    gateway::{Folder, stream},
    world::World,
};
use central::log::{Head, Offset, Progress, ProgressKind, ProgressRecord, StoredRecord, shard_of};
use link::forward::Item;
use record::{BlockHeader, Digest, GatewayId, Incarnation, Seq, StreamName};
use std::collections::{BTreeMap, BTreeSet};

/// One life of a stream.
type Key = (GatewayId, Incarnation, StreamName);

impl World {
    pub(crate) fn judge(&mut self) {
        let found = self.log().and_then(|hashes| {
            self.heads()?;
            self.tables()?;
            self.folders.iter().enumerate().try_for_each(|(n, f)| self.folder(n, f, &hashes))
        });
        if let Err((kind, text)) = found {
            self.fail(kind, text);
        }
    }

    /// The log itself; gives the hashes that stand in it.
    fn log(&self) -> Result<BTreeSet<Digest>, Found> {
        let mut written: BTreeSet<Digest> = BTreeSet::new();
        let mut lost: BTreeMap<Digest, Seq> = BTreeMap::new();
        for f in &self.folders {
            for item in f.entries.iter().flat_map(|e| &e.items) {
                match item {
                    Item::Block(b) => drop(written.insert(b.header.hash)),
                    Item::Lost(l) => drop(lost.insert(l.hash, l.last)),
                }
            }
        }
        let mut hashes = BTreeSet::new();
        let mut ends: BTreeMap<Key, (Seq, Digest)> = BTreeMap::new();
        for r in self.all_records().map(|(_, r)| r) {
            let h = &r.headers;
            let name = || format!("{}/{} seq {} to {}", h.gateway, h.stream, h.first_seq, h.last_seq);
            if !hashes.insert(h.hash) {
                return Err(("doubled in the log", name()));
            }
            if !written.contains(&h.hash) && !lost.contains_key(&h.hash) {
                return Err(("a stranger in the log", name()));
            }
            let key = (h.gateway.clone(), h.incarnation, h.stream.clone());
            let end = ends.entry(key).or_default();
            let follows = h.first_seq == end.0.next() && h.prev_hash == end.1;
            // Or behind rows that were declared lost.
            let behind_loss =
                h.first_seq > end.0 && lost.get(&h.prev_hash).is_some_and(|l| l.next() == h.first_seq);
            if !follows && !behind_loss {
                return Err(("the chain is broken", format!("{} follows seq {}", name(), end.0)));
            }
            *end = (h.last_seq, h.hash);
        }
        Ok(hashes)
    }

    fn all_records(&self) -> impl Iterator<Item = (u32, &StoredRecord)> {
        let partitions = 0..self.broker.partitions.len() as u32;
        partitions.flat_map(|p| self.broker.records(p, Offset(0)).map(move |r| (p, r)))
    }

    fn progress_of(&self, f: &Folder, name: &StreamName) -> Vec<ProgressRecord> {
        let shard = shard_of(&f.gateway, self.broker.shards.len() as u32).0;
        let all = self.broker.progress(shard).into_values();
        all.filter(|r| r.gateway == f.gateway && r.stream == *name).collect()
    }

    /// Progress against log, and against the folders that run.
    fn heads(&self) -> Result<(), Found> {
        let mut rows: BTreeMap<Key, u64> = BTreeMap::new();
        for (_, r) in self.all_records() {
            let h = &r.headers;
            *rows.entry((h.gateway.clone(), h.incarnation, h.stream.clone())).or_default() +=
                u64::from(h.rows);
        }
        for (n, f) in self.folders.iter().enumerate() {
            for (s, newest) in f.heads.iter().enumerate() {
                let name = stream(s);
                let progress = self.progress_of(f, &name);
                let of = |kind| progress.iter().find(|r| r.key().kind == kind).map(|r| &r.value);
                let head = match of(ProgressKind::Head) {
                    Some(Progress::Head(head)) => Some(head),
                    _ => None,
                };
                if let Some(head) = head {
                    let stored = rows.get(&(f.gateway.clone(), head.incarnation, name.clone()));
                    conserved(&f.gateway, &name, head, stored.copied().unwrap_or_default())?;
                }
                if f.over || f.suspect {
                    continue;
                }
                let at = head.filter(|h| h.incarnation == f.incarnation).map(|h| (h.last, h.hash));
                if at.unwrap_or_default() != *newest {
                    let text = format!("gateway {n}/{name} stands at {}, its progress is {at:?}", newest.0);
                    return Err(("lost", text));
                }
                if let Some(Progress::Counted(c)) = of(ProgressKind::Counted) {
                    let losses: u64 = c.losses.iter().map(|l| l.rows).sum();
                    let lost = head.filter(|h| h.incarnation == f.incarnation).map_or(0, |h| h.lost);
                    if c.as_of != newest.0 || c.counts.missing() != 0 || losses < lost {
                        return Err((
                            "the count is wrong",
                            format!("gateway {n}/{name}: {lost} lost, {c:?}"),
                        ));
                    }
                }
                if of(ProgressKind::Quarantined).is_some() && !f.molested && !self.has_twin(f) {
                    return Err((
                        "an honest gateway is refused",
                        format!("gateway {n}/{name} is in quarantine"),
                    ));
                }
            }
        }
        Ok(())
    }

    fn has_twin(&self, f: &Folder) -> bool {
        self.folders.iter().any(|o| o.gateway == f.gateway && (o.suspect || o.incarnation != f.incarnation))
    }

    fn tables(&self) -> Result<(), Found> {
        let mut left: BTreeMap<(u32, Offset), &StoredRecord> =
            self.all_records().map(|(p, r)| ((p, r.offset), r)).collect();
        for (name, table) in &self.server.tables {
            for (at, rows) in &table.rows {
                let record =
                    left.get(at).filter(|r| r.headers.stream == *name && r.headers.hash == rows.hash);
                if record.is_none() {
                    return Err(("strays in a table", format!("{name} holds rows of {at:?}")));
                }
                if rows.times != 1 {
                    return Err(("doubled in a table", format!("{name} holds {at:?} {} times", rows.times)));
                }
            }
            for (at, times) in &table.view {
                if *times > 1 && !is_in(&self.renamed, *at) && !is_in(&self.unsure, *at) {
                    return Err((
                        "doubled in a view",
                        format!("the view of {name} holds {at:?} {times} times"),
                    ));
                }
            }
        }
        for (at, record) in std::mem::take(&mut left) {
            let table = self.server.tables.get(&record.headers.stream);
            if !table.is_some_and(|t| t.rows.contains_key(&at)) {
                return Err(("lost in a table", format!("{} lacks {at:?}", record.headers.stream)));
            }
            if !table.is_some_and(|t| t.view.contains_key(&at)) && !is_in(&self.unsure, at) {
                return Err((
                    "lost in a view",
                    format!("the view of {} lacks {at:?}", record.headers.stream),
                ));
            }
        }
        Ok(())
    }

    /// Whether a twin of the folder has declared the block lost, and may so have been the first.
    fn is_lost(&self, f: &Folder, h: &BlockHeader) -> bool {
        let twins = self.folders.iter().filter(|t| t.gateway == f.gateway && t.incarnation == f.incarnation);
        let mut items = twins.flat_map(|t| &t.entries).flat_map(|e| &e.items);
        items.any(|i| matches!(i, Item::Lost(l) if l.hash == h.hash))
    }

    /// What a folder wrote is where it must be.
    fn folder(&self, n: usize, f: &Folder, hashes: &BTreeSet<Digest>) -> Result<(), Found> {
        for entry in &f.entries[..f.durable] {
            let position = entry.position.0 as usize;
            let blocks = entry.items.iter().filter_map(|i| match i {
                Item::Block(b) => Some(&b.header),
                Item::Lost(_) => None,
            });
            for h in blocks.filter(|h| !hashes.contains(&h.hash) && !self.is_lost(f, h)) {
                let name = format!("gateway {n}/{} seq {} to {}", h.stream, h.first, h.last);
                if position <= f.trimmed {
                    return Err(("lost", format!("{name} is not stored and not in the folder any more")));
                }
                if f.over {
                    // It went with its folder, and nobody was told that it is stored.
                    continue;
                }
                if !f.suspect {
                    return Err(("lost", format!("{name} is not stored")));
                }
                if !f.told.contains(&h.stream) {
                    return Err(("lost in silence", format!("{name} is not stored and nobody says so")));
                }
            }
        }
        Ok(())
    }
}

type Found = (&'static str, String);

fn is_in(ranges: &[(u32, Offset, Offset)], (partition, offset): (u32, Offset)) -> bool {
    ranges.iter().any(|(p, from, to)| *p == partition && *from <= offset && offset < *to)
}

fn conserved(gateway: &GatewayId, stream: &StreamName, head: &Head, rows: u64) -> Result<(), Found> {
    if head.last.0 == head.rows + head.lost && rows == head.rows {
        return Ok(());
    }
    let text = format!(
        "{gateway}/{stream} stands at {}: {} rows and {} lost by its progress, {rows} in the log",
        head.last, head.rows, head.lost
    );
    Err(("rows are not conserved", text))
}
