//! Partitions of the sink move while an insert is under way: the rows are there once, whether the answer is late or the
//! insert itself, which then arrives when somebody else has the partition.

mod broker;
mod clickhouse_server;

use broker::{Broker, PATIENCE, prefix, until};
use daemon::{
    clock::{SystemClock, SystemRandom},
    metrics::Registry,
    tasks::{Exit, Tasks},
};
use record::{
    BatchBuilder, Column, ColumnType, Digest, EventTime, GatewayId, Incarnation, Seq, StreamName,
    StreamSchema, Value, block, chain_hash,
};
use std::{sync::Arc, time::Duration};
use tempfile::TempDir;
use tidegate_central::{
    SINK_GROUP,
    clickhouse::{ClickHouse, Tables},
    log::{
        ContentType, DataRecord, Log, Partition, RecordHeaders, Shard,
        kafka::{ClientOptions, Kafka, KafkaOptions},
        partition_of,
    },
    sink::{self, SinkMetrics, SinkOptions},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf},
    sync::{oneshot, watch},
    task::JoinHandle,
};

const PARTITIONS: u32 = 2;

/// What the proxy does with inserts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inserts {
    Pass,
    /// They arrive, and their answers do not.
    HoldAnswers,
    /// They arrive later, also when whoever sent them has gone.
    HoldRequests,
}

/// Before the server: holds inserts while it shall, and says how many are held.
#[derive(Clone)]
struct Proxy {
    mode: watch::Sender<Inserts>,
    held: watch::Sender<usize>,
}

