//! Transactions whose end the brokers leave out, on a real cluster of two: one broker is killed while a transaction is open
//! in partitions that only it has, and the transaction is ended while it is away.

mod broker;

use broker::{Broker, PATIENCE, prefix, until};
use bytes::Bytes;
use daemon::clock::{SystemClock, SystemRandom};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    producer::{FutureProducer, FutureRecord, Producer as _},
};
use record::{Digest, GatewayId, Incarnation, Seq, StreamName, chain_hash};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tempfile::TempDir;
use tidegate_central::{
    SINK_GROUP,
    log::{
        ContentType, DataRecord, Head, Log as _, Offset, Partition, Progress, ProgressRecord, RecordHeaders,
        Shard,
        kafka::{ClientOptions, Kafka, KafkaOptions, headers},
        partition_of,
    },
};

const SHARDS: u32 = 6;
const PARTITIONS: u32 = 12;

/// What ends a shard's transaction while the second broker is away, and what must become of it.
#[derive(Clone, Copy)]
struct Case {
    /// Brokers of its progress and of its two partitions of data.
    brokers: [i32; 3],
    commits: bool,
    stays: bool,
}

const CASES: [Case; SHARDS as usize] = [
    // All of it hangs: it is taken back, since nobody can tell.
    Case { brokers: [2, 2, 2], commits: true, stays: false },
    // Its progress and half of its blocks are visible.
    Case { brokers: [1, 2, 1], commits: true, stays: true },
    // Half of its blocks are visible, and nothing else.
    Case { brokers: [2, 1, 2], commits: true, stays: true },
    // Its progress was taken back.
    Case { brokers: [1, 2, 2], commits: false, stays: false },
    // Its blocks were taken back.
    Case { brokers: [2, 1, 1], commits: false, stays: false },
    // Its blocks are visible.
    Case { brokers: [2, 1, 1], commits: true, stays: true },
];

fn options(broker: &Broker, prefix: &str) -> KafkaOptions {
    KafkaOptions {
        brokers: vec![broker.address.clone()],
        prefix: prefix.to_owned(),
        partitions: PARTITIONS,
        shards: SHARDS,
        replication: 1,
        min_isr: 1,
        retention: Duration::from_secs(86_400),
        client: ClientOptions::default(),
        advertise: Some("https://a:7443".to_owned()),
        sink: true,
        fanout: false,
    }
}

/// Topics as central makes them, on brokers of our choice.
async fn topics(broker: &Broker, prefix: &str) {
    let admin: AdminClient<DefaultClientContext> = client(broker).create().expect("a client");
    let on = |which: usize| CASES.iter().map(move |case| case.brokers[which]);
    let each = |brokers: Vec<i32>| brokers.into_iter().map(|b| vec![b]).collect::<Vec<_>>();
    let (progress, data) = (each(on(0).collect()), each(on(1).chain(on(2)).collect()));
    let retention = Duration::from_secs(86_400).as_millis().to_string();
    for (name, places, policy) in [("progress", progress, "compact"), ("data", data, "delete")] {
        let places: Vec<&[i32]> = places.iter().map(Vec::as_slice).collect();
        let (name, count) = (format!("{prefix}.{name}"), i32::try_from(places.len()).expect("few"));
        let mut topic = NewTopic::new(&name, count, TopicReplication::Variable(&places))
            .set("cleanup.policy", policy)
            .set("min.insync.replicas", "1")
            .set("compression.type", "producer")
            .set("unclean.leader.election.enable", "false")
            .set("max.message.bytes", "1048588")
            .set("message.timestamp.type", "LogAppendTime");
        if policy == "delete" {
            topic = topic.set("retention.ms", &retention).set("retention.bytes", "-1");
        }
        let made = admin.create_topics([&topic], &AdminOptions::new()).await.expect("answered");
        assert!(made.iter().all(Result::is_ok), "{made:?}");
    }
}

fn client(broker: &Broker) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &broker.address).set("group.id", "test");
    config
}

fn consumer(broker: &Broker, isolation: &str) -> BaseConsumer {
    client(broker).set("isolation.level", isolation).create().expect("a consumer")
}

/// The gateway of this partition.
fn gateway(partition: u32) -> GatewayId {
    let mut ids = (0..).map(|n| GatewayId::new(&format!("plant-{n}")).expect("valid"));
    ids.find(|id| partition_of(id, PARTITIONS) == Partition(partition)).expect("one of many")
}

