//! The topics, and what they must be like for the promise to hold.

use super::{
    KafkaOptions, blocking,
    limits::{
        ASK_AGAIN, BROKER_MESSAGE_BYTES, MESSAGE_BYTES_MAX, QUARANTINE_RETENTION, START_ASKS, START_PATIENCE,
        START_TIMEOUT, ms,
    },
};
use rdkafka::{
    ClientContext,
    admin::{AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication},
    client::DefaultClientContext,
    error::{KafkaError, KafkaResult},
    message::DeliveryResult,
    producer::{BaseProducer, Producer, ProducerContext},
    types::RDKafkaErrorCode,
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// One topic.
struct Topic {
    name: String,
    partitions: u32,
    settings: Vec<(&'static str, String)>,
}

/// What every topic has: brokers do not compress anew what was compressed once.
fn every(options: &KafkaOptions, policy: &str) -> Vec<(&'static str, String)> {
    vec![
        ("cleanup.policy", policy.to_owned()),
        ("min.insync.replicas", options.min_isr.to_string()),
        ("compression.type", "producer".to_owned()),
        ("unclean.leader.election.enable", "false".to_owned()),
        ("max.message.bytes", BROKER_MESSAGE_BYTES.to_string()),
        // The broker's clock says how old a record is, so that no other one makes it older than it is.
        ("message.timestamp.type", "LogAppendTime".to_owned()),
    ]
}

fn deleted(options: &KafkaOptions, retention: Duration) -> Vec<(&'static str, String)> {
    let mut settings = every(options, "delete");
    settings.push(("retention.ms", ms(retention)));
    settings.push(("retention.bytes", "-1".to_owned()));
    settings
}

fn all(options: &KafkaOptions) -> [Topic; 4] {
    let compact = || every(options, "compact");
    let topic = |name: &str, partitions, settings| Topic { name: options.topic(name), partitions, settings };
    [
        topic("data", options.partitions, deleted(options, options.retention)),
        topic("progress", options.shards, compact()),
        topic("control", 1, compact()),
        topic("quarantine", 1, deleted(options, options.retention.max(QUARANTINE_RETENTION))),
    ]
}

/// What the client last complained about: its answers say no more than that they are late.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<String>>);

impl ClientContext for Heard {
    fn error(&self, error: KafkaError, reason: &str) {
        // That all are down is said after the reason of each.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            return;
        }
        reason.clone_into(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl ProducerContext for Heard {
    type DeliveryOpaque = ();
    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// Waits until a broker answers. Blocks.
fn reach(options: &KafkaOptions) -> Result<(), String> {
    let heard = Heard::default();
    let asker: BaseProducer<Heard> = options
        .client()
        .create_with_context(heard.clone())
        .map_err(|e| format!("the client's options: {e}"))?;
    let mut asks = 1;
    while let Err(error) = asker.client().fetch_metadata(None, START_TIMEOUT) {
        // Complaints come while it is polled.
        (0..100).for_each(|_| asker.poll(Duration::ZERO));
        let reason = heard.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let hopeless = ["uthentication fail", "SSL handshake failed"].iter().any(|why| reason.contains(why));
        if hopeless || asks == START_ASKS {
            return Err(format!("no broker of {} answers: {error}; {reason}", options.brokers.join(",")));
        }
        tracing::warn!(asks, reason, "no broker answers yet; they are asked again");
        asks += 1;
    }
    Ok(())
}

/// Makes the topics that are not there, and checks those that are; all that is wrong at once.
pub(super) async fn ensure(options: &KafkaOptions) -> Result<(), String> {
    let asked = options.clone();
    blocking(move || reach(&asked)).await??;
    let admin: AdminClient<DefaultClientContext> =
        options.client().create().map_err(|e| format!("the client's options: {e}"))?;
    let ask = AdminOptions::new().request_timeout(Some(START_TIMEOUT)).operation_timeout(Some(START_TIMEOUT));
    let topics = all(options);
    let news: Vec<NewTopic<'_>> = topics.iter().map(|t| new(t, options.replication)).collect();
    let names: Vec<ResourceSpecifier<'_>> =
        topics.iter().map(|t| ResourceSpecifier::Topic(&t.name)).collect();
    let deadline = Instant::now() + START_PATIENCE;
    let wrong = loop {
        for made in patiently("topics cannot be made", || admin.create_topics(&news, &ask)).await? {
            match made {
                Ok(name) => tracing::info!(topic = name, "a topic was made"),
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                // One that the broker did not finish in time is looked at below.
                Err((_, code)) if is_passing(code) => {}
                Err((name, code)) => return Err(format!("topic {name} cannot be made: {code}")),
            }
        }
        let described =
            patiently("topics cannot be described", || admin.describe_configs(&names, &ask)).await?;
        if let Some(wrong) = judge_all(&topics, described, &admin, options)? {
            break wrong;
        }
        if Instant::now() > deadline {
            return Err(format!(
                "the topics {}.* were made, but the brokers do not know them",
                options.prefix
            ));
        }
        tokio::time::sleep(ASK_AGAIN).await;
    };
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

/// What is wrong with all of them; nothing when one was made a moment ago and the brokers cannot tell yet.
fn judge_all(
    topics: &[Topic],
    described: Vec<Result<ConfigResource, RDKafkaErrorCode>>,
    admin: &AdminClient<DefaultClientContext>,
    options: &KafkaOptions,
) -> Result<Option<Vec<String>>, String> {
    let mut wrong = Vec::new();
    for (topic, answer) in topics.iter().zip(described) {
        let resource = match answer {
            Ok(resource) => resource,
            Err(RDKafkaErrorCode::UnknownTopicOrPartition) => return Ok(None),
            Err(code) if is_passing(code) => return Ok(None),
            Err(code) => return Err(format!("topic {} cannot be described: {code}", topic.name)),
        };
        let known = resource.get("cleanup.policy").is_some_and(|entry| entry.value.is_some());
        let copies = copies(topic, admin);
        if !known || copies.is_empty() {
            return Ok(None);
        }
        wrong.extend(judge(topic, &resource, options));
        wrong.extend(judge_partitions(topic, options, &copies));
    }
    Ok(Some(wrong))
}

/// Makes the topic of a stream's events when it is not there.
pub(super) async fn ensure_events(options: &KafkaOptions, name: &str) -> Result<(), String> {
    let admin: AdminClient<DefaultClientContext> = options.client().create().map_err(|e| e.to_string())?;
    let ask = AdminOptions::new().request_timeout(Some(START_TIMEOUT)).operation_timeout(Some(START_TIMEOUT));
    let topic = Topic {
        name: name.to_owned(),
        partitions: options.partitions,
        settings: deleted(options, options.retention),
    };
    let news = [new(&topic, options.replication)];
    for result in patiently("a topic cannot be made", || admin.create_topics(&news, &ask)).await? {
        match result {
            Ok(name) => tracing::info!(topic = name, "a topic was made"),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => return Err(format!("topic {name} cannot be made: {code}")),
        }
    }
    Ok(())
}

/// Asks again while the brokers are away or busy, as long as a start may wait; what is asked may be done twice.
async fn patiently<T, F>(what: &str, ask: impl Fn() -> F) -> Result<T, String>
where
    F: Future<Output = KafkaResult<T>>,
{
    let deadline = Instant::now() + START_PATIENCE;
    let mut told = false;
    loop {
        let error = match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let passing = matches!(&error, KafkaError::AdminOp(code) if is_passing(*code));
        if !passing || Instant::now() > deadline {
            return Err(format!("{what}: {error}"));
        }
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(%error, "the brokers do not answer yet; they are asked again");
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Whether the answer may be another one in a moment: a broker or a connection was lost, or nobody has had the time.
fn is_passing(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{
        AllBrokersDown, BrokerNotAvailable, BrokerTransportFailure, NetworkException, NotController,
        OperationTimedOut, RequestTimedOut,
    };
    matches!(
        code,
        AllBrokersDown
            | BrokerNotAvailable
            | BrokerTransportFailure
            | NetworkException
            | NotController
            | OperationTimedOut
            | RequestTimedOut
    )
}

fn new(topic: &Topic, replication: i32) -> NewTopic<'_> {
    let partitions = i32::try_from(topic.partitions).unwrap_or(i32::MAX);
    let new = NewTopic::new(&topic.name, partitions, TopicReplication::Fixed(replication));
    topic.settings.iter().fold(new, |new, (key, value)| new.set(key, value))
}

/// What in a topic's settings breaks the promise.
fn judge(topic: &Topic, found: &ConfigResource, options: &KafkaOptions) -> Vec<String> {
    let value = |key: &str| found.get(key).and_then(|e| e.value.clone()).unwrap_or_default();
    let name = &topic.name;
    let mut wrong = Vec::new();
    let wanted = topic.settings.iter().find(|(k, _)| *k == "cleanup.policy").map_or("", |(_, v)| v.as_str());
    let policy = value("cleanup.policy");
    if policy != wanted {
        wrong.push(format!("topic {name} has cleanup.policy {policy:?}, which must be {wanted:?}"));
    }
    let at_least = |key: &str, least: i64, wrong: &mut Vec<String>| {
        let there = value(key).parse::<i64>().unwrap_or(0);
        // -1 is without end.
        if there >= 0 && there < least {
            wrong.push(format!("topic {name} has {key} {there}, which must be {least} at least"));
        }
    };
    if wanted == "delete" {
        let least = i64::try_from(options.retention.as_millis()).unwrap_or(i64::MAX);
        at_least("retention.ms", least, &mut wrong);
        let bytes = value("retention.bytes");
        if bytes != "-1" {
            wrong.push(format!(
                "topic {name} has retention.bytes {bytes}, which must be -1: a size removes records that are not stored yet"
            ));
        }
    }
    if value("unclean.leader.election.enable") == "true" {
        wrong.push(format!(
            "topic {name} has unclean.leader.election.enable true, which must be false: such an election loses records that were acknowledged"
        ));
    }
    at_least("min.insync.replicas", i64::from(options.min_isr), &mut wrong);
    at_least("max.message.bytes", MESSAGE_BYTES_MAX as i64, &mut wrong);
    wrong
}

/// The copies of each partition; none while the partitions are not known.
fn copies(topic: &Topic, admin: &AdminClient<DefaultClientContext>) -> Vec<usize> {
    let Ok(there) = admin.inner().fetch_metadata(Some(&topic.name), START_TIMEOUT) else { return Vec::new() };
    let partitions = there.topics().first().map_or(&[][..], |t| t.partitions());
    partitions.iter().map(|p| p.replicas().len()).collect()
}

/// What in a topic's partitions breaks it: their number, and their copies.
fn judge_partitions(topic: &Topic, options: &KafkaOptions, copies: &[usize]) -> Vec<String> {
    let (name, count, wanted) = (&topic.name, copies.len(), topic.partitions);
    let mut wrong = Vec::new();
    if count != wanted as usize {
        wrong.push(format!(
            "topic {name} has {count} partitions, the configuration says {wanted}; the number stays"
        ));
    }
    let (least, min_isr) = (copies.iter().min().copied().unwrap_or(0), options.min_isr);
    if least < min_isr as usize {
        wrong.push(format!(
            "topic {name} has {least} copies, but min-isr asks for {min_isr}: nothing could be written"
        ));
    }
    wrong
}
