//! A device that posts its events over HTTP, each request with an `Idempotency-Key`, repeated until it is accepted.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reqwest::StatusCode;
use tokio_util::sync::CancellationToken;

use crate::mqtt_load::Progress;
use crate::pace::Pace;

/// A request that failed is repeated after this long.
const AGAIN: Duration = Duration::from_millis(100);

/// One HTTP client for everything here.
pub fn client() -> &'static reqwest::Client {
    static CLIENT: OnceLock<reqwest::Client> = OnceLock::new();
    CLIENT.get_or_init(|| {
        // Fails only when somebody in this process has installed one before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        reqwest::Client::builder()
            .timeout(Duration::from_secs(30))
            .no_proxy()
            .build()
            .expect("a client without files or network has nothing to fail on")
    })
}

/// A device that posts.
#[derive(Clone)]
pub struct Poster {
    /// Its name: the device of its events and the start of its keys.
    pub name: String,
    /// The stream that it posts to.
    pub stream: String,
    /// Payloads, in order.
    pub payloads: Arc<[Vec<u8>]>,
    /// Events per request.
    pub batch: usize,
    /// When each event is due.
    pub pace: Pace,
    /// When cancelled, no new request is made; the one under way is still brought to its end.
    pub finish: CancellationToken,
}

/// What a poster did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Posted {
    /// Events accepted.
    pub accepted: usize,
    /// Answers that said "too many requests".
    pub throttled: u64,
    /// Of those, answers without `Retry-After`.
    pub throttled_without_time: u64,
}

impl Poster {
    /// Posts everything, request after request; returns when all of it was accepted, or when told to stop.
    pub async fn run(self, gateway: SocketAddr, progress: Arc<Progress>, stop: CancellationToken) -> Posted {
        let mut posted = Posted::default();
        for (number, events) in self.payloads.chunks(self.batch).enumerate() {
            tokio::select! {
                () = stop.cancelled() => return posted,
                () = self.finish.cancelled() => return posted,
                () = tokio::time::sleep_until(self.pace.due(number * self.batch)) => {}
            }
            let count = events.len();
            progress.sent.fetch_add(count as u64, Ordering::Relaxed);
            tokio::select! {
                () = stop.cancelled() => return posted,
                () = self.post(gateway, number, events, &progress, &mut posted) => {}
            }
            posted.accepted += count;
            progress.acknowledged.fetch_add(count as u64, Ordering::Relaxed);
        }
        posted
    }

    async fn post(
        &self,
        gateway: SocketAddr,
        number: usize,
        events: &[Vec<u8>],
        progress: &Progress,
        posted: &mut Posted,
    ) {
        let url = format!("http://{gateway}/v1/ingest/{}?device={}", self.stream, self.name);
        let key = format!("{}-{number}", self.name);
        let body = events.join(&b"\n"[..]);
        loop {
            let request = client()
                .post(&url)
                .header("content-type", "application/x-ndjson")
                .header("idempotency-key", &key)
                .body(body.clone());
            let wait = match request.send().await {
                Ok(answer) if answer.status().is_success() => return,
                Ok(answer) if answer.status() == StatusCode::TOO_MANY_REQUESTS => {
                    posted.throttled += 1;
                    let wait = retry_after(&answer);
                    posted.throttled_without_time += u64::from(wait.is_none());
                    wait.unwrap_or(AGAIN)
                }
                // The gateway was killed, or is not back yet, or says so itself: the key makes repeating safe.
                Ok(_) | Err(_) => AGAIN,
            };
            progress.repeated.fetch_add(events.len() as u64, Ordering::Relaxed);
            tokio::time::sleep(wait).await;
        }
    }
}

fn retry_after(answer: &reqwest::Response) -> Option<Duration> {
    let seconds: u64 = answer.headers().get("retry-after")?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds.min(30)))
}
