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
    metrics::{ForwardMetrics, LanesMetrics},
    output::{
        Output, Snapshot, StreamState,
        frame::{STEP, Step, StepMeta},
    },
};
use bytes::Bytes;
use journal::{CHECKPOINT, FrameSeq, Gap, GapCause, LogHandle, Reader};
use link::{
    client::{Central, ClientError, Event, Outbox, OutboxError},
    forward::{Entry, Item, Position},
    limits::{LOSSES_PER_MESSAGE_MAX, PROTOCOL},
    message::{Batch, Hello, Loss, Lost, StreamHello, StreamLedger},
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
    /// Frames that could not be read since the last seek: nobody knows which streams had rows in them.
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
            // What was given up before it was read stands in the ledger.
            if gap.cause != GapCause::Trimmed {
                tracing::error!(first = %gap.first, last = %gap.last, cause = ?gap.cause,
                    "output frames are not readable: their rows are lost");
                self.metrics.frames_lost.inc_by(gap.frames());
            }
            self.gaps.push(gap);
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

    fn ledger(&mut self, known: &BTreeMap<StreamName, u64>) -> Vec<StreamLedger> {
        let snapshot = self.snapshot.borrow().clone();
        let entry = |(stream, state): (&StreamName, &crate::output::StreamState)| StreamLedger {
            stream: stream.clone(),
            counts: state.counts,
            as_of: state.last,
            losses: losses(state, known.get(stream).copied().unwrap_or_default()),
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
    /// What is missing before a block: because it was given up, as the ledger says, also in an earlier life of the
    /// process; or because frames could not be read. Central knows what of it was stored before.
    fn lost_before(&self, header: &record::BlockHeader) -> Option<Lost> {
        let last = Seq(header.first.0.checked_sub(1).filter(|last| *last > 0)?);
        let after_read = self.read.get(&header.stream).copied().unwrap_or_default().next();
        if after_read > last {
            return None;
        }
        let snapshot = self.snapshot.borrow().clone();
        let known = snapshot.streams.get(&header.stream).map(|s| &*s.losses);
        let (first, reason) = if self.gaps.iter().any(|g| g.cause != GapCause::Trimmed) {
            (after_read, "damaged frames of the output log".to_owned())
        } else {
            let (first, reason) = given_up_through(last, known?)?;
            (first.max(after_read), reason)
        };
        Some(Lost { stream: header.stream.clone(), first, last, hash: header.prev_hash, reason })
    }
}

/// The first of the rows without interruption up to `last` that the ledger says were given up, and why.
fn given_up_through(last: Seq, losses: &BTreeMap<u64, crate::output::Loss>) -> Option<(Seq, String)> {
    let mut found: Option<(Seq, String)> = None;
    for loss in losses.values().rev().filter(|l| l.seqs.0.0 > 0) {
        let through = found.as_ref().map_or(last, |(first, _)| Seq(first.0 - 1));
        if loss.seqs.0 <= through && through <= loss.seqs.1 {
            found = Some((loss.seqs.0, loss.reason.clone()));
        }
    }
    found
}

/// The losses above an ordinal, as many as one message takes; and that of the ordinal, which may have grown.
fn losses(state: &StreamState, known: u64) -> Vec<Loss> {
    let new = state.losses.range(known..).take(LOSSES_PER_MESSAGE_MAX);
    let loss = |(ordinal, l): (&u64, &crate::output::Loss)| Loss {
        ordinal: *ordinal,
        first: l.seqs.0,
        last: l.seqs.1,
        first_time_ns: l.times_ns.0,
        last_time_ns: l.times_ns.1,
        rows: l.rows,
        reason: l.reason.clone(),
    };
    new.map(loss).collect()
}

/// What `drop-oldest` needs.
pub struct DropOldest {
    /// Lanes whose oldest rows may be given up.
    pub lanes: BTreeSet<StreamName>,
    /// The output log and its writer.
    pub log: LogHandle,
    /// To write down what is given up. Dropped when the process stops.
    pub output: Output,
    /// The life of the folder.
    pub incarnation: Incarnation,
    /// What central has acknowledged.
    pub acked: ForwardMetrics,
    /// Where what is given up is counted.
    pub metrics: LanesMetrics,
    /// Whether the buffer is so full that dropping policies apply.
    pub pressed: Arc<dyn Fn() -> bool + Send + Sync>,
    /// The wish to stop.
    pub stop: CancellationToken,
}

impl DropOldest {
    /// Gives up whole segments of the output log, oldest first, while the buffer is nearly full. A segment that holds
    /// rows of a lane that blocks is never given up: then sources wait, as that lane wants.
    pub async fn run(self) -> Result<(), journal::JournalError> {
        let me = Arc::new(self);
        loop {
            tokio::select! {
                () = me.stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(TRIM_EVERY) => {}
            }
            if (me.pressed)() {
                let worker = me.clone();
                match tokio::task::spawn_blocking(move || worker.oldest_segment()).await {
                    Ok(done) => done?,
                    Err(e) => tracing::error!(error = %e, "giving up old rows failed"),
                }
            }
        }
    }

    /// Writes the oldest segment's rows down as lost and deletes it, if it may be.
    fn oldest_segment(&self) -> Result<(), journal::JournalError> {
        let mut reader = self.log.reader(self.log.first());
        let mut lost: BTreeMap<StreamName, BTreeMap<StreamName, crate::output::Loss>> = BTreeMap::new();
        let (mut begun, mut end) = (false, None);
        while let Some(head) = reader.next_meta()? {
            if head.kind == CHECKPOINT {
                if std::mem::replace(&mut begun, true) {
                    end = Some(head.seq);
                    break;
                }
                continue;
            }
            let Some(meta) = StepMeta::decode(&head.meta, self.incarnation).filter(|_| head.kind == STEP)
            else {
                return Ok(());
            };
            let stored = |b: &record::BlockHeader| b.last.0 <= self.acked.acked_seq(&b.stream);
            if meta.blocks.iter().all(|(header, _)| stored(header)) {
                continue;
            }
            if !self.lanes.contains(&meta.lane) {
                return Ok(());
            }
            let of_lane = lost.entry(meta.lane.clone()).or_default();
            for (header, _) in meta.blocks.iter().filter(|(header, _)| !stored(header)) {
                let loss = of_lane.entry(header.stream.clone()).or_insert_with(|| crate::output::Loss {
                    stream: header.stream.clone(),
                    seqs: (header.first, header.last),
                    times_ns: (meta.made_ns, meta.made_ns),
                    rows: 0,
                    reason: "buffer full: drop-oldest".to_owned(),
                });
                loss.seqs.1 = header.last;
                loss.times_ns.1 = meta.made_ns;
                loss.rows += header.rows();
            }
        }
        // The segment that is being written stays.
        let Some(end) = end else { return Ok(()) };
        for (lane, losses) in lost {
            let rows: u64 = losses.values().map(|l| l.rows).sum();
            tracing::warn!(%lane, rows, "buffer full: the oldest rows are given up");
            losses.values().for_each(|loss| self.metrics.given_up(loss));
            if self.output.give_up(&lane, losses.into_values().collect()).is_err() {
                return Ok(());
            }
        }
        self.log.trim(end).map(drop)
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
