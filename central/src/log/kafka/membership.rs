//! What of a topic is this process': its place in a consumer group, which never fetches a record.
//!
//! Invariants:
//! - an offset is committed only while the lease under which it was read stands: taking a partition back waits for the
//!   commit under way, and each assignment is a new lease;
//! - after a commit of unknown outcome the process leaves the group and joins again, so that a commit that still lies on
//!   the way is refused by the broker: it belongs to a member that is gone.

use super::{
    KafkaOptions,
    limits::{HEARTBEAT, MEMBER_SOCKET_TIMEOUT, POLL, SESSION_TIMEOUT, ms},
    offsets,
    polling::{Polling, Watch},
};
use crate::log::{CommitError, Lease, Offset, Partition, Shard};
use rdkafka::{
    ClientContext, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, ConsumerGroupMetadata, Rebalance},
    error::{KafkaError, RDKafkaErrorCode},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

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
    rejoin: Arc<AtomicBool>,
    thread: Polling,
}

impl<T: Place> Membership<T> {
    pub(super) fn join(
        options: &KafkaOptions,
        group: &str,
        topic: &str,
        watch: &Watch,
    ) -> Result<Self, String> {
        let text = |e: KafkaError| e.to_string();
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
            .set("session.timeout.ms", ms(SESSION_TIMEOUT))
            .set("heartbeat.interval.ms", ms(HEARTBEAT))
            .set("socket.timeout.ms", ms(MEMBER_SOCKET_TIMEOUT))
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "latest");
        let consumer = config.create_with_context(Context(seat.clone())).map_err(text)?;
        let consumer: Arc<BaseConsumer<Context<T>>> = Arc::new(consumer);
        consumer.subscribe(&[topic]).map_err(text)?;
        let rejoin = Arc::new(AtomicBool::new(false));
        let (polled, subscribed, asked) = (consumer.clone(), topic.to_owned(), rejoin.clone());
        let thread =
            Polling::start("kafka-group", watch, move |stop| serve(&polled, &subscribed, stop, &asked))?;
        Ok(Self { topic: topic.to_owned(), consumer, seat, rejoin, thread })
    }

    pub(super) fn owned(&self) -> watch::Receiver<BTreeMap<T, Lease>> {
        self.seat.owned.subscribe()
    }

    /// Whether something is this process' under this lease.
    pub(super) fn holds(&self, n: T, lease: Lease) -> bool {
        self.seat.owned.borrow().get(&n) == Some(&lease)
    }

    /// How the group knows this member, for an offset that goes into a transaction; none when the lease has ended.
    pub(super) fn metadata(&self, n: T, lease: Lease) -> Option<ConsumerGroupMetadata> {
        self.consumer.group_metadata().filter(|_| self.holds(n, lease))
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
        if !self.holds(n, lease) {
            return Err(CommitError::Fenced);
        }
        let list = offsets::position(&self.topic, n.number(), offset, metadata)?;
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
        self.thread.end();
    }
}

/// The calls of the group come while it is polled.
fn serve<T: Place>(
    consumer: &BaseConsumer<Context<T>>,
    topic: &str,
    stop: &CancellationToken,
    rejoin: &AtomicBool,
) {
    while !stop.is_cancelled() {
        if rejoin.swap(false, SeqCst) {
            consumer.context().0.take_back_all();
            consumer.unsubscribe();
            drain(consumer);
            if let Err(error) = consumer.subscribe(&[topic]) {
                tracing::error!(%error, topic, "the group cannot be joined again");
                rejoin.store(true, SeqCst);
            }
        }
        if let Some(Err(error)) = consumer.poll(POLL) {
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
