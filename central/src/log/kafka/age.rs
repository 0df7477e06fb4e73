//! How old the oldest record is that the sink has not stored, beside how long records are kept: what retention removes
//! before it is stored is lost, so an alert must come long before.
//!
//! It is measured here and not by the sink, since what makes the sink late may keep it from measuring.

use super::{
    Kafka, blocking,
    headers::is_filler,
    limits::{AGE_INTERVAL, AGE_TIMEOUT, FETCH_WAIT, READER_POLL, ms},
    shard::number,
};
use crate::{
    SINK_GROUP,
    log::{Log as _, Offset, Partition},
};
use daemon::metrics::Registry;
use rdkafka::{
    Message, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::Headers as _,
};
use record::clock::Clock;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

impl Kafka {
    /// Shows the ages until `stop`.
    pub async fn watch_ages(&self, registry: &Registry, clock: &dyn Clock, stop: CancellationToken) {
        let kept =
            registry.gauge("tidegate_log_retention_seconds", "How long the log keeps records, at least.");
        kept.set(self.options.retention.as_secs_f64());
        let ages = registry.gauge_vec(
            "tidegate_log_unstored_age_seconds",
            "Age of the oldest record that the sink has not stored; 0 when there is none.",
            &["partition"],
        );
        loop {
            match self.ages(clock).await {
                Ok(all) => {
                    for (partition, age) in all {
                        ages.with(&[&partition.to_string()]).set(age.as_secs_f64());
                    }
                }
                // A broker that does not answer is told where the log is written and read; the gauges stay.
                Err(reason) => tracing::debug!(reason, "the ages of what is not stored are not known"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(AGE_INTERVAL) => {}
            }
        }
    }

    /// The age of the oldest record of each partition that the sink has not stored.
    pub async fn ages(&self, clock: &dyn Clock) -> Result<BTreeMap<Partition, Duration>, String> {
        let mut ages = BTreeMap::new();
        let mut behind = BTreeMap::new();
        for partition in (0..self.options.partitions).map(Partition) {
            let extent = self.status(partition).await.map_err(|e| e.to_string())?;
            let stored = self.committed(SINK_GROUP, partition).await.map_err(|e| e.to_string())?;
            let from = stored.map_or(Offset(0), |c| c.offset).max(extent.low);
            ages.insert(partition, Duration::ZERO);
            if from < extent.high {
                behind.insert(partition, from);
            }
        }
        if behind.is_empty() {
            return Ok(ages);
        }
        let mut config = self.options.client();
        config
            .set("group.id", self.options.group("read-age"))
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "earliest")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", ms(FETCH_WAIT))
            // One record of each partition is wanted.
            .set("queued.min.messages", "1")
            .set("queued.max.messages.kbytes", "1024");
        let topic = self.options.topic("data");
        let consumer = move || config.create::<BaseConsumer>().map_err(|e| e.to_string());
        let times = blocking(move || first_times(&consumer()?, &topic, &behind)).await??;
        let now_ms = clock.wall_ns() / 1_000_000;
        ages.extend(times.into_iter().map(|(partition, at_ms)| {
            (partition, Duration::from_millis(u64::try_from(now_ms - at_ms).unwrap_or_default()))
        }));
        Ok(ages)
    }
}

/// When the first record of each partition from an offset on was written, in milliseconds since the epoch; nothing for
/// a partition that has only records of the broker's own there. Blocks.
fn first_times(
    consumer: &BaseConsumer,
    topic: &str,
    from: &BTreeMap<Partition, Offset>,
) -> Result<BTreeMap<Partition, i64>, String> {
    let text = |e: KafkaError| e.to_string();
    let mut list = TopicPartitionList::new();
    for (partition, offset) in from {
        let at = rdkafka::Offset::Offset(i64::try_from(offset.0).unwrap_or(i64::MAX));
        list.add_partition_offset(topic, number(partition.0), at).map_err(text)?;
    }
    consumer.assign(&list).map_err(text)?;
    let (mut times, mut open) = (BTreeMap::new(), from.keys().copied().collect::<BTreeSet<_>>());
    let deadline = Instant::now() + AGE_TIMEOUT;
    while !open.is_empty() {
        let seen = match consumer.poll(READER_POLL) {
            // Nobody stores it.
            Some(Ok(m)) if m.headers().is_some_and(|h| is_filler(h.iter().map(|h| (h.key, h.value)))) => None,
            Some(Ok(m)) => {
                let partition = Partition(u32::try_from(m.partition()).unwrap_or_default());
                if open.contains(&partition) {
                    times.insert(partition, m.timestamp().to_millis().unwrap_or_default());
                }
                Some(partition)
            }
            Some(Err(KafkaError::PartitionEOF(n))) => u32::try_from(n).ok().map(Partition),
            Some(Err(error)) => return Err(error.to_string()),
            None => None,
        };
        if let Some(partition) = seen.filter(|p| open.remove(p)) {
            let mut done = TopicPartitionList::new();
            done.add_partition(topic, number(partition.0));
            consumer.incremental_unassign(&done).map_err(text)?;
        }
        if Instant::now() > deadline {
            return Err(format!("{} partitions gave no record within {AGE_TIMEOUT:?}", open.len()));
        }
    }
    Ok(times)
}
