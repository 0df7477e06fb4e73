//! The auditor: proves, per gateway and stream, that what devices were acknowledged for stands in ClickHouse once.
//!
//! It reads what every stage left behind and compares: the gateway's own ledger, the progress that central acknowledged by,
//! the log's records ([`tally`]), the rows of the tables, the views on them. [`judge`] compares; [`auditor`] fetches.
//!
//! Invariants:
//! - log and table are compared at one offset per partition, so that rows on their way are never called lost;
//! - each record is counted and hashed once, in a tally that survives restarts and outlives the log's retention; when
//!   somebody asks, what the log still holds is read again;
//! - a term that is not known is said to be unknown, never assumed.
//!
//! It never changes anything that it looks at.

mod again;
pub mod auditor;
pub mod judge;
mod metrics;
pub mod report;
pub mod tally;
mod values;
mod views;

pub use again::Reread;
pub use auditor::{AuditError, AuditParts, Auditor, AuditorHandle};
pub use report::{GatewayReport, Report, RereadReport, StreamReport, ViewReport};
