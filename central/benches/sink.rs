//! Rows a second from central's log through the sink into tables, beside the engine's own `INSERT SELECT FROM file` of
//! the same rows, in one run.
//!
//! `cargo xtask bench sink [--json] [--rounds 5] [--rows 4000000] [--range ROWS]`
//!
//! A round: the log is filled with ready-made blocks, as gateways send them; the sink stores them, intents, tokens and
//! offset commits included; then the engine writes the table to an Arrow file, in the order in which the rows came, and
//! reads that into a second table of the same columns and settings. Both sides are timed from the start to the last row stored. The sink decompresses and
//! decodes what the engine gets as plain Arrow: that is part of its work.

use daemon::{
    clock::{SystemClock, SystemRandom},
    metrics::Registry,
    tasks::Tasks,
};
use journal::RealDisk;
use record::{
    BatchBuilder, Column, ColumnType, Digest, EventTime, GatewayId, Incarnation, Seq, StreamName,
    StreamSchema, Value, block, chain_hash, limits::BATCH_ROWS_MAX,
};
use std::{
    error::Error,
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};
use tidegate_central::{
    clickhouse::{
        Account, ClickHouse, Tables,
        process::{Embedded, EmbeddedOptions},
    },
    log::{ContentType, DataRecord, Log, Partition, RecordHeaders, Shard, embedded},
    sink::{self, SinkHandle, SinkMetrics, SinkOptions},
};
use tokio::sync::oneshot;

/// What the sink has to reach of the engine's own rate.
const BAR: f64 = 0.8;
const PATIENCE: Duration = Duration::from_secs(300);
const START_NS: i128 = 1_700_000_000_000_000_000;
const DEVICES: u64 = 200;

type Failure = Box<dyn Error>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("sink: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(bench(&args)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("sink: {e}");
            ExitCode::FAILURE
        }
    }
}

