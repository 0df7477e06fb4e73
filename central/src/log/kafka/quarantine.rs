//! Records that are none, kept whole with the reason and their place.

use super::KafkaOptions;
use crate::log::{Offset, Partition};
use rdkafka::{
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

const WRITE_TIMEOUT: Duration = Duration::from_secs(15);
const READ_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) struct Quarantine {
    topic: String,
    producer: FutureProducer,
    /// The newest of each partition: a partition is read in order, so what is older stands there already.
    newest: Mutex<BTreeMap<Partition, Offset>>,
}

impl Quarantine {
    /// Blocks.
    pub(super) fn open(options: &KafkaOptions) -> Result<Self, String> {
        let topic = options.topic("quarantine");
        let mut newest = BTreeMap::new();
        for (key, _) in super::whole::read(options, &topic, 0, READ_TIMEOUT)? {
            if let Some((partition, offset)) = place(&key) {
                let known = newest.entry(partition).or_insert(offset);
                *known = offset.max(*known);
            }
        }
        let mut config = options.client();
        config.set("enable.idempotence", "true").set("acks", "all").set("linger.ms", "0");
        let producer = config.create().map_err(|e| e.to_string())?;
        Ok(Self { topic, producer, newest: Mutex::new(newest) })
    }

    /// Durable when it returns true; false for what stands there already.
    pub(super) async fn keep(
        &self,
        partition: Partition,
        offset: Offset,
        reason: &str,
        value: &[u8],
    ) -> Result<bool, String> {
        let known = |n: &BTreeMap<Partition, Offset>| n.get(&partition).is_some_and(|o| *o >= offset);
        if known(&self.newest.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(false);
        }
        let key = format!("{partition}/{offset}");
        let headers = OwnedHeaders::new().insert(Header { key: "reason", value: Some(reason) });
        let record = FutureRecord::to(&self.topic).partition(0).key(&key).payload(value).headers(headers);
        self.producer.send(record, WRITE_TIMEOUT).await.map_err(|(e, _)| e.to_string())?;
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let at = newest.entry(partition).or_insert(offset);
        *at = offset.max(*at);
        Ok(true)
    }
}

fn place(key: &[u8]) -> Option<(Partition, Offset)> {
    let (partition, offset) = std::str::from_utf8(key).ok()?.split_once('/')?;
    Some((Partition(partition.parse().ok()?), Offset(offset.parse().ok()?)))
}
