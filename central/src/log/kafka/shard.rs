//! One shard's transactional producer, from a claim to the first doubt.
//!
//! # Known limit
//!
//! The library speaks the transaction protocol before the second part of KIP-890: the producer's epoch stays the same from
//! one transaction to the next. The end of a transaction (commit or abort) is a request like any other; where the network
//! holds one back that was given up and sent again, it may arrive when the next transaction of the same producer is
//! already open, and end that one instead: too early, so that a part of a group is committed without the rest, or aborted
//! although a commit was meant. Records that arrive late can likewise be taken into the next transaction. With part two the
//! brokers give each transaction an epoch of its own and refuse such stragglers.
//!
//! What narrows it here:
//! - after a time-out, a lost connection or any answer but success the producer is dropped, and the next claim begins with
//!   `init_transactions`, which raises the epoch: stragglers of before are refused then. So the window is a request that is
//!   late *and* whose repetition was answered in time, within one connection's life;
//! - everything of a group is acknowledged by the brokers before its commit is sent, so that no record is late;
//! - nothing is acknowledged before readers of committed records see it: what is not seen in time counts as in doubt, and the
//!   next claim ends what the brokers have left open ([`super::hanging`]);
//! - a group's progress is in it, and the blocks of a stream are a chain: rows without their progress come again and stand
//!   twice in the log, progress without its rows is a gap. The audit names either, with gateway, stream and seqs.

use super::{
    KafkaOptions,
    hanging::End,
    headers,
    limits::{
        CONNECT_TIMEOUT, DELIVERY_POLL, DRAIN_TIMEOUT, MESSAGE_BYTES_MAX, PRODUCER_KIB_MAX, SEEN_POLL,
        SEEN_TIMEOUT, TRANSACTION_TIMEOUT, ms,
    },
    lock,
    whole::Entry,
};
use crate::log::{CommitError, DataRecord, Partition, ProgressRecord, Shard, StreamEvents, partition_of};
use rdkafka::{
    ClientContext, Message, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata},
    error::{KafkaError, RDKafkaErrorCode},
    message::DeliveryResult,
    producer::{BaseProducer, BaseRecord, Producer, ProducerContext, PurgeConfig},
    util::Timeout,
};
use std::{
    collections::BTreeMap,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

/// The highest offset of each partition that a transaction wrote.
type Taken = BTreeMap<(String, i32), i64>;

/// What became of the records of the transaction under way.
#[derive(Default)]
struct Deliveries(Mutex<Delivered>);

#[derive(Default)]
struct Delivered {
    /// Why the first one that was not taken was not.
    failed: Option<String>,
    highest: Taken,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let mut delivered = lock(&self.0);
        match result {
            Ok(message) => {
                let place = (message.topic().to_owned(), message.partition());
                let highest = delivered.highest.entry(place).or_default();
                *highest = message.offset().max(*highest);
            }
            Err((error, message)) => {
                delivered.failed.get_or_insert_with(|| format!("{} to {}", error, message.topic()));
            }
        }
    }
}

pub(super) struct Owner(BaseProducer<Deliveries>);

impl Owner {
    /// Fences every producer of the shard before it, and ends what that left open. Blocks.
    pub(super) fn begin(options: &KafkaOptions, shard: Shard) -> Result<Self, KafkaError> {
        // A record is a compressed block already.
        Self::named(options, &format!("{}-link-{shard}", options.prefix), &[("compression.type", "none")])
    }

