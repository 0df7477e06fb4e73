//! The whole way with the log in a real Apache Kafka: from the device's acknowledgement to the row, each reading once,
//! also when the broker and central are killed in the middle.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use tidegate_tests::kafka::Kafka;
use tidegate_tests::mqtt_load::Progress;
use tidegate_tests::pace::Pace;
use tidegate_tests::plant::{Options, Plant};
use tidegate_tests::simple::{self, STREAM};
use tidegate_tests::wait;
use tokio_util::sync::CancellationToken;

const EVENTS: usize = 6_000;
const DEADLINE: Duration = Duration::from_secs(120);

fn options(kafka: &Kafka) -> Options {
    // A server that exists, or central's own.
    let server = std::env::var("TIDEGATE_TEST_CLICKHOUSE_URL").map(|url| {
        let database = std::process::id();
        format!("url = {url:?}\ndatabase = \"t{database}\"")
    });
    Options { log: kafka.central_log(), clickhouse: server.unwrap_or_default(), ..simple::options() }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reading_is_stored_once_though_broker_and_central_are_killed() -> anyhow::Result<()> {
    let mut kafka = Kafka::start(&[]).await?;
    let mut plant = Plant::start(&options(&kafka)).await?;
    let progress = Arc::new(Progress::default());
    let mut device = simple::device("a", simple::payloads(0, EVENTS, 20));
    device.pace = Pace::per_second(600.0);
    let sending = tokio::spawn(device.run(plant.mqtt, progress.clone(), CancellationToken::new()));
    let acknowledged = |least: u64| {
        let progress = progress.clone();
        async move || progress.acknowledged() >= least
    };
    wait::until_true("some are acknowledged", DEADLINE, acknowledged(1_000)).await?;
    if kafka.kill().is_ok() {
        wait::until_true("also without the broker", DEADLINE, acknowledged(2_000)).await?;
        kafka.restart().await?;
    }
    wait::until_true("more are acknowledged", DEADLINE, acknowledged(3_500)).await?;
    plant.kill_central();
    plant.start_central()?;
    plant.central_ready().await?;
    tokio::time::timeout(DEADLINE, sending).await.with_context(|| plant.logs())??;
    let rows = plant.rows(STREAM, EVENTS as u64, DEADLINE).await?;
    ensure!(rows == EVENTS as u64, "{rows} rows");
    let values = simple::values(&plant, "a").await?;
    ensure!(values == (0..EVENTS).map(|i| i as f64).collect::<Vec<_>>(), "{} values", values.len());
    let balanced = wait::until_true("the audit balances", DEADLINE, async || {
        plant.api.audit().await.is_ok_and(|report| report["balanced"] == true)
    });
    balanced.await.with_context(|| plant.logs())
}
