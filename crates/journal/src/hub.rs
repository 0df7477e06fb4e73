//! The hand-off from many connections to one log: group commit.
//!
//! A connection frames what it read into its own scratch and copies it once, under a mutex, into the buffer of
//! the round that is being collected; it gets the round's number as its [`Ticket`]. One thread takes a round
//! when its window is over or it is large, makes one frame of it, appends it, syncs it, and publishes its
//! number: whatever holds a ticket up to it may be acknowledged. The thread is woken only when the buffer turns
//! from empty to non-empty and when it crosses the size of a round, because wake-ups are what costs.
//!
//! A full disk or quota is no failure: the round is tried again until there is room, the buffer fills up, and
//! connections are told. A failed write or sync is: the watch closes, every push is refused, nothing is published.

use crate::{
    disk::{Disk, RealDisk},
    error::JournalError,
    limits, lock,
    log::{Log, LogHandle},
    quota::Quota,
};
use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle, Thread},
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// The round that an event went into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ticket(pub u64);

/// What is known about a round beside its bytes; becomes the frame's meta.
pub trait FrameMeta: Default + Send + 'static {
    /// Appends the frame's meta.
    fn encode(&self, out: &mut Vec<u8>);
    /// Makes it as new, for the next round; keep allocations if there are any.
    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// How a hand-off works.
#[derive(Debug, Clone)]
pub struct HubOptions {
    /// The kind of its frames.
    pub kind: u8,
    /// How long a round collects.
    pub window: Duration,
    /// A round that holds this much is written at once.
    pub round_bytes: usize,
    /// A round that holds this much takes no further push.
    pub backlog_bytes: usize,
    /// The largest push; a round exceeds the bound above by less than one.
    pub push_bytes: usize,
    /// Bytes of the quota that intake leaves to the work that drains it, beside the quota's own segment.
    pub reserve_bytes: u64,
    /// The quota that intake is admitted by.
    pub quota: Option<Quota>,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self {
            kind: 1,
            window: limits::HUB_WINDOW,
            round_bytes: limits::HUB_ROUND_BYTES,
            backlog_bytes: limits::HUB_BACKLOG_BYTES,
            push_bytes: limits::HUB_PUSH_BYTES_MAX,
            reserve_bytes: 2 * limits::SEGMENT_BYTES,
            quota: None,
        }
    }
}

/// Why events were not taken. Nothing of the push was kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The round is full: try again when the watch moves.
    #[error("the buffer of the round is full")]
    Full,
    /// The quota, or the disk, is full: the policy for it is the caller's.
    #[error("the disk quota is used up")]
    OverQuota,
    /// More than is taken at once.
    #[error("{bytes} bytes at once are over the bound of {max}")]
    TooLarge {
        /// What was pushed.
        bytes: usize,
        /// What is taken at once.
        max: usize,
    },
    /// A write or sync failed: nothing will be acknowledged any more.
    #[error("the log is poisoned")]
    Poisoned,
    /// [`Hub::close`] was called.
    #[error("the log is closed")]
    Closed,
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HubStats {
    /// Rounds made durable.
    pub rounds: u64,
    /// Events in them.
    pub events: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Nanoseconds spent in write and sync.
    pub commit_ns: u64,
    /// Tries that met a full disk or quota.
    pub stalls: u64,
}

/// The hand-off; clones are the same one. Dropping the last clone lets the thread finish what it has.
pub struct Hub<M: FrameMeta, D: Disk = RealDisk> {
    owner: Arc<Owner<M>>,
    log: LogHandle<D>,
}

impl<M: FrameMeta, D: Disk> Clone for Hub<M, D> {
    fn clone(&self) -> Self {
        Self { owner: self.owner.clone(), log: self.log.clone() }
    }
}

struct Owner<M: FrameMeta> {
    inner: Arc<Inner<M>>,
    thread: Mutex<Option<JoinHandle<Result<(), JournalError>>>>,
}

impl<M: FrameMeta> Drop for Owner<M> {
    fn drop(&mut self) {
        self.inner.stop();
    }
}

struct Inner<M> {
    options: HubOptions,
    round: Mutex<Round<M>>,
    /// The length of the round's buffer, for looking without the lock.
    pending: AtomicUsize,
    writer: OnceLock<Thread>,
    closing: AtomicBool,
    poisoned: AtomicBool,
    stalled: AtomicBool,
    durable: watch::Receiver<u64>,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    rounds: AtomicU64,
    events: AtomicU64,
    bytes: AtomicU64,
    commit_ns: AtomicU64,
    stalls: AtomicU64,
}

