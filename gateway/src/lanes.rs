//! Lanes: each root stream with the streams below it reads the input log at its own pace, on its own thread.
//!
//! Invariants:
//! - a lane that waits (for a module, for room, for a slow module) delays neither acknowledgements nor other lanes;
//! - a step's position, state and rows are handed to the writer together, in the order of the lane's steps;
//! - after an error of the step the lane's core is thrown away and made anew from the state that the writer holds;
//! - a step that does not fit a frame of the output log has not happened, and is made again in smaller ones;
//! - events that were accepted for the lane and that its routes no longer want (the configuration changed) are counted
//!   as dropped, never passed over silently.
//!
//! It never acknowledges, never trims, and never touches another lane's state.

mod encode;
mod held;
mod portion;

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use encode::blocks;

use self::portion::{Portion, Taken};
use crate::{
    config::{OnFull, Stream},
    event::{Event, Events},
    ingest::{
        EVENTS, events_by_stream,
        route::{LaneIndex, Routes},
    },
    limits::{HOLD_RETRY, STEP_BYTES, STEP_EVENTS},
    metrics::LaneMetrics,
    output::{Loss, Output, PendingStep},
    step::{Effects, Instances, Lane, Now, StepError, Troubles, keys},
};
use journal::{Frame, FrameSeq, JournalError, LogHandle, Reader};
use record::{StreamName, StreamSchema, clock::Clock};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Gives the module of a stream for the columns of its parent.
pub type ModulesFor = Arc<dyn Fn(&Stream, &Arc<StreamSchema>) -> Result<Instances, String> + Send + Sync>;

/// How often an idle lane looks at the clock: for silent windows, and to record the position it has read to.
const LOOK: Duration = Duration::from_secs(1);
/// What the loss ledger says of input that was not readable; its number of rows is 0, since nobody knows it.
const INPUT_DAMAGED: &str = "input frames were damaged: how many events they held is not known";

/// What a lane may be told.
#[derive(Debug)]
pub enum Command {
    /// Close all open windows of a stream; answered when the step is handed over.
    Flush(StreamName, oneshot::Sender<()>),
}

/// Why a lane ended.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// The input log.
    #[error("lane {0}: {1}")]
    Input(StreamName, JournalError),
    /// The program contradicts itself.
    #[error("lane {0}: {1}")]
    Step(StreamName, StepError),
    /// Rows that cannot be encoded.
    #[error("lane {0}: {1}")]
    Encode(StreamName, record::RecordError),
}

/// What a lane is made from.
pub struct LaneParts {
    /// The root stream.
    pub root: Stream,
    /// All streams.
    pub streams: Vec<Stream>,
    /// The lane's number in the routes.
    pub index: LaneIndex,
    /// Which events it wants.
    pub routes: Arc<Routes>,
    /// Where events come from.
    pub input: LogHandle,
    /// Where steps go.
    pub output: Output,
    /// Modules by stream.
    pub modules: ModulesFor,
    /// Changes when a module was put in or activated.
    pub modules_changed: watch::Receiver<u64>,
    /// Orders from the admin API.
    pub commands: mpsc::Receiver<Command>,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// What is shown.
    pub metrics: LaneMetrics,
    /// Whether the buffer is so full that dropping policies apply.
    pub pressed: Arc<dyn Fn() -> bool + Send + Sync>,
    /// How long the first event of a step waits for more.
    pub step_interval: Duration,
    /// Most bytes that one step may come to: rows and changes of state.
    pub step_bytes_max: usize,
    /// How much waiting input a held lane gives up at a time, where it may.
    pub give_up_bytes: u64,
    /// The wish to stop.
    pub stop: CancellationToken,
    /// To wait on.
    pub runtime: Handle,
}

/// Why a lane's core is no longer served.
enum Ended {
    Stop,
    Rebuild,
    Held(StepError),
}

/// What outlives a lane's core.
#[derive(Default)]
struct Kept {
    troubles: Troubles,
    portion: Portion,
    /// An order that is not carried out yet.
    order: Option<Command>,
}

