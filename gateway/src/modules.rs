//! The user's modules as the gateway holds them: put in by the configuration or over the admin API, given to lanes.
//!
//! A stream uses the version that was activated last, or, if none was, the one that its configuration names. A module
//! that is not there yet makes its lane wait; putting it in wakes the lanes, which begin anew at a frame boundary.

use crate::{
    admin::version_in_use,
    config::{self, ModuleLimits, ModuleSetting, Stream},
    limits::MODULE_BYTES_MAX,
    step::{Aggregate, Filter, Instances, Transform},
};
use record::{Digest, StreamSchema};
use std::{path::Path, sync::Arc};
use tokio::sync::watch;
use udf_host::{
    AggregateInstance, CompilerProgram, FilterInstance, Host, HostConfig, Limits, ModuleStore, StoreError,
    TransformInstance, UdfError, World,
};

/// All modules of a gateway.
pub struct Modules {
    store: Arc<ModuleStore>,
    changed: watch::Sender<u64>,
}

/// Why modules cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    /// The engine.
    #[error(transparent)]
    Engine(#[from] UdfError),
    /// The folder.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The compiler program.
    #[error("cannot tell where the module compiler is: {0}")]
    Compiler(std::io::Error),
}

impl Modules {
    /// Opens the folder.
    pub fn open(dir: &Path, settings: &config::Modules) -> Result<Self, ModulesError> {
        let host = Host::new(HostConfig::default())?;
        let compiler = match &settings.compiler {
            Some(path) => CompilerProgram::at(path),
            None => CompilerProgram::beside_current_exe().map_err(ModulesError::Compiler)?,
        };
        let store = ModuleStore::open(dir, host, compiler)?;
        let store = Arc::new(store);
        Ok(Self { store, changed: watch::channel(0).0 })
    }

    /// Changes whenever a module was put in.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Puts in what the configuration names and is not there yet. Blocks; says in the log what went wrong, because a
    /// lane that misses its module says so for as long as it does.
    pub fn preload(&self, settings: &config::Modules) {
        for (module, path) in &settings.preload {
            if let Ok(Some(stored)) = self.store.show(module) {
                if std::fs::read(path).is_ok_and(|bytes| Digest::of(&bytes) != stored.digest) {
                    tracing::error!(%module, path = %path.display(), stored = %stored.digest,
                        "the file is not what was stored under this version, and what was stored stays: give the module another version");
                }
                continue;
            }
            let size = std::fs::metadata(path).map_or(0, |m| m.len());
            if size > MODULE_BYTES_MAX as u64 {
                tracing::error!(%module, path = %path.display(), size, "the module is too large");
                continue;
            }
            match std::fs::read(path) {
                Ok(bytes) => {
                    match self.store.put(module, &bytes, &[]) {
                        Ok(stored) => tracing::info!(%module, digest = %stored.digest, "module stored"),
                        Err(error) => {
                            tracing::error!(%module, path = %path.display(), %error, "the module is refused");
                        }
                    }
                    self.changed.send_modify(|n| *n += 1);
                }
                Err(error) => {
                    tracing::error!(%module, path = %path.display(), %error, "cannot read the module")
                }
            }
        }
    }

    /// The store itself.
    pub fn store(&self) -> &Arc<ModuleStore> {
        &self.store
    }

    /// To be counted up when another version of a module may be in use.
    pub fn changes(&self) -> watch::Sender<u64> {
        self.changed.clone()
    }

    /// The module of a stream, for the columns of its parent. Blocks.
    pub fn for_stream(&self, stream: &Stream, input: &Arc<StreamSchema>) -> Result<Instances, String> {
        let setting = stream.module.as_ref().ok_or("the stream has no module")?;
        let version = version_in_use(&self.store, &setting.module).map_err(|e| e.to_string())?;
        let module = self.store.load(&version).map_err(|e| e.to_string())?;
        let ModuleSetting { with, limits, .. } = setting.clone();
        let (input, limits) = (input.clone(), of(limits));
        let words = |e: UdfError| e.to_string();
        Ok(match module.world() {
            World::Filter => Instances::Filter(Box::new(move || {
                let made = FilterInstance::new(&module, &with, &input, &limits);
                made.map(|i| Box::new(i) as Box<dyn Filter>).map_err(words)
            })),
            World::Transform => Instances::Transform(Box::new(move || {
                let made = TransformInstance::new(&module, &with, &input, &limits);
                made.map(|i| Box::new(i) as Box<dyn Transform>).map_err(words)
            })),
            World::Aggregate => Instances::Aggregate(Box::new(move || {
                let made = AggregateInstance::new(&module, &with, &input, &limits);
                made.map(|i| Box::new(i) as Box<dyn Aggregate>).map_err(words)
            })),
        })
    }
}

fn of(limits: ModuleLimits) -> Limits {
    Limits {
        memory_bytes: usize::try_from(limits.memory_bytes).unwrap_or(usize::MAX),
        call_time: limits.time,
        output_bytes: usize::try_from(limits.output_bytes).unwrap_or(usize::MAX),
        ..Limits::default()
    }
}