/// The block with this seq, and the progress that ends with it.
fn block(gateway: &GatewayId, n: u64) -> (DataRecord, ProgressRecord) {
    let (stream, bytes) = (StreamName::new("machine").expect("valid"), n.to_le_bytes().repeat(100));
    let (incarnation, seq, prev_hash) = (Incarnation(1), Seq(n), Digest::of(b"before"));
    let hash = chain_hash(&prev_hash, &stream, incarnation, seq, seq, 7, &bytes);
    let headers = RecordHeaders {
        content_type: ContentType::ArrowStream,
        schema: 7,
        gateway: gateway.clone(),
        incarnation,
        first_seq: seq,
        last_seq: seq,
        rows: 1,
        prev_hash,
        hash,
        produced_at_ns: 5,
        stream: stream.clone(),
    };
    let head = Head { incarnation, last: seq, hash, rows: n, lost: 0, rows_before: 0, retired: Vec::new() };
    let progress = ProgressRecord { gateway: gateway.clone(), stream, value: Progress::Head(head) };
    (DataRecord { headers, bytes: Bytes::from(bytes) }, progress)
}

/// The shard's blocks with this seq, one of each of its partitions, with their progress.
fn group(shard: u32, n: u64) -> (Vec<DataRecord>, Vec<ProgressRecord>) {
    [shard, shard + SHARDS].iter().map(|p| block(&gateway(*p), n)).unzip()
}

/// A transaction of the shard's producer in another process, all of it but its end.
async fn begin(broker: &Broker, prefix: &str, shard: u32) -> FutureProducer {
    let mut config = client(broker);
    config.set("transactional.id", format!("{prefix}-link-{shard}")).set("transaction.timeout.ms", "120000");
    let producer: FutureProducer = config.create().expect("a producer");
    producer.init_transactions(PATIENCE).expect("answered");
    producer.begin_transaction().expect("begun");
    let (records, progress) = group(shard, 2);
    for r in &records {
        let partition = partition_of(&r.headers.gateway, PARTITIONS).0;
        let topic = format!("{prefix}.data");
        let record = FutureRecord::to(&topic).partition(i32::try_from(partition).expect("few"));
        let record = record.key(r.headers.gateway.as_str()).payload(&r.bytes[..]);
        producer.send(record.headers(headers::encode(&r.headers)), PATIENCE).await.expect("sent");
    }
    for p in &progress {
        let (topic, key, value) = (format!("{prefix}.progress"), p.key().encode(), p.encode());
        let record = FutureRecord::to(&topic).partition(i32::try_from(shard).expect("few"));
        producer.send(record.key(&key).payload(&value), PATIENCE).await.expect("sent");
    }
    producer
}

/// Which partitions of a topic have no leader.
fn leaderless(asker: &BaseConsumer, topic: &str) -> Option<Vec<i32>> {
    let metadata = asker.fetch_metadata(Some(topic), PATIENCE).ok()?;
    let partitions = metadata.topics().first()?.partitions();
    Some(partitions.iter().filter(|p| p.leader() < 0).map(|p| p.id()).collect())
}

/// Partitions of a topic that lie on the second broker.
fn on_the_second(which: &[usize]) -> Vec<i32> {
    let all = which.iter().flat_map(|which| CASES.iter().map(|case| case.brokers[*which]));
    (0..).zip(all).filter(|(_, broker)| *broker == 2).map(|(n, _)| n).collect()
}

fn seqs_of(progress: &[ProgressRecord]) -> Vec<u64> {
    let last = |r: &ProgressRecord| match &r.value {
        Progress::Head(head) => head.last.0,
        _ => 0,
    };
    progress.iter().map(last).collect()
}

async fn read(log: &Kafka, partition: u32) -> Vec<(Offset, u64)> {
    let (mut all, mut from) = (Vec::new(), Offset(0));
    loop {
        let records = log.read("test", Partition(partition), from, 1 << 20).await.expect("readable");
        let Some(last) = records.last() else { return all };
        from = last.offset.next();
        all.extend(records.iter().map(|r| (r.offset, r.headers.first_seq.0)));
    }
}

