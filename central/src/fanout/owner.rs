//! Which lanes run here: one for each partition that this process owns, as long as its lease.

use super::{Parts, lane::LaneDriver};
use crate::log::{Panicked, for_each_owned};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

/// A lane ended although nobody asked it to.
#[derive(Debug, Error)]
#[error("a lane of the fan-out ended")]
pub(super) struct LaneEnded(#[from] Panicked);

/// Runs the lanes of what this process owns until `stop`.
pub(super) async fn own_partitions(parts: Parts, stop: CancellationToken) -> Result<(), LaneEnded> {
    let owned = parts.outlet.outlets_owned();
    for_each_owned(owned, stop, move |partition, lease, token| {
        let driver = LaneDriver { partition, lease, parts: parts.clone() };
        async move {
            driver.run(token).await;
            Ok(())
        }
    })
    .await
}
