//! The durable buffer: segment logs, the group-commit hand-off, window state, and a small rebuildable index.
//!
//! Bytes and truth live in **segment logs** ([`Log`]): append-only files of framed, checksummed records. The
//! gateway has two (accepted events; pipeline steps), central's embedded log is made of the same type. What is
//! small and can be rebuilt from the logs lives in [`Meta`].
//!
//! Invariants:
//! - a frame is whole or not there; the sequence of frames is dense, starts at 1 and is never reused once it was
//!   durable;
//! - nobody reads a frame before an `fdatasync` covered it ([`LogHandle::durable`]);
//! - after a failed `fdatasync` or write the log is poisoned for good: asking the kernel again is known to lie;
//! - whole segments are deleted, never parts, and never the one that holds the newest checkpoint;
//! - opening a log reads headers of its newest segment only, whatever the backlog; a torn tail is cut and
//!   counted, a damaged frame is stepped over and reported: neither an endless loop nor a refusal to start.
//!
//! It never retries a failed sync, never maps memory onto disk layout, never asks a clock for anything but
//! time-outs, and never looks into payloads.

mod cursor;
pub mod disk;
mod error;
mod frame;
mod hub;
mod image;
pub mod inspect;
pub mod limits;
mod lock;
mod log;
mod meta;
mod quota;
mod reader;

pub use disk::{Disk, DiskFile, RealDisk};
pub use error::JournalError;
pub use frame::{CHECKPOINT, Frame, FrameHead, FrameSeq, Gap, GapCause};
pub use hub::{FrameMeta, Hub, HubOptions, HubStats, PushError, Ticket};
pub use image::{Changes, ImageError, StateImage};
pub use lock::DirLock;
pub use log::{Log, LogHandle, LogOptions, Recovery};
pub use meta::{Meta, MetaEntry, MetaError, MetaOptions, MetaStart, RebuildCause};
pub use quota::Quota;
pub use reader::Reader;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A panic while a lock was held leaves nothing half done here that the next holder could not bear: every
/// guarded value is replaced in one assignment. So a poisoned mutex is simply taken.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
