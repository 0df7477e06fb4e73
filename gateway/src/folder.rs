//! The data folder: one process, one identity.
//!
//! `lock` is held for as long as the process lives; `identity.json` holds the incarnation, drawn once when the folder is
//! made; `broker-SOURCE.json` what is subscribed to at a broker; `input/` and `output/` are the logs, `modules/` the user's modules, `meta.sled/` the rebuildable index.

use journal::{DirLock, JournalError};
use record::{GatewayId, Incarnation, clock::Random};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

/// A locked data folder.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    incarnation: Incarnation,
    _lock: DirLock,
}

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The lock, or a second process.
    #[error(transparent)]
    Lock(#[from] JournalError),
    /// The operating system.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// The identity file.
    #[error("{path} is not the identity of a gateway's folder: {why}")]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Identity {
    version: u32,
    gateway: GatewayId,
    /// 16 hexadecimal digits: JSON's numbers are not wide enough in every reader.
    incarnation: String,
}

impl Folder {
    /// Opens and locks a folder; makes it, with a new incarnation, when it is not there.
    pub fn open(path: &Path, gateway: &GatewayId, random: &dyn Random) -> Result<Self, FolderError> {
        fs::create_dir_all(path).map_err(io_error("make the folder", path))?;
        fs::read_dir(path).map_err(io_error("read the folder", path))?;
        let lock = DirLock::acquire(&path.join("lock"))?;
        let file = path.join("identity.json");
        let identity = match fs::read(&file) {
            Ok(bytes) => {
                read_identity(&bytes, gateway).map_err(|why| FolderError::Identity { path: file, why })?
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let logs = ["input", "output"].map(|d| path.join(d)).into_iter().find(|d| d.exists());
                if let Some(log) = logs {
                    let why = format!("it is missing, but {} is there", log.display());
                    return Err(FolderError::Identity { path: file, why });
                }
                // 0 would read as "none".
                let incarnation = Incarnation(random.next_u64().max(1));
                write_identity(&file, gateway, incarnation)?;
                incarnation
            }
            Err(e) => return Err(io_error("read", &file)(e)),
        };
        Ok(Self { path: path.to_owned(), incarnation: identity, _lock: lock })
    }

    /// The life of the folder.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The input log's folder.
    pub fn input(&self) -> PathBuf {
        self.path.join("input")
    }

    /// The output log's folder.
    pub fn output(&self) -> PathBuf {
        self.path.join("output")
    }

    /// The modules' folder.
    pub fn modules(&self) -> PathBuf {
        self.path.join("modules")
    }

    /// The index's folder.
    pub fn index(&self) -> PathBuf {
        self.path.join("meta.sled")
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError::Io { action, path, source }
}

fn read_identity(bytes: &[u8], gateway: &GatewayId) -> Result<Incarnation, String> {
    let identity: Identity = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if identity.version != 1 {
        return Err(format!("version {} is not known", identity.version));
    }
    if identity.gateway != *gateway {
        return Err(format!(
            "the folder belongs to gateway {:?}, this one is {:?}",
            identity.gateway.as_str(),
            gateway.as_str()
        ));
    }
    u64::from_str_radix(&identity.incarnation, 16).map(Incarnation).map_err(|e| e.to_string())
}

fn write_identity(file: &Path, gateway: &GatewayId, incarnation: Incarnation) -> Result<(), FolderError> {
    let identity = Identity { version: 1, gateway: gateway.clone(), incarnation: incarnation.to_string() };
    let text = serde_json::to_vec_pretty(&identity)
        .map_err(|e| FolderError::Identity { path: file.to_owned(), why: e.to_string() })?;
    replace(file, &text)
}

/// Writes a small file aside and renames it: a crash leaves what was there before or all of the new one.
pub(crate) fn replace(file: &Path, bytes: &[u8]) -> Result<(), FolderError> {
    let aside = file.with_extension("json.new");
    let mut out = fs::File::create(&aside).map_err(io_error("make", &aside))?;
    out.write_all(bytes).and_then(|()| out.sync_all()).map_err(io_error("write", &aside))?;
    fs::rename(&aside, file).map_err(io_error("rename", &aside))?;
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::File::open(folder).and_then(|d| d.sync_all()).map_err(io_error("sync", folder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::clock::SeededRandom;

    #[test]
    fn an_identity_is_drawn_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (id, other) = (GatewayId::new("plant-7").unwrap(), GatewayId::new("plant-8").unwrap());
        let path = dir.path().join("deep/data");
        let first = Folder::open(&path, &id, &SeededRandom::new(1)).unwrap();
        let incarnation = first.incarnation();
        let second = Folder::open(&path, &id, &SeededRandom::new(2)).unwrap_err();
        assert!(matches!(second, FolderError::Lock(JournalError::Locked { .. })), "{second}");
        drop(first);
        assert_eq!(Folder::open(&path, &id, &SeededRandom::new(3)).unwrap().incarnation(), incarnation);
        assert!(matches!(
            Folder::open(&path, &other, &SeededRandom::new(3)),
            Err(FolderError::Identity { .. })
        ));
    }

    #[test]
    fn logs_without_an_identity_are_not_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("output")).unwrap();
        let id = GatewayId::new("plant-7").unwrap();
        let refused = Folder::open(dir.path(), &id, &SeededRandom::new(1)).unwrap_err();
        assert!(refused.to_string().contains("identity.json"), "{refused}");
    }

    #[test]
    fn a_file_in_its_place_is_a_clear_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        fs::write(&path, b"x").unwrap();
        let id = GatewayId::new("plant-7").unwrap();
        let refused = Folder::open(&path, &id, &SeededRandom::new(1)).unwrap_err();
        assert!(refused.to_string().contains("cannot make the folder"), "{refused}");
    }
}
