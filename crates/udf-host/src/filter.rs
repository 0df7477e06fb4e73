//! Instances of the world `filter`.

use crate::{
    Bitmap, CallError, Limits, Module, Needs, UdfError, World,
    call::{Function, Session},
    convert::{Picks, fields},
    limits::OUTPUT_BYTES_MIN,
    wire::{self, BatchIn, Field},
};
use record::{Batch, StreamSchema};
use std::sync::Arc;
use wasmtime::component::Lift;

type Keep = Function<(BatchIn<'static>,), Vec<u64>>;

/// Decides for each event whether it stays.
pub struct FilterInstance {
    session: Session,
    keep: Keep,
    picks: Picks,
    needs: Needs,
}

impl FilterInstance {
    /// A fresh instance, configured. `config` is a JSON object, `input` the schema of the batches to come.
    pub fn new(
        module: &Module,
        config: &str,
        input: &Arc<StreamSchema>,
        limits: &Limits,
    ) -> Result<Self, UdfError> {
        module.expect(World::Filter)?;
        let mut session = Session::new(module, limits)?;
        let needs = configured(&mut session, config, input)?;
        let keep = session.function("keep")?;
        let (needs, picks) = picked(module, needs, input)?;
        Ok(Self { session, keep, picks, needs })
    }

    /// Which rows stay.
    pub fn keep(&mut self, rows: &Batch) -> Result<Bitmap, CallError> {
        let taken = self.picks.take(rows)?;
        // The answer has a bit a row, so there is no need for the whole allowance.
        let output_bytes = rows.rows() / 8;
        let words = taken.with(|batch| self.session.call(&self.keep, (batch,), output_bytes))?;
        Bitmap::answered(words, rows.rows()).map_err(|e| self.session.fail(e))
    }

    /// What the module asked for.
    pub fn needs(&self) -> &Needs {
        &self.needs
    }

    /// Linear memory in use.
    pub fn memory_bytes(&self) -> usize {
        self.session.memory_bytes()
    }
}

/// Calls `configure`, of any world.
pub(crate) fn configured<R: Lift + 'static>(
    session: &mut Session,
    config: &str,
    input: &StreamSchema,
) -> Result<R, UdfError> {
    let configure = session.function::<(&str, &[Field]), (Result<R, String>,)>("configure")?;
    let fields = fields(input);
    let answer = session.call(&configure, (config, &fields[..]), OUTPUT_BYTES_MIN * 16);
    let module = session.module().name().to_string();
    answer.map_err(|error| match error {
        CallError::Guest(why) => UdfError::Configuration { module, why },
        error => UdfError::Start { module, error },
    })
}

/// The needs as the caller sees them, and resolved against the input.
pub(crate) fn picked(
    module: &Module,
    needs: wire::Needs,
    input: &Arc<StreamSchema>,
) -> Result<(Needs, Picks), UdfError> {
    let needs = Needs { times: needs.times, devices: needs.devices, columns: needs.columns };
    let picks = Picks::new(input, &needs)
        .map_err(|why| UdfError::Configuration { module: module.name().into(), why })?;
    Ok((needs, picks))
}
