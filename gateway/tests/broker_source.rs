//! The broker source against a broker that says by hand what a test needs.

mod door;

use daemon::clock::SystemRandom;
use door::{PATIENCE, stored};
use record::{GatewayId, SourceName};
use std::sync::Arc;
use tidegate_gateway::{
    config::{MqttSource, Subscription},
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
    let payload = payload(id);
    let mut out = vec![0x32 | u8::from(dup) << 3, (2 + TOPIC.len() + 2 + payload.len()) as u8];
    out.extend_from_slice(&(TOPIC.len() as u16).to_be_bytes());
    out.extend_from_slice(TOPIC.as_bytes());
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

/// A broker that lost the session numbers its messages anew: an equal one under an old number is a new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_session_is_forgotten() {
    let dir = tempfile::tempdir().expect("a folder");
    let (door, registry) = door::open(dir.path(), SECTIONS);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let settings = MqttSource {
        host: "127.0.0.1".into(),
        port: listener.local_addr().expect("bound").port(),
        tls: false,
        ca: None,
        client_id: None,
        user: None,
        password_file: None,
        subscribe: vec![Subscription { topic: "machines/+/telemetry".into(), qos: 1 }],
    };
    let parts = mqtt_client::Parts {
        name: SourceName::new("plc").expect("a name"),
        gateway: GatewayId::new("plant-7").expect("an id"),
        settings,
        door: door.clone(),
        random: Arc::new(SystemRandom),
    };
    let stop = CancellationToken::new();
    let running = {
        let stop = stop.clone();
        tokio::spawn(async move { mqtt_client::run(parts, &registry, stop).await })
    };

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

    stop.cancel();
    running.await.expect("no panic").expect("no error");
    door.hub().close().expect("the log ends well");
}
