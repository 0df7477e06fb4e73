//! What of a topic is this process': its place in a consumer group, which never fetches a record.
//!
//! Invariants:
//! - an offset is committed only while the lease under which it was read stands: taking a partition back waits for the
//!   commit under way, and each assignment is a new lease;
//! - after a commit of unknown outcome the process leaves the group and joins again, so that a commit that still lies on
//!   the way is refused by the broker: it belongs to a member that is gone.

use super::{KafkaOptions, shard::number};
use crate::log::{CommitError, Lease, Offset, Partition, Shard};
use rdkafka::{
    ClientContext, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance},
    error::{KafkaError, RDKafkaErrorCode},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::Duration,
};
use tokio::sync::watch;

/// A member that is silent for so long has lost what it had: the least that a broker takes by default.
const SESSION_MS: &str = "6000";
/// A member hears of a change with its heartbeat: what one process lets go of is another's within this.
const HEARTBEAT_MS: &str = "300";
/// How long the network may keep a commit waiting.
const SOCKET_MS: &str = "10000";

/// What a partition of a group's topic is to us, by its number.
pub(super) trait Place: Copy + Ord + Send + Sync + 'static {
    fn of(n: u32) -> Self;
    fn number(self) -> u32;
}

impl Place for Shard {
    fn of(n: u32) -> Self {
        Self(n)
    }
    fn number(self) -> u32 {
        self.0
    }
}

impl Place for Partition {
    fn of(n: u32) -> Self {
        Self(n)
    }
    fn number(self) -> u32 {
        self.0
    }
}

struct Seat<T: Place> {
    owned: watch::Sender<BTreeMap<T, Lease>>,
    /// Held for reading by commits, for writing when something is taken back.
    committing: RwLock<()>,
    next: std::sync::atomic::AtomicU64,
}

impl<T: Place> Seat<T> {
    fn take_back_all(&self) {
        let all: Vec<T> = self.owned.borrow().keys().copied().collect();
        self.take_back(&all);
    }

    fn take_back(&self, places: &[T]) {
        // A commit that panicked has done what it could; what is guarded is order, not data.
        let _none_under_way = self.committing.write().unwrap_or_else(PoisonError::into_inner);
        self.owned.send_modify(|owned| owned.retain(|place, _| !places.contains(place)));
    }
}

struct Context<T: Place>(Arc<Seat<T>>);

impl<T: Place> ClientContext for Context<T> {}

impl<T: Place> ConsumerContext for Context<T> {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Revoke(list) => self.0.take_back(&places(list)),
            Rebalance::Assign(_) => {}
            Rebalance::Error(error) => {
                tracing::warn!(%error, "a group's assignment failed");
                self.0.take_back_all();
            }
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Assign(list) = rebalance else { return };
        // Others read; here is only the place in the group.
        if let Err(error) = consumer.pause(list) {
            tracing::warn!(%error, "partitions of a group are fetched though nobody reads them here");
        }
        self.0.owned.send_modify(|owned| {
            for n in places(list) {
                owned.insert(n, Lease(self.0.next.fetch_add(1, SeqCst)));
            }
        });
    }
}

fn places<T: Place>(list: &TopicPartitionList) -> Vec<T> {
    list.elements().iter().filter_map(|e| u32::try_from(e.partition()).ok().map(T::of)).collect()
}

