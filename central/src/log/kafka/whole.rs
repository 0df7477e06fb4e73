//! Reads one partition of a small topic from its beginning to where it ended when asked.
//!
//! A shard that moves is waited for, so the clients of the last reads stay connected for the next ones.

use super::{
    KafkaOptions,
    limits::{FETCH_WAIT, READER_POLL, WHOLE_CLIENTS_MAX, ms},
    lock,
};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// A record: key and value, which is not there when the key was taken back.
pub(super) type Entry = (Vec<u8>, Option<Vec<u8>>);

/// Clients for reads, of which several may go on at a time.
pub(super) struct Whole {
    options: Arc<KafkaOptions>,
    idle: Mutex<Vec<Clients>>,
}

/// One sees where a partition ends without waiting for open transactions, the other shows what is committed.
struct Clients {
    all: BaseConsumer,
    committed: BaseConsumer,
}

impl Whole {
    pub(super) fn new(options: Arc<KafkaOptions>) -> Self {
        Self { options, idle: Mutex::default() }
    }

    fn clients(&self) -> Result<Clients, String> {
        if let Some(idle) = lock(&self.idle).pop() {
            return Ok(idle);
        }
        let consumer = |isolation: &str| -> Result<BaseConsumer, String> {
            let mut config = self.options.client();
            config.set("group.id", self.options.group("reader")).set("enable.auto.commit", "false");
            config.set("isolation.level", isolation).set("auto.offset.reset", "earliest");
            config.set("fetch.wait.max.ms", ms(FETCH_WAIT)).create().map_err(|e| e.to_string())
        };
        Ok(Clients { all: consumer("read_uncommitted")?, committed: consumer("read_committed")? })
    }

    /// Committed records of a partition, oldest first, up to the high watermark that a client sees which does not wait
    /// for open transactions: everything that was committed before the call. Blocks.
    pub(super) fn read(&self, topic: &str, partition: i32, within: Duration) -> Result<Vec<Entry>, String> {
        let clients = self.clients()?;
        let entries = clients.read(topic, partition, Instant::now() + within)?;
        let mut idle = lock(&self.idle);
        if idle.len() < WHOLE_CLIENTS_MAX {
            idle.push(clients);
        }
        Ok(entries)
    }
}

impl Clients {
    fn read(&self, topic: &str, partition: i32, deadline: Instant) -> Result<Vec<Entry>, String> {
        let text = |e: KafkaError| e.to_string();
        let high = self.end(topic, partition, deadline)?;
        let mut from = TopicPartitionList::new();
        from.add_partition_offset(topic, partition, Offset::Beginning).map_err(text)?;
        self.committed.assign(&from).map_err(text)?;
        let mut entries = Vec::new();
        // An earlier read of this client is given up by the library in its own time, and until then it shows where that one
        // ended. A position counts once there was none, or a record of this read.
        let mut begun = false;
        loop {
            // The position passes records of the broker's own, which are never shown.
            let position = self.committed.position().map_err(text)?;
            let at = position.find_partition(topic, partition).map(|p| p.offset());
            begun |= !matches!(at, Some(Offset::Offset(_)));
            if high == 0 || begun && matches!(at, Some(Offset::Offset(at)) if at >= high) {
                self.committed.unassign().map_err(text)?;
                return Ok(entries);
            }
            if Instant::now() > deadline {
                return Err(format!("{topic}-{partition} was not read to {high} in time (at {at:?})"));
            }
            match self.committed.poll(READER_POLL) {
                None => {}
                Some(Ok(m)) => {
                    begun = true;
                    entries.push((m.key().unwrap_or_default().to_vec(), m.payload().map(<[u8]>::to_vec)));
                }
                Some(Err(e)) => tracing::debug!(error = %e, topic, partition, "a read is tried again"),
            }
        }
    }

    /// The high watermark. A topic that has just been made has no leader for a moment, nor has one whose broker has gone.
    fn end(&self, topic: &str, partition: i32, deadline: Instant) -> Result<i64, String> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.all.fetch_watermarks(topic, partition, left) {
                Ok((_, high)) => return Ok(high),
                Err(e) if left.is_zero() => return Err(format!("{topic}-{partition}: {e}")),
                Err(e) => tracing::debug!(error = %e, topic, partition, "its end is asked for again"),
            }
            // Polled, so that the library takes in what the brokers say.
            let _ = self.all.poll(FETCH_WAIT);
        }
    }
}
