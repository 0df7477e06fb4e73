//! The requests themselves: Alertmanager's v2 API, and JSON to webhooks.

use super::{
    Delivery, Notification, NotificationKind, Outcome,
    outbox::limits::{BATCH_MAX, BELIEVED_FOR},
    rfc3339,
};
use reqwest::{StatusCode, Url, redirect};
use serde_json::{Value, json};
use std::time::Duration;

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Characters of an answer that are quoted in an error.
const ANSWER_CHARS: usize = 200;

/// The protocol a receiver speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiverKind {
    /// Alertmanager's `POST /api/v2/alerts`; told again and again what fires.
    Alertmanager,
    /// One JSON object per transition, once.
    Webhook,
}

/// Somebody who is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Receiver {
    /// `alertmanager:HOST:PORT` or `webhook:HOST:PORT/PATH`; also the label in metrics and the key of its queue.
    pub name: String,
    /// Its protocol.
    pub kind: ReceiverKind,
    /// Where requests go.
    url: Url,
}

impl Receiver {
    /// A receiver at an address as written in the configuration; the error says what is wrong with it.
    pub fn new(kind: ReceiverKind, address: &str) -> Result<Self, String> {
        let mut url = Url::parse(address).map_err(|e| format!("{address:?}: {e}"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(format!("{address:?} is not an http or https address"));
        }
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or_default();
        let path = url.path().trim_end_matches('/').to_owned();
        let name = match kind {
            ReceiverKind::Alertmanager => format!("alertmanager:{host}:{port}{path}"),
            ReceiverKind::Webhook => format!("webhook:{host}:{port}{path}"),
        };
        if kind == ReceiverKind::Alertmanager && !path.ends_with("/api/v2/alerts") {
            url.set_path(&format!("{path}/api/v2/alerts"));
        }
        Ok(Self { name, kind, url })
    }
}

/// Makes the requests.
#[derive(Debug, Clone)]
pub struct Deliverer {
    client: reqwest::Client,
}

impl Deliverer {
    /// A client that follows no redirect. The process-wide TLS provider must be installed.
    pub fn new() -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { client })
    }

    /// Makes one request and judges the answer.
    pub async fn deliver(&self, delivery: &Delivery, wall_ns: i64) -> Outcome {
        let mut request = self.client.post(delivery.receiver.url.clone());
        request = match delivery.receiver.kind {
            ReceiverKind::Alertmanager => {
                debug_assert!(delivery.items.len() <= BATCH_MAX);
                let body: Vec<Value> =
                    delivery.items.iter().map(|n| alertmanager_alert(n, wall_ns)).collect();
                request.json(&body)
            }
            ReceiverKind::Webhook => match delivery.items.first() {
                Some(n) => request.header("Idempotency-Key", &n.id).json(&webhook_body(n)),
                None => return Outcome::Accepted,
            },
        };
        match request.send().await {
            Err(e) => Outcome::Failed(e.without_url().to_string()),
            Ok(answer) if answer.status().is_success() => Outcome::Accepted,
            Ok(answer) => {
                let status = answer.status();
                let text = answer.text().await.unwrap_or_default();
                judge(status, &text)
            }
        }
    }
}

fn judge(status: StatusCode, text: &str) -> Outcome {
    let quoted: String = text.trim().chars().take(ANSWER_CHARS).collect();
    let message = format!("{status}: {quoted}");
    let later = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
    // Only a plain "this request is wrong" is final; a wrong path or missing rights can be put right by people.
    let wrong = matches!(
        status,
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY | StatusCode::PAYLOAD_TOO_LARGE
    );
    if wrong && !later { Outcome::Refused(message) } else { Outcome::Failed(message) }
}

/// An alert as `POST /api/v2/alerts` takes it. `startsAt` never changes while the alert fires: with the labels it is
/// what Alertmanager knows the alert by.
fn alertmanager_alert(n: &Notification, wall_ns: i64) -> Value {
    let believed = i64::try_from(BELIEVED_FOR.as_nanos()).unwrap_or(i64::MAX);
    let ends = match n.kind {
        NotificationKind::Firing => wall_ns.max(n.fired_wall_ns).saturating_add(believed),
        NotificationKind::Resolved => n.at_wall_ns.max(n.fired_wall_ns),
    };
    let mut annotations = n.annotations.clone();
    annotations.entry("active_since".into()).or_insert_with(|| rfc3339(n.active_ns));
    if let Some(v) = n.value {
        annotations.entry("value".into()).or_insert_with(|| v.to_string());
    }
    json!({
        "labels": n.labels,
        "annotations": annotations,
        "startsAt": rfc3339(n.fired_wall_ns),
        "endsAt": rfc3339(ends),
    })
}

fn webhook_body(n: &Notification) -> Value {
    json!({
        "version": 1,
        "id": n.id,
        "status": n.kind.as_str(),
        "rule": n.rule,
        "labels": n.labels,
        "annotations": n.annotations,
        "value": n.value,
        "active_since": rfc3339(n.active_ns),
        "fired_at": rfc3339(n.fired_wall_ns),
        "at": rfc3339(n.at_wall_ns),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn addresses() {
        let r = Receiver::new(ReceiverKind::Alertmanager, "http://user:pw@am:9093/prefix/").expect("valid");
        assert_eq!((r.name.as_str(), r.url.path()), ("alertmanager:am:9093/prefix", "/prefix/api/v2/alerts"));
        let r = Receiver::new(ReceiverKind::Webhook, "https://h/x?token=t").expect("valid");
        assert_eq!(r.name, "webhook:h:443/x");
        for bad in ["", "am:9093", "ftp://x", "http://"] {
            assert!(Receiver::new(ReceiverKind::Webhook, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn answers_are_judged() {
        assert!(matches!(judge(StatusCode::BAD_REQUEST, "x"), Outcome::Refused(_)));
        for s in
            [StatusCode::TOO_MANY_REQUESTS, StatusCode::BAD_GATEWAY, StatusCode::NOT_FOUND, StatusCode::FOUND]
        {
            assert!(matches!(judge(s, ""), Outcome::Failed(_)), "{s}");
        }
    }

    #[test]
    fn alerts_end_after_they_start() {
        let n = Notification {
            id: "x".into(),
            rule: "g/a".into(),
            kind: NotificationKind::Resolved,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            value: Some(96.5),
            active_ns: 1_387_214_400_000_000_000,
            fired_wall_ns: 2_000_000_000,
            at_wall_ns: 1_000_000_000,
        };
        let a = alertmanager_alert(&n, 5);
        assert_eq!(
            (a["startsAt"].as_str(), a["endsAt"].as_str()),
            (Some("1970-01-01T00:00:02Z"), Some("1970-01-01T00:00:02Z"))
        );
        assert_eq!(a["annotations"]["active_since"], "2013-12-16T17:20:00Z");
        let firing = alertmanager_alert(&Notification { kind: NotificationKind::Firing, ..n }, 3_000_000_000);
        assert_eq!(firing["endsAt"], "1970-01-01T00:10:03Z");
    }
}