fn seqs(records: &[(Offset, u64)]) -> Vec<u64> {
    records.iter().map(|(_, seq)| *seq).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_whose_end_was_left_out_is_ended_by_the_next_claim_as_a_whole() {
    let (first, prefix) = (Broker::with(TempDir::new().expect("temp dir"), &[]), prefix());
    // The coordinators' own topics are on the first broker.
    let early: FutureProducer = client(&first).set("transactional.id", "early").create().expect("a producer");
    early.init_transactions(PATIENCE).expect("answered");
    consumer(&first, "read_committed").fetch_group_list(Some("test"), PATIENCE).expect("answered");
    let second = Broker::joined(&first);
    topics(&first, &prefix).await;
    let log = Arc::new(Kafka::open(options(&first, &prefix), Arc::new(SystemRandom)).await.expect("opens"));
    until("shards are assigned", async || {
        (log.shards_owned().borrow().len() == SHARDS as usize).then_some(())
    })
    .await;
    for shard in 0..SHARDS {
        assert_eq!(log.claim(Shard(shard)).await, Ok(Vec::new()));
        let (records, progress) = group(shard, 1);
        log.commit_group(Shard(shard), records, progress).await.expect("commits");
    }

    let mut producers = BTreeMap::new();
    for shard in 0..SHARDS {
        producers.insert(shard, begin(&first, &prefix, shard).await);
    }
    second.kill();
    let (all, committed) = (consumer(&first, "read_uncommitted"), consumer(&first, "read_committed"));
    let (data, progress) = (format!("{prefix}.data"), format!("{prefix}.progress"));
    for (topic, expected) in [(&data, on_the_second(&[1, 2])), (&progress, on_the_second(&[0]))] {
        until("the second broker is missed", async || (leaderless(&all, topic)? == expected).then_some(()))
            .await;
    }
    for (shard, producer) in producers {
        let ended = match CASES[shard as usize].commits {
            true => producer.commit_transaction(PATIENCE),
            false => producer.abort_transaction(PATIENCE),
        };
        ended.expect("answered");
    }
    second.joined_again(&first);
    for (topic, partitions, expected) in
        [(&data, PARTITIONS, on_the_second(&[1, 2])), (&progress, SHARDS, on_the_second(&[0]))]
    {
        until("the second broker leads again, and its partitions hang", async || {
            let hangs = |p: &i32| {
                let high = all.fetch_watermarks(topic, *p, PATIENCE).ok()?.1;
                Some(committed.fetch_watermarks(topic, *p, PATIENCE).ok()?.1 < high)
            };
            let partitions = 0..i32::try_from(partitions).expect("few");
            let hanging: Option<Vec<(i32, bool)>> = partitions.map(|p| Some((p, hangs(&p)?))).collect();
            let hanging: Vec<i32> =
                hanging?.into_iter().filter(|(_, hangs)| *hangs).map(|(p, _)| p).collect();
            (hanging == expected).then_some(())
        })
        .await;
    }

    for (shard, case) in (0..SHARDS).zip(CASES) {
        let newest = if case.stays { 2 } else { 1 };
        let found = until("the shard is claimed", async || log.claim(Shard(shard)).await.ok()).await;
        assert_eq!(seqs_of(&found), [newest, newest], "progress of shard {shard}");
        for partition in [shard, shard + SHARDS] {
            let expected: Vec<u64> = (1..=newest).collect();
            until("the blocks are visible", async || {
                (seqs(&read(&log, partition).await) == expected).then_some(())
            })
            .await;
        }
    }
    nothing_is_left_to_store(&log).await;
    for (shard, case) in (0..SHARDS).zip(CASES) {
        let next = if case.stays { 3 } else { 2 };
        let (records, progress) = group(shard, next);
        log.commit_group(Shard(shard), records, progress).await.expect("commits");
        for partition in [shard, shard + SHARDS] {
            assert_eq!(seqs(&read(&log, partition).await), (1..=next).collect::<Vec<_>>());
        }
    }
    log.close().await;
}

/// What was written to end a transaction is not taken for a record that waits.
async fn nothing_is_left_to_store(log: &Kafka) {
    let owned = log.partitions_owned(SINK_GROUP);
    for partition in 0..PARTITIONS {
        let last = read(log, partition).await.last().expect("one").0;
        until("the offset is stored", async || {
            let lease = *owned.borrow().get(&Partition(partition))?;
            log.commit_offset(SINK_GROUP, Partition(partition), lease, last.next(), "").await.ok()
        })
        .await;
    }
    let ages = log.ages(&SystemClock::new()).await.expect("told");
    assert!(ages.values().all(Duration::is_zero), "{ages:?}");
}
