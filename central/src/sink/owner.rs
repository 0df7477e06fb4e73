//! Which lanes run here: one for each partition that this process owns, as long as its lease.
//!
//! A lane whose lease has ended is dropped wherever it stands: whoever owns the partition next finds its intent.

use super::{LaneStatus, Parts, lane::LaneDriver, store::Store};
use crate::{
    SINK_GROUP,
    log::{Panicked, for_each_owned},
};
use std::sync::Arc;
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A lane ended although nobody asked it to.
#[derive(Debug, Error)]
#[error("a lane of the sink ended")]
pub(super) struct LaneEnded(#[from] Panicked);

/// Runs the lanes of what this process owns until `stop`.
pub(super) async fn own_partitions(
    parts: Parts,
    told: Vec<Arc<watch::Sender<LaneStatus>>>,
    stop: CancellationToken,
) -> Result<(), LaneEnded> {
    let (clickhouse, tables) = (parts.clickhouse.clone(), parts.tables.clone());
    let store = Store::new(clickhouse, tables, parts.log.clone(), parts.metrics.clone());
    let owned = parts.log.partitions_owned(SINK_GROUP);
    for_each_owned(owned, stop, move |partition, lease, token| {
        let driver = LaneDriver {
            partition,
            lease,
            log: parts.log.clone(),
            store: store.clone(),
            clock: parts.clock.clone(),
            metrics: parts.metrics.clone(),
            // One for each partition of the log.
            status: told.get(partition.0 as usize).cloned().unwrap_or_default(),
            options: parts.options,
        };
        async move {
            driver.run(token).await;
            Ok(())
        }
    })
    .await
}
