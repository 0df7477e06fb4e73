//! A stream that aggregates rows in windows: the host's half keeps keys, windows and states, the module does the sums.
//!
//! The state of every group that a step touched is saved in that step. A window without a saved state has taken no row
//! (all its rows were poison) and closes without a result, so that a crash makes no difference.

use super::{
    Now, StepError,
    cells::{self, Pick},
    effects::Effects,
    graph::joined,
    keys,
    module::{Aggregate, Failed, Guard, is_refusal},
    shape::{Shape, fits},
    windows::{Closing, Slot, Windows},
};
use crate::{
    config::{OnModuleFailure, Window},
    dead_letter::{DeadLetter, Reason},
};
use journal::StateImage;
use record::{
    Batch, BatchBuilder, Column, EventTime, RecordError, StreamName, StreamSchema, Value,
    arrow::array::{Array, TimestampNanosecondArray, cast::AsArray, types::TimestampNanosecondType},
    schema::DEVICE,
};
use std::sync::Arc;
use udf_host::CallError;

/// Results asked for in one call, and states loaded in one call.
const GROUPS_PER_CALL: usize = 4_096;
/// With every further try to load them, fewer of them: one call has a limit of time.
const FEWER_PER_TRY: usize = 16;

pub(super) struct Aggregation {
    stream: StreamName,
    guard: Guard<dyn Aggregate>,
    windows: Windows,
    idle_ns: Option<u64>,
    /// Time, device and the key's other columns: what the host adds to the module's columns.
    key_schema: Arc<StreamSchema>,
    has_device: bool,
    output: Arc<StreamSchema>,
    /// Keys of the state that are given up, and why.
    leaving: Vec<Vec<u8>>,
    leaving_why: &'static str,
    shape: Shape,
    /// Whether the state says so already.
    shape_saved: bool,
    /// Windows of a length that is no longer the stream's, by key: they close before anything else.
    outgrown: Vec<Closing>,
}

