//! A module that traps, spins or hoards memory costs its own stream a dead letter; other streams do not notice.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use tidegate_tests::mqtt_load::Progress;
use tidegate_tests::plant::{Options, Plant};
use tidegate_tests::simple::{self, STREAM};
use tidegate_tests::wait;
use tokio_util::sync::CancellationToken;

const EVENTS: usize = 600;
/// Every value that is this one is poison.
const POISON: f64 = 300.0;
const DEADLINE: Duration = Duration::from_secs(90);

fn options() -> Options {
    let mut streams = simple::stream(&["floor"]);
    for mode in ["trap", "spin", "hoard", "huge-output"] {
        streams.push_str(&format!(
            "\n[stream.{mode}]\nfrom = [\"{STREAM}\"]\nmodule = \"misbehave@0.1.0\"\n\
             with = {{ mode = \"{mode}\", column = \"value\", equals = {POISON:?} }}\n\
             limits = {{ time = \"50 ms\" }}\n"
        ));
    }
    streams.push_str(&format!(
        "\n[stream.good]\nfrom = [\"{STREAM}\"]\nmodule = \"threshold@0.1.0\"\nwith = {{ column = \"value\", above = -1.0 }}\n"
    ));
    Options { streams, modules: vec!["misbehave", "threshold"], ..Options::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_module_costs_only_its_own_rows() -> anyhow::Result<()> {
    let plant = Plant::start(&options()).await?;
    simple::send(&plant, "one", simple::payloads(0, EVENTS, 0)).await?;
    let all: Vec<f64> = (0..EVENTS).map(|i| i as f64).collect();

    // The raw stream and the good module have everything.
    plant.rows(STREAM, EVENTS as u64, DEADLINE).await?;
    plant.rows("good", EVENTS as u64, DEADLINE).await?;
    ensure!(simple::values(&plant, "one").await? == all, "the raw stream is not whole");

    // Each bad module keeps all rows but the poisoned one, and that is a dead letter that names it.
    let healthy: Vec<f64> = all.iter().copied().filter(|value| *value != POISON).collect();
    for mode in ["trap", "spin", "hoard", "huge-output"] {
        plant.rows(mode, healthy.len() as u64, DEADLINE).await?;
        let rows = plant.api.rows_of(mode, "one", "value").await?;
        let values: Vec<f64> = rows.into_iter().map(|(_, value)| value).collect();
        ensure!(values == healthy, "{mode}: {} rows", values.len());
        let sql = format!("select count() from dead_letters where stream = '{mode}' and reason = 'module'");
        ensure!(
            plant.api.number(&sql).await? == 1,
            "{mode}: dead letters: {:?}",
            plant.api.query(&sql).await?
        );
    }
    let audit = plant.api.audit().await?;
    ensure!(audit["lost"] == 0 && audit["duplicated"] == 0, "{audit}");
    Ok(())
}

/// Rows that spin: as many as it takes to keep their module busy for ten seconds and more.
const SPINNING: usize = 40;

/// A healthy stream, and another one whose module never answers in time.
fn spinning() -> Options {
    let mut streams = simple::stream(&["floor"]);
    streams.push_str(
        r#"
[stream.sick]
from = ["floor"]
topics = ["sick/+/data"]
decode = { format = "json", time = "ts", device = { topic-level = 2 } }
columns = { value = "float64" }

[stream.sick-checked]
from = ["sick"]
module = "misbehave@0.1.0"
with = { mode = "spin", column = "value", equals = 300.0 }
limits = { time = "1 s" }
"#,
    );
    Options { streams, modules: vec!["misbehave"], ..Options::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spinning_module_holds_up_no_other_lane() -> anyhow::Result<()> {
    let plant = Plant::start(&spinning()).await?;
    let poison: Vec<Vec<u8>> = (0..SPINNING)
        .map(|i| format!(r#"{{"ts":{},"value":300.0}}"#, 1_735_689_600 + i).into_bytes())
        .collect();
    let mut sick = simple::device("press", poison.into());
    sick.topic = "sick/press/data".to_owned();
    let sending = sick.run(plant.mqtt, Arc::new(Progress::default()), CancellationToken::new());
    tokio::time::timeout(DEADLINE, sending)
        .await
        .context("the spinning stream's events are not acknowledged")?;
    let busy = async || {
        let metrics = plant.gateway_metrics().await.ok()?;
        (metrics.sum("tidegate_lane_backlog_frames", &[("lane", "sick")]) > 0.0).then_some(())
    };
    wait::until("the module spins", DEADLINE, busy).await.with_context(|| plant.logs())?;

    // While it spins, the other lane takes everything from the device to the table.
    simple::send(&plant, "pump", simple::payloads(0, EVENTS, 0)).await?;
    plant.rows(STREAM, EVENTS as u64, DEADLINE).await?;
    busy().await.context("the module was done before the other lane, so nothing is shown")?;
    let all: Vec<f64> = (0..EVENTS).map(|i| i as f64).collect();
    ensure!(simple::values(&plant, "pump").await? == all, "the healthy stream is not whole");

    // Then each row that spun is a dead letter, and the raw stream has it.
    plant.rows("sick", SPINNING as u64, DEADLINE).await?;
    plant.rows("dead_letters", SPINNING as u64, DEADLINE).await?;
    let audit = plant.api.audit().await?;
    ensure!(audit["lost"] == 0 && audit["duplicated"] == 0, "{audit}");
    Ok(())
}
