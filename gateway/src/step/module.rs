//! Modules as the step sees them, and what happens when they fail.
//!
//! A failing call is taken apart until the rows that make it fail stand alone; they follow the stream's policy, the rest
//! goes on. A module whose calls keep failing is suspended: its rows follow the policy without being tried, until it has
//! rested; so a module that spins costs its lane a bounded share of time, and other lanes nothing.

use super::{Now, StepError, Troubles};
use crate::{
    config::{ModuleSetting, OnModuleFailure},
    limits::{LOADS_AT_ONCE, MODULE_FAILURES_MAX, MODULE_REST},
};
use record::{Batch, StreamName, StreamSchema, arrow::array::ArrayRef};
use std::{ops::Range, sync::Arc};
use udf_host::{
    AggregateInstance, Budget, CallError, FilterInstance, Isolated, PoisonRow, TransformInstance, isolate,
};

/// Decides for each row whether it stays.
pub trait Filter {
    /// Bit i keeps row i.
    fn keep(&mut self, rows: &Batch) -> Result<Vec<u64>, CallError>;
}

/// Makes other rows out of rows.
pub trait Transform {
    /// Batches of the output's schema.
    fn apply(&mut self, rows: &Batch) -> Result<Vec<Batch>, CallError>;
    /// The columns of its answers.
    fn output(&self) -> Arc<StreamSchema>;
}

/// Grouped arithmetic; groups are numbers from 0 that the step gives out.
pub trait Aggregate {
    /// Adds row i to group `groups[i]`.
    fn update(&mut self, rows: &Batch, groups: &[u32], group_count: u32) -> Result<(), CallError>;
    /// The output's columns, a row for each group.
    fn finish(&mut self, groups: &[u32]) -> Result<Vec<ArrayRef>, CallError>;
    /// The state of each group.
    fn save(&mut self, groups: &[u32]) -> Result<Vec<Vec<u8>>, CallError>;
    /// Puts states in the place of groups; a state without bytes makes its group empty.
    fn load(&mut self, groups: &[u32], states: &[Vec<u8>]) -> Result<(), CallError>;
    /// The columns of its results.
    fn output(&self) -> Arc<StreamSchema>;
}

impl Filter for FilterInstance {
    fn keep(&mut self, rows: &Batch) -> Result<Vec<u64>, CallError> {
        FilterInstance::keep(self, rows).map(|bits| bits.0)
    }
}

impl Transform for TransformInstance {
    fn apply(&mut self, rows: &Batch) -> Result<Vec<Batch>, CallError> {
        TransformInstance::apply(self, rows)
    }
    fn output(&self) -> Arc<StreamSchema> {
        TransformInstance::output(self).clone()
    }
}

impl Aggregate for AggregateInstance {
    fn update(&mut self, rows: &Batch, groups: &[u32], group_count: u32) -> Result<(), CallError> {
        AggregateInstance::update(self, rows, groups, group_count)
    }
    fn finish(&mut self, groups: &[u32]) -> Result<Vec<ArrayRef>, CallError> {
        AggregateInstance::finish(self, groups)
    }
    fn save(&mut self, groups: &[u32]) -> Result<Vec<Vec<u8>>, CallError> {
        AggregateInstance::save(self, groups)
    }
    fn load(&mut self, groups: &[u32], states: &[Vec<u8>]) -> Result<(), CallError> {
        AggregateInstance::load(self, groups, states)
    }
    fn output(&self) -> Arc<StreamSchema> {
        AggregateInstance::output(self).clone()
    }
}

/// What a module is, made ready to give instances for one stream.
pub enum Instances {
    /// Of the world `filter`.
    Filter(Make<dyn Filter>),
    /// Of the world `transform`.
    Transform(Make<dyn Transform>),
    /// Of the world `aggregate`.
    Aggregate(Make<dyn Aggregate>),
}

/// Makes a fresh instance, or says why not.
pub type Make<T> = Box<dyn Fn() -> Result<Box<T>, String>>;

/// How many failing calls one batch may cost: less than what the host would spend, since siblings in the lane wait, and
/// enough calls into the time limit to find one row that spins in the largest batch (14 halvings).
const BUDGET: Budget = Budget { failures: 256, timeouts: 16 };

