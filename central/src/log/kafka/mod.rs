//! The log in Apache Kafka, shared by any number of central's processes.
//!
//! ```text
//! PREFIX.data          records, one block each, keyed by gateway; partition by the gateway's hash
//! PREFIX.progress      compacted; key = kind, gateway, stream; a shard is a partition
//! PREFIX.control       compacted; the log's identity, and the URL of each shard's owner
//! PREFIX.quarantine    records of the data topic that are none, with reason and place
//! PREFIX.events.STREAM single events as JSON, when the role fanout is asked for
//! ```
//!
//! A group of a shard is one transaction under the id `PREFIX-link-SHARD`: its records and its progress are there
//! together or not at all, and whoever claims the shard later has fenced everybody before. What a process owns is told by
//! consumer groups that never fetch; readers are consumers without a group.
//!
//! Invariants: see [`super::Log`]; besides, a producer is never used again after any doubt.

mod age;
mod control;
mod hanging;
pub mod headers;
mod limits;
mod membership;
mod offsets;
mod outlet;
mod polling;
mod quarantine;
mod reader;
mod shard;
mod topics;
mod whole;

use super::{
    ClaimError, CommitError, Committed, DataRecord, Lease, Log, Offset, Owned, Partition, PartitionStatus,
    ProgressRecord, ReadError, Shard, StoredRecord,
};
use crate::{FANOUT_GROUP, SINK_GROUP, limits::OFFSET_METADATA_BYTES_MAX};
use async_trait::async_trait;
use control::Control;
use daemon::metrics::{CounterVec, Registry};
use hanging::End;
use headers::Poison;
use limits::{ASK_TIMEOUT, RECONNECT_MAX, WHOLE_TIMEOUT, ms};
use membership::Membership;
use outlet::Outlets;
use polling::Watch;
use quarantine::{Found, Quarantine};
use rdkafka::{
    ClientConfig, Message,
    consumer::{BaseConsumer, Consumer},
};
use reader::Reader;
use record::{StreamName, clock::Random};
use shard::{Owner, number};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{runtime::Handle, sync::watch};
use whole::Whole;

/// How the log is reached, and what it is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaOptions {
    /// `host:port`, one or several.
    pub brokers: Vec<String>,
    /// What the names of topics, groups and transactions begin with.
    pub prefix: String,
    /// Partitions of the data topic, a multiple of `shards`: each is written by one shard.
    pub partitions: u32,
    /// Partitions of the progress topic.
    pub shards: u32,
    /// Copies of each partition of a topic that is made.
    pub replication: i32,
    /// Copies that must have a record before it counts.
    pub min_isr: u32,
    /// How long records are kept, at least.
    pub retention: Duration,
    /// Further options of the client.
    pub client: ClientOptions,
    /// Where gateways reach this process; none for one without the link role.
    pub advertise: Option<String>,
    /// Whether this process has the sink role.
    pub sink: bool,
    /// Whether this process has the fanout role.
    pub fanout: bool,
}

/// Options of librdkafka by their names. What they print has no values: one may be a password.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ClientOptions(pub BTreeMap<String, String>);

impl std::fmt::Debug for ClientOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Whether librdkafka knows an option and takes the value.
pub fn check_client(key: &str, value: &str) -> Result<(), String> {
    match ClientConfig::new().set(key, value).create_native_config() {
        Ok(_) => Ok(()),
        Err(rdkafka::error::KafkaError::ClientConfig(_, reason, _, _)) => Err(reason),
        Err(error) => Err(error.to_string()),
    }
}

impl KafkaOptions {
    fn topic(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    fn events_topic(&self, stream: &StreamName) -> String {
        self.topic(&format!("events.{stream}"))
    }

    fn group(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.brokers.join(","));
        config.set("reconnect.backoff.max.ms", ms(RECONNECT_MAX));
        for (key, value) in &self.client.0 {
            config.set(key, value);
        }
        config
    }
}

/// The producers of the shards that were claimed here.
type Claims = Arc<Mutex<BTreeMap<Shard, Arc<Mutex<Option<Owner>>>>>>;

/// The log; see the module.
pub struct Kafka {
    id: String,
    options: Arc<KafkaOptions>,
    control: Control,
    link: Option<Arc<Membership<Shard>>>,
    sink: Option<Arc<Membership<Partition>>>,
    shards_owned: Owned<Shard>,
    sink_owned: Owned<Partition>,
    claims: Claims,
    readers: Mutex<BTreeMap<String, Arc<Reader>>>,
    /// Clients that ask for a group's offsets and for extents; by group.
    askers: Mutex<BTreeMap<String, Arc<BaseConsumer>>>,
    quarantine: Arc<Quarantine>,
    outlets: Option<Arc<Outlets>>,
    whole: Arc<Whole>,
    /// Transactions that were left open by the brokers and ended here.
    ended: Arc<OnceLock<CounterVec>>,
    watch: Watch,
    closed: AtomicBool,
}

