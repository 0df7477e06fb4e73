//! The fan-out: publishes each event as one JSON record to the topic of its stream, for consumers of Kafka that know
//! nothing of blocks.
//!
//! One lane per partition that this process owns ([`owner`]); processes share them as members of a group. What a lane does
//! next is decided by [`core`], which does no I/O; `lane` carries it out, [`portion`] cuts what one transaction takes out
//! of the records, [`json`] says what a row looks like.
//!
//! Invariants:
//! - events and the position behind them are there together or not at all, so a consumer that reads committed records sees
//!   each event once;
//! - the events of a gateway's stream keep their order, so those of a device on it do;
//! - after any doubt nothing that is remembered counts: the partition is claimed again, and what is stored is the truth.
//!
//! It never waits for a consumer, never changes a block, and keeps nothing of its own.

pub mod core;
pub mod json;
mod lane;
pub mod limits;
mod metrics;
mod owner;
mod portion;

pub use metrics::FanoutMetrics;

use crate::log::{Log, Outlet};
use daemon::tasks::Tasks;
use record::{StreamName, clock::Clock};
use std::{collections::BTreeSet, sync::Arc};

/// What the fan-out needs.
#[derive(Clone)]
pub struct Parts {
    /// Where records come from.
    pub log: Arc<dyn Log>,
    /// Where events go.
    pub outlet: Arc<dyn Outlet>,
    /// The streams that are published; all when not given.
    pub streams: Option<Arc<BTreeSet<StreamName>>>,
    /// Counted here.
    pub metrics: FanoutMetrics,
    /// The machine's clocks.
    pub clock: Arc<dyn Clock>,
}

/// Starts the lanes in the daemon's set of tasks.
pub fn start(parts: Parts, tasks: &mut Tasks) {
    let token = tasks.token();
    tasks.spawn("fanout", async move { Ok(owner::own_partitions(parts, token).await?) });
}
