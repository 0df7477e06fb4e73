//! One shard's transactional producer, from a claim to the first doubt.

use super::{KafkaOptions, headers};
use crate::log::{CommitError, DataRecord, ProgressRecord, Shard, partition_of};
use rdkafka::{
    ClientContext, Message,
    error::{KafkaError, RDKafkaErrorCode},
    message::DeliveryResult,
    producer::{BaseProducer, BaseRecord, Producer, ProducerContext, PurgeConfig},
    util::Timeout,
};
use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

/// What the broker gives a transaction; then it aborts it.
const TRANSACTION: Duration = Duration::from_secs(10);
/// Within this everything of a transaction has been taken by the broker, or it is given up.
const DRAIN: Duration = Duration::from_secs(7);

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
        Self::named(options, &format!("{}-link-{shard}", options.prefix))
    }

    /// The same for any transactional id.
    pub(super) fn named(options: &KafkaOptions, id: &str) -> Result<Self, KafkaError> {
        let mut config = options.client();
        config
            .set("transactional.id", id)
            .set("transaction.timeout.ms", TRANSACTION.as_millis().to_string())
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("compression.type", "none")
            .set("linger.ms", "0")
            .set("message.max.bytes", super::MESSAGE_BYTES.to_string())
            .set("queue.buffering.max.kbytes", "65536");
        let producer: BaseProducer<Deliveries> = config.create_with_context(Deliveries::default())?;
        producer.init_transactions(Timeout::After(TRANSACTION))?;
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

    fn transaction(&self, fill: impl FnOnce(&Self) -> Result<(), CommitError>) -> Result<(), CommitError> {
        self.0.begin_transaction().map_err(|e| judged(&e))?;
        fill(self)?;
        // The library's own flush sleeps in steps of 100 ms.
        let deadline = Instant::now() + DRAIN;
        while self.0.in_flight_count() > 0 {
            self.0.poll(Duration::from_millis(1));
            if Instant::now() > deadline {
                return Err(CommitError::Unknown(format!(
                    "the broker did not take a group within {DRAIN:?}"
                )));
            }
        }
        let failed = self.0.context().0.lock().map_or(None, |mut first| first.take());
        if let Some(failed) = failed {
            return Err(self.fatal().unwrap_or(CommitError::Unknown(failed)));
        }
        self.0.commit_transaction(Timeout::After(TRANSACTION)).map_err(|e| judged(&e))
    }

    fn send<K: rdkafka::message::ToBytes + ?Sized, P: rdkafka::message::ToBytes + ?Sized>(
        &self,
        record: BaseRecord<'_, K, P>,
    ) -> Result<(), CommitError> {
        let deadline = Instant::now() + DRAIN;
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
    use RDKafkaErrorCode::{Fenced, InvalidProducerEpoch, ProducerFenced};
    let fenced = matches!(error.rdkafka_error_code(), Some(Fenced | ProducerFenced | InvalidProducerEpoch));
    if fenced { CommitError::Fenced } else { CommitError::Unknown(error.to_string()) }
}

pub(super) fn number(n: u32) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}
