//! The pipeline of the demonstration and of the chaos runs: machines that send their temperature, a filter, an
//! aggregate and a rule.

use std::sync::Arc;

use crate::model::{self, Difference, Expected};
use crate::nab;
use crate::plant::Options;
use crate::tables::Api;

/// The raw stream.
pub const RAW: &str = "machine";
/// What the filter keeps.
pub const HOT: &str = "machine-hot";
/// One row per machine and hour.
pub const HOURLY: &str = "machine-1h";
/// The filter's limit, °C.
pub const HOT_ABOVE: f64 = 100.0;
/// The rule's limit, °C: the machine cools down when it stops.
pub const COLD_BELOW: f64 = 40.0;

const HOUR_NS: i64 = 3_600_000_000_000;
/// The file's clock goes back by 55 minutes once; two hours leave room for machines that lag.
const LATENESS_NS: i64 = 2 * HOUR_NS;

/// The streams, the modules and the rule.
pub fn options(webhook: &str) -> Options {
    Options {
        streams: streams(),
        modules: vec!["threshold", "stats"],
        rules: rules(),
        webhooks: vec![webhook.to_owned()],
        ..Options::default()
    }
}

fn streams() -> String {
    format!(
        r#"[stream.{RAW}]
from = ["floor", "api"]
topics = ["machines/+/telemetry"]
decode = {{ format = "json", time = "ts", device = {{ topic-level = 2 }} }}
columns = {{ temperature = "float64" }}
dedup = {{ key = ["device", "time"], window = "2 min", max-keys = 500000 }}

[stream.{HOT}]
from = ["{RAW}"]
module = "threshold@0.1.0"
with = {{ column = "temperature", above = {HOT_ABOVE:?} }}

[stream.{HOURLY}]
from = ["{RAW}"]
module = "stats@0.1.0"
with = {{ columns = ["temperature"] }}
window = {{ kind = "tumbling", every = "1 h", key = ["device"], lateness = "2 h" }}
"#
    )
}

fn rules() -> String {
    format!(
        r#"groups:
  - name: machines
    every: 1s
    clock: event
    stream: {RAW}
    rules:
      - alert: MachineFailure
        sql: >-
          select device, min(time) as time, min(temperature) as value
          from {RAW} where {{new}} and temperature < {COLD_BELOW:?} group by device
        for: 0s
        keep-firing-for: 1d
        labels: {{ severity: page }}
        annotations: {{ summary: "{{{{ device }}}} fell to {{{{ value }}}} °C" }}
"#
    )
}

/// The name of machine `number`, counted from 1.
pub fn name(number: usize) -> String {
    format!("machine-{number:02}")
}

/// The topic of a machine.
pub fn topic(name: &str) -> String {
    format!("machines/{name}/telemetry")
}

/// The payloads of a machine: the file from its first line, at most `count` of them.
pub fn payloads(count: usize) -> Arc<[Vec<u8>]> {
    nab::readings().iter().take(count).map(|reading| reading.json().into_bytes()).collect()
}

/// What the first `count` readings of the file become, for each machine.
pub fn expected(count: usize) -> Expected {
    let readings = nab::readings();
    expect(&readings[..count.min(readings.len())])
}

/// What one machine's readings become.
pub fn expect(readings: &[nab::Reading]) -> Expected {
    model::expect(readings, HOUR_NS, LATENESS_NS)
}

/// What is in the tables against what has to be, machine by machine.
pub struct Verdict {
    /// Rows of the raw stream.
    pub raw: Difference,
    /// Rows of the filter.
    pub hot: Difference,
    /// Windows.
    pub hourly: Difference,
}

impl Verdict {
    /// Whether everything is as it has to be.
    pub fn is_right(&self) -> bool {
        self.raw.is_none() && self.hot.is_none() && self.hourly.is_none()
    }

    /// Everything that is missing, or there with another value.
    pub fn lost(&self) -> u64 {
        [&self.raw, &self.hot, &self.hourly].iter().map(|d| d.lost + d.foreign).sum()
    }

    /// Everything that is there more than once.
    pub fn doubled(&self) -> u64 {
        [&self.raw, &self.hot, &self.hourly].iter().map(|d| d.doubled).sum()
    }

    /// Examples of what is wrong.
    pub fn examples(&self) -> Vec<String> {
        [&self.raw, &self.hot, &self.hourly].iter().flat_map(|d| d.examples.clone()).collect()
    }
}

/// Reads every row of `machines` machines and compares it.
pub async fn judge(api: &Api, machines: usize, expected: &Expected) -> anyhow::Result<Verdict> {
    let hot_rows = expected.rows.iter().filter(|(_, value)| **value > HOT_ABOVE);
    let hot_rows = hot_rows.map(|(time, value)| (*time, *value)).collect();
    let (mut raw, mut hot, mut hourly) =
        (Difference::default(), Difference::default(), Difference::default());
    for number in 1..=machines {
        let device = name(number);
        raw.add(model::compare(&device, &expected.rows, &api.rows_of(RAW, &device, "temperature").await?));
        hot.add(model::compare(&device, &hot_rows, &api.rows_of(HOT, &device, "temperature").await?));
        let windows = api.windows_of(HOURLY, &device, "temperature").await?;
        hourly.add(model::compare_windows(&device, &expected.windows, &windows));
    }
    Ok(Verdict { raw, hot, hourly })
}