/// The place of this process in one group.
pub(super) struct Membership<T: Place> {
    topic: String,
    consumer: Arc<BaseConsumer<Context<T>>>,
    seat: Arc<Seat<T>>,
    stop: Arc<AtomicBool>,
    rejoin: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl<T: Place> Membership<T> {
    pub(super) fn join(options: &KafkaOptions, group: &str, topic: &str) -> Result<Self, KafkaError> {
        let seat = Arc::new(Seat {
            owned: watch::Sender::new(BTreeMap::new()),
            committing: RwLock::new(()),
            next: 1.into(),
        });
        let mut config = options.client();
        config
            .set("group.id", options.group(group))
            .set("group.protocol", "classic")
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", SESSION_MS)
            .set("heartbeat.interval.ms", HEARTBEAT_MS)
            .set("socket.timeout.ms", SOCKET_MS)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "latest");
        let consumer: BaseConsumer<Context<T>> = config.create_with_context(Context(seat.clone()))?;
        consumer.subscribe(&[topic])?;
        let consumer = Arc::new(consumer);
        let (stop, rejoin) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let thread = {
            let (consumer, topic, stop, rejoin) =
                (consumer.clone(), topic.to_owned(), stop.clone(), rejoin.clone());
            std::thread::spawn(move || serve(&consumer, &topic, &stop, &rejoin))
        };
        Ok(Self { topic: topic.to_owned(), consumer, seat, stop, rejoin, thread: Mutex::new(Some(thread)) })
    }

    pub(super) fn owned(&self) -> watch::Receiver<BTreeMap<T, Lease>> {
        self.seat.owned.subscribe()
    }

    /// Blocks.
    pub(super) fn commit(
        &self,
        n: T,
        lease: Lease,
        offset: Offset,
        metadata: &str,
    ) -> Result<(), CommitError> {
        let _nothing_is_taken_back = self.seat.committing.read().unwrap_or_else(PoisonError::into_inner);
        if self.seat.owned.borrow().get(&n) != Some(&lease) {
            return Err(CommitError::Fenced);
        }
        let refused = |e: KafkaError| CommitError::Refused(e.to_string());
        let at = i64::try_from(offset.0).map_err(|e| CommitError::Refused(e.to_string()))?;
        let mut list = TopicPartitionList::new();
        let mut place = list.add_partition(&self.topic, number(n.number()));
        place.set_offset(rdkafka::Offset::Offset(at)).map_err(refused)?;
        place.set_metadata(metadata);
        match self.consumer.commit(&list, CommitMode::Sync) {
            Ok(()) => Ok(()),
            Err(error) => match error.rdkafka_error_code() {
                Some(
                    RDKafkaErrorCode::UnknownMemberId
                    | RDKafkaErrorCode::IllegalGeneration
                    | RDKafkaErrorCode::RebalanceInProgress,
                ) => Err(CommitError::Fenced),
                _ => {
                    self.rejoin.store(true, SeqCst);
                    Err(CommitError::Unknown(error.to_string()))
                }
            },
        }
    }

    /// Leaves the group, so that others need not wait until this member is missed. Blocks.
    pub(super) fn leave(&self) {
        self.stop.store(true, SeqCst);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the thread of a consumer group had ended");
        }
    }
}

impl<T: Place> Drop for Membership<T> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The calls of the group come while it is polled.
fn serve<T: Place>(consumer: &BaseConsumer<Context<T>>, topic: &str, stop: &AtomicBool, rejoin: &AtomicBool) {
    while !stop.load(SeqCst) {
        if rejoin.swap(false, SeqCst) {
            consumer.context().0.take_back_all();
            consumer.unsubscribe();
            drain(consumer);
            if let Err(error) = consumer.subscribe(&[topic]) {
                tracing::error!(%error, topic, "the group cannot be joined again");
                rejoin.store(true, SeqCst);
            }
        }
        if let Some(Err(error)) = consumer.poll(Duration::from_millis(50)) {
            tracing::debug!(%error, topic, "a consumer group");
        }
    }
    consumer.context().0.take_back_all();
    consumer.unsubscribe();
    drain(consumer);
}

/// Until nothing is assigned any more, within reason.
fn drain<T: Place>(consumer: &BaseConsumer<Context<T>>) {
    for _ in 0..100 {
        // An error says that there is nothing to be had.
        let _ = consumer.poll(Duration::from_millis(10));
        if consumer.assignment().is_ok_and(|a| a.count() == 0) {
            return;
        }
    }
}
