//! The MQTT listener over a real door and a real log: what is acknowledged is in the log once, also across a restart,
//! and what is not wanted gets its answer.

use bytes::{Buf, BytesMut};
use daemon::{clock::SystemClock, metrics::Registry};
use journal::{FrameSeq, HubOptions, Log, LogOptions, Quota, RealDisk};
use record::{SourceName, clock::Clock};
use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};
use tidegate_gateway::{
    config::{Config, ListenerSource, Unmatched},
    event::Events,
    ingest::{Door, DoorParts, EVENTS, route::Routes},
    source::mqtt_listener,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

const CONFIG: &str = r#"
[gateway]
id = "plant-7"
data-dir = "data"
[central]
url = "https://central.example:7443"
tls = { ca = "ca.pem", cert = "plant-7.pem", key = "plant-7.key" }
[source.floor]
kind = "mqtt-listener"
bind = "127.0.0.1:0"
[stream.machine]
from = ["floor"]
topics = ["machines/+/telemetry"]
decode = { format = "json", time = "ts", missing-time = "receive", device = { topic-level = 2 } }
columns = { temperature = "float64" }
[stream.timed]
from = ["floor"]
topics = ["timed/+/telemetry"]
decode = { format = "json", time = "ts", device = { topic-level = 2 } }
columns = { temperature = "float64" }
"#;

/// No test waits longer than this for anything.
const PATIENCE: Duration = Duration::from_secs(30);
const TOPIC: &str = "machines/7/telemetry";

/// A gateway's listener and input log.
struct Front {
    door: Arc<Door>,
    address: SocketAddr,
    registry: Registry,
    stop: CancellationToken,
    serving: JoinHandle<std::io::Result<()>>,
}

#[derive(Clone)]
struct Setup {
    connections: usize,
    unmatched: Unmatched,
    quota: Option<Quota>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { connections: 100, unmatched: Unmatched::Acknowledge, quota: None }
    }
}

impl Front {
    async fn open(dir: &Path, setup: Setup) -> Self {
        let config = Config::parse(CONFIG, Path::new("/etc/gateway.toml")).expect("valid");
        let options =
            LogOptions { segment_bytes: 1 << 20, quota: setup.quota.clone(), ..LogOptions::default() };
        let (log, _) = Log::open(RealDisk, dir, options).expect("a log");
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let options = HubOptions { quota: setup.quota, reserve_bytes: 0, ..HubOptions::default() };
        let parts = DoorParts { log, options, routes: Arc::new(Routes::new(&config)), clock: clock.clone() };
        let registry = Registry::new();
        let door = Door::open(parts, &registry).expect("a door");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let settings =
            ListenerSource { bind: address, connections: setup.connections, unmatched: setup.unmatched };
        let (stop, name) = (CancellationToken::new(), SourceName::new("floor").expect("a name"));
        let serving = {
            let (door, registry, stop) = (door.clone(), registry.clone(), stop.clone());
            tokio::spawn(async move {
                mqtt_listener::serve(listener, name, settings, door, clock, &registry, stop).await
            })
        };
        Self { door, address, registry, stop, serving }
    }

    /// Payloads of the events in the log, in order.
    fn stored(&self) -> Vec<String> {
        let mut reader = self.door.hub().log().reader(FrameSeq(1));
        let mut out = Vec::new();
        while let Some(frame) = reader.next().expect("readable") {
            if frame.kind == EVENTS {
                let events = Events::new(&frame.payload).map(|event| event.expect("a record"));
                let events = events.filter(|event| !event.delivery.noted);
                out.extend(events.map(|event| String::from_utf8_lossy(event.payload).into_owned()));
            }
        }
        out
    }

    async fn wait_stored(&self, count: usize) {
        let waited = tokio::time::timeout(PATIENCE, async {
            let mut durable = self.door.watch();
            while self.stored().len() < count {
                durable.changed().await.expect("the log lives");
            }
        });
        waited.await.expect("events in the log");
    }

    async fn wait_metric(&self, line: &str) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !self.registry.render().lines().any(|l| l == line) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(waited.await.is_ok(), "no metric {line} in\n{}", self.registry.render());
    }

    /// As a crash: connections end without a word, nothing more is written.
    async fn kill(self) {
        self.serving.abort();
        let _ = self.serving.await;
        self.door.hub().close().expect("the log ends well");
    }

    async fn end(self) {
        self.stop.cancel();
        let served = tokio::time::timeout(PATIENCE, self.serving).await.expect("it ends");
        served.expect("no panic").expect("no error");
        self.door.hub().close().expect("the log ends well");
    }
}

