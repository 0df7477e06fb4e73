//! `POST /v1/ingest/{stream}`: a JSON object, a JSON array, or NDJSON; 2xx only when every event of the request is
//! durable.
//!
//! - the whole request is taken or nothing of it;
//! - a body that is not JSON is refused with the place of the mistake (400); elements that are JSON, but do not fit
//!   the stream's columns, are accepted and become dead letters, like any other event;
//! - a full buffer is 429 with `Retry-After`, never a silent drop;
//! - a request with an `Idempotency-Key` that was taken before is answered like the first time and stored once. The
//!   key belongs to the stream, is at most 256 bytes, and is remembered for 24 hours, also across restarts.

use crate::config::HttpSource;
use crate::decode::split_body;
use crate::ingest::{Door, Intake, Taken, route::LaneIndex};
use crate::limits::{
    EVENT_PAYLOAD_BYTES_MAX, HTTP_BODY_BYTES_MAX, HTTP_DURABLE_WAIT, HTTP_EVENTS_MAX,
    IDEMPOTENCY_KEY_BYTES_MAX, RETRY_AFTER,
};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, Query, State, rejection::BytesRejection},
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
    let front = Arc::new(Front { door, source, busy: Semaphore::new(settings.requests), responses });
    let app = Router::new()
        .route("/v1/ingest/{stream}", post(ingest))
        .layer(DefaultBodyLimit::max(HTTP_BODY_BYTES_MAX))
        .with_state(front);
    axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await
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
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let answer = match front.take(&stream, &parameters.device, &headers, body).await {
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
    async fn take(
        &self,
        stream: &str,
        device: &str,
        headers: &HeaderMap,
        body: Result<Bytes, BytesRejection>,
    ) -> Result<(u32, bool), Refusal> {
        let lane = self.door.routes().by_name(self.source.as_str(), stream).ok_or_else(|| {
            let name: String = stream.chars().take(80).collect();
            Refusal(StatusCode::NOT_FOUND, format!("source {} feeds no stream named {name:?}", self.source))
        })?;
        let _slot = self.busy.try_acquire().map_err(|_| Refusal::full("too many requests at a time"))?;
        let body = body.map_err(|e| match e.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                Refusal(e.status(), format!("the body is larger than {HTTP_BODY_BYTES_MAX} bytes"))
            }
            status => Refusal(status, e.body_text()),
        })?;
        let key = idempotency_key(headers, stream)?;
        let mut intake = self.door.intake(&self.source);
        fill(&mut intake, lane, key.unwrap_or(0), stream, device, &body)?;
        let accepted = intake.events();
        let mut durable = self.door.watch();
        let stored = async {
            let (ticket, repeated) = self.push(&mut intake, key, &mut durable).await?;
            durable.wait_for(|round| *round >= ticket.0).await.map_err(|_| gone())?;
            Ok((accepted, repeated))
        };
        tokio::time::timeout(HTTP_DURABLE_WAIT, stored).await.unwrap_or_else(|_| Err(stuck()))
    }

    /// Pushes, waiting while the round is full; a full buffer is the caller's to wait for.
    async fn push(
        &self,
        intake: &mut Intake,
        key: Option<u64>,
        durable: &mut tokio::sync::watch::Receiver<u64>,
    ) -> Result<(Ticket, bool), Refusal> {
        loop {
            durable.mark_unchanged();
            let pushed = match key {
                Some(key) => intake.push_keyed(key),
                None => intake.push().map(|ticket| (ticket, false)),
            };
            match pushed {
                Ok(done) => return Ok(done),
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

fn idempotency_key(headers: &HeaderMap, stream: &str) -> Result<Option<u64>, Refusal> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    if value.is_empty() || value.len() > IDEMPOTENCY_KEY_BYTES_MAX {
        let text =
            format!("Idempotency-Key must have 1 to {IDEMPOTENCY_KEY_BYTES_MAX} bytes, not {}", value.len());
        return Err(Refusal(StatusCode::BAD_REQUEST, text));
    }
    let seed = mqtt::hash::xxh64(stream.as_bytes(), 1);
    Ok(Some(mqtt::hash::xxh64(value.as_bytes(), seed).max(1)))
}

fn fill(
    intake: &mut Intake,
    lane: LaneIndex,
    key: u64,
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
        if intake.post(lane, key, stream, device, element.get().as_bytes()) == Taken::TooLarge {
            let text =
                format!("an event of {} bytes, the limit is {EVENT_PAYLOAD_BYTES_MAX}", element.get().len());
            return Err(Refusal(StatusCode::PAYLOAD_TOO_LARGE, text));
        }
    }
    Ok(())
}
