//! Topics of single events, for consumers that are not ours, beside a log that has such.
//!
//! A group publishes what a partition holds, each partition in order. Where it stands moves together with the events, in
//! one atomic step, so that whoever reads committed records sees each event once, whatever becomes of who published it.

use super::{CommitError, Committed, Lease, Offset, Owned, Partition};
use async_trait::async_trait;
use record::StreamName;

/// Events of one stream, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamEvents {
    /// Which topic.
    pub stream: StreamName,
    /// Key and value of each.
    pub events: Vec<(String, Vec<u8>)>,
}

/// See the module.
#[async_trait]
pub trait Outlet: Send + Sync + 'static {
    /// The partitions whose events this process publishes.
    fn outlets_owned(&self) -> Owned<Partition>;

    /// Begins to publish a partition: whoever did before can publish nothing any more, what it left open is as if it had
    /// never been, and where it stood is read; `None` before the first.
    async fn claim_outlet(
        &self,
        partition: Partition,
        lease: Lease,
    ) -> Result<Option<Committed>, CommitError>;

    /// Publishes events and where that leaves the partition, in one atomic step. After an error the caller knows nothing
    /// and claims the partition again. The largest value is [`Outlet::event_bytes_max`].
    async fn publish(
        &self,
        partition: Partition,
        lease: Lease,
        events: Vec<StreamEvents>,
        offset: Offset,
        metadata: String,
    ) -> Result<(), CommitError>;

    /// Bytes of key and value of an event, at most.
    fn event_bytes_max(&self) -> usize;
}