    /// The same for any transactional id, with further options.
    pub(super) fn named(
        options: &KafkaOptions,
        id: &str,
        further: &[(&str, &str)],
    ) -> Result<Self, KafkaError> {
        let mut config = options.client();
        config
            .set("transactional.id", id)
            .set("transaction.timeout.ms", ms(TRANSACTION_TIMEOUT))
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "0")
            .set("message.max.bytes", MESSAGE_BYTES_MAX.to_string())
            .set("queue.buffering.max.kbytes", PRODUCER_KIB_MAX.to_string());
        for (key, value) in further {
            config.set(*key, *value);
        }
        let producer: BaseProducer<Deliveries> = config.create_with_context(Deliveries::default())?;
        // The library looks for a connected broker when it begins, and else only each half second. Asked for an offset, a
        // client is connected to a broker of the cluster when it has the answer; where none comes, the next line says why.
        let _ = producer.client().fetch_watermarks(&options.topic("control"), 0, CONNECT_TIMEOUT);
        producer.init_transactions(Timeout::After(TRANSACTION_TIMEOUT))?;
        Ok(Self(producer))
    }

    /// One transaction, which `asker`, a client that sees committed records only, has seen when this returns. After any error
    /// this producer is of no use: whether something was stored, a new claim tells.
    pub(super) fn commit(
        &self,
        options: &KafkaOptions,
        shard: Shard,
        records: &[DataRecord],
        progress: &[ProgressRecord],
        asker: &BaseConsumer,
    ) -> Result<(), CommitError> {
        let data = options.topic("data");
        let taken = self.transaction(|me| {
            for r in records {
                let partition = partition_of(&r.headers.gateway, options.partitions);
                let record: BaseRecord<'_, str, [u8]> = BaseRecord::to(&data)
                    .partition(number(partition.0))
                    .key(r.headers.gateway.as_str())
                    .payload(&r.bytes[..])
                    .headers(headers::encode(&r.headers));
                me.send(record)?;
            }
            let topic = options.topic("progress");
            for p in progress {
                let (key, value) = (p.key().encode(), p.encode());
                me.send(BaseRecord::to(&topic).partition(number(shard.0)).key(&key).payload(&value))?;
            }
            Ok(())
        })?;
        seen(asker, &taken)
    }

    /// One entry of the control topic, in a transaction of this owner, so that one who was fenced cannot write it; `asker`
    /// has seen it when this returns.
    pub(super) fn publish(
        &self,
        options: &KafkaOptions,
        key: &str,
        value: &str,
        asker: &BaseConsumer,
    ) -> Result<(), CommitError> {
        let taken = self.transaction(|me| {
            me.send(BaseRecord::to(&options.topic("control")).partition(0).key(key).payload(value))
        })?;
        seen(asker, &taken)
    }

    /// Ends what an earlier transaction of this shard has left open in these partitions, with one over the same partitions:
    /// `progress` stands there already, and in the data partitions readers pass over what is written.
    pub(super) fn close(
        &self,
        options: &KafkaOptions,
        shard: Shard,
        progress: Option<&Entry>,
        data: &[Partition],
        end: End,
    ) -> Result<(), CommitError> {
        self.filled(|me| {
            let topic = options.topic("data");
            for partition in data {
                let record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&topic);
                me.send(record.partition(number(partition.0)).headers(headers::filler()))?;
            }
            let topic = options.topic("progress");
            if let Some((key, value)) = progress {
                let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&topic);
                record = record.partition(number(shard.0)).key(&key[..]);
                if let Some(value) = value {
                    record = record.payload(&value[..]);
                }
                me.send(record)?;
            }
            Ok(())
        })?;
        let within = Timeout::After(TRANSACTION_TIMEOUT);
        let ended = match end {
            End::Commit => self.0.commit_transaction(within),
            End::Abort => self.0.abort_transaction(within),
        };
        ended.map_err(|e| judged(&e))
    }

    /// Events, and where they leave a group of which we are this member.
    pub(super) fn publish_events(
        &self,
        options: &KafkaOptions,
        events: &[StreamEvents],
        offsets: &TopicPartitionList,
        member: &ConsumerGroupMetadata,
    ) -> Result<(), CommitError> {
        let published = self.transaction(|me| {
            for of_stream in events {
                let topic = options.events_topic(&of_stream.stream);
                for (key, value) in &of_stream.events {
                    me.send(BaseRecord::to(&topic).key(key).payload(value))?;
                }
            }
            let told = me.0.send_offsets_to_transaction(offsets, member, TRANSACTION_TIMEOUT);
            told.map_err(|e| judged(&e))
        });
        published.map(drop)
    }

    fn transaction(&self, fill: impl FnOnce(&Self) -> Result<(), CommitError>) -> Result<Taken, CommitError> {
        let taken = self.filled(fill)?;
        let committed = self.0.commit_transaction(Timeout::After(TRANSACTION_TIMEOUT));
        committed.map(|()| taken).map_err(|e| judged(&e))
    }

    /// A transaction of which the brokers have everything, but for its end.
    fn filled(&self, fill: impl FnOnce(&Self) -> Result<(), CommitError>) -> Result<Taken, CommitError> {
        self.0.begin_transaction().map_err(|e| judged(&e))?;
        fill(self)?;
        // The library's own flush sleeps in steps of 100 ms.
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        while self.in_flight() > 0 {
            if Instant::now() > deadline {
                return Err(CommitError::Unknown(format!(
                    "the broker did not take a group within {DRAIN_TIMEOUT:?}"
                )));
            }
            thread::sleep(DELIVERY_POLL);
        }
        let delivered = std::mem::take(&mut *lock(&self.0.context().0));
        if let Some(failed) = delivered.failed {
            return Err(self.fatal().unwrap_or(CommitError::Unknown(failed)));
        }
        Ok(delivered.highest)
    }

    fn send<K: rdkafka::message::ToBytes + ?Sized, P: rdkafka::message::ToBytes + ?Sized>(
        &self,
        record: BaseRecord<'_, K, P>,
    ) -> Result<(), CommitError> {
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        let mut record = record;
        loop {
            match self.0.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back))
                    if Instant::now() < deadline =>
                {
                    self.in_flight();
                    thread::sleep(DELIVERY_POLL);
                    record = back;
                }
                Err((e, _)) => return Err(self.fatal().unwrap_or_else(|| judged(&e))),
            }
        }
    }

    /// Takes in what was delivered, and tells how many records were not yet. Without a time-out: the library's binding
    /// spins through the last millisecond of one.
    fn in_flight(&self) -> i32 {
        self.0.poll(Duration::ZERO);
        self.0.in_flight_count()
    }

    fn fatal(&self) -> Option<CommitError> {
        let (code, _) = self.0.client().fatal_error()?;
        matches!(code, RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced)
            .then_some(CommitError::Fenced)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // Else the library would go on to send what was given up.
        self.0.purge(PurgeConfig::default().queue().inflight());
    }
}

