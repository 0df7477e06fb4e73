//! The thread that owns the output log and the state image.

use super::frame::{STEP, StepMeta};
use crate::{
    limits::{LOSS_ENTRIES_MAX, LOSS_PAUSE_NS_MAX, STEPS_PER_SYNC_MAX, STEPS_WAITING_MAX},
    step::keys,
};
use journal::{Changes, Disk, FrameSeq, JournalError, Log, LogHandle, RealDisk, StateImage};
use record::{BlockHeader, Counts, Digest, Incarnation, Seq, StreamName, StreamSchema, chain_hash};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, mpsc},
    time::Duration,
};
use tokio::sync::watch;

/// A block that has no seqs yet.
#[derive(Debug)]
pub struct PendingBlock {
    /// Its stream.
    pub stream: StreamName,
    /// Fingerprint of its schema.
    pub schema: u64,
    /// Its rows.
    pub rows: u64,
    /// Its encoded bytes.
    pub bytes: Vec<u8>,
}

/// Rows given up by the policy of a full buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// Their stream.
    pub stream: StreamName,
    /// Seqs of the first and last of them; 0 when they had none yet.
    pub seqs: (Seq, Seq),
    /// When the first and the last were accepted, or written if they had seqs.
    pub times_ns: (i64, i64),
    /// How many.
    pub rows: u64,
    /// Why.
    pub reason: String,
}

impl Loss {
    /// Both as one, where the other one goes on where this one ends: an outage is one entry, however long it takes.
    pub(super) fn grown_by(&self, next: &Self) -> Option<Self> {
        let goes_on = match (self.seqs.1, next.seqs.0) {
            (Seq(0), Seq(0)) => next.times_ns.0.saturating_sub(self.times_ns.1) <= LOSS_PAUSE_NS_MAX,
            (Seq(0), _) | (_, Seq(0)) => false,
            (last, first) => last.next() == first,
        };
        (goes_on && self.reason == next.reason).then(|| Self {
            stream: self.stream.clone(),
            seqs: (self.seqs.0, next.seqs.1),
            times_ns: (self.times_ns.0.min(next.times_ns.0), self.times_ns.1.max(next.times_ns.1)),
            rows: self.rows + next.rows,
            reason: self.reason.clone(),
        })
    }
}

/// A step on its way into the log.
#[derive(Debug)]
pub struct PendingStep {
    /// The lane that made it.
    pub lane: StreamName,
    /// Input frames up to this one are consumed.
    pub consumed: FrameSeq,
    /// When it was made.
    pub made_ns: i64,
    /// Changes of the lane's state.
    pub changes: Changes,
    /// What was counted.
    pub counts: BTreeMap<StreamName, Counts>,
    /// Rows, encoded.
    pub blocks: Vec<PendingBlock>,
    /// Rows given up.
    pub losses: Vec<Loss>,
}

/// What is durable of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StreamState {
    /// Its last seq.
    pub last: Seq,
    /// The hash of the block that ends there.
    pub hash: Digest,
    /// What it counted.
    pub counts: Counts,
    /// Its columns, once known.
    pub schema: Option<Arc<StreamSchema>>,
    /// What was given up of it, by ordinal; the newest of them.
    pub losses: Arc<BTreeMap<u64, Loss>>,
}

/// What is durable.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Every frame up to this one.
    pub frame: FrameSeq,
    /// Input consumed, per lane.
    pub consumed: BTreeMap<StreamName, FrameSeq>,
    /// Per stream.
    pub streams: BTreeMap<StreamName, StreamState>,
}

/// What lanes ask the writer for.
enum Order {
    Step(PendingStep),
    /// The columns of a lane's streams, before its first step.
    Announce(Vec<(StreamName, Arc<StreamSchema>)>),
    /// Rows of a lane that are about to be given up; answered when that is durable.
    GiveUp(StreamName, Vec<Loss>, mpsc::SyncSender<()>),
    /// All state, as it is after everything ordered before.
    Image(mpsc::SyncSender<StateImage>),
}

/// The writer is gone: it failed, or the process stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the output log takes nothing more")]
pub struct Closed;

