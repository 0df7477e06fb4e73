//! Carries out what a lane's core decides: claims, reads the log, publishes, waits.

use super::{
    Parts,
    core::{Event, Lane, Pace, Portion, Position, Read, Step},
    limits::{BACKOFF_MAX, BACKOFF_MIN, LINGER, READ_BYTES},
    portion::{Filled, Hands},
};
use crate::{
    FANOUT_GROUP,
    log::{CommitError, Lease, Offset, Partition, ReadError},
};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const fn ns(d: Duration) -> u64 {
    d.as_nanos() as u64
}

const PACE: Pace =
    Pace { linger_ns: ns(LINGER), backoff_min_ns: ns(BACKOFF_MIN), backoff_max_ns: ns(BACKOFF_MAX) };

pub(super) struct LaneDriver {
    pub(super) partition: Partition,
    /// Under which the partition is this process'.
    pub(super) lease: Lease,
    pub(super) parts: Parts,
}

impl LaneDriver {
    /// Runs until the token is cancelled. What is under way is dropped then: the next claim tells what became of it.
    pub(super) async fn run(self, token: CancellationToken) {
        tokio::select! {
            () = token.cancelled() => {}
            () = self.work() => {}
        }
        self.parts.metrics.forget(self.partition);
    }

    async fn work(&self) {
        let mut lane = Lane::new(PACE);
        let mut hands = Hands::default();
        let mut tail = self.parts.log.tail_moved(FANOUT_GROUP, self.partition);
        loop {
            let high = *tail.borrow_and_update();
            match lane.step(self.now(), high) {
                Step::Claim => {
                    hands.clear();
                    let claimed = self.claim().await;
                    lane.on_claim(self.now(), claimed);
                }
                Step::Read(from) => {
                    let read = self.read(from, &mut hands).await;
                    lane.on_read(self.now(), read);
                }
                Step::Publish(from) => {
                    let published = self.publish(from, &mut hands).await;
                    lane.on_publish(self.now(), published);
                }
                Step::Wait(until) => self.wait(until, Some(&mut tail)).await,
                Step::Sleep(until) => self.wait(Some(until), None).await,
            }
            self.tell(&mut lane, high);
        }
    }

    fn now(&self) -> u64 {
        self.parts.clock.monotonic_ns()
    }

    /// Where the partition stands; the oldest record that is kept when it was never published.
    async fn claim(&self) -> Result<Position, String> {
        match self.parts.outlet.claim_outlet(self.partition, self.lease).await {
            Ok(Some(committed)) => Position::decode(&committed),
            Ok(None) => {
                let extent = self.parts.log.status(self.partition).await.map_err(|e| e.to_string())?;
                Ok(Position::at(extent.low))
            }
            Err(error) => Err(self.given_up(&error)),
        }
    }

    async fn read(&self, from: Offset, hands: &mut Hands) -> Result<Read, String> {
        match self.parts.log.read(FANOUT_GROUP, self.partition, from, READ_BYTES).await {
            Ok(records) if records.is_empty() => Ok(Read::Nothing),
            Ok(records) => {
                let bytes: usize = records.iter().map(|r| r.bytes.len()).sum();
                hands.hold(records);
                Ok(Read::Some { full: bytes >= READ_BYTES / 2 })
            }
            Err(ReadError::Trimmed { first, .. }) if first > from => Ok(Read::Trimmed(first)),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn publish(&self, from: Position, hands: &mut Hands) -> Result<Portion, String> {
        let (wanted, event_bytes_max) = (self.parts.streams.clone(), self.parts.outlet.event_bytes_max());
        let mut taken = std::mem::take(hands);
        let filling = tokio::task::spawn_blocking(move || {
            let filled = taken.fill(from, wanted.as_deref(), event_bytes_max);
            (taken, filled)
        });
        let (rest, filled) = filling.await.map_err(|e| format!("the work on a block ended: {e}"))?;
        *hands = rest;
        let Filled { portion, events, unreadable, too_large } = filled;
        let rows: Vec<_> = events.iter().map(|s| (s.stream.clone(), s.events.len() as u64)).collect();
        let (next, metadata) = (portion.next.offset, portion.next.metadata());
        let published = self.parts.outlet.publish(self.partition, self.lease, events, next, metadata).await;
        published.map_err(|error| self.given_up(&error))?;
        let metrics = &self.parts.metrics;
        metrics.transactions.inc();
        for (stream, count) in rows {
            metrics.rows.with(&[stream.as_str()]).inc_by(count);
            metrics.last_event.set(self.parts.clock.wall_ns() as f64 / 1e9);
        }
        for (offset, reason) in unreadable {
            metrics.skipped.with(&["unreadable"]).inc();
            tracing::error!(partition = %self.partition, %offset, reason, "the fan-out passes a record that is none");
        }
        if too_large > 0 {
            metrics.skipped.with(&["too-large"]).inc_by(too_large);
            tracing::error!(partition = %self.partition, rows = too_large, before = %next,
                "rows are larger than a record of Kafka: their consumers do not see them");
        }
        Ok(portion)
    }

    fn given_up(&self, error: &CommitError) -> String {
        let reason = match error {
            CommitError::Fenced => "fenced",
            CommitError::Unknown(_) => "unknown",
            CommitError::Full { .. } | CommitError::Refused(_) => "refused",
        };
        self.parts.metrics.aborts.with(&[reason]).inc();
        error.to_string()
    }

    async fn wait(&self, until: Option<u64>, tail: Option<&mut watch::Receiver<Offset>>) {
        let moved = async {
            let changed = match tail {
                Some(tail) => tail.changed().await.is_ok(),
                None => false,
            };
            if !changed {
                // No word is wanted, or the log is closing and the token will be cancelled.
                std::future::pending::<()>().await;
            }
        };
        let time = async {
            match until.map(|at| Duration::from_nanos(at.saturating_sub(self.now()))) {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = moved => {}
            () = time => {}
        }
    }

    fn tell(&self, lane: &mut Lane, high: Offset) {
        let partition = self.partition.to_string();
        for event in lane.take_events() {
            match event {
                Event::Published => {}
                Event::Doubted(reason) => {
                    tracing::warn!(partition, reason, "the fan-out begins again from what is stored");
                }
                Event::Missed(from, first) => {
                    let records = first.0 - from.0;
                    self.parts.metrics.skipped.with(&["removed"]).inc_by(records);
                    tracing::error!(partition, %from, %first,
                        "records were removed before their events were published: the topic's retention is too short");
                }
            }
        }
        let lag = high.0.saturating_sub(lane.position().offset.0);
        self.parts.metrics.lag.with(&[&partition]).set(lag as f64);
    }
}
