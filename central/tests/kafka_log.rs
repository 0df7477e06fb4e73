//! The log in a real Apache Kafka: what the trait promises, with several processes' worth of logs on one broker.

mod broker;

use broker::{Broker, PATIENCE, prefix, until};
use bytes::Bytes;
use daemon::clock::{SystemClock, SystemRandom};
use link::pki::{Role, Validity};
use rdkafka::{
    ClientConfig, Message as _,
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaError,
    producer::{FutureProducer, FutureRecord},
};
use record::{Digest, GatewayId, Incarnation, Seq, StreamName, chain_hash, clock::Clock as _};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tidegate_central::{
    SINK_GROUP,
    config::Config,
    log::{
        ClaimError, CommitError, ContentType, DataRecord, Head, Lease, Log, Offset, Outlet, Partition,
        Progress, ProgressRecord, ReadError, RecordHeaders, Shard, StreamEvents,
        kafka::{ClientOptions, Kafka, KafkaOptions},
        partition_of, shard_of,
    },
};

const PARTITIONS: u32 = 4;

fn options(broker: &Broker, prefix: &str, node: &str) -> KafkaOptions {
    KafkaOptions {
        brokers: vec![broker.address.clone()],
        prefix: prefix.to_owned(),
        partitions: PARTITIONS,
        shards: 2,
        replication: 1,
        min_isr: 1,
        retention: Duration::from_secs(86_400),
        client: ClientOptions::default(),
        advertise: Some(format!("https://{node}:7443")),
        sink: true,
        fanout: false,
    }
}

async fn open(options: KafkaOptions) -> Arc<dyn Log> {
    Arc::new(Kafka::open(options, Arc::new(SystemRandom)).await.expect("opens"))
}

/// A gateway of this shard.
fn gateway(shard: Shard) -> GatewayId {
    let mut ids = (0..).map(|n| GatewayId::new(&format!("plant-{n}")).expect("valid"));
    ids.find(|id| shard_of(id, 2) == shard).expect("one of many")
}

fn data(gateway: &GatewayId, n: u64) -> DataRecord {
    let (stream, bytes) = (StreamName::new("machine").expect("valid"), n.to_le_bytes().repeat(100));
    let (incarnation, seq, prev_hash) = (Incarnation(1), Seq(n), Digest::of(b"before"));
    let headers = RecordHeaders {
        content_type: ContentType::ArrowStream,
        schema: 7,
        gateway: gateway.clone(),
        incarnation,
        first_seq: seq,
        last_seq: seq,
        rows: 1,
        prev_hash,
        hash: chain_hash(&prev_hash, &stream, incarnation, seq, seq, 7, &bytes),
        produced_at_ns: 5,
        stream,
    };
    DataRecord { headers, bytes: Bytes::from(bytes) }
}

fn head(gateway: &GatewayId, last: u64) -> ProgressRecord {
    let value = Progress::Head(Head {
        incarnation: Incarnation(1),
        last: Seq(last),
        hash: Digest::of(b"head"),
        rows: last,
        lost: 0,
        rows_before: 0,
        retired: Vec::new(),
    });
    ProgressRecord { gateway: gateway.clone(), stream: StreamName::new("machine").expect("valid"), value }
}

async fn owns_shards(log: &Arc<dyn Log>, count: usize) {
    until("shards are assigned", async || (log.shards_owned().borrow().len() == count).then_some(())).await;
}

async fn leases(log: &Arc<dyn Log>, count: usize) -> BTreeMap<Partition, Lease> {
    let owned = log.partitions_owned(SINK_GROUP);
    until("partitions are assigned", async || Some(owned.borrow().clone()).filter(|o| o.len() == count)).await
}

