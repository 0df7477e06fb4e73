//! Reading the log once more: whether what was counted can still be read, and still has its hashes.
//!
//! The audit counts each record once, when it comes. A byte that changes on a disk later shows only to whoever reads it
//! again; that costs what the log holds, so it is done when somebody asks, for a bounded part.

use super::{
    auditor::{READ_BYTES, READER},
    judge::Again,
    tally::Scan,
    values,
};
use crate::{
    alerts::from_rfc3339,
    log::{Log, Offset, Partition, ReadError, StoredRecord},
    rules::{Positions, QuerySource, duration},
};
use record::clock::Clock;
use std::time::Duration;

/// Records of a partition that are read again unless somebody says since when.
const RECORDS_MAX: u64 = 10_000;
/// How long that may take.
const TIME_MAX: Duration = Duration::from_secs(60);
/// How long it may take when somebody says since when, or wants more than hashes.
const TIME_MAX_LONG: Duration = Duration::from_secs(540);
/// Clocks of several processes of central differ by less.
const CLOCKS_APART_NS: i64 = 60_000_000_000;

/// What is to be read again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reread {
    /// Records that central took since then, in nanoseconds since the epoch; otherwise the newest.
    pub since_ns: Option<i64>,
    /// The values in the tables are compared with those of the records, too.
    pub values: bool,
}

/// Against what values are compared.
pub(super) struct Rows<'a> {
    pub(super) source: &'a dyn QuerySource,
    /// Up to where the sink has committed.
    pub(super) committed: &'a Positions,
}

impl Reread {
    /// Records since a moment, given as RFC 3339 or as the time that has passed since, like `2h`.
    pub(super) fn since(text: &str, now_ns: i64) -> Result<Self, String> {
        let ago = || duration::parse(text).ok().map(|ago| now_ns.saturating_sub(ago));
        let since_ns = from_rfc3339(text).or_else(ago).ok_or_else(|| {
            format!("{text:?} is neither a time like 2026-03-01T08:00:00Z nor a duration like 2h")
        })?;
        Ok(Self { since_ns: Some(since_ns), values: false })
    }

    /// What serves both who asked for this and who asked for that.
    pub(super) fn both(self, other: Self) -> Self {
        Self {
            since_ns: self.since_ns.zip(other.since_ns).map(|(a, b)| a.min(b)),
            values: self.values || other.values,
        }
    }
}

/// Reads the records before `ends` again.
pub(super) async fn read_again(
    log: &dyn Log,
    clock: &dyn Clock,
    ends: &Positions,
    wish: Reread,
    rows: &Rows<'_>,
) -> Result<Again, ReadError> {
    let time = if wish.since_ns.is_some() || wish.values { TIME_MAX_LONG } else { TIME_MAX };
    let until_ns = clock.monotonic_ns().saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    let mut again = Again { scan: Scan::of(log.id()), ..Again::default() };
    for n in 0..log.partitions() {
        let p = Partition(n);
        let end = Offset(ends.get(&n).copied().unwrap_or(0));
        let from = first(log, p, end, wish).await?;
        again.scan.skip_to(p, from);
        again.from.insert(n, from.0);
        while again.scan.position(p) < end {
            if clock.monotonic_ns() > until_ns {
                let at = again.scan.position(p);
                again.notes.push(format!(
                    "the log was read again up to offset {at} of partition {p} only: there is no time for more"
                ));
                again.is_cut = true;
                return Ok(again);
            }
            let records = read_on(log, p, end, &mut again).await?;
            if wish.values {
                match values::compare(rows.source, p, &records, rows.committed).await {
                    Ok(altered) => again.altered.extend(altered),
                    Err(reason) => {
                        again.notes.push(format!("values of partition {p} were not compared: {reason}"))
                    }
                }
            }
        }
    }
    Ok(again)
}

async fn read_on(
    log: &dyn Log,
    p: Partition,
    end: Offset,
    again: &mut Again,
) -> Result<Vec<StoredRecord>, ReadError> {
    let mut records = match log.read(READER, p, again.scan.position(p), READ_BYTES).await {
        // Trimmed while it was read: what is gone was stored, or the audit says so elsewhere.
        Err(ReadError::Trimmed { first, .. }) if first > again.scan.position(p) => {
            again.scan.skip_to(p, first);
            again.from.insert(p.0, first.0);
            return Ok(Vec::new());
        }
        other => other?,
    };
    records.retain(|r| r.offset < end);
    if records.is_empty() {
        again.scan.reached(p, end);
    }
    tokio::task::block_in_place(|| {
        for record in &records {
            again.records += 1;
            again.bytes += record.bytes.len() as u64;
            again.scan.read(p, record);
        }
    });
    Ok(records)
}

/// Where to begin in a partition.
async fn first(log: &dyn Log, p: Partition, end: Offset, wish: Reread) -> Result<Offset, ReadError> {
    let low = log.status(p).await?.low;
    let Some(since_ns) = wish.since_ns else {
        return Ok(low.max(Offset(end.0.saturating_sub(RECORDS_MAX))));
    };
    // Records stand nearly in the order in which they were taken.
    let since_ns = since_ns.saturating_sub(CLOCKS_APART_NS);
    let (mut low, mut high) = (low.0, end.0);
    while low < high {
        let middle = low + (high - low) / 2;
        let is_before = match log.read(READER, p, Offset(middle), 1).await {
            Ok(records) => records.first().is_some_and(|r| r.headers.produced_at_ns < since_ns),
            Err(ReadError::Trimmed { .. }) => true,
            Err(e) => return Err(e),
        };
        if is_before {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(Offset(low))
}