fn number(args: &[String], name: &str, default: u64) -> u64 {
    let at = args.iter().position(|arg| arg == name);
    at.and_then(|at| args.get(at + 1)).and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn bench(args: &[String]) -> Result<bool, Failure> {
    let (rounds, rows) = (number(args, "--rounds", 5).max(1), number(args, "--rows", 4_000_000));
    let usual = SinkOptions::default();
    let options = SinkOptions { rows_max: number(args, "--range", usual.rows_max), ..usual };
    let (mut ours, mut engines, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..rounds {
        let round = round(rows, options).await?;
        let (sink, engine) =
            (rows as f64 / round.sink.as_secs_f64(), rows as f64 / round.engine.as_secs_f64());
        eprintln!("round {n}: sink {sink:.0} rows/s, engine {engine:.0} rows/s, ratio {:.2}", sink / engine);
        ours.push(sink);
        engines.push(engine);
        ratios.push(sink / engine);
    }
    let (ours, engines, ratio) = (median(&mut ours), median(&mut engines), median(&mut ratios));
    let holds = ratio >= BAR;
    eprintln!("sink {ours:.0} rows/s, the engine alone {engines:.0} rows/s: {ratio:.2} (bar {BAR})");
    if args.iter().any(|arg| arg == "--json") {
        let value = (ratio * 1000.0).round() / 1000.0;
        let out = serde_json::json!({
            "name": "sink",
            "figures": {
                "rows": rows, "rounds": rounds,
                "sink_rows_per_second": ours.round(), "engine_rows_per_second": engines.round(),
                "sink_to_engine_ratio": value,
            },
            "bars": [{
                "figure": "sink_to_engine_ratio", "operator": ">=", "bar": BAR, "value": value, "holds": holds,
            }],
        });
        println!("{out}");
    }
    Ok(holds)
}

/// What one round took.
struct Round {
    sink: Duration,
    engine: Duration,
}

async fn round(rows: u64, sink: SinkOptions) -> Result<Round, Failure> {
    let dir = tempfile::tempdir_in(".")?;
    let folder = dir.path().canonicalize()?;
    let options = embedded::EmbeddedOptions::default();
    let log: Arc<dyn Log> =
        Arc::new(embedded::Embedded::open(RealDisk, &folder.join("log"), &options, &SystemRandom)?);
    fill(&log, rows).await?;

    let mut tasks = Tasks::new();
    let clickhouse = start_server(&folder, &mut tasks)?;
    let (stop, stopped) = oneshot::channel::<&'static str>();
    let tables = Arc::new(Tables::new(clickhouse.clone(), log.partitions()));
    until_it_answers(&clickhouse).await?;
    let begun = Instant::now();
    let sink = sink::start(
        sink::Parts {
            log: log.clone(),
            clickhouse: clickhouse.clone(),
            tables,
            metrics: SinkMetrics::new(&Registry::new()),
            clock: Arc::new(SystemClock::new()),
            options: sink,
        },
        &mut tasks,
    );
    let running =
        tokio::spawn(tasks.run(async { stopped.await.unwrap_or("dropped") }, Duration::from_secs(30)));
    settled(&log, &sink).await?;
    let sink = begun.elapsed();
    let engine = engine_alone(&clickhouse, &folder, rows).await?;
    let _ = stop.send("the round is over");
    running.await?;
    Ok(Round { sink, engine })
}

/// Half of the rows into each partition, by one gateway each.
async fn fill(log: &Arc<dyn Log>, rows: u64) -> Result<(), Failure> {
    let partitions = u64::from(log.partitions());
    for n in 0..log.partitions() {
        let mut gateway = Gateway::new(n)?;
        let share = rows / partitions + u64::from(u64::from(n) < rows % partitions);
        while gateway.next <= share {
            let record = gateway.record((share + 1 - gateway.next).min(BATCH_ROWS_MAX as u64))?;
            log.commit_group(Shard(n), vec![record], Vec::new()).await?;
        }
    }
    Ok(())
}

fn start_server(folder: &Path, tasks: &mut Tasks) -> Result<ClickHouse, Failure> {
    let here = std::env::current_exe()?;
    let programs = here.parent().and_then(Path::parent).ok_or("the bench lies in no target folder")?;
    let options = EmbeddedOptions {
        program: programs.join("tidegate-clickhouse"),
        library: None,
        folder: folder.join("clickhouse"),
        listen: ([127, 0, 0, 1], 0).into(),
    };
    let server = Embedded::prepare(options, &SystemRandom)?;
    let account =
        Account { user: "default".into(), password: server.password().into(), database: "tidegate".into() };
    let clickhouse = ClickHouse::following(server.url(), account);
    let restarts = Registry::new().counter("restarts_total", "Restarts.");
    let token = tasks.token();
    tasks.spawn("clickhouse", async move {
        server.run(restarts, token).await;
        Ok(())
    });
    Ok(clickhouse)
}

async fn until_it_answers(clickhouse: &ClickHouse) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    while clickhouse.ping(Duration::from_secs(1)).await.is_err() {
        if Instant::now() > deadline {
            return Err("the server does not start".into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn settled(log: &Arc<dyn Log>, sink: &SinkHandle) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    for n in 0..log.partitions() {
        let mut lane = sink.watch(Partition(n)).ok_or("there is no such lane")?;
        let end = *log.tail_moved("bench", Partition(n)).borrow();
        let through = lane.wait_for(|status| status.position >= end);
        tokio::time::timeout(deadline.saturating_duration_since(Instant::now()), through).await??;
    }
    Ok(())
}

/// The same rows from a file into a table like the sink's.
async fn engine_alone(clickhouse: &ClickHouse, folder: &Path, rows: u64) -> Result<Duration, Failure> {
    let file = folder.join("rows.arrows");
    let source = format!("file('{}', ArrowStream)", file.display());
    let count = async |table: &str| -> Result<u64, Failure> {
        let sql = format!("SELECT count() FROM tidegate.{table}");
        Ok(clickhouse.rows::<u64>(&sql, PATIENCE).await?.first().copied().unwrap_or(0))
    };
    if count("load").await? != rows {
        return Err("the sink did not store every row once".into());
    }
    let export = format!(
        "INSERT INTO FUNCTION {source} SELECT * FROM tidegate.load ORDER BY _partition, _offset, seq SETTINGS \
         output_format_arrow_compression_method = 'none', output_format_arrow_low_cardinality_as_dictionary = 1, \
         max_block_size = 1000000"
    );
    clickhouse.execute(&export, PATIENCE).await?;
    clickhouse.execute("CREATE TABLE tidegate.alone AS tidegate.load", PATIENCE).await?;
    let begun = Instant::now();
    clickhouse.execute(&format!("INSERT INTO tidegate.alone SELECT * FROM {source}"), PATIENCE).await?;
    let took = begun.elapsed();
    if count("alone").await? != rows {
        return Err("the engine did not store every row".into());
    }
    Ok(took)
}

/// A gateway whose machines report in turn, a second apart.
struct Gateway {
    id: GatewayId,
    stream: StreamName,
    schema: Arc<StreamSchema>,
    devices: Vec<String>,
    next: u64,
    hash: Digest,
}

impl Gateway {
    fn new(n: u32) -> Result<Self, Failure> {
        let column = |name: &str, ty| Column { name: name.into(), ty };
        let columns = vec![
            column("temperature", ColumnType::Float64),
            column("cycles", ColumnType::Int64),
            column("mode", ColumnType::String),
        ];
        Ok(Self {
            id: GatewayId::new(&format!("plant-{n}"))?,
            stream: StreamName::new("load")?,
            schema: Arc::new(StreamSchema::new(columns)?),
            devices: (0..DEVICES).map(|d| format!("plant-{n}-machine-{d:03}")).collect(),
            next: 1,
            hash: Digest::default(),
        })
    }

    fn record(&mut self, rows: u64) -> Result<DataRecord, Failure> {
        let mut builder = BatchBuilder::new(self.schema.clone());
        for seq in self.next..self.next + rows {
            let time = EventTime::from_ns(START_NS + i128::from(seq / DEVICES) * 1_000_000_000)?;
            // A slow wave with noise, as sensors give it.
            let noise = (seq.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as f64 / 4096.0;
            let temperature = 80.0 + (seq as f64 / 50_000.0).sin() * 10.0 + noise;
            let mode = if seq % 17 == 0 { "idle" } else { "running" };
            let values = [Value::Float(temperature), Value::Int((seq / DEVICES) as i64), Value::Str(mode)];
            builder.push(time, &self.devices[(seq % DEVICES) as usize], &values)?;
        }
        let bytes = block::encode(&builder.finish()?)?;
        let (first, last) = (Seq(self.next), Seq(self.next + rows - 1));
        let (prev_hash, incarnation, schema) = (self.hash, Incarnation(1), self.schema.fingerprint());
        self.hash = chain_hash(&prev_hash, &self.stream, incarnation, first, last, schema, &bytes);
        self.next += rows;
        let headers = RecordHeaders {
            content_type: ContentType::ArrowStream,
            stream: self.stream.clone(),
            schema,
            gateway: self.id.clone(),
            incarnation,
            first_seq: first,
            last_seq: last,
            rows: u32::try_from(rows)?,
            prev_hash,
            hash: self.hash,
            produced_at_ns: START_NS as i64,
        };
        Ok(DataRecord { headers, bytes: bytes.into() })
    }
}
