//! The sources: each takes events its own way, hands them to the [`crate::ingest::Door`], and acknowledges what is
//! durable.

pub mod http;
pub mod mqtt_client;
pub mod mqtt_listener;
