//! What the gateway tells of itself: `/v1/status`, dead letters, gauges that are read when somebody looks; and the order
//! to flush.
//!
//! What it tells of streams is durable: it comes from the snapshot that the output log's writer publishes after each
//! sync.

use crate::{
    LaneHandle, config::Stream, index::Index, ingest::Door, lanes::Command, metrics::ForwardMetrics,
    output::Snapshot,
};
use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use daemon::metrics::{GaugeVec, Registry};
use journal::{LogHandle, Quota};
use record::{Counts, GatewayId, Incarnation, StreamName};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::{oneshot, watch};

/// What is looked at.
pub struct Gateway {
    /// This gateway.
    pub gateway: GatewayId,
    /// The life of its folder.
    pub incarnation: Incarnation,
    /// Its streams.
    pub streams: Vec<Stream>,
    /// Its lanes by root stream.
    pub lanes: BTreeMap<StreamName, LaneHandle>,
    /// What is durable.
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// The door.
    pub door: Arc<Door>,
    /// The output log.
    pub output: LogHandle,
    /// Bytes of both logs.
    pub quota: Quota,
    /// Forwarding.
    pub forward: ForwardMetrics,
    /// The index of dead letters.
    pub index: Index,
}

/// `POST /v1/streams/{name}/flush` closes the stream's open windows, as a recorded step; `GET /v1/dead-letters` shows
/// the newest dead letters, `?limit=` of them (100).
pub fn routes(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/v1/streams/{name}/flush", post(flush))
        .route("/v1/dead-letters", get(dead_letters))
        .with_state(gateway)
}

#[derive(Debug, serde::Deserialize)]
struct Page {
    limit: Option<usize>,
}

async fn dead_letters(State(gateway): State<Arc<Gateway>>, Query(page): Query<Page>) -> Response {
    let newest = tokio::task::spawn_blocking(move || gateway.index.newest(page.limit.unwrap_or(100))).await;
    match newest {
        Ok(Ok(letters)) => Json(json!({ "dead_letters": letters })).into_response(),
        Ok(Err(e)) => refusal(StatusCode::SERVICE_UNAVAILABLE, &e.to_string()),
        Err(e) => refusal(StatusCode::INTERNAL_SERVER_ERROR, &e.to_string()),
    }
}

/// Gauges that are read from a snapshot when somebody looks.
pub fn register(gateway: &Arc<Gateway>, registry: &Registry) {
    let log = registry.gauge_vec("tidegate_buffer_bytes", "Bytes of the log's segments.", &["log"]);
    let written = registry.counter_vec(
        "tidegate_buffer_written_bytes_total",
        "Bytes of frames and checkpoints written to the log.",
        &["log"],
    );
    let quota = registry.gauge("tidegate_buffer_quota_bytes", "What both logs may take together.");
    let backlog: GaugeVec = registry.gauge_vec(
        "tidegate_lane_backlog_frames",
        "Input frames that the lane has not consumed.",
        &["lane"],
    );
    let unacked: GaugeVec = registry.gauge_vec(
        "tidegate_forward_backlog_rows",
        "Rows of the stream that central has not acknowledged to this process.",
        &["stream"],
    );
    let waiting = registry
        .gauge("tidegate_ingest_waiting_bytes", "Bytes waiting for the next commit of the input log.");
    registry
        .gauge("tidegate_ingest_waiting_bytes_max", "What may wait for the next commit of the input log.")
        .set(journal::limits::HUB_BACKLOG_BYTES as f64);
    let full =
        registry.gauge("tidegate_ingest_full", "1 while sources are slowed because the buffer is full.");
    let parts = gateway.clone();
    registry.on_scrape(move || {
        log.with(&["input"]).set(parts.door.hub().log().bytes() as f64);
        log.with(&["output"]).set(parts.output.bytes() as f64);
        for (name, bytes) in
            [("input", parts.door.hub().log().written_bytes()), ("output", parts.output.written_bytes())]
        {
            let counter = written.with(&[name]);
            counter.inc_by(bytes.saturating_sub(counter.get()));
        }
        quota.set(parts.quota.limit() as f64);
        waiting.set(parts.door.backlog_bytes() as f64);
        full.set(if parts.door.is_over_quota() { 1.0 } else { 0.0 });
        let snapshot = parts.snapshot.borrow().clone();
        let tail = parts.door.hub().log().durable();
        for lane in parts.lanes.keys() {
            let consumed = snapshot.consumed.get(lane).map_or(0, |f| f.0);
            backlog.with(&[lane.as_str()]).set(tail.0.saturating_sub(consumed) as f64);
        }
        for (stream, state) in &snapshot.streams {
            let behind = state.last.0.saturating_sub(parts.forward.acked_seq(stream));
            unacked.with(&[stream.as_str()]).set(behind as f64);
        }
    });
}

