//! What all processes agree on, in the compacted topic `control`: the log's identity and shape, and who owns a shard.

use super::{
    KafkaOptions,
    shard::{Owner, number},
    whole,
};
use crate::log::Shard;
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};
use record::clock::Random;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::Duration,
};

const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Processes that begin together fence each other; one of them gets through.
const IDENTITY_TRIES: u32 = 40;
const LOG_ID: &str = "log-id";

/// The log's identity: read, or made when there is none. Blocks.
pub(super) fn identity(options: &KafkaOptions, random: &dyn Random) -> Result<String, String> {
    let topic = options.topic("control");
    let stored = || -> Result<Option<String>, String> {
        let entries = whole::read(options, &topic, 0, READ_TIMEOUT)?;
        let newest = entries.into_iter().rfind(|(key, _)| key == LOG_ID.as_bytes());
        Ok(newest.and_then(|(_, value)| String::from_utf8(value?).ok()))
    };
    let shape = format!("{} {}", options.partitions, options.shards);
    let make = || -> Result<String, String> {
        // Two processes that begin at the same time fence each other: one of them writes, and all read it.
        let id = format!("{:016x}{:016x}", random.next_u64(), random.next_u64());
        let owner =
            Owner::named(options, &format!("{}-control", options.prefix)).map_err(|e| e.to_string())?;
        if let Some(text) = stored()? {
            return Ok(text);
        }
        let text = format!("{id} {shape}");
        owner.publish(options, LOG_ID, &text).map(|()| text).map_err(|e| e.to_string())
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

/// The key under which the owner of a shard stands.
pub(super) fn owner_key(shard: Shard) -> String {
    format!("owner-{shard}")
}

type Known = Arc<Mutex<BTreeMap<String, String>>>;

/// Follows the topic.
pub(super) struct Control {
    known: Known,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    pub(super) fn follow(options: &KafkaOptions) -> Result<Self, rdkafka::error::KafkaError> {
        let mut config = options.client();
        config
            .set("group.id", options.group("read-control"))
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "earliest")
            .set("fetch.wait.max.ms", "100");
        let consumer: BaseConsumer = config.create()?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&options.topic("control"), number(0), Offset::Beginning)?;
        consumer.assign(&list)?;
        let (known, stop) = (Known::default(), Arc::new(AtomicBool::new(false)));
        let thread = {
            let (known, stop) = (known.clone(), stop.clone());
            std::thread::spawn(move || {
                while !stop.load(SeqCst) {
                    let Some(Ok(m)) = consumer.poll(Duration::from_millis(50)) else { continue };
                    let text = |b: Option<&[u8]>| b.and_then(|b| String::from_utf8(b.to_vec()).ok());
                    if let (Some(key), Some(value)) = (text(m.key()), text(m.payload())) {
                        known.lock().unwrap_or_else(PoisonError::into_inner).insert(key, value);
                    }
                }
            })
        };
        Ok(Self { known, stop, thread: Some(thread) })
    }

    pub(super) fn owner(&self, shard: Shard) -> Option<String> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&owner_key(shard)).cloned()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that follows the control topic had ended");
        }
    }
}
