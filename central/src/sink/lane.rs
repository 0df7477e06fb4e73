//! Carries out what a lane's core decides: reads the log, commits offsets, inserts, waits.

use super::{
    ahead::Hands,
    core::{Event, Lane, Pace, Step},
    limits::{BACKOFF_MAX, BACKOFF_MIN, BLOCK_ROWS_MAX, LINGER, QUIET, SURE, tokens_sure},
    metrics::SinkMetrics,
    store::Store,
};
use crate::{
    SINK_GROUP,
    log::{Committed, Lease, Log, Offset, Partition, StoredRecord},
};
use record::{StreamName, clock::Clock};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// When small batches are stored, and how large one gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SinkOptions {
    /// Rows of one range; not more than one insert takes, so that a full range makes one part a table.
    pub rows_max: u64,
    /// Bytes of blocks of one range, encoded.
    pub bytes_max: usize,
    /// Least time from one insert to the next while a range is not full.
    pub linger: Duration,
}

impl Default for SinkOptions {
    fn default() -> Self {
        Self { rows_max: BLOCK_ROWS_MAX as u64, bytes_max: 32 << 20, linger: LINGER }
    }
}

fn ns(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

impl SinkOptions {
    /// With so many lanes besides that may write the same tables, this one included.
    fn pace(self, lanes: u32) -> Pace {
        Pace {
            rows_max: self.rows_max.max(1),
            bytes_max: self.bytes_max.max(1),
            linger_ns: ns(self.linger),
            quiet_ns: ns(QUIET),
            sure_ns: ns(SURE),
            tokens: tokens_sure(lanes),
            backoff_min_ns: ns(BACKOFF_MIN),
            backoff_max_ns: ns(BACKOFF_MAX),
        }
    }
}

/// How one partition stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LaneStatus {
    /// The first offset that is not stored.
    pub position: Offset,
    /// Why the lane is stopped.
    pub halted: Option<String>,
    /// The newest failure since the last success.
    pub failure: Option<String>,
}

pub(super) struct LaneDriver {
    pub(super) partition: Partition,
    /// Under which the partition is this process'.
    pub(super) lease: Lease,
    pub(super) log: Arc<dyn Log>,
    pub(super) store: Store,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: SinkMetrics,
    pub(super) status: Arc<watch::Sender<LaneStatus>>,
    pub(super) options: SinkOptions,
}

impl LaneDriver {
    /// Runs until the token is cancelled. What is under way is dropped then: the next start finds its intent.
    pub(super) async fn run(self, token: CancellationToken) {
        tokio::select! {
            () = token.cancelled() => {}
            () = self.work() => {}
        }
        // Where it stands is for the next owner to tell.
        self.status.send_replace(LaneStatus::default());
        self.metrics.forget(self.partition);
    }

    async fn work(&self) {
        let mut lane = Lane::new(self.log.id(), self.options.pace(self.log.partitions()));
        let mut hands = Hands::default();
        let mut tail = self.log.tail_moved(SINK_GROUP, self.partition);
        loop {
            let high = *tail.borrow_and_update();
            let wall = u64::try_from(self.clock.wall_ns() / 1_000_000_000).unwrap_or_default();
            match lane.step(self.clock.monotonic_ns(), wall, high) {
                Step::Wait(until) => self.wait(until, Some(&mut tail)).await,
                Step::Sleep(until) => self.wait(Some(until), None).await,
                step => self.carry_out(step, &mut lane, &mut hands).await,
            }
            self.tell(&mut lane, &mut hands, high);
        }
    }

    async fn carry_out(&self, step: Step, lane: &mut Lane, hands: &mut Hands) {
        let now = || self.clock.monotonic_ns();
        match step {
            Step::Start => {
                hands.clear();
                let answer = self.start().await;
                lane.on_start(now(), answer);
            }
            Step::Read(from) => {
                let read = match hands.take_ahead(from) {
                    Some(read) => Ok(read),
                    None => self.log.read(SINK_GROUP, self.partition, from, self.options.bytes_max).await,
                };
                let answer = read.map(|r| hands.keep(r)).map_err(|e| e.to_string());
                lane.on_read(now(), answer);
            }
            Step::ReadRange(from, to) => {
                let answer = self.read_range(from, to).await.map(|r| hands.keep(r));
                lane.on_range(now(), answer);
            }
            Step::Commit(offset, metadata) => {
                let (partition, lease) = (self.partition, self.lease);
                let commit = self.log.commit_offset(SINK_GROUP, partition, lease, offset, &metadata).await;
                lane.on_commit(now(), commit.map_err(|e| e.to_string()));
            }
            Step::Insert(intent, offsets) => {
                let chosen = hands.give(&offsets);
                let (insert, behind) = (self.store.insert(self.partition, &intent, chosen), intent.to);
                let bounds = (self.options.rows_max, self.options.bytes_max);
                let prepare = hands.prepare(&*self.log, self.partition, (behind, lane.next_read()), bounds);
                let (answers, ()) = tokio::join!(insert, prepare);
                lane.on_insert(now(), answers);
            }
            Step::ReadBack(intent) => {
                let range = hands.range(intent.from, intent.to);
                let streams: BTreeSet<StreamName> = range.map(|r| r.headers.stream.clone()).collect();
                let tables = self.store.read_back(self.partition, &intent, &streams).await;
                lane.on_read_back(now(), tables.map_err(|e| e.to_string()));
            }
            Step::Wait(_) | Step::Sleep(_) => {}
        }
    }

