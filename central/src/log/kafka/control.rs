//! What all processes agree on, in the compacted topic `control`: the log's identity and shape, and who owns a shard.

use super::{
    KafkaOptions,
    limits::{FETCH_WAIT, IDENTITY_TRIES, POLL, WHOLE_TIMEOUT, ms},
    polling::{Polling, Watch},
    shard::{Owner, number},
    whole::Whole,
};
use crate::log::Shard;
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};
use record::clock::Random;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

const LOG_ID: &str = "log-id";

/// The log's identity: read, or made when there is none. Blocks.
pub(super) fn identity(
    options: &KafkaOptions,
    whole: &Whole,
    asker: &BaseConsumer,
    random: &dyn Random,
) -> Result<String, String> {
    let topic = options.topic("control");
    let stored = || -> Result<Option<String>, String> {
        // Once it can be seen it stays; the word of an owner that is behind it may wait for that owner's next claim.
        let entries = whole.read_stable(&topic, 0, WHOLE_TIMEOUT)?;
        let newest = entries.into_iter().rfind(|(key, _)| key == LOG_ID.as_bytes());
        Ok(newest.and_then(|(_, value)| String::from_utf8(value?).ok()))
    };
    let shape = format!("{} {}", options.partitions, options.shards);
    let make = || -> Result<String, String> {
        // Two processes that begin at the same time fence each other: one of them writes, and all read it.
        let id = format!("{:016x}{:016x}", random.next_u64(), random.next_u64());
        let owner =
            Owner::named(options, &format!("{}-control", options.prefix), &[]).map_err(|e| e.to_string())?;
        if let Some(text) = stored()? {
            return Ok(text);
        }
        let text = format!("{id} {shape}");
        owner.publish(options, LOG_ID, &text, asker).map(|()| text).map_err(|e| e.to_string())
    };
    let mut tries = 0;
    let text = loop {
        if let Some(text) = stored()? {
            break text;
        }
        match make() {
            Ok(text) => break text,
            Err(error) if tries == IDENTITY_TRIES => {
                return Err(format!("the log's identity cannot be written: {error}"));
            }
            Err(error) => tracing::debug!(error, "the log's identity is asked for again"),
        }
        tries += 1;
        std::thread::sleep(Duration::from_millis(50 + random.next_u64() % 200));
    };
    match text.split_once(' ') {
        Some((id, found)) if found == shape => Ok(id.to_owned()),
        Some((_, found)) => Err(format!(
            "the log {} was made with {found} partitions (data, progress), the configuration says {shape}; the numbers of an existing log stay",
            options.prefix
        )),
        None => Err(format!("the topic {topic} holds {text:?} as the log's identity, which is none")),
    }
}

/// What stands there when its owner has let go of a shard.
pub(super) const NOBODY: &str = "";

/// The key under which the owner of a shard stands.
pub(super) fn owner_key(shard: Shard) -> String {
    format!("owner-{shard}")
}

type Known = Arc<Mutex<BTreeMap<String, String>>>;

/// Follows the topic.
pub(super) struct Control {
    known: Known,
    _thread: Polling,
}

impl Control {
    pub(super) fn follow(options: &KafkaOptions, watch: &Watch) -> Result<Self, String> {
        let text = |e: rdkafka::error::KafkaError| e.to_string();
        let mut config = options.client();
        config
            .set("group.id", options.group("read-control"))
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "earliest")
            .set("fetch.wait.max.ms", ms(FETCH_WAIT));
        let consumer: BaseConsumer = config.create().map_err(text)?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&options.topic("control"), number(0), Offset::Beginning).map_err(text)?;
        consumer.assign(&list).map_err(text)?;
        let known = Known::default();
        let told = known.clone();
        let thread = Polling::start("kafka-control", watch, move |stop| {
            while !stop.is_cancelled() {
                let Some(Ok(m)) = consumer.poll(POLL) else { continue };
                let text = |b: Option<&[u8]>| b.and_then(|b| String::from_utf8(b.to_vec()).ok());
                if let (Some(key), Some(value)) = (text(m.key()), text(m.payload())) {
                    told.lock().unwrap_or_else(PoisonError::into_inner).insert(key, value);
                }
            }
        })?;
        Ok(Self { known, _thread: thread })
    }

    /// None also for a shard that its owner has let go of.
    pub(super) fn owner(&self, shard: Shard) -> Option<String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&owner_key(shard)).filter(|url| *url != NOBODY).cloned()
    }
}
