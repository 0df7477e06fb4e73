//! `cargo xtask bench latency`: from PUBLISH to a row that a query sees, at 10,000 events a second, with everything
//! real in between: gateway, mTLS, central's log, ClickHouse.
//!
//! Event n is sent n / rate seconds after the start and carries its number in its time; the newest time that a query
//! sees tells which events are queryable. So a figure is too high by up to one round of asking, never too low.

use anyhow::Result;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tidegate_tests::{
    bench::{
        exit,
        flood::{Flood, run},
        plain_stream,
        report::{Report, percentile},
        wants_json,
    },
    plant::Plant,
    tables::Api,
};

const RATE: u64 = 10_000;
const MESSAGES: u64 = 300_000;

fn main() -> std::process::ExitCode {
    exit(bench())
}

fn bench() -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let plant = runtime.block_on(Plant::start(&plain_stream("load")))?;
    let flood = Flood {
        server: plant.mqtt,
        connections: 10,
        in_flight: 500,
        messages: MESSAGES,
        payload_bytes: 128,
        noise: false,
        rate: Some(RATE),
        topic_root: "load".into(),
        deadline: Duration::from_secs(120),
    };
    let over = Arc::new(AtomicBool::new(false));
    let start = Instant::now();
    let watcher = {
        let (api, over) = (plant.api, over.clone());
        runtime.spawn(async move { watch(api, start, &over).await })
    };
    let sent = run(&flood)?;
    let all = runtime.block_on(plant.rows("load", MESSAGES, Duration::from_secs(60)))?;
    over.store(true, Ordering::SeqCst);
    let mut lags = runtime.block_on(watcher)?;
    let mut report = Report::new("latency");
    report.figure("acknowledged_per_second", sent.per_second());
    report.figure("rows", all as f64);
    report.figure("answers", lags.len() as f64);
    report.figure("publish_to_queryable_p50_ms", percentile(&mut lags, 0.5));
    report.figure("publish_to_queryable_p99_ms", percentile(&mut lags, 0.99));
    Ok(report.finish(wants_json()))
}

/// Asks for the number of rows until all are there; each answer tells how long ago the newest of them was sent.
async fn watch(api: Api, start: Instant, over: &AtomicBool) -> Vec<f64> {
    let mut lags = Vec::new();
    let mut seen = 0;
    while !over.load(Ordering::SeqCst) {
        let rows = api.count("load").await.unwrap_or(seen);
        let now = start.elapsed().as_secs_f64();
        // Between two answers every event in between became visible; each waited until this answer.
        if rows > seen {
            let step = ((rows - seen) / 100).max(1);
            let mut n = seen + 1;
            while n <= rows {
                lags.push((now - n as f64 / RATE as f64) * 1e3);
                n += step;
            }
            seen = rows;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    lags
}
