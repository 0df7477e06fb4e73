//! The step: the sans-I/O core of a lane.
//!
//! A lane is a root stream and all streams below it. A step takes the events of some input frames and gives
//! [`Effects`]: rows of every stream, changes of state, counts, dead letters. Whoever drives the lane writes them, with
//! the position up to which input was consumed, as one frame of the output log: they happen together or not at all.
//!
//! Invariants:
//! - the same events after the same state give the same rows of every stream in the same order, however they are cut
//!   into steps: each row is judged as if it came alone (only dead letters may change places among themselves);
//! - every row offered to a stream ends in exactly one term of [`record::Counts`];
//! - all state is in the changes: a lane made anew from the state image goes on as if nothing had happened. After an
//!   error the lane is used up, and that is how it goes on.
//!
//! It never does I/O, never asks a clock and never gives out seqs: those belong to the writer of the output log.

mod aggregate;
mod cells;
mod dedup;
mod effects;
mod graph;
pub mod keys;
mod module;
mod shape;
mod troubles;
mod windows;

use record::StreamName;
use std::collections::BTreeMap;

pub use dedup::DEDUP_ENTRY_BYTES;
pub use effects::Effects;
pub use graph::{Health, Lane, ModulesOf};
pub use module::{Aggregate, Filter, Instances, Make, Transform};
pub use troubles::Troubles;

/// The clocks, as the driver read them before the step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// Nanoseconds since the epoch.
    pub wall_ns: i64,
    /// For waiting times.
    pub monotonic_ns: u64,
}

/// Why a step gave nothing. Nothing happened: the input stays where it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The stream's policy is to wait until its module works, or the module cannot be started at all.
    #[error("stream {stream} waits for module {module}: {why}")]
    Held {
        /// The stream.
        stream: String,
        /// Its module.
        module: String,
        /// What is wrong with it.
        why: String,
    },
    /// What came of it does not fit a frame.
    #[error("the rows and states of one step come to {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// How much.
        bytes: usize,
        /// The limit.
        limit: usize,
        /// Who brought it.
        by_stream: BTreeMap<StreamName, usize>,
    },
    /// The program contradicts itself, or the state image is not of this program.
    #[error("stream {stream}: {why}")]
    Broken {
        /// The stream.
        stream: String,
        /// How.
        why: String,
    },
}

#[cfg(test)]
pub(crate) mod tests;