impl std::fmt::Debug for Kafka {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kafka").field("id", &self.id).field("prefix", &self.options.prefix).finish()
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is replaced whole; a panic elsewhere leaves nothing half done.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs what waits for the network on a thread that may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())
}

impl Kafka {
    /// Makes or checks the topics, reads the log's identity, and joins the groups of this process' roles.
    pub async fn open(options: KafkaOptions, random: Arc<dyn Random>) -> Result<Self, String> {
        topics::ensure(&options).await?;
        let options = Arc::new(options);
        let whole = Arc::new(Whole::new(options.clone()));
        let (at_start, reading) = (options.clone(), whole.clone());
        let started = blocking(move || {
            let id = control::identity(&at_start, &reading, &asker(&at_start, "reader")?, &*random)?;
            Ok::<_, String>((id, Quarantine::open(&at_start, reading)?))
        });
        let (id, quarantine) = started.await??;
        let watch = Watch::new();
        let control = Control::follow(&options, &watch)?;
        let nothing = || watch::channel(BTreeMap::new()).1;
        let (mut link, mut shards_owned) = (None, nothing());
        if options.advertise.is_some() {
            let member = Membership::join(&options, "link", &options.topic("progress"), &watch)?;
            shards_owned = member.owned();
            link = Some(Arc::new(member));
        }
        let (mut sink, mut sink_owned) = (None, watch::channel(BTreeMap::new()).1);
        if options.sink {
            let member = Membership::join(&options, SINK_GROUP, &options.topic("data"), &watch)?;
            sink_owned = member.owned();
            sink = Some(Arc::new(member));
        }
        let mut outlets = None;
        if options.fanout {
            let member = Membership::join(&options, FANOUT_GROUP, &options.topic("data"), &watch)?;
            outlets = Some(Arc::new(Outlets::of(Arc::new(member))));
        }
        Ok(Self {
            id,
            control,
            link,
            sink,
            shards_owned,
            sink_owned,
            claims: Claims::default(),
            readers: Mutex::default(),
            askers: Mutex::default(),
            quarantine: Arc::new(quarantine),
            options,
            outlets,
            whole,
            ended: Arc::default(),
            watch,
            closed: AtomicBool::new(false),
        })
    }

    /// Counts from now on, for the metrics.
    pub fn count_in(&self, registry: &Registry) {
        self.quarantine.count_in(registry);
        let ended = registry.counter_vec(
            "tidegate_log_transactions_ended_total",
            "Transactions whose end the brokers had left out and a new owner wrote, by end.",
            &["end"],
        );
        [End::Commit, End::Abort].iter().for_each(|end| drop(ended.with(&[end.name()])));
        // A second time would be the same family.
        let _ = self.ended.set(ended);
    }

    /// Waits until a thread of the log has ended although nobody asked it to, and says which: then the process is of no
    /// use.
    pub async fn thread_ended(&self) -> &'static str {
        self.watch.ended().await
    }

    fn reader(&self, name: &str) -> Result<Arc<Reader>, String> {
        let mut readers = lock(&self.readers);
        if let Some(reader) = readers.get(name) {
            return Ok(reader.clone());
        }
        let on_poison: reader::OnPoison = if name == SINK_GROUP {
            let (quarantine, runtime) = (self.quarantine.clone(), Handle::current());
            Box::new(move |at, poison, message| {
                let found = Found::new(at, message.key(), message.payload(), message.headers());
                if runtime.block_on(quarantine.keep(found, poison))? {
                    let ((partition, offset), Poison { kind, reason }) = (at, poison);
                    tracing::error!(%partition, %offset, kind, reason, "a record that is none is in quarantine");
                }
                Ok(())
            })
        } else {
            // The sink puts it aside.
            Box::new(|_, _, _| Ok(()))
        };
        let reader = Arc::new(Reader::new(&self.options, name, &self.watch, on_poison)?);
        readers.insert(name.to_owned(), reader.clone());
        Ok(reader)
    }

    fn asker(&self, group: &str) -> Result<Arc<BaseConsumer>, String> {
        let mut askers = lock(&self.askers);
        if let Some(asker) = askers.get(group) {
            return Ok(asker.clone());
        }
        let asker = Arc::new(asker(&self.options, group)?);
        askers.insert(group.to_owned(), asker.clone());
        Ok(asker)
    }

    /// Says that the shards committed here are nobody's: gateways then wait where they knock until somebody takes them,
    /// instead of being sent to a process that ends.
    async fn withdraw(&self) {
        let Ok(asker) = self.asker("status") else { return };
        let claims: Vec<_> = lock(&self.claims).iter().map(|(shard, slot)| (*shard, slot.clone())).collect();
        let mut telling = tokio::task::JoinSet::new();
        for (shard, slot) in claims {
            let (options, asker) = (self.options.clone(), asker.clone());
            telling.spawn_blocking(move || {
                let key = control::owner_key(shard);
                // It begins no other transaction, and this one is over when the groups are left: where the next owner finds
                // one open, the library waits half a second.
                let owner = lock(&slot).take();
                let told = owner.map(|owner| owner.publish(&options, &key, control::NOBODY, &asker));
                if let Some(Err(error)) = told {
                    tracing::debug!(%shard, %error, "that a shard is let go of is not told");
                }
            });
        }
        telling.join_all().await;
    }

    fn there(&self, partition: Partition) -> Result<(), ReadError> {
        let known = partition.0 < self.options.partitions;
        if known { Ok(()) } else { Err(ReadError::NoPartition(partition)) }
    }
}

