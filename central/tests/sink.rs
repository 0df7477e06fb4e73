//! The sink between the real embedded log and the real embedded server, with both of them and itself cut off.

use daemon::{
    clock::{SystemClock, SystemRandom},
    metrics::Registry,
    tasks::{Exit, Tasks},
};
use journal::RealDisk;
use record::{
    BatchBuilder, Column, ColumnType, Digest, EventTime, GatewayId, Incarnation, Seq, StreamName,
    StreamSchema, Value, block, chain_hash,
};
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};
use tidegate_central::{
    clickhouse::{
        Account, ClickHouse, Reader, Tables,
        process::{Embedded, EmbeddedOptions},
    },
    link::{SchemaGate, SchemaRefusal},
    log::{ContentType, DataRecord, Log, Partition, RecordHeaders, Shard, embedded},
    rules::{Frontier, QueryError, QueryLimits, QuerySource},
    sink::{self, LogFrontier, SinkHandle, SinkMetrics, SinkOptions},
};
use tokio::{sync::oneshot, task::JoinHandle};

const PATIENCE: Duration = Duration::from_secs(60);

fn program() -> PathBuf {
    let here = std::env::current_exe().expect("a path");
    let folder = here.parent().and_then(Path::parent).expect("target/debug/deps");
    let program = folder.join("tidegate-clickhouse");
    assert!(program.is_file(), "{} is not built: cargo build -p tidegate-clickhouse", program.display());
    program
}

/// One life of central's sink and server over a folder.
struct Life {
    stop: oneshot::Sender<&'static str>,
    ended: JoinHandle<Exit>,
    clickhouse: ClickHouse,
    tables: Arc<Tables>,
    sink: SinkHandle,
    registry: Registry,
}

fn open_log(dir: &Path) -> Arc<dyn Log> {
    let options = embedded::EmbeddedOptions::default();
    let log = embedded::Embedded::open(RealDisk, &dir.join("log"), &options, &SystemRandom);
    Arc::new(log.expect("the log opens"))
}

impl Life {
    fn begin(dir: &Path, log: &Arc<dyn Log>) -> Self {
        let options = EmbeddedOptions {
            program: program(),
            library: None,
            folder: dir.join("clickhouse"),
            listen: ([127, 0, 0, 1], 0).into(),
        };
        let server = Embedded::prepare(options, &SystemRandom).expect("prepared");
        let account = Account {
            user: "default".into(),
            password: server.password().into(),
            database: "tidegate".into(),
        };
        let clickhouse = ClickHouse::following(server.url(), account);
        let tables = Arc::new(Tables::new(clickhouse.clone()));
        let mut tasks = Tasks::new();
        let token = tasks.token();
        let registry = Registry::new();
        let restarts = registry.counter("restarts_total", "Restarts.");
        tasks.spawn("clickhouse", async move {
            server.run(restarts, token).await;
            Ok(())
        });
        let parts = sink::Parts {
            log: log.clone(),
            clickhouse: clickhouse.clone(),
            tables: tables.clone(),
            metrics: SinkMetrics::new(&registry),
            clock: Arc::new(SystemClock::new()),
            options: SinkOptions { linger: Duration::from_millis(20), ..SinkOptions::default() },
        };
        let sink = sink::start(parts, &mut tasks);
        let (stop, stopped) = oneshot::channel();
        let ended =
            tokio::spawn(tasks.run(async { stopped.await.unwrap_or("dropped") }, Duration::from_secs(30)));
        Self { stop, ended, clickhouse, tables, sink, registry }
    }

    async fn end(self) {
        self.stop.send("the test").expect("it runs");
        assert_eq!(self.ended.await.expect("joined"), Exit::Clean);
    }

    /// Waits until everything in the log is stored.
    async fn settled(&self, log: &Arc<dyn Log>) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let behind = (0..log.partitions())
                .map(Partition)
                .any(|p| self.sink.status()[p.0 as usize].position < *log.tail_moved("test", p).borrow());
            if !behind {
                return;
            }
            assert!(Instant::now() < deadline, "the sink does not get through: {:?}", self.sink);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn rows<T: clickhouse::RowOwned + clickhouse::RowRead>(&self, sql: &str) -> Vec<T> {
        self.clickhouse.rows(sql, PATIENCE).await.expect(sql)
    }
}

