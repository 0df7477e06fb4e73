//! `POST /v1/ingest/{stream}`: a JSON object, a JSON array, or NDJSON; 2xx only when every event of the request is
//! durable.
//!
//! - the whole request is taken or nothing of it;
//! - a body that is not JSON is refused with the place of the mistake (400); elements that are JSON, but do not fit
//!   the stream's columns, are accepted and become dead letters, like any other event;
//! - a full buffer is 429 with `Retry-After`, never a silent drop;
//! - a request with an `Idempotency-Key` that was taken before is answered like the first time and stored once; another
//!   request with the same key is 422. The key belongs to the stream, is at most 256 bytes, and is remembered for 24
//!   hours, also across restarts;
//! - a body is read only in one of the places for requests, and within a time: memory is bounded by their number.

mod server;

use crate::config::HttpSource;
use crate::decode::split_body;
use crate::ingest::{Door, Intake, Keeping, Taken, route::LaneIndex};
use crate::limits::{
    EVENT_PAYLOAD_BYTES_MAX, HTTP_BODY_BYTES_MAX, HTTP_BODY_WAIT, HTTP_CONNECTIONS_PER_REQUEST,
    HTTP_DURABLE_WAIT, HTTP_EVENTS_MAX, IDEMPOTENCY_KEY_BYTES_MAX, RETRY_AFTER,
};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequest as _, Path, Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use daemon::metrics::{CounterVec, Registry};
use journal::{PushError, Ticket};
use record::SourceName;
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

/// What every request needs.
struct Front {
    door: Arc<Door>,
    source: SourceName,
    busy: Semaphore,
    responses: CounterVec,
}

/// `?device=` names the device of every event in the request.
#[derive(Debug, Deserialize)]
struct Parameters {
    #[serde(default)]
    device: String,
}

/// Serves requests until told to stop; requests under way are finished.
pub async fn serve(
    listener: TcpListener,
    source: SourceName,
    settings: HttpSource,
    door: Arc<Door>,
    registry: &Registry,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let help = "Answers of the HTTP source by status.";
    let responses = registry.counter_vec("tidegate_http_responses_total", help, &["source", "status"]);
    let refused = responses.with(&[source.as_str(), StatusCode::SERVICE_UNAVAILABLE.as_str()]);
    let front = Arc::new(Front { door, source, busy: Semaphore::new(settings.requests), responses });
    let app = Router::new()
        .route("/v1/ingest/{stream}", post(ingest))
        .layer(DefaultBodyLimit::max(HTTP_BODY_BYTES_MAX))
        .with_state(front);
    let connections = settings.requests.saturating_mul(HTTP_CONNECTIONS_PER_REQUEST);
    server::serve(listener, app, connections, refused, stop).await;
    Ok(())
}

/// An answer that is not 200.
struct Refusal(StatusCode, String);

impl Refusal {
    fn full(why: &str) -> Self {
        Self(
            StatusCode::TOO_MANY_REQUESTS,
            format!("{why}: nothing of this request was stored; try again later"),
        )
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = Json(json!({ "error": self.1 }));
        if matches!(self.0, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            let seconds = RETRY_AFTER.as_secs().to_string();
            return (self.0, [(header::RETRY_AFTER, seconds)], body).into_response();
        }
        (self.0, body).into_response()
    }
}

async fn ingest(
    State(front): State<Arc<Front>>,
    Path(stream): Path<String>,
    Query(parameters): Query<Parameters>,
    request: Request,
) -> Response {
    let answer = match front.take(&stream, &parameters.device, request).await {
        Ok((accepted, repeated)) => {
            Json(json!({ "accepted": accepted, "repeated": repeated })).into_response()
        }
        Err(refusal) => refusal.into_response(),
    };
    front.responses.with(&[front.source.as_str(), answer.status().as_str()]).inc();
    answer
}

impl Front {
    /// The number of events in the request, and whether it had been taken before.
    async fn take(&self, stream: &str, device: &str, request: Request) -> Result<(u32, bool), Refusal> {
        let lane = self.door.routes().by_name(self.source.as_str(), stream).ok_or_else(|| {
            let name: String = stream.chars().take(80).collect();
            Refusal(StatusCode::NOT_FOUND, format!("source {} feeds no stream named {name:?}", self.source))
        })?;
        let key = Key::of(request.headers(), stream)?;
        let _slot = self.busy.try_acquire().map_err(|_| Refusal::full("too many requests at a time"))?;
        // One with a key may repeat what is stored already, and then needs no room.
        if key.is_none() && self.door.is_over_quota() {
            return Err(Refusal::full("the buffer is full"));
        }
        let body = read(request).await?;
        let key = key.map(|key| key.with(device, &body));
        let mut intake = self.door.intake(&self.source);
        fill(&mut intake, lane, stream, device, &body)?;
        drop(body);
        let accepted = intake.events();
        let mut durable = self.door.watch();
        let stored = async {
            let (ticket, repeated) = self.push(&mut intake, key.as_ref(), &mut durable).await?;
            durable.wait_for(|round| *round >= ticket.0).await.map_err(|_| gone())?;
            Ok((accepted, repeated))
        };
        tokio::time::timeout(HTTP_DURABLE_WAIT, stored).await.unwrap_or_else(|_| Err(stuck()))
    }