/// A device that builds its packets by hand.
struct Device {
    stream: TcpStream,
    input: BytesMut,
}

impl Device {
    async fn connect(front: &Front, connect: &[u8]) -> Self {
        let stream = TcpStream::connect(front.address).await.expect("a listener");
        let mut device = Self { stream, input: BytesMut::new() };
        device.send(connect).await;
        device
    }

    /// An MQTT 3.1.1 client with a persistent session; gives back whether the session was present.
    async fn persistent(front: &Front, id: &str) -> (Self, bool) {
        let mut device = Self::connect(front, &connect_packet(4, 0, id)).await;
        let ack = device.packet().await;
        assert_eq!((ack[0], ack[3]), (0x20, 0), "let in");
        (device, ack[2] == 1)
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("the connection lives");
    }

    async fn publish(&mut self, id: u16, payload: &str, dup: bool) {
        self.send(&publish_packet(TOPIC, 1, id, payload, dup)).await;
    }

    /// The next packet; all that a listener writes is short.
    async fn packet(&mut self) -> Vec<u8> {
        let read = tokio::time::timeout(PATIENCE, async {
            loop {
                if self.input.len() >= 2 && self.input.len() >= 2 + usize::from(self.input[1]) {
                    let bytes = 2 + usize::from(self.input[1]);
                    let packet = self.input[..bytes].to_vec();
                    self.input.advance(bytes);
                    return packet;
                }
                let n = self.stream.read_buf(&mut self.input).await.expect("the connection lives");
                assert_ne!(n, 0, "closed where a packet was expected");
            }
        });
        read.await.expect("an answer")
    }

    async fn acknowledged(&mut self, id: u16) {
        let [high, low] = id.to_be_bytes();
        assert_eq!(self.packet().await, [0x40, 2, high, low]);
    }

    async fn closed(&mut self) {
        let read =
            tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.input)).await.expect("an end");
        assert!(matches!(read, Ok(0) | Err(_)) && self.input.is_empty(), "closed without a word");
    }
}

fn connect_packet(level: u8, flags: u8, id: &str) -> Vec<u8> {
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', level, flags, 0, 60];
    if level == 5 {
        body.push(0);
    }
    body.extend_from_slice(&(id.len() as u16).to_be_bytes());
    body.extend_from_slice(id.as_bytes());
    whole_packet(0x10, &body)
}

fn publish_packet(topic: &str, qos: u8, id: u16, payload: &str, dup: bool) -> Vec<u8> {
    let mut body = (topic.len() as u16).to_be_bytes().to_vec();
    body.extend_from_slice(topic.as_bytes());
    if qos > 0 {
        body.extend_from_slice(&id.to_be_bytes());
    }
    body.extend_from_slice(payload.as_bytes());
    whole_packet(0x30 | u8::from(dup) << 3 | qos << 1, &body)
}

fn whole_packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut length = body.len();
    loop {
        let low = (length % 128) as u8;
        length /= 128;
        out.push(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            break;
        }
    }
    out.extend_from_slice(body);
    out
}

fn payload(n: u16) -> String {
    format!("{{\"n\":{n}}}")
}

fn payloads(numbers: impl IntoIterator<Item = u16>) -> Vec<String> {
    numbers.into_iter().map(payload).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_library_client_is_acknowledged_and_stored_in_order() {
    let dir = tempfile::tempdir().expect("a folder");
    let front = Front::open(dir.path(), Setup::default()).await;
    let mut options = rumqttc::MqttOptions::new("dev", "127.0.0.1", front.address.port());
    options.set_clean_session(true).set_inflight(50);
    let (client, mut events) = rumqttc::AsyncClient::new(options, 100);
    let publisher = tokio::spawn(async move {
        for n in 0..500 {
            let qos = rumqttc::QoS::AtLeastOnce;
            client.publish(TOPIC, qos, false, payload(n)).await.expect("taken by the client");
        }
        client
    });
    let mut acknowledged = 0;
    while acknowledged < 500 {
        let event =
            tokio::time::timeout(PATIENCE, events.poll()).await.expect("an answer").expect("connected");
        acknowledged += usize::from(matches!(event, rumqttc::Event::Incoming(rumqttc::Packet::PubAck(_))));
    }
    drop(publisher.await.expect("published"));
    assert_eq!(front.stored(), payloads(0..500));
    front.end().await;
}

/// A kill between the fdatasync and the PUBACK: the device repeats with DUP what is in the log already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redelivery_after_a_kill_is_acknowledged_and_not_stored_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let front = Front::open(dir.path(), Setup::default()).await;
    let (mut device, present) = Device::persistent(&front, "dev").await;
    assert!(!present);
    for first in (1..200).step_by(10) {
        for n in first..first + 10 {
            device.publish(n, &payload(n), false).await;
        }
        for n in first..first + 10 {
            device.acknowledged(n).await;
        }
    }
    for n in 201..=205 {
        device.publish(n, &payload(n), false).await;
    }
    // All are durable, and the device has seen none of the last five acknowledgements.
    front.wait_stored(205).await;
    drop(device);
    front.kill().await;

    let front = Front::open(dir.path(), Setup::default()).await;
    let (mut device, present) = Device::persistent(&front, "dev").await;
    assert!(present, "the session is known from the log");
    for n in 201..=205 {
        device.publish(n, &payload(n), true).await;
    }
    device.publish(206, &payload(206), false).await;
    for n in 201..=206 {
        device.acknowledged(n).await;
    }
    assert_eq!(front.stored(), payloads(1..=206));
    front.wait_metric("tidegate_ingest_repeats_total{source=\"floor\"} 5").await;
    front.end().await;
}

