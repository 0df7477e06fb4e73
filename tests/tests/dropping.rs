//! Central is away and a stream may lose rows: sources are never slowed, what is given up stands in the loss ledger with
//! its number, and the audit balances.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use tidegate_tests::mqtt_load::Progress;
use tidegate_tests::plant::{GATEWAY, Options, Plant};
use tidegate_tests::simple::{self, STREAM};
use tidegate_tests::{http_load::client, wait};
use tokio_util::sync::CancellationToken;

/// Bytes of text in each event, so that the events are twice what the buffer holds.
const PADDING: usize = 4_000;
const EVENTS: usize = 8_000;
const DEADLINE: Duration = Duration::from_secs(60);

/// What came of it.
struct Kept {
    values: Vec<f64>,
    dropped: u64,
}

async fn overflow(policy: &str) -> anyhow::Result<Kept> {
    let streams = simple::stream(&["floor", "api"]) + &format!("on-full = \"{policy}\"\n");
    let options = Options { streams, quota: "16 MiB".to_owned(), ..Options::default() };
    let mut plant = Plant::prepare(&options)?;
    plant.start_gateway()?;
    plant.gateway_listens().await?;
    // Acknowledged to the last, although nothing leaves.
    simple::send(&plant, "full", simple::payloads(0, EVENTS, PADDING)).await?;
    // What was declared lost survives a kill.
    plant.kill_gateway();
    plant.start_gateway()?;
    plant.start_central()?;
    plant.central_ready().await?;
    plant.gateway_ready().await?;
    let audit = wait::until("a balanced audit of all events", DEADLINE, async || {
        let audit = plant.api.audit().await.ok()?;
        let rows = plant.api.count(STREAM).await.unwrap_or(0);
        let all = rows + audit["dropped"].as_u64()? == EVENTS as u64;
        (all && audit["balanced"] == true && audit["lost"] == 0).then_some(audit)
    })
    .await
    .with_context(|| plant.logs())?;
    let dropped = audit["dropped"].as_u64().context("no number")?;
    // The ledger comes behind the rows that it explains.
    let agreed = wait::until_true("the ledger and the audit agree", DEADLINE, async || {
        in_the_ledger(&plant, policy).await.is_ok_and(|rows| rows == dropped)
    });
    agreed.await.with_context(|| format!("{audit}\n{}", plant.logs()))?;
    Ok(Kept { values: simple::values(&plant, "full").await?, dropped })
}

/// Rows that central's ledger of the gateway names for this reason.
async fn in_the_ledger(plant: &Plant, policy: &str) -> anyhow::Result<u64> {
    let url = format!("http://{}/v1/gateways", plant.api.address());
    let answer: Value = client().get(url).send().await?.json().await?;
    let gateways = answer["gateways"].as_array().context("no gateways")?;
    let gateway = gateways.iter().find(|g| g["gateway"] == GATEWAY).context("not known")?;
    let streams = gateway["streams"].as_array().context("no streams")?;
    let stream = streams.iter().find(|s| s["stream"] == STREAM).context("no stream")?;
    let losses = stream["losses"].as_array().context("no ledger")?;
    let of_policy = losses.iter().filter(|l| l["reason"].as_str().is_some_and(|r| r.contains(policy)));
    Ok(of_policy.filter_map(|l| l["rows"].as_u64()).sum())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drop_oldest_keeps_the_newest_and_says_what_went() -> anyhow::Result<()> {
    let kept = overflow("drop-oldest").await?;
    ensure!(
        kept.dropped > 0 && kept.values.last() == Some(&(EVENTS as f64 - 1.0)),
        "{} dropped",
        kept.dropped
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drop_newest_keeps_the_oldest_and_says_what_went() -> anyhow::Result<()> {
    let kept = overflow("drop-newest").await?;
    ensure!(kept.dropped > 0 && kept.values.first() == Some(&0.0), "{} dropped", kept.dropped);
    let without_gap = kept.values.iter().enumerate().take(100).all(|(i, value)| *value == i as f64);
    ensure!(without_gap, "what came first is not all there");
    Ok(())
}

/// The module of a stream that may drop is not there: nothing of it becomes a row, and nobody waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_stream_that_may_drop_slows_nobody() -> anyhow::Result<()> {
    let held = r#"
[stream.held]
from = ["floor"]
topics = ["held/+/data"]
decode = { format = "json", time = "ts", device = { topic-level = 2 } }
columns = { value = "float64" }
on-full = "drop-oldest"

[stream.held-checked]
from = ["held"]
module = "nowhere@1.0.0"
on-module-failure = "hold"
"#;
    let streams = simple::stream(&["floor"]) + held;
    let options = Options { streams, quota: "16 MiB".to_owned(), ..Options::default() };
    let plant = Plant::start(&options).await?;
    let mut sender = simple::device("press", simple::payloads(0, EVENTS, PADDING));
    sender.topic = "held/press/data".to_owned();
    let sending = sender.run(plant.mqtt, Arc::new(Progress::default()), CancellationToken::new());
    tokio::time::timeout(DEADLINE, sending).await.context("its events are not acknowledged")?;

    simple::send(&plant, "pump", simple::payloads(0, 500, 0)).await?;
    plant.rows(STREAM, 500, DEADLINE).await?;
    // More may be given up after the last event was acknowledged: both numbers are read until they agree.
    let (audit, given_up) = wait::until("an audit that names them", DEADLINE, async || {
        let metrics = plant.gateway_metrics().await.ok()?;
        let given_up = metrics.sum("tidegate_given_up_rows_total", &[("stream", "held")]);
        let audit = plant.api.audit().await.ok()?;
        (given_up > 0.0 && audit["dropped"].as_u64()? as f64 == given_up).then_some((audit, given_up))
    })
    .await
    .with_context(|| plant.logs())?;
    ensure!(given_up < EVENTS as f64, "{given_up} given up");
    ensure!(audit["lost"] == 0 && audit["duplicated"] == 0, "{audit}");
    Ok(())
}
