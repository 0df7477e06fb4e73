//! Instances of the world `aggregate`.

use crate::{
    CallError, Limits, Module, Needs, UdfError, World,
    call::{Function, Session},
    convert::{self, Allowance, Picks},
    filter::{configured, picked},
    transform::promised,
    wire::{BatchIn, ColumnOut, Plan},
};
use record::{Batch, StreamSchema, arrow::array::ArrayRef};
use std::sync::Arc;
use wasmtime::component::{ResourceAny, TypedFunc};

/// Grouped arithmetic. The groups are numbers from 0 that the caller gives out and takes back; a group that was never
/// used, or was [cleared](AggregateInstance::clear), has seen nothing.
pub struct AggregateInstance {
    session: Session,
    groups: ResourceAny,
    functions: Functions,
    picks: Picks,
    needs: Needs,
    output: Arc<StreamSchema>,
}

/// Numbers of groups, going in. Calls may use any shorter lifetime.
type Groups = &'static [u32];
/// States, going in.
type States = &'static [Vec<u8>];

struct Functions {
    update: Function<(ResourceAny, BatchIn<'static>, Groups, u32), ()>,
    finish: Function<(ResourceAny, Groups), Vec<ColumnOut>>,
    save: Function<(ResourceAny, Groups), Vec<Vec<u8>>>,
    load: Function<(ResourceAny, Groups, States), ()>,
    merge: Function<(ResourceAny, Groups, Groups), ()>,
}

impl AggregateInstance {
    /// A fresh instance, configured and without groups. `config` is a JSON object, `input` the schema of the batches
    /// to come.
    pub fn new(
        module: &Module,
        config: &str,
        input: &Arc<StreamSchema>,
        limits: &Limits,
    ) -> Result<Self, UdfError> {
        module.expect(World::Aggregate)?;
        let mut session = Session::new(module, limits)?;
        let plan: Plan = configured(&mut session, config, input)?;
        let functions = Functions {
            update: session.function("[method]groups.update")?,
            finish: session.function("[method]groups.finish")?,
            save: session.function("[method]groups.save")?,
            load: session.function("[method]groups.load")?,
            merge: session.function("[method]groups.merge")?,
        };
        let (needs, picks) = picked(module, plan.needs, input)?;
        let output = promised(module, plan.outputs)?;
        let constructor: TypedFunc<(), (ResourceAny,)> = session.function("[constructor]groups")?;
        let start = |error| UdfError::Start { module: module.name().into(), error };
        let (groups,) = session.call_plain(&constructor, (), 0).map_err(start)?;
        Ok(Self { session, groups, functions, picks, needs, output })
    }

    /// Adds row i to group `groups[i]`; every number is below `group_count`.
    pub fn update(&mut self, rows: &Batch, groups: &[u32], group_count: u32) -> Result<(), CallError> {
        if groups.len() != rows.rows() {
            return Err(CallError::Batch(format!("{} groups for {} rows", groups.len(), rows.rows())));
        }
        if let Some(group) = groups.iter().find(|g| **g >= group_count) {
            return Err(CallError::Batch(format!("group {group} of {group_count}")));
        }
        let (it, update) = (self.groups, self.functions.update);
        let taken = self.picks.take(rows)?;
        taken.with(|batch| self.session.call(&update, (it, batch, groups, group_count), 0))
    }

    /// The output's columns, one row for each of the groups, in that order. The states stay as they are.
    pub fn finish(&mut self, groups: &[u32]) -> Result<Vec<ArrayRef>, CallError> {
        let limit = self.session.limits().output_bytes;
        let columns = self.session.call(&self.functions.finish, (self.groups, groups), limit)?;
        let arrays = convert::arrays(columns, &self.output, groups.len(), &mut Allowance::new(limit));
        arrays.map_err(|e| self.session.fail(e))
    }

    /// The state of each of the groups.
    pub fn save(&mut self, groups: &[u32]) -> Result<Vec<Vec<u8>>, CallError> {
        let limit = self.session.limits().output_bytes;
        let states = self.session.call(&self.functions.save, (self.groups, groups), limit)?;
        if states.len() != groups.len() {
            let why = format!("{} states for {} groups", states.len(), groups.len());
            return Err(self.session.fail(CallError::Answer(why)));
        }
        Ok(states)
    }

    /// Puts a saved state in the place of each of the groups; a state without bytes makes its group empty.
    pub fn load(&mut self, groups: &[u32], states: &[Vec<u8>]) -> Result<(), CallError> {
        if groups.len() != states.len() {
            return Err(CallError::Batch(format!("{} states for {} groups", states.len(), groups.len())));
        }
        self.session.call(&self.functions.load, (self.groups, groups, states), 0)
    }

    /// Makes groups empty, so that their numbers can be given out again.
    pub fn clear(&mut self, groups: &[u32]) -> Result<(), CallError> {
        self.load(groups, &vec![Vec::new(); groups.len()])
    }

    /// Adds the state of each group in `source` to the one at the same place in `target`, and makes it empty.
    pub fn merge(&mut self, target: &[u32], source: &[u32]) -> Result<(), CallError> {
        if target.len() != source.len() {
            return Err(CallError::Batch(format!("{} targets for {} sources", target.len(), source.len())));
        }
        self.session.call(&self.functions.merge, (self.groups, target, source), 0)
    }

    /// What the module asked for.
    pub fn needs(&self) -> &Needs {
        &self.needs
    }

    /// The columns of its results.
    pub fn output(&self) -> &Arc<StreamSchema> {
        &self.output
    }

    /// Linear memory in use.
    pub fn memory_bytes(&self) -> usize {
        self.session.memory_bytes()
    }
}
