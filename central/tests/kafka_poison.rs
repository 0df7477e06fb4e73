//! Records that another producer puts into the data topic: each goes into quarantine with its reason and place, is counted,
//! and stops nothing; a copy of a genuine one is named by the audit.

mod broker;
mod clickhouse_server;

use broker::{Broker, PATIENCE, prefix, until};
use bytes::Bytes;
use daemon::{
    clock::{SystemClock, SystemRandom},
    metrics::Registry,
    tasks::{Exit, Tasks},
};
use rdkafka::{
    ClientConfig, Message as _,
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaError,
    message::{Header, Headers as _, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};
use record::{
    BatchBuilder, Column, ColumnType, Digest, EventTime, GatewayId, Incarnation, Seq, StreamName,
    StreamSchema, Value, block, chain_hash,
};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tidegate_central::{
    SINK_GROUP,
    audit::{AuditParts, Auditor},
    clickhouse::{ClickHouse, Reader, Tables, Views},
    link::Gateways,
    log::{
        ContentType, DataRecord, Head, Log, Offset, Partition, Progress, ProgressRecord, RecordHeaders,
        Shard,
        kafka::{ClientOptions, Kafka, KafkaOptions},
    },
    sink::{self, LogFrontier, SinkMetrics, SinkOptions},
};
use tokio::{sync::oneshot, task::JoinHandle};

const GATEWAY: &str = "plant-1";

fn options(broker: &Broker, prefix: &str) -> KafkaOptions {
    KafkaOptions {
        brokers: vec![broker.address.clone()],
        prefix: prefix.to_owned(),
        partitions: 1,
        shards: 1,
        replication: 1,
        min_isr: 1,
        retention: Duration::from_secs(86_400),
        client: ClientOptions::default(),
        advertise: Some("https://a:7443".to_owned()),
        sink: true,
        fanout: false,
    }
}

/// A block of three rows as `gateway` would send it, with its headers.
fn genuine(gateway: &str, first: u64, prev_hash: Digest) -> DataRecord {
    let columns = vec![Column { name: "value".into(), ty: ColumnType::Float64 }];
    let mut builder = BatchBuilder::new(Arc::new(StreamSchema::new(columns).expect("valid")));
    for i in 0..3 {
        let time = EventTime::from_ns(1_700_000_000_000_000_000 + i128::from(first + i)).expect("in range");
        builder.push(time, "press", &[Value::Float((first + i) as f64)]).expect("fits");
    }
    let batch = builder.finish().expect("fits");
    let bytes = block::encode(&batch).expect("encodes");
    let stream = StreamName::new("machine").expect("valid");
    let headers = RecordHeaders {
        content_type: ContentType::ArrowStream,
        schema: batch.schema().fingerprint(),
        gateway: GatewayId::new(gateway).expect("valid"),
        incarnation: Incarnation(1),
        first_seq: Seq(first),
        last_seq: Seq(first + 2),
        rows: 3,
        prev_hash,
        hash: Digest::default(),
        produced_at_ns: 5,
        stream,
    };
    hashed(DataRecord { headers, bytes: bytes.into() })
}

/// With the hash that its other headers and bytes ask for.
fn hashed(mut record: DataRecord) -> DataRecord {
    let h = &mut record.headers;
    let (stream, bytes) = (&h.stream, &record.bytes);
    h.hash = chain_hash(&h.prev_hash, stream, h.incarnation, h.first_seq, h.last_seq, h.schema, bytes);
    record
}

fn fields(h: &RecordHeaders) -> Vec<(&'static str, String)> {
    vec![
        ("tidegate-version", "1".into()),
        ("content-type", h.content_type.media_type().into()),
        ("stream", h.stream.to_string()),
        ("schema", format!("{:016x}", h.schema)),
        ("gateway", h.gateway.to_string()),
        ("incarnation", h.incarnation.0.to_string()),
        ("first-seq", h.first_seq.0.to_string()),
        ("last-seq", h.last_seq.0.to_string()),
        ("rows", h.rows.to_string()),
        ("prev-hash", h.prev_hash.to_hex()),
        ("hash", h.hash.to_hex()),
        ("produced-at", h.produced_at_ns.to_string()),
    ]
}

/// A record that somebody else sends: headers, if any, and value, if any.
struct Foreign(Option<Vec<(&'static str, String)>>, Option<Vec<u8>>);

impl Foreign {
    fn of(record: &DataRecord) -> Self {
        Self(Some(fields(&record.headers)), Some(record.bytes.to_vec()))
    }

    fn with(mut self, name: &'static str, value: String) -> Self {
        self.0.get_or_insert_default().retain(|(n, _)| *n != name);
        self.0.get_or_insert_default().push((name, value));
        self
    }

    async fn send(self, producer: &FutureProducer, topic: &str) -> i64 {
        let mut record: FutureRecord<'_, str, [u8]> = FutureRecord::to(topic).partition(0).key("intruder");
        if let Some(value) = &self.1 {
            record = record.payload(value);
        }
        if let Some(fields) = &self.0 {
            let all = fields.iter().fold(OwnedHeaders::new(), |all, (key, value)| {
                all.insert(Header { key, value: Some(value) })
            });
            record = record.headers(all);
        }
        producer.send(record, PATIENCE).await.expect("sent").offset
    }
}

/// Every kind of poison, with the kind that it is told under and a word of its reason.
fn poison() -> Vec<(Foreign, &'static str, &'static str)> {
    // Another gateway, so that the audit has nothing to say of the honest one.
    let good = || genuine("intruder", 1, Digest::default());
    let claims = |at: usize, claim: &[u8]| {
        let mut record = good();
        let mut bytes = record.bytes.to_vec();
        bytes[at..at + claim.len()].copy_from_slice(claim);
        record.bytes = Bytes::from(bytes);
        Foreign::of(&hashed(record))
    };
    // Behind the schema's message: continuation marker, length of the batch's metadata, metadata, body. The body begins with
    // the uncompressed length of its first buffer.
    let bytes = good().bytes;
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four")) as usize;
    let mut messages = vec![0];
    while word(messages[messages.len() - 1] + 4) > 0 && messages.len() < 3 {
        let at = messages[messages.len() - 1];
        let message = record::arrow::ipc::root_as_message(&bytes[at + 8..]).expect("ours");
        messages.push(at + 8 + word(at + 4) + message.bodyLength() as usize);
    }
    let batch = *messages.last().expect("some");
    let body = batch + 8 + word(batch + 4);
    let mut other_schema = good();
    other_schema.headers.schema ^= 1;
    let mut no_arrow = good();
    no_arrow.bytes = Bytes::from_static(b"these are no columns");
    let mut other_rows = good();
    (other_rows.headers.last_seq, other_rows.headers.rows) = (Seq(900), 900);
    vec![
        // Those that only the sink finds come first: the reader, which is ahead of it, finds the others before.
        (Foreign::of(&hashed(other_schema)), "block", "schema"),
        (Foreign::of(&hashed(no_arrow)), "block", "Arrow"),
        (Foreign::of(&hashed(other_rows)), "block", "has 3 rows"),
        // 900 MB: of a message's metadata, of one buffer.
        (claims(4, &900_000_000_u32.to_le_bytes()), "block", "cut short"),
        (claims(body, &900_000_000_u64.to_le_bytes()), "block", "claims 9000"),
        (Foreign(None, Some(b"garbage".to_vec())), "no-headers", "no headers"),
        (Foreign(None, None), "no-headers", "no headers"),
        (Foreign(Some(fields(&good().headers)), None), "no-value", "no value"),
        (Foreign(Some(fields(&good().headers)), Some(b"garbage".to_vec())), "hash", "hash"),
        (Foreign::of(&good()).with("rows", "4".into()), "seqs", "4 rows are not seqs 1 to 3"),
        (Foreign::of(&good()).with("rows", "9".repeat(300_000)), "headers", "header rows is \"999"),
        (Foreign::of(&good()).with("tidegate-version", "7".into()), "headers", "tidegate-version is \"7\""),
        (Foreign(Some(fields(&good().headers)), Some(vec![7; 1_030_000])), "too-large", "1030000 bytes"),
    ]
}

/// One life of the sink, on a server of its own or on the one of `TIDEGATE_TEST_CLICKHOUSE_URL`.
struct Life {
    log: Arc<dyn Log>,
    registry: Registry,
    clickhouse: ClickHouse,
    stop: oneshot::Sender<&'static str>,
    ended: JoinHandle<Exit>,
}

impl Life {
    async fn begin(broker: &Broker, prefix: &str, folder: &Path) -> Self {
        let registry = Registry::new();
        let log = Kafka::open(options(broker, prefix), Arc::new(SystemRandom)).await.expect("opens");
        log.count_in(&registry);
        let log: Arc<dyn Log> = Arc::new(log);
        let mut tasks = Tasks::new();
        let (clickhouse, _) = clickhouse_server::start(folder, prefix, &mut tasks);
        let parts = sink::Parts {
            log: log.clone(),
            clickhouse: clickhouse.clone(),
            tables: Arc::new(Tables::new(clickhouse.clone(), log.partitions())),
            metrics: SinkMetrics::new(&registry),
            clock: Arc::new(SystemClock::new()),
            options: SinkOptions { linger: Duration::from_millis(20), ..SinkOptions::default() },
        };
        // Its lanes are looked at by way of the tables.
        let _ = sink::start(parts, &mut tasks);
        let (stop, stopped) = oneshot::channel();
        let ended =
            tokio::spawn(tasks.run(async { stopped.await.unwrap_or("dropped") }, Duration::from_secs(30)));
        Self { log, registry, clickhouse, stop, ended }
    }

    async fn end(self) {
        self.stop.send("the test").expect("it runs");
        assert_eq!(self.ended.await.expect("joined"), Exit::Clean);
        self.log.close().await;
    }

    async fn rows(&self) -> Vec<u64> {
        let sql = format!(
            "select seq from {}.machine where gateway = '{GATEWAY}' order by seq",
            self.clickhouse.database()
        );
        self.clickhouse.rows::<u64>(&sql, PATIENCE).await.unwrap_or_default()
    }

    /// What the audit has to say of the honest gateway.
    async fn problems(&self, folder: &Path) -> Vec<String> {
        let (auditor, handle) = Auditor::open(AuditParts {
            dir: folder.join("audit"),
            log: self.log.clone(),
            gateways: Arc::new(Gateways::new()),
            frontier: Arc::new(LogFrontier(self.log.clone())),
            source: Arc::new(Reader::new(self.clickhouse.clone())),
            views: Arc::new(Views::new(self.clickhouse.clone(), self.log.partitions())),
            clock: Arc::new(SystemClock::new()),
            registry: Registry::new(),
        })
        .expect("opens");
        let stop = tokio_util::sync::CancellationToken::new();
        let running = tokio::spawn(auditor.run(stop.clone()));
        let report = handle.audit(None).await.expect("a verdict");
        stop.cancel();
        running.await.expect("joined").expect("fine");
        report.problems.iter().filter(|p| p.starts_with(GATEWAY)).cloned().collect()
    }
}

/// A record in quarantine.
#[derive(Debug)]
struct Kept {
    kind: String,
    reason: String,
    /// Length of the record's value, and how much of it is kept.
    bytes: (usize, usize),
}

/// What stands in quarantine, by offset; and how many records.
fn quarantined(broker: &Broker, prefix: &str) -> (BTreeMap<i64, Kept>, usize) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &broker.address).set("group.id", format!("{prefix}-test"));
    config.set("auto.offset.reset", "earliest").set("enable.partition.eof", "true");
    let consumer: BaseConsumer = config.create().expect("a consumer");
    let mut from = rdkafka::TopicPartitionList::new();
    from.add_partition_offset(&format!("{prefix}.quarantine"), 0, rdkafka::Offset::Beginning).expect("fits");
    consumer.assign(&from).expect("assigned");
    let (mut found, mut count, deadline) = (BTreeMap::new(), 0, Instant::now() + PATIENCE);
    loop {
        assert!(Instant::now() < deadline, "the end of the quarantine is not reached");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(m)) => {
                let headers = m.headers().expect("headers");
                let text = |name: &str| {
                    let value = headers.iter().find(|h| h.key == name).and_then(|h| h.value).expect(name);
                    String::from_utf8(value.to_vec()).expect("text")
                };
                let key = std::str::from_utf8(m.key().expect("a key")).expect("text");
                let offset = key.strip_prefix("0/").expect("of partition 0").parse().expect("an offset");
                let kept = m.payload().unwrap_or_default().len();
                let bytes = text("bytes").parse().expect("a number");
                let (kind, reason) = (text("kind"), text("reason"));
                found.insert(offset, Kept { kind, reason, bytes: (bytes, kept) });
                count += 1;
            }
            Some(Err(KafkaError::PartitionEOF(_))) => return (found, count),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_is_put_aside_counted_and_stops_nothing() {
    let (broker, prefix, folder) = (Broker::start(), prefix(), TempDir::new().expect("temp dir"));
    let topic = format!("{prefix}.data");
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &broker.address).set("message.max.bytes", "1048000");
    let producer: FutureProducer = config.create().expect("a producer");
    let life = Life::begin(&broker, &prefix, folder.path()).await;
    let shards = life.log.shards_owned();
    until("the shard is assigned", async || (!shards.borrow().is_empty()).then_some(())).await;
    life.log.claim(Shard(0)).await.expect("claims");

    // Poison between blocks of an honest gateway.
    let (mut expected, mut hash, mut last, mut first_block) = (BTreeMap::new(), Digest::default(), 0, None);
    for (foreign, kind, word) in poison() {
        let block = genuine(GATEWAY, last + 1, hash);
        (hash, last) = (block.headers.hash, last + 3);
        let head = Head {
            incarnation: Incarnation(1),
            last: Seq(last),
            hash,
            rows: last,
            lost: 0,
            rows_before: 0,
            retired: Vec::new(),
        };
        let (gateway, stream) = (block.headers.gateway.clone(), block.headers.stream.clone());
        let progress = ProgressRecord { gateway, stream, value: Progress::Head(head) };
        first_block.get_or_insert_with(|| block.clone());
        life.log.commit_group(Shard(0), vec![block], vec![progress]).await.expect("commits");
        let bytes = foreign.1.as_ref().map_or(0, Vec::len);
        expected.insert(foreign.send(&producer, &topic).await, (kind, word, bytes));
    }
    let all: Vec<u64> = (1..=last).collect();
    until("every honest row is stored", async || (life.rows().await == all).then_some(())).await;
    let count = expected.len();
    let (found, kept) =
        until("all is in quarantine", async || Some(quarantined(&broker, &prefix)).filter(|q| q.1 >= count))
            .await;
    assert_eq!((found.len(), kept), (count, count), "each once: {found:?}");
    for (offset, (kind, word, bytes)) in &expected {
        let kept = &found[offset];
        let right = kept.kind == *kind && kept.reason.contains(word) && kept.reason.len() <= 512;
        assert!(right, "{kind}, {word}: {kept:?}");
        assert_eq!(kept.bytes, (*bytes, (*bytes).min(1_000_000)), "{kind}");
    }
    let page = life.registry.render();
    for kind in ["no-headers", "no-value", "hash", "seqs", "headers", "too-large", "block"] {
        let times = expected.values().filter(|(k, _, _)| *k == kind).count();
        let line = format!("tidegate_log_quarantined_records_total{{kind=\"{kind}\"}} {times}");
        assert!(page.contains(&line), "{line} in\n{page}");
    }
    assert_eq!(life.problems(folder.path()).await, [""; 0], "the honest gateway has nothing to do with it");

    // Another process, which has kept nothing yet, looks at the same records: each stays there once. And a copy of a
    // genuine record, with all that makes it genuine, doubles rows: nothing in it says so, but the audit does.
    life.end().await;
    let life = Life::begin(&broker, &prefix, folder.path()).await;
    until("a read from the beginning", async || {
        // The sink's own reads, with the same reader, may overtake it.
        let read = life.log.read(SINK_GROUP, Partition(0), Offset(0), 1 << 20);
        read.await.ok().filter(|records| !records.is_empty()).map(drop)
    })
    .await;
    Foreign::of(&first_block.expect("one")).send(&producer, &topic).await;
    until("the copy is stored", async || (life.rows().await.len() == all.len() + 3).then_some(())).await;
    assert_eq!(quarantined(&broker, &prefix).1, count);
    let problems = life.problems(folder.path()).await;
    for named in ["3 seqs stand twice in the log", "3 rows stand twice in the table"] {
        assert!(problems.iter().any(|p| p.contains(named)), "{named} in {problems:?}");
    }
    life.end().await;
}
