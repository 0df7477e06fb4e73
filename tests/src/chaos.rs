//! Chaos: SIGKILL at random moments of gateway, central and ClickHouse under load; then every row is compared.
//!
//! Three kinds of machines send at the same time: over MQTT QoS 1 into a stream with a dedup key, over MQTT QoS 1 into
//! one without (only the recognition of redelivered messages keeps doubles out), and over HTTP with idempotency keys
//! into both. When the rounds are over, each brings what it has begun to its end; then the tables hold exactly what was
//! acknowledged, and the aggregates are those of a plain program.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use record::clock::{Random, SeededRandom};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::http_load::Poster;
use crate::machines::{self, HOURLY, RAW};
use crate::model::{self, Difference};
use crate::mqtt_load::{Device, Progress};
use crate::nab::{self, Reading};
use crate::pace::Pace;
use crate::plant::{Options, Plant};

/// A stream without a dedup key.
const PLAIN: &str = "plain";
/// Machines over MQTT, per stream.
const MQTT_MACHINES: usize = 4;
/// Events per second and machine.
const RATE: f64 = 200.0;
/// Readings prepared per round and machine; a round is over sooner.
const READINGS_PER_ROUND: usize = 4_000;
const IN_FLIGHT_MAX: usize = 100;
/// Longest wait for the last acknowledgement, and for the last row.
const SETTLE: Duration = Duration::from_secs(120);
/// First event time of the plain stream: 2025-01-01.
const PLAIN_START_S: i64 = 1_735_689_600;

/// How to run.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Kills.
    pub rounds: u64,
    /// Names the run's random numbers.
    pub seed: u64,
}

/// The outcome.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// The settings.
    pub rounds: u64,
    /// The settings.
    pub seed: u64,
    /// Kills per program: gateway, central, ClickHouse.
    pub kills: [u64; 3],
    /// Events acknowledged.
    pub acknowledged: u64,
    /// Events sent again.
    pub repeated: u64,
    /// Rows in the raw tables.
    pub rows: u64,
    /// Windows in the aggregate's table.
    pub windows: u64,
    /// Raw rows against what was acknowledged.
    pub raw: Difference,
    /// Windows against the plain program's.
    pub aggregates: Difference,
    /// Whether central's audit balances.
    pub balanced: bool,
    /// The audit's problems in its own words.
    pub problems: Vec<String>,
    /// Duration of it all.
    pub seconds: f64,
}

impl Outcome {
    /// Whether every acknowledged event is there once, and every aggregate right.
    pub fn holds(&self) -> bool {
        self.raw.is_none() && self.aggregates.is_none() && self.balanced && self.acknowledged > 0
    }

    /// The one JSON object.
    pub fn json(&self) -> Value {
        json!({
            "rounds": self.rounds,
            "seed": self.seed,
            "kills": { "gateway": self.kills[0], "central": self.kills[1], "clickhouse": self.kills[2] },
            "events_acknowledged": self.acknowledged,
            "events_repeated": self.repeated,
            "rows": self.rows,
            "windows": self.windows,
            "lost": self.raw.lost,
            "duplicated": self.raw.doubled,
            "foreign": self.raw.foreign,
            "aggregates_wrong": self.aggregates.lost + self.aggregates.doubled + self.aggregates.foreign,
            "balanced": self.balanced,
            "problems": self.problems,
            "examples": self.raw.examples.iter().chain(&self.aggregates.examples).collect::<Vec<_>>(),
            "seconds": (self.seconds * 10.0).round() / 10.0,
            "holds": self.holds(),
        })
    }
}

