//! A root stream and the streams below it, as one piece that takes events.

use super::{
    Now, StepError, Troubles,
    aggregate::{Aggregation, bury_rows},
    dedup::Dedup,
    effects::Effects,
    module::{Filter, Guard, Instances, Transform},
};
use crate::{
    config::{From, OnModuleFailure, Stream},
    dead_letter::{DeadLetter, Reason},
    decode::{Chunk, Decoder},
    event::Event,
};
use journal::StateImage;
use record::{Batch, RecordError, StreamName, StreamSchema, limits::BATCH_ROWS_MAX};
use std::{collections::BTreeMap, sync::Arc};

/// A lane's core; see the module above.
pub struct Lane {
    stream: StreamName,
    schema: Arc<StreamSchema>,
    forward: bool,
    decoder: Decoder,
    dedup: Option<Dedup>,
    below: Vec<Stage>,
}

/// A stream below the root.
struct Stage {
    stream: StreamName,
    forward: bool,
    schema: Arc<StreamSchema>,
    work: Work,
    below: Vec<Stage>,
}

enum Work {
    /// The parent's rows as they are.
    Same,
    Filter(Guard<dyn Filter>),
    Transform(Guard<dyn Transform>),
    Aggregate(Box<Aggregation>),
}

/// Why a stream cannot pass rows on that its module failed on.
const NO_PASS: &str = "it is no filter: only a filter's rows can pass as they are, so on-module-failure = \"pass\" has \
    no meaning here";

/// What a stream below the root shows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// The stream.
    pub stream: StreamName,
    /// Whether its module is suspended.
    pub suspended: bool,
    /// Its open windows.
    pub open_windows: usize,
}

/// Gives the module of a stream for the columns of its parent.
pub type ModulesOf<'m> = dyn Fn(&Stream, &Arc<StreamSchema>) -> Result<Instances, String> + 'm;

/// What a lane is made from.
pub(super) struct Making<'m> {
    streams: &'m [Stream],
    modules: &'m ModulesOf<'m>,
    image: &'m StateImage,
    now: Now,
    troubles: &'m Troubles,
}

impl Lane {
    /// Makes the lane of the root stream `root`. `modules` gives the module of a stream for the columns of its parent;
    /// `image` is the state after the last step, `troubles` what the core before this one had with its modules.
    pub fn new(
        root: &Stream,
        streams: &[Stream],
        modules: &ModulesOf<'_>,
        image: &StateImage,
        now: Now,
        troubles: &Troubles,
    ) -> Result<Self, StepError> {
        let broken = |why: &str| StepError::Broken { stream: root.name.to_string(), why: why.to_owned() };
        let From::Sources { decode, schema, dedup, .. } = &root.from else {
            return Err(broken("it is not a root stream"));
        };
        let dedup = match dedup {
            None => None,
            Some(settings) => Some(
                Dedup::new(&root.name, schema, settings, image)
                    .ok_or_else(|| broken("its dedup keys are not declared, or damaged in the buffer"))?,
            ),
        };
        let making = Making { streams, modules, image, now, troubles };
        Ok(Self {
            stream: root.name.clone(),
            schema: schema.clone(),
            forward: root.forward,
            decoder: Decoder::new(root.name.clone(), schema.clone(), decode.clone()),
            dedup,
            below: making.below(&root.name, schema)?,
        })
    }

    /// The streams of the lane with their columns, parents first.
    pub fn schemas(&self) -> Vec<(StreamName, Arc<StreamSchema>, bool)> {
        let mut out = vec![(self.stream.clone(), self.schema.clone(), self.forward)];
        self.below.iter().for_each(|s| s.schemas(&mut out));
        out
    }

    /// How the streams below the root fare.
    pub fn health(&self) -> Vec<Health> {
        let mut out = Vec::new();
        self.below.iter().for_each(|s| s.health(&mut out));
        out
    }

    /// Deals with what the core found in the state and cannot go on from (windows of another length are closed, what
    /// fits no more is taken away), at most so many entries of a stream at a time; nothing when that is done. To be asked
    /// for before the first step. After an error the lane is used up.
    pub fn settle(&mut self, now: Now, most: usize) -> Result<Option<Effects>, StepError> {
        let mut fx = Effects::default();
        settle(&mut self.below, now, most, &mut fx)?;
        Ok((!fx.is_empty()).then_some(fx))
    }

