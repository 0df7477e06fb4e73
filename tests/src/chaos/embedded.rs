//! Chaos with the embedded log: SIGKILL at random moments of gateway, central and ClickHouse under load.
//!
//! When the rounds are over, each machine brings what it has begun to its end; then the tables hold exactly what was
//! acknowledged, and the aggregates are those of a plain program.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use record::clock::{Random, SeededRandom};
use serde_json::{Value, json};

use super::load::{self, Door, Load, PLAIN, Readings, Sent};
use super::{Audited, Settings};
use crate::machines::{HOURLY, RAW};
use crate::model::{self, Difference, Expected};
use crate::plant::{GATEWAY, Plant};

/// Machines over MQTT, per stream.
const MQTT_MACHINES: usize = 4;
/// Events per second and machine.
const RATE: f64 = 200.0;
/// Readings prepared per round and machine; a round is over sooner.
const READINGS_PER_ROUND: usize = 4_000;
/// Longest wait for the last acknowledgement, and for the last row.
const SETTLE: Duration = Duration::from_secs(120);
/// Longest wait for a balanced audit.
const AUDIT: Duration = Duration::from_secs(20);

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
    /// What central's audit says.
    pub audited: Audited,
    /// Duration of it all.
    pub seconds: f64,
}

impl Outcome {
    /// Whether every acknowledged event is there once, and every aggregate right.
    pub fn holds(&self) -> bool {
        self.raw.is_none() && self.aggregates.is_none() && self.audited.balanced && self.acknowledged > 0
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
            "balanced": self.audited.balanced,
            "problems": self.audited.problems,
            "examples": self.raw.examples.iter().chain(&self.aggregates.examples).collect::<Vec<_>>(),
            "seconds": (self.seconds * 10.0).round() / 10.0,
            "holds": self.holds(),
        })
    }
}

/// Runs it; progress goes to stderr.
pub async fn run(settings: Settings) -> anyhow::Result<Outcome> {
    let began = Instant::now();
    eprintln!("seed {}, {} rounds", settings.seed, settings.rounds);
    let mut plant = Plant::start(&load::options()).await?;
    let count = READINGS_PER_ROUND * usize::try_from(settings.rounds + 1)?;
    let readings = Arc::new(Readings::of(count));
    let mut load = Load::new(Arc::clone(&readings));
    let door = Door { gateway: GATEWAY.to_owned(), mqtt: plant.mqtt, http: plant.http };
    load.start(&door, (RAW, "machines"), "", (MQTT_MACHINES, RATE));
    load.start(&door, (PLAIN, "plain"), "", (MQTT_MACHINES, RATE));

    let kills = rounds(settings, &mut plant, &load).await?;
    load.finish.cancel();
    eprintln!("rounds are over, waiting for the last acknowledgements");
    let sent = tokio::time::timeout(SETTLE, load.end())
        .await
        .with_context(|| format!("not everything is acknowledged after {SETTLE:?}\n{}", plant.logs()))??;

    let mut outcome = Outcome {
        rounds: settings.rounds,
        seed: settings.seed,
        kills,
        acknowledged: load.acknowledged(),
        repeated: load.repeated(),
        ..Outcome::default()
    };
    compare(&plant, &sent, &readings, &mut outcome).await?;
    outcome.audited = Audited::ask(&plant.api, AUDIT).await;
    outcome.seconds = began.elapsed().as_secs_f64();
    Ok(outcome)
}

/// Kills and starts again, at random moments.
async fn rounds(settings: Settings, plant: &mut Plant, load: &Load) -> anyhow::Result<[u64; 3]> {
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
        eprintln!("round {round}: killed {}, acknowledged {}", names.join(" and "), load.acknowledged());
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
    readings: &Readings,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let accepted: u64 = sent.iter().map(|one| one.count as u64).sum();
    ensure!(accepted == outcome.acknowledged, "{accepted} accepted, {} counted", outcome.acknowledged);
    let expected: Vec<(&Sent, Expected)> =
        sent.iter().map(|one| (one, readings.expect(one.stream, one.count))).collect();
    for stream in [RAW, PLAIN] {
        let of_stream = expected.iter().filter(|(one, _)| one.stream == stream);
        let wanted: u64 = of_stream.map(|(_, e)| e.rows.len() as u64).sum();
        outcome.rows += plant.rows(stream, wanted, SETTLE).await?;
    }
    let windows: u64 = expected.iter().map(|(_, e)| e.windows.len() as u64).sum();
    outcome.windows = plant.rows(HOURLY, windows, SETTLE).await?;
    for (Sent { stream, device, .. }, expected) in &expected {
        let found = plant.api.rows_of(stream, device, "temperature").await?;
        outcome.raw.add(model::compare(device, &expected.rows, &found));
        if *stream == RAW {
            let found = plant.api.windows_of(HOURLY, device, "temperature").await?;
            outcome.aggregates.add(model::compare_windows(device, &expected.windows, &found));
        }
    }
    Ok(())
}