/// A machine under way: its stream, its name, and in the end how many of its readings were accepted.
type Sent = (&'static str, String, usize);

/// Runs it; progress goes to stderr.
pub async fn run(settings: Settings) -> anyhow::Result<Outcome> {
    let began = Instant::now();
    eprintln!("seed {}, {} rounds", settings.seed, settings.rounds);
    let mut plant = Plant::start(&options()).await?;
    let progress = Arc::new(Progress::default());
    let count = READINGS_PER_ROUND * usize::try_from(settings.rounds + 1)?;
    let (machine, plain) = (machine_readings(count), plain_readings(count));
    let (finish, stop) = (CancellationToken::new(), CancellationToken::new());
    let _stop_at_the_end = stop.clone().drop_guard();
    let mut load =
        Load { plant: &plant, progress: &progress, finish: &finish, stop: &stop, sent: JoinSet::new() };
    load.start(RAW, "machines", &machine);
    load.start(PLAIN, "plain", &plain);
    let mut sent = load.sent;

    let kills = rounds(settings, &mut plant, &progress).await?;
    finish.cancel();
    eprintln!("rounds are over, waiting for the last acknowledgements");
    let sent = tokio::time::timeout(SETTLE, async {
        let mut all = Vec::new();
        while let Some(one) = sent.join_next().await {
            all.push(one.context("a machine ended badly")?);
        }
        anyhow::Ok(all)
    })
    .await
    .with_context(|| format!("not everything is acknowledged after {SETTLE:?}\n{}", plant.logs()))??;

    let mut outcome = Outcome {
        rounds: settings.rounds,
        seed: settings.seed,
        kills,
        acknowledged: progress.acknowledged(),
        repeated: progress.repeated.load(std::sync::atomic::Ordering::Relaxed),
        ..Outcome::default()
    };
    compare(&plant, &sent, &machine, &plain, &mut outcome).await?;
    audit(&plant, &mut outcome).await?;
    outcome.seconds = began.elapsed().as_secs_f64();
    Ok(outcome)
}

fn options() -> Options {
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

struct Load<'a> {
    plant: &'a Plant,
    progress: &'a Arc<Progress>,
    finish: &'a CancellationToken,
    stop: &'a CancellationToken,
    sent: JoinSet<Sent>,
}

impl Load<'_> {
    /// Starts the machines of one stream: some over MQTT, one over HTTP.
    fn start(&mut self, stream: &'static str, prefix: &str, readings: &[Reading]) {
        let payloads: Arc<[Vec<u8>]> = readings.iter().map(|r| r.json().into_bytes()).collect();
        let (progress, stop) = (Arc::clone(self.progress), self.stop.clone());
        for number in 1..=MQTT_MACHINES {
            let name = format!("{prefix}-{number}");
            let device = Device {
                name: name.clone(),
                topic: format!("{prefix}/{name}/telemetry"),
                payloads: Arc::clone(&payloads),
                pace: Pace::per_second(RATE),
                in_flight_max: IN_FLIGHT_MAX,
                sample_every: 0,
                finish: self.finish.clone(),
            };
            let (broker, progress, stop) = (self.plant.mqtt, Arc::clone(&progress), stop.clone());
            self.sent.spawn(async move {
                let acknowledged = device.run(broker, progress, stop).await;
                (stream, name, acknowledged.into_iter().filter(|yes| *yes).count())
            });
        }
        let poster = Poster {
            name: format!("{prefix}-http"),
            stream: stream.to_owned(),
            payloads,
            batch: 20,
            pace: Pace::per_second(RATE),
            finish: self.finish.clone(),
        };
        let (gateway, name) = (self.plant.http, poster.name.clone());
        self.sent.spawn(async move {
            let posted = poster.run(gateway, progress, stop).await;
            (stream, name, posted.accepted)
        });
    }
}

