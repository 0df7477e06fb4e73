//! Topics that are there already are taken as they are, or refused with what is wrong with them; and what is not stored is
//! seen to age.

mod broker;

use broker::{Broker, prefix, until};
use bytes::Bytes;
use daemon::clock::{SystemClock, SystemRandom};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
};
use record::{Digest, GatewayId, Incarnation, Seq, StreamName, chain_hash};
use std::{sync::Arc, time::Duration};
use tidegate_central::{
    SINK_GROUP,
    log::{
        ContentType, DataRecord, Log as _, Offset, Partition, RecordHeaders, Shard,
        kafka::{ClientOptions, Kafka, KafkaOptions},
    },
};

/// As long as the configuration asks for.
const LONG: (&str, &str) = ("retention.ms", "86400000");

fn options(broker: &Broker, prefix: &str) -> KafkaOptions {
    KafkaOptions {
        brokers: vec![broker.address.clone()],
        prefix: prefix.to_owned(),
        partitions: 2,
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

/// A topic, its partitions and settings, and what is said of them.
type Case = (&'static str, i32, &'static [(&'static str, &'static str)], &'static str);

async fn make(broker: &Broker, name: &str, partitions: i32, settings: &[(&str, &str)]) {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &broker.address);
    let admin: AdminClient<DefaultClientContext> = client.create().expect("a client");
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    let topic = settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value));
    let ask = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
    let made = admin.create_topics([&topic], &ask).await.expect("answered");
    made.into_iter().for_each(|topic| drop(topic.expect("made")));
}

/// What is said of a log one of whose topics is there already.
async fn said(
    broker: &Broker,
    topic: &str,
    partitions: i32,
    settings: &[(&str, &str)],
) -> Result<(), String> {
    let prefix = prefix();
    make(broker, &format!("{prefix}.{topic}"), partitions, settings).await;
    let opened = Kafka::open(options(broker, &prefix), Arc::new(SystemRandom)).await;
    match opened {
        Ok(log) => {
            log.close().await;
            Ok(())
        }
        Err(why) => Err(why.replace(&format!("{prefix}."), "")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_that_break_the_promise_are_refused_with_the_reason() {
    let broker = Broker::start();
    let cases: &[Case] = &[
        (
            "data",
            2,
            &[("cleanup.policy", "compact")],
            "topic data has cleanup.policy \"compact\", which must be \"delete\"",
        ),
        ("data", 2, &[("cleanup.policy", "compact,delete"), LONG], "cleanup.policy"),
        (
            "data",
            2,
            &[("retention.ms", "3600000")],
            "topic data has retention.ms 3600000, which must be 86400000 at least",
        ),
        (
            "data",
            2,
            &[LONG, ("retention.bytes", "1000000")],
            "topic data has retention.bytes 1000000, which must be -1",
        ),
        ("data", 3, &[LONG], "topic data has 3 partitions, the configuration says 2"),
        (
            "data",
            2,
            &[LONG, ("max.message.bytes", "100000")],
            "topic data has max.message.bytes 100000, which must be",
        ),
        (
            "data",
            2,
            &[LONG, ("unclean.leader.election.enable", "true")],
            "unclean.leader.election.enable true",
        ),
        (
            "progress",
            1,
            &[("cleanup.policy", "delete")],
            "topic progress has cleanup.policy \"delete\", which must be \"compact\"",
        ),
        ("progress", 2, &[("cleanup.policy", "compact")], "topic progress has 2 partitions"),
        (
            "control",
            1,
            &[("cleanup.policy", "compact"), ("unclean.leader.election.enable", "true")],
            "topic control has unclean",
        ),
        ("quarantine", 1, &[("cleanup.policy", "compact")], "topic quarantine has cleanup.policy"),
    ];
    for (topic, partitions, settings, needle) in cases {
        let why = said(&broker, topic, *partitions, settings).await.expect_err(needle);
        assert!(why.contains(needle), "{needle} in {why}");
    }
    let several = [("cleanup.policy", "compact"), ("unclean.leader.election.enable", "true")];
    let why = said(&broker, "data", 5, &several).await.expect_err("three things");
    assert_eq!(why.matches("topic data has").count(), 3, "all at once: {why}");
    // Without end, longer than asked for, or as the brokers have it: these are as good.
    for settings in [&[("retention.ms", "-1")][..], &[LONG, ("segment.ms", "600000")]] {
        assert_eq!(said(&broker, "data", 2, settings).await, Ok(()));
    }
    // Fewer copies than must have a record.
    let prefix = prefix();
    for (name, partitions, policy) in [
        ("data", 2, "delete"),
        ("progress", 1, "compact"),
        ("control", 1, "compact"),
        ("quarantine", 1, "delete"),
    ] {
        let settings = [("cleanup.policy", policy), ("min.insync.replicas", "2"), ("retention.ms", "-1")];
        make(&broker, &format!("{prefix}.{name}"), partitions, &settings).await;
    }
    let asked = KafkaOptions { replication: 3, min_isr: 2, ..options(&broker, &prefix) };
    let why = Kafka::open(asked, Arc::new(SystemRandom)).await.expect_err("one copy");
    assert!(why.contains(".data has 1 copies, but min-isr asks for 2"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_stored_is_seen_to_age() {
    let broker = Broker::start();
    let log = Kafka::open(options(&broker, &prefix()), Arc::new(SystemRandom)).await.expect("opens");
    let (shards, partitions) = (log.shards_owned(), log.partitions_owned(SINK_GROUP));
    until("all is assigned", async || {
        (!shards.borrow().is_empty() && partitions.borrow().len() == 2).then_some(())
    })
    .await;
    let clock = SystemClock::new();
    let none = log.ages(&clock).await.expect("answered");
    assert_eq!(none.values().copied().collect::<Vec<_>>(), [Duration::ZERO; 2]);
    log.claim(Shard(0)).await.expect("claims");
    let (stream, gateway) =
        (StreamName::new("machine").expect("valid"), GatewayId::new("plant-1").expect("valid"));
    let bytes = Bytes::from_static(b"a block");
    let prev_hash = Digest::default();
    let headers = RecordHeaders {
        content_type: ContentType::ArrowStream,
        schema: 7,
        incarnation: Incarnation(1),
        first_seq: Seq(1),
        last_seq: Seq(1),
        rows: 1,
        prev_hash,
        hash: chain_hash(&prev_hash, &stream, Incarnation(1), Seq(1), Seq(1), 7, &bytes),
        produced_at_ns: 5,
        gateway,
        stream,
    };
    log.commit_group(Shard(0), vec![DataRecord { headers, bytes }], Vec::new()).await.expect("commits");
    let (partition, age) = until("it ages", async || {
        let ages = log.ages(&clock).await.expect("answered");
        ages.into_iter().find(|(_, age)| *age > Duration::from_secs(2))
    })
    .await;
    assert!(age < Duration::from_secs(60), "{age:?}");
    let lease = partitions.borrow()[&partition];
    log.commit_offset(SINK_GROUP, partition, lease, Offset(1), "").await.expect("commits");
    let ages = log.ages(&clock).await.expect("answered");
    assert_eq!(ages[&partition], Duration::ZERO, "only a record of the broker's own is left: {ages:?}");
    assert_eq!(ages.len(), 2);
    assert!(ages.contains_key(&Partition(0)) && ages.contains_key(&Partition(1)));
    log.close().await;
}
