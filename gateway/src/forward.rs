//! Forwarding: durable frames of the output log go to central, acknowledged ones make room.
//!
//! Invariants:
//! - only durable frames leave;
//! - output is trimmed up to what central has stored, input up to what every lane has durably consumed; whole segments
//!   only, and never by anything that is not durable itself;
//! - after a reconnect reading begins behind the last position of which everything is known to be stored: what waits
//!   drains at once, without any new event.
//!
//! It never changes a block, never decides what central has (central says so), and never stops because of central.

use crate::{
    dead_letter,
    metrics::ForwardMetrics,
    output::{
        Snapshot,
        frame::{STEP, Step},
    },
};
use bytes::Bytes;
use journal::{CHECKPOINT, FrameSeq, Gap, LogHandle, Reader};
use link::{
    client::{Central, ClientError, Event, Outbox, OutboxError},
    forward::{Entry, Item, Position},
    limits::PROTOCOL,
    message::{Batch, Hello, Lost, StreamHello, StreamLedger},
};
use record::{
    DEAD_LETTERS, GatewayId, Incarnation, Seq, StreamName, StreamSchema,
    clock::{Clock, Random},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often input is trimmed.
const TRIM_EVERY: Duration = Duration::from_millis(500);

/// What forwarding needs.
pub struct ForwardParts {
    /// This gateway.
    pub gateway: GatewayId,
    /// The life of its folder.
    pub incarnation: Incarnation,
    /// The output log.
    pub log: LogHandle,
    /// What is durable of it.
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// Where central is.
    pub central: Central,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// For jitter.
    pub random: Arc<dyn Random>,
    /// What is shown.
    pub metrics: ForwardMetrics,
    /// The wish to stop.
    pub stop: CancellationToken,
}

/// Forwards until the process stops. A session begins anew when a stream with new columns appears: central is told the
/// columns when a session begins.
pub async fn run(parts: ForwardParts) -> Result<(), ClientError> {
    let ForwardParts { gateway, incarnation, log, snapshot, central, clock, random, metrics, stop } = parts;
    let through = Position(log.first().0.saturating_sub(1));
    let reader = log.reader(FrameSeq(through.0 + 1));
    let mut watching = snapshot.clone();
    let mut outbox = OutputLog {
        gateway,
        incarnation,
        tail: log.watch(),
        log,
        reader,
        snapshot,
        read: BTreeMap::new(),
        gaps: Vec::new(),
        through,
        told: None,
        clock: clock.clone(),
        metrics,
    };
    loop {
        let session = stop.child_token();
        let told = {
            let told = columns(&watching.borrow_and_update());
            outbox.told = Some(told.clone());
            told
        };
        let from = outbox.through;
        let link = link::client::run(
            central.clone(),
            &mut outbox,
            from,
            clock.clone(),
            random.clone(),
            session.clone(),
        );
        tokio::pin!(link);
        tokio::select! {
            ended = &mut link => return ended,
            () = changed(&mut watching, &told) => {
                session.cancel();
                link.await?;
            }
        }
    }
}

/// Every stream whose columns are known.
fn columns(snapshot: &Snapshot) -> BTreeMap<StreamName, Arc<StreamSchema>> {
    let known = snapshot.streams.iter().filter_map(|(name, s)| Some((name.clone(), s.schema.clone()?)));
    known.collect()
}

/// Returns when a stream has other columns than were told.
async fn changed(
    watching: &mut watch::Receiver<Arc<Snapshot>>,
    told: &BTreeMap<StreamName, Arc<StreamSchema>>,
) {
    loop {
        if watching.changed().await.is_err() {
            return std::future::pending().await;
        }
        let now = watching.borrow_and_update().clone();
        if now.streams.iter().any(|(name, s)| s.schema.is_some() && s.schema.as_ref() != told.get(name)) {
            return;
        }
    }
}

/// The output log as the link sees it.
struct OutputLog {
    gateway: GatewayId,
    incarnation: Incarnation,
    log: LogHandle,
    tail: watch::Receiver<FrameSeq>,
    reader: Reader,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    /// The last seq read of each stream since the last seek.
    read: BTreeMap<StreamName, Seq>,
    /// Streams of which rows are missing since frames could not be read: nobody knows which streams had rows in them.
    gaps: Vec<Gap>,
    through: Position,
    told: Option<BTreeMap<StreamName, Arc<StreamSchema>>>,
    clock: Arc<dyn Clock>,
    metrics: ForwardMetrics,
}

impl Outbox for OutputLog {
    fn hello(&mut self) -> Hello {
        let snapshot = self.snapshot.borrow().clone();
        let streams = snapshot.streams.iter().filter_map(|(stream, state)| {
            let schema = match stream.as_str() {
                DEAD_LETTERS => dead_letter::schema(),
                _ => state.schema.clone()?,
            };
            let schema = StreamSchema::clone(&schema);
            Some(StreamHello { stream: stream.clone(), schema, last: state.last, hash: state.hash })
        });
        Hello {
            gateway: self.gateway.clone(),
            incarnation: self.incarnation,
            protocol: PROTOCOL,
            software: format!("tidegate-gateway {}", env!("CARGO_PKG_VERSION")),
            streams: streams.collect(),
        }
    }

    fn seek(&mut self, after: Position) -> Result<(), OutboxError> {
        self.reader.seek(FrameSeq(after.0 + 1));
        self.read.clear();
        self.gaps.clear();
        Ok(())
    }

    fn try_next(&mut self) -> Result<Option<Entry>, OutboxError> {
        self.tail.mark_unchanged();
        let Some(frame) = self.reader.next()? else { return Ok(None) };
        for gap in self.reader.take_gaps() {
            if gap.cause != journal::GapCause::Trimmed {
                tracing::error!(first = %gap.first, last = %gap.last, cause = ?gap.cause,
                    "output frames are not readable: their rows are lost");
                self.metrics.frames_lost.inc_by(gap.frames());
                self.gaps.push(gap);
            }
        }
        let position = Position(frame.seq.0);
        if frame.kind == CHECKPOINT || frame.kind != STEP {
            return Ok(Some(Entry { position, items: Vec::new() }));
        }
        let step = Step::read(&frame, self.incarnation)?;
        let mut items = Vec::new();
        let headers: Vec<_> = step.meta.blocks.clone();
        let mut at = step.meta.changes_bytes as usize;
        let payload = Bytes::from(frame.payload);
        for (header, bytes) in headers {
            let bytes = payload.slice(at..at + bytes as usize);
            at += bytes.len();
            items.extend(self.lost_before(&header).map(Item::Lost));
            self.read.insert(header.stream.clone(), header.last);
            items.push(Item::Block(Batch { header, bytes }));
        }
        Ok(Some(Entry { position, items }))
    }

    async fn moved(&mut self) {
        if self.tail.changed().await.is_err() {
            // The log is closed or poisoned: nothing more will come; the writer's task tells why.
            std::future::pending::<()>().await;
        }
    }

    fn ledger(&mut self, _known: &BTreeMap<StreamName, u64>) -> Vec<StreamLedger> {
        let snapshot = self.snapshot.borrow().clone();
        let entry = |(stream, state): (&StreamName, &crate::output::StreamState)| StreamLedger {
            stream: stream.clone(),
            counts: state.counts,
            as_of: state.last,
            losses: Vec::new(),
        };
        snapshot.streams.iter().map(entry).collect()
    }

    fn event(&mut self, event: Event) -> Result<(), OutboxError> {
        match event {
            Event::Connected => self.metrics.connected(true),
            // The link tells why.
            Event::Disconnected { .. } => self.metrics.connected(false),
            Event::Acked(stream, seq) => self.metrics.acked(&stream, seq, self.clock.wall_ns()),
            Event::Through(position) => {
                self.through = self.through.max(position);
                self.log.trim(FrameSeq(position.0 + 1))?;
            }
            Event::Halted(stream, halt) => self.metrics.halted(&stream, halt.name()),
            Event::InFlight(blocks, bytes) => self.metrics.in_flight(blocks, bytes),
        }
        Ok(())
    }
}

impl OutputLog {
    /// What is missing before a block because frames could not be read.
    fn lost_before(&self, header: &record::BlockHeader) -> Option<Lost> {
        if self.gaps.is_empty() || header.first.0 <= 1 {
            return None;
        }
        let read = self.read.get(&header.stream).copied().unwrap_or_default();
        let first = read.next();
        (first < header.first).then(|| Lost {
            stream: header.stream.clone(),
            first,
            last: Seq(header.first.0 - 1),
            hash: header.prev_hash,
            reason: "damaged frames of the output log".to_owned(),
        })
    }
}

/// Trims the input log up to what every lane has durably consumed, until the process stops.
pub async fn trim_input(
    input: LogHandle,
    lanes: BTreeSet<StreamName>,
    mut snapshot: watch::Receiver<Arc<Snapshot>>,
    stop: CancellationToken,
) -> Result<(), journal::JournalError> {
    loop {
        let consumed = {
            let now = snapshot.borrow_and_update();
            lanes.iter().map(|lane| now.consumed.get(lane).copied().unwrap_or_default()).min()
        };
        if let Some(consumed) = consumed.filter(|c| c.0 >= input.first().0) {
            let input = input.clone();
            // Unlinking a large file may take a while.
            let trimmed = tokio::task::spawn_blocking(move || input.trim(consumed.next())).await;
            if let Ok(trimmed) = trimmed {
                trimmed?;
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = async { tokio::time::sleep(TRIM_EVERY).await; snapshot.changed().await } => {
                if changed.is_err() {
                    stop.cancelled().await;
                    return Ok(());
                }
            }
        }
    }
}
