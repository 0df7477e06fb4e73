//! Central on several processes: each is killed, stopped and frozen while readings flow, and each reading is stored once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tidegate_tests::cluster::{Cluster, LINKS, SINKS};
use tidegate_tests::mqtt_load::Progress;
use tidegate_tests::pace::Pace;
use tidegate_tests::simple::{self, STREAM};
use tidegate_tests::wait;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(120);
/// Longer than a member of a group may be silent.
const FROZEN: Duration = Duration::from_secs(9);
const PER_SECOND: f64 = 500.0;

/// Rows that one process committed, or inserted, since it started.
const COMMITTED: &str = "tidegate_link_rows_total";
const INSERTED: &str = "tidegate_sink_rows_total";

fn other(names: [&'static str; 2], one: &str) -> &'static str {
    if names[0] == one { names[1] } else { names[0] }
}

/// Waits until a process does its work though it did not a moment ago, and says how long that took.
async fn takes_over(cluster: &Cluster, name: &'static str, metric: &str) -> anyhow::Result<Duration> {
    let before = cluster.metrics(name).await?.sum(metric, &[]);
    let since = Instant::now();
    let what = format!("{name} takes over");
    let moved = wait::until_true(&what, DEADLINE, async || {
        cluster.metrics(name).await.is_ok_and(|m| m.sum(metric, &[]) > before)
    });
    moved.await.with_context(|| cluster.logs())?;
    Ok(since.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reading_is_stored_once_though_owners_come_and_go() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(simple::options()).await?;
    let progress = Arc::new(Progress::default());
    let finish = CancellationToken::new();
    let mut device = simple::device("a", simple::payloads(0, 60_000, 20));
    device.pace = Pace::per_second(PER_SECOND);
    device.finish = finish.clone();
    let sending = tokio::spawn(device.run(cluster.plant.mqtt, progress.clone(), CancellationToken::new()));

    // Who takes gateways.
    let owner = cluster.who(&LINKS, COMMITTED, DEADLINE).await?;
    let second = other(LINKS, owner);
    cluster.kill_node(owner)?;
    println!("link killed: {:?}", takes_over(&cluster, second, COMMITTED).await?);
    cluster.start_node(owner)?;
    cluster.node_ready(owner).await?;
    cluster.stop_node(second)?;
    println!("link stopped: {:?}", takes_over(&cluster, owner, COMMITTED).await?);
    cluster.start_node(second)?;
    cluster.node_ready(second).await?;

    // Who writes tables: the second one takes a part of the partitions while the first one inserts.
    let writer = cluster.who(&SINKS, INSERTED, DEADLINE).await?;
    let second = other(SINKS, writer);
    cluster.kill_node(writer)?;
    println!("sink killed: {:?}", takes_over(&cluster, second, INSERTED).await?);
    cluster.start_node(writer)?;
    cluster.node_ready(writer).await?;
    cluster.stop_node(second)?;
    println!("sink stopped: {:?}", takes_over(&cluster, writer, INSERTED).await?);
    cluster.start_node(second)?;
    cluster.node_ready(second).await?;

    // Zombies: frozen until others do their work, then they go on as if nothing had happened.
    for names in LINKS.into_iter().zip(SINKS).map(<[&str; 2]>::from) {
        names.iter().try_for_each(|name| cluster.pause_node(name))?;
        tokio::time::sleep(FROZEN).await;
        names.iter().try_for_each(|name| cluster.resume_node(name))?;
        for name in names {
            cluster.node_ready(name).await.with_context(|| cluster.logs())?;
        }
    }

    finish.cancel();
    tokio::time::timeout(DEADLINE, sending).await.with_context(|| cluster.logs())??;
    let sent = progress.acknowledged();
    let rows = cluster.plant.rows(STREAM, sent, DEADLINE).await.with_context(|| cluster.logs())?;
    ensure!(rows == sent, "{rows} rows of {sent} readings\n{}", cluster.logs());
    let values = simple::values(&cluster.plant, "a").await?;
    ensure!(values == (0..sent).map(|i| i as f64).collect::<Vec<_>>(), "{} values", values.len());
    let balanced = wait::until_true("the audit balances", DEADLINE, async || {
        cluster.plant.api.audit().await.is_ok_and(|report| report["balanced"] == true)
    });
    balanced.await.with_context(|| cluster.logs())
}
