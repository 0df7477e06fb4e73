//! Harness for the end-to-end tests, the demonstration and the chaos runs.
//!
//! Job: start the real programs on free ports in a temporary folder, put real load on them, kill them without mercy,
//! and compare what is in the tables with what a plain program computes from the same input.
//!
//! - [`plant`]: an installation: authority, configurations, gateway, central (which starts ClickHouse).
//! - [`mqtt_load`], [`http_load`]: devices that keep their word: they repeat what was not acknowledged, and stop when
//!   everything is.
//! - [`nab`]: the real input. [`model`]: what has to come out of it, computed without any of the product's code.
//! - [`machines`]: the pipeline of the demonstration and the chaos runs. [`demo`], [`chaos`]: both themselves.
//! - [`clickhouse`]: a server asked without central between. [`tables`], [`scrape`], [`webhook`]: what is in the tables, and what the metrics say, what the alerts' receiver got.
//! - [`cluster`]: central on several processes, with [`kafka`]: a real broker, and its own console tools as consumers that share no code with ours.
//! - [`bench`]: what the benchmarks of whole programs share.
//! - [`simple`]: one plain stream, and [`wire`]: MQTT packets one at a time, for tests of single answers.
//! - [`program`], [`wait`], [`ports`]: processes, conditions with deadlines, addresses.
//!
//! Nothing here is a mock of our own programs, and no test waits by sleeping for a guessed time.

pub mod bench;
pub mod chaos;
pub mod clickhouse;
pub mod cluster;
pub mod demo;
pub mod http_load;
pub mod kafka;
pub mod latency;
pub mod machines;
pub mod model;
pub mod mqtt_load;
pub mod nab;
pub mod pace;
pub mod plant;
pub mod ports;
pub mod program;
pub mod scrape;
pub mod simple;
pub mod tables;
pub mod wait;
pub mod webhook;
pub mod wire;
