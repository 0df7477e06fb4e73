//! Where a group stands in a partition, with what stands beside it.

use super::{limits::ASK_TIMEOUT, shard::number};
use crate::log::{CommitError, Committed, Offset};
use rdkafka::{
    TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};

/// Where a group stands, once no transaction is open that may move it. Blocks.
pub(super) fn committed(
    asker: &BaseConsumer,
    topic: &str,
    partition: u32,
) -> Result<Option<Committed>, String> {
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, number(partition));
    let list = asker.committed_offsets(list, ASK_TIMEOUT).map_err(|e| e.to_string())?;
    let place = list.find_partition(topic, number(partition)).ok_or("no answer")?;
    place.error().map_err(|e| e.to_string())?;
    Ok(match place.offset() {
        rdkafka::Offset::Offset(at) => Some(Committed {
            offset: Offset(u64::try_from(at).unwrap_or_default()),
            metadata: place.metadata().to_owned(),
        }),
        _ => None,
    })
}

/// An offset and what stands beside it, for a commit.
pub(super) fn position(
    topic: &str,
    partition: u32,
    offset: Offset,
    metadata: &str,
) -> Result<TopicPartitionList, CommitError> {
    let at = i64::try_from(offset.0).map_err(|e| CommitError::Refused(e.to_string()))?;
    let mut list = TopicPartitionList::new();
    let mut place = list.add_partition(topic, number(partition));
    place.set_offset(rdkafka::Offset::Offset(at)).map_err(|e| CommitError::Refused(e.to_string()))?;
    place.set_metadata(metadata);
    Ok(list)
}
