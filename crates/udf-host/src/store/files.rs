//! A folder of small files that appear whole or not at all.

use super::StoreError;
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

const UNFINISHED: &str = ".unfinished";

/// Whether a name is that of a file whose writing was cut short.
pub(super) fn is_unfinished(name: &str) -> bool {
    name.ends_with(UNFINISHED)
}

#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(dir).map_err(|e| failed("making", dir, e))?;
        Ok(Self(dir.into()))
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Where a file is written before it gets its name.
    pub(super) fn unfinished(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}{UNFINISHED}"))
    }

    pub(super) fn names(&self) -> Result<Vec<String>, StoreError> {
        let list = || {
            let names = fs::read_dir(&self.0)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
            names.collect::<io::Result<Vec<_>>>()
        };
        let names = list().map_err(|e| failed("listing", &self.0, e))?;
        Ok(names.into_iter().flatten().collect())
    }

    /// The bytes of a file, if it is there.
    pub(super) fn read(&self, name: &str, max: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path(name);
        match read_bounded(&path, max) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed("reading", &path, e)),
        }
    }

    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let made = self.unfinished(name);
        let write = || File::create(&made)?.write_all(bytes);
        write().map_err(|e| failed("writing", &made, e))?;
        self.place(&made, name)
    }

    /// Gives a file that another program wrote its name, and reads it.
    pub(super) fn finish(&self, made: &Path, name: &str, max: u64) -> Result<Vec<u8>, StoreError> {
        let bytes = read_bounded(made, max).map_err(|e| failed("reading", made, e))?;
        self.place(made, name)?;
        Ok(bytes)
    }

    fn place(&self, made: &Path, name: &str) -> Result<(), StoreError> {
        let path = self.path(name);
        let place = || {
            File::open(made)?.sync_all()?;
            fs::rename(made, &path)?;
            File::open(&self.0)?.sync_all()
        };
        place().map_err(|e| failed("writing", &path, e))
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name);
        fs::remove_file(&path).map_err(|e| failed("removing", &path, e))
    }
}

fn read_bounded(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::other(format!("more than {max} bytes")));
    }
    Ok(bytes)
}

fn failed(doing: &str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { what: format!("{doing} {}", path.display()), source }
}