/// The lanes' end of the writer; cheap to clone.
#[derive(Clone)]
pub struct Output {
    orders: mpsc::SyncSender<Order>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
}

impl Output {
    /// Hands a step over; waits while too many wait.
    pub fn write(&self, step: PendingStep) -> Result<(), Closed> {
        self.orders.send(Order::Step(step)).map_err(|_| Closed)
    }

    /// Tells the columns of streams.
    pub fn announce(&self, schemas: Vec<(StreamName, Arc<StreamSchema>)>) -> Result<(), Closed> {
        self.orders.send(Order::Announce(schemas)).map_err(|_| Closed)
    }

    /// Writes down that rows of a lane are given up; returns when that is durable.
    pub fn give_up(&self, lane: &StreamName, losses: Vec<Loss>) -> Result<(), Closed> {
        let (answer, durable) = mpsc::sync_channel(1);
        self.orders.send(Order::GiveUp(lane.clone(), losses, answer)).map_err(|_| Closed)?;
        durable.recv().map_err(|_| Closed)
    }

    /// The state after every step that was handed over before.
    pub fn image(&self) -> Result<StateImage, Closed> {
        let (answer, image) = mpsc::sync_channel(1);
        self.orders.send(Order::Image(answer)).map_err(|_| Closed)?;
        image.recv().map_err(|_| Closed)
    }

    /// What is durable; closed when the writer is gone.
    pub fn snapshot(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.clone()
    }
}

/// How often a full disk is tried again.
const STALL_RETRY: Duration = Duration::from_millis(100);

/// Owns the output log; [`Writer::run`] is its thread.
pub struct Writer<D: Disk = RealDisk> {
    log: Log<D>,
    incarnation: Incarnation,
    image: StateImage,
    now: Snapshot,
    /// Streams whose columns the image does not hold yet in this form.
    announced: BTreeSet<StreamName>,
    /// Who waits for the next sync.
    waiting: Vec<mpsc::SyncSender<()>>,
    orders: mpsc::Receiver<Order>,
    publish: watch::Sender<Arc<Snapshot>>,
    stopping: Box<dyn Fn() -> bool + Send>,
}

impl<D: Disk> Writer<D> {
    /// A writer over the recovered state, and the lanes' end of it. `stopping` says whether the process stops: a step
    /// that meets a full disk is then given up instead of tried again.
    pub fn new(
        log: Log<D>,
        incarnation: Incarnation,
        image: StateImage,
        stopping: Box<dyn Fn() -> bool + Send>,
    ) -> (Self, Output) {
        let (sender, orders) = mpsc::sync_channel(STEPS_WAITING_MAX);
        let now = snapshot_of(&image, log.durable());
        let (publish, snapshot) = watch::channel(Arc::new(now.clone()));
        let announced = BTreeSet::new();
        let waiting = Vec::new();
        let me = Self { log, incarnation, image, now, announced, waiting, orders, publish, stopping };
        (me, Output { orders: sender, snapshot })
    }

    /// The readers' end of the log.
    pub fn log(&self) -> LogHandle<D> {
        self.log.handle()
    }

    /// Writes until every [`Output`] is dropped.
    pub fn run(mut self) -> Result<(), JournalError> {
        while let Ok(order) = self.orders.recv() {
            self.turn(order)?;
        }
        Ok(())
    }

    /// Takes one order and what waits behind it, under one sync.
    fn turn(&mut self, first: Order) -> Result<(), JournalError> {
        let mut wrote = self.take(first)?;
        for _ in 1..STEPS_PER_SYNC_MAX {
            let Ok(order) = self.orders.try_recv() else { break };
            wrote |= self.take(order)?;
        }
        if wrote {
            self.now.frame = self.log.sync()?;
        }
        self.publish.send_replace(Arc::new(self.now.clone()));
        for answer in self.waiting.drain(..) {
            // Whoever asked may have stopped.
            let _ = answer.send(());
        }
        Ok(())
    }

