//! The engine, its clock, and the modules loaded into it.

use crate::{
    Artifact, ArtifactError, UdfError, World,
    context::Context,
    contract::{CONTRACT_VERSIONS, check_import, log_name, world_of},
    engine::engine_config,
    limits::INSTANCES_MAX,
    ticker::Ticker,
    wire::Level,
};
use record::Digest;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};
use wasmtime::{
    Engine, StoreContextMut,
    component::{Component, InstancePre, Linker},
};

/// What a host may hold.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// Instances at a time.
    pub instances: usize,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self { instances: INSTANCES_MAX }
    }
}

/// One engine with its clock; cheap to clone. The last clone stops the clock.
#[derive(Clone)]
pub struct Host(Arc<Inner>);

struct Inner {
    engine: Engine,
    ticker: Ticker,
    linker: Linker<Context>,
    instances: AtomicUsize,
    instances_max: usize,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("instances", &self.instances()).finish_non_exhaustive()
    }
}

/// The right to one instance.
pub(crate) struct Permit(Host);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.0.instances.fetch_sub(1, SeqCst);
    }
}

impl Host {
    /// Starts the engine and its clock.
    pub fn new(config: HostConfig) -> Result<Self, UdfError> {
        let engine_error = |e: wasmtime::Error| UdfError::Engine(format!("{e:#}"));
        let engine = Engine::new(&engine_config().map_err(engine_error)?).map_err(engine_error)?;
        let linker = linker(&engine).map_err(engine_error)?;
        let ticker = Ticker::start(engine.clone()).map_err(|e| UdfError::Engine(e.to_string()))?;
        let (instances, instances_max) = (AtomicUsize::new(0), config.instances);
        Ok(Self(Arc::new(Inner { engine, ticker, linker, instances, instances_max })))
    }

    /// Instances that live now.
    pub fn instances(&self) -> usize {
        self.0.instances.load(SeqCst)
    }

    /// Loads native code. `name` stands in messages and log lines.
    pub fn load(&self, name: &str, artifact: &Artifact) -> Result<Module, UdfError> {
        let component = self.component(artifact)?;
        let ty = component.component_type();
        for (import, _) in ty.imports(&self.0.engine) {
            check_import(import)?;
        }
        let (world, version) = world_of(ty.exports(&self.0.engine).map(|(name, _)| name))?;
        let pre = self.0.linker.instantiate_pre(&component).map_err(|e| UdfError::Configuration {
            module: name.into(),
            why: format!("its imports are not those of the contract: {}", e.root_cause()),
        })?;
        let (host, name, digest) = (self.clone(), name.to_string(), artifact.module());
        Ok(Module(Arc::new(ModuleInner { host, name, digest, world, version, pre })))
    }

    #[allow(unsafe_code, reason = "loading native code")]
    pub(crate) fn component(&self, artifact: &Artifact) -> Result<Component, ArtifactError> {
        // SAFETY: `deserialize` runs whatever these bytes say. An `Artifact` exists only after its digest was checked
        // against the header that the compiler wrote, for this module and this host's configuration, or fresh from the
        // compiler; its file lies in the gateway's own folder, and users have no way to hand one in.
        let component = unsafe { Component::deserialize(&self.0.engine, artifact.code()) };
        component.map_err(|e| ArtifactError::Engine(format!("{e:#}")))
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.0.engine
    }

    pub(crate) fn ticker(&self) -> &Ticker {
        &self.0.ticker
    }

    pub(crate) fn permit(&self, module: &str) -> Result<Permit, UdfError> {
        let limit = self.0.instances_max;
        let more = |n: usize| (n < limit).then_some(n + 1);
        match self.0.instances.fetch_update(SeqCst, SeqCst, more) {
            Ok(_) => Ok(Permit(self.clone())),
            Err(_) => Err(UdfError::Instances { module: module.into(), limit }),
        }
    }
}

/// All that a module may import.
fn linker(engine: &Engine) -> wasmtime::Result<Linker<Context>> {
    let mut linker = Linker::new(engine);
    for version in CONTRACT_VERSIONS {
        let write = |mut store: StoreContextMut<'_, Context>, (level, message): (Level, String)| {
            store.data_mut().log(level, &message);
            Ok(())
        };
        linker.root().instance(&log_name(version))?.func_wrap("write", write)?;
    }
    Ok(linker)
}

/// A loaded module; cheap to clone.
#[derive(Clone)]
pub struct Module(Arc<ModuleInner>);

struct ModuleInner {
    host: Host,
    name: String,
    digest: Digest,
    world: World,
    version: &'static str,
    pre: InstancePre<Context>,
}

impl std::fmt::Debug for Module {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Module")
            .field("name", &self.0.name)
            .field("world", &self.0.world)
            .finish_non_exhaustive()
    }
}

impl Module {
    /// The name it was loaded under.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Digest of its component.
    pub fn digest(&self) -> Digest {
        self.0.digest
    }

    /// What it does.
    pub fn world(&self) -> World {
        self.0.world
    }

    /// The version of the contract that it was made for.
    pub fn contract_version(&self) -> &'static str {
        self.0.version
    }

    /// Refuses another world.
    pub(crate) fn expect(&self, expected: World) -> Result<(), UdfError> {
        let found = self.world();
        if found == expected {
            return Ok(());
        }
        Err(UdfError::WrongWorld { module: self.name().into(), found, expected })
    }

    pub(crate) fn host(&self) -> &Host {
        &self.0.host
    }

    pub(crate) fn pre(&self) -> &InstancePre<Context> {
        &self.0.pre
    }
}
