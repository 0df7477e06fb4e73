//! One instance and the calls into it: deadline, budget of the answer, and what an ending means.

use crate::{
    CallError, Limits, Module, UdfError,
    context::{Context, OverMemory},
    contract::api_name,
    error::bounded,
    host::Permit,
    limits::{ERROR_BYTES_MAX, OUTPUT_BYTES_MIN},
    ticker::Ticker,
};
use wasmtime::{
    Store, Trap,
    component::{ComponentExportIndex, ComponentNamedList, Instance, Lift, Lower, TypedFunc},
};

/// A function of the contract: all of them answer with a value or a text.
pub(crate) type Function<P, R> = TypedFunc<P, (Result<R, String>,)>;

/// An instance with its store.
pub(crate) struct Session {
    store: Store<Context>,
    instance: Instance,
    api: ComponentExportIndex,
    module: Module,
    limits: Limits,
    deadline_ticks: u64,
    used_up: bool,
    _permit: Permit,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("module", &self.module.name())
            .field("memory_bytes", &self.memory_bytes())
            .field("used_up", &self.used_up)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// A fresh instance, under all limits from its first instruction on.
    pub(crate) fn new(module: &Module, limits: &Limits) -> Result<Self, UdfError> {
        let permit = module.host().permit(module.name())?;
        let mut store = Store::new(module.host().engine(), Context::new(module.name(), limits));
        store.limiter(|context| context);
        let deadline_ticks = Ticker::ticks_for(limits.call_time);
        let running = module.host().ticker().enter();
        store.set_epoch_deadline(deadline_ticks);
        store.set_hostcall_fuel(OUTPUT_BYTES_MIN);
        store.data_mut().begin(module.host().ticker().ticks());
        let instance = module.pre().instantiate(&mut store).map_err(|e| UdfError::Start {
            module: module.name().into(),
            error: ending(&e, &mut store, limits, OUTPUT_BYTES_MIN),
        })?;
        drop(running);
        let name = api_name(module.world(), module.contract_version());
        let api = instance
            .get_export_index(&mut store, None, &name)
            .ok_or_else(|| UdfError::Engine(format!("export {name} is gone")))?;
        let (module, limits) = (module.clone(), limits.clone());
        Ok(Self { store, instance, api, module, limits, deadline_ticks, used_up: false, _permit: permit })
    }

    pub(crate) fn module(&self) -> &Module {
        &self.module
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Linear memory in use.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.store.data().memory_bytes()
    }

    /// A function of the world's interface, its types checked.
    pub(crate) fn function<P, R>(&mut self, name: &str) -> Result<TypedFunc<P, R>, UdfError>
    where
        P: ComponentNamedList + Lower,
        R: ComponentNamedList + Lift,
    {
        let wrong = |why: String| UdfError::Configuration { module: self.module.name().into(), why };
        let Some(index) = self.instance.get_export_index(&mut self.store, Some(&self.api), name) else {
            return Err(wrong(format!("it does not export the function {name}")));
        };
        self.instance.get_typed_func(&mut self.store, index).map_err(|e| {
            wrong(format!("its function {name} is not that of the contract: {}", e.root_cause()))
        })
    }

    /// A call of a function whose answer is a value or a text.
    pub(crate) fn call<P, R>(
        &mut self,
        function: &Function<P, R>,
        params: P,
        output_bytes: usize,
    ) -> Result<R, CallError>
    where
        P: ComponentNamedList + Lower,
        R: Lift + 'static,
        (Result<R, String>,): ComponentNamedList + Lift,
    {
        let (answer,) = self.call_plain(function, params, output_bytes)?;
        answer.map_err(|text| self.fail(CallError::Guest(bounded(&text, ERROR_BYTES_MAX))))
    }

    /// A call of any function.
    pub(crate) fn call_plain<P, R>(
        &mut self,
        function: &TypedFunc<P, R>,
        params: P,
        output_bytes: usize,
    ) -> Result<R, CallError>
    where
        P: ComponentNamedList + Lower,
        R: ComponentNamedList + Lift + 'static,
    {
        if self.used_up {
            return Err(CallError::Trap("the instance failed before and is used up".into()));
        }
        let output_bytes =
            output_bytes.clamp(OUTPUT_BYTES_MIN, self.limits.output_bytes.max(OUTPUT_BYTES_MIN));
        let ticker = self.module.host().ticker();
        let running = ticker.enter();
        self.store.set_epoch_deadline(self.deadline_ticks);
        self.store.set_hostcall_fuel(output_bytes);
        self.store.data_mut().begin(ticker.ticks());
        let answer = function.call(&mut self.store, params);
        drop(running);
        answer.map_err(|e| {
            let error = ending(&e, &mut self.store, &self.limits, output_bytes);
            self.fail(error)
        })
    }

    /// Remembers that the instance cannot be trusted any more.
    pub(crate) fn fail(&mut self, error: CallError) -> CallError {
        self.used_up = true;
        error
    }
}

/// What the engine's error means for the caller.
fn ending(
    error: &wasmtime::Error,
    store: &mut Store<Context>,
    limits: &Limits,
    output_bytes: usize,
) -> CallError {
    if let Some(over) = error.downcast_ref::<OverMemory>() {
        return CallError::Memory { limit: over.limit };
    }
    let words = store.data_mut().take_last_error();
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => return CallError::Timeout { limit: limits.call_time },
        Some(trap) => {
            let why = words.map_or_else(|| trap.to_string(), |words| format!("{trap}: {words}"));
            return CallError::Trap(bounded(&why, ERROR_BYTES_MAX));
        }
        None => {}
    }
    let why = error.root_cause().to_string();
    // The engine's error for this has no public type.
    if why.contains("fuel allocated for hostcalls has been exhausted") {
        return CallError::Output { limit: output_bytes };
    }
    CallError::Trap(bounded(&why, ERROR_BYTES_MAX))
}