    /// Takes what waits now; for tests that are driver and writer in one.
    #[cfg(test)]
    pub(super) fn take_waiting(&mut self) -> Result<(), JournalError> {
        match self.orders.try_recv() {
            Ok(order) => self.turn(order),
            Err(_) => Ok(()),
        }
    }

    fn take(&mut self, order: Order) -> Result<bool, JournalError> {
        match order {
            Order::Step(step) => self.write(step).map(|()| true),
            Order::Announce(schemas) => {
                for (stream, schema) in schemas {
                    let state = self.now.streams.entry(stream.clone()).or_default();
                    if state.schema.as_ref() != Some(&schema) {
                        state.schema = Some(schema);
                        self.announced.insert(stream);
                    }
                }
                Ok(false)
            }
            Order::GiveUp(lane, losses, answer) => {
                self.waiting.push(answer);
                let consumed = self.now.consumed.get(&lane).copied().unwrap_or_default();
                let made_ns = losses.iter().map(|l| l.times_ns.1).max().unwrap_or_default();
                let (changes, counts, blocks) = (Changes::default(), BTreeMap::new(), Vec::new());
                self.write(PendingStep { lane, consumed, made_ns, changes, counts, blocks, losses })
                    .map(|()| true)
            }
            Order::Image(answer) => {
                // A lane that no longer waits for it has stopped.
                let _ = answer.send(self.image.clone());
                Ok(false)
            }
        }
    }

    /// Gives the step its seqs and hashes and appends it.
    fn write(&mut self, step: PendingStep) -> Result<(), JournalError> {
        let before = self.now.clone();
        let PendingStep { lane, consumed, made_ns, mut changes, counts, blocks, losses } = step;
        let mut forgotten = Vec::new();
        let mut put = |key: Vec<u8>, value: Vec<u8>| changes.puts.push((key, value));
        put(keys::consumed(&lane), consumed.0.to_le_bytes().to_vec());
        self.now.consumed.insert(lane.clone(), consumed);
        for (stream, delta) in &counts {
            let state = self.now.streams.entry(stream.clone()).or_default();
            state.counts.add(delta);
            put(keys::counts(stream), state.counts.to_bytes().to_vec());
        }
        for stream in std::mem::take(&mut self.announced) {
            if let Some(schema) = self.now.streams.get(&stream).and_then(|s| s.schema.as_ref()) {
                put(keys::columns(&stream), keys::columns_value(schema));
            }
        }
        for loss in losses {
            let state = self.now.streams.entry(loss.stream.clone()).or_default();
            let known = Arc::make_mut(&mut state.losses);
            if let Some((ordinal, newest)) = known.last_key_value()
                && let Some(grown) = newest.grown_by(&loss)
            {
                let ordinal = *ordinal;
                put(keys::loss(&loss.stream, ordinal), grown.encode());
                known.insert(ordinal, grown);
                continue;
            }
            let ordinal = known.last_key_value().map_or(1, |(n, _)| n + 1);
            put(keys::loss(&loss.stream, ordinal), loss.encode());
            if known.len() >= LOSS_ENTRIES_MAX
                && let Some((oldest, _)) = known.pop_first()
            {
                forgotten.push(keys::loss(&loss.stream, oldest));
            }
            known.insert(ordinal, loss);
        }
        let mut headers = Vec::with_capacity(blocks.len());
        for block in &blocks {
            let header = self.chain(block);
            put(keys::chain(&block.stream), keys::chain_value(header.last, &header.hash));
            headers.push((header, block.bytes.len() as u32));
        }
        changes.deletes.append(&mut forgotten);
        let mut encoded = Vec::new();
        changes.encode(&mut encoded);
        let meta = StepMeta { lane, consumed, made_ns, changes_bytes: encoded.len() as u32, blocks: headers };
        let mut meta_bytes = Vec::new();
        meta.encode(&mut meta_bytes);
        let payload: Vec<&[u8]> =
            std::iter::once(&encoded[..]).chain(blocks.iter().map(|b| &b.bytes[..])).collect();
        self.append(&meta_bytes, &payload, before)?;
        self.image.apply(changes);
        Ok(())
    }

