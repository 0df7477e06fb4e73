//! Central is away until the gateway's buffer is full: publishers wait, nothing vanishes, memory stays bounded; central
//! comes back and everything arrives.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use reqwest::StatusCode;
use tidegate_tests::http_load::client;
use tidegate_tests::mqtt_load::Progress;
use tidegate_tests::plant::Plant;
use tidegate_tests::simple::{self, STREAM};
use tidegate_tests::wait;
use tokio_util::sync::CancellationToken;

/// Bytes of text in each event: few events fill the buffer.
const PADDING: usize = 4_000;
const EVENTS: usize = 8_000;
/// Requests refused one after the other until nothing counts as moving any more.
const REFUSED_IN_A_ROW: u32 = 50;
/// What the gateway may hold in memory with a full buffer.
const RESIDENT_MAX: u64 = 160 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_buffer_slows_sources_and_loses_nothing() -> anyhow::Result<()> {
    let options = tidegate_tests::plant::Options { quota: "16 MiB".to_owned(), ..simple::options() };
    let mut plant = Plant::prepare(&options)?;
    plant.start_gateway()?;
    plant.gateway_listens().await?;

    let progress = Arc::new(Progress::default());
    let stop = CancellationToken::new();
    let device = simple::device("full", simple::payloads(0, EVENTS, PADDING));
    let sending = tokio::spawn(device.run(plant.mqtt, Arc::clone(&progress), stop.clone()));

    // HTTP is told so, with the time to wait.
    let url = format!("http://{}/v1/ingest/{STREAM}?device=web", plant.http);
    let body = simple::payloads(0, 1, PADDING)[0].clone();
    let answer = wait::until("a 429", Duration::from_secs(60), async || {
        let answer = client().post(&url).body(body.clone()).send().await.ok()?;
        (answer.status() == StatusCode::TOO_MANY_REQUESTS).then_some(answer)
    })
    .await
    .with_context(|| plant.logs())?;
    let seconds = answer.headers().get("retry-after").context("no Retry-After")?.to_str()?;
    ensure!(seconds.parse::<u64>().is_ok_and(|s| (1..=60).contains(&s)), "Retry-After: {seconds}");

    // MQTT is not acknowledged any more: the same number each time, while request after request is refused.
    let (mut full_at, mut refused) = (0, 0);
    wait::until_true("no more acknowledgements", Duration::from_secs(60), async || {
        let answer = client().post(&url).body(body.clone()).send().await;
        let full = answer.is_ok_and(|a| a.status() == StatusCode::TOO_MANY_REQUESTS);
        let before = std::mem::replace(&mut full_at, progress.acknowledged());
        refused = if full && full_at == before { refused + 1 } else { 0 };
        refused == REFUSED_IN_A_ROW
    })
    .await
    .with_context(|| plant.logs())?;
    ensure!(full_at > 0 && full_at < EVENTS as u64, "{full_at} of {EVENTS} acknowledged");
    let resident =
        plant.gateway.as_ref().and_then(|g| g.resident_bytes()).context("the gateway has ended")?;
    ensure!(resident < RESIDENT_MAX, "{resident} bytes resident");

    // A restart with a full buffer works, and what is held is still there.
    plant.kill_gateway();
    plant.start_gateway()?;
    plant.gateway_listens().await?;

    plant.start_central()?;
    plant.central_ready().await?;
    tokio::time::timeout(Duration::from_secs(120), sending)
        .await
        .with_context(|| format!("still not all acknowledged\n{}", plant.logs()))??;
    // The table holds rows of the requests too, so the device's own are counted.
    let values = wait::until("all values", Duration::from_secs(60), async || {
        simple::values(&plant, "full").await.ok().filter(|values| values.len() >= EVENTS)
    })
    .await
    .with_context(|| plant.logs())?;
    ensure!(values == (0..EVENTS).map(|i| i as f64).collect::<Vec<_>>(), "{} values", values.len());
    drop(stop);
    Ok(())
}

/// With the smallest quota no commit may be so large that what comes of it finds no room in the output log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_events_go_through_the_smallest_buffer() -> anyhow::Result<()> {
    const LARGE: usize = 200;
    let plant =
        Plant::start(&tidegate_tests::plant::Options { quota: "8 MiB".to_owned(), ..simple::options() })
            .await?;
    // A request that could not become one commit is refused, not kept waiting.
    let url = format!("http://{}/v1/ingest/{STREAM}?device={}", plant.http, "d".repeat(1_000));
    let answer = client().post(&url).body("{\"ts\":1,\"value\":1}\n".repeat(2_000)).send().await?;
    ensure!(answer.status() == StatusCode::PAYLOAD_TOO_LARGE, "{}", answer.status());

    let (a, b) = (simple::payloads(0, LARGE, 150_000), simple::payloads(0, LARGE, 150_000));
    tokio::try_join!(simple::send(&plant, "a", a), simple::send(&plant, "b", b))?;
    let rows = plant.rows(STREAM, 2 * LARGE as u64, Duration::from_secs(60)).await?;
    ensure!(rows == 2 * LARGE as u64, "{rows} rows");
    for device in ["a", "b"] {
        let values = simple::values(&plant, device).await?;
        ensure!(
            values == (0..LARGE).map(|i| i as f64).collect::<Vec<_>>(),
            "{device}: {} values",
            values.len()
        );
    }
    Ok(())
}

/// What trickles in becomes one block a step.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_longer_step_makes_fewer_blocks() -> anyhow::Result<()> {
    const EVENTS: usize = 60;
    let buffer = "step-interval = \"1 s\"".to_owned();
    let plant = Plant::start(&tidegate_tests::plant::Options { buffer, ..simple::options() }).await?;
    let url = format!("http://{}/v1/ingest/{STREAM}?device=slow", plant.http);
    let begun = Instant::now();
    for payload in simple::payloads(0, EVENTS, 0).iter() {
        let answer = client().post(&url).body(payload.clone()).send().await?;
        ensure!(answer.status().is_success(), "{}", answer.status());
    }
    // Each step lasts its second from the first event on, so the machine's speed cannot make more of them.
    let most = begun.elapsed().as_secs_f64().floor() + 1.0;
    plant.rows(STREAM, EVENTS as u64, Duration::from_secs(60)).await?;
    let blocks = plant.central_metrics().await?.sum("tidegate_link_batches_total", &[]);
    ensure!(blocks >= 1.0 && blocks <= most, "{blocks} blocks of {EVENTS} events, at most {most} steps");
    Ok(())
}