/// A client that sees what is committed, and asks for a group.
fn asker(options: &KafkaOptions, group: &str) -> Result<BaseConsumer, String> {
    let mut config = options.client();
    config.set("group.id", options.group(group)).set("enable.auto.commit", "false");
    config.set("isolation.level", "read_committed").create().map_err(|e| e.to_string())
}

/// The newest value of each key. Blocks.
fn progress(options: &KafkaOptions, whole: &Whole, shard: Shard) -> Result<Vec<ProgressRecord>, String> {
    let topic = options.topic("progress");
    let mut newest = BTreeMap::new();
    for (key, value) in whole.read(&topic, number(shard.0), WHOLE_TIMEOUT)? {
        match value {
            Some(value) => drop(newest.insert(key, value)),
            None => drop(newest.remove(&key)),
        }
    }
    let decode = |v: &Vec<u8>| ProgressRecord::decode(v).map_err(|e| format!("{topic}-{shard}: {e}"));
    newest.values().map(decode).collect()
}

#[async_trait]
impl Log for Kafka {
    fn id(&self) -> &str {
        &self.id
    }

    fn partitions(&self) -> u32 {
        self.options.partitions
    }

    fn shards(&self) -> u32 {
        self.options.shards
    }

    fn shards_owned(&self) -> Owned<Shard> {
        self.shards_owned.clone()
    }

    fn partitions_owned(&self, group: &str) -> Owned<Partition> {
        if group == SINK_GROUP { self.sink_owned.clone() } else { watch::channel(BTreeMap::new()).1 }
    }

    fn owner(&self, shard: Shard) -> Option<String> {
        self.control.owner(shard).filter(|url| Some(url) != self.options.advertise.as_ref())
    }

    async fn claim(&self, shard: Shard) -> Result<Vec<ProgressRecord>, ClaimError> {
        let Some(advertise) = self.options.advertise.clone() else { return Err(ClaimError::NotOwner(shard)) };
        let slot = lock(&self.claims).entry(shard).or_default().clone();
        let (options, whole, owned) = (self.options.clone(), self.whole.clone(), self.shards_owned.clone());
        let is_ours = move || {
            let ours = owned.borrow().contains_key(&shard);
            if ours { Ok(()) } else { Err(ClaimError::NotOwner(shard)) }
        };
        let unavailable = move |reason: String| ClaimError::Unavailable { shard, reason };
        let (asker, ended) = (self.asker("status").map_err(unavailable)?, self.ended.clone());
        let done = blocking(move || {
            is_ours()?;
            let mut slot = lock(&slot);
            // It is never used again.
            *slot = None;
            let owner = Owner::begin(&options, shard).map_err(|e| unavailable(e.to_string()))?;
            if let Some(end) = hanging::close(&options, &whole, &owner, shard).map_err(unavailable)? {
                tracing::warn!(%shard, end = end.name(), "the brokers had left a transaction open; it is ended");
                ended.get().iter().for_each(|ended| ended.with(&[end.name()]).inc());
            }
            let stored = progress(&options, &whole, shard).map_err(unavailable)?;
            let told = owner.publish(&options, &control::owner_key(shard), &advertise, &asker);
            told.map_err(|e| unavailable(e.to_string()))?;
            is_ours()?;
            *slot = Some(owner);
            Ok(stored)
        });
        done.await.unwrap_or_else(|reason| Err(unavailable(reason)))
    }

