//! Instances of the world `transform`.

use crate::{
    CallError, Limits, Module, Needs, UdfError, World,
    call::{Function, Session},
    convert::{self, Allowance, Picks},
    filter::{configured, picked},
    wire::{BatchIn, BatchOut, Plan},
};
use record::{Batch, StreamSchema};
use std::sync::Arc;

/// Makes other events out of events.
pub struct TransformInstance {
    session: Session,
    apply: Function<(BatchIn<'static>,), Vec<BatchOut>>,
    picks: Picks,
    needs: Needs,
    output: Arc<StreamSchema>,
}

impl TransformInstance {
    /// A fresh instance, configured. `config` is a JSON object, `input` the schema of the batches to come.
    pub fn new(
        module: &Module,
        config: &str,
        input: &Arc<StreamSchema>,
        limits: &Limits,
    ) -> Result<Self, UdfError> {
        module.expect(World::Transform)?;
        let mut session = Session::new(module, limits)?;
        let plan: Plan = configured(&mut session, config, input)?;
        let apply = session.function("apply")?;
        let (needs, picks) = picked(module, plan.needs, input)?;
        let output = promised(module, plan.outputs)?;
        Ok(Self { session, apply, picks, needs, output })
    }

    /// Batches of the output's schema.
    pub fn apply(&mut self, rows: &Batch) -> Result<Vec<Batch>, CallError> {
        let taken = self.picks.take(rows)?;
        let limit = self.session.limits().output_bytes;
        let answers = taken.with(|batch| self.session.call(&self.apply, (batch,), limit))?;
        let mut allowance = Allowance::new(limit);
        let batches = answers.into_iter().map(|b| convert::batch(b, &self.output, rows, &mut allowance));
        batches.collect::<Result<_, _>>().map_err(|e| self.session.fail(e))
    }

    /// What the module asked for.
    pub fn needs(&self) -> &Needs {
        &self.needs
    }

    /// The columns of its answers.
    pub fn output(&self) -> &Arc<StreamSchema> {
        &self.output
    }

    /// Linear memory in use.
    pub fn memory_bytes(&self) -> usize {
        self.session.memory_bytes()
    }
}

/// The schema that a module promises.
pub(crate) fn promised(
    module: &Module,
    outputs: Vec<crate::wire::Field>,
) -> Result<Arc<StreamSchema>, UdfError> {
    let schema = convert::schema(outputs);
    schema.map(Arc::new).map_err(|why| UdfError::Configuration { module: module.name().into(), why })
}
