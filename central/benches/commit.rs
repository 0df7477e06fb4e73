//! How long one group takes to be committed to a real Kafka: four blocks of 64 KiB and the head of their stream in one
//! transaction, twenty times a second, through the log's own `commit_group`.
//!
//! `cargo xtask bench commit [--json] [--seconds 60] [--per-second 20] [--blocks 4]`
//!
//! The broker is one node on this machine, as `cargo xtask kafka` starts it (`TIDEGATE_TEST_KAFKA` names another).
//! A group is begun when it is due, also when the one before it was late.

use daemon::clock::SystemRandom;
use record::{
    Digest, GatewayId, Incarnation, Seq, StreamName, chain_hash,
    clock::{Random as _, SeededRandom},
};
use std::{
    error::Error,
    path::PathBuf,
    process::{Command, ExitCode},
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tidegate_central::log::{
    ContentType, DataRecord, Head, Log, Progress, ProgressRecord, RecordHeaders, Shard,
    kafka::{ClientOptions, Kafka, KafkaOptions},
};

const P50_MS_MAX: f64 = 15.0;
const P99_MS_MAX: f64 = 80.0;
const BLOCK_BYTES: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(60);
/// Groups before the clock starts: connections and producers begin.
const WARM_UP: u64 = 40;

type Failure = Box<dyn Error>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("commit: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(bench(&args)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("commit: {e}");
            ExitCode::from(2)
        }
    }
}

fn number(args: &[String], name: &str, default: u64) -> u64 {
    let at = args.iter().position(|arg| arg == name);
    at.and_then(|at| args.get(at + 1)).and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn percentile(sorted: &[f64], p: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * p).round() as usize).copied().unwrap_or(f64::NAN)
}

