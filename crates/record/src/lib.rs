//! The words that every room speaks: ids and positions, event time, schemas, batches of events over Arrow,
//! immutable blocks and their hash chain, the terms of the conservation equation.
//!
//! Invariants:
//! - an event is a row of a [`Batch`] from decoding on the gateway until ClickHouse has it;
//! - a [`block`] is immutable once written: the same sequence range is the same bytes and the same hash.
//!
//! This crate never does I/O and never asks a clock: both are handed in through [`clock`].

pub mod batch;
pub mod block;
pub mod clock;
pub mod counts;
mod error;
pub mod ids;
pub mod limits;
pub mod schema;
mod time;

pub use batch::{Batch, BatchBuilder, Value};
pub use block::{BlockHeader, chain_hash};
pub use counts::Counts;
pub use error::RecordError;
pub use ids::{Digest, GatewayId, Incarnation, ModuleRef, Seq, SourceName, StreamName};
pub use schema::{Column, ColumnType, StreamSchema};
pub use time::EventTime;

/// Arrow, under one name: no other room names the arrow crates, so that one version serves all.
pub mod arrow {
    pub use arrow_array as array;
    pub use arrow_buffer as buffer;
    pub use arrow_cast as cast;
    pub use arrow_ipc as ipc;
    pub use arrow_schema as schema;
    pub use arrow_select as select;
}

/// The reserved stream that carries every dead letter of a gateway to central.
pub const DEAD_LETTERS: &str = "dead_letters";
