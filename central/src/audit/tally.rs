//! Counting the log's records: rows and contiguity of seqs by their headers, the hash chain over their bytes.

use crate::{
    log::{Offset, Partition, RecordHeaders, StoredRecord},
    rules::Positions,
};
use record::{Digest, GatewayId, Incarnation, StreamName, chain_hash};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a tally is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TallyKey {
    /// The gateway.
    pub gateway: GatewayId,
    /// Its stream.
    pub stream: StreamName,
    /// The life of its folder.
    pub incarnation: Incarnation,
}

/// The records of one stream in one incarnation, in the order of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Where they stand.
    pub partition: u32,
    /// Offset of the first.
    pub first_offset: u64,
    /// Offset of the last.
    pub last_offset: u64,
    /// Rows of all.
    pub rows: u64,
    /// First seq of the first.
    pub first_seq: u64,
    /// Last seq of the last.
    pub last_seq: u64,
    /// Whether records before the first may have been trimmed before they were counted.
    pub began_late: bool,
    /// Whether records after the last may have been trimmed before they were counted. The next record begins the tally anew.
    #[serde(default)]
    pub cut: bool,
    /// Seqs that no record holds, between the first and the last.
    pub missing: u64,
    /// Seqs that a later record holds again.
    pub repeated: u64,
    /// The first place where seqs do not follow.
    pub first_gap: Option<String>,
    /// The first record whose predecessor's hash is another, or whose bytes have another hash than its header says.
    pub first_break: Option<String>,
    /// Hash of the last record, 64 hexadecimal digits.
    hash: String,
}

impl Tally {
    /// Hash of the last record: the head of the chain.
    pub fn hash(&self) -> &str {
        &self.hash
    }
}

/// Everything counted so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    /// The log that the offsets belong to.
    pub log: String,
    /// The next offset to count, per partition.
    pub positions: Positions,
    /// Whether records of a partition were trimmed before they were counted.
    trimmed: BTreeMap<u32, bool>,
    tallies: BTreeMap<TallyKey, Tally>,
}

/// A [`Scan`] as it is stored: JSON has no maps with such keys.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    version: u32,
    log: String,
    positions: Positions,
    trimmed: BTreeMap<u32, bool>,
    tallies: Vec<(TallyKey, Tally)>,
}

const VERSION: u32 = 1;

impl Scan {
    /// Nothing counted yet of this log.
    pub fn of(log: &str) -> Self {
        Self { log: log.to_owned(), ..Self::default() }
    }

    /// JSON.
    pub fn encode(&self) -> Vec<u8> {
        let tallies = self.tallies.iter().map(|(k, t)| (k.clone(), t.clone())).collect();
        let (log, positions, trimmed) = (self.log.clone(), self.positions.clone(), self.trimmed.clone());
        let stored = Stored { version: VERSION, log, positions, trimmed, tallies };
        serde_json::to_vec(&stored).expect("plain values always encode")
    }

    /// Reads what [`Scan::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let s: Stored = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if s.version != VERSION {
            return Err(format!("it has layout {}, this program knows {VERSION}", s.version));
        }
        Ok(Self {
            log: s.log,
            positions: s.positions,
            trimmed: s.trimmed,
            tallies: s.tallies.into_iter().collect(),
        })
    }

    /// All tallies.
    pub fn tallies(&self) -> &BTreeMap<TallyKey, Tally> {
        &self.tallies
    }

    /// The next offset of a partition.
    pub fn position(&self, partition: Partition) -> Offset {
        Offset(self.positions.get(&partition.0).copied().unwrap_or(0))
    }

    /// Records before `first` are gone without having been counted. What stood in them is not known to be lost: tallies
    /// of the partition end where they are, and begin anew behind the cut.
    pub fn skip_to(&mut self, partition: Partition, first: Offset) {
        self.positions.insert(partition.0, first.0);
        self.trimmed.insert(partition.0, true);
        for tally in self.tallies.values_mut().filter(|t| t.partition == partition.0) {
            (tally.cut, tally.began_late) = (true, true);
        }
    }

    /// Whether records of any partition were gone before they were counted.
    pub fn is_cut(&self) -> bool {
        self.trimmed.values().any(|trimmed| *trimmed)
    }

    /// Everything before `end` has been counted, though no record may stand right before it.
    pub fn reached(&mut self, partition: Partition, end: Offset) {
        let at = self.positions.entry(partition.0).or_default();
        *at = (*at).max(end.0);
    }

    /// Counts the next record of a partition, and hashes its bytes.
    pub fn read(&mut self, partition: Partition, record: &StoredRecord) {
        self.feed(partition, record.offset, &record.headers, record_hash(record));
    }

    /// Counts the next record of a partition, whose bytes have this hash.
    pub fn feed(&mut self, partition: Partition, offset: Offset, h: &RecordHeaders, found: Digest) {
        self.positions.insert(partition.0, offset.next().0);
        let key =
            TallyKey { gateway: h.gateway.clone(), stream: h.stream.clone(), incarnation: h.incarnation };
        let (first, last) = (h.first_seq.0, h.last_seq.0);
        let place = || format!("offset {offset} of partition {partition}");
        let began_late = self.trimmed.get(&partition.0).copied().unwrap_or(false);
        let t = self.tallies.entry(key).or_insert_with(|| Tally {
            partition: partition.0,
            first_offset: offset.0,
            last_offset: offset.0,
            rows: 0,
            first_seq: first,
            last_seq: first.saturating_sub(1),
            began_late,
            cut: false,
            missing: 0,
            repeated: 0,
            first_gap: None,
            first_break: None,
            hash: h.prev_hash.to_hex(),
        });
        if std::mem::take(&mut t.cut) {
            // What was found wrong before the cut stays wrong.
            (t.first_offset, t.rows) = (offset.0, 0);
            (t.first_seq, t.last_seq) = (first, first.saturating_sub(1));
            t.hash = h.prev_hash.to_hex();
        }
        let expected = t.last_seq + 1;
        if first > expected {
            t.missing += first - expected;
            t.first_gap.get_or_insert_with(|| {
                format!("seqs {expected} to {} are missing before {}", first - 1, place())
            });
        } else if first < expected {
            t.repeated += expected.min(last + 1) - first;
            t.first_gap.get_or_insert_with(|| format!("seq {first} stands again at {}", place()));
        } else if t.hash != h.prev_hash.to_hex() {
            // After a gap the chain cannot be followed: the gap is named already.
            t.first_break.get_or_insert_with(|| {
                format!(
                    "the block of seqs {first} to {last} at {} does not follow the one before it",
                    place()
                )
            });
        }
        if found != h.hash {
            t.first_break.get_or_insert_with(|| {
                format!(
                    "the block of seqs {first} to {last} at {} has the hash {found}, its header says {}",
                    place(),
                    h.hash
                )
            });
        }
        t.last_offset = offset.0;
        t.rows += u64::from(h.rows);
        t.last_seq = t.last_seq.max(last);
        t.hash = h.hash.to_hex();
    }
}

/// The hash that a record's bytes have in their chain.
fn record_hash(r: &StoredRecord) -> Digest {
    let h = &r.headers;
    chain_hash(&h.prev_hash, &h.stream, h.incarnation, h.first_seq, h.last_seq, h.schema, &r.bytes)
}