    async fn commit_group(
        &self,
        shard: Shard,
        records: Vec<DataRecord>,
        progress: Vec<ProgressRecord>,
    ) -> Result<(), CommitError> {
        let Some(slot) = lock(&self.claims).get(&shard).cloned() else { return Err(CommitError::Fenced) };
        let options = self.options.clone();
        let asker = self.asker("status").map_err(CommitError::Refused)?;
        let done = blocking(move || {
            let mut slot = lock(&slot);
            let Some(owner) = slot.as_ref() else { return Err(CommitError::Fenced) };
            let done = owner.commit(&options, shard, &records, &progress, &asker);
            if done.is_err() {
                *slot = None;
            }
            done
        });
        done.await.unwrap_or_else(|reason| Err(CommitError::Unknown(reason)))
    }

    async fn progress(&self, shard: Shard) -> Result<Vec<ProgressRecord>, ReadError> {
        let (options, whole, partition) = (self.options.clone(), self.whole.clone(), Partition(shard.0));
        let read = blocking(move || progress(&options, &whole, shard)).await.and_then(|read| read);
        read.map_err(|reason| ReadError::Storage { partition, reason })
    }

    async fn read(
        &self,
        reader: &str,
        partition: Partition,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<StoredRecord>, ReadError> {
        self.there(partition)?;
        let reader = self.reader(reader).map_err(|reason| ReadError::Storage { partition, reason })?;
        reader.read(partition, from, bytes_max).await
    }

    fn tail_moved(&self, reader: &str, partition: Partition) -> watch::Receiver<Offset> {
        match self.there(partition).map_err(|e| e.to_string()).and_then(|()| self.reader(reader)) {
            Ok(reader) => reader.tail(partition),
            Err(error) => {
                tracing::error!(%partition, reader, error, "the end of a partition cannot be followed");
                watch::channel(Offset(0)).1
            }
        }
    }

    async fn committed(&self, group: &str, partition: Partition) -> Result<Option<Committed>, ReadError> {
        self.there(partition)?;
        let storage = move |reason: String| ReadError::Storage { partition, reason };
        let (asker, topic) = (self.asker(group).map_err(storage)?, self.options.topic("data"));
        let asked = blocking(move || offsets::committed(&asker, &topic, partition.0));
        asked.await.and_then(|answer| answer).map_err(storage)
    }

    async fn commit_offset(
        &self,
        group: &str,
        partition: Partition,
        lease: Lease,
        offset: Offset,
        metadata: &str,
    ) -> Result<(), CommitError> {
        let Some(member) = self.sink.clone().filter(|_| group == SINK_GROUP) else {
            return Err(CommitError::Refused(format!("this process is not in the group {group}")));
        };
        if metadata.len() > OFFSET_METADATA_BYTES_MAX || !metadata.is_ascii() {
            return Err(CommitError::Refused(format!("{} bytes of metadata, or not ASCII", metadata.len())));
        }
        let metadata = metadata.to_owned();
        let done = blocking(move || member.commit(partition, lease, offset, &metadata));
        done.await.unwrap_or_else(|reason| Err(CommitError::Unknown(reason)))
    }

    async fn quarantine(&self, p: Partition, record: &StoredRecord, reason: &str) -> Result<(), CommitError> {
        let (h, key) = (headers::encode(&record.headers), record.headers.gateway.as_str().as_bytes());
        let found = Found::new((p, record.offset), Some(key), Some(&record.bytes), Some(&h));
        let kept = self.quarantine.keep(found, &Poison::block(reason)).await;
        kept.map(drop).map_err(CommitError::Unknown)
    }

    async fn status(&self, partition: Partition) -> Result<PartitionStatus, ReadError> {
        self.there(partition)?;
        let storage = move |reason: String| ReadError::Storage { partition, reason };
        let (asker, topic) = (self.asker("status").map_err(storage)?, self.options.topic("data"));
        let asked = blocking(move || asker.fetch_watermarks(&topic, number(partition.0), ASK_TIMEOUT)).await;
        let (low, high) = asked.and_then(|a| a.map_err(|e| e.to_string())).map_err(storage)?;
        let offset = |n: i64| Offset(u64::try_from(n).unwrap_or_default());
        Ok(PartitionStatus { low: offset(low), high: offset(high), bytes: 0 })
    }

    async fn close(&self) {
        if self.closed.swap(true, SeqCst) {
            return;
        }
        self.withdraw().await;
        let (link, sink, outlets) = (self.link.clone(), self.sink.clone(), self.outlets.clone());
        let left = tokio::join!(
            blocking(move || link.iter().for_each(|member| member.leave())),
            blocking(move || sink.iter().for_each(|member| member.leave())),
            blocking(move || outlets.iter().for_each(|outlets| outlets.leave())),
        );
        if let (Err(error), _, _) | (_, Err(error), _) | (_, _, Err(error)) = left {
            tracing::warn!(error, "a group was not left");
        }
    }
}
