//! The exact bytes of all segments against a bound, and the free space of the file system.
//!
//! Every log that was opened with the same quota counts the length of its files here when they are made, found
//! at start or deleted, so the sum is exact from the first moment of a start. Who is told "no" first is policy of
//! the caller: intake asks with a reserve ([`Quota::admits`]), so that work which frees space still finds room.

use crate::{disk::Disk, error::JournalError};
use std::{
    fmt, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

/// Shared by the logs of one data folder.
#[derive(Clone)]
pub struct Quota(Arc<Inner>);

struct Inner {
    limit: u64,
    headroom: u64,
    used: AtomicU64,
    free: AtomicU64,
    probe: Box<dyn Fn() -> io::Result<u64> + Send + Sync>,
}

impl Quota {
    /// A bound of `limit` bytes for segments in `dir`, which must exist; `headroom` bytes of the file system
    /// are never touched.
    pub fn new<D: Disk>(disk: &D, dir: &Path, limit: u64, headroom: u64) -> Result<Self, JournalError> {
        let free = disk.free_bytes(dir).map_err(JournalError::io("ask the free space of", dir))?;
        let (disk, dir) = (disk.clone(), dir.to_owned());
        let probe = Box::new(move || disk.free_bytes(&dir));
        Ok(Self(Arc::new(Inner {
            limit,
            headroom,
            used: AtomicU64::new(0),
            free: AtomicU64::new(free),
            probe,
        })))
    }

    /// Bytes of all segments.
    pub fn used(&self) -> u64 {
        self.0.used.load(SeqCst)
    }

    /// The configured bound.
    pub fn limit(&self) -> u64 {
        self.0.limit
    }

    /// Bytes that may still be taken: what the bound leaves or what the disk leaves, the smaller.
    pub fn room(&self) -> u64 {
        let by_limit = self.0.limit.saturating_sub(self.used());
        by_limit.min(self.0.free.load(SeqCst).saturating_sub(self.0.headroom))
    }

    /// Whether `bytes` more would fit. A "no" is given only after the disk was asked again.
    pub fn admits(&self, bytes: u64) -> bool {
        if self.room() >= bytes {
            return true;
        }
        self.refresh();
        self.room() >= bytes
    }

    /// Asks the file system how much is free; others write to it too.
    pub fn refresh(&self) {
        if let Ok(free) = (self.0.probe)() {
            self.0.free.store(free, SeqCst);
        }
    }

    /// Takes room for a new segment, or for what a frame needs beyond one. Several logs may ask at a time: what is
    /// counted never passes the bound.
    pub(crate) fn take(&self, bytes: u64) -> Result<(), JournalError> {
        self.refresh();
        let limit = self.0.limit;
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= limit);
        let over = |used| JournalError::OverQuota { used, limit, wanted: bytes };
        if self.0.free.load(SeqCst).saturating_sub(self.0.headroom) < bytes {
            return Err(over(self.used()));
        }
        self.0.used.fetch_update(SeqCst, SeqCst, fits).map_err(over)?;
        let _ = self.0.free.fetch_update(SeqCst, SeqCst, |free| Some(free.saturating_sub(bytes)));
        Ok(())
    }

    /// Counts what is there, asked or not.
    pub(crate) fn add(&self, bytes: u64) {
        self.0.used.fetch_add(bytes, SeqCst);
        let _ = self.0.free.fetch_update(SeqCst, SeqCst, |free| Some(free.saturating_sub(bytes)));
    }

    /// Gives back what was deleted.
    pub(crate) fn release(&self, bytes: u64) {
        let before = self.0.used.fetch_update(SeqCst, SeqCst, |used| Some(used.saturating_sub(bytes)));
        debug_assert!(before.is_ok_and(|used| used >= bytes), "more is given back than was taken");
        let _ = self.0.free.fetch_update(SeqCst, SeqCst, |free| Some(free.saturating_add(bytes)));
    }
}

impl fmt::Debug for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Quota({} of {} bytes used)", self.used(), self.limit())
    }
}
