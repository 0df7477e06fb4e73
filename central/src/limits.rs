//! Bounds of the central daemon; every queue, group and record stands here.

/// Longest metadata beside a committed offset, in bytes; Kafka's brokers allow 4,096.
pub const OFFSET_METADATA_BYTES_MAX: usize = 4_096;
/// Longest name of a consumer group, in bytes.
pub const GROUP_NAME_BYTES_MAX: usize = 128;
/// Loss entries kept per gateway and stream; older ones live on in the totals.
pub const LOSS_ENTRIES_MAX: usize = 64;
/// Longest reason in a loss or quarantine entry, in bytes; longer ones are cut.
pub const REASON_BYTES_MAX: usize = 512;
