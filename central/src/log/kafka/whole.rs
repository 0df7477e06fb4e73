//! Reads one partition of a topic up to where it ended when asked: a small one from its beginning, or what is at the end.
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
    message::BorrowedMessage,
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
        let mut entries = Vec::new();
        self.with(within, |clients, deadline| {
            let place = Place { topic, partition, deadline };
            let high = end(&clients.all, place)?;
            walk(&clients.committed, place, Offset::Beginning, high, |m| entries.push(entry(m)))
        })?;
        Ok(entries)
    }

    /// Committed records of a partition, oldest first, in front of any transaction that is open. Blocks.
    pub(super) fn read_stable(
        &self,
        topic: &str,
        partition: i32,
        within: Duration,
    ) -> Result<Vec<Entry>, String> {
        let mut entries = Vec::new();
        self.with(within, |clients, deadline| {
            let place = Place { topic, partition, deadline };
            let stable = end(&clients.committed, place)?;
            walk(&clients.committed, place, Offset::Beginning, stable, |m| entries.push(entry(m)))
        })?;
        Ok(entries)
    }

    /// Where a partition ends. Blocks.
    pub(super) fn ends(&self, topic: &str, partition: i32, within: Duration) -> Result<Ends, String> {
        self.with(within, |clients, deadline| {
            let place = Place { topic, partition, deadline };
            let high = end(&clients.all, place)?;
            Ok(Ends { stable: end(&clients.committed, place)?, high })
        })
    }

    /// The records that readers of committed ones do not see yet, and whatever else is among them. Blocks.
    pub(super) fn open(
        &self,
        (topic, partition): (&str, i32),
        ends: Ends,
        within: Duration,
        each: impl FnMut(&BorrowedMessage<'_>),
    ) -> Result<(), String> {
        self.with(within, |clients, deadline| {
            let place = Place { topic, partition, deadline };
            walk(&clients.all, place, Offset::Offset(ends.stable), ends.high, each)
        })
    }

    /// The committed records since a time, in milliseconds since the epoch by the broker's clock. Blocks.
    pub(super) fn since(
        &self,
        (topic, partition): (&str, i32),
        at_ms: i64,
        within: Duration,
        each: impl FnMut(&BorrowedMessage<'_>),
    ) -> Result<(), String> {
        let text = |e: KafkaError| e.to_string();
        self.with(within, |clients, deadline| {
            let place = Place { topic, partition, deadline };
            let stable = end(&clients.committed, place)?;
            let mut times = TopicPartitionList::new();
            times.add_partition_offset(topic, partition, Offset::Offset(at_ms)).map_err(text)?;
            let left = deadline.saturating_duration_since(Instant::now());
            let found = clients.committed.offsets_for_times(times, left).map_err(text)?;
            match found.find_partition(topic, partition).map(|p| p.offset()) {
                Some(from @ Offset::Offset(n)) if n < stable => {
                    walk(&clients.committed, place, from, stable, each)
                }
                // Nothing is so new.
                _ => Ok(()),
            }
        })
    }

    fn with<T>(
        &self,
        within: Duration,
        work: impl FnOnce(&Clients, Instant) -> Result<T, String>,
    ) -> Result<T, String> {
        let clients = self.clients()?;
        let done = work(&clients, Instant::now() + within)?;
        let mut idle = lock(&self.idle);
        if idle.len() < WHOLE_CLIENTS_MAX {
            idle.push(clients);
        }
        Ok(done)
    }
}

/// A record, copied.
pub(super) fn entry(m: &BorrowedMessage<'_>) -> Entry {
    (m.key().unwrap_or_default().to_vec(), m.payload().map(<[u8]>::to_vec))
}

/// Where a partition ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    /// The last stable offset: in front of it no transaction is open.
    pub(super) stable: i64,
    /// The high watermark.
    pub(super) high: i64,
}

impl Ends {
    /// Whether a transaction is open.
    pub(super) fn is_open(self) -> bool {
        self.stable < self.high
    }
}

/// What is read, and until when.
#[derive(Clone, Copy)]
struct Place<'a> {
    topic: &'a str,
    partition: i32,
    deadline: Instant,
}

/// Shows each record from an offset on and in front of another.
fn walk(
    consumer: &BaseConsumer,
    Place { topic, partition, deadline }: Place<'_>,
    from: Offset,
    to: i64,
    mut each: impl FnMut(&BorrowedMessage<'_>),
) -> Result<(), String> {
    let text = |e: KafkaError| e.to_string();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, from).map_err(text)?;
    consumer.assign(&list).map_err(text)?;
    // An earlier read of this client is given up by the library in its own time, and until then it shows where that one
    // ended. A position counts once there was none, or a record of this read.
    let mut begun = false;
    loop {
        // The position passes records of the broker's own, which are never shown.
        let position = consumer.position().map_err(text)?;
        let at = position.find_partition(topic, partition).map(|p| p.offset());
        begun |= !matches!(at, Some(Offset::Offset(_)));
        if to == 0 || begun && matches!(at, Some(Offset::Offset(at)) if at >= to) {
            return consumer.unassign().map_err(text);
        }
        if Instant::now() > deadline {
            return Err(format!("{topic}-{partition} was not read to {to} in time (at {at:?})"));
        }
        match consumer.poll(READER_POLL) {
            None => {}
            Some(Ok(m)) => {
                begun = true;
                if m.offset() < to {
                    each(&m);
                }
            }
            Some(Err(e)) => tracing::debug!(error = %e, topic, partition, "a read is tried again"),
        }
    }
}

/// Where a partition ends for this client. A topic that has just been made has no leader for a moment, nor has one whose
/// broker has gone.
fn end(consumer: &BaseConsumer, Place { topic, partition, deadline }: Place<'_>) -> Result<i64, String> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match consumer.fetch_watermarks(topic, partition, left) {
            Ok((_, high)) => return Ok(high),
            Err(e) if left.is_zero() => return Err(format!("{topic}-{partition}: {e}")),
            Err(e) => tracing::debug!(error = %e, topic, partition, "its end is asked for again"),
        }
        // Polled, so that the library takes in what the brokers say.
        let _ = consumer.poll(FETCH_WAIT);
    }
}