/// Runs a lane until the process stops.
pub fn run(mut parts: LaneParts) -> Result<(), LaneError> {
    let (mut wait, mut told) = (HOLD_RETRY.0, None);
    let mut kept = Kept::default();
    loop {
        let Ok(image) = parts.output.image() else { return Ok(()) };
        let consumed = image.get(&keys::consumed(&parts.root.name)).and_then(keys::read_u64).unwrap_or(0);
        parts.modules_changed.mark_unchanged();
        let lane =
            Lane::new(&parts.root, &parts.streams, &*parts.modules, &image, parts.now(), &kept.troubles);
        drop(image);
        let ended = match lane {
            Ok(lane) => Driver::new(&mut parts, lane, FrameSeq(consumed), &mut kept).serve(&mut wait)?,
            Err(held @ StepError::Held { .. }) => Ended::Held(held),
            Err(broken) => return Err(LaneError::Step(parts.root.name.clone(), broken)),
        };
        parts.metrics.module_failures(&kept.troubles);
        match ended {
            Ended::Stop => return Ok(()),
            Ended::Rebuild => {}
            Ended::Held(why) => {
                let why = why.to_string();
                if told.as_ref() != Some(&why) {
                    tracing::warn!(lane = %parts.root.name, reason = why, retry_in = ?wait, "the lane waits; its events stay in the input log");
                }
                parts.metrics.held(Some(&why));
                told = Some(why);
                if !parts.rest(wait)? {
                    return Ok(());
                }
                wait = (wait * 2).min(HOLD_RETRY.1);
            }
        }
    }
}

impl LaneParts {
    fn now(&self) -> Now {
        Now { wall_ns: self.clock.wall_ns(), monotonic_ns: self.clock.monotonic_ns() }
    }
}

/// What stood in damaged frames nobody knows.
fn input_damaged(lane: &StreamName, now_ns: i64) -> Loss {
    Loss {
        stream: lane.clone(),
        seqs: Default::default(),
        times_ns: (now_ns, now_ns),
        rows: 0,
        reason: INPUT_DAMAGED.to_owned(),
    }
}

struct Driver<'p> {
    parts: &'p mut LaneParts,
    lane: Lane,
    reader: Reader,
    tail: watch::Receiver<FrameSeq>,
    /// Read through, and recorded through.
    read: FrameSeq,
    recorded: FrameSeq,
    recorded_at: Instant,
    looked_at: Instant,
    wanted: HashMap<String, bool>,
    topic: String,
    /// What was dropped since the last step was written.
    lost: Option<Loss>,
    /// Input that was not readable, likewise.
    damaged: Option<Loss>,
    /// What the step in the making was made of.
    taken: Taken,
    kept: &'p mut Kept,
}

/// What woke an idle lane.
enum Woken {
    Stop,
    Modules,
    Order,
    Input,
    Time,
}

impl<'p> Driver<'p> {
    fn new(parts: &'p mut LaneParts, mut lane: Lane, consumed: FrameSeq, kept: &'p mut Kept) -> Self {
        let mut tail = parts.input.watch();
        tail.mark_changed();
        lane.refuse(&kept.portion.refused);
        Self {
            reader: parts.input.reader(consumed.next()),
            tail,
            lane,
            read: consumed,
            recorded: consumed,
            recorded_at: Instant::now(),
            looked_at: Instant::now(),
            wanted: HashMap::new(),
            topic: String::new(),
            lost: None,
            damaged: None,
            taken: Taken::Frames(0),
            kept,
            parts,
        }
    }