    fn chain(&mut self, block: &PendingBlock) -> BlockHeader {
        let state = self.now.streams.entry(block.stream.clone()).or_default();
        let (first, last) = (state.last.next(), Seq(state.last.0 + block.rows));
        let prev_hash = state.hash;
        let (stream, incarnation) = (block.stream.clone(), self.incarnation);
        let hash = chain_hash(&prev_hash, &stream, incarnation, first, last, block.schema, &block.bytes);
        (state.last, state.hash) = (last, hash);
        BlockHeader { stream, incarnation, first, last, schema: block.schema, prev_hash, hash }
    }

    /// Appends; a full disk or quota is waited for, because forwarding and trimming make room. They need to know what
    /// was written `before`, or there will never be any.
    fn append(&mut self, meta: &[u8], payload: &[&[u8]], mut before: Snapshot) -> Result<(), JournalError> {
        let mut told = false;
        loop {
            let image = &self.image;
            match self.log.append(STEP, meta, payload, &mut || image.encode()) {
                Ok(_) => return Ok(()),
                Err(e) if e.is_full() && !(self.stopping)() => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(error = %e, "the output log waits for room");
                        before.frame = self.log.sync()?;
                        self.publish.send_replace(Arc::new(before.clone()));
                    }
                    std::thread::sleep(STALL_RETRY);
                }
                Err(e) => return Err(e),
            }
        }
    }
}

impl Loss {
    /// First and last seq, first and last time, rows, little-endian, then the reason.
    fn encode(&self) -> Vec<u8> {
        let numbers = [
            self.seqs.0.0,
            self.seqs.1.0,
            self.times_ns.0.cast_unsigned(),
            self.times_ns.1.cast_unsigned(),
            self.rows,
        ];
        let mut out: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        out.extend_from_slice(self.reason.as_bytes());
        out
    }

    fn decode(stream: &StreamName, value: &[u8]) -> Option<Self> {
        let (numbers, reason) = value.split_at_checked(40)?;
        let mut numbers =
            numbers.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().unwrap_or_default()));
        let mut next = || numbers.next().unwrap_or_default();
        Some(Self {
            stream: stream.clone(),
            seqs: (Seq(next()), Seq(next())),
            times_ns: (next().cast_signed(), next().cast_signed()),
            rows: next(),
            reason: std::str::from_utf8(reason).ok()?.to_owned(),
        })
    }
}

/// The part of the image that others look at.
fn snapshot_of(image: &StateImage, frame: FrameSeq) -> Snapshot {
    let mut out = Snapshot { frame, ..Snapshot::default() };
    let name = |key: &[u8]| std::str::from_utf8(&key[1..]).ok().and_then(|n| StreamName::new(n).ok());
    for (key, value) in image.scan_prefix(b"c") {
        if let (Some(lane), Some(consumed)) = (name(key), keys::read_u64(value)) {
            out.consumed.insert(lane, FrameSeq(consumed));
        }
    }
    for (key, value) in image.scan_prefix(b"q") {
        if let (Some(stream), Some((last, hash))) = (name(key), keys::read_chain(value)) {
            let state = out.streams.entry(stream).or_default();
            (state.last, state.hash) = (last, hash);
        }
    }
    for (key, value) in image.scan_prefix(b"n") {
        if let Some(stream) = name(key) {
            out.streams.entry(stream).or_default().counts = keys::read_counts(Some(value));
        }
    }
    for (key, value) in image.scan_prefix(b"l") {
        // The key: tag, name, 0, ordinal in eight bytes.
        let Some((named, ordinal)) = key.split_last_chunk::<8>() else { continue };
        let Some(stream) = named.strip_suffix(&[0]).and_then(name) else { continue };
        if let Some(loss) = Loss::decode(&stream, value) {
            let state = out.streams.entry(stream).or_default();
            Arc::make_mut(&mut state.losses).insert(u64::from_be_bytes(*ordinal), loss);
        }
    }
    for (key, value) in image.scan_prefix(b"h") {
        if let Some(stream) = name(key) {
            out.streams.entry(stream).or_default().schema = keys::read_columns(value).map(Arc::new);
        }
    }
    out
}
