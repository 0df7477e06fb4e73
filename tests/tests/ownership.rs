//! How long the streams of a gateway have no owner: its shard moves to another process within a second of a clean end, and
//! within ten of a SIGKILL, while devices go on to be acknowledged.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tidegate_tests::cluster::{Cluster, LINKS};
use tidegate_tests::mqtt_load::Progress;
use tidegate_tests::pace::Pace;
use tidegate_tests::simple::{self, STREAM};
use tidegate_tests::wait;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(120);
const AFTER_STOP: Duration = Duration::from_secs(1);
const AFTER_KILL: Duration = Duration::from_secs(10);
const STOPS: usize = 5;
const KILLS: usize = 2;
/// Rows that one process committed since it started.
const COMMITTED: &str = "tidegate_link_rows_total";
/// Shards that one process commits; there are two in all.
const SHARDS: &str = "tidegate_link_shards";

/// From the wish, or the end, of one process to the first commit of the other.
async fn moves(
    cluster: &mut Cluster,
    from: &'static str,
    end: impl FnOnce(&mut Cluster, &str) -> anyhow::Result<()>,
) -> anyhow::Result<Duration> {
    let to = if from == LINKS[0] { LINKS[1] } else { LINKS[0] };
    let before = cluster.metrics(to).await?.sum(COMMITTED, &[]);
    let since = Instant::now();
    end(cluster, from)?;
    let moved = wait::until_true("the other one commits", DEADLINE, async || {
        cluster.metrics(to).await.is_ok_and(|m| m.sum(COMMITTED, &[]) > before)
    });
    moved.await.with_context(|| cluster.logs())?;
    Ok(since.elapsed())
}

/// Who commits the gateway's streams, when the shards are divided and nothing moves.
async fn settled(cluster: &Cluster) -> anyhow::Result<&'static str> {
    let mut known = [f64::MAX; 2];
    wait::until("the shards are divided", DEADLINE, async || {
        let mut owner = None;
        for (name, known) in LINKS.into_iter().zip(&mut known) {
            let metrics = cluster.metrics(name).await.ok()?;
            if metrics.sum(SHARDS, &[]) != 1.0 {
                *known = f64::MAX;
                return None;
            }
            let now = metrics.sum(COMMITTED, &[]);
            if now > std::mem::replace(known, now) {
                owner = Some(name);
            }
        }
        owner
    })
    .await
    .with_context(|| cluster.logs())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_moves_at_once_after_a_clean_end_and_soon_after_a_kill() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(simple::options()).await?;
    let (progress, finish) = (Arc::new(Progress::default()), CancellationToken::new());
    let mut device = simple::device("a", simple::payloads(0, 60_000, 20));
    device.pace = Pace::per_second(200.0);
    device.finish = finish.clone();
    let sending = tokio::spawn(device.run(cluster.plant.mqtt, progress.clone(), CancellationToken::new()));

    let (mut stopped, mut killed) = (Vec::new(), Vec::new());
    for round in 0..STOPS + KILLS {
        let stop = round < STOPS;
        let owner = settled(&cluster).await?;
        let acknowledged = progress.acknowledged();
        let took = if stop {
            let took = moves(&mut cluster, owner, |cluster, name| cluster.ask_node_to_stop(name)).await?;
            stopped.push(took);
            // It has ended, or is about to.
            cluster.stop_node(owner)?;
            took
        } else {
            let took = moves(&mut cluster, owner, Cluster::kill_node).await?;
            killed.push(took);
            took
        };
        let meanwhile = progress.acknowledged() - acknowledged;
        println!(
            "{owner} {}: {took:?}, {meanwhile} acknowledged meanwhile",
            if stop { "stopped" } else { "killed" }
        );
        // The gateway takes them in whoever owns the shard.
        ensure!(meanwhile > 0 || took < Duration::from_millis(100), "devices waited\n{}", cluster.logs());
        cluster.start_node(owner)?;
        cluster.node_ready(owner).await?;
    }
    finish.cancel();
    tokio::time::timeout(DEADLINE, sending).await.with_context(|| cluster.logs())??;
    let sent = progress.acknowledged();
    cluster.plant.rows(STREAM, sent, DEADLINE).await.with_context(|| cluster.logs())?;
    let values = simple::values(&cluster.plant, "a").await?;
    ensure!(values == (0..sent).map(|i| i as f64).collect::<Vec<_>>(), "{} values of {sent}", values.len());
    // One may be late: other work on the machine takes its time, too.
    let in_time = stopped.iter().filter(|took| **took < AFTER_STOP).count();
    ensure!(in_time >= STOPS - 1, "{stopped:?} after a clean end\n{}", cluster.logs());
    let longest = stopped.iter().max();
    ensure!(longest < Some(&(2 * AFTER_STOP)), "{stopped:?} after a clean end\n{}", cluster.logs());
    ensure!(killed.iter().all(|took| *took < AFTER_KILL), "{killed:?} after a kill\n{}", cluster.logs());
    Ok(())
}
