//! The sink: writes the log's records into ClickHouse's tables, each row once.
//!
//! One lane per partition that this process owns ([`owner`]). What a lane does next is decided by [`core`], which does no I/O; `lane` carries it out,
//! [`block`] makes one Arrow block per table from the records' blocks, [`store`] sends it.
//!
//! Invariants: see [`core`]; besides, a lane holds no more than one range and two reads of records, the second made ahead
//! while the range is inserted, with the open blocks of that range and of the next; and a record that cannot be stored as
//! rows is kept whole in the table of quarantined blocks, with the reason, while the lane goes on.
//!
//! It never talks to gateways and never changes the log except for its own group's offset.

mod ahead;
pub mod block;
pub mod core;
mod guard;
pub mod intent;
mod lane;
pub mod limits;
pub mod metrics;
mod owner;
pub mod store;

pub use lane::{LaneStatus, SinkOptions};
pub use metrics::SinkMetrics;

use crate::{
    SINK_GROUP,
    clickhouse::{ClickHouse, Tables, Views},
    log::{Log, Partition},
    rules::{Frontier, Positions},
};
use async_trait::async_trait;
use daemon::tasks::Tasks;
use record::clock::Clock;
use std::{fmt, sync::Arc};
use tokio::sync::watch;

/// What the sink needs.
pub struct Parts {
    /// Where records come from.
    pub log: Arc<dyn Log>,
    /// Where rows go.
    pub clickhouse: ClickHouse,
    /// The tables; shared with whoever checks a gateway's hello.
    pub tables: Arc<Tables>,
    /// Counted here.
    pub metrics: SinkMetrics,
    /// The machine's clocks.
    pub clock: Arc<dyn Clock>,
    /// Sizes and times.
    pub options: SinkOptions,
}

/// The running sink, for those who look at it.
#[derive(Clone)]
pub struct SinkHandle {
    lanes: Arc<Vec<watch::Receiver<LaneStatus>>>,
}

impl fmt::Debug for SinkHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SinkHandle").field("lanes", &self.status()).finish_non_exhaustive()
    }
}

/// Starts the lanes in the daemon's set of tasks.
pub fn start(parts: Parts, tasks: &mut Tasks) -> SinkHandle {
    let partitions = 0..parts.log.partitions();
    let told: Vec<_> = partitions.map(|_| Arc::new(watch::Sender::new(LaneStatus::default()))).collect();
    let lanes = told.iter().map(|t| t.subscribe()).collect();
    let (views, metrics) =
        (Views::new(parts.clickhouse.clone(), parts.log.partitions()), parts.metrics.clone());
    let token = tasks.token();
    tasks.spawn("views", async move {
        guard::keep_secure(views, metrics, token).await;
        Ok(())
    });
    let token = tasks.token();
    tasks.spawn("sink", async move { Ok(owner::own_partitions(parts, told, token).await?) });
    SinkHandle { lanes: Arc::new(lanes) }
}

impl SinkHandle {
    /// How each partition stands.
    pub fn status(&self) -> Vec<LaneStatus> {
        self.lanes.iter().map(|lane| lane.borrow().clone()).collect()
    }

    /// Word of each move of a partition.
    pub fn watch(&self, partition: Partition) -> Option<watch::Receiver<LaneStatus>> {
        self.lanes.get(partition.0 as usize).cloned()
    }
}

/// Where the sink stands, as the log knows it: also for a process without the sink.
#[derive(Clone)]
pub struct LogFrontier(pub Arc<dyn Log>);

#[async_trait]
impl Frontier for LogFrontier {
    async fn committed(&self) -> Result<Positions, String> {
        let mut positions = Positions::new();
        for n in 0..self.0.partitions() {
            let at = self.0.committed(SINK_GROUP, Partition(n)).await.map_err(|e| e.to_string())?;
            positions.insert(n, at.map_or(0, |c| c.offset.0));
        }
        Ok(positions)
    }
}
