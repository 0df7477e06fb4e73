use thiserror::Error;

/// What can be wrong with names, schemas, batches and blocks.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum RecordError {
    /// A name breaks the rules of [`crate::ids`].
    #[error("{kind} name {name:?} {why}")]
    Name {
        /// What was being named: "gateway", "stream", "column"…
        kind: &'static str,
        /// The offending name, cut to 80 characters.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A schema names a column twice, has too many, or an unknown type.
    #[error("schema: {0}")]
    Schema(String),
    /// Two batches, or a batch and a schema, do not fit together.
    #[error("batch: {0}")]
    Shape(String),
    /// A block is not what its header says, or not Arrow IPC at all.
    #[error("block: {0}")]
    Block(String),
    /// A time is outside 1900-01-01 to 2262-04-11, the range of a nanosecond timestamp in ClickHouse.
    #[error("time {0} ns is outside the years 1900 to 2262")]
    TimeRange(i128),
}
