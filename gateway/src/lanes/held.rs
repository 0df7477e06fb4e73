//! What a lane does while it waits for a module: it tries again from time to time, and where its stream may lose rows it
//! gives up the oldest input while the buffer is nearly full, so that a module that fails holds up no source.
//!
//! Whichever policy drops, it is the oldest that goes: input is deleted from its front only.

use super::{LaneError, LaneParts, input_damaged};
use crate::{
    config::OnFull,
    event::Events,
    ingest::{EVENTS, events_by_stream},
    limits::HELD_LOOK,
    output::{Loss, PendingStep},
    step::keys,
};
use journal::{Changes, Frame, FrameSeq};
use record::Counts;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    Stop,
    Modules,
    Time,
}

impl LaneParts {
    /// Waits for a module, or for some time; false when the process stops.
    pub(super) fn rest(&mut self, wait: Duration) -> Result<bool, LaneError> {
        let until = Instant::now() + wait;
        loop {
            let remaining = until.saturating_duration_since(Instant::now());
            if remaining.is_zero() {
                return Ok(true);
            }
            let drops = self.root.on_full != OnFull::Block;
            match self.sleep(if drops { remaining.min(HELD_LOOK) } else { remaining }) {
                Woken::Stop => return Ok(false),
                Woken::Modules => return Ok(true),
                Woken::Time if drops && (self.pressed)() => {
                    if !self.give_up()? {
                        return Ok(false);
                    }
                }
                Woken::Time => {}
            }
        }
    }

    fn sleep(&mut self, at_most: Duration) -> Woken {
        self.runtime.block_on(async {
            tokio::select! {
                () = self.stop.cancelled() => Woken::Stop,
                Ok(()) = self.modules_changed.changed() => Woken::Modules,
                () = tokio::time::sleep(at_most) => Woken::Time,
            }
        })
    }

    /// Gives up about as much of the oldest input as makes room; false when the writer is gone.
    fn give_up(&self) -> Result<bool, LaneError> {
        let lane = self.root.name.clone();
        // What the lane handed over before it was held may not be durable yet: the image comes after it.
        let Ok(image) = self.output.image() else { return Ok(false) };
        let consumed = image.get(&keys::consumed(&lane)).and_then(keys::read_u64).unwrap_or(0);
        let mut reader = self.input.reader(FrameSeq(consumed).next());
        let (mut through, mut bytes, mut loss) = (FrameSeq(consumed), 0, self.nothing_lost());
        while bytes < self.give_up_bytes {
            let next = reader.next().map_err(|e| LaneError::Input(lane.clone(), e))?;
            let Some(frame) = next else { break };
            (through, bytes) = (frame.seq, bytes + frame.payload.len() as u64);
            self.count(&frame, &mut loss);
        }
        let damaged = (!reader.take_gaps().is_empty()).then(|| input_damaged(&lane, self.clock.wall_ns()));
        if through.0 == consumed {
            return Ok(true);
        }
        let counts = Counts { received: loss.rows, dropped: loss.rows, ..Counts::default() };
        if loss.rows > 0 {
            tracing::warn!(%lane, events = loss.rows, "buffer full while the lane waits: the oldest events are given up");
            self.metrics.given_up(&loss);
        }
        let losses = Some(loss).filter(|l| l.rows > 0).into_iter().chain(damaged).collect();
        let step = PendingStep {
            counts: BTreeMap::from([(lane.clone(), counts)]),
            lane,
            consumed: through,
            made_ns: self.clock.wall_ns(),
            changes: Changes::default(),
            blocks: Vec::new(),
            losses,
        };
        Ok(self.output.write(step).is_ok())
    }

    fn nothing_lost(&self) -> Loss {
        let policy = if self.root.on_full == OnFull::DropOldest { "drop-oldest" } else { "drop-newest" };
        Loss {
            stream: self.root.name.clone(),
            seqs: Default::default(),
            times_ns: (i64::MAX, i64::MIN),
            rows: 0,
            reason: format!("buffer full while the lane waits: {policy}"),
        }
    }

    /// Adds the events that a frame says it holds for the lane.
    fn count(&self, frame: &Frame, loss: &mut Loss) {
        let name = self.root.name.as_str();
        let counts = if frame.kind == EVENTS { events_by_stream(&frame.meta) } else { None };
        let mine = counts.unwrap_or_default().iter().find(|(stream, _)| *stream == name).map_or(0, |c| c.1);
        if mine == 0 {
            return;
        }
        loss.rows += u64::from(mine);
        for event in Events::new(&frame.payload).flatten() {
            loss.times_ns = (loss.times_ns.0.min(event.received_ns), loss.times_ns.1.max(event.received_ns));
        }
    }
}
