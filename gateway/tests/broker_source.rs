//! The broker source against a broker that says by hand what a test needs.

mod door;

use daemon::{clock::SystemRandom, metrics::Registry};
use door::{PATIENCE, stored};
use record::{GatewayId, SourceName};
use std::{path::Path, sync::Arc};
use tidegate_gateway::{
    config::{MqttSource, Subscription},
    ingest::Door,
    source::mqtt_client,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

const SECTIONS: &str = r#"
[source.plc]
kind = "mqtt"
url = "mqtt://127.0.0.1:1883"
subscribe = [{ topic = "machines/+/telemetry", qos = 1 }]
[stream.machine]
from = ["plc"]
topics = ["machines/+/telemetry"]
decode = { format = "json", time = "ts", missing-time = "receive", device = { topic-level = 2 } }
columns = { temperature = "float64" }
"#;
const TOPIC: &str = "machines/7/telemetry";

/// The gateway's connection, let in.
async fn accept(listener: &TcpListener, session_present: bool) -> TcpStream {
    let (mut stream, _) =
        tokio::time::timeout(PATIENCE, listener.accept()).await.expect("it comes").expect("ok");
    assert_eq!(packet(&mut stream).await[0] >> 4, 1, "CONNECT");
    stream.write_all(&[0x20, 2, u8::from(session_present), 0]).await.expect("the connection lives");
    stream
}

/// The next packet; all that the source writes is short.
async fn packet(stream: &mut TcpStream) -> Vec<u8> {
    let read = async {
        let mut out = vec![0; 2];
        stream.read_exact(&mut out).await.expect("the connection lives");
        let mut rest = vec![0; usize::from(out[1])];
        stream.read_exact(&mut rest).await.expect("the connection lives");
        out.append(&mut rest);
        out
    };
    tokio::time::timeout(PATIENCE, read).await.expect("a packet")
}

async fn publish(stream: &mut TcpStream, id: u16, dup: bool) {
    send(stream, TOPIC, id, u8::from(dup) << 3).await;
}

async fn send(stream: &mut TcpStream, topic: &str, id: u16, flags: u8) {
    let payload = payload(id);
    let mut out = vec![0x32 | flags, (2 + topic.len() + 2 + payload.len()) as u8];
    out.extend_from_slice(&(topic.len() as u16).to_be_bytes());
    out.extend_from_slice(topic.as_bytes());
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(payload.as_bytes());
    stream.write_all(&out).await.expect("the connection lives");
}

/// Waits for the acknowledgement, past subscriptions.
async fn acknowledged(stream: &mut TcpStream, id: u16) {
    loop {
        let packet = packet(stream).await;
        if packet[0] == 0x40 {
            assert_eq!(packet[2..], id.to_be_bytes());
            return;
        }
    }
}

fn payload(id: u16) -> String {
    format!("{{\"n\":{id}}}")
}

/// The source under test.
struct Source {
    stop: CancellationToken,
    running: tokio::task::JoinHandle<Result<(), mqtt_client::StartError>>,
}

impl Source {
    fn start(
        listener: &TcpListener,
        folder: &Path,
        door: &Arc<Door>,
        registry: &Registry,
        topics: &[&str],
    ) -> Self {
        let settings = MqttSource {
            host: "127.0.0.1".into(),
            port: listener.local_addr().expect("bound").port(),
            tls: false,
            ca: None,
            client_id: None,
            user: None,
            password_file: None,
            subscribe: topics.iter().map(|t| Subscription { topic: (*t).into(), qos: 1 }).collect(),
        };
        let parts = mqtt_client::Parts {
            name: SourceName::new("plc").expect("a name"),
            gateway: GatewayId::new("plant-7").expect("an id"),
            settings,
            folder: folder.to_owned(),
            door: door.clone(),
            random: Arc::new(SystemRandom),
        };
        let stop = CancellationToken::new();
        let (stopping, registry) = (stop.clone(), registry.clone());
        let running = tokio::spawn(async move { mqtt_client::run(parts, &registry, stopping).await });
        Self { stop, running }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.running.await.expect("no panic").expect("no error");
    }
}

/// Answers the subscription, past what it gives back; gives the packets.
async fn subscribed(stream: &mut TcpStream, filters: usize) -> Vec<Vec<u8>> {
    let mut seen = Vec::new();
    loop {
        let packet = packet(stream).await;
        let (kind, id) = (packet[0], [packet[2], packet[3]]);
        seen.push(packet);
        if kind == 0x82 {
            let mut answer = vec![0x90, 2 + filters as u8, id[0], id[1]];
            answer.resize(4 + filters, 1);
            stream.write_all(&answer).await.expect("the connection lives");
            return seen;
        }
    }
}

const RETAINED: u8 = 1;
const AGAIN: u8 = 8;

/// What a renewed subscription brings again was delivered before; what a new filter brings was not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retained_values_come_once_also_those_of_a_new_filter() {
    let dir = tempfile::tempdir().expect("a folder");
    let sections = SECTIONS.replace("topics = [", "topics = [\"extra/#\", ");
    let (door, registry) = door::open(dir.path(), &sections);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let start = |topics: &[&str]| Source::start(&listener, dir.path(), &door, &registry, topics);

    let source = start(&["machines/+/telemetry"]);
    let mut broker = accept(&listener, false).await;
    subscribed(&mut broker, 1).await;
    send(&mut broker, TOPIC, 1, RETAINED).await;
    acknowledged(&mut broker, 1).await;
    source.stop().await;
    assert_eq!(stored(&door), [payload(1)]);

    let source = start(&["machines/+/telemetry", "extra/#"]);
    let mut broker = accept(&listener, true).await;
    subscribed(&mut broker, 2).await;
    for (topic, id, flags) in [(TOPIC, 2, RETAINED), ("extra/1", 3, RETAINED), (TOPIC, 4, RETAINED | AGAIN)] {
        send(&mut broker, topic, id, flags).await;
        acknowledged(&mut broker, id).await;
    }
    source.stop().await;
    assert_eq!(stored(&door), [payload(1), payload(3), payload(4)], "4 was never acknowledged");

    let source = start(&["machines/+/telemetry"]);
    let mut broker = accept(&listener, true).await;
    let given_back = subscribed(&mut broker, 1).await;
    assert!(given_back.iter().any(|p| p[0] == 0xa2 && p.ends_with(b"extra/#")), "{given_back:?}");
    source.stop().await;
    door.hub().close().expect("the log ends well");
}

/// A broker that lost the session numbers its messages anew: an equal one under an old number is a new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_session_is_forgotten() {
    let dir = tempfile::tempdir().expect("a folder");
    let (door, registry) = door::open(dir.path(), SECTIONS);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let source = Source::start(&listener, dir.path(), &door, &registry, &["machines/+/telemetry"]);

    let mut broker = accept(&listener, true).await;
    for id in 1..=300 {
        publish(&mut broker, id, false).await;
        acknowledged(&mut broker, id).await;
    }
    drop(broker);
    let mut broker = accept(&listener, true).await;
    publish(&mut broker, 300, true).await;
    acknowledged(&mut broker, 300).await;
    assert_eq!(stored(&door).len(), 300, "a repeat within the session is recognised");
    drop(broker);
    let mut broker = accept(&listener, false).await;
    publish(&mut broker, 300, true).await;
    acknowledged(&mut broker, 300).await;
    assert_eq!(stored(&door).last(), Some(&payload(300)));
    assert_eq!(stored(&door).len(), 301, "a repeat of the new session is not one of the old");

    source.stop().await;
    door.hub().close().expect("the log ends well");
}