    /// Takes events. After an error the lane is used up.
    pub fn step(&mut self, events: &[Event<'_>], now: Now) -> Result<Effects, StepError> {
        let mut fx = Effects::default();
        let decoded = self.decoder.decode(events.iter().copied()).map_err(|e| broken(&self.stream, &e))?;
        fx.undeclared = decoded.undeclared;
        if decoded.elements > 0 {
            let count = fx.count(&self.stream);
            count.received += decoded.elements;
            count.dead_lettered += decoded.dead_letters.len() as u64;
        }
        fx.dead_letters.extend(decoded.dead_letters);
        for chunk in decoded.chunks {
            self.chunk(&chunk, events, now, &mut fx)?;
        }
        if let Some(dedup) = &mut self.dedup {
            dedup.close(&mut fx);
        }
        Ok(fx)
    }

    fn chunk(
        &mut self,
        chunk: &Chunk,
        events: &[Event<'_>],
        now: Now,
        fx: &mut Effects,
    ) -> Result<(), StepError> {
        let mut rows = chunk.batch.clone();
        if let Some(dedup) = &mut self.dedup {
            let judged = dedup.judge(&rows, |row| events[chunk.events[row] as usize].received_ns);
            let count = fx.count(&self.stream);
            count.repeats += judged.repeats;
            count.dead_lettered += judged.conflicts.len() as u64;
            for row in &judged.conflicts {
                fx.dead_letters.push(self.conflict(&rows, *row, &events[chunk.events[*row] as usize]));
            }
            if judged.repeats > 0 || !judged.conflicts.is_empty() {
                rows = rows.filter(&judged.keep).map_err(|e| broken(&self.stream, &e))?;
            }
        }
        fx.count(&self.stream).kept += rows.rows() as u64;
        emit(&self.stream, self.forward, &mut self.below, &rows, now, fx)
    }

    fn conflict(&self, rows: &Batch, row: usize, event: &Event<'_>) -> DeadLetter {
        let error = "another row with the same dedup key has other content";
        DeadLetter {
            source: event.source.to_owned(),
            topic: event.topic.to_owned(),
            ..DeadLetter::of_row(&self.stream, Reason::KeyConflict, error, rows, row, event.received_ns)
        }
    }

    /// Closes the windows of keys that have been silent for the time that their stream allows, at most so many of a
    /// stream; there were none when the effects are empty. After an error the lane is used up.
    pub fn idle(&mut self, now: Now, most: usize) -> Result<Effects, StepError> {
        let mut fx = Effects::default();
        quiet(&mut self.below, None, now, most, &mut fx)?;
        Ok(fx)
    }

    /// Closes open windows of a stream, at most so many; there were none when the effects are empty. After an error the
    /// lane is used up.
    pub fn flush(&mut self, stream: &StreamName, now: Now, most: usize) -> Result<Effects, StepError> {
        let mut fx = Effects::default();
        quiet(&mut self.below, Some(stream), now, most, &mut fx)?;
        Ok(fx)
    }

    /// From now on only the modules of other streams are called; rows of these follow their policy, with this reason.
    pub fn refuse(&mut self, streams: &BTreeMap<StreamName, String>) {
        self.below.iter_mut().for_each(|stage| stage.refuse(streams));
    }
}

impl Making<'_> {
    fn below(&self, parent: &StreamName, input: &Arc<StreamSchema>) -> Result<Vec<Stage>, StepError> {
        let children = self.streams.iter().filter(|s| matches!(&s.from, From::Stream(p) if p == parent));
        children.map(|s| self.stage(s, input)).collect()
    }

    fn stage(&self, stream: &Stream, input: &Arc<StreamSchema>) -> Result<Stage, StepError> {
        let (work, schema) = self.work(stream, input)?;
        let below = self.below(&stream.name, &schema)?;
        Ok(Stage { stream: stream.name.clone(), forward: stream.forward, schema, work, below })
    }

    fn work(
        &self,
        stream: &Stream,
        input: &Arc<StreamSchema>,
    ) -> Result<(Work, Arc<StreamSchema>), StepError> {
        let Some(setting) = &stream.module else { return Ok((Work::Same, input.clone())) };
        let held = |why: String| StepError::Held {
            stream: stream.name.to_string(),
            module: setting.module.to_string(),
            why,
        };
        let (instances, troubles) = ((self.modules)(stream, input).map_err(held)?, self.troubles);
        if setting.on_failure == OnModuleFailure::Pass && !matches!(instances, Instances::Filter(_)) {
            return Err(held(NO_PASS.to_owned()));
        }
        match (instances, &setting.window) {
            (Instances::Filter(make), None) => {
                Ok((Work::Filter(Guard::new(&stream.name, setting, make, troubles)?), input.clone()))
            }
            (Instances::Transform(make), None) => {
                let mut guard = Guard::new(&stream.name, setting, make, troubles)?;
                let output = guard.instance()?.0.output();
                Ok((Work::Transform(guard), output))
            }
            (Instances::Aggregate(make), Some(window)) => {
                let guard = Guard::new(&stream.name, setting, make, troubles)?;
                let work = Aggregation::new(&stream.name, guard, window, input, self.image, self.now)?;
                let output = work.output().clone();
                Ok((Work::Aggregate(Box::new(work)), output))
            }
            (Instances::Aggregate(_), None) => {
                Err(held("it aggregates: the stream needs a window".to_owned()))
            }
            (_, Some(_)) => Err(held("it does not aggregate: the stream's window has no use".to_owned())),
        }
    }
}

impl Stage {
    fn schemas(&self, out: &mut Vec<(StreamName, Arc<StreamSchema>, bool)>) {
        out.push((self.stream.clone(), self.schema.clone(), self.forward));
        self.below.iter().for_each(|s| s.schemas(out));
    }

