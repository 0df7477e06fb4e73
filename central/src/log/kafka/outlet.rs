//! Topics of single events, `PREFIX.events.STREAM`: read, process, write in one transaction.
//!
//! A transaction holds events of one partition of the data topic and the group's offset in it. Its id is
//! `PREFIX-fanout-PARTITION`, so that whoever claims the partition fences everybody before, also one that was frozen and
//! does not know; besides, the offset is refused by the brokers when it comes from a member that the group no longer
//! counts. An event's key is its device, and its partition is the one that Java's clients would choose for that key.
//!
//! Topics that are missing are made like the data topic; those that are there are the operator's, who may compact them or
//! give them other partitions: nothing here is read back from them.

use super::{
    Kafka, blocking, limits::MESSAGE_BYTES_MAX, lock, membership::Membership, offsets, shard::Owner, topics,
};
use crate::{
    FANOUT_GROUP,
    log::{CommitError, Committed, Lease, Offset, Outlet, Owned, Partition, StreamEvents},
};
use async_trait::async_trait;
use record::StreamName;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

/// What a record has beside key and value, about.
const RECORD_REST_BYTES: usize = 16 << 10;

/// Options of a producer of events: JSON packs well, and its keys go where Java's clients would put them.
const PRODUCER: &[(&str, &str)] = &[("compression.type", "zstd"), ("partitioner", "murmur2_random")];

type Slot = Arc<Mutex<Option<Owner>>>;

/// What this process publishes.
pub(super) struct Outlets {
    member: Arc<Membership<Partition>>,
    slots: Mutex<BTreeMap<Partition, Slot>>,
    /// Streams whose topics are there.
    topics: tokio::sync::Mutex<BTreeSet<StreamName>>,
}

impl Outlets {
    pub(super) fn of(member: Arc<Membership<Partition>>) -> Self {
        Self { member, slots: Mutex::default(), topics: tokio::sync::Mutex::default() }
    }

    /// Blocks.
    pub(super) fn leave(&self) {
        self.member.leave();
    }
}

impl Kafka {
    fn outlets(&self) -> Result<Arc<Outlets>, CommitError> {
        let none = || CommitError::Refused("this process has not the role fanout".to_owned());
        self.outlets.clone().ok_or_else(none)
    }
}

#[async_trait]
impl Outlet for Kafka {
    fn outlets_owned(&self) -> Owned<Partition> {
        match &self.outlets {
            Some(outlets) => outlets.member.owned(),
            None => tokio::sync::watch::channel(BTreeMap::new()).1,
        }
    }

    async fn claim_outlet(
        &self,
        partition: Partition,
        lease: Lease,
    ) -> Result<Option<Committed>, CommitError> {
        let outlets = self.outlets()?;
        let slot = lock(&outlets.slots).entry(partition).or_default().clone();
        let (options, topic) = (self.options.clone(), self.options.topic("data"));
        let asker = self.asker(FANOUT_GROUP).map_err(CommitError::Unknown)?;
        let done = blocking(move || {
            let ours =
                || if outlets.member.holds(partition, lease) { Ok(()) } else { Err(CommitError::Fenced) };
            ours()?;
            let mut slot = lock(&slot);
            // It is never used again.
            *slot = None;
            let id = format!("{}-fanout-{partition}", options.prefix);
            let owner = Owner::named(&options, &id, PRODUCER);
            let owner = owner.map_err(|e| CommitError::Unknown(e.to_string()))?;
            // Behind it nothing that was open before can still move the group.
            let stored = offsets::committed(&asker, &topic, partition.0).map_err(CommitError::Unknown)?;
            ours()?;
            *slot = Some(owner);
            Ok(stored)
        });
        done.await.unwrap_or_else(|reason| Err(CommitError::Unknown(reason)))
    }

    async fn publish(
        &self,
        partition: Partition,
        lease: Lease,
        events: Vec<StreamEvents>,
        offset: Offset,
        metadata: String,
    ) -> Result<(), CommitError> {
        let outlets = self.outlets()?;
        for stream in events.iter().map(|e| &e.stream) {
            let mut there = outlets.topics.lock().await;
            if !there.contains(stream) {
                let topic = self.options.events_topic(stream);
                topics::ensure_events(&self.options, &topic).await.map_err(CommitError::Unknown)?;
                there.insert(stream.clone());
            }
        }
        let Some(slot) = lock(&outlets.slots).get(&partition).cloned() else {
            return Err(CommitError::Fenced);
        };
        let (options, group) = (self.options.clone(), outlets.member.clone());
        let done = blocking(move || {
            let mut slot = lock(&slot);
            let Some(owner) = slot.as_ref() else { return Err(CommitError::Fenced) };
            let done = match group.metadata(partition, lease) {
                Some(member) => offsets::position(&options.topic("data"), partition.0, offset, &metadata)
                    .and_then(|at| owner.publish_events(&options, &events, &at, &member)),
                None => Err(CommitError::Fenced),
            };
            if done.is_err() {
                *slot = None;
            }
            done
        });
        let done = done.await.unwrap_or_else(|reason| Err(CommitError::Unknown(reason)));
        if done.is_err() {
            // A topic may have been deleted meanwhile.
            outlets.topics.lock().await.clear();
        }
        done
    }

    fn event_bytes_max(&self) -> usize {
        MESSAGE_BYTES_MAX - RECORD_REST_BYTES
    }
}
