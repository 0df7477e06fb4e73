//! The central daemon: takes blocks from gateways, keeps them in a log, writes them to ClickHouse, judges alert rules.
//!
//! In data order: `link` (gateways knock here) → [`log`] → `sink` → ClickHouse → `rules` → `alerts`; `api` and `audit`
//! look at all of them. A stage never calls another: the log and the tables are the queues between them.

pub mod alerts;
pub mod limits;
pub mod log;
pub mod rules;
