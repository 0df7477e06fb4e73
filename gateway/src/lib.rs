//! The gateway: takes what devices send, makes it durable, computes on it, forwards it exactly once.

pub mod dead_letter;
pub mod decode;
pub mod event;
pub mod limits;