    fn serve(mut self, wait: &mut Duration) -> Result<Ended, LaneError> {
        let announced = self.lane.schemas().into_iter().filter(|(_, _, forward)| *forward);
        if self.parts.output.announce(announced.map(|(name, schema, _)| (name, schema)).collect()).is_err() {
            return Ok(Ended::Stop);
        }
        match self.settle_and_go_on(wait) {
            Err(LaneError::Step(_, held @ StepError::Held { .. })) => Ok(Ended::Held(held)),
            Err(LaneError::Step(_, StepError::TooLarge { bytes, limit, by_stream })) => {
                let (portion, streams) = (&mut self.kept.portion, &self.parts.streams);
                if portion.shrink(self.taken, (bytes, limit), &by_stream, streams) {
                    return Ok(Ended::Rebuild);
                }
                Ok(Ended::Held(StepError::TooLarge { bytes, limit, by_stream }))
            }
            ended => ended,
        }
    }

    fn settle_and_go_on(&mut self, wait: &mut Duration) -> Result<Ended, LaneError> {
        loop {
            let (now, most) = (self.parts.now(), self.kept.portion.windows);
            let Some(mut fx) = self.lane.settle(now, most).map_err(|e| self.failed(e))? else { break };
            if !self.write_closed(&mut fx)? {
                return Ok(Ended::Stop);
            }
        }
        self.parts.metrics.held(None);
        loop {
            match self.turn()? {
                None => *wait = HOLD_RETRY.0,
                Some(ended) => return Ok(ended),
            }
        }
    }

    /// One step, or one wait.
    fn turn(&mut self) -> Result<Option<Ended>, LaneError> {
        if self.parts.stop.is_cancelled() {
            return Ok(Some(Ended::Stop));
        }
        if self.parts.modules_changed.has_changed().unwrap_or(false) {
            return Ok(Some(Ended::Rebuild));
        }
        let frames = self.gather()?;
        if self.read > self.recorded && !self.step(&frames)? {
            return Ok(Some(Ended::Stop));
        }
        if self.looked_at.elapsed() >= LOOK && !self.look()? {
            return Ok(Some(Ended::Stop));
        }
        if self.kept.order.is_some() && !self.obey()? {
            return Ok(Some(Ended::Stop));
        }
        if !frames.is_empty() {
            return Ok(None);
        }
        match self.wait(LOOK) {
            Woken::Stop => Ok(Some(Ended::Stop)),
            Woken::Modules => Ok(Some(Ended::Rebuild)),
            Woken::Order | Woken::Input | Woken::Time => Ok(None),
        }
    }

    fn wait(&mut self, at_most: Duration) -> Woken {
        let (parts, tail, waiting) = (&mut *self.parts, &mut self.tail, &mut self.kept.order);
        parts.runtime.block_on(async {
            tokio::select! {
                () = parts.stop.cancelled() => Woken::Stop,
                Ok(()) = parts.modules_changed.changed() => Woken::Modules,
                Some(order) = parts.commands.recv() => {
                    *waiting = Some(order);
                    Woken::Order
                }
                Ok(()) = tail.changed() => Woken::Input,
                () = tokio::time::sleep(at_most) => Woken::Time,
            }
        })
    }

    /// Input frames for one step: as many as are there, up to the bounds; what trickles in is waited for a little,
    /// because a block of many rows costs hardly more than a block of one.
    fn gather(&mut self) -> Result<Vec<Frame>, LaneError> {
        let (mut frames, mut events, mut bytes) = (Vec::new(), 0, 0);
        let mut until: Option<Instant> = None;
        while events < STEP_EVENTS && bytes < STEP_BYTES && frames.len() < self.kept.portion.frames {
            self.tail.mark_unchanged();
            let next = self.reader.next().map_err(|e| LaneError::Input(self.parts.root.name.clone(), e))?;
            self.report_gaps();
            let Some(frame) = next else {
                let Some(until) = until else { break };
                let remaining = until.saturating_duration_since(Instant::now());
                if remaining.is_zero() || self.parts.stop.is_cancelled() || !self.trickle(remaining) {
                    break;
                }
                continue;
            };
            self.read = frame.seq;
            let mine = self.events_for_me(&frame);
            if mine == 0 {
                continue;
            }
            events += mine;
            bytes += frame.payload.len();
            frames.push(frame);
            until.get_or_insert_with(|| Instant::now() + self.parts.step_interval);
        }
        Ok(frames)
    }