    fn health(&self, out: &mut Vec<Health>) {
        let (suspended, open_windows) = match &self.work {
            Work::Same => (false, 0),
            Work::Filter(g) => (g.is_suspended(), 0),
            Work::Transform(g) => (g.is_suspended(), 0),
            Work::Aggregate(a) => (a.is_suspended(), a.open_windows()),
        };
        out.push(Health { stream: self.stream.clone(), suspended, open_windows });
        self.below.iter().for_each(|s| s.health(out));
    }

    fn refuse(&mut self, streams: &BTreeMap<StreamName, String>) {
        let why = streams.get(&self.stream);
        match &mut self.work {
            Work::Same => {}
            Work::Filter(guard) => guard.refuse(why),
            Work::Transform(guard) => guard.refuse(why),
            Work::Aggregate(aggregation) => aggregation.refuse(why),
        }
        self.below.iter_mut().for_each(|stage| stage.refuse(streams));
    }

    /// Takes the parent's rows.
    fn rows(&mut self, rows: &Batch, now: Now, fx: &mut Effects) -> Result<(), StepError> {
        fx.count(&self.stream).received += rows.rows() as u64;
        let stream = &self.stream;
        let out = match &mut self.work {
            Work::Same => {
                fx.count(stream).kept += rows.rows() as u64;
                vec![rows.clone()]
            }
            Work::Filter(guard) => vec![filtered(stream, guard, rows, now, fx)?],
            Work::Transform(guard) => transformed(stream, guard, &self.schema, rows, now, fx)?,
            Work::Aggregate(aggregation) => aggregation.rows(rows, now, fx)?,
        };
        out.iter().try_for_each(|out| emit(&self.stream, self.forward, &mut self.below, out, now, fx))
    }
}

/// A stream's own rows: on their way to central, and to the streams below.
fn emit(
    stream: &StreamName,
    forward: bool,
    below: &mut [Stage],
    rows: &Batch,
    now: Now,
    fx: &mut Effects,
) -> Result<(), StepError> {
    if rows.rows() == 0 {
        return Ok(());
    }
    if forward {
        fx.count(stream).produced += rows.rows() as u64;
        fx.rows.push((stream.clone(), rows.clone()));
    }
    below.iter_mut().try_for_each(|stage| stage.rows(rows, now, fx))
}

fn settle(stages: &mut [Stage], now: Now, most: usize, fx: &mut Effects) -> Result<(), StepError> {
    for stage in stages {
        if let Work::Aggregate(aggregation) = &mut stage.work {
            for out in aggregation.settle(now, most, fx)? {
                emit(&stage.stream, stage.forward, &mut stage.below, &out, now, fx)?;
            }
        }
        settle(&mut stage.below, now, most, fx)?;
    }
    Ok(())
}

fn quiet(
    stages: &mut [Stage],
    only: Option<&StreamName>,
    now: Now,
    most: usize,
    fx: &mut Effects,
) -> Result<(), StepError> {
    for stage in stages {
        let wanted = only.is_none_or(|s| *s == stage.stream);
        if let Work::Aggregate(aggregation) = &mut stage.work
            && wanted
        {
            for out in aggregation.quiet(only.is_some(), now, most, fx)? {
                emit(&stage.stream, stage.forward, &mut stage.below, &out, now, fx)?;
            }
        }
        quiet(&mut stage.below, only, now, most, fx)?;
    }
    Ok(())
}

fn filtered(
    stream: &StreamName,
    guard: &mut Guard<dyn Filter>,
    rows: &Batch,
    now: Now,
    fx: &mut Effects,
) -> Result<Batch, StepError> {
    let isolated = guard.run(rows, now, |instance, _, piece, _| Ok(instance.keep(piece)?))?;
    let mut keep = vec![0_u64; rows.rows().div_ceil(64)];
    let mut set = |row: usize| keep[row / 64] |= 1 << (row % 64);
    let mut judged = 0;
    for (at, bits) in &isolated.passed {
        judged += at.len();
        let kept = (0..at.len()).filter(|i| bits.get(i / 64).is_some_and(|w| w >> (i % 64) & 1 == 1));
        kept.for_each(|i| set(at.start + i));
    }
    let poison: Vec<usize> = isolated.poison.iter().map(|p| p.row).collect();
    if guard.policy() == OnModuleFailure::Pass && guard.refused().is_none() {
        poison.iter().for_each(|row| set(*row));
        judged += poison.len();
    } else {
        let mut errors = isolated.poison.iter().map(|p| p.error.to_string());
        let error = &mut |_: &Batch, _| errors.next().unwrap_or_default();
        bury_rows(stream, &guard.module, Reason::Module, rows, &poison, error, now, fx);
    }
    let out = rows.filter(&keep).map_err(|e| broken(stream, &e))?;
    let count = fx.count(stream);
    count.kept += out.rows() as u64;
    count.filtered += (judged - out.rows()) as u64;
    Ok(out)
}

fn transformed(
    stream: &StreamName,
    guard: &mut Guard<dyn Transform>,
    schema: &Arc<StreamSchema>,
    rows: &Batch,
    now: Now,
    fx: &mut Effects,
) -> Result<Vec<Batch>, StepError> {
    let isolated = guard.run(rows, now, |instance, _, piece, _| Ok(instance.apply(piece)?))?;
    let taken: usize = isolated.passed.iter().map(|(at, _)| at.len()).sum();
    fx.count(stream).aggregated += taken as u64;
    let poison: Vec<usize> = isolated.poison.iter().map(|p| p.row).collect();
    let mut errors = isolated.poison.iter().map(|p| p.error.to_string());
    let error = &mut |_: &Batch, _| errors.next().unwrap_or_default();
    bury_rows(stream, &guard.module, Reason::Module, rows, &poison, error, now, fx);
    let parts: Vec<Batch> =
        isolated.passed.into_iter().flat_map(|(_, out)| out).filter(|b| b.rows() > 0).collect();
    debug_assert!(parts.iter().all(|p| p.schema() == schema));
    Ok(joined(parts))
}

/// Batches put together as far as one may hold them: few blocks are better than many, and a module may answer with more
/// than one batch can hold.
pub(super) fn joined(parts: Vec<Batch>) -> Vec<Batch> {
    let mut out = Vec::new();
    let (mut group, mut rows, mut bytes) = (Vec::new(), 0, 0);
    let mut close = |group: &mut Vec<Batch>| {
        let group = std::mem::take(group);
        match (group.len() > 1).then(|| Batch::concat(&group)) {
            Some(Ok(one)) => out.push(one),
            _ => out.extend(group),
        }
    };
    for part in parts {
        let size = part.arrow().get_array_memory_size();
        if rows + part.rows() > BATCH_ROWS_MAX || bytes + size > JOINED_BYTES_MAX {
            close(&mut group);
            (rows, bytes) = (0, 0);
        }
        (rows, bytes) = (rows + part.rows(), bytes + size);
        group.push(part);
    }
    close(&mut group);
    out
}

/// Batches are put together up to about this size in memory.
const JOINED_BYTES_MAX: usize = 32 << 20;

fn broken(stream: &StreamName, e: &RecordError) -> StepError {
    StepError::Broken { stream: stream.to_string(), why: e.to_string() }
}
