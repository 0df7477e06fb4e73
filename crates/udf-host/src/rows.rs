//! The world that the contract is not: events as rows. Only for the benchmark that measures the difference; no module
//! of this world passes validation.
#![allow(unsafe_code, reason = "wasmtime's derives, as in wire.rs")]

use crate::{Artifact, Host, UdfError};
use wasmtime::{
    Store,
    component::{ComponentType, Linker, Lower, TypedFunc},
};

const API: &str = "tidegate:bench-rows/rows-api@0.1.0";

/// A value.
#[derive(Debug, Clone, Copy, ComponentType, Lower)]
#[component(variant)]
pub enum Value<'a> {
    /// A truth value.
    #[component(name = "boolean")]
    Boolean(bool),
    /// An integer.
    #[component(name = "integer")]
    Integer(i64),
    /// A number.
    #[component(name = "float")]
    Float(f64),
    /// Text.
    #[component(name = "text")]
    Text(&'a str),
}

/// A field of an event.
#[derive(Debug, Clone, Copy, ComponentType, Lower)]
#[component(record)]
pub struct Cell<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its value.
    pub value: Value<'a>,
}

/// An event.
#[derive(Debug, Clone, Copy, ComponentType, Lower)]
#[component(record)]
pub struct Event<'a> {
    /// Its device.
    pub device: &'a str,
    /// Its time.
    pub time: i64,
    /// Its fields.
    pub cells: &'a [Cell<'a>],
}

/// An instance of `wasm-udfs/bench-rows`.
pub struct RowsInstance {
    store: Store<()>,
    keep: TypedFunc<(&'static [Event<'static>],), (Vec<bool>,)>,
    update: TypedFunc<(&'static [Event<'static>], &'static [u32], u32), ()>,
}

impl RowsInstance {
    /// Starts the component with the host's own engine, epochs included.
    pub fn new(host: &Host, artifact: &Artifact) -> Result<Self, UdfError> {
        let component = host.component(artifact)?;
        let start = || -> wasmtime::Result<Self> {
            let mut store = Store::new(host.engine(), ());
            store.set_epoch_deadline(u64::MAX / 2);
            let instance = Linker::new(host.engine()).instantiate(&mut store, &component)?;
            let api = instance.get_export_index(&mut store, None, API);
            let mut function = |name: &str| {
                let index = instance.get_export_index(&mut store, api.as_ref(), name);
                index.ok_or_else(|| wasmtime::Error::msg(format!("no function {name}")))
            };
            let (keep, update) = (function("keep")?, function("update")?);
            let keep = instance.get_typed_func(&mut store, keep)?;
            let update = instance.get_typed_func(&mut store, update)?;
            Ok(Self { store, keep, update })
        };
        start().map_err(|e| UdfError::Engine(format!("{e:#}")))
    }

    /// Which events stay.
    pub fn keep(&mut self, events: &[Event<'_>]) -> Result<Vec<bool>, UdfError> {
        let answer = self.keep.call(&mut self.store, (events,));
        Ok(answer.map_err(|e| UdfError::Engine(format!("{e:#}")))?.0)
    }

    /// Adds events to groups.
    pub fn update(&mut self, events: &[Event<'_>], group: &[u32], count: u32) -> Result<(), UdfError> {
        let answer = self.update.call(&mut self.store, (events, group, count));
        answer.map_err(|e| UdfError::Engine(format!("{e:#}")))
    }
}