    /// Pushes, waiting while the round is full; a full buffer is the caller's to wait for.
    async fn push(
        &self,
        intake: &mut Intake,
        key: Option<&Key>,
        durable: &mut tokio::sync::watch::Receiver<u64>,
    ) -> Result<(Ticket, bool), Refusal> {
        loop {
            durable.mark_unchanged();
            let pushed = match key {
                Some(key) => intake.push_keyed(key.hash, key.fingerprint),
                None => intake.push().map(Keeping::Stored),
            };
            match pushed {
                Ok(Keeping::Stored(ticket)) => return Ok((ticket, false)),
                Ok(Keeping::Repeated(ticket)) => return Ok((ticket, true)),
                Ok(Keeping::OtherRequest) => return Err(other_request(key)),
                Err(PushError::Full) => durable.changed().await.map_err(|_| gone())?,
                Err(PushError::OverQuota) => return Err(Refusal::full("the buffer is full")),
                Err(e @ PushError::TooLarge { .. }) => {
                    return Err(Refusal(StatusCode::PAYLOAD_TOO_LARGE, e.to_string()));
                }
                Err(PushError::Poisoned | PushError::Closed) => return Err(gone()),
            }
        }
    }
}

fn stuck() -> Refusal {
    Refusal(
        StatusCode::SERVICE_UNAVAILABLE,
        "the disk takes nothing at the moment: whether this request will be stored is open; repeat it with its \
         Idempotency-Key"
            .into(),
    )
}

fn gone() -> Refusal {
    Refusal(
        StatusCode::SERVICE_UNAVAILABLE,
        "the gateway is stopping: whether this request was stored is open".into(),
    )
}

/// An `Idempotency-Key`.
struct Key {
    text: String,
    /// Hash of stream and key.
    hash: u64,
    /// Hash of what was sent under it.
    fingerprint: u64,
}

impl Key {
    fn of(headers: &HeaderMap, stream: &str) -> Result<Option<Self>, Refusal> {
        let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
        if value.is_empty() || value.len() > IDEMPOTENCY_KEY_BYTES_MAX {
            let text = format!(
                "Idempotency-Key must have 1 to {IDEMPOTENCY_KEY_BYTES_MAX} bytes, not {}",
                value.len()
            );
            return Err(Refusal(StatusCode::BAD_REQUEST, text));
        }
        let seed = mqtt::hash::xxh64(stream.as_bytes(), 1);
        let hash = mqtt::hash::xxh64(value.as_bytes(), seed).max(1);
        let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
        Ok(Some(Self { text, hash, fingerprint: 0 }))
    }

    /// The key with what was sent under it.
    fn with(self, device: &str, body: &[u8]) -> Self {
        let seed = mqtt::hash::xxh64(device.as_bytes(), 2);
        Self { fingerprint: mqtt::hash::xxh64(body, seed), ..self }
    }
}

fn other_request(key: Option<&Key>) -> Refusal {
    let key = key.map_or("", |key| key.text.as_str());
    let text = format!("Idempotency-Key {key:?} belongs to another request: nothing of this one was stored");
    Refusal(StatusCode::UNPROCESSABLE_ENTITY, text)
}

/// The body, within its bounds of size and time.
async fn read(request: Request) -> Result<Bytes, Refusal> {
    let Ok(read) = tokio::time::timeout(HTTP_BODY_WAIT, Bytes::from_request(request, &())).await else {
        let text = format!("the body did not come within {} s: nothing was stored", HTTP_BODY_WAIT.as_secs());
        return Err(Refusal(StatusCode::REQUEST_TIMEOUT, text));
    };
    read.map_err(|e| match e.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Refusal(e.status(), format!("the body is larger than {HTTP_BODY_BYTES_MAX} bytes"))
        }
        status => Refusal(status, e.body_text()),
    })
}

fn fill(
    intake: &mut Intake,
    lane: LaneIndex,
    stream: &str,
    device: &str,
    body: &[u8],
) -> Result<(), Refusal> {
    let bad = |text: String| Refusal(StatusCode::BAD_REQUEST, text);
    let text = std::str::from_utf8(body).map_err(|e| bad(format!("the body is not UTF-8: {e}")))?;
    let elements = split_body(text).map_err(|e| bad(format!("the body is not JSON: {e}")))?;
    if elements.len() > HTTP_EVENTS_MAX {
        let text = format!("{} events in one request, the limit is {HTTP_EVENTS_MAX}", elements.len());
        return Err(Refusal(StatusCode::PAYLOAD_TOO_LARGE, text));
    }
    for element in elements {
        if intake.post(lane, stream, device, element.get().as_bytes()) == Taken::TooLarge {
            let text =
                format!("an event of {} bytes, the limit is {EVENT_PAYLOAD_BYTES_MAX}", element.get().len());
            return Err(Refusal(StatusCode::PAYLOAD_TOO_LARGE, text));
        }
    }
    Ok(())
}
