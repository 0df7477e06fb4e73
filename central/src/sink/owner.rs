//! Which lanes run here: one for each partition that this process owns, as long as its lease.
//!
//! A lane whose lease has ended is dropped wherever it stands: whoever owns the partition next finds its intent. The next
//! lane of the partition in this process begins when the old one is gone.

use super::{LaneStatus, Parts, lane::LaneDriver, store::Store};
use crate::{
    SINK_GROUP,
    log::{Lease, Partition},
};
use std::{collections::BTreeMap, sync::Arc};
use thiserror::Error;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// A lane ended although nobody asked it to.
#[derive(Debug, Error)]
#[error("a lane of the sink ended")]
pub(super) struct LaneEnded;

/// Runs the lanes of what this process owns until `stop`.
pub(super) async fn own_partitions(
    parts: Parts,
    told: Vec<Arc<watch::Sender<LaneStatus>>>,
    stop: CancellationToken,
) -> Result<(), LaneEnded> {
    let (clickhouse, tables) = (parts.clickhouse.clone(), parts.tables.clone());
    let store = Store::new(clickhouse, tables, parts.log.clone(), parts.metrics.clone());
    let mut owned = parts.log.partitions_owned(SINK_GROUP);
    let mut here: BTreeMap<Partition, (Lease, CancellationToken)> = BTreeMap::new();
    let mut lanes: JoinSet<Partition> = JoinSet::new();
    let mut changes = true;
    loop {
        let now = owned.borrow_and_update().clone();
        for (partition, (lease, token)) in &here {
            if now.get(partition) != Some(lease) {
                token.cancel();
            }
        }
        for (partition, lease) in now {
            let Some(status) = told.get(partition.0 as usize).filter(|_| !here.contains_key(&partition))
            else {
                continue;
            };
            let token = stop.child_token();
            here.insert(partition, (lease, token.clone()));
            let driver = LaneDriver {
                partition,
                lease,
                log: parts.log.clone(),
                store: store.clone(),
                clock: parts.clock.clone(),
                metrics: parts.metrics.clone(),
                status: status.clone(),
                options: parts.options,
            };
            lanes.spawn(async move {
                driver.run(token).await;
                partition
            });
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            // A log whose owner never changes says so by closing the channel.
            changed = owned.changed(), if changes => changes = changed.is_ok(),
            Some(ended) = lanes.join_next() => {
                let partition = ended.map_err(|_| LaneEnded)?;
                here.remove(&partition);
            }
        }
    }
}