#[derive(Default)]
struct Round<M> {
    number: u64,
    bytes: Vec<u8>,
    events: u64,
    meta: M,
}

impl<M: FrameMeta, D: Disk> Hub<M, D> {
    /// Starts the thread, which owns the log from now on. `checkpoint` makes what a new segment starts with.
    pub fn start(
        log: Log<D>,
        options: HubOptions,
        checkpoint: Box<dyn FnMut() -> Vec<u8> + Send>,
    ) -> Result<Self, JournalError> {
        let (publish, durable) = watch::channel(0);
        let push_bytes = options.push_bytes.min(limits::HUB_PUSH_BYTES_MAX);
        let backlog_bytes = options.backlog_bytes.min(limits::PAYLOAD_BYTES_MAX - push_bytes);
        // A round that takes nothing more has nothing to wait for.
        let round_bytes = options.round_bytes.min(backlog_bytes);
        let options = HubOptions { round_bytes, backlog_bytes, push_bytes, ..options };
        let inner = Arc::new(Inner {
            options,
            round: Mutex::new(Round { number: 1, ..Round::default() }),
            pending: AtomicUsize::new(0),
            writer: OnceLock::new(),
            closing: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            durable,
            counters: Counters::default(),
        });
        let handle = log.handle();
        let writer = Writer { inner: inner.clone(), log, checkpoint, publish, meta: Vec::new() };
        let thread = thread::Builder::new()
            .name("journal-writer".into())
            .spawn(move || writer.run())
            .map_err(JournalError::io("start the writer thread of", ""))?;
        inner.writer.get_or_init(|| thread.thread().clone());
        Ok(Self { owner: Arc::new(Owner { inner, thread: Mutex::new(Some(thread)) }), log: handle })
    }

    /// Puts `bytes`, which hold `events` events, into the round and lets `note` change what is known about it.
    /// All or nothing.
    pub fn push(&self, bytes: &[u8], events: u32, note: impl FnOnce(&mut M)) -> Result<Ticket, PushError> {
        let inner = &*self.owner.inner;
        inner.admit(bytes.len())?;
        let (ticket, before, now) = {
            let mut round = lock(&inner.round);
            let before = round.bytes.len();
            // Whether a push is taken does not depend on its size: a large one never starves behind small ones.
            if before >= inner.options.backlog_bytes {
                return Err(PushError::Full);
            }
            round.bytes.extend_from_slice(bytes);
            round.events += u64::from(events);
            note(&mut round.meta);
            inner.pending.store(round.bytes.len(), SeqCst);
            (Ticket(round.number), before, round.bytes.len())
        };
        let large = inner.options.round_bytes;
        if before == 0 || (before < large && now >= large) {
            inner.wake();
        }
        Ok(ticket)
    }

    /// The newest durable round: whatever has a [`Ticket`] up to it is on disk. Closed when the log is
    /// poisoned or closed.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.owner.inner.durable.clone()
    }

    /// Whether this ticket's events are on disk.
    pub fn is_durable(&self, ticket: Ticket) -> bool {
        *self.owner.inner.durable.borrow() >= ticket.0
    }

    /// Bytes that wait for the next round.
    pub fn backlog_bytes(&self) -> usize {
        self.owner.inner.pending.load(SeqCst)
    }

    /// Whether a push would be refused for the quota or a full disk.
    pub fn is_over_quota(&self) -> bool {
        self.owner.inner.over_quota()
    }

    /// Whether a write or sync failed.
    pub fn is_poisoned(&self) -> bool {
        self.owner.inner.poisoned.load(SeqCst)
    }

    /// Counters since the start.
    pub fn stats(&self) -> HubStats {
        let counters = &self.owner.inner.counters;
        HubStats {
            rounds: counters.rounds.load(SeqCst),
            events: counters.events.load(SeqCst),
            bytes: counters.bytes.load(SeqCst),
            commit_ns: counters.commit_ns.load(SeqCst),
            stalls: counters.stalls.load(SeqCst),
        }
    }

    /// The log: readers, trimming, bytes.
    pub fn log(&self) -> &LogHandle<D> {
        &self.log
    }

    /// Takes no more, makes durable what is there, ends the thread, and says how it ended.
    pub fn close(&self) -> Result<(), JournalError> {
        self.owner.inner.stop();
        match lock(&self.owner.thread).take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(ended)) => ended,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
        }
    }
}