    /// Whether more input came in time, before the wish to stop.
    fn trickle(&mut self, at_most: Duration) -> bool {
        let (tail, stop) = (&mut self.tail, &self.parts.stop);
        self.parts.runtime.block_on(async {
            tokio::select! {
                () = stop.cancelled() => false,
                more = tokio::time::timeout(at_most, tail.changed()) => matches!(more, Ok(Ok(()))),
            }
        })
    }

    fn report_gaps(&mut self) {
        for gap in self.reader.take_gaps() {
            tracing::error!(lane = %self.parts.root.name, first = %gap.first, last = %gap.last, cause = ?gap.cause,
                "input frames are not readable: their events are lost to this lane");
            self.parts.metrics.input_frames_lost.inc_by(gap.frames());
            self.damaged = Some(input_damaged(&self.parts.root.name, self.parts.clock.wall_ns()));
        }
    }

    /// What the frame's meta says that it holds for this lane; 1 when it cannot be read.
    fn events_for_me(&self, frame: &Frame) -> usize {
        if frame.kind != EVENTS {
            return 0;
        }
        let Some(counts) = events_by_stream(&frame.meta) else { return 1 };
        let mine = counts.iter().find(|(name, _)| *name == self.parts.root.name.as_str());
        mine.map_or(0, |(_, events)| *events as usize)
    }

    /// Carries out the order that waits; false when the writer is gone.
    fn obey(&mut self) -> Result<bool, LaneError> {
        let Some(Command::Flush(stream, _)) = &self.kept.order else { return Ok(true) };
        let stream = stream.clone();
        loop {
            let (now, most) = (self.parts.now(), self.kept.portion.windows);
            let mut fx = self.lane.flush(&stream, now, most).map_err(|e| self.failed(e))?;
            if fx.is_empty() {
                break;
            }
            if !self.write_closed(&mut fx)? {
                return Ok(false);
            }
        }
        if let Some(Command::Flush(_, done)) = self.kept.order.take() {
            // Whoever asked may have left.
            let _ = done.send(());
        }
        Ok(true)
    }

    /// Takes the frames' events through the lane and hands the step over; false when the writer is gone.
    fn step(&mut self, frames: &[Frame]) -> Result<bool, LaneError> {
        if frames.is_empty() {
            let due = self.recorded_at.elapsed() >= LOOK;
            return if due { self.write(&mut Effects::default()) } else { Ok(true) };
        }
        let started = Instant::now();
        self.taken = Taken::Frames(frames.len());
        let (events, mut expected) = (self.events(frames), 0);
        for frame in frames {
            expected += events_by_stream(&frame.meta).map_or(0, |_| self.events_for_me(frame));
        }
        let unwanted = expected.saturating_sub(events.len()) as u64;
        if self.parts.root.on_full == OnFull::DropNewest && (self.parts.pressed)() {
            self.drop_newest(&events);
            let due = unwanted > 0 || self.recorded_at.elapsed() >= LOOK;
            let mut fx = Effects::default();
            self.count_unwanted(unwanted, &mut fx);
            return if due { self.write(&mut fx) } else { Ok(true) };
        }
        let now = self.parts.now();
        let mut fx = self.lane.step(&events, now).map_err(|e| self.failed(e))?;
        self.count_unwanted(unwanted, &mut fx);
        if let Some(newest) = events.iter().map(|e| e.received_ns).max() {
            self.parts.metrics.last_event(newest);
        }
        drop(events);
        self.parts.metrics.step_seconds.observe(started.elapsed().as_secs_f64());
        self.write(&mut fx)
    }

    /// Events that were accepted for this stream under routes of an earlier configuration.
    fn count_unwanted(&self, events: u64, fx: &mut Effects) {
        if events > 0 {
            tracing::error!(lane = %self.parts.root.name, events,
                "events that were accepted for this stream are not wanted by its present routes: counted as dropped");
            let count = fx.count(&self.parts.root.name);
            count.received += events;
            count.dropped += events;
        }
    }

