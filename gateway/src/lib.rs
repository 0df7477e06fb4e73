//! The gateway: takes what devices send, makes it durable, computes on it, forwards it exactly once.

pub mod config;
pub mod dead_letter;
pub mod decode;
pub mod event;
pub mod ingest;
pub mod limits;
pub mod source;