/// Kills and starts again, at random moments.
async fn rounds(settings: Settings, plant: &mut Plant, progress: &Progress) -> anyhow::Result<[u64; 3]> {
    let random = SeededRandom::new(settings.seed);
    let below = |most: u64| random.next_u64() % most;
    let mut kills = [0; 3];
    for round in 1..=settings.rounds {
        // Some kills hit a program that is still recovering from the last one.
        tokio::time::sleep(Duration::from_millis(100 + below(2_400))).await;
        let targets: &[usize] = match below(8) {
            0..=2 => &[0],
            3..=4 => &[1],
            5 => &[2],
            6 => &[0, 1],
            _ => &[2, 0],
        };
        let away = Duration::from_millis(below(400));
        for target in targets {
            if kill(plant, *target)? {
                kills[*target] += 1;
            }
        }
        tokio::time::sleep(away).await;
        for target in targets {
            match target {
                0 => plant.start_gateway()?,
                1 => plant.start_central()?,
                // Central supervises its ClickHouse.
                _ => {}
            }
        }
        expect_alive(plant)?;
        let names: Vec<&str> = targets.iter().map(|t| ["gateway", "central", "clickhouse"][*t]).collect();
        eprintln!("round {round}: killed {}, acknowledged {}", names.join(" and "), progress.acknowledged());
    }
    plant.central_ready().await?;
    plant.gateway_ready().await?;
    Ok(kills)
}

fn kill(plant: &mut Plant, target: usize) -> anyhow::Result<bool> {
    match target {
        0 => plant.kill_gateway(),
        1 => plant.kill_central(),
        _ => return plant.kill_clickhouse(),
    }
    Ok(true)
}

/// A program that ended although nobody killed it is a failure of its own.
fn expect_alive(plant: &mut Plant) -> anyhow::Result<()> {
    for program in [&mut plant.gateway, &mut plant.central] {
        program.as_mut().context("a program was not started again")?.expect_running()?;
    }
    Ok(())
}

async fn compare(
    plant: &Plant,
    sent: &[Sent],
    machine: &[Reading],
    plain: &[Reading],
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let accepted: u64 = sent.iter().map(|(_, _, count)| *count as u64).sum();
    ensure!(accepted == outcome.acknowledged, "{accepted} accepted, {} counted", outcome.acknowledged);
    let expected: Vec<(&Sent, model::Expected)> = sent
        .iter()
        .map(|one| {
            let (stream, _, count) = one;
            let expected = if *stream == RAW {
                machines::expect(&machine[..*count])
            } else {
                let rows: BTreeMap<i64, f64> = plain[..*count].iter().map(|r| (r.time_ns, r.value)).collect();
                model::Expected { rows, ..model::Expected::default() }
            };
            (one, expected)
        })
        .collect();
    for stream in [RAW, PLAIN] {
        let of_stream = expected.iter().filter(|((s, _, _), _)| *s == stream);
        let wanted: u64 = of_stream.map(|(_, e)| e.rows.len() as u64).sum();
        outcome.rows += plant.rows(stream, wanted, SETTLE).await?;
    }
    let windows: u64 = expected.iter().map(|(_, e)| e.windows.len() as u64).sum();
    outcome.windows = plant.rows(HOURLY, windows, SETTLE).await?;
    for ((stream, device, _), expected) in &expected {
        let found = plant.api.rows_of(stream, device, "temperature").await?;
        outcome.raw.add(model::compare(device, &expected.rows, &found));
        if *stream == RAW {
            let found = plant.api.windows_of(HOURLY, device, "temperature").await?;
            outcome.aggregates.add(model::compare_windows(device, &expected.windows, &found));
        }
    }
    Ok(())
}

async fn audit(plant: &Plant, outcome: &mut Outcome) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let audit = plant.api.audit().await?;
        outcome.balanced = audit["balanced"] == true;
        let problems = audit["problems"].as_array().into_iter().flatten();
        outcome.problems =
            problems.map(|p| p.as_str().map_or_else(|| p.to_string(), str::to_owned)).collect();
        if outcome.balanced || Instant::now() > deadline {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// An error with all that is known when the run does not hold.
pub fn check(outcome: &Outcome) -> anyhow::Result<()> {
    if outcome.holds() {
        return Ok(());
    }
    bail!("{}", serde_json::to_string_pretty(&outcome.json())?)
}
