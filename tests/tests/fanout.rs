//! Single events in Kafka: one JSON record each, seen once by a consumer that is not ours, though the processes that publish
//! them are killed and frozen in the middle, and the broker is killed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tidegate_tests::kafka::Kafka;
use tidegate_tests::mqtt_load::Progress;
use tidegate_tests::pace::Pace;
use tidegate_tests::plant::{GATEWAY, Options, Plant};
use tidegate_tests::program::{self, Program};
use tidegate_tests::scrape::Metrics;
use tidegate_tests::simple::{self, STREAM};
use tidegate_tests::{ports, wait};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(120);
/// Longer than a member of a group may be silent.
const FROZEN: Duration = Duration::from_secs(9);
const NAMES: [&str; 2] = ["fanout-a", "fanout-b"];
const PUBLISHED: &str = "tidegate_fanout_rows_total";

/// Two processes that publish.
struct Publishers {
    at: BTreeMap<&'static str, SocketAddr>,
    running: BTreeMap<&'static str, Program>,
}

impl Publishers {
    async fn start(plant: &Plant, options: &Options) -> anyhow::Result<Self> {
        let mut me = Self { at: BTreeMap::new(), running: BTreeMap::new() };
        for name in NAMES {
            let api = ports::free();
            plant.configure_central(options, name, &["fanout"], plant.link, api)?;
            me.at.insert(name, api);
            me.begin(plant, name)?;
        }
        Ok(me)
    }

    fn begin(&mut self, plant: &Plant, name: &'static str) -> anyhow::Result<()> {
        self.running.insert(name, plant.start_process(name)?);
        Ok(())
    }

    async fn published(&self, name: &str) -> Option<f64> {
        if !self.running.contains_key(name) {
            return None;
        }
        Some(Metrics::of(*self.at.get(name)?).await.ok()?.sum(PUBLISHED, &[]))
    }

    /// The one that publishes now, and goes on to.
    async fn active(&self, plant: &Plant) -> anyhow::Result<&'static str> {
        let mut before = BTreeMap::new();
        let found = wait::until("a process publishes", DEADLINE, async || {
            for name in NAMES {
                let now = self.published(name).await?;
                if before.insert(name, now).is_some_and(|then| now > then) {
                    return Some(name);
                }
            }
            None
        });
        found.await.with_context(|| logs(plant))
    }

    /// Waits until the other one publishes.
    async fn other_takes_over(&self, plant: &Plant, name: &str) -> anyhow::Result<&'static str> {
        let other = if name == NAMES[0] { NAMES[1] } else { NAMES[0] };
        let before = self.published(other).await.unwrap_or(0.0);
        let what = format!("{other} publishes");
        let more = wait::until_true(&what, DEADLINE, async || {
            self.published(other).await.is_some_and(|now| now > before)
        });
        more.await.with_context(|| logs(plant))?;
        Ok(other)
    }

    fn signal(&self, name: &str, signal: Signal) -> anyhow::Result<()> {
        program::send(self.running.get(name).context("it runs")?.pid(), signal)
    }
}

fn logs(plant: &Plant) -> String {
    let of = |name: &str| format!("--- {name}\n{}\n", program::tail(&plant.path(&format!("{name}.log")), 40));
    plant.logs() + &NAMES.map(of).concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_is_seen_once_though_publishers_are_killed_and_frozen() -> anyhow::Result<()> {
    let mut kafka = Kafka::start(&[]).await?;
    let options = Options { log: kafka.central_log(), roles: vec!["link", "api"], ..simple::options() };
    let prefix = options.log.split("prefix = \"").nth(1).and_then(|rest| rest.split('"').next());
    let topic = format!("{}.events.{STREAM}", prefix.context("a prefix")?);
    let plant = Plant::start(&options).await?;
    let mut publishers = Publishers::start(&plant, &options).await?;

    let (progress, finish) = (Arc::new(Progress::default()), CancellationToken::new());
    let mut device = simple::device("a", simple::payloads(0, 100_000, 20));
    device.pace = Pace::per_second(500.0);
    device.finish = finish.clone();
    let sending = tokio::spawn(device.run(plant.mqtt, progress.clone(), CancellationToken::new()));

    for round in 0..2 {
        // SIGKILL in the middle of transactions.
        let killed = publishers.active(&plant).await?;
        publishers.running.remove(killed);
        publishers.other_takes_over(&plant, killed).await?;
        publishers.begin(&plant, killed)?;
        // A zombie: it is frozen until the other one does its work, then it goes on as if nothing had happened.
        let frozen = publishers.active(&plant).await?;
        publishers.signal(frozen, Signal::STOP)?;
        tokio::time::sleep(FROZEN).await;
        publishers.other_takes_over(&plant, frozen).await?;
        publishers.signal(frozen, Signal::CONT)?;
        println!("round {round}: {killed} was killed, {frozen} was frozen");
    }
    // A clean end, and both gone at once.
    let stopped = publishers.active(&plant).await?;
    let status = publishers.running.remove(stopped).context("it runs")?.stop(DEADLINE)?;
    ensure!(status.success(), "{stopped} ended with {status}\n{}", logs(&plant));
    publishers.other_takes_over(&plant, stopped).await?;
    publishers.running.clear();
    for name in NAMES {
        publishers.begin(&plant, name)?;
    }
    publishers.active(&plant).await?;
    // The broker, with transactions open whose end nobody knows.
    if kafka.kill().is_ok() {
        kafka.restart().await?;
        publishers.active(&plant).await?;
    }

    finish.cancel();
    tokio::time::timeout(DEADLINE, sending).await.with_context(|| logs(&plant))??;
    let sent = progress.acknowledged();
    let seen = wait::until("all are published", DEADLINE, async || {
        let lines = kafka.consume_all(&topic, &["key"]).ok()?;
        (lines.len() as u64 >= sent).then_some(lines)
    });
    let seen = seen.await.with_context(|| logs(&plant))?;
    let mut values = Vec::new();
    for line in &seen {
        let (key, event) = line.split_once('\t').context("key and value")?;
        let event: Value = serde_json::from_str(event)?;
        ensure!(key == "a" && event["device"] == "a" && event["gateway"] == GATEWAY, "{line}");
        ensure!(
            event["time"].as_str().is_some_and(|t| t.starts_with("2025-01-0") && t.len() == 30),
            "{line}"
        );
        ensure!(
            event["seq"].is_u64() && event["incarnation"].as_str().is_some_and(|i| i.len() == 16),
            "{line}"
        );
        values.push(event["value"].as_f64().context("a value")?);
    }
    let expected: Vec<f64> = (0..sent).map(|i| i as f64).collect();
    ensure!(
        values == expected,
        "{} events of {sent}, in order and each once\n{}",
        values.len(),
        logs(&plant)
    );
    println!("{sent} events, each once and in order");
    Ok(())
}
