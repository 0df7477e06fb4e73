//! What both daemons are made of: configuration, logs, metrics, tasks, clock, signals.
//!
//! Job: the frame around the stages, the same in the gateway and in central, so that neither invents its own.
//!
//! Invariants
//! - A configuration is refused as a whole, with every bad key named at once and its place in the file.
//! - Every task stands in one set under one cancellation token; one that ends unasked stops the process.
//! - Logs go to stderr only; stdout belongs to the commands that print results.
//!
//! It never reads the environment, never retries, and knows nothing about events.

pub mod clock;
pub mod config;
pub mod log;
pub mod metrics;
pub mod signal;
pub mod tasks;
