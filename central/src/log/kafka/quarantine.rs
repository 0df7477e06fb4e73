//! Records that are none, kept with the reason and their place.
//!
//! The key is `PARTITION/OFFSET` of the data topic. The value is that of the record, its beginning when it is larger than
//! any block; headers say the kind, the reason, its length and key, and what its own headers were, each under `was-NAME`,
//! as far as there is room. So what is kept always fits a broker, whatever the record was: poison stops no lane.
//!
//! Each record is kept once. Two processes that both believe to own a partition might keep it twice, under the same key.

use super::{
    KafkaOptions, blocking,
    headers::{Poison, short},
    limits::{
        ASK_TIMEOUT, MESSAGE_BYTES_MAX, QUARANTINE_TIMEOUT, QUARANTINED_BYTES_MAX,
        QUARANTINED_HEADERS_BYTES_MAX, QUARANTINED_PLACES_MAX, QUOTED_BYTES_MAX, WHOLE_TIMEOUT,
    },
    whole::Whole,
};
use crate::log::{Offset, Partition};
use daemon::metrics::{CounterVec, Registry};
use rdkafka::{
    message::{Header, Headers, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
    time::Duration,
};

/// A record that is none, as it was found.
pub(super) struct Found {
    pub(super) partition: Partition,
    pub(super) offset: Offset,
    key: Vec<u8>,
    value: Vec<u8>,
    value_bytes: usize,
    headers: Vec<(String, Vec<u8>)>,
}

impl Found {
    /// As much of it as is kept.
    pub(super) fn new(
        (partition, offset): (Partition, Offset),
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: Option<&impl Headers>,
    ) -> Self {
        let (mut kept, mut bytes) = (Vec::new(), 0);
        for header in headers.into_iter().flat_map(|h| h.iter()) {
            bytes += header.key.len() + header.value.map_or(0, <[u8]>::len) + QUOTED_BYTES_MAX;
            if bytes > QUARANTINED_HEADERS_BYTES_MAX {
                break;
            }
            kept.push((format!("was-{}", header.key), header.value.unwrap_or_default().to_vec()));
        }
        let (key, value) = (key.unwrap_or_default(), value.unwrap_or_default());
        Self {
            partition,
            offset,
            key: key[..key.len().min(QUOTED_BYTES_MAX)].to_vec(),
            value: value[..value.len().min(QUARANTINED_BYTES_MAX)].to_vec(),
            value_bytes: value.len(),
            headers: kept,
        }
    }

    fn headers(&self, poison: &Poison) -> OwnedHeaders {
        let length = self.value_bytes.to_string();
        let reason = short(&poison.reason, crate::limits::REASON_BYTES_MAX);
        let ours = [("kind", poison.kind.as_bytes()), ("reason", reason.as_bytes())];
        let ours = ours.into_iter().chain([("bytes", length.as_bytes()), ("key", &self.key[..])]);
        let theirs = self.headers.iter().map(|(name, value)| (name.as_str(), &value[..]));
        ours.chain(theirs)
            .fold(OwnedHeaders::new(), |all, (key, value)| all.insert(Header { key, value: Some(value) }))
    }
}

/// What is known to be kept.
#[derive(Default)]
struct Known {
    places: BTreeMap<Partition, Places>,
    /// Where the topic ended when it was looked at: behind it another process may have written.
    end: i64,
}

/// The places of one partition, the newest of them. A reader is ahead of whoever opens its blocks, so they do not come in
/// order.
#[derive(Default)]
struct Places(BTreeSet<Offset>);

impl Places {
    /// What is older than everything that is remembered stands there already.
    fn has(&self, offset: Offset) -> bool {
        let forgotten = self.0.len() == QUARANTINED_PLACES_MAX && self.0.first().is_some_and(|f| offset < *f);
        forgotten || self.0.contains(&offset)
    }

    fn put(&mut self, offset: Offset) {
        self.0.insert(offset);
        if self.0.len() > QUARANTINED_PLACES_MAX {
            self.0.pop_first();
        }
    }
}

impl Known {
    fn hear(&mut self, others: Option<Others>) {
        let Some(Others { end, places }) = others else { return };
        self.end = end;
        for (partition, offset) in places {
            self.places.entry(partition).or_default().put(offset);
        }
    }
}

/// What stands in the topic.
struct Others {
    end: i64,
    places: Vec<(Partition, Offset)>,
}

/// Reads the topic, unless it ends where it is known to; brokers that are away are waited for so long. Blocks.
fn others(whole: &Whole, topic: &str, known_end: i64, within: Duration) -> Result<Option<Others>, String> {
    let end = whole.ends(topic, 0, within)?.high;
    if end == known_end {
        return Ok(None);
    }
    let entries = whole.read(topic, 0, WHOLE_TIMEOUT)?;
    Ok(Some(Others { end, places: entries.iter().filter_map(|(key, _)| place(key)).collect() }))
}

pub(super) struct Quarantine {
    whole: Arc<Whole>,
    topic: String,
    producer: FutureProducer,
    known: tokio::sync::Mutex<Known>,
    kept: OnceLock<CounterVec>,
}

impl Quarantine {
    /// Blocks.
    pub(super) fn open(options: &KafkaOptions, whole: Arc<Whole>) -> Result<Self, String> {
        let topic = options.topic("quarantine");
        let mut config = options.client();
        config.set("enable.idempotence", "true").set("acks", "all").set("linger.ms", "0");
        config.set("message.max.bytes", MESSAGE_BYTES_MAX.to_string());
        let producer = config.create().map_err(|e| e.to_string())?;
        let mut known = Known::default();
        known.hear(others(&whole, &topic, 0, WHOLE_TIMEOUT)?);
        let known = tokio::sync::Mutex::new(known);
        Ok(Self { whole, topic, producer, known, kept: OnceLock::new() })
    }

    /// Counts from now on what is kept.
    pub(super) fn count_in(&self, registry: &Registry) {
        let kept = registry.counter_vec(
            "tidegate_log_quarantined_records_total",
            "Records of the data topic that are none and were put into quarantine, by kind.",
            &["kind"],
        );
        // Shown from the beginning, so that the first one is an increase.
        Poison::KINDS.iter().for_each(|kind| drop(kept.with(&[kind])));
        // A second time would be the same family.
        let _ = self.kept.set(kept);
    }

    /// Durable when it returns true; false for what stands there already.
    pub(super) async fn keep(&self, found: Found, poison: &Poison) -> Result<bool, String> {
        let (partition, offset) = (found.partition, found.offset);
        let mut known = self.known.lock().await;
        // Poison is rare: a question to the broker costs less than what is told twice.
        let (whole, topic, end) = (self.whole.clone(), self.topic.clone(), known.end);
        known.hear(blocking(move || others(&whole, &topic, end, ASK_TIMEOUT)).await??);
        if known.places.get(&partition).is_some_and(|places| places.has(offset)) {
            return Ok(false);
        }
        let key = format!("{partition}/{offset}");
        let headers = found.headers(poison);
        let record =
            FutureRecord::to(&self.topic).partition(0).key(&key).payload(&found.value).headers(headers);
        let at = self.producer.send(record, QUARANTINE_TIMEOUT).await.map_err(|(e, _)| e.to_string())?;
        if known.end == at.offset {
            known.end += 1;
        }
        known.places.entry(partition).or_default().put(offset);
        if let Some(kept) = self.kept.get() {
            kept.with(&[poison.kind]).inc();
        }
        Ok(true)
    }
}

fn place(key: &[u8]) -> Option<(Partition, Offset)> {
    let (partition, offset) = std::str::from_utf8(key).ok()?.split_once('/')?;
    Some((Partition(partition.parse().ok()?), Offset(offset.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_remembered_in_any_order_and_bounded() {
        let mut places = Places::default();
        places.put(Offset(20));
        assert!(!places.has(Offset(10)), "what the sink finds comes after what its reader found");
        places.put(Offset(10));
        assert!(places.has(Offset(10)) && places.has(Offset(20)) && !places.has(Offset(15)));
        (100..100 + QUARANTINED_PLACES_MAX as u64).for_each(|n| places.put(Offset(n)));
        assert_eq!(places.0.len(), QUARANTINED_PLACES_MAX);
        assert!(places.has(Offset(10)) && !places.has(Offset(u64::MAX)));
    }

    #[test]
    fn keys_are_places() {
        assert_eq!(place(b"3/17"), Some((Partition(3), Offset(17))));
        for other in [&b"3"[..], b"3/x", b"/", b"\xff/1", b"-1/2"] {
            assert_eq!(place(other), None);
        }
    }
}
