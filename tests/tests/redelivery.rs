//! What a killed gateway had on disk and nobody was told: it comes again, and is there once.

use std::time::Duration;

use anyhow::{Context, ensure};
use reqwest::StatusCode;
use serde_json::Value;
use tidegate_tests::http_load::client;
use tidegate_tests::plant::Plant;
use tidegate_tests::simple::{self, STREAM};
use tidegate_tests::wait;
use tidegate_tests::wire::{Answer, Client};

/// Fewer than the gateway remembers per client.
const EVENTS: u16 = 800;
const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until the gateway's lane has read this many events: it reads only what is synced.
async fn durable(plant: &Plant, events: f64) -> anyhow::Result<()> {
    wait::until_true(&format!("{events} events durable"), DEADLINE, async || {
        let received = [("stream", STREAM), ("outcome", "received")];
        plant.gateway_metrics().await.is_ok_and(|m| m.sum("tidegate_stream_rows_total", &received) >= events)
    })
    .await
    .with_context(|| plant.logs())
}

/// Each of the first `count` values is in the table once, and the audit has nothing to say.
async fn once(plant: &Plant, device: &str, count: u16) -> anyhow::Result<()> {
    plant.rows(STREAM, u64::from(count), DEADLINE).await?;
    let balanced = async || {
        let audit = plant.api.audit().await.ok()?;
        (audit["balanced"] == true && audit["lost"] == 0 && audit["duplicated"] == 0).then_some(())
    };
    wait::until("the audit is balanced", DEADLINE, balanced).await.with_context(|| plant.logs())?;
    let values = simple::values(plant, device).await?;
    ensure!(values == (0..count).map(f64::from).collect::<Vec<_>>(), "{} values: {values:?}", values.len());
    Ok(())
}

/// The gateway is killed between fdatasync and PUBACK, as the device sees it: it has read no acknowledgement at all,
/// though all its publishes are durable. Its receive buffer is as small as the system allows, so that most of the
/// acknowledgements never even left the gateway's side; how many the gateway had written by then is open, and does
/// not matter, since none was read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_between_sync_and_acknowledgement_doubles_nothing() -> anyhow::Result<()> {
    let mut plant = Plant::start(&simple::options()).await?;
    let payloads = simple::payloads(0, EVENTS.into(), 0);
    let (mut device, present) = Client::persistent(plant.mqtt, "press").await?;
    ensure!(!present, "a session before the first one");
    for (id, payload) in (1..=EVENTS).zip(payloads.iter()) {
        device.send("t/press/data", payload, id, false).await?;
    }
    durable(&plant, EVENTS.into()).await?;
    plant.kill_gateway();
    drop(device);

    plant.start_gateway()?;
    plant.gateway_ready().await?;
    let (mut device, present) = Client::persistent(plant.mqtt, "press").await?;
    ensure!(present, "the session is gone");
    for (id, payload) in (1..=EVENTS).zip(payloads.iter()) {
        device.send("t/press/data", payload, id, true).await?;
        let answer = device.answer().await?;
        ensure!(answer == Answer::Acknowledged(id), "{id}: {answer:?}");
    }
    let repeats = plant.gateway_metrics().await?.sum("tidegate_ingest_repeats_total", &[("source", "floor")]);
    ensure!(repeats == f64::from(EVENTS), "{repeats} repeats counted");
    once(&plant, "press", EVENTS).await
}

async fn post(plant: &Plant, key: Option<&str>, body: Vec<u8>) -> anyhow::Result<Value> {
    let url = format!("http://{}/v1/ingest/{STREAM}?device=web", plant.http);
    let request = client().post(url).body(body);
    let request = if let Some(key) = key { request.header("idempotency-key", key) } else { request };
    let answer = request.send().await?;
    let (status, text) = (answer.status(), answer.text().await?);
    ensure!(status == StatusCode::OK, "{status} {text}");
    Ok(serde_json::from_str(&text)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_with_a_key_is_stored_once_across_a_kill() -> anyhow::Result<()> {
    let mut plant = Plant::start(&simple::options()).await?;
    let body = simple::payloads(0, 100, 0).join(&b'\n');
    let first = post(&plant, Some("batch-1"), body.clone()).await?;
    plant.kill_gateway();
    ensure!(first["accepted"] == 100 && first["repeated"] == false, "{first}");

    plant.start_gateway()?;
    plant.gateway_ready().await?;
    let again = post(&plant, Some("batch-1"), body).await?;
    ensure!(again["accepted"] == 100 && again["repeated"] == true, "{again}");
    once(&plant, "web", 100).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_200_survives_the_kill_behind_it() -> anyhow::Result<()> {
    let mut plant = Plant::start(&simple::options()).await?;
    for request in 0..3 {
        post(&plant, None, simple::payloads(request * 50, 50, 0).join(&b'\n')).await?;
        plant.kill_gateway();
        plant.start_gateway()?;
        plant.gateway_ready().await?;
    }
    once(&plant, "web", 150).await
}
