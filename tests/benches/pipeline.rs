//! `cargo xtask bench pipeline`: ready-made blocks through link, log and sink into ClickHouse, all of it on this machine,
//! with the log in central's folder and in Kafka, beside the engine's own insert of the same rows.
//!
//! `cargo xtask bench pipeline [--json] [--log embedded|kafka|both] [--events 50000000] [--gateways 4]`
//!
//! Gateways are the product's own client over mutual TLS; their blocks of 16,384 rows are encoded and chained before the
//! clock starts, so that the load costs what sending costs. The clock runs from the first block sent to the last row that
//! a query counts. Then the engine writes the table to an Arrow file, in the order in which the rows came, and reads that
//! into a second table of the same columns and settings.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use link::client::Central;
use link::message::Batch;
use record::{GatewayId, StreamName, limits::BATCH_ROWS_MAX};
use tidegate_tests::{
    bench::{
        blocks::{Chain, Machines, gateway_at},
        exit,
        feed::{Gateways, Ready, hello, until},
        number,
        report::Report,
        site::{LogKind, Site},
        wants_json,
    },
    wait,
};
use tokio::sync::watch;

/// Events a second that the embedded log has to reach.
const BAR: f64 = 1e6;
/// What of that the log in Kafka has to reach on the same cores.
const KAFKA_BAR: f64 = 0.5;
/// Partitions and shards of both logs in this run.
const PARTITIONS: u64 = 2;
const TABLE: &str = "load";
const PATIENCE: Duration = Duration::from_secs(900);

fn main() -> std::process::ExitCode {
    exit(bench())
}

fn bench() -> Result<bool> {
    let (events, gateways) = (number("--events", 50_000_000)?, number("--gateways", 4)?.max(1));
    let began = Instant::now();
    let loads = loads(events, gateways)?;
    let bytes: usize = loads.iter().flat_map(|load| load.batches.iter()).map(|b| b.bytes.len()).sum();
    eprintln!("{events} events encoded in {:.1} s", began.elapsed().as_secs_f64());
    let mut report = Report::new("pipeline");
    report.figure("events", events as f64);
    report.figure("block_bytes_per_event", bytes as f64 / events as f64);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut rates = Vec::new();
    for log in LogKind::asked()? {
        rates.push((log, runtime.block_on(through(log, &loads, events, &mut report))?));
    }
    if let [(_, embedded), (_, kafka)] = rates[..] {
        report.at_least("kafka_to_embedded_ratio", kafka / embedded, KAFKA_BAR);
    }
    Ok(report.finish(wants_json()))
}

/// A gateway and all that it will send.
struct Load {
    gateway: GatewayId,
    chain: Chain,
    batches: Arc<[Batch]>,
}

/// As many gateways in each partition; each encodes its share on a thread of its own.
fn loads(events: u64, gateways: u64) -> Result<Vec<Load>> {
    let threads: Vec<_> = (0..gateways)
        .map(|n| {
            let share = events / gateways + u64::from(n < events % gateways);
            std::thread::spawn(move || load(n, share))
        })
        .collect();
    let joined = threads.into_iter().map(|t| t.join().map_err(|_| anyhow::anyhow!("encoding failed"))?);
    joined.collect()
}

fn load(n: u64, events: u64) -> Result<Load> {
    let gateway = gateway_at(n % PARTITIONS, PARTITIONS, n)?;
    let machines = Machines::of(&gateway)?;
    let mut chain = Chain::new(&StreamName::new(TABLE)?, machines.schema());
    let mut batches = Vec::new();
    while chain.next() <= events {
        let rows = (events + 1 - chain.next()).min(BATCH_ROWS_MAX as u64);
        batches.push(chain.append(machines.encode(chain.next(), rows)?, rows));
    }
    Ok(Load { gateway, chain, batches: batches.into() })
}

/// One log's run; events a second.
async fn through(log: LogKind, loads: &[Load], events: u64, report: &mut Report) -> Result<f64> {
    let site = Site::whole(log).await?;
    let (go, let_go) = watch::channel(false);
    let (mut gateways, mut told) = (Gateways::new(), Vec::new());
    for load in loads {
        let central = Central::new(
            vec![format!("https://{}", site.plant.link)],
            site.plant.issue(load.gateway.as_str())?,
        );
        let ready = Ready::new(hello(&load.gateway, &[&load.chain]), load.batches.clone(), let_go.clone());
        told.push((ready.told(), load.chain.next() - 1));
        gateways.start(central, ready);
    }
    for (told, _) in &mut told {
        until(told, Duration::from_secs(60), |t| t.connected).await.with_context(|| site.logs())?;
    }
    let before = site.cost()?;
    go.send(true)?;
    for (told, last) in &mut told {
        until(told, PATIENCE, |t| t.acked == *last).await.with_context(|| site.logs())?;
    }
    let acked = site.cost()?;
    site.rows(TABLE, events, PATIENCE).await?;
    let after = site.cost()?;
    ensure!(told.iter().all(|(t, _)| t.borrow().disconnected == 0), "a session ended\n{}", site.logs());
    gateways.stop().await?;

    let (seconds, cpu) = after.since(&before);
    let (rate, millions, log) = (events as f64 / seconds, events as f64 / 1e6, log.name());
    report.figure(&format!("{log}_acknowledged_per_second"), events as f64 / acked.since(&before).0);
    let bar = if log == "kafka" { KAFKA_BAR * BAR } else { BAR };
    report.at_least(&format!("{log}_events_per_second"), rate, bar);
    for (name, seconds) in &cpu {
        report.figure(&format!("{log}_cpu_seconds_per_million_{name}"), seconds / millions);
    }
    report.figure(&format!("{log}_cores_busy"), cpu.values().sum::<f64>() / seconds);
    let (engine, cpu) = engine_alone(&site, events).await?;
    report.figure(&format!("{log}_engine_alone_per_second"), engine);
    report.figure(&format!("{log}_engine_alone_cpu_seconds_per_million"), cpu / millions);
    report.figure(&format!("{log}_to_engine_ratio"), rate / engine);
    Ok(rate)
}

/// The same rows from a file into a table like central's: rows a second, and CPU seconds of the engine.
async fn engine_alone(site: &Site, events: u64) -> Result<(f64, f64)> {
    let file = site.plant.path("rows.arrows");
    let source = format!("file('{}', ArrowStream)", file.display());
    let export = format!(
        "INSERT INTO FUNCTION {source} SELECT * FROM tidegate.{TABLE} ORDER BY _partition, _offset, seq SETTINGS \
         output_format_arrow_compression_method = 'none', output_format_arrow_low_cardinality_as_dictionary = 1, \
         max_block_size = 1000000, max_bytes_before_external_sort = 2000000000"
    );
    site.sql(&export).await?;
    // Merges of central's table are central's cost.
    let merged = async || site.sql("SELECT count() FROM system.merges").await.is_ok_and(|n| n == "0");
    wait::until_true("no merge runs", PATIENCE, merged).await?;
    site.sql(&format!("CREATE TABLE tidegate.alone AS tidegate.{TABLE}")).await?;
    let before = site.cost()?;
    site.sql(&format!("INSERT INTO tidegate.alone SELECT * FROM {source}")).await?;
    let (seconds, cpu) = site.cost()?.since(&before);
    let stored = site.count("alone").await?;
    ensure!(stored == events, "the engine stored {stored} of {events} rows");
    std::fs::remove_file(file)?;
    Ok((events as f64 / seconds, cpu["clickhouse"]))
}
