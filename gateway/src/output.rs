//! The output log: one frame per step, and the thread that writes them.
//!
//! ```text
//! lanes ──steps──▶ writer ──frames──▶ output log ──▶ forwarder, trimmer
//!                    └─ state image, chains, counts ──▶ snapshot after each sync
//! ```
//!
//! Invariants:
//! - the writer alone gives out seqs: dense per stream, chained by hash, never reused once they were durable;
//! - a frame holds the consumed input position, every change of state and every block of its step; the state image is
//!   the newest checkpoint with the changes of all frames after it, live and after a crash by the same code;
//! - a [`Snapshot`] tells only what is durable; input is trimmed by it and never by anything younger.
//!
//! It never looks into a block. It never retries a failed sync: the log is poisoned then and the process ends.

pub mod frame;
mod recovery;
mod writer;

pub use recovery::{Recovered, RecoveryError, recover};
pub use writer::{Loss, Output, PendingBlock, PendingStep, Snapshot, StreamState, Writer};

#[cfg(test)]
mod tests;