/// Waits until readers of committed records may see all of it: the markers behind a commit are written after its answer.
fn seen(asker: &BaseConsumer, taken: &Taken) -> Result<(), CommitError> {
    let deadline = Instant::now() + SEEN_TIMEOUT;
    for ((topic, partition), offset) in taken {
        loop {
            let end = asker.fetch_watermarks(topic, *partition, SEEN_TIMEOUT);
            if end.as_ref().is_ok_and(|(_, stable)| stable > offset) {
                break;
            }
            if Instant::now() > deadline {
                return Err(CommitError::Unknown(format!(
                    "offset {offset} of {topic}-{partition} was called committed, but readers do not see it within \
                     {SEEN_TIMEOUT:?} ({end:?})"
                )));
            }
            thread::sleep(SEEN_POLL);
        }
    }
    Ok(())
}

fn judged(error: &KafkaError) -> CommitError {
    use RDKafkaErrorCode::{
        Fenced, IllegalGeneration, InvalidProducerEpoch, ProducerFenced, UnknownMemberId,
    };
    let fenced = matches!(
        error.rdkafka_error_code(),
        Some(Fenced | ProducerFenced | InvalidProducerEpoch | IllegalGeneration | UnknownMemberId)
    );
    if fenced { CommitError::Fenced } else { CommitError::Unknown(error.to_string()) }
}

pub(super) fn number(n: u32) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}
