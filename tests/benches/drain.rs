//! `cargo xtask bench drain`: how fast a gateway with two gigabytes of backlog gives them to central after an outage, beside
//! what the disk and loopback of this machine do without us.
//!
//! `cargo xtask bench drain [--json] [--bytes 2000000000]`
//!
//! The backlog is the gateway's output log, filled over MQTT while central is away. Before central comes back the kernel is
//! made to forget the log's files, so that they come from the disk. Central is a process with the role `link`: it takes
//! blocks, checks their chain and makes them durable in its own log, on the same disk and the same cores. The rate is that
//! of blocks' bytes from the first acknowledged group to the last.
//!
//! Disk is the slower of two plain programs: one reads the gateway's files in order, cold, the other writes as many bytes to
//! one file and syncs every 4 MiB, which is about what central commits at once. Loopback is one TCP connection. On one machine
//! both ends of the link have one disk: what it does when it reads and writes at the same time is told besides.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tidegate_tests::{
    bench::{
        exit,
        flood::{Flood, run},
        number, plain, plain_stream,
        process::cpu_seconds,
        report::Report,
        wants_json,
    },
    plant::{Options, Plant},
    wait,
};
use tokio::runtime::Runtime;

/// What the drain has to reach of the slower of disk and loopback.
const BAR: f64 = 0.8;
/// A group of central's.
const GROUP: u64 = 4 << 20;
const PATIENCE: Duration = Duration::from_secs(300);

fn main() -> std::process::ExitCode {
    exit(bench())
}

fn bench() -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut report = Report::new("drain");
    let roles = vec!["link"];
    let mut plant = Plant::prepare(&Options { quota: "16 GiB".into(), roles, ..plain_stream("load") })?;
    let backlog = fill(&runtime, &mut plant, number("--bytes", 2_000_000_000)?)?;
    report.figure("backlog_mb", backlog as f64 / 1e6);

    let files = plain::files(&plant.path("gateway-data/output"))?;
    plain::forget(&files)?;
    let read = plain::read(&files)?;
    let write = plain::write(&plant.path("plain"), backlog, GROUP)?;
    plain::forget(&files)?;
    let copy = plain::copy(&files, &plant.path("plain"), GROUP)?;
    let loopback = plain::loopback(backlog)?;
    report.figure("plain_read_mb_per_second", read / 1e6);
    report.figure("plain_write_mb_per_second", write / 1e6);
    report.figure("plain_copy_mb_per_second", copy / 1e6);
    report.figure("plain_loopback_mb_per_second", loopback / 1e6);

    plain::forget(&files)?;
    let drain = runtime.block_on(drain(&mut plant, &mut report))?;
    report.figure("drain_mb_per_second", drain / 1e6);
    report.figure("drain_to_copy", drain / copy);
    let bound = read.min(write).min(loopback);
    report.at_least("drain_to_slower_of_disk_and_loopback", drain / bound, BAR);
    Ok(report.finish(wants_json()))
}

/// Fills the output log while central is away, until the lane has taken everything; bytes of the log.
fn fill(runtime: &Runtime, plant: &mut Plant, bytes: u64) -> Result<u64> {
    plant.start_gateway()?;
    runtime.block_on(plant.gateway_listens())?;
    let output = async |plant: &Plant| -> Result<f64> {
        Ok(plant.gateway_metrics().await?.sum("tidegate_buffer_bytes", &[("log", "output")]))
    };
    while runtime.block_on(output(plant))? < bytes as f64 {
        run(&Flood {
            server: plant.mqtt,
            connections: 10,
            in_flight: 500,
            messages: (bytes / 8_192).clamp(1_000, 40_000),
            // Large ones: what is measured is bytes, not the number of events.
            payload_bytes: 8_192,
            noise: true,
            rate: None,
            topic_root: "load".into(),
            deadline: PATIENCE,
        })?;
    }
    let caught_up = async || {
        let metrics = plant.gateway_metrics().await;
        metrics.is_ok_and(|m| m.sum("tidegate_lane_backlog_frames", &[]) == 0.0)
    };
    runtime.block_on(wait::until_true("the lane has caught up", PATIENCE, caught_up))?;
    Ok(runtime.block_on(output(plant))? as u64)
}

/// Starts central and follows it until the gateway has nothing more; bytes of blocks a second.
async fn drain(plant: &mut Plant, report: &mut Report) -> Result<f64> {
    plant.start_central()?;
    plant.central_ready().await?;
    let pids =
        [plant.gateway.as_ref().context("started")?.pid(), plant.central.as_ref().context("started")?.pid()];
    let stored =
        async || -> Result<f64> { Ok(plant.central_metrics().await?.sum("tidegate_link_bytes_total", &[])) };
    let mut first: Option<(Instant, f64, [f64; 2])> = None;
    let mut last = (Instant::now(), 0.0, [0.0; 2]);
    let begun = Instant::now();
    loop {
        let bytes = stored().await?;
        if bytes > last.1 {
            last = (Instant::now(), bytes, [cpu_seconds(pids[0])?, cpu_seconds(pids[1])?]);
            first.get_or_insert(last);
        } else if bytes > 0.0 {
            let gateway = plant.gateway_metrics().await?;
            if gateway.sum("tidegate_forward_backlog_rows", &[]) == 0.0 {
                break;
            }
        }
        ensure!(begun.elapsed() < PATIENCE, "the backlog is not drained\n{}", plant.logs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let first = first.context("nothing was drained")?;
    let (seconds, bytes) = ((last.0 - first.0).as_secs_f64(), last.1 - first.1);
    report.figure("drained_mb", last.1 / 1e6);
    for (i, name) in ["gateway", "central"].into_iter().enumerate() {
        let cpu = last.2[i] - first.2[i];
        report.figure(&format!("{name}_cpu_seconds_per_gb"), cpu / (bytes / 1e9));
        report.figure(&format!("{name}_cores"), cpu / seconds);
    }
    Ok(bytes / seconds)
}
