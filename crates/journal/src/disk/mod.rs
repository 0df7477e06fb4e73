//! The disk, handed in: the real one, or one that loses what was not synced and fails when told to.

mod real;
pub mod sim;

pub use real::{RealDisk, RealFile};

use std::{
    io::{self, IoSlice},
    path::Path,
};

/// A folder tree. Names become durable by [`Disk::sync_dir`] of their folder, contents by [`DiskFile::sync_data`].
pub trait Disk: Clone + Send + Sync + 'static {
    /// An open file.
    type File: DiskFile;

    /// Makes a folder with its parents and makes their names durable.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Makes a file that must not exist, for reading and writing.
    fn create(&self, path: &Path) -> io::Result<Self::File>;
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Self::File>;
    /// Opens an existing file for reading.
    fn open_read(&self, path: &Path) -> io::Result<Self::File>;
    /// Names in a folder, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Deletes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Gives a file or folder another name, replacing a file of that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Bytes that may still be written to the file system that holds `dir`.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
}

/// An open file, used by position only.
pub trait DiskFile: Send + Sync + 'static {
    /// Reads what is there, at most the buffer; 0 at the end of the file.
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize>;
    /// Writes all parts, one after the other, from `at` on.
    fn write_at(&self, parts: &[IoSlice<'_>], at: u64) -> io::Result<()>;
    /// Makes contents and length durable.
    fn sync_data(&self) -> io::Result<()>;
    /// Reserves space and makes the file at least `len` long, zeros at its end.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Cuts or extends.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// The file's length.
    fn size(&self) -> io::Result<u64>;
    /// The first place at or after `at` that may hold something but zeros; `None` when there is none.
    fn next_data(&self, at: u64) -> io::Result<Option<u64>> {
        Ok((at < self.size()?).then_some(at))
    }
}