/// A gateway that numbers its rows.
struct Gateway {
    id: GatewayId,
    stream: StreamName,
    columns: Vec<Column>,
    next: u64,
    hash: Digest,
}

impl Gateway {
    fn new(id: &str, stream: &str, columns: &[(&str, ColumnType)]) -> Self {
        let columns = columns.iter().map(|(n, t)| Column { name: (*n).into(), ty: *t }).collect();
        Self {
            id: GatewayId::new(id).expect("valid"),
            stream: StreamName::new(stream).expect("valid"),
            columns,
            next: 1,
            hash: Digest::default(),
        }
    }

    fn record(&mut self, rows: u64) -> DataRecord {
        let schema = Arc::new(StreamSchema::new(self.columns.clone()).expect("valid"));
        let mut builder = BatchBuilder::new(schema.clone());
        for seq in self.next..self.next + rows {
            let values: Vec<Value<'_>> = self
                .columns
                .iter()
                .map(|c| match c.ty {
                    ColumnType::Float64 => Value::Float(seq as f64),
                    ColumnType::Int64 => Value::Int(seq as i64),
                    ColumnType::String => Value::Str("\n\n; drop table machine"),
                    ColumnType::Bool => Value::Bool(seq % 2 == 0),
                    ColumnType::Bytes => Value::Bytes(&[0, 255]),
                })
                .collect();
            let time = EventTime::from_ns(1_700_000_000_000_000_000 + i128::from(seq)).expect("in range");
            builder.push(time, &format!("dev-{}", seq % 5), &values).expect("fits");
        }
        let bytes = block::encode(&builder.finish().expect("fits")).expect("encodes");
        let (first, last) = (Seq(self.next), Seq(self.next + rows - 1));
        let (prev_hash, incarnation) = (self.hash, Incarnation(1));
        let fingerprint = schema.fingerprint();
        self.hash = chain_hash(&prev_hash, &self.stream, incarnation, first, last, fingerprint, &bytes);
        self.next += rows;
        let headers = RecordHeaders {
            content_type: ContentType::ArrowStream,
            stream: self.stream.clone(),
            schema: fingerprint,
            gateway: self.id.clone(),
            incarnation,
            first_seq: first,
            last_seq: last,
            rows: rows as u32,
            prev_hash,
            hash: self.hash,
            produced_at_ns: 1_700_000_000_000_000_000,
        };
        DataRecord { headers, bytes: bytes.into() }
    }
}

async fn put(log: &Arc<dyn Log>, partition: u32, records: Vec<DataRecord>) {
    log.commit_group(Shard(partition), records, Vec::new()).await.expect("committed");
}

const F: (&str, ColumnType) = ("temperature", ColumnType::Float64);

