//! The modules of a gateway, on disk by digest and by name, and which version of each is active.
//!
//! Files of the folder: `<digest>.wasm`, the component as it came; `<digest>.<host>.cwasm`, its native code for this
//! host, which can be made again at any time; `<name>@<version>.json`, which digest a name stands for, never changed
//! once written; `active.json`, the active version of each name and the one before it.
//!
//! Every file appears whole or not at all (written beside, synced, renamed, folder synced), the component before the
//! name that points at it. What no name points at is removed when the store opens.

mod compiler;
mod files;

pub use compiler::CompilerProgram;

use crate::{
    AggregateInstance, Artifact, FilterInstance, Host, Limits, Module, TransformInstance, UdfError, World,
    call::Session,
    engine::compatibility,
    limits::{ARTIFACT_BYTES_MAX, MODULE_BYTES_MAX},
};
use files::Folder;
use record::{Digest, ModuleRef, StreamSchema};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Why the store does not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The module is at fault; nothing was stored.
    #[error("{0}")]
    Refused(String),
    /// The name is taken by other bytes: a version never changes.
    #[error("{module} is already stored with digest {stored}: give the changed module another version")]
    Exists {
        /// The name.
        module: ModuleRef,
        /// What it stands for.
        stored: Digest,
    },
    /// There is no such module.
    #[error("there is no module {0}")]
    Unknown(String),
    /// Nothing was active before.
    #[error("there is no version of {0} to go back to")]
    NoPrevious(String),
    /// The compiler program did not do its work, through no fault of the module that it could name.
    #[error("the module compiler failed: {0}")]
    Compiler(String),
    /// A stored component is not what its name says.
    #[error("the stored component {0} is damaged: push the module again")]
    Damaged(Digest),
    /// A stored module gives no instance.
    #[error(transparent)]
    Udf(#[from] UdfError),
    /// A file.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What came of it.
        source: io::Error,
    },
}

/// A module that is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredModule {
    /// Its name and version.
    pub module: ModuleRef,
    /// Digest of its component, in hexadecimal digits.
    #[serde(with = "hex_digest")]
    pub digest: Digest,
    /// What it does.
    pub world: World,
    /// Size of its component.
    pub bytes: u64,
}

/// Which version of a name is active.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activation {
    /// The one in use.
    pub version: String,
    /// The one before it, to go back to.
    pub previous: Option<String>,
}

/// A configuration and an input to try a module with before it is stored.
#[derive(Debug, Clone)]
pub struct Trial {
    /// The JSON object of a stream's `with` table.
    pub config: String,
    /// The columns of the stream that it would read.
    pub input: Arc<StreamSchema>,
    /// What it may use.
    pub limits: Limits,
}

/// The store of one gateway. All its functions block.
#[derive(Debug)]
pub struct ModuleStore {
    folder: Folder,
    host: Host,
    compiler: CompilerProgram,
    loaded: Mutex<HashMap<ModuleRef, Module>>,
    /// Held while files change.
    changing: Mutex<()>,
}

const ACTIVE: &str = "active.json";

impl ModuleStore {
    /// Opens the folder, making it if needed, and removes what no name points at.
    pub fn open(dir: &Path, host: Host, compiler: CompilerProgram) -> Result<Self, StoreError> {
        let folder = Folder::open(dir)?;
        let store = Self { folder, host, compiler, loaded: Mutex::default(), changing: Mutex::default() };
        store.remove_unused()?;
        Ok(store)
    }

    /// Where a component lies.
    pub fn component_path(&self, digest: Digest) -> PathBuf {
        self.folder.path(&wasm_name(digest))
    }

    /// Validates, compiles, starts (or, given trials, configures for each of them) a module, and stores it under its
    /// name. To do it again with the same bytes is no error. A module that is refused leaves nothing behind.
    pub fn put(
        &self,
        module: &ModuleRef,
        bytes: &[u8],
        trials: &[Trial],
    ) -> Result<StoredModule, StoreError> {
        let _changing = lock(&self.changing);
        let size = bytes.len() as u64;
        if size > MODULE_BYTES_MAX {
            return Err(StoreError::Refused(format!(
                "the module has {size} bytes, the limit is {MODULE_BYTES_MAX}"
            )));
        }
        let digest = Digest::of(bytes);
        if let Some(stored) = self.show(module)?
            && stored.digest != digest
        {
            return Err(StoreError::Exists { module: module.clone(), stored: stored.digest });
        }
        self.folder.write(&wasm_name(digest), bytes)?;
        let tried = self.try_out(module, digest, trials);
        let world = match tried {
            Ok(world) => world,
            Err(e) => {
                self.remove_unused_now()?;
                return Err(e);
            }
        };
        let stored = StoredModule { module: module.clone(), digest, world, bytes: size };
        self.folder.write(&manifest_name(module), &json(&stored))?;
        Ok(stored)
    }

    fn try_out(&self, module: &ModuleRef, digest: Digest, trials: &[Trial]) -> Result<World, StoreError> {
        let refused = |e: UdfError| StoreError::Refused(e.to_string());
        let loaded = self.host.load(&module.to_string(), &self.artifact(digest)?).map_err(refused)?;
        if trials.is_empty() {
            drop(Session::new(&loaded, &Limits::default()).map_err(refused)?);
        }
        for t in trials {
            match loaded.world() {
                World::Filter => {
                    FilterInstance::new(&loaded, &t.config, &t.input, &t.limits).map_err(refused)?;
                }
                World::Transform => {
                    TransformInstance::new(&loaded, &t.config, &t.input, &t.limits).map_err(refused)?;
                }
                World::Aggregate => {
                    AggregateInstance::new(&loaded, &t.config, &t.input, &t.limits).map_err(refused)?;
                }
            }
        }
        Ok(loaded.world())
    }