/// Seqs of all records, by partition and offset.
async fn read_all(log: &Arc<dyn Log>, reader: &str, bytes_max: usize) -> Vec<u64> {
    let mut seqs = Vec::new();
    for partition in (0..PARTITIONS).map(Partition) {
        let mut from = Offset(0);
        loop {
            let records = log.read(reader, partition, from, bytes_max).await.expect("readable");
            let Some(last) = records.last() else { break };
            from = last.offset.next();
            seqs.extend(records.iter().map(|r| r.headers.first_seq.0));
        }
    }
    seqs
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_atomic_owners_are_fenced_and_offsets_are_leased() {
    let broker = Broker::start();
    let prefix = prefix();
    let a = open(options(&broker, &prefix, "a")).await;
    owns_shards(&a, 2).await;
    let (shard, plant) = (Shard(0), gateway(Shard(0)));
    assert_eq!(a.claim(shard).await, Ok(Vec::new()));
    for n in 0..20 {
        let records = vec![data(&plant, 2 * n + 1), data(&plant, 2 * n + 2)];
        a.commit_group(shard, records, vec![head(&plant, 2 * n + 2)]).await.expect("commits");
    }
    // One read behind the other, of a shard that stands still: none of them ends where the one before it did.
    for _ in 0..50 {
        assert_eq!(a.progress(shard).await, Ok(vec![head(&plant, 40)]));
    }
    assert_eq!(read_all(&a, "test", 1).await, (1..=40).collect::<Vec<_>>());
    assert_eq!(read_all(&a, "test", 1 << 20).await, (1..=40).collect::<Vec<_>>());

    // Two reads of one reader at a time: each has the records that it asked for, or an error. A group takes three offsets.
    let (home, mut overtaken) = (partition_of(&plant, PARTITIONS), 0);
    for _ in 0..20 {
        let read = |from| a.read("test", home, Offset(from), 1 << 20);
        let (all, some) = tokio::join!(read(0), read(30));
        for (from, read) in [(0, all), (30, some)] {
            match read {
                Ok(records) => assert_eq!(records.first().map(|r| r.offset), Some(Offset(from))),
                Err(_) => overtaken += 1,
            }
        }
    }
    assert!(overtaken > 0, "the reads did not meet");

    // A later claim, as by a process that believes it owns the shard: the earlier one can commit nothing any more.
    let zombie = open(KafkaOptions { sink: false, ..options(&broker, &prefix, "z") }).await;
    assert_eq!(zombie.id(), a.id());
    until("both own a shard", async || {
        let one = |log: &Arc<dyn Log>| log.shards_owned().borrow().len() == 1;
        (one(&a) && one(&zombie)).then_some(())
    })
    .await;
    let (moved, plant) = match zombie.shards_owned().borrow().keys().next() {
        Some(shard) => (*shard, gateway(*shard)),
        None => panic!("it owns one"),
    };
    let stored = zombie.claim(moved).await.expect("claims");
    assert_eq!(stored.len(), usize::from(moved == shard));
    assert!(matches!(a.claim(moved).await, Err(ClaimError::NotOwner(_))));
    let late = a.commit_group(moved, vec![data(&plant, 900)], vec![head(&plant, 900)]).await;
    assert_eq!(late, Err(CommitError::Fenced));
    assert_eq!(zombie.progress(moved).await, Ok(stored));
    until("the owner is known", async || a.owner(moved).filter(|url| url == "https://z:7443")).await;
    assert_eq!(zombie.owner(moved), None, "it is the owner itself");
    assert_eq!(read_all(&a, "test", 1 << 20).await.len(), 40, "nothing of the fenced group is seen");

    // Offsets, with an intent of 300 bytes beside them, under the lease only.
    let owned = leases(&a, PARTITIONS as usize).await;
    let (p, lease) = owned.first_key_value().map(|(p, l)| (*p, *l)).expect("four");
    let intent = "i".repeat(300);
    assert_eq!(a.committed(SINK_GROUP, p).await, Ok(None));
    a.commit_offset(SINK_GROUP, p, lease, Offset(3), &intent).await.expect("commits");
    let stored = zombie.committed(SINK_GROUP, p).await.expect("readable").expect("there");
    assert_eq!((stored.offset, stored.metadata), (Offset(3), intent));
    let other = a.commit_offset(SINK_GROUP, p, Lease(lease.0 + 100), Offset(4), "").await;
    assert_eq!(other, Err(CommitError::Fenced));

    // A second sink takes half; what was taken back cannot be committed under the old lease.
    let b = open(KafkaOptions { advertise: None, ..options(&broker, &prefix, "b") }).await;
    let theirs = leases(&b, 2).await;
    let gone = *theirs.keys().next().expect("two");
    let late = a.commit_offset(SINK_GROUP, gone, owned[&gone], Offset(1), "late").await;
    assert_eq!(late, Err(CommitError::Fenced));
    b.commit_offset(SINK_GROUP, gone, theirs[&gone], Offset(2), "").await.expect("commits");
    // A clean end is noticed at once.
    let began = Instant::now();
    b.close().await;
    let again = leases(&a, PARTITIONS as usize).await;
    println!("partitions moved {:?} after a clean end", began.elapsed());
    assert!(again[&gone] > owned[&gone], "owning again is another lease");
    let began = Instant::now();
    zombie.close().await;
    owns_shards(&a, 2).await;
    println!("shards moved {:?} after a clean end", began.elapsed());
    let began = Instant::now();
    a.claim(moved).await.expect("claims");
    println!("one of them was claimed within {:?}", began.elapsed());
    assert!(matches!(a.read("test", Partition(99), Offset(0), 1).await, Err(ReadError::NoPartition(_))));
    a.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_records_go_to_quarantine_and_other_topics_are_refused() {
    let broker = Broker::start();
    let prefix = prefix();
    let log = open(options(&broker, &prefix, "a")).await;
    owns_shards(&log, 2).await;
    let (shard, plant) = (Shard(1), gateway(Shard(1)));
    log.claim(shard).await.expect("claims");
    log.commit_group(shard, vec![data(&plant, 1)], vec![head(&plant, 1)]).await.expect("commits");
    let producer: FutureProducer =
        ClientConfig::new().set("bootstrap.servers", &broker.address).create().expect("a producer");
    let topic = format!("{prefix}.data");
    for partition in 0..i32::try_from(PARTITIONS).expect("small") {
        let record: FutureRecord<'_, str, str> =
            FutureRecord::to(&topic).partition(partition).key("x").payload("garbage");
        producer.send(record, PATIENCE).await.expect("sent");
    }
    log.commit_group(shard, vec![data(&plant, 2)], vec![head(&plant, 2)]).await.expect("commits");
    for reader in [SINK_GROUP, "audit", SINK_GROUP] {
        assert_eq!(read_all(&log, reader, 1 << 20).await, [1, 2]);
    }
    let kept = KafkaOptions { partitions: 1, shards: 1, ..options(&broker, &prefix, "a") };
    let refused = Kafka::open(kept, Arc::new(SystemRandom)).await.expect_err("another shape");
    assert!(refused.contains("has 4 partitions"), "{refused}");
    let longer =
        KafkaOptions { retention: Duration::from_secs(30 * 86_400), ..options(&broker, &prefix, "a") };
    let refused = Kafka::open(longer, Arc::new(SystemRandom)).await.expect_err("kept too short");
    assert!(refused.contains("retention.ms 86400000, which must be 2592000000 at least"), "{refused}");
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_reached_over_tls_with_scram() {
    let folder = TempDir::new().expect("temp dir");
    let pki = folder.path().join("pki");
    let valid = Validity::days(SystemClock::new().wall_ns(), 2);
    link::pki::init(&pki, "test", valid).expect("an authority");
    link::pki::issue(&pki, "broker", &Role::Server(vec!["localhost".into()]), valid).expect("a certificate");
    link::pki::issue(&pki, "central", &Role::Gateway, valid).expect("a certificate");
    let read = |name: &str| std::fs::read_to_string(pki.join(name)).expect("is there");
    let store = pki.join("broker-all.pem");
    std::fs::write(&store, read("broker.key") + &read("broker.pem")).expect("writes");
    std::fs::write(pki.join("password"), "s3cret\n").expect("writes");
    let secure = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("a port");
    let listen = format!("SECURE://localhost:{}", secure.port());
    let plain = format!("PLAINTEXT://127.0.0.1:{{port}},{listen}");
    let (store, ca) = (store.display().to_string(), pki.join("ca.pem").display().to_string());
    let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
    let _broker = Broker::with(
        folder,
        &[
            ("listeners", &format!("{plain},CONTROLLER://127.0.0.1:{{controller-port}}")),
            ("advertised.listeners", &plain),
            ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL"),
            ("sasl.enabled.mechanisms", "SCRAM-SHA-512"),
            ("listener.name.secure.scram-sha-512.sasl.jaas.config", scram),
            ("listener.name.secure.ssl.client.auth", "required"),
            ("ssl.keystore.type", "PEM"),
            ("ssl.keystore.location", &store),
            ("ssl.truststore.type", "PEM"),
            ("ssl.truststore.location", &ca),
        ],
    );
    let prefix = prefix();
    let toml = |password: &str| {
        format!(
            "[central]\ndata-dir = \"d\"\n[link]\nbind = \"127.0.0.1:7443\"\n\
             tls = {{ ca = \"ca.pem\", cert = \"central.pem\", key = \"central.key\" }}\n[log]\nkind = \"kafka\"\n\
             brokers = [\"localhost:{}\"]\nprefix = \"{prefix}\"\npartitions = {PARTITIONS}\n\
             progress-partitions = 2\nreplication = 1\nmin-isr = 1\n\
             tls = {{ ca = \"ca.pem\", cert = \"central.pem\", key = \"central.key\" }}\n\
             sasl = {{ mechanism = \"SCRAM-SHA-512\", user = \"central\", password-file = \"{password}\" }}\n",
            secure.port()
        )
    };
    let of = |password: &str| {
        let config = Config::parse(&toml(password), &pki.join("central.toml"), None).expect("fine");
        let tidegate_central::config::Log::Kafka(options) = config.log else { panic!("kafka") };
        options
    };
    let log = open(of("password")).await;
    owns_shards(&log, 2).await;
    let (shard, plant) = (Shard(1), gateway(Shard(1)));
    log.claim(shard).await.expect("claims");
    log.commit_group(shard, vec![data(&plant, 1)], vec![head(&plant, 1)]).await.expect("commits");
    assert_eq!(read_all(&log, SINK_GROUP, 1 << 20).await, [1]);
    log.close().await;
    std::fs::write(pki.join("wrong"), "other\n").expect("writes");
    let refused = Kafka::open(of("wrong"), Arc::new(SystemRandom)).await.expect_err("the wrong password");
    assert!(refused.contains("uthentication"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_and_position_move_together_and_a_zombie_publishes_nothing() {
    let broker = Broker::start();
    let prefix = prefix();
    let of = |name: &str| KafkaOptions {
        advertise: None,
        sink: false,
        fanout: true,
        ..options(&broker, &prefix, name)
    };
    let a = Kafka::open(of("a"), Arc::new(SystemRandom)).await.expect("opens");
    let owned = a.outlets_owned();
    let all = until("partitions are assigned", async || {
        Some(owned.borrow().clone()).filter(|o| o.len() == PARTITIONS as usize)
    })
    .await;
    let events = |texts: &[&str]| {
        let stream = StreamName::new("machine").expect("valid");
        let events = texts.iter().map(|t| ("dev".to_owned(), t.as_bytes().to_vec())).collect();
        vec![StreamEvents { stream, events }]
    };
    let p = Partition(0);
    assert_eq!(
        a.publish(p, all[&p], events(&["early"]), Offset(1), String::new()).await,
        Err(CommitError::Fenced)
    );
    assert_eq!(a.claim_outlet(p, all[&p]).await, Ok(None));
    a.publish(p, all[&p], events(&["one", "two"]), Offset(3), "1 5".into()).await.expect("publishes");
    a.publish(p, all[&p], Vec::new(), Offset(4), String::new()).await.expect("a position alone");
    a.publish(p, all[&p], events(&["three"]), Offset(4), "1 7".into()).await.expect("publishes");

    // Another one that believes it owns everything, as after a freeze: `a` can publish nothing any more.
    a.close().await;
    let b = Kafka::open(of("b"), Arc::new(SystemRandom)).await.expect("opens");
    let owned = b.outlets_owned();
    let theirs = until("partitions are assigned", async || owned.borrow().get(&p).copied()).await;
    let stored = b.claim_outlet(p, theirs).await.expect("claims").expect("there");
    assert_eq!((stored.offset, stored.metadata.as_str()), (Offset(4), "1 7"));
    assert_eq!(
        a.publish(p, all[&p], events(&["late"]), Offset(9), String::new()).await,
        Err(CommitError::Fenced)
    );
    assert_eq!(a.claim_outlet(p, all[&p]).await, Err(CommitError::Fenced));
    b.publish(p, theirs, events(&["four"]), Offset(5), String::new()).await.expect("publishes");
    let again = b.claim_outlet(p, theirs).await.expect("claims").expect("there");
    assert_eq!((again.offset, again.metadata.as_str()), (Offset(5), ""));

    let mut consumer = ClientConfig::new();
    consumer.set("bootstrap.servers", &broker.address).set("group.id", format!("{prefix}-test"));
    consumer.set("isolation.level", "read_committed").set("auto.offset.reset", "earliest");
    let consumer: BaseConsumer = consumer.set("enable.partition.eof", "true").create().expect("a consumer");
    consumer.subscribe(&[&format!("{prefix}.events.machine")]).expect("subscribes");
    let (mut seen, mut ended, deadline) = (Vec::new(), 0, Instant::now() + PATIENCE);
    while ended < PARTITIONS {
        assert!(Instant::now() < deadline, "{seen:?}");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(m)) => {
                assert_eq!(m.key(), Some(&b"dev"[..]));
                seen.push(String::from_utf8(m.payload().expect("a value").to_vec()).expect("text"));
            }
            Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
            _ => {}
        }
    }
    assert_eq!(seen, ["one", "two", "three", "four"]);
    b.close().await;
}