#[tokio::test(flavor = "multi_thread")]
async fn rows_arrive_tables_widen_and_bad_blocks_are_kept_aside() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open_log(dir.path());
    let life = Life::begin(dir.path(), &log);
    let mut narrow = Gateway::new("g1", "machine", &[F]);
    put(&log, 0, vec![narrow.record(100), narrow.record(50)]).await;
    life.settled(&log).await;
    let mut wide = Gateway::new(
        "g2",
        "machine",
        &[("mode", ColumnType::String), F, ("raw", ColumnType::Bytes), ("on", ColumnType::Bool)],
    );
    let mut conflict = Gateway::new("g3", "machine", &[("temperature", ColumnType::String)]);
    let mut flipped = narrow.record(10);
    let mut bytes = flipped.bytes.to_vec();
    bytes[100] ^= 1;
    flipped.bytes = bytes.into();
    put(&log, 1, vec![wide.record(30), conflict.record(7), wide.record(5)]).await;
    put(&log, 0, vec![flipped, narrow.record(20)]).await;
    life.settled(&log).await;

    let sql = "SELECT toString(gateway), count(), uniqExact(seq), sum(temperature), countIf(mode IS NOT NULL) FROM \
               tidegate.machine GROUP BY gateway ORDER BY gateway";
    let rows: Vec<(String, u64, u64, Option<f64>, u64)> = life.rows(sql).await;
    let sum = |r: std::ops::RangeInclusive<u64>| r.sum::<u64>() as f64;
    assert_eq!(
        rows,
        [
            ("g1".into(), 170, 170, Some(sum(1..=150) + sum(161..=180)), 0),
            ("g2".into(), 35, 35, Some(sum(1..=35)), 35),
        ]
    );
    let sql = "SELECT toString(gateway), first_seq, last_seq, reason, length(block) FROM tidegate.quarantined_blocks ORDER BY gateway";
    let aside: Vec<(String, u64, u64, String, u64)> = life.rows(sql).await;
    assert_eq!(aside.len(), 2, "{aside:?}");
    assert!((aside[0].1, aside[0].2) == (151, 160) && aside[0].3.contains("hash") && aside[0].4 > 100);
    let reason = "column \"temperature\" of table \"machine\" is float64, the stream declares it as string";
    assert_eq!((aside[1].0.as_str(), aside[1].3.as_str()), ("g3", reason));

    let text = StreamSchema::new(vec![Column { name: "temperature".into(), ty: ColumnType::String }]);
    let machine = StreamName::new("machine").expect("valid");
    let refused = SchemaGate::check(&*life.tables, &machine, &text.expect("valid")).await;
    assert_eq!(refused, Err(SchemaRefusal::Conflict(reason.into())));
    let reader = Reader::new(life.clickhouse.clone());
    let limits = QueryLimits { rows_max: 2, timeout: Duration::from_secs(10) };
    let table = reader.query("SELECT device, count() AS n FROM machine GROUP BY device", limits).await;
    let table = table.expect("an answer");
    assert_eq!((table.columns[1].name.as_str(), table.rows.len(), table.truncated), ("n", 2, true));
    for sql in ["DROP TABLE machine", "SELECT * FROM file('/etc/passwd', LineAsString)", "SELECT 1; SELECT 2"]
    {
        assert!(matches!(reader.query(sql, limits).await, Err(QueryError::Refused(_))), "{sql}");
    }
    assert!(matches!(reader.query("SELECT * FROM nope", limits).await, Err(QueryError::UnknownTable(_))));
    let frontier = LogFrontier(log.clone()).committed().await.expect("known");
    assert_eq!(frontier.values().copied().sum::<u64>(), 7);
    let metrics = life.registry.render();
    assert!(metrics.contains("tidegate_sink_rows_total{table=\"machine\"}"), "{metrics}");
    life.end().await;
}

/// The engine writes its process id into its folder.
fn server_pid(dir: &Path) -> Option<String> {
    let status = std::fs::read_to_string(dir.join("clickhouse/data/status")).ok()?;
    status.lines().find_map(|l| l.strip_prefix("PID: ")).map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_row_is_there_once_whatever_is_killed() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open_log(dir.path());
    let mut life = Life::begin(dir.path(), &log);
    let mut gateways: Vec<(u32, Gateway)> = (0..4)
        .map(|n| {
            let stream = if n % 2 == 0 { "machine" } else { "machine-hot" };
            (n % 2, Gateway::new(&format!("g{n}"), stream, &[F]))
        })
        .collect();
    // The third stream is in both partitions.
    gateways.push((0, Gateway::new("g8", "sums", &[("n", ColumnType::Int64)])));
    gateways.push((1, Gateway::new("g9", "sums", &[("n", ColumnType::Int64)])));
    for round in 0..12_u32 {
        for step in 0..15 {
            for (partition, gateway) in &mut gateways {
                let record = gateway.record(1 + u64::from((round * 7 + step * 3) % 40));
                put(&log, *partition, vec![record]).await;
            }
            // Somewhere in the middle of the round's inserts.
            let now = step == 7 + round % 5 && round % 3 != 2;
            if let Some(pid) = now.then(|| server_pid(dir.path())).flatten() {
                let killed = Command::new("kill").args(["-9", &pid]).status().expect("kill is there");
                assert!(killed.success() || life.clickhouse.url().is_none(), "pid {pid}");
            }
        }
        if round % 3 == 2 {
            // The sink goes away in the middle of whatever it does; what it stored is all that is left.
            life.end().await;
            life = Life::begin(dir.path(), &log);
        } else {
            life.settled(&log).await;
        }
    }
    life.settled(&log).await;
    for (_, gateway) in &gateways {
        let sql = format!(
            "SELECT count(), uniqExact(seq), max(seq) FROM tidegate.`{}` WHERE gateway = '{}'",
            gateway.stream, gateway.id
        );
        let sent = gateway.next - 1;
        assert_eq!(life.rows::<(u64, u64, u64)>(&sql).await, [(sent, sent, sent)], "{}", gateway.id);
    }
    life.end().await;
}