    /// All stored modules, by name and version.
    pub fn list(&self) -> Result<Vec<StoredModule>, StoreError> {
        let mut all = Vec::new();
        for name in self.folder.names()? {
            let module = name.strip_suffix(".json").and_then(|n| n.parse::<ModuleRef>().ok());
            if let Some(module) = module {
                all.extend(self.show(&module)?);
            }
        }
        all.sort_by(|a, b| a.module.cmp(&b.module));
        Ok(all)
    }

    /// One stored module.
    pub fn show(&self, module: &ModuleRef) -> Result<Option<StoredModule>, StoreError> {
        self.read_json(&manifest_name(module))
    }

    /// Makes a stored module the active version of its name.
    pub fn activate(&self, module: &ModuleRef) -> Result<Activation, StoreError> {
        let _changing = lock(&self.changing);
        if self.show(module)?.is_none() {
            return Err(StoreError::Unknown(module.to_string()));
        }
        let mut active = self.activations()?;
        let before = active.remove(&module.name);
        let previous =
            before.and_then(|b| if b.version == module.version { b.previous } else { Some(b.version) });
        let now = Activation { version: module.version.clone(), previous };
        active.insert(module.name.clone(), now.clone());
        self.folder.write(ACTIVE, &json(&active))?;
        Ok(now)
    }

    /// Makes the version before the active one active again.
    pub fn rollback(&self, name: &str) -> Result<Activation, StoreError> {
        let previous = self.activations()?.remove(name).and_then(|a| a.previous);
        let version = previous.ok_or_else(|| StoreError::NoPrevious(name.into()))?;
        self.activate(&ModuleRef { name: name.into(), version })
    }

    /// The active version of a name.
    pub fn active(&self, name: &str) -> Result<Option<ModuleRef>, StoreError> {
        let active = self.activations()?.remove(name);
        Ok(active.map(|a| ModuleRef { name: name.into(), version: a.version }))
    }

    /// The active versions of all names.
    pub fn activations(&self) -> Result<BTreeMap<String, Activation>, StoreError> {
        Ok(self.read_json(ACTIVE)?.unwrap_or_default())
    }

    /// A stored module, ready to give instances. Native code that is missing, damaged or of another host is compiled
    /// again.
    pub fn load(&self, module: &ModuleRef) -> Result<Module, StoreError> {
        if let Some(loaded) = lock(&self.loaded).get(module) {
            return Ok(loaded.clone());
        }
        let stored = self.show(module)?.ok_or_else(|| StoreError::Unknown(module.to_string()))?;
        let loaded = {
            let _changing = lock(&self.changing);
            self.host.load(&module.to_string(), &self.artifact(stored.digest)?)?
        };
        lock(&self.loaded).insert(module.clone(), loaded.clone());
        Ok(loaded)
    }

    /// The native code of a stored component.
    fn artifact(&self, digest: Digest) -> Result<Artifact, StoreError> {
        let name = native_name(digest);
        if let Some(bytes) = self.folder.read(&name, ARTIFACT_BYTES_MAX)? {
            match Artifact::open(bytes, digest) {
                Ok(artifact) => return Ok(artifact),
                Err(e) => tracing::warn!(%digest, "native code is compiled again: {e}"),
            }
        }
        let component = self.folder.read(&wasm_name(digest), MODULE_BYTES_MAX)?;
        if component.map(|bytes| Digest::of(&bytes)) != Some(digest) {
            return Err(StoreError::Damaged(digest));
        }
        let made = self.folder.unfinished(&name);
        self.compiler.run(&self.folder.path(&wasm_name(digest)), &made)?;
        let bytes = self.folder.finish(&made, &name, ARTIFACT_BYTES_MAX)?;
        Artifact::open(bytes, digest).map_err(|e| StoreError::Compiler(e.to_string()))
    }

    /// Removes components and native code that no name points at, native code of other hosts, and unfinished files.
    pub fn remove_unused(&self) -> Result<(), StoreError> {
        let _changing = lock(&self.changing);
        self.remove_unused_now()
    }

    fn remove_unused_now(&self) -> Result<(), StoreError> {
        let digests: HashSet<Digest> = self.list()?.into_iter().map(|m| m.digest).collect();
        let used: HashSet<String> = digests.iter().flat_map(|d| [wasm_name(*d), native_name(*d)]).collect();
        for name in self.folder.names()? {
            let ours = name.ends_with(".wasm") || name.ends_with(".cwasm") || files::is_unfinished(&name);
            if ours && !used.contains(&name) {
                self.folder.remove(&name)?;
            }
        }
        Ok(())
    }

    fn read_json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StoreError> {
        let Some(bytes) = self.folder.read(name, 1 << 20)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|e| StoreError::Io {
            what: format!("reading {}", self.folder.path(name).display()),
            source: e.into(),
        })
    }
}

fn wasm_name(digest: Digest) -> String {
    format!("{digest}.wasm")
}

fn native_name(digest: Digest) -> String {
    format!("{digest}.{}.cwasm", &compatibility().to_hex()[..16])
}

fn manifest_name(module: &ModuleRef) -> String {
    format!("{module}.json")
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    let mut text =
        serde_json::to_vec_pretty(value).expect("strings, numbers and maps of strings always serialise");
    text.push(b'\n');
    text
}

/// The data behind these locks is whole at every point where a panic could strike.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

mod hex_digest {
    use record::Digest;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(digest: &Digest, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&digest.to_hex())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Digest, D::Error> {
        Digest::from_hex(&String::deserialize(d)?).map_err(D::Error::custom)
    }
}
