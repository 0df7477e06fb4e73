//! `cargo xtask bench footprint`: what the gateway takes on a device: size of the stripped program, memory when idle
//! and under load, and how it comes back with two gigabytes waiting.
//!
//! The program is the one of `cargo xtask release-gateway` (`TIDEGATE_DIST_GATEWAY` names another).

use anyhow::{Context as _, Result};
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};
use tidegate_tests::{
    bench::{
        exit,
        flood::{Flood, run},
        plain_stream,
        process::{peak_rss_mb, rss_mb},
        report::Report,
        wants_json,
    },
    plant::{Options, Plant},
    program, wait,
};
use tokio::runtime::Runtime;

const BACKLOG_BYTES: f64 = 2e9;

fn main() -> std::process::ExitCode {
    exit(bench())
}

fn bench() -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut report = Report::new("footprint");
    let program = dist_gateway()?;
    let size = std::fs::metadata(&program)?.len() as f64 / 1e6;
    report.at_most("stripped_program_mb", size, 12.0);
    let options = Options { gateway_program: Some(program), ..plain_stream("load") };
    idle_and_load(&runtime, &options, &mut report)?;
    reopen(&runtime, &options, &mut report)?;
    Ok(report.finish(wants_json()))
}

fn dist_gateway() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("TIDEGATE_DIST_GATEWAY") {
        return Ok(path.into());
    }
    let folder = program::folder()?;
    let path = folder.parent().context("no target folder")?.join("dist/tidegate-gateway");
    anyhow::ensure!(path.is_file(), "no {}: run `cargo xtask release-gateway`", path.display());
    Ok(path)
}

fn idle_and_load(runtime: &Runtime, options: &Options, report: &mut Report) -> Result<()> {
    let plant = runtime.block_on(Plant::start(options))?;
    let pid = plant.gateway.as_ref().context("started above")?.pid();
    report.at_most("rss_idle_mb", rss_mb(pid)?, 20.0);
    let sent = run(&flood(&plant, 1_000_000, 128, Some(100_000)))?;
    report.at_least("load_acknowledged_per_second", sent.per_second(), 95_000.0);
    report.at_most("rss_under_load_peak_mb", peak_rss_mb(pid)?, 48.0);
    Ok(())
}

/// Fills the buffer while central is away, kills the gateway and starts it again; its peak is looked at when everything
/// that waited for a lane has gone through it.
fn reopen(runtime: &Runtime, options: &Options, report: &mut Report) -> Result<()> {
    let options = Options { quota: "8 GiB".into(), ..options.clone() };
    let mut plant = Plant::prepare(&options)?;
    plant.start_gateway()?;
    let mqtt = plant.mqtt;
    let open = async || std::net::TcpStream::connect(mqtt).is_ok();
    runtime.block_on(wait::until_true("the listener is open", Duration::from_secs(60), open))?;
    // 8 KiB a message: what is measured is the backlog, not the number of events.
    let mut backlog = 0.0;
    while backlog < BACKLOG_BYTES {
        run(&Flood { noise: true, ..flood(&plant, 40_000, 8_192, None) })?;
        backlog = runtime.block_on(plant.gateway_metrics())?.sum("tidegate_buffer_bytes", &[]);
    }
    let pid = plant.gateway.as_ref().context("started above")?.pid();
    report.figure("rss_while_filling_peak_mb", peak_rss_mb(pid)?);
    plant.kill_gateway();
    report.at_least("reopened_backlog_mb", backlog / 1e6, BACKLOG_BYTES / 1e6);
    let start = Instant::now();
    plant.start_gateway()?;
    runtime.block_on(wait::until_true("the listener is open again", Duration::from_secs(60), open))?;
    report.at_most("reopen_2gb_seconds", start.elapsed().as_secs_f64(), 1.0);
    let caught_up = async || {
        let metrics = plant.gateway_metrics().await;
        metrics.is_ok_and(|m| m.sum("tidegate_lane_backlog_frames", &[]) == 0.0)
    };
    runtime.block_on(wait::until_true("the lane has caught up", Duration::from_secs(120), caught_up))?;
    let pid = plant.gateway.as_ref().context("started above")?.pid();
    report.at_most("reopen_2gb_rss_peak_mb", peak_rss_mb(pid)?, 48.0);
    Ok(())
}

fn flood(plant: &Plant, messages: u64, payload_bytes: usize, rate: Option<u64>) -> Flood {
    Flood {
        server: plant.mqtt,
        connections: 10,
        in_flight: 500,
        messages,
        payload_bytes,
        noise: false,
        rate,
        topic_root: "load".into(),
        deadline: Duration::from_secs(300),
    }
}