/// The content of `/v1/status`.
pub fn page(parts: &Gateway) -> Value {
    let snapshot = parts.snapshot.borrow().clone();
    let tail = parts.door.hub().log().durable();
    let streams: Vec<Value> = snapshot
        .streams
        .iter()
        .map(|(name, state)| {
            json!({
                "stream": name,
                "last_seq": state.last,
                "acked_seq": parts.forward.acked_seq(name),
                "counts": state.counts,
                "missing": state.counts.missing().to_string(),
                "forward": parts.streams.iter().find(|s| s.name == *name).is_none_or(|s| s.forward),
            })
        })
        .collect();
    let lanes: Vec<Value> = parts
        .lanes
        .iter()
        .map(|(name, lane)| {
            let consumed = snapshot.consumed.get(name).map_or(0, |f| f.0);
            json!({
                "lane": name,
                "streams": lane.streams,
                "consumed_frame": consumed,
                "backlog_frames": tail.0.saturating_sub(consumed),
                "waits_for": lane.metrics.why_held(),
            })
        })
        .collect();
    let stats = parts.door.hub().stats();
    json!({
        "gateway": parts.gateway,
        "incarnation": parts.incarnation.to_string(),
        "streams": streams,
        "lanes": lanes,
        "input": {
            "durable_frame": tail.0,
            "first_frame": parts.door.hub().log().first().0,
            "bytes": parts.door.hub().log().bytes(),
            "events": stats.events,
            "commits": stats.rounds,
            "waiting_bytes": parts.door.backlog_bytes(),
            "full": parts.door.is_over_quota(),
        },
        "output": {
            "durable_frame": snapshot.frame.0,
            "first_frame": parts.output.first().0,
            "bytes": parts.output.bytes(),
        },
        "quota": { "limit_bytes": parts.quota.limit(), "used_bytes": parts.quota.used() },
        "central": { "connected": parts.forward.is_connected() },
        "totals": totals(&snapshot),
    })
}

fn totals(snapshot: &Snapshot) -> Counts {
    snapshot.streams.values().fold(Counts::default(), |mut total, s| {
        total.add(&s.counts);
        total
    })
}

async fn flush(State(gateway): State<Arc<Gateway>>, Path(name): Path<String>) -> Response {
    let lane = gateway.lanes.values().find(|l| l.streams.iter().any(|s| s.as_str() == name));
    let Some((lane, stream)) = lane.zip(StreamName::new(&name).ok()) else {
        return refusal(StatusCode::NOT_FOUND, &format!("there is no stream {name:?}"));
    };
    let (done, answer) = oneshot::channel();
    if lane.commands.try_send(Command::Flush(stream, done)).is_err() {
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "the lane is busy with other orders");
    }
    match answer.await {
        Ok(()) => Json(json!({ "flushed": name })).into_response(),
        Err(_) => refusal(StatusCode::SERVICE_UNAVAILABLE, "the lane could not do it"),
    }
}

fn refusal(status: StatusCode, why: &str) -> Response {
    (status, Json(json!({ "error": why }))).into_response()
}
