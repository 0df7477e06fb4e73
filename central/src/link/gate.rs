//! Whether a stream's columns fit its table: asked when a gateway says Hello, answered by the role that knows the tables.

use async_trait::async_trait;
use record::{StreamName, StreamSchema};
use thiserror::Error;

/// Why a schema was not let in.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SchemaRefusal {
    /// A column has another type in the table. The text names column and both types.
    #[error("{0}")]
    Conflict(String),
    /// The tables cannot be asked now. Blocks are taken all the same: the log is there to wait for the tables.
    #[error("the tables cannot be asked: {0}")]
    Unavailable(String),
}

/// Makes and widens tables, or says why a stream's columns cannot be stored.
#[async_trait]
pub trait SchemaGate: Send + Sync + 'static {
    /// Checks the columns of a stream against its table.
    async fn check(&self, stream: &StreamName, schema: &StreamSchema) -> Result<(), SchemaRefusal>;
}

/// For a process without the sink role: every schema goes to the log, and the sink judges.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unchecked;

#[async_trait]
impl SchemaGate for Unchecked {
    async fn check(&self, _: &StreamName, _: &StreamSchema) -> Result<(), SchemaRefusal> {
        Ok(())
    }
}