    async fn start(&self) -> Result<(Option<Committed>, Option<Offset>), String> {
        let max = self.store.max_offset(self.partition).await.map_err(|e| e.to_string())?;
        let committed = self.log.committed(SINK_GROUP, self.partition).await.map_err(|e| e.to_string())?;
        Ok((committed, max))
    }

    async fn read_range(&self, from: Offset, to: Offset) -> Result<Vec<StoredRecord>, String> {
        let mut all: Vec<StoredRecord> = Vec::new();
        let mut next = from;
        while next < to {
            let read = self.log.read(SINK_GROUP, self.partition, next, self.options.bytes_max).await;
            let read = read.map_err(|e| e.to_string())?;
            let Some(last) = read.last() else { break };
            next = last.offset.next();
            all.extend(read.into_iter().filter(|r| r.offset < to));
        }
        Ok(all)
    }

    async fn wait(&self, until: Option<u64>, tail: Option<&mut watch::Receiver<Offset>>) {
        let left = until.map(|at| Duration::from_nanos(at.saturating_sub(self.clock.monotonic_ns())));
        let moved = async {
            match tail {
                Some(tail) => {
                    if tail.changed().await.is_err() {
                        // The log is closing; the token will be cancelled.
                        std::future::pending::<()>().await;
                    }
                }
                None => std::future::pending().await,
            }
        };
        let time = async {
            match left {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = moved => {}
            () = time => {}
        }
    }

    /// Tells log, metrics and status what happened, and lets go of what is stored.
    fn tell(&self, lane: &mut Lane, hands: &mut Hands, high: Offset) {
        let partition = self.partition.to_string();
        for event in lane.take_events() {
            match event {
                Event::Stored(to) => {
                    let wall = self.clock.wall_ns();
                    for record in hands.range(Offset(0), to) {
                        let h = &record.headers;
                        self.metrics.rows.with(&[h.stream.as_str()]).inc_by(u64::from(h.rows));
                        let delay = wall.saturating_sub(h.produced_at_ns).max(0);
                        self.metrics.delay_seconds.observe(delay as f64 / 1e9);
                    }
                    self.metrics.last_stored.set(wall as f64 / 1e9);
                    self.metrics.halted.with(&[&partition]).set(0.0);
                    self.status.send_replace(LaneStatus { position: to, ..LaneStatus::default() });
                }
                Event::Doubted(reason) => {
                    // Once per reason; that the embedded server is down is said where it is watched.
                    let known = self.status.borrow().failure.as_ref() == Some(&reason);
                    if !known && self.store.is_running() {
                        tracing::warn!(partition, reason, "the sink tries again");
                    }
                    self.status.send_modify(|s| s.failure = Some(reason));
                }
                Event::Renamed(intent) => {
                    self.metrics.renamed.inc();
                    tracing::warn!(partition, from = %intent.from, to = %intent.to, generation = intent.generation,
                        "an insert was answered but is not all there: what is missing is sent under a new name");
                }
                Event::ViewsUnsure(intent) => {
                    self.metrics.views_unsure.inc();
                    tracing::warn!(partition, from = %intent.from, to = %intent.to,
                        "the rows are in their tables, but a materialized view on them may lack these or have them twice: an insert was not answered, and the server may have forgotten its name");
                }
                Event::Halted(reason) => {
                    self.metrics.halted.with(&[&partition]).set(1.0);
                    tracing::error!(partition, reason, "the sink's lane is stopped");
                    self.status.send_modify(|s| s.halted = Some(reason));
                }
            }
        }
        hands.let_go(lane.position());
        let lag = high.0.saturating_sub(lane.position().0);
        self.metrics.lag.with(&[&partition]).set(lag as f64);
    }
}
