//! Judging: alert rules in SQL, evaluated over what the sink has stored.
//!
//! In data order: rule files ([`file`]) → evaluations ([`engine`], asked through [`source`]) → the stored state
//! ([`state`], [`store`]) → [`crate::alerts`]. The [`ruler`] drives them.
//!
//! Invariants:
//! - a row selected by `{new}` is judged once, also across restarts;
//! - the new state, with the notifications that follow from it, is durable before any of them is sent;
//! - a rule that fails changes nothing and disturbs no other rule.
//!
//! It never writes to ClickHouse, and never looks at rows that the sink has not committed through `{new}`.

pub(crate) mod duration;
pub mod engine;
pub mod file;
mod instance;
pub mod limits;
mod metrics;
pub mod ruler;
pub mod source;
pub mod sql;
pub mod state;
pub mod store;
mod template;
mod yaml;

pub use file::{Group, GroupClock, Rule, RuleFileError, RuleSet};
pub use ruler::{Parts, Ruler, RulerError, RulerHandle, View};
pub use source::{Frontier, QueryError, QueryLimits, QuerySource, ResultColumn, Table};
pub use sql::{Positions, Range};
pub use template::Template;
pub use yaml::Place;