async fn bench(args: &[String]) -> Result<bool, Failure> {
    let rate = number(args, "--per-second", 20).max(1);
    let groups = number(args, "--seconds", 60) * rate;
    let blocks = number(args, "--blocks", 4);
    let broker = Broker::start()?;
    let log = open(&broker).await?;
    log.claim(Shard(0)).await?;
    let mut plant = Plant::new()?;
    for _ in 0..WARM_UP {
        let (records, head) = plant.group(blocks);
        log.commit_group(Shard(0), records, vec![head]).await?;
    }
    let mut took = Vec::new();
    let mut due = tokio::time::interval(Duration::from_secs(1) / u32::try_from(rate)?);
    for _ in 0..groups {
        let (records, head) = plant.group(blocks);
        due.tick().await;
        let begun = Instant::now();
        log.commit_group(Shard(0), records, vec![head]).await?;
        took.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    log.close().await;
    took.sort_by(f64::total_cmp);
    let bars =
        [("p50_ms", percentile(&took, 0.5), P50_MS_MAX), ("p99_ms", percentile(&took, 0.99), P99_MS_MAX)];
    let longest = took.last().copied().unwrap_or(f64::NAN);
    for (figure, value, bar) in bars {
        eprintln!("{figure} {value:.1} (at most {bar})");
    }
    eprintln!("{groups} groups, the longest {longest:.1} ms");
    let rounded = |value: f64| (value * 1000.0).round() / 1000.0;
    if args.iter().any(|arg| arg == "--json") {
        let told = bars.map(|(figure, value, bar)| {
            serde_json::json!({
                "figure": figure, "operator": "<=", "bar": bar, "value": rounded(value), "holds": value <= bar,
            })
        });
        let out = serde_json::json!({
            "name": "commit",
            "figures": {
                "groups": groups, "groups_per_second": rate, "blocks_per_group": blocks,
                "p50_ms": rounded(bars[0].1), "p99_ms": rounded(bars[1].1), "max_ms": rounded(longest),
            },
            "bars": told,
        });
        println!("{out}");
    }
    Ok(bars.iter().all(|(_, value, bar)| value <= bar))
}

/// A log of its own, with its shard owned.
async fn open(broker: &Broker) -> Result<Arc<dyn Log>, Failure> {
    let options = KafkaOptions {
        brokers: vec![broker.address.clone()],
        prefix: format!("b{:016x}", SystemRandom.next_u64()),
        partitions: 1,
        shards: 1,
        replication: 1,
        min_isr: 1,
        retention: Duration::from_secs(3_600),
        client: ClientOptions::default(),
        advertise: Some("https://bench:7443".into()),
        sink: false,
        fanout: false,
    };
    let log: Arc<dyn Log> = Arc::new(Kafka::open(options, Arc::new(SystemRandom)).await?);
    let mut owned = log.shards_owned();
    tokio::time::timeout(PATIENCE, owned.wait_for(|shards| !shards.is_empty())).await??;
    Ok(log)
}

/// A gateway whose blocks have 64 KiB without a pattern.
struct Plant {
    id: GatewayId,
    stream: StreamName,
    noise: SeededRandom,
    head: Head,
}

impl Plant {
    fn new() -> Result<Self, Failure> {
        let head = Head {
            incarnation: Incarnation(1),
            last: Seq(0),
            hash: Digest::default(),
            rows: 0,
            lost: 0,
            rows_before: 0,
            retired: Vec::new(),
        };
        let (id, stream) = (GatewayId::new("plant-1")?, StreamName::new("load")?);
        Ok(Self { id, stream, noise: SeededRandom::new(1), head })
    }

    fn group(&mut self, blocks: u64) -> (Vec<DataRecord>, ProgressRecord) {
        let records = (0..blocks).map(|_| self.record()).collect();
        let value = Progress::Head(self.head.clone());
        (records, ProgressRecord { gateway: self.id.clone(), stream: self.stream.clone(), value })
    }

    fn record(&mut self) -> DataRecord {
        let bytes: Vec<u8> = (0..BLOCK_BYTES / 8).flat_map(|_| self.noise.next_u64().to_le_bytes()).collect();
        let (seq, prev_hash) = (self.head.last.next(), self.head.hash);
        let hash = chain_hash(&prev_hash, &self.stream, self.head.incarnation, seq, seq, 7, &bytes);
        (self.head.last, self.head.hash) = (seq, hash);
        self.head.rows += 1;
        let headers = RecordHeaders {
            content_type: ContentType::ArrowStream,
            stream: self.stream.clone(),
            schema: 7,
            gateway: self.id.clone(),
            incarnation: self.head.incarnation,
            first_seq: seq,
            last_seq: seq,
            rows: 1,
            prev_hash,
            hash,
            produced_at_ns: 5,
        };
        DataRecord { headers, bytes: bytes.into() }
    }
}

/// The broker, from `cargo xtask kafka`, or the one of `TIDEGATE_TEST_KAFKA`.
struct Broker {
    address: String,
    ours: Option<(PathBuf, TempDir)>,
}

impl Broker {
    fn start() -> Result<Self, Failure> {
        if let Ok(address) = std::env::var("TIDEGATE_TEST_KAFKA") {
            return Ok(Self { address, ours: None });
        }
        let here = std::env::current_exe()?;
        let found = here.ancestors().map(|folder| folder.join("xtask")).find(|path| path.is_file());
        let xtask = found.ok_or("xtask is not built: run `cargo build --release --workspace --bins`")?;
        let mut me = Self { address: String::new(), ours: Some((xtask, TempDir::new()?)) };
        let answer: serde_json::Value = serde_json::from_slice(&me.ask("start")?)?;
        me.address = answer["address"].as_str().ok_or("the broker has no address")?.to_owned();
        Ok(me)
    }

    fn ask(&self, what: &str) -> Result<Vec<u8>, Failure> {
        let Some((xtask, folder)) = &self.ours else { return Ok(Vec::new()) };
        let folder = folder.path().join("broker");
        let out = Command::new(xtask).args(["kafka", what, "--json", "--dir"]).arg(folder).output()?;
        if !out.status.success() {
            return Err(String::from_utf8_lossy(&out.stderr).into_owned().into());
        }
        Ok(out.stdout)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Err(error) = self.ask("stop") {
            eprintln!("the broker was not stopped: {error}");
        }
    }
}
