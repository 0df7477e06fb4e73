//! Ends transactions whose end the brokers have left out.
//!
//! The coordinator writes the end of a transaction to each of its partitions after it has answered. A partition that has no
//! leader at that moment counts as deleted and is left out ("likely deleted already and hence can be skipped" in the
//! broker's log): a single broker that is killed and comes back does so to itself, of several the only one that had a copy.
//! Readers of committed records then wait there for ever.
//!
//! The next transaction of the same producer over such a partition, also under a later epoch, takes along what is open
//! there: its own end is that of both. So whoever claims a shard closes what is left, after it has fenced everybody else;
//! by then every end that the brokers would ever write stands.
//!
//! Which end it had nobody says. Since nothing is acknowledged before all of it is seen, either would do, but all of its
//! partitions must have the same. So what is visible of it decides, and where nothing is, it is taken back: it may never
//! have been whole, and the gateways have all of it.
//!
//! What is open in these partitions is the shard's last transaction: no other producer writes to its partition of progress,
//! nor to its partitions of data but for intruders, and a producer is given up when a commit is not seen.

use super::{
    KafkaOptions, headers,
    limits::{SINCE_MARGIN, WHOLE_TIMEOUT},
    progress,
    shard::{Owner, number},
    whole::{Ends, Entry, Whole, entry},
};
use crate::log::{Offset, Partition, Progress, ProgressRecord, RecordHeaders, Shard, partition_of, shard_of};
use rdkafka::{
    Message,
    message::{BorrowedMessage, Headers as _},
};
use record::{Digest, GatewayId, Seq, StreamName};
use std::collections::{BTreeMap, BTreeSet};

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Commit,
    Abort,
}

impl End {
    /// As the metrics say it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Abort => "abort",
        }
    }
}

/// Ends what is open of a shard whose owner has fenced everybody before it, and says how; nothing when nothing is. Blocks.
pub(super) fn close(
    options: &KafkaOptions,
    whole: &Whole,
    owner: &Owner,
    shard: Shard,
) -> Result<Option<End>, String> {
    let left = Left::find(options, whole, shard)?;
    if left.progress.is_empty() && left.data.is_empty() {
        return Ok(None);
    }
    let end = left.end(options, whole)?;
    let data: Vec<Partition> = left.data.keys().copied().collect();
    let progress = left.progress.last().map(|(entry, _)| entry);
    owner.close(options, shard, progress, &data, end).map_err(|e| e.to_string())?;
    Ok(Some(end))
}

/// What is left open of a shard's last transaction.
struct Left {
    shard: Shard,
    /// Its progress with the time of each record, when that is open.
    progress: Vec<(Entry, i64)>,
    /// Its blocks in the partitions where they are open.
    data: BTreeMap<Partition, Vec<RecordHeaders>>,
}

impl Left {
    fn find(options: &KafkaOptions, whole: &Whole, shard: Shard) -> Result<Self, String> {
        let mut left = Self { shard, progress: Vec::new(), data: BTreeMap::new() };
        let place = (&*options.topic("progress"), number(shard.0));
        if let Some(ends) = open(whole, place)? {
            whole.open(place, ends, WHOLE_TIMEOUT, |m| {
                left.progress.push((entry(m), m.timestamp().to_millis().unwrap_or_default()));
            })?;
        }
        let topic = options.topic("data");
        for partition in (0..options.partitions).filter(|p| p % options.shards == shard.0).map(Partition) {
            let place = (&*topic, number(partition.0));
            let Some(ends) = open(whole, place)? else { continue };
            let mut blocks = Vec::new();
            whole.open(place, ends, WHOLE_TIMEOUT, |m| {
                blocks.extend(block(m).filter(|h| shard_of(&h.gateway, options.shards) == shard));
            })?;
            // An intruder's transaction ends when its time is over.
            if !blocks.is_empty() {
                left.data.insert(partition, blocks);
            }
        }
        Ok(left)
    }

    fn end(&self, options: &KafkaOptions, whole: &Whole) -> Result<End, String> {
        let visible = if self.progress.is_empty() {
            let stored = progress(options, whole, self.shard)?;
            self.data.values().flatten().any(|block| covered(&stored, block))
        } else {
            self.blocks_visible(options, whole)?
        };
        Ok(if visible { End::Commit } else { End::Abort })
    }

    /// Whether readers see a block that the open progress ends with.
    fn blocks_visible(&self, options: &KafkaOptions, whole: &Whole) -> Result<bool, String> {
        let heads = heads(&self.progress)?;
        let gateways = heads.iter().map(|(gateway, ..)| partition_of(gateway, options.partitions));
        let closed: BTreeSet<Partition> = gateways.filter(|p| !self.data.contains_key(p)).collect();
        let first_ms = self.progress.iter().map(|(_, at)| *at).min().unwrap_or_default();
        let margin_ms = i64::try_from(SINCE_MARGIN.as_millis()).unwrap_or(i64::MAX);
        let (topic, mut visible) = (options.topic("data"), false);
        for partition in closed {
            let place = (&*topic, number(partition.0));
            whole.since(place, first_ms.saturating_sub(margin_ms), WHOLE_TIMEOUT, |m| {
                visible |=
                    block(m).is_some_and(|h| heads.contains(&(h.gateway, h.stream, h.last_seq, h.hash)));
            })?;
        }
        Ok(visible)
    }
}

fn open(whole: &Whole, (topic, partition): (&str, i32)) -> Result<Option<Ends>, String> {
    let ends = whole.ends(topic, partition, WHOLE_TIMEOUT)?;
    Ok(Some(ends).filter(|ends| ends.is_open()))
}

/// The headers of a record that is a block.
fn block(m: &BorrowedMessage<'_>) -> Option<RecordHeaders> {
    let fields = m.headers().map(|h| h.iter().map(|h| (h.key, h.value)));
    headers::decode(Offset(0), fields, m.payload()).ok().map(|record| record.headers)
}

/// Last seq and hash of each stream whose progress is among these.
fn heads(progress: &[(Entry, i64)]) -> Result<BTreeSet<(GatewayId, StreamName, Seq, Digest)>, String> {
    let mut heads = BTreeSet::new();
    for value in progress.iter().filter_map(|((_, value), _)| value.as_ref()) {
        let record = ProgressRecord::decode(value).map_err(|e| format!("open progress: {e}"))?;
        if let Progress::Head(head) = record.value {
            heads.insert((record.gateway, record.stream, head.last, head.hash));
        }
    }
    Ok(heads)
}

/// Whether progress says that a block is stored.
fn covered(stored: &[ProgressRecord], block: &RecordHeaders) -> bool {
    let of_stream = stored.iter().filter(|r| r.gateway == block.gateway && r.stream == block.stream);
    let mut heads = of_stream.filter_map(|r| match &r.value {
        Progress::Head(head) => Some(head),
        _ => None,
    });
    heads.any(|head| {
        head.incarnation == block.incarnation && head.last >= block.last_seq
            || head.retired.contains(&block.incarnation)
    })
}