/// A module's instance with what is known of its health.
pub(super) struct Guard<T: ?Sized> {
    stream: StreamName,
    pub(super) module: String,
    make: Make<T>,
    instance: Option<Box<T>>,
    on_failure: OnModuleFailure,
    failures: u32,
    rests_until_ns: Option<u64>,
    told_ns: Option<u64>,
    troubles: Troubles,
    /// Why the module is not called in this step.
    refused: Option<String>,
}

/// Why a call gave nothing.
pub(super) enum Failed {
    /// The call itself.
    Call(CallError),
    /// The fresh instance did not take the states that it needs first: no row's fault.
    Load(CallError),
}

impl From<CallError> for Failed {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

/// How often a module that fails is said to fail.
const TELL_EVERY_NS: u64 = 10_000_000_000;

impl<T: ?Sized> Guard<T> {
    pub(super) fn new(
        stream: &StreamName,
        setting: &ModuleSetting,
        make: Make<T>,
        troubles: &Troubles,
    ) -> Result<Self, StepError> {
        let mut me = Self {
            stream: stream.clone(),
            module: setting.module.to_string(),
            make,
            instance: None,
            on_failure: setting.on_failure,
            failures: 0,
            rests_until_ns: None,
            told_ns: None,
            troubles: troubles.clone(),
            refused: None,
        };
        me.instance()?;
        Ok(me)
    }

    pub(super) fn held(&self, why: String) -> StepError {
        StepError::Held { stream: self.stream.to_string(), module: self.module.clone(), why }
    }

    /// The instance, and whether it is fresh.
    pub(super) fn instance(&mut self) -> Result<(&mut T, bool), StepError> {
        let fresh = self.instance.is_none();
        if fresh {
            self.instance = Some((self.make)().map_err(|why| self.held(why))?);
        }
        let instance = self.instance.as_mut().expect("made above if it was not there");
        Ok((instance, fresh))
    }

    /// Throws the instance away after it failed.
    pub(super) fn discard(&mut self) {
        self.instance = None;
    }

    /// From now on the module is not called, for this reason, or is again.
    pub(super) fn refuse(&mut self, why: Option<&String>) {
        self.refused = why.cloned();
    }

    pub(super) fn refused(&self) -> Option<CallError> {
        self.refused.clone().map(CallError::Guest)
    }

    pub(super) fn policy(&self) -> OnModuleFailure {
        self.on_failure
    }

    /// Gives the instance its states, if need be several fresh ones after each other; `load` gets the number of the
    /// try. When the module refuses them, it is not asked again.
    pub(super) fn load(
        &mut self,
        mut load: impl FnMut(&mut T, u32) -> Result<(), CallError>,
    ) -> Result<Result<(), CallError>, StepError> {
        let mut tries = 0;
        loop {
            let (instance, _) = self.instance()?;
            let Err(error) = load(instance, tries) else { return Ok(Ok(())) };
            self.failed(&error);
            tries += 1;
            if is_refusal(&error) || tries >= LOADS_AT_ONCE {
                return Ok(Err(error));
            }
        }
    }

    /// Throws the instance away after a call of it failed.
    pub(super) fn failed(&mut self, error: &CallError) {
        self.troubles.failed(&self.stream, error);
        self.discard();
    }

    /// What to do about states that could not be loaded: wait, as the error says; or nothing more, because the lane has
    /// waited for long enough and its policy is not to wait.
    pub(super) fn not_loaded(&self, error: &CallError, now: Now) -> Result<(), StepError> {
        let out_of_patience = self.troubles.not_loaded(&self.stream, now);
        if out_of_patience && self.on_failure != OnModuleFailure::Hold {
            return Ok(());
        }
        Err(self.held(format!("it cannot take the states of its open windows: {error}")))
    }

    /// The module went through a step with its states.
    pub(super) fn loaded(&self) {
        self.troubles.loaded(&self.stream);
    }