/// A session's first publishes are not certain by their packet ids alone, but a reading with its time is the same
/// reading.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readings_with_their_time_are_recognised_from_the_first_one() {
    const TIMED: &str = "timed/7/telemetry";
    let reading = |n: u16| format!("{{\"ts\":{n},\"temperature\":1}}");
    let dir = tempfile::tempdir().expect("a folder");
    let front = Front::open(dir.path(), Setup::default()).await;
    let (mut device, _) = Device::persistent(&front, "dev").await;
    for n in 1..=5 {
        device.send(&publish_packet(TIMED, 1, n, &reading(n), false)).await;
    }
    front.wait_stored(5).await;
    drop(device);
    front.kill().await;

    let front = Front::open(dir.path(), Setup::default()).await;
    let (mut device, _) = Device::persistent(&front, "dev").await;
    for n in 1..=6 {
        device.send(&publish_packet(TIMED, 1, n, &reading(n), true)).await;
    }
    // The packet id of an earlier reading, but another time.
    device.send(&publish_packet(TIMED, 1, 3, &reading(30), true)).await;
    for n in [1, 2, 3, 4, 5, 6, 3] {
        device.acknowledged(n).await;
    }
    assert_eq!(front.stored(), [1, 2, 3, 4, 5, 6, 30].map(reading));
    front.end().await;
}

/// A device that reuses the lowest free id may mean a new event: it is stored, for losing is worse than doubling.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_certain_is_stored() {
    let dir = tempfile::tempdir().expect("a folder");
    let front = Front::open(dir.path(), Setup::default()).await;
    let (mut device, _) = Device::persistent(&front, "dev").await;
    for _ in 0..300 {
        device.publish(1, "same", false).await;
        device.acknowledged(1).await;
    }
    drop(device);
    front.kill().await;
    let front = Front::open(dir.path(), Setup::default()).await;
    let (mut device, _) = Device::persistent(&front, "dev").await;
    device.publish(1, "same", true).await;
    device.acknowledged(1).await;
    assert_eq!(front.stored().len(), 301);
    front.end().await;
}

