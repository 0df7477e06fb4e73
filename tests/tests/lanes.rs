//! A stream held back by its module delays nobody else: neither its own acknowledgements nor another lane's rows.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use tidegate_tests::mqtt_load::Progress;
use tidegate_tests::plant::{Options, Plant};
use tidegate_tests::simple::{self, STREAM};
use tidegate_tests::wait;
use tokio_util::sync::CancellationToken;

const EVENTS: usize = 500;
/// This value traps.
const POISON: f64 = 100.0;
const DEADLINE: Duration = Duration::from_secs(60);

/// A healthy stream, and one whose module fails and is to be waited for, or not.
fn options(on_failure: &str) -> Options {
    let mut streams = simple::stream(&["floor"]);
    streams.push_str(&format!(
        r#"
[stream.sick]
from = ["floor"]
topics = ["sick/+/data"]
decode = {{ format = "json", time = "ts", device = {{ topic-level = 2 }} }}
columns = {{ value = "float64" }}

[stream.sick-checked]
from = ["sick"]
module = "misbehave@0.1.0"
with = {{ mode = "trap", column = "value", equals = {POISON:?} }}
on-module-failure = "{on_failure}"
"#
    ));
    Options { streams, modules: vec!["misbehave"], ..Options::default() }
}

/// Sends to the held stream, and waits until it waits.
async fn hold(plant: &Plant) -> anyhow::Result<()> {
    let mut sick = simple::device("press", simple::payloads(0, EVENTS, 0));
    sick.topic = "sick/press/data".to_owned();
    let sending = sick.run(plant.mqtt, Arc::new(Progress::default()), CancellationToken::new());
    tokio::time::timeout(DEADLINE, sending).await.context("the held stream's events are not acknowledged")?;
    wait::until("the lane is held", DEADLINE, async || held(plant).await).await.with_context(|| plant.logs())
}

async fn held(plant: &Plant) -> Option<()> {
    let metrics = plant.gateway_metrics().await.ok()?;
    (metrics.sum("tidegate_lane_backlog_frames", &[("lane", "sick")]) > 0.0).then_some(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_lane_delays_neither_acknowledgements_nor_other_lanes() -> anyhow::Result<()> {
    let mut plant = Plant::start(&options("hold")).await?;
    hold(&plant).await?;

    // The other lane, from acknowledgement to row, while the first one waits.
    simple::send(&plant, "pump", simple::payloads(0, EVENTS, 0)).await?;
    plant.rows(STREAM, EVENTS as u64, DEADLINE).await?;
    held(&plant).await.context("the lane was not held all the while")?;

    // Somebody decides that a bad row is a dead letter: what was held arrives.
    plant.kill_gateway();
    plant.configure_gateway(&options("dead-letter"))?;
    plant.start_gateway()?;
    plant.gateway_ready().await?;
    plant.rows("sick", EVENTS as u64, DEADLINE).await?;
    plant.rows("sick-checked", EVENTS as u64 - 1, DEADLINE).await?;
    plant.rows("dead_letters", 1, DEADLINE).await?;
    let audit = plant.api.audit().await?;
    ensure!(audit["lost"] == 0 && audit["duplicated"] == 0, "{audit}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_removed_stream_is_not_thrown_away_by_a_slip() -> anyhow::Result<()> {
    let mut plant = Plant::start(&options("hold")).await?;
    hold(&plant).await?;
    plant.kill_gateway();

    // Without the stream the gateway does not start, and says what waits.
    let without = Options { streams: simple::stream(&["floor"]), ..options("hold") };
    plant.configure_gateway(&without)?;
    plant.start_gateway()?;
    let said = wait::until("the gateway's refusal", DEADLINE, async || {
        let gateway = plant.gateway.as_mut()?;
        gateway.expect_running().is_err().then(|| gateway.log_tail())
    })
    .await;
    let said = said.with_context(|| plant.logs())?;
    ensure!(said.contains(&format!("{EVENTS} of `sick`")) && said.contains("discard"), "{said}");

    // Whoever means it says so; the events are counted and declared.
    let meant = Options { buffer: "discard = [\"sick\"]\n".to_owned(), ..without.clone() };
    plant.configure_gateway(&meant)?;
    plant.start_gateway()?;
    plant.gateway_ready().await?;
    simple::send(&plant, "pump", simple::payloads(0, EVENTS, 0)).await?;
    plant.rows(STREAM, EVENTS as u64, DEADLINE).await?;
    let audit = wait::until("the audit knows it", DEADLINE, async || {
        let audit = plant.api.audit().await.ok()?;
        (audit["dropped"] == EVENTS as u64 && audit["balanced"] == true).then_some(audit)
    })
    .await
    .with_context(|| plant.logs())?;
    ensure!(audit["lost"] == 0 && audit["duplicated"] == 0, "{audit}");

    // The next start has nothing to ask.
    plant.kill_gateway();
    plant.configure_gateway(&without)?;
    plant.start_gateway()?;
    plant.gateway_ready().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_input_frame_costs_its_events_and_the_audit_says_so() -> anyhow::Result<()> {
    let mut plant = Plant::start(&options("hold")).await?;
    hold(&plant).await?;
    plant.kill_gateway();
    flip_a_byte(&plant.path("gateway-data/input"), br#""value":250,"#)?;

    plant.configure_gateway(&options("dead-letter"))?;
    plant.start_gateway()?;
    plant.gateway_ready().await?;
    let last = (EVENTS - 1).to_string();
    let arrived = format!("select count() from sick where value = {last}");
    wait::until("what stands behind the damage", DEADLINE, async || {
        plant.api.number(&arrived).await.ok().filter(|n| *n == 1)
    })
    .await
    .with_context(|| plant.logs())?;
    ensure!(plant.api.count("sick").await? < EVENTS as u64, "a damaged frame was taken for a good one");
    let problems = wait::until("the audit knows it", DEADLINE, async || {
        let audit = plant.api.audit().await.ok()?;
        let problems = audit["problems"].to_string();
        (audit["balanced"] == false && problems.contains("damaged")).then_some(problems)
    })
    .await
    .with_context(|| plant.logs())?;
    ensure!(problems.contains("sick"), "{problems}");
    Ok(())
}

/// Changes a byte of the first place where a segment holds `text`.
fn flip_a_byte(log: &Path, text: &[u8]) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(log)? {
        let path = entry?.path();
        let mut bytes = std::fs::read(&path)?;
        if let Some(at) = bytes.windows(text.len()).position(|window| window == text) {
            bytes[at + 1] ^= 1;
            return Ok(std::fs::write(&path, bytes)?);
        }
    }
    anyhow::bail!("no segment in {} holds it", log.display())
}
