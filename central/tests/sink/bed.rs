//! The real embedded log and the real embedded server, and a gateway that fills the log by hand.

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
        Account, ClickHouse, Tables,
        process::{Embedded, EmbeddedOptions},
    },
    log::{ContentType, DataRecord, Log, Partition, RecordHeaders, Shard, embedded},
    sink::{self, SinkHandle, SinkMetrics, SinkOptions},
};
use tokio::{sync::oneshot, task::JoinHandle};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

fn program() -> PathBuf {
    let here = std::env::current_exe().expect("a path");
    let folder = here.parent().and_then(Path::parent).expect("target/debug/deps");
    let program = folder.join("tidegate-clickhouse");
    assert!(program.is_file(), "{} is not built: cargo build -p tidegate-clickhouse", program.display());
    program
}

/// One life of central's sink and server over a folder.
pub(crate) struct Life {
    stop: oneshot::Sender<&'static str>,
    ended: JoinHandle<Exit>,
    pub(crate) clickhouse: ClickHouse,
    pub(crate) tables: Arc<Tables>,
    sink: SinkHandle,
    pub(crate) registry: Registry,
}

pub(crate) fn open_log(dir: &Path) -> Arc<dyn Log> {
    let options = embedded::EmbeddedOptions::default();
    let log = embedded::Embedded::open(RealDisk, &dir.join("log"), &options, &SystemRandom);
    Arc::new(log.expect("the log opens"))
}

impl Life {
    pub(crate) fn begin(dir: &Path, log: &Arc<dyn Log>) -> Self {
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
        let tables = Arc::new(Tables::new(clickhouse.clone(), log.partitions()));
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

    pub(crate) async fn end(self) {
        self.stop.send("the test").expect("it runs");
        assert_eq!(self.ended.await.expect("joined"), Exit::Clean);
    }

    /// Waits until everything in the log is stored.
    pub(crate) async fn settled(&self, log: &Arc<dyn Log>) {
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

    pub(crate) async fn rows<T: clickhouse::RowOwned + clickhouse::RowRead>(&self, sql: &str) -> Vec<T> {
        self.clickhouse.rows(sql, PATIENCE).await.expect(sql)
    }
}

/// A gateway that numbers its rows.
pub(crate) struct Gateway {
    pub(crate) id: GatewayId,
    pub(crate) stream: StreamName,
    columns: Vec<Column>,
    pub(crate) next: u64,
    hash: Digest,
}

impl Gateway {
    pub(crate) fn new(id: &str, stream: &str, columns: &[(&str, ColumnType)]) -> Self {
        let columns = columns.iter().map(|(n, t)| Column { name: (*n).into(), ty: *t }).collect();
        Self {
            id: GatewayId::new(id).expect("valid"),
            stream: StreamName::new(stream).expect("valid"),
            columns,
            next: 1,
            hash: Digest::default(),
        }
    }

    pub(crate) fn record(&mut self, rows: u64) -> DataRecord {
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

pub(crate) async fn put(log: &Arc<dyn Log>, partition: u32, records: Vec<DataRecord>) {
    log.commit_group(Shard(partition), records, Vec::new()).await.expect("committed");
}

/// One column.
pub(crate) const F: (&str, ColumnType) = ("temperature", ColumnType::Float64);

/// The engine writes its process id into its folder.
fn server_pid(dir: &Path) -> Option<String> {
    let status = std::fs::read_to_string(dir.join("clickhouse/data/status")).ok()?;
    status.lines().find_map(|l| l.strip_prefix("PID: ")).map(str::to_owned)
}

/// SIGKILL for the server of this folder, if it is up.
pub(crate) fn kill_server(dir: &Path, life: &Life) {
    let Some(pid) = server_pid(dir) else { return };
    let killed = Command::new("kill").args(["-9", &pid]).status().expect("kill is there");
    assert!(killed.success() || life.clickhouse.url().is_none(), "pid {pid}");
}
