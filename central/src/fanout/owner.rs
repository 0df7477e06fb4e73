//! Which lanes run here: one for each partition that this process owns, as long as its lease.

use super::{Parts, lane::LaneDriver};
use crate::log::{Lease, Partition};
use std::collections::{BTreeMap, btree_map::Entry};
use thiserror::Error;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A lane ended although nobody asked it to.
#[derive(Debug, Error)]
#[error("a lane of the fan-out ended")]
pub(super) struct LaneEnded;

/// Runs the lanes of what this process owns until `stop`. The next lane of a partition begins when the old one is gone.
pub(super) async fn own_partitions(parts: Parts, stop: CancellationToken) -> Result<(), LaneEnded> {
    let mut owned = parts.outlet.outlets_owned();
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
            if let Entry::Vacant(place) = here.entry(partition) {
                let token = stop.child_token();
                place.insert((lease, token.clone()));
                let driver = LaneDriver { partition, lease, parts: parts.clone() };
                lanes.spawn(async move {
                    driver.run(token).await;
                    partition
                });
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            // A log whose owner never changes says so by closing the channel.
            changed = owned.changed(), if changes => changes = changed.is_ok(),
            Some(ended) = lanes.join_next() => {
                here.remove(&ended.map_err(|_| LaneEnded)?);
            }
        }
    }
}