    /// Runs `call` over the batch, in pieces if it fails. `call` gets the instance; if it is fresh, the number of the
    /// try to give it its states; a piece, and where the piece stands. Under the policy `hold` any failure is an error.
    pub(super) fn run<R>(
        &mut self,
        batch: &Batch,
        now: Now,
        mut call: impl FnMut(&mut T, Option<u32>, &Batch, Range<usize>) -> Result<R, Failed>,
    ) -> Result<Isolated<R>, StepError> {
        if let Some(error) = self.refused() {
            if self.on_failure == OnModuleFailure::Hold && batch.rows() > 0 {
                return Err(self.held(error.to_string()));
            }
            let poison = (0..batch.rows()).map(|row| PoisonRow { row, error: error.clone(), alone: false });
            return Ok(Isolated { passed: Vec::new(), poison: poison.collect() });
        }
        if self.rests_until_ns.is_some_and(|until| now.monotonic_ns < until) {
            let error = CallError::Guest("the module is suspended after repeated failures".to_owned());
            let poison = (0..batch.rows()).map(|row| PoisonRow { row, error: error.clone(), alone: false });
            return Ok(Isolated { passed: Vec::new(), poison: poison.collect() });
        }
        let mut stuck = None;
        let isolated = isolate(batch, BUDGET, |piece, at| {
            self.attempt(now, |instance, fresh| call(instance, fresh, piece, at.clone())).unwrap_or_else(
                |e| {
                    stuck = Some(e);
                    // Ends the search.
                    Err(CallError::Batch("no instance".to_owned()))
                },
            )
        });
        if let Some(stuck) = stuck {
            return Err(stuck);
        }
        let isolated = isolated
            .map_err(|e| StepError::Broken { stream: self.stream.to_string(), why: e.to_string() })?;
        self.judge(batch.rows(), &isolated, now)?;
        Ok(isolated)
    }

    /// One call; again with a fresh instance while that does not take its states.
    fn attempt<R>(
        &mut self,
        now: Now,
        mut call: impl FnMut(&mut T, Option<u32>) -> Result<R, Failed>,
    ) -> Result<Result<R, CallError>, StepError> {
        let mut loads = 0;
        loop {
            let (instance, fresh) = self.instance()?;
            match call(instance, fresh.then_some(loads)) {
                Ok(value) => return Ok(Ok(value)),
                Err(Failed::Call(error)) => {
                    self.failed(&error);
                    return Ok(Err(error));
                }
                Err(Failed::Load(error)) => {
                    self.failed(&error);
                    loads += 1;
                    if is_refusal(&error) || loads >= LOADS_AT_ONCE {
                        self.not_loaded(&error, now)?;
                        return Ok(Err(error));
                    }
                }
            }
        }
    }

    /// Keeps the count of failures in a row, and suspends.
    fn judge<R>(&mut self, rows: usize, isolated: &Isolated<R>, now: Now) -> Result<(), StepError> {
        let Some(first) = isolated.poison.first() else {
            if rows > 0 && self.failures > 0 {
                tracing::info!(stream = %self.stream, module = self.module, "the module works again");
            }
            self.failures = if rows > 0 { 0 } else { self.failures };
            self.rests_until_ns = if rows > 0 { None } else { self.rests_until_ns };
            return Ok(());
        };
        if self.on_failure == OnModuleFailure::Hold {
            return Err(self.held(first.error.to_string()));
        }
        let in_a_row = match isolated.passed.last() {
            None => self.failures.saturating_add(isolated.poison.len() as u32),
            Some((at, _)) => isolated.poison.iter().filter(|p| p.row >= at.end).count() as u32,
        };
        self.failures = in_a_row;
        if self.told_ns.is_none_or(|told| now.monotonic_ns.saturating_sub(told) >= TELL_EVERY_NS) {
            self.told_ns = Some(now.monotonic_ns);
            tracing::warn!(stream = %self.stream, module = self.module, rows = isolated.poison.len(),
                error = %first.error, "the module fails on rows");
        }
        if in_a_row >= MODULE_FAILURES_MAX {
            let rest_ns = u64::try_from(MODULE_REST.as_nanos()).unwrap_or(u64::MAX);
            self.rests_until_ns = Some(now.monotonic_ns.saturating_add(rest_ns));
            tracing::error!(stream = %self.stream, module = self.module, in_a_row, "the module is suspended");
        }
        Ok(())
    }

    /// Whether the module is suspended.
    pub(super) fn is_suspended(&self) -> bool {
        self.rests_until_ns.is_some()
    }
}

/// Whether the module itself says no; any other failure may be the fault of a busy machine.
pub(super) fn is_refusal(error: &CallError) -> bool {
    matches!(error, CallError::Guest(_))
}