/// Publishes that nobody wants use packet ids, too: when a client's ids come round, an equal payload is a new event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_that_went_round_over_unmatched_topics_are_new_also_after_a_restart() {
    let dir = tempfile::tempdir().expect("a folder");
    let front = Front::open(dir.path(), Setup::default()).await;
    let (mut device, _) = Device::persistent(&front, "dev").await;
    let ids: Vec<u16> = (1..=300).collect();
    for some in ids.chunks(50) {
        for id in some {
            device.publish(*id, &payload(*id), false).await;
        }
        for id in some {
            device.acknowledged(*id).await;
        }
    }
    // Steps of 16 still count as counting up, and the ids come round to 188.
    let unmatched: Vec<u16> = (316..=65_532).step_by(16).chain((13..=189).step_by(16)).collect();
    for some in unmatched.chunks(60) {
        for id in some {
            device.send(&publish_packet("nobody/wants/this", 1, *id, "x", false)).await;
        }
        for id in some {
            device.acknowledged(*id).await;
        }
    }
    // The first copies of both were lost on the wire.
    device.publish(200, &payload(200), true).await;
    device.acknowledged(200).await;
    device.send(&publish_packet("nobody/wants/this", 1, 205, "x", false)).await;
    device.acknowledged(205).await;
    drop(device);
    front.kill().await;
    let front = Front::open(dir.path(), Setup::default()).await;
    let (mut device, present) = Device::persistent(&front, "dev").await;
    assert!(present);
    device.publish(210, &payload(210), true).await;
    device.acknowledged(210).await;
    assert_eq!(front.stored(), payloads((1..=300).chain([200, 210])));
    front.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_start_begins_anew() {
    let dir = tempfile::tempdir().expect("a folder");
    let front = Front::open(dir.path(), Setup::default()).await;
    let (mut device, _) = Device::persistent(&front, "dev").await;
    for n in 1..=200 {
        device.publish(n, &payload(n), false).await;
        device.acknowledged(n).await;
    }
    let mut device = Device::connect(&front, &connect_packet(4, 2, "dev")).await;
    assert_eq!(device.packet().await, [0x20, 2, 0, 0]);
    device.publish(200, &payload(200), true).await;
    device.acknowledged(200).await;
    assert_eq!(front.stored().len(), 201, "another process may use the name of the device");
    front.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_connection_takes_the_client_id_over() {
    let dir = tempfile::tempdir().expect("a folder");
    let front = Front::open(dir.path(), Setup::default()).await;
    let mut older = Device::connect(&front, &connect_packet(5, 2, "dev")).await;
    assert_eq!(older.packet().await[0], 0x20);
    let (mut newer, _) = Device::persistent(&front, "dev").await;
    let goodbye = older.packet().await;
    assert_eq!((goodbye[0], goodbye[2]), (0xe0, 0x8e));
    newer.publish(1, "x", false).await;
    newer.acknowledged(1).await;
    front.wait_metric("tidegate_mqtt_disconnects_total{reason=\"taken_over\",source=\"floor\"} 1").await;
    front.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_over_the_bound_are_told_so() {
    let dir = tempfile::tempdir().expect("a folder");
    let front = Front::open(dir.path(), Setup { connections: 1, ..Setup::default() }).await;
    let (mut first, _) = Device::persistent(&front, "a").await;
    let mut second = Device::connect(&front, &connect_packet(4, 2, "b")).await;
    assert_eq!(second.packet().await, [0x20, 2, 0, 3]);
    let mut third = Device::connect(&front, &connect_packet(5, 2, "c")).await;
    assert_eq!(third.packet().await, [0x20, 3, 0, 0x97, 0]);
    first.publish(1, "x", false).await;
    first.acknowledged(1).await;
    front.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_wanted_gets_its_answer() {
    let dir = tempfile::tempdir().expect("a folder");
    let front = Front::open(dir.path(), Setup { unmatched: Unmatched::Refuse, ..Setup::default() }).await;
    // A topic that no stream wants: MQTT 5 reads why, MQTT 3.1.1 is closed.
    let mut device = Device::connect(&front, &connect_packet(5, 2, "five")).await;
    device.packet().await;
    let mut publish = vec![0, 1, b'x', 0, 7, 0];
    publish.extend_from_slice(b"payload");
    device.send(&whole_packet(0x32, &publish)).await;
    assert_eq!(device.packet().await, [0x40, 4, 0, 7, 0x90, 0]);
    let (mut device, _) = Device::persistent(&front, "three").await;
    device.send(&publish_packet("x", 1, 1, "payload", false)).await;
    device.closed().await;
    // QoS 2, subscriptions, a second CONNECT, bytes that are no packet, a packet over the limit.
    let (mut device, _) = Device::persistent(&front, "two").await;
    device.send(&publish_packet(TOPIC, 2, 1, "payload", false)).await;
    device.closed().await;
    let (mut device, _) = Device::persistent(&front, "sub").await;
    device.send(&[0x82, 6, 0, 9, 0, 1, b'a', 1]).await;
    assert_eq!(device.packet().await, [0x90, 3, 0, 9, 0x80]);
    device.send(&connect_packet(4, 2, "again")).await;
    device.closed().await;
    let mut device = Device::connect(&front, b"GET / HTTP/1.1\r\n\r\n").await;
    device.closed().await;
    let (mut device, _) = Device::persistent(&front, "large").await;
    device.send(&[0x32, 0x80, 0x80, 0x80, 5]).await;
    device.closed().await;
    front
        .wait_metric("tidegate_mqtt_disconnects_total{reason=\"packet_too_large\",source=\"floor\"} 1")
        .await;
    front.wait_metric("tidegate_mqtt_refused_total{reason=\"no_connect\",source=\"floor\"} 1").await;
    assert!(front.stored().is_empty());
    front.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unmatched_topics_and_oversized_payloads_are_acknowledged() {
    let dir = tempfile::tempdir().expect("a folder");
    let front = Front::open(dir.path(), Setup::default()).await;
    let (mut device, _) = Device::persistent(&front, "dev").await;
    device.send(&publish_packet("nobody/wants/this", 1, 1, "x", false)).await;
    device.acknowledged(1).await;
    let large = "x".repeat(700_000);
    device.send(&publish_packet(TOPIC, 1, 2, &large, false)).await;
    device.acknowledged(2).await;
    let stored = front.stored();
    assert_eq!(stored.len(), 1);
    assert!(stored[0].len() < 2_000, "only the beginning is kept, for the dead letter");
    front.end().await;
}

/// Only their beginnings are kept, but they are told apart by all of their bytes, also after a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversized_payloads_that_begin_alike_are_not_one() {
    const TIMED: &str = "timed/7/telemetry";
    let (one, other) = ("x".repeat(700_000), "x".repeat(699_999) + "y");
    let dir = tempfile::tempdir().expect("a folder");
    let front = Front::open(dir.path(), Setup::default()).await;
    let (mut device, _) = Device::persistent(&front, "dev").await;
    device.send(&publish_packet(TIMED, 1, 1, &one, false)).await;
    device.acknowledged(1).await;
    drop(device);
    front.kill().await;
    let front = Front::open(dir.path(), Setup::default()).await;
    let (mut device, _) = Device::persistent(&front, "dev").await;
    for payload in [&one, &other, &other] {
        device.send(&publish_packet(TIMED, 1, 1, payload, true)).await;
        device.acknowledged(1).await;
    }
    assert_eq!(front.stored().len(), 2);
    front.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_will_is_an_event_of_a_device_that_vanished() {
    let dir = tempfile::tempdir().expect("a folder");
    let front = Front::open(dir.path(), Setup::default()).await;
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 4, 0x06, 0, 60, 0, 3, b'd', b'e', b'v'];
    for text in [TOPIC, "gone"] {
        body.extend_from_slice(&(text.len() as u16).to_be_bytes());
        body.extend_from_slice(text.as_bytes());
    }
    let mut device = Device::connect(&front, &whole_packet(0x10, &body)).await;
    assert_eq!(device.packet().await[3], 0);
    drop(device);
    front.wait_stored(1).await;
    assert_eq!(front.stored(), ["gone"]);
    front.end().await;
}

/// With the quota used up a device is neither read nor acknowledged, and goes on when there is room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_buffer_withholds_acknowledgements() {
    let dir = tempfile::tempdir().expect("a folder");
    let quota = Quota::new(&RealDisk, dir.path(), 4 << 20, 0).expect("a quota");
    let setup = Setup { quota: Some(quota.clone()), ..Setup::default() };
    let front = Front::open(dir.path(), setup).await;
    let (mut device, _) = Device::persistent(&front, "dev").await;
    let large = "x".repeat(60_000);
    let mut sent: u16 = 0;
    let mut acknowledged: u16 = 0;
    while !front.door.is_over_quota() {
        sent += 1;
        device.publish(sent, &large, false).await;
        if !front.door.is_over_quota() && sent < 200 {
            let answer = tokio::time::timeout(Duration::from_millis(500), device.packet()).await;
            acknowledged += u16::from(answer.is_ok());
        }
        assert!(sent < 500, "the quota is four mebibytes");
    }
    let stored = front.stored().len();
    assert!(stored > 10 && acknowledged > 10, "{stored} stored, {acknowledged} acknowledged");
    // The second connection is let in, but its publish waits.
    let (mut other, _) = Device::persistent(&front, "other").await;
    other.publish(1, "waits", false).await;
    let early = tokio::time::timeout(Duration::from_millis(300), other.packet()).await;
    assert!(early.is_err(), "acknowledged without room");
    let last = front.door.hub().log().durable();
    front.door.hub().log().trim(last).expect("trimmed");
    other.acknowledged(1).await;
    front.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_says_goodbye_and_silence_ends_a_connection() {
    let dir = tempfile::tempdir().expect("a folder");
    let front = Front::open(dir.path(), Setup::default()).await;
    let mut connect = connect_packet(5, 2, "quiet");
    connect[11] = 1; // one second of keep alive
    let mut quiet = Device::connect(&front, &connect).await;
    assert_eq!(quiet.packet().await[0], 0x20);
    let goodbye = quiet.packet().await;
    assert_eq!((goodbye[0], goodbye[2]), (0xe0, 0x8d), "keep alive");
    let mut device = Device::connect(&front, &connect_packet(5, 2, "dev")).await;
    assert_eq!(device.packet().await[0], 0x20);
    front.end().await;
    let goodbye = device.packet().await;
    assert_eq!((goodbye[0], goodbye[2]), (0xe0, 0x8b), "shutting down");
}