impl<M> Inner<M> {
    fn admit(&self, bytes: usize) -> Result<(), PushError> {
        if self.poisoned.load(SeqCst) {
            return Err(PushError::Poisoned);
        }
        if self.closing.load(SeqCst) {
            return Err(PushError::Closed);
        }
        let max = self.options.push_bytes;
        if bytes > max {
            return Err(PushError::TooLarge { bytes, max });
        }
        if self.over_quota() {
            return Err(PushError::OverQuota);
        }
        Ok(())
    }

    fn over_quota(&self) -> bool {
        let full = |quota: &Quota| !quota.admits(self.options.reserve_bytes);
        self.stalled.load(SeqCst) || self.options.quota.as_ref().is_some_and(full)
    }

    fn wake(&self) {
        if let Some(writer) = self.writer.get() {
            writer.unpark();
        }
    }

    fn stop(&self) {
        self.closing.store(true, SeqCst);
        self.wake();
    }

    /// Returns when a round should be written, or the hub is closing.
    fn wait_round(&self) {
        let closing = || self.closing.load(SeqCst);
        while self.pending.load(SeqCst) == 0 && !closing() {
            thread::park();
        }
        let end = Instant::now() + self.options.window;
        while self.pending.load(SeqCst) < self.options.round_bytes && !closing() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::park_timeout(left);
        }
    }
}

struct Writer<M: FrameMeta, D: Disk> {
    inner: Arc<Inner<M>>,
    log: Log<D>,
    checkpoint: Box<dyn FnMut() -> Vec<u8> + Send>,
    publish: watch::Sender<u64>,
    meta: Vec<u8>,
}

impl<M: FrameMeta, D: Disk> Writer<M, D> {
    fn run(mut self) -> Result<(), JournalError> {
        let mut spare = Round::<M>::default();
        loop {
            self.inner.wait_round();
            // Read before the round is taken: what was pushed before the closing is in it.
            let closing = self.inner.closing.load(SeqCst);
            {
                let mut round = lock(&self.inner.round);
                spare.number = round.number + 1;
                std::mem::swap(&mut *round, &mut spare);
                self.inner.pending.store(0, SeqCst);
            }
            if spare.bytes.is_empty() {
                if closing {
                    return Ok(());
                }
                continue;
            }
            let started = Instant::now();
            if let Err(e) = self.commit(&spare) {
                // The watch closes with `self`: whoever waits is told that nothing more becomes durable.
                self.inner.poisoned.store(!e.is_full(), SeqCst);
                self.inner.closing.store(true, SeqCst);
                return Err(e);
            }
            self.count(&spare, started);
            self.publish.send_replace(spare.number);
            spare.meta.clear();
            spare.events = 0;
            if spare.bytes.capacity() > limits::HUB_IDLE_BYTES
                && spare.bytes.len() < limits::HUB_IDLE_BYTES / 4
            {
                spare.bytes = Vec::with_capacity(limits::HUB_IDLE_BYTES);
            }
            spare.bytes.clear();
        }
    }

    /// Appends and syncs, waiting for room if the disk is full; gives up on that only when closing.
    fn commit(&mut self, round: &Round<M>) -> Result<(), JournalError> {
        self.meta.clear();
        round.meta.encode(&mut self.meta);
        loop {
            let payload: &[&[u8]] = &[&round.bytes];
            match self.log.append(self.inner.options.kind, &self.meta, payload, &mut *self.checkpoint) {
                Ok(_) => break,
                Err(e) if e.is_full() && !self.inner.closing.load(SeqCst) => {
                    if !self.inner.stalled.swap(true, SeqCst) {
                        tracing::warn!(error = %e, "the input log waits for room");
                    }
                    self.inner.counters.stalls.fetch_add(1, SeqCst);
                    thread::park_timeout(limits::HUB_STALL_RETRY);
                }
                Err(e) => return Err(e),
            }
        }
        self.inner.stalled.store(false, SeqCst);
        self.log.sync().map(drop)
    }

    fn count(&self, round: &Round<M>, started: Instant) {
        let counters = &self.inner.counters;
        counters.rounds.fetch_add(1, SeqCst);
        counters.events.fetch_add(round.events, SeqCst);
        counters.bytes.fetch_add(round.bytes.len() as u64, SeqCst);
        counters.commit_ns.fetch_add(started.elapsed().as_nanos() as u64, SeqCst);
    }
}
