//! Over HTTP: NDJSON in requests with an idempotency key, repeated until they are acknowledged.

use super::{Events, Pace, progress::Counters};
use reqwest::{StatusCode, Url, header};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time;

/// First wait after a failure; doubles up to [`WAIT_MAX`].
const WAIT_MIN: Duration = Duration::from_millis(200);
const WAIT_MAX: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(30);

/// Where one connection's events go.
#[derive(Debug)]
pub(super) struct Target {
    url: Url,
    client: reqwest::Client,
    batch: usize,
    /// What the idempotency keys of this run begin with.
    run: String,
}

impl Target {
    pub(super) fn new(url: &Url, batch: usize, connection: usize) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder().timeout(TIMEOUT).no_proxy().build()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let run = format!("replay-{now:x}-{}-{connection}", std::process::id());
        Ok(Self { url: url.clone(), client, batch, run })
    }
}

/// Sends the events with these numbers, in order.
pub(super) async fn send(
    target: Target,
    events: &Events,
    mine: Vec<u32>,
    pace: Pace,
    counters: &Counters,
) -> anyhow::Result<()> {
    // At a low rate a full batch would hold events back for long: a request carries a second's worth at most.
    let per_second =
        if pace.per_second > 0.0 { (pace.per_second.ceil() as usize).max(1) } else { usize::MAX };
    for (number, chunk) in mine.chunks(target.batch.min(per_second)).enumerate() {
        if let Some(due) = chunk.last().and_then(|i| pace.due(*i as usize)) {
            time::sleep_until(due.into()).await;
        }
        let body: String = chunk.iter().map(|i| events.json(*i as usize) + "\n").collect();
        let key = format!("{}-{number}", target.run);
        let count = chunk.len() as u64;
        counters.add_sent(count);
        if deliver(&target, &key, &body, counters, count).await {
            counters.add_acknowledged(count);
        } else {
            counters.add_refused(count);
        }
    }
    Ok(())
}

/// Repeats one request until it is acknowledged (true) or refused for good (false).
async fn deliver(target: &Target, key: &str, body: &str, counters: &Counters, count: u64) -> bool {
    let mut wait = WAIT_MIN;
    loop {
        let request = target
            .client
            .post(target.url.clone())
            .header(header::CONTENT_TYPE, "application/x-ndjson")
            .header("Idempotency-Key", key)
            .body(body.to_owned());
        let mut pause = wait;
        match request.send().await {
            Ok(answer) if answer.status().is_success() => return true,
            Ok(answer) => {
                let status = answer.status();
                pause = retry_after(&answer).unwrap_or(wait);
                let text = answer.text().await.unwrap_or_default();
                counters.trouble(format!("{status}: {}", text.trim().chars().take(200).collect::<String>()));
                let later = status.is_server_error()
                    || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
                if !later {
                    eprintln!("\ntidegate: refused: {}", counters.last_trouble());
                    return false;
                }
            }
            Err(e) => {
                counters.add_reconnect();
                counters.trouble(e.to_string());
            }
        }
        time::sleep(pause).await;
        wait = (wait * 2).min(WAIT_MAX);
        counters.add_repeated(count);
    }
}

fn retry_after(answer: &reqwest::Response) -> Option<Duration> {
    let seconds = answer.headers().get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(WAIT_MAX))
}
