//! Verbs that ask central.

pub(crate) mod alerts;
pub(crate) mod audit;
pub(crate) mod dead_letters;
pub(crate) mod gateway;
pub(crate) mod query;
