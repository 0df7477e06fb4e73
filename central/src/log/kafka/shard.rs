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
//! - a group's progress is in it, and the blocks of a stream are a chain: rows without their progress come again and stand
//!   twice in the log, progress without its rows is a gap. The audit names either, with gateway, stream and seqs.

use super::{
    KafkaOptions, headers,
    limits::{DRAIN_TIMEOUT, MESSAGE_BYTES_MAX, PRODUCER_KIB_MAX, TRANSACTION_TIMEOUT, ms},
};
use crate::log::{CommitError, DataRecord, ProgressRecord, Shard, StreamEvents, partition_of};
use rdkafka::{
    ClientContext, Message, TopicPartitionList,
    consumer::ConsumerGroupMetadata,
    error::{KafkaError, RDKafkaErrorCode},
    message::DeliveryResult,
    producer::{BaseProducer, BaseRecord, Producer, ProducerContext, PurgeConfig},
    util::Timeout,
};
use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

/// Counts what was not taken.
#[derive(Default)]
struct Deliveries(Mutex<Option<String>>);

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, message)) = result
            && let Ok(mut first) = self.0.lock()
        {
            first.get_or_insert_with(|| format!("{} to {}", error, message.topic()));
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
        producer.init_transactions(Timeout::After(TRANSACTION_TIMEOUT))?;
        Ok(Self(producer))
    }

    /// One transaction. After any error this producer is of no use: whether something was stored, a new claim tells.
    pub(super) fn commit(
        &self,
        options: &KafkaOptions,
        shard: Shard,
        records: &[DataRecord],
        progress: &[ProgressRecord],
    ) -> Result<(), CommitError> {
        self.transaction(|me| {
            let data = options.topic("data");
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
        })
    }

    /// One entry of the control topic, in a transaction of this owner, so that one who was fenced cannot write it.
    pub(super) fn publish(&self, options: &KafkaOptions, key: &str, value: &str) -> Result<(), CommitError> {
        self.transaction(|me| {
            me.send(BaseRecord::to(&options.topic("control")).partition(0).key(key).payload(value))
        })
    }

    /// Events, and where they leave a group of which we are this member.
    pub(super) fn publish_events(
        &self,
        options: &KafkaOptions,
        events: &[StreamEvents],
        offsets: &TopicPartitionList,
        member: &ConsumerGroupMetadata,
    ) -> Result<(), CommitError> {
        self.transaction(|me| {
            for of_stream in events {
                let topic = options.events_topic(&of_stream.stream);
                for (key, value) in &of_stream.events {
                    me.send(BaseRecord::to(&topic).key(key).payload(value))?;
                }
            }
            let told = me.0.send_offsets_to_transaction(offsets, member, TRANSACTION_TIMEOUT);
            told.map_err(|e| judged(&e))
        })
    }

    fn transaction(&self, fill: impl FnOnce(&Self) -> Result<(), CommitError>) -> Result<(), CommitError> {
        self.0.begin_transaction().map_err(|e| judged(&e))?;
        fill(self)?;
        // The library's own flush sleeps in steps of 100 ms.
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        while self.0.in_flight_count() > 0 {
            self.0.poll(Duration::from_millis(1));
            if Instant::now() > deadline {
                return Err(CommitError::Unknown(format!(
                    "the broker did not take a group within {DRAIN_TIMEOUT:?}"
                )));
            }
        }
        let failed = self.0.context().0.lock().map_or(None, |mut first| first.take());
        if let Some(failed) = failed {
            return Err(self.fatal().unwrap_or(CommitError::Unknown(failed)));
        }
        self.0.commit_transaction(Timeout::After(TRANSACTION_TIMEOUT)).map_err(|e| judged(&e))
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
                    self.0.poll(Duration::from_millis(1));
                    record = back;
                }
                Err((e, _)) => return Err(self.fatal().unwrap_or_else(|| judged(&e))),
            }
        }
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
