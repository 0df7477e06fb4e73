//! Reads one partition of a small topic from its beginning to where it ended when asked.

use super::KafkaOptions;
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};
use std::time::{Duration, Instant};

/// A record: key and value, which is not there when the key was taken back.
pub(super) type Entry = (Vec<u8>, Option<Vec<u8>>);

/// Committed records of a partition, oldest first, up to the high watermark that a client sees which does not wait for
/// open transactions: everything that was committed before the call. Blocks.
pub(super) fn read(
    options: &KafkaOptions,
    topic: &str,
    partition: i32,
    within: Duration,
) -> Result<Vec<Entry>, String> {
    let deadline = Instant::now() + within;
    let text = |e: rdkafka::error::KafkaError| e.to_string();
    let consumer = |isolation: &str| -> Result<BaseConsumer, String> {
        let mut config = options.client();
        config.set("group.id", options.group("reader")).set("enable.auto.commit", "false");
        config.set("isolation.level", isolation).set("auto.offset.reset", "earliest");
        config.set("fetch.wait.max.ms", "50").create().map_err(text)
    };
    let (_, high) = consumer("read_uncommitted")?.fetch_watermarks(topic, partition, within).map_err(text)?;
    let reader = consumer("read_committed")?;
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(topic, partition, Offset::Beginning).map_err(text)?;
    reader.assign(&from).map_err(text)?;
    let mut entries = Vec::new();
    loop {
        // The position passes records of the broker's own, which are never shown.
        let position = reader.position().map_err(text)?;
        let at = position.find_partition(topic, partition).map(|p| p.offset());
        if high == 0 || matches!(at, Some(Offset::Offset(at)) if at >= high) {
            return Ok(entries);
        }
        if Instant::now() > deadline {
            return Err(format!("{topic}-{partition} was not read to {high} within {within:?} (at {at:?})"));
        }
        match reader.poll(Duration::from_millis(20)) {
            None => {}
            Some(Ok(m)) => {
                entries.push((m.key().unwrap_or_default().to_vec(), m.payload().map(<[u8]>::to_vec)));
            }
            Some(Err(e)) => tracing::debug!(error = %e, topic, partition, "a read is tried again"),
        }
    }
}
