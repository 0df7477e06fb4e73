//! The topics, and what they must be like for the promise to hold.

use super::{KafkaOptions, blocking};
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
    time::Duration,
};

/// How long a broker may take to answer what is asked at the start, once.
const ASK_TIMEOUT: Duration = Duration::from_secs(15);
/// How often it is asked: a broker that has just started answers some questions long before others.
const ASKS: u32 = 8;

/// One topic.
struct Topic {
    name: String,
    partitions: u32,
    settings: Vec<(&'static str, String)>,
}

fn all(options: &KafkaOptions) -> [Topic; 4] {
    let isr = || ("min.insync.replicas", options.min_isr.to_string());
    // A record is a compressed block already.
    let plain = || ("compression.type", "producer".to_owned());
    let compact = || vec![("cleanup.policy", "compact".to_owned()), isr(), plain()];
    let deleted = |retention: Duration| {
        let ms = retention.as_millis().to_string();
        vec![("cleanup.policy", "delete".to_owned()), ("retention.ms", ms), isr(), plain()]
    };
    let topic = |name: &str, partitions, settings| Topic { name: options.topic(name), partitions, settings };
    [
        topic("data", options.partitions, deleted(options.retention)),
        topic("progress", options.shards, compact()),
        topic("control", 1, compact()),
        topic("quarantine", 1, deleted(options.retention.max(Duration::from_secs(90 * 86_400)))),
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
    while let Err(error) = asker.client().fetch_metadata(None, ASK_TIMEOUT) {
        // Complaints come while it is polled.
        (0..100).for_each(|_| asker.poll(Duration::ZERO));
        let reason = heard.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let hopeless = ["uthentication fail", "SSL handshake failed"].iter().any(|why| reason.contains(why));
        if hopeless || asks == ASKS {
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
    let ask = AdminOptions::new().request_timeout(Some(ASK_TIMEOUT)).operation_timeout(Some(ASK_TIMEOUT));
    let topics = all(options);
    let news: Vec<NewTopic<'_>> = topics.iter().map(|t| new(t, options.replication)).collect();
    let made = patiently("topics cannot be made", || admin.create_topics(&news, &ask)).await?;
    for result in made {
        match result {
            Ok(name) => tracing::info!(topic = name, "a topic was made"),
            // One that the broker did not finish in time is looked at below, and so is one of an earlier ask.
            Err((_, RDKafkaErrorCode::TopicAlreadyExists | RDKafkaErrorCode::RequestTimedOut)) => {}
            Err((name, code)) => return Err(format!("topic {name} cannot be made: {code}")),
        }
    }
    let names: Vec<ResourceSpecifier<'_>> =
        topics.iter().map(|t| ResourceSpecifier::Topic(&t.name)).collect();
    let described = patiently("topics cannot be described", || admin.describe_configs(&names, &ask)).await?;
    let mut wrong = Vec::new();
    for (topic, answer) in topics.iter().zip(described) {
        let resource = answer.map_err(|code| format!("topic {} cannot be described: {code}", topic.name))?;
        wrong.extend(judge(topic, &resource, options));
        wrong.extend(judge_partitions(topic, &admin)?);
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

/// Asks again while the answer does not come in time; what is asked may be done twice.
async fn patiently<T, F>(what: &str, ask: impl Fn() -> F) -> Result<T, String>
where
    F: Future<Output = KafkaResult<T>>,
{
    let mut asks = 1;
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(KafkaError::AdminOp(RDKafkaErrorCode::OperationTimedOut)) if asks < ASKS => {
                tracing::warn!(asks, "the brokers do not answer yet; they are asked again");
                asks += 1;
            }
            Err(error) => return Err(format!("{what}: {error}")),
        }
    }
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
    }
    at_least("min.insync.replicas", i64::from(options.min_isr), &mut wrong);
    at_least("max.message.bytes", super::MESSAGE_BYTES as i64, &mut wrong);
    wrong
}

fn judge_partitions(
    topic: &Topic,
    admin: &AdminClient<DefaultClientContext>,
) -> Result<Option<String>, String> {
    let name = &topic.name;
    let there = admin.inner().fetch_metadata(Some(name), ASK_TIMEOUT);
    let there = there.map_err(|e| format!("topic {name} cannot be described: {e}"))?;
    let count = there.topics().first().map_or(0, |t| t.partitions().len());
    let (wanted, right) = (topic.partitions, count == topic.partitions as usize);
    let said =
        || format!("topic {name} has {count} partitions, the configuration says {wanted}; the number stays");
    Ok((!right).then(said))
}
