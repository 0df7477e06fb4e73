//! How long it takes until rows flow again: an event that a machine sends after the fault has ended, at each gateway, is
//! in its table, and whoever was struck says that it is ready.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use super::faults::Target;
use super::load::{PLAIN, Readings};
use super::strike::{Field, Struck};
use crate::clickhouse::{self, DATABASE};
use crate::mqtt_load::Progress;
use crate::wait;

/// What does not recover within this does not recover; generous, since rounds before may not have been waited for, and the
/// machine may have more to do.
const STUCK: Duration = Duration::from_secs(300);

/// A machine of the plain stream whose events are looked for; one for each gateway.
pub struct Witness {
    /// Its name.
    pub device: String,
    /// How far it is.
    pub progress: Arc<Progress>,
}

/// Waits until it flows again; how long after the end of the fault that was.
pub async fn recovered(
    field: &Field,
    readings: &Readings,
    witnesses: &[Witness],
    struck: Struck,
    processes: &[Target],
) -> anyhow::Result<Duration> {
    let server = field.cluster.clickhouse_at();
    // Of those that it sends from now on, the first.
    let wanted: Vec<(&str, i64)> = witnesses
        .iter()
        .map(|w| {
            (
                w.device.as_str(),
                readings.plain_time_ns(usize::try_from(w.progress.sent()).unwrap_or(usize::MAX)),
            )
        })
        .collect();
    let mut last_error = None;
    let flows = wait::until_true("rows flow again", STUCK, async || {
        for target in processes {
            if !field.is_ready(*target).await {
                return false;
            }
        }
        match stored(server, &wanted).await {
            Ok(stored) => stored,
            Err(error) => {
                last_error = Some(error);
                false
            }
        }
    })
    .await;
    flows.with_context(|| format!("{last_error:?}\n{}", field.logs()))?;
    Ok(struck.ended.elapsed())
}

async fn stored(server: SocketAddr, wanted: &[(&str, i64)]) -> anyhow::Result<bool> {
    for (device, time_ns) in wanted {
        let sql = format!(
            "select toUnixTimestamp64Nano(max(time)) from {DATABASE}.{PLAIN} where device = '{device}'"
        );
        let asked = tokio::time::timeout(Duration::from_secs(2), clickhouse::rows::<1>(server, &sql));
        let rows = asked.await.context("ClickHouse does not answer")??;
        let newest: i64 = rows.first().context("no row")?[0].parse()?;
        if newest < *time_ns {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Times of recovery, by the kind of the fault.
#[derive(Debug, Clone, Default)]
pub struct Times(BTreeMap<&'static str, Vec<u64>>);

impl Times {
    /// Adds one.
    pub fn add(&mut self, kind: &'static str, time: Duration) {
        self.0.entry(kind).or_default().push(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    }

    /// Count and percentiles in ms, of all and of each kind.
    pub fn json(&self) -> Value {
        let mut all = summary(self.0.values().flatten().copied().collect());
        all["by_kind"] = self.0.iter().map(|(kind, ms)| ((*kind).to_owned(), summary(ms.clone()))).collect();
        all
    }
}

fn summary(mut ms: Vec<u64>) -> Value {
    ms.sort_unstable();
    // The nearest rank: a value that was seen.
    let at =
        |percent: usize| ms.get((ms.len() * percent).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0);
    json!({ "count": ms.len(), "p50": at(50), "p99": at(99), "max": at(100) })
}

/// Says on stderr how a round went.
pub fn show(
    round: u64,
    words: &str,
    struck: &Struck,
    began: Instant,
    recovery: Option<Duration>,
    acknowledged: u64,
) {
    let caught = if struck.in_write { " in a write" } else { "" };
    let recovery = recovery.map_or("not waited for".to_owned(), |time| format!("{} ms", time.as_millis()));
    let took = began.elapsed().as_secs_f64();
    eprintln!(
        "round {round}: {words}{caught}; recovery {recovery}; {took:.1} s, {acknowledged} acknowledged"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let mut times = Times::default();
        (1..=100).for_each(|ms| times.add("cut", Duration::from_millis(ms)));
        times.add("kill", Duration::from_secs(9));
        let json = times.json();
        assert_eq!((&json["count"], &json["max"]), (&101.into(), &9_000.into()));
        assert_eq!(json["by_kind"]["cut"], json!({ "count": 100, "p50": 50, "p99": 99, "max": 100 }));
        assert_eq!(json["by_kind"]["kill"], json!({ "count": 1, "p50": 9_000, "p99": 9_000, "max": 9_000 }));
        assert_eq!(summary(Vec::new())["p50"], 0);
    }
}
