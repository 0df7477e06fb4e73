//! What can go wrong with a log, as far as a caller can act on it.

use std::{io, path::PathBuf};

/// Errors of the segment logs.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// An earlier write or sync failed: nothing that this log says about durability could be believed.
    /// Stop acknowledging and leave the process; the next start recovers what is on disk.
    #[error("the log in {dir} is poisoned: {reason}")]
    Poisoned {
        /// The log's folder.
        dir: PathBuf,
        /// The first failure.
        reason: String,
    },
    /// The file system is full. Nothing was damaged: the log ends at its last whole frame.
    #[error("no space left for {path}")]
    NoSpace {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// The quota has no room for another segment.
    #[error("quota: {used} of {limit} bytes are used, {wanted} more are wanted")]
    OverQuota {
        /// Bytes of all segments.
        used: u64,
        /// The configured bound.
        limit: u64,
        /// What was asked for.
        wanted: u64,
    },
    /// The frame is over the bounds of `limits.rs`.
    #[error("a frame of {bytes} bytes is over the bound of {max}")]
    FrameTooLarge {
        /// The part that is too large.
        bytes: usize,
        /// Its bound.
        max: usize,
    },
    /// Checkpoints are made by the log itself.
    #[error("kind {0} is reserved for checkpoints")]
    ReservedKind(u8),
    /// Another process holds the folder.
    #[error("{path} is locked by another process")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// Anything else that the operating system refused.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl JournalError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// Whether the log may work again once space was freed.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::NoSpace { .. } | Self::OverQuota { .. })
    }
}

/// Whether the disk or the user's share of it is full.
pub(crate) fn no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
