//! The whole way from gateways to tables in one simulated process.
//!
//! The cores are the product's own: [`::link::forward::Forwarder`] on the gateway, [`::link::receive::Receiver`] inside
//! [`central::link::core::Order`], [`central::sink::core::Lane`]. Everything around them is simulated: time, network, the
//! gateways' disks, a log like Kafka's ([`broker`]), a server like ClickHouse ([`clickhouse`]), and the drivers that carry
//! out what the cores decide, one step after the other, so that a process can die or stand still between any two.
//!
//! Invariants:
//! - one seed is one run, in one thread, and runs the same way every time: no wall clock, no order that a hash map gives;
//! - the models are no kinder than the real things, as far as the design relies on them; what it relies on is said where
//!   it is modelled;
//! - a mistake of a driver is a [`Mutant`], never a switch in the product.
//!
//! It never talks to a real broker, server or socket: that is the chaos test's work.

mod broker;
mod clickhouse;
mod event;
mod fault;
mod gateway;
mod judge;
mod link;
mod many;
mod mutant;
mod network;
mod schedule;
mod seat;
mod sink;
mod trouble;
mod world;

pub use fault::{Fault, Faults};
pub use many::{Hunted, Record, hunt, hunt_all, many};
pub use mutant::Mutant;
pub use world::Trace;

use std::panic::{AssertUnwindSafe, catch_unwind};

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Events that happened.
    pub events: u64,
    /// Simulated time that went by.
    pub simulated_ns: u64,
    /// What went wrong on purpose.
    pub faults: Faults,
    /// What did not hold.
    pub failure: Option<Failure>,
}

/// What did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// In few words, the same for all of its kind.
    pub kind: String,
    /// Where.
    pub text: String,
    /// What happened last.
    pub trace: Vec<String>,
}

/// Runs one seed.
pub fn run(seed: u64, mutant: Option<Mutant>, trace: Trace) -> Outcome {
    let ran = catch_unwind(AssertUnwindSafe(|| world::run(seed, mutant, trace)));
    ran.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        let failure =
            Failure { kind: "a panic".to_owned(), text: text.unwrap_or_default(), trace: Vec::new() };
        Outcome { events: 0, simulated_ns: 0, faults: Faults::default(), failure: Some(failure) }
    })
}