impl Proxy {
    async fn start(to: ClickHouse) -> (Self, String) {
        let me = Self { mode: watch::Sender::new(Inserts::Pass), held: watch::Sender::new(0) };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("a port"));
        let proxy = me.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = to.url().map(|url| url.trim_start_matches("http://").to_owned());
                let Ok(server) = TcpStream::connect(server.unwrap_or_default()).await else { continue };
                let (from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let (gate, gated) = watch::channel(false);
                let requests = proxy.clone();
                tokio::spawn(async move { requests.requests(from_client, &mut to_server, gate).await });
                let answers = proxy.clone();
                tokio::spawn(async move {
                    let mut chunk = vec![0; 1 << 16];
                    while let Ok(n @ 1..) = from_server.read(&mut chunk).await {
                        if *gated.borrow() {
                            answers.released().await;
                        }
                        if to_client.write_all(&chunk[..n]).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        (me, url)
    }

    /// One connection's requests, as they come.
    async fn requests(
        &self,
        mut from: OwnedReadHalf,
        to: &mut (impl tokio::io::AsyncWrite + Unpin),
        gate: watch::Sender<bool>,
    ) {
        let mut chunk = vec![0; 1 << 16];
        while let Ok(n @ 1..) = from.read(&mut chunk).await {
            let insert = chunk[..n].windows(6).any(|w| w == b"INSERT");
            let mode = *self.mode.borrow();
            let mut bytes = chunk[..n].to_vec();
            if insert && mode != Inserts::Pass {
                self.held.send_modify(|held| *held += 1);
            }
            gate.send_replace(insert && mode == Inserts::HoldAnswers);
            if insert && mode == Inserts::HoldRequests {
                // Whatever is still to come of it is taken in, so that it is whole when its sender goes.
                let released = self.released();
                tokio::pin!(released);
                let mut open = true;
                loop {
                    tokio::select! {
                        () = &mut released => break,
                        read = from.read(&mut chunk), if open => match read {
                            Ok(n @ 1..) => bytes.extend_from_slice(&chunk[..n]),
                            _ => open = false,
                        },
                    }
                }
            }
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    }

    async fn released(&self) {
        // The sender is this proxy's own.
        let _ = self.mode.subscribe().wait_for(|mode| *mode == Inserts::Pass).await;
    }
}

/// One process with the sink role.
struct Sink {
    log: Arc<dyn Log>,
    stop: oneshot::Sender<&'static str>,
    ended: JoinHandle<Exit>,
}

impl Sink {
    async fn begin(options: KafkaOptions, clickhouse: &ClickHouse) -> Self {
        let log: Arc<dyn Log> = Arc::new(Kafka::open(options, Arc::new(SystemRandom)).await.expect("opens"));
        let mut tasks = Tasks::new();
        let parts = sink::Parts {
            log: log.clone(),
            clickhouse: clickhouse.clone(),
            tables: Arc::new(Tables::new(clickhouse.clone(), log.partitions())),
            metrics: SinkMetrics::new(&Registry::new()),
            clock: Arc::new(SystemClock::new()),
            options: SinkOptions { linger: Duration::from_millis(20), ..SinkOptions::default() },
        };
        // Its lanes are looked at by way of the tables.
        let _ = sink::start(parts, &mut tasks);
        let (stop, stopped) = oneshot::channel();
        let ended =
            tokio::spawn(tasks.run(async { stopped.await.unwrap_or("dropped") }, Duration::from_secs(30)));
        Self { log, stop, ended }
    }

    async fn owns(&self, count: usize) {
        let owned = self.log.partitions_owned(SINK_GROUP);
        until("partitions are assigned", async || (owned.borrow().len() == count).then_some(())).await;
    }

    /// Lets go first, as the program does.
    async fn end(self) {
        self.log.close().await;
        self.stop.send("the test").expect("it runs");
        assert_eq!(self.ended.await.expect("joined"), Exit::Clean);
    }
}

/// A gateway of this partition.
fn gateway(partition: Partition) -> GatewayId {
    let mut ids = (0..).map(|n| GatewayId::new(&format!("plant-{n}")).expect("valid"));
    ids.find(|id| partition_of(id, PARTITIONS) == partition).expect("one of many")
}

fn data(gateway: &GatewayId, first: u64, rows: u64) -> DataRecord {
    let columns = vec![Column { name: "value".into(), ty: ColumnType::Float64 }];
    let mut builder = BatchBuilder::new(Arc::new(StreamSchema::new(columns).expect("valid")));
    for i in first..first + rows {
        let time = EventTime::from_ns(1_700_000_000_000_000_000 + i128::from(i)).expect("in range");
        builder.push(time, "press", &[Value::Float(i as f64)]).expect("fits");
    }
    let batch = builder.finish().expect("fits");
    let bytes = block::encode(&batch).expect("encodes");
    let stream = StreamName::new("machine").expect("valid");
    let (incarnation, last, schema) = (Incarnation(1), Seq(first + rows - 1), batch.schema().fingerprint());
    let prev_hash = Digest::default();
    let headers = RecordHeaders {
        content_type: ContentType::ArrowStream,
        schema,
        gateway: gateway.clone(),
        incarnation,
        first_seq: Seq(first),
        last_seq: last,
        rows: u32::try_from(rows).expect("few"),
        prev_hash,
        hash: chain_hash(&prev_hash, &stream, incarnation, Seq(first), last, schema, &bytes),
        produced_at_ns: 5,
        stream,
    };
    DataRecord { headers, bytes: bytes.into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_move_in_the_middle_of_inserts_and_rows_are_there_once() {
    let (broker, prefix, folder) = (Broker::start(), prefix(), TempDir::new().expect("temp dir"));
    let of = |advertise: Option<&str>, sink| KafkaOptions {
        brokers: vec![broker.address.clone()],
        prefix: prefix.clone(),
        partitions: PARTITIONS,
        shards: 1,
        replication: 1,
        min_isr: 1,
        retention: Duration::from_secs(86_400),
        client: ClientOptions::default(),
        advertise: advertise.map(str::to_owned),
        sink,
        fanout: false,
    };
    let mut tasks = Tasks::new();
    let (direct, account) = clickhouse_server::start(folder.path(), &prefix, &mut tasks);
    let (stop, stopped) = oneshot::channel::<&str>();
    let server =
        tokio::spawn(tasks.run(async { stopped.await.unwrap_or("dropped") }, Duration::from_secs(30)));
    until("the server is up", async || direct.url()).await;
    let (proxy, url) = Proxy::start(direct.clone()).await;
    let behind = ClickHouse::at(&url, account);
    let link = Kafka::open(of(Some("https://a:7443"), false), Arc::new(SystemRandom)).await.expect("opens");
    let shards = link.shards_owned();
    until("the shard is assigned", async || (!shards.borrow().is_empty()).then_some(())).await;
    link.claim(Shard(0)).await.expect("claims");

    let gateways = [Partition(0), Partition(1)].map(gateway);
    let sql = format!("select count(), uniqExact(gateway, seq), max(seq) from {prefix}.machine");
    let stored = async || direct.rows::<(u64, u64, u64)>(&sql, PATIENCE).await.ok()?.pop();
    let mut last = 0;
    let mut first = Sink::begin(of(None, true), &behind).await;
    first.owns(2).await;
    for round in 0..2 {
        for mode in [Inserts::HoldAnswers, Inserts::HoldRequests] {
            let before = *proxy.held.borrow();
            proxy.mode.send_replace(mode);
            let records = gateways.iter().map(|g| data(g, last + 1, 100)).collect();
            link.commit_group(Shard(0), records, Vec::new()).await.expect("commits");
            last += 100;
            until("an insert of each partition is held", async || {
                (*proxy.held.borrow() >= before + 2).then_some(())
            })
            .await;
            // One partition goes to a newcomer, cooperatively; then all of them, as the first one ends.
            let second = Sink::begin(of(None, true), &behind).await;
            second.owns(1).await;
            first.owns(1).await;
            first.end().await;
            second.owns(2).await;
            proxy.mode.send_replace(Inserts::Pass);
            let all = (2 * last, 2 * last, last);
            until("every row is there", async || stored().await.filter(|s| s.1 == all.1)).await;
            // What was held may still arrive.
            let more = gateways.iter().map(|g| data(g, last + 1, 1)).collect();
            link.commit_group(Shard(0), more, Vec::new()).await.expect("commits");
            last += 1;
            let now = until("and the next ones", async || stored().await.filter(|s| s.1 == 2 * last)).await;
            assert_eq!(now, (2 * last, 2 * last, last), "round {round}, {mode:?}: each row once");
            first = second;
        }
    }
    first.end().await;
    link.close().await;
    stop.send("the test").expect("it runs");
    assert_eq!(server.await.expect("joined"), Exit::Clean);
}
