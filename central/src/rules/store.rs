//! The file that the rules' state lives in: replaced as a whole, so that a crash leaves the old one or the new one.

use super::state::{State, StateError};
use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

const NAME: &str = "state.json";
const UNFINISHED: &str = "state.json.new";

/// Why the state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system said no.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The file is not a state; it is left as it is, because without it alerts would be sent again as new.
    #[error("{path}: {source}; move it away to begin anew")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: StateError,
    },
}

/// The state's folder.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
    /// What the file holds, to leave out writes that change nothing.
    written: Vec<u8>,
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> StoreError + '_ {
    move |source| StoreError::Io { path: path.to_owned(), source }
}

impl Store {
    /// Opens the folder, making it where it is missing, and reads the state; none when there was none.
    pub fn open(dir: &Path) -> Result<(Self, Option<State>), StoreError> {
        fs::create_dir_all(dir).map_err(io_at(dir))?;
        let path = dir.join(NAME);
        match fs::read(&path) {
            Ok(bytes) => {
                let state = State::decode(&bytes).map_err(|source| StoreError::Content { path, source })?;
                Ok((Self { dir: dir.to_owned(), written: bytes }, Some(state)))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Ok((Self { dir: dir.to_owned(), written: Vec::new() }, None))
            }
            Err(source) => Err(StoreError::Io { path, source }),
        }
    }

    /// Makes `state` what the next [`Store::open`] reads; durable when it returns.
    pub fn save(&mut self, state: &State) -> Result<(), StoreError> {
        let bytes = state.encode();
        if bytes == self.written {
            return Ok(());
        }
        let unfinished = self.dir.join(UNFINISHED);
        let write = || {
            let mut file = File::create(&unfinished)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&unfinished, self.dir.join(NAME))?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(io_at(&unfinished))?;
        self.written = bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_read_and_damage_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let (mut store, none) = Store::open(dir.path()).expect("opens");
        assert_eq!(none, None);
        let mut state = State::default();
        state.rules.entry("g/a".into()).or_default().positions.insert(3, 7);
        store.save(&state).expect("saves");
        assert_eq!(Store::open(dir.path()).expect("opens").1, Some(state));
        // A crash before the rename leaves the old file.
        fs::write(dir.path().join(UNFINISHED), b"{").expect("writes");
        assert!(Store::open(dir.path()).expect("opens").1.is_some());
        fs::write(dir.path().join(NAME), b"{").expect("writes");
        assert!(matches!(Store::open(dir.path()), Err(StoreError::Content { .. })));
        fs::write(dir.path().join(NAME), br#"{"version":9,"groups":{},"rules":{},"outbox":{}}"#)
            .expect("writes");
        assert!(Store::open(dir.path()).expect_err("too new").to_string().contains("layout 9"));
    }
}
