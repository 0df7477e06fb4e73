//! Chaos: things are broken at random moments under load, as a seed has it; then every row is compared with what was
//! acknowledged, and the aggregates with those of a plain program.
//!
//! - [`embedded`]: one gateway, central in one process with its own log and ClickHouse; SIGKILL.
//! - [`real`]: two gateways, central on five processes, a real Kafka, a ClickHouse server; SIGKILL, SIGSTOP, and lines
//!   that are cut, held, half-open or closed, in the middle of commits and inserts on purpose.
//! - [`load`]: the machines of both, which keep their word.
//! - [`faults`]: what may happen, as the seed has it. [`proxy`], [`lines`]: what lies between the processes of the second.
//!   [`strike`]: the faults on them. [`recovery`]: how long until rows flow again. [`compare`]: every row everywhere.

pub mod compare;
pub mod embedded;
pub mod faults;
pub mod lines;
pub mod load;
pub mod proxy;
pub mod real;
pub mod recovery;
pub mod strike;

use std::time::Duration;

use anyhow::bail;
use serde_json::Value;

use crate::tables::Api;
use crate::wait;

/// How to run.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Times that something is broken.
    pub rounds: u64,
    /// Names the run's random numbers.
    pub seed: u64,
}

/// What central's audit says in the end.
#[derive(Debug, Clone, Default)]
pub struct Audited {
    /// Whether it balances.
    pub balanced: bool,
    /// Its problems in its own words.
    pub problems: Vec<String>,
}

impl Audited {
    /// Asks until it balances, within reason.
    pub async fn ask(api: &Api, within: Duration) -> Self {
        let mut newest = Self::default();
        // That it does not balance in time is the answer.
        let _ = wait::until_true("the audit balances", within, async || {
            newest = match api.audit().await {
                Ok(audit) => Self::read(&audit),
                Err(error) => Self { balanced: false, problems: vec![format!("{error:#}")] },
            };
            if !newest.balanced {
                // An audit is work, for the machine that is waited for.
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            newest.balanced
        })
        .await;
        newest
    }

    fn read(audit: &Value) -> Self {
        let problems = audit["problems"].as_array().into_iter().flatten();
        let text = |p: &Value| p.as_str().map_or_else(|| p.to_string(), str::to_owned);
        Self { balanced: audit["balanced"] == true, problems: problems.map(text).collect() }
    }
}

/// An error with all that is known when a run does not hold.
pub fn check(holds: bool, outcome: &Value) -> anyhow::Result<()> {
    if holds {
        return Ok(());
    }
    bail!("{}", serde_json::to_string_pretty(outcome)?)
}