impl Aggregation {
    pub(super) fn new(
        stream: &StreamName,
        mut guard: Guard<dyn Aggregate>,
        window: &Window,
        input: &StreamSchema,
        image: &StateImage,
        now: Now,
    ) -> Result<Self, StepError> {
        let broken = |why: String| StepError::Broken { stream: stream.to_string(), why };
        let (instance, _) = guard.instance()?;
        let module_columns = instance.output();
        let picks = window.key.iter().map(|name| Pick::named(input, name)).collect::<Option<Vec<_>>>();
        // A window has its start as its time: the rows' own cannot be part of its key.
        let picks = picks.filter(|picks| !picks.contains(&Pick::Time)).ok_or_else(|| {
            guard.held(format!("a column of the window key {:?} is none of the rows' columns", window.key))
        })?;
        let key_columns: Vec<Column> = picks
            .iter()
            .filter_map(|pick| match pick {
                Pick::Column(i, _) => Some(input.columns()[*i].clone()),
                Pick::Time | Pick::Device => None,
            })
            .collect();
        let all = key_columns.iter().chain(module_columns.columns()).cloned().collect();
        let output = StreamSchema::new(all).map_err(|e| guard.held(e.to_string()))?;
        let key_schema = StreamSchema::new(key_columns).map_err(|e| broken(e.to_string()))?;
        let windows = Windows::new(window, picks.clone());
        let mut me = Self {
            stream: stream.clone(),
            guard,
            shape: Shape::new(windows.every_ns(), windows.picks(), input),
            shape_saved: false,
            outgrown: Vec::new(),
            windows,
            idle_ns: window.idle.map(|d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)),
            key_schema: Arc::new(key_schema),
            has_device: window.key.iter().any(|k| k == DEVICE),
            output: Arc::new(output),
            leaving: Vec::new(),
            leaving_why: "",
        };
        let saved = image.get(&keys::window_shape(stream)).and_then(Shape::read);
        me.shape_saved = saved.as_ref() == Some(&me.shape);
        let as_saved = saved.as_ref().is_none_or(|saved| saved.key == me.shape.key);
        if !as_saved || me.restore(image, saved.is_none(), now).is_none() {
            me.windows = Windows::new(window, picks);
            me.give_up(image);
        }
        me.load_restored(now)?;
        if let Some(saved) = saved.filter(|saved| as_saved && saved.every_ns != me.shape.every_ns) {
            me.outgrown = me.windows.close_all_of(saved.every_ns);
            tracing::warn!(stream = %stream, windows = me.outgrown.len(),
                "the length of the windows has changed: those that are open close now");
        }
        Ok(me)
    }

    pub(super) fn output(&self) -> &Arc<StreamSchema> {
        &self.output
    }

    pub(super) fn is_suspended(&self) -> bool {
        self.guard.is_suspended()
    }

    /// From now on the module is not called, for this reason, or is again.
    pub(super) fn refuse(&mut self, why: Option<&String>) {
        self.guard.refuse(why);
    }

    pub(super) fn open_windows(&self) -> usize {
        self.windows.open_count()
    }

    /// Puts back what was saved; nothing if it does not fit. With `doubtful` nobody knows what shape it has.
    fn restore(&mut self, image: &StateImage, doubtful: bool, now: Now) -> Option<()> {
        if let Some(through) = image.get(&keys::forgotten_through(&self.stream)) {
            self.windows.forgotten_through_ns = i64::from_le_bytes(through.try_into().ok()?);
        }
        let prefix = keys::window_keys(&self.stream);
        for (key, value) in image.scan_prefix(&prefix) {
            if doubtful && !fits(&key[prefix.len()..], self.windows.picks()) {
                return None;
            }
            let (newest, closed) = value.split_first_chunk::<8>()?;
            let closed = i64::from_le_bytes(closed.try_into().ok()?);
            self.windows.restore_key(
                &key[prefix.len()..],
                i64::from_le_bytes(*newest),
                closed,
                now.monotonic_ns,
            );
        }
        let prefix = keys::groups(&self.stream);
        for (key, value) in image.scan_prefix(&prefix) {
            let (start, key) = keys::group_parts(&key[prefix.len()..])?;
            self.windows.restore_window(key, start, value.to_vec()).then_some(())?;
        }
        Some(())
    }

    /// Keys and windows that were saved under another key cannot go on, and their results would have other columns.
    fn give_up(&mut self, image: &StateImage) {
        let saved =
            |prefix: Vec<u8>| image.scan_prefix(&prefix).map(|(key, _)| key.to_vec()).collect::<Vec<_>>();
        let (windows, known) = (saved(keys::groups(&self.stream)), saved(keys::window_keys(&self.stream)));
        tracing::error!(stream = %self.stream, windows = windows.len(), keys = known.len(),
            "the saved windows do not fit the window key of the configuration: they are given up without results");
        self.leaving = vec![keys::forgotten_through(&self.stream)];
        self.leaving.extend(known.into_iter().chain(windows));
        self.leaving_why = "key-changed";
    }

    /// Gives the module the states of the windows that were open. When it refuses them (a new version with another
    /// layout), the windows begin anew: said in the log, because what was summed up so far is lost to them. When it
    /// fails otherwise (out of time on a busy machine, for instance) the lane waits.
    fn load_restored(&mut self, now: Now) -> Result<(), StepError> {
        let (slots, states) = self.windows.live();
        let Err(error) = self.guard.load(|instance, tries| load(instance, &slots, &states, tries))? else {
            return Ok(());
        };
        let why = if is_refusal(&error) {
            "refused"
        } else {
            self.guard.not_loaded(&error, now)?;
            "not-loaded"
        };
        tracing::error!(stream = %self.stream, module = self.guard.module, windows = slots.len(), %error,
            "the module does not take the states of the open windows: these windows begin anew");
        self.leaving_why = why;
        for window in self.windows.forget_open() {
            let key = &self.windows.keys[window.key as usize].bytes;
            self.leaving.push(keys::group(&self.stream, window.start_ns, key));
        }
        Ok(())
    }

    /// Takes away what could not be restored, and closes windows that were outgrown; at most so many at a time, since a
    /// frame has a limit. The new shape is saved with the last part: after a crash before that, all this goes on.
    pub(super) fn settle(
        &mut self,
        now: Now,
        most: usize,
        fx: &mut Effects,
    ) -> Result<Vec<Batch>, StepError> {
        if self.leaving.is_empty() && self.outgrown.is_empty() {
            return Ok(Vec::new());
        }
        let closing: Vec<Closing> =
            self.outgrown.drain(..self.outgrown.len().min(GROUPS_PER_CALL).min(most)).collect();
        let mut touched: Vec<u32> = closing.iter().map(|c| c.key).collect();
        touched.dedup();
        self.save_keys(&touched, fx);
        let out = self.close(&closing, now, fx)?;
        let leaving = self.leaving.split_off(self.leaving.len().saturating_sub(most));
        fx.closed += closing.len() + leaving.len();
        let windows = leaving.iter().filter(|key| keys::is_group(key)).count() as u64;
        if windows > 0 {
            *fx.forgotten.entry((self.stream.clone(), self.leaving_why)).or_default() += windows;
        }
        leaving.into_iter().for_each(|key| fx.delete(key));
        if self.leaving.is_empty() && self.outgrown.is_empty() {
            self.save_shape(fx);
        }
        Ok(out)
    }

    fn save_shape(&mut self, fx: &mut Effects) {
        if !std::mem::replace(&mut self.shape_saved, true) {
            fx.put(keys::window_shape(&self.stream), self.shape.value());
        }
    }

    /// Takes rows; gives the results of the windows that closed, if any.
    pub(super) fn rows(&mut self, rows: &Batch, now: Now, fx: &mut Effects) -> Result<Vec<Batch>, StepError> {
        debug_assert!(
            self.leaving.is_empty() && self.outgrown.is_empty(),
            "the lane is settled before its first step"
        );
        self.save_shape(fx);
        let assigned = self.windows.assign(rows, now.monotonic_ns);
        let late = |_: &Batch, _| "its window has closed".to_owned();
        self.bury(rows, &assigned.late, Reason::Late, late, now, fx);
        let over = |_: &Batch, _| "too many keys or open windows".to_owned();
        self.bury(rows, &assigned.overflow, Reason::TooManyGroups, over, now, fx);
        if !assigned.slots.is_empty() {
            let accepted = if assigned.slots.len() == rows.rows() {
                rows.clone()
            } else {
                rows.filter(&assigned.accepted).map_err(|e| self.broken(&e))?
            };
            self.update(&accepted, &assigned.slots, now, fx)?;
        }
        self.forget_keys(&assigned.forgotten, fx);
        self.save_keys(&assigned.moved, fx);
        let out = self.close(&assigned.closing, now, fx)?;
        self.guard.loaded();
        Ok(out)
    }

    /// Closes windows of silent keys, or with `all` of every key; at most so many.
    pub(super) fn quiet(
        &mut self,
        all: bool,
        now: Now,
        most: usize,
        fx: &mut Effects,
    ) -> Result<Vec<Batch>, StepError> {
        if !all && self.idle_ns.is_none() {
            return Ok(Vec::new());
        }
        let (closing, touched) =
            self.windows.close_idle(now.monotonic_ns, self.idle_ns.filter(|_| !all), most);
        fx.closed += closing.len();
        self.save_keys(&touched, fx);
        self.close(&closing, now, fx)
    }

    fn update(&mut self, rows: &Batch, slots: &[u32], now: Now, fx: &mut Effects) -> Result<(), StepError> {
        let windows = &mut self.windows;
        let count = windows.slots.len() as u32;
        let isolated = self.guard.run(rows, now, |instance, fresh, piece, at| {
            if let Some(tries) = fresh {
                let (live, states) = windows.live();
                load(instance, &live, &states, tries).map_err(Failed::Load)?;
            }
            let groups = &slots[at];
            instance.update(piece, groups, count)?;
            let mut touched = groups.to_vec();
            touched.sort_unstable();
            touched.dedup();
            let states = instance.save(&touched)?;
            for (slot, state) in touched.iter().zip(states) {
                windows.slots[*slot as usize].saved = Some(state);
            }
            Ok(touched)
        })?;
        let taken: usize = isolated.passed.iter().map(|(at, _)| at.len()).sum();
        fx.count(&self.stream).aggregated += taken as u64;
        for slot in isolated.passed.iter().flat_map(|(_, touched)| touched) {
            let Slot { window: Some((key, start)), saved: Some(state) } = &self.windows.slots[*slot as usize]
            else {
                continue;
            };
            let key = &self.windows.keys[*key as usize].bytes;
            fx.put(keys::group(&self.stream, *start, key), state.clone());
        }
        let poison: Vec<usize> = isolated.poison.iter().map(|p| p.row).collect();
        let mut errors = isolated.poison.iter().map(|p| p.error.to_string());
        let error = |_: &Batch, _| errors.next().unwrap_or_default();
        self.bury(rows, &poison, Reason::Module, error, now, fx);
        Ok(())
    }

    /// Takes forgotten keys out of the state; before the others are saved, since a key may have come back at once.
    fn forget_keys(&self, forgotten: &[u32], fx: &mut Effects) {
        if forgotten.is_empty() {
            return;
        }
        tracing::info!(stream = %self.stream, keys = forgotten.len(),
            "no room for another key: silent ones are forgotten, their windows close");
        for key in forgotten {
            fx.delete(keys::window_key(&self.stream, &self.windows.keys[*key as usize].bytes));
        }
        let through = self.windows.forgotten_through_ns.to_le_bytes().to_vec();
        fx.put(keys::forgotten_through(&self.stream), through);
    }

    fn save_keys(&self, moved: &[u32], fx: &mut Effects) {
        for key in moved {
            let key = &self.windows.keys[*key as usize];
            if key.forgotten {
                continue;
            }
            let value = [key.newest_ns.to_le_bytes(), key.closed_ns.to_le_bytes()].concat();
            fx.put(keys::window_key(&self.stream, &key.bytes), value);
        }
    }

    /// The results of windows that close, in order; their states leave.
    fn close(&mut self, closing: &[Closing], now: Now, fx: &mut Effects) -> Result<Vec<Batch>, StepError> {
        if closing.is_empty() {
            return Ok(Vec::new());
        }
        let with_rows: Vec<Closing> =
            closing.iter().filter(|c| self.windows.slots[c.slot as usize].saved.is_some()).copied().collect();
        let mut parts = Vec::new();
        for part in with_rows.chunks(GROUPS_PER_CALL) {
            match self.finish(part, now)? {
                Ok(batch) => parts.push(batch),
                Err(error) => self.bury_windows(part, &error, now, fx)?,
            }
        }
        for window in &with_rows {
            let key = &self.windows.keys[window.key as usize].bytes;
            fx.delete(keys::group(&self.stream, window.start_ns, key));
        }
        let slots: Vec<u32> = closing.iter().map(|c| c.slot).collect();
        self.windows.release(closing);
        let (instance, fresh) = self.guard.instance()?;
        let cleared = if fresh {
            let (live, states) = self.windows.live();
            load(instance, &live, &states, 0)
        } else {
            load(instance, &slots, &vec![Vec::new(); slots.len()], 0)
        };
        if let Err(error) = cleared {
            // Whatever needs an instance next gives a fresh one its states.
            self.guard.failed(&error);
        }
        Ok(joined(parts))
    }

    /// The results of some windows; a module that fails is tried once more with a fresh instance.
    fn finish(&mut self, part: &[Closing], now: Now) -> Result<Result<Batch, CallError>, StepError> {
        if let Some(error) = self.guard.refused() {
            return Ok(Err(error));
        }
        let slots: Vec<u32> = part.iter().map(|c| c.slot).collect();
        let mut last = CallError::Guest("not tried".to_owned());
        for _ in 0..2 {
            if self.guard.instance()?.1 {
                let (live, states) = self.windows.live();
                if let Err(error) =
                    self.guard.load(|instance, tries| load(instance, &live, &states, tries))?
                {
                    self.guard.not_loaded(&error, now)?;
                    return Ok(Err(error));
                }
            }
            match self.guard.instance()?.0.finish(&slots) {
                // What makes no rows is no answer.
                Ok(columns) => {
                    return Ok(self.results(part, columns).map_err(|e| CallError::Answer(e.to_string())));
                }
                Err(error) => {
                    self.guard.failed(&error);
                    last = error;
                }
            }
        }
        Ok(Err(last))
    }

    fn results(
        &self,
        part: &[Closing],
        columns: Vec<record::arrow::array::ArrayRef>,
    ) -> Result<Batch, RecordError> {
        let mut builder = BatchBuilder::new(self.key_schema.clone());
        for window in part {
            let key = &self.windows.keys[window.key as usize].bytes;
            let mut values = cells::read(key).unwrap_or_default();
            let device = self.device_at(&mut values);
            // A window that holds 1900-01-01 may begin before it.
            let time = EventTime::from_ns(window.start_ns.into()).unwrap_or(EventTime::MIN);
            builder.push(time, device, &values)?;
        }
        let head = builder.finish()?;
        let times: TimestampNanosecondArray =
            head.arrow().column(0).as_primitive::<TimestampNanosecondType>().clone();
        let mut all: Vec<_> =
            (0..self.key_schema.columns().len()).map(|i| head.column_at(i).clone()).collect();
        if let Some(bad) = columns.iter().find(|c| c.len() != part.len()) {
            return Err(RecordError::Shape(format!("{} results for {} windows", bad.len(), part.len())));
        }
        all.extend(columns);
        Batch::from_columns(self.output.clone(), times, head.devices().clone(), all)
    }

    /// Takes the device out of a key's values, which stand in the order of the configured key.
    fn device_at<'k>(&self, values: &mut Vec<Value<'k>>) -> &'k str {
        if !self.has_device {
            return "";
        }
        let at = self.windows.picks().iter().position(|p| *p == Pick::Device);
        match at.filter(|at| *at < values.len()).map(|at| values.remove(at)) {
            Some(Value::Str(device)) => device,
            _ => "",
        }
    }

    /// Windows whose results the module would not give. Their rows were counted when they were taken; what is lost now
    /// is one result for each window.
    fn bury_windows(
        &self,
        part: &[Closing],
        error: &CallError,
        now: Now,
        fx: &mut Effects,
    ) -> Result<(), StepError> {
        if self.guard.policy() == OnModuleFailure::Hold {
            let (stream, module) = (self.stream.to_string(), self.guard.module.clone());
            return Err(StepError::Held { stream, module, why: error.to_string() });
        }
        fx.unmade(&self.stream, part.len());
        for window in part {
            let mut values = cells::read(&self.windows.keys[window.key as usize].bytes).unwrap_or_default();
            let device = self.device_at(&mut values).to_owned();
            fx.dead_letters.push(DeadLetter {
                stream: self.stream.clone(),
                reason: Reason::Module,
                module: self.guard.module.clone(),
                error: format!("no result for the window: {error}"),
                source: String::new(),
                topic: String::new(),
                payload: format!("{{\"window\":{}}}", window.start_ns),
                device,
                received_ns: now.wall_ns,
            });
        }
        Ok(())
    }

    fn bury(
        &self,
        rows: &Batch,
        which: &[usize],
        reason: Reason,
        mut error: impl FnMut(&Batch, usize) -> String,
        now: Now,
        fx: &mut Effects,
    ) {
        let module = if reason == Reason::Module { self.guard.module.as_str() } else { "" };
        bury_rows(&self.stream, module, reason, rows, which, &mut error, now, fx);
    }

    fn broken(&self, e: &RecordError) -> StepError {
        StepError::Broken { stream: self.stream.to_string(), why: e.to_string() }
    }
}

/// Loads states, in smaller parts with every try.
fn load(
    instance: &mut dyn Aggregate,
    slots: &[u32],
    states: &[Vec<u8>],
    tries: u32,
) -> Result<(), CallError> {
    let per_call = (GROUPS_PER_CALL / FEWER_PER_TRY.saturating_pow(tries)).max(1);
    for (slots, states) in slots.chunks(per_call).zip(states.chunks(per_call)) {
        instance.load(slots, states)?;
    }
    Ok(())
}

/// Rows of a stream below the root as dead letters, counted.
#[expect(clippy::too_many_arguments, reason = "each is one column of a dead letter")]
pub(super) fn bury_rows(
    stream: &StreamName,
    module: &str,
    reason: Reason,
    rows: &Batch,
    which: &[usize],
    error: &mut dyn FnMut(&Batch, usize) -> String,
    now: Now,
    fx: &mut Effects,
) {
    if which.is_empty() {
        return;
    }
    fx.count(stream).dead_lettered += which.len() as u64;
    for row in which {
        let error = error(rows, *row);
        let letter = DeadLetter::of_row(stream, reason, &error, rows, *row, now.wall_ns);
        fx.dead_letters.push(DeadLetter { module: module.to_owned(), ..letter });
    }
}
