//! The load of a chaos run: machines that send over MQTT QoS 1 into a stream with a dedup key, others into one without
//! (only the recognition of redelivered messages keeps doubles out), and over HTTP with idempotency keys into both.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::http_load::Poster;
use crate::machines::{self, RAW};
use crate::model::{self, Expected};
use crate::mqtt_load::{Device, Progress};
use crate::nab::{self, Reading};
use crate::pace::Pace;
use crate::plant::Options;

/// A stream without a dedup key.
pub const PLAIN: &str = "plain";
const IN_FLIGHT_MAX: usize = 100;
/// Events of one HTTP request.
const HTTP_BATCH: usize = 20;
/// First event time of the plain stream: 2025-01-01.
const PLAIN_START_S: i64 = 1_735_689_600;

/// The pipeline: that of the demonstration, and the plain stream.
pub fn options() -> Options {
    let mut options = machines::options("http://127.0.0.1:9/");
    options.streams.push_str(&format!(
        r#"
[stream.{PLAIN}]
from = ["floor", "api"]
topics = ["plain/+/telemetry"]
decode = {{ format = "json", time = "ts", device = {{ topic-level = 2 }} }}
columns = {{ temperature = "float64" }}
"#
    ));
    // Nobody listens to alerts here; the rules' own tests do.
    options.rules.clear();
    options
}

/// What every machine of a stream has to say.
pub struct Readings {
    machine: Vec<Reading>,
    plain: Vec<Reading>,
    machine_payloads: Arc<[Vec<u8>]>,
    plain_payloads: Arc<[Vec<u8>]>,
}

impl Readings {
    /// `count` readings a machine.
    pub fn of(count: usize) -> Self {
        let (machine, plain) = (machine_readings(count), plain_readings(count));
        let payloads = |all: &[Reading]| all.iter().map(|r| r.json().into_bytes()).collect();
        let (machine_payloads, plain_payloads) = (payloads(&machine), payloads(&plain));
        Self { machine, plain, machine_payloads, plain_payloads }
    }

    /// What the first `count` of them become.
    pub fn expect(&self, stream: &str, count: usize) -> Expected {
        if stream == RAW {
            return machines::expect(&self.machine[..count]);
        }
        let rows: BTreeMap<i64, f64> =
            self.plain[..count].iter().map(|reading| (reading.time_ns, reading.value)).collect();
        model::Expected { rows, ..model::Expected::default() }
    }

    /// The event time of a reading of the plain stream.
    pub fn plain_time_ns(&self, index: usize) -> i64 {
        self.plain.get(index).map_or(i64::MAX, |reading| reading.time_ns)
    }

    fn payloads(&self, stream: &str) -> Arc<[Vec<u8>]> {
        Arc::clone(if stream == RAW { &self.machine_payloads } else { &self.plain_payloads })
    }
}

/// The real file, again and again, each time 80 days later.
fn machine_readings(count: usize) -> Vec<Reading> {
    const LAP_NS: i64 = 80 * 86_400 * 1_000_000_000;
    let file = nab::readings();
    (0..count)
        .map(|index| {
            let (lap, reading) = (index / file.len(), &file[index % file.len()]);
            let time_ns = reading.time_ns + LAP_NS * i64::try_from(lap).unwrap_or(0);
            let time = format!("{}Z", nab::show_time(time_ns).replace(' ', "T"));
            Reading { time_ns, time, ..reading.clone() }
        })
        .collect()
}

/// Every reading has a time of its own.
fn plain_readings(count: usize) -> Vec<Reading> {
    (0..count)
        .map(|index| {
            let seconds = PLAIN_START_S + i64::try_from(index).unwrap_or(0);
            let time_ns = seconds * 1_000_000_000;
            let value = index as f64 * 0.5;
            let time = format!("{}Z", nab::show_time(time_ns).replace(' ', "T"));
            Reading { time_ns, time, value, value_text: value.to_string() }
        })
        .collect()
}

/// A machine that is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// The gateway that it sent to.
    pub gateway: String,
    /// The stream.
    pub stream: &'static str,
    /// Its name.
    pub device: String,
    /// How many of its readings were acknowledged: the first ones.
    pub count: usize,
}

/// One gateway as machines see it.
#[derive(Debug, Clone)]
pub struct Door {
    /// Its id.
    pub gateway: String,
    /// MQTT listener.
    pub mqtt: SocketAddr,
    /// HTTP source.
    pub http: SocketAddr,
}

/// The machines under way.
pub struct Load {
    readings: Arc<Readings>,
    /// All of them together.
    progress: Vec<Arc<Progress>>,
    /// When cancelled, machines end once all that they have sent is acknowledged.
    pub finish: CancellationToken,
    stop: CancellationToken,
    sent: JoinSet<Sent>,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Load {
    /// Nobody sends yet.
    pub fn new(readings: Arc<Readings>) -> Self {
        let (finish, stop) = (CancellationToken::new(), CancellationToken::new());
        Self { readings, progress: Vec::new(), finish, stop, sent: JoinSet::new() }
    }

    /// Starts machines of one stream that send `rate` events a second each: some over MQTT, one over HTTP. `prefix` is the
    /// first level of their topics, and `tag` begins their names. Gives how far each of those over MQTT is.
    pub fn start(
        &mut self,
        door: &Door,
        (stream, prefix): (&'static str, &str),
        tag: &str,
        (machines, rate): (usize, f64),
    ) -> Vec<Arc<Progress>> {
        let mut all = Vec::new();
        for number in 1..=machines {
            let name = format!("{tag}{prefix}-{number}");
            let device = Device {
                name: name.clone(),
                topic: format!("{prefix}/{name}/telemetry"),
                payloads: self.readings.payloads(stream),
                pace: Pace::per_second(rate),
                in_flight_max: IN_FLIGHT_MAX,
                sample_every: 0,
                finish: self.finish.clone(),
            };
            let (progress, stop, door) = (Arc::new(Progress::default()), self.stop.clone(), door.clone());
            all.push(progress.clone());
            self.sent.spawn(async move {
                let acknowledged = device.run(door.mqtt, progress, stop).await;
                let count = acknowledged.into_iter().filter(|yes| *yes).count();
                Sent { gateway: door.gateway, stream, device: name, count }
            });
        }
        let poster = Poster {
            name: format!("{tag}{prefix}-http"),
            stream: stream.to_owned(),
            payloads: self.readings.payloads(stream),
            batch: HTTP_BATCH,
            pace: Pace::per_second(rate),
            finish: self.finish.clone(),
        };
        let (progress, stop, door) = (Arc::new(Progress::default()), self.stop.clone(), door.clone());
        self.progress.extend(all.iter().cloned());
        self.progress.push(progress.clone());
        self.sent.spawn(async move {
            let device = poster.name.clone();
            let posted = poster.run(door.http, progress, stop).await;
            Sent { gateway: door.gateway, stream, device, count: posted.accepted }
        });
        all
    }

    /// Events acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.progress.iter().map(|progress| progress.acknowledged()).sum()
    }

    /// Events sent again so far.
    pub fn repeated(&self) -> u64 {
        self.progress.iter().map(|p| p.repeated.load(std::sync::atomic::Ordering::Relaxed)).sum()
    }

    /// Waits until all machines are done.
    pub async fn end(&mut self) -> anyhow::Result<Vec<Sent>> {
        let mut all = Vec::new();
        while let Some(one) = self.sent.join_next().await {
            all.push(one.context("a machine ended badly")?);
        }
        Ok(all)
    }
}
