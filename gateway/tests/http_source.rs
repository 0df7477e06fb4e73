//! The HTTP source over a real door and a real log: what a key promises, and what a request may cost.

mod door;

use daemon::metrics::Registry;
use door::{PATIENCE, stored};
use record::SourceName;
use std::{net::SocketAddr, path::Path, sync::Arc};
use tidegate_gateway::{config::HttpSource, ingest::Door, limits, source::http};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

const SECTIONS: &str = r#"
[source.api]
kind = "http"
bind = "127.0.0.1:0"
[stream.machine]
from = ["api"]
decode = { format = "json", time = "ts" }
columns = { temperature = "float64" }
"#;

struct Front {
    door: Arc<Door>,
    registry: Registry,
    address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Front {
    async fn open(dir: &Path, requests: usize) -> Self {
        let (door, registry) = door::open(dir, SECTIONS);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (stop, name) = (CancellationToken::new(), SourceName::new("api").expect("a name"));
        let serving = {
            let (door, registry, stop) = (door.clone(), registry.clone(), stop.clone());
            let settings = HttpSource { bind: address, requests };
            tokio::spawn(async move { http::serve(listener, name, settings, door, &registry, stop).await })
        };
        Self { door, registry, address, stop, serving }
    }

    async fn post(&self, key: &str, body: &str) -> String {
        self.post_of("m", key, body).await
    }

    async fn post_of(&self, device: &str, key: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.expect("a listener");
        stream.write_all(&head(device, key, body.len())).await.expect("a connection");
        stream.write_all(body.as_bytes()).await.expect("a connection");
        answer(&mut stream).await
    }

    async fn end(self) {
        self.stop.cancel();
        let served = tokio::time::timeout(PATIENCE, self.serving).await.expect("it ends");
        served.expect("no panic").expect("no error");
        self.door.hub().close().expect("the log ends well");
    }
}

fn head(device: &str, key: &str, length: usize) -> Vec<u8> {
    let key = if key.is_empty() { String::new() } else { format!("idempotency-key: {key}\r\n") };
    format!(
        "POST /v1/ingest/machine?device={device} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{key}content-length: {length}\r\n\r\n"
    )
    .into_bytes()
}

/// All that comes until the connection ends; a reset is an end.
async fn answer(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    let _ = read.expect("an answer or an end");
    String::from_utf8_lossy(&bytes).into_owned()
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_without_events_is_answered_at_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let front = Front::open(dir.path(), 4).await;
    for _ in 0..2 {
        let began = std::time::Instant::now();
        let empty = front.post("k", "[]").await;
        assert!(empty.contains("\"accepted\":0"), "{empty}");
        assert!(began.elapsed() < limits::HTTP_DURABLE_WAIT / 2, "it waited for a round that never comes");
    }
    assert_eq!(front.door.newest_ticket().0, 0, "others would wait for it");
    // A key without events is not used up.
    let used = front.post("k", "{\"ts\":1}").await;
    assert!(used.contains("\"accepted\":1") && used.contains("\"repeated\":false"), "{used}");
    front.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_belongs_to_one_request_also_after_a_restart() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut front = Front::open(dir.path(), 4).await;
    let body = "{\"ts\":1}\n{\"ts\":2}";
    let first = front.post("batch-7", body).await;
    assert!(first.contains("\"accepted\":2") && first.contains("\"repeated\":false"), "{first}");
    for _ in 0..2 {
        let again = front.post("batch-7", body).await;
        assert!(again.contains("\"accepted\":2") && again.contains("\"repeated\":true"), "{again}");
        for other in ["{\"ts\":3}", "[]"] {
            let refused = front.post("batch-7", other).await;
            assert_eq!(status(&refused), "422", "{refused}");
            assert!(refused.contains("batch-7"), "{refused}");
        }
        assert_eq!(stored(&front.door), ["{\"ts\":1}", "{\"ts\":2}"]);
        front.end().await;
        front = Front::open(dir.path(), 4).await;
    }
    front.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_requests_at_a_time_with_one_key_one_is_stored() {
    let dir = tempfile::tempdir().expect("a folder");
    let front = Front::open(dir.path(), 64).await;
    let posts = (0..16).map(|_| async { front.post("k", "{\"ts\":1}").await });
    let mut fresh = 0;
    let mut running: Vec<_> = posts.map(Box::pin).collect();
    // All are sent before the first answer is read.
    let answers = std::future::poll_fn(|cx| {
        let mut done = Vec::new();
        running.retain_mut(|post| match post.as_mut().poll(cx) {
            std::task::Poll::Ready(answer) => {
                done.push(answer);
                false
            }
            std::task::Poll::Pending => true,
        });
        for answer in done {
            assert_eq!(status(&answer), "200", "{answer}");
            fresh += usize::from(answer.contains("\"repeated\":false"));
        }
        if running.is_empty() { std::task::Poll::Ready(fresh) } else { std::task::Poll::Pending }
    });
    assert_eq!(answers.await, 1);
    drop(running);
    assert_eq!(stored(&front.door).len(), 1);
    front.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_body_is_cut_and_costs_its_own_place_only() {
    let dir = tempfile::tempdir().expect("a folder");
    let front = Front::open(dir.path(), 1).await;
    let mut slow = TcpStream::connect(front.address).await.expect("a listener");
    let asks = String::from_utf8(head("m", "", 100))
        .expect("text")
        .replace("\r\n\r\n", "\r\nexpect: 100-continue\r\n\r\n");
    slow.write_all(asks.as_bytes()).await.expect("a connection");
    // It is asked for its body when it has the place.
    let mut told = [0; 25];
    let asked = tokio::time::timeout(PATIENCE, slow.read_exact(&mut told)).await.expect("an answer");
    asked.expect("a connection");
    assert_eq!(status(&String::from_utf8_lossy(&told)), "100");
    slow.write_all(b"{\"ts\":").await.expect("a connection");
    // The others are told that there is none, before they send a body.
    let mut other = TcpStream::connect(front.address).await.expect("a listener");
    other.write_all(&head("m", "", 100)).await.expect("a connection");
    let told = answer(&mut other).await;
    assert!(status(&told) == "429" && told.contains("retry-after"), "{told}");
    let cut = answer(&mut slow).await;
    assert_eq!(status(&cut), "408", "{cut}");
    let after = front.post("", "{\"ts\":1}").await;
    assert_eq!(status(&after), "200", "its place is free again: {after}");
    assert_eq!(stored(&front.door).len(), 1);
    front.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_bounded_and_a_slow_head_gives_its_place_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let front = Front::open(dir.path(), 1).await;
    let mut silent = Vec::new();
    for _ in 0..limits::HTTP_CONNECTIONS_PER_REQUEST {
        let mut stream = TcpStream::connect(front.address).await.expect("a listener");
        stream.write_all(b"POST /v1/ingest/mach").await.expect("a connection");
        silent.push(stream);
    }
    let refused = front.post("", "{\"ts\":1}").await;
    assert!(status(&refused) == "503" && refused.contains("retry-after"), "{refused}");
    for stream in &mut silent {
        let cut = answer(stream).await;
        assert!(cut.is_empty() || status(&cut) == "408", "{cut}");
    }
    let after = tokio::time::timeout(PATIENCE, async {
        while status(&front.post("", "{\"ts\":1}").await) != "200" {}
    });
    after.await.expect("the places are free again");
    let metrics = front.registry.render();
    assert!(metrics.contains("tidegate_http_responses_total{source=\"api\",status=\"503\"}"), "{metrics}");
    front.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_request_fits_one_push() {
    let dir = tempfile::tempdir().expect("a folder");
    let front = Front::open(dir.path(), 4).await;
    let device = "d".repeat(record::limits::DEVICE_BYTES_MAX);
    let event = "{\"ts\":1,\"temperature\":20.125,\"note\":\"0123456789012345678\"}\n";
    let body = event.repeat(limits::HTTP_EVENTS_MAX);
    assert!(body.len() <= limits::HTTP_BODY_BYTES_MAX && body.len() > limits::HTTP_BODY_BYTES_MAX * 9 / 10);
    let taken = front.post_of(&device, "", &body).await;
    assert!(taken.contains(&format!("\"accepted\":{}", limits::HTTP_EVENTS_MAX)), "{taken}");
    assert_eq!(stored(&front.door).len(), limits::HTTP_EVENTS_MAX);
    front.end().await;
}