    /// Gives events up before they become rows; written down, about once a second, with the position behind them.
    fn drop_newest(&mut self, events: &[Event<'_>]) {
        let lost = self.lost.get_or_insert_with(|| Loss {
            stream: self.parts.root.name.clone(),
            seqs: Default::default(),
            times_ns: (i64::MAX, i64::MIN),
            rows: 0,
            reason: "buffer full: drop-newest".to_owned(),
        });
        for event in events {
            lost.rows += 1;
            lost.times_ns = (lost.times_ns.0.min(event.received_ns), lost.times_ns.1.max(event.received_ns));
        }
    }

    fn events<'f>(&mut self, frames: &'f [Frame]) -> Vec<Event<'f>> {
        let mut out = Vec::new();
        for frame in frames {
            for event in Events::new(&frame.payload) {
                match event {
                    Ok(event) if self.wants(&event) => out.push(event),
                    Ok(_) => {}
                    Err(e) => {
                        tracing::error!(frame = %frame.seq, error = %e, "the rest of the frame is passed over")
                    }
                }
            }
        }
        out
    }

    fn wants(&mut self, event: &Event<'_>) -> bool {
        self.topic.clear();
        for part in [event.source, "\0", event.stream, "\0", event.topic] {
            self.topic.push_str(part);
        }
        if let Some(wanted) = self.wanted.get(&self.topic) {
            return *wanted;
        }
        let wanted = self.parts.routes.wants(self.parts.index, event);
        if self.wanted.len() >= crate::limits::ROUTE_CACHE_MAX {
            self.wanted.clear();
        }
        self.wanted.insert(self.topic.clone(), wanted);
        wanted
    }

    /// Looks at the clock and at the lane's health; false when the writer is gone.
    fn look(&mut self) -> Result<bool, LaneError> {
        self.looked_at = Instant::now();
        loop {
            let (now, most) = (self.parts.now(), self.kept.portion.windows);
            let mut fx = self.lane.idle(now, most).map_err(|e| self.failed(e))?;
            if fx.is_empty() {
                break;
            }
            if !self.write_closed(&mut fx)? {
                return Ok(false);
            }
        }
        self.parts.metrics.health(&self.lane.health());
        self.parts.metrics.module_failures(&self.kept.troubles);
        Ok(true)
    }

    /// Hands over what came of windows that closed without input; false when the writer is gone.
    fn write_closed(&mut self, fx: &mut Effects) -> Result<bool, LaneError> {
        self.taken = Taken::Windows(fx.closed);
        self.write(fx)
    }

    /// Hands effects over with the position read so far; false when the writer is gone.
    fn write(&mut self, fx: &mut Effects) -> Result<bool, LaneError> {
        let name = self.parts.root.name.clone();
        let dropped = self.lost.take().filter(|l| l.rows > 0);
        let losses: Vec<Loss> = dropped.into_iter().chain(self.damaged.take()).collect();
        for loss in &losses {
            self.parts.metrics.given_up(loss);
            let count = fx.count(&name);
            count.received += loss.rows;
            count.dropped += loss.rows;
        }
        let made_ns = self.parts.clock.wall_ns();
        let blocks = encode::blocks(fx, made_ns, self.kept.portion.short)
            .map_err(|e| LaneError::Encode(name.clone(), e))?;
        let changes = fx.take_changes();
        Portion::check(&blocks, &changes, self.parts.step_bytes_max).map_err(|e| self.failed(e))?;
        self.parts.metrics.effects(fx);
        let step = PendingStep {
            lane: name,
            consumed: self.read,
            made_ns,
            changes,
            counts: std::mem::take(&mut fx.counts),
            blocks,
            losses,
        };
        (self.recorded, self.recorded_at) = (self.read, Instant::now());
        if self.kept.portion.fitted() {
            self.lane.refuse(&self.kept.portion.refused);
        }
        Ok(self.parts.output.write(step).is_ok())
    }

    fn failed(&self, e: StepError) -> LaneError {
        LaneError::Step(self.parts.root.name.clone(), e)
    }
}
