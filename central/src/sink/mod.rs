//! The sink: writes the log's records into ClickHouse's tables, each row once.
//!
//! One lane per partition. What a lane does next is decided by [`core`], which does no I/O; [`lane`] carries it out,
//! [`block`] makes one Arrow block per table from the records' blocks.
//!
//! Invariants: see [`core`]; besides, a lane never holds more than one range and one read of records, and a record
//! that cannot be stored as rows is kept whole in the table of quarantined blocks, with the reason, while the lane goes on.
//!
//! It never talks to gateways and never changes the log except for its own group's offset.

pub mod core;
pub mod intent;
pub mod limits;
