//! `/v1/gateways`

use super::ApiParts;
use crate::{
    alerts::rfc3339,
    link::{GatewayState, StreamState},
    log::partition_of,
};
use axum::{Json, extract::State};
use record::{GatewayId, StreamName};
use serde_json::{Value, json};

pub(super) async fn list(State(parts): State<ApiParts>) -> Json<Value> {
    let all = parts.gateways.snapshot();
    let all: Vec<Value> = all.iter().map(|(id, g)| gateway(id, g, parts.partitions)).collect();
    Json(json!({ "gateways": all }))
}

fn gateway(id: &GatewayId, g: &GatewayState, partitions: u32) -> Value {
    let heard = g.streams.values().filter_map(|s| s.counted.as_ref()).map(|c| c.heard_at_ns).max();
    let c = g.connected.as_ref();
    json!({
        "gateway": id.as_str(),
        "connected": c.is_some(),
        "address": c.map(|c| c.address.to_string()),
        "connected_since": c.map(|c| rfc3339(c.since_ns)),
        "software": c.map(|c| c.software.clone()),
        "certificate": c.map(|c| c.serial.clone()),
        "partition": partition_of(id, partitions).0,
        "last_seen": g.last_seen_ns.map(rfc3339),
        "heard_at": heard.map(rfc3339),
        "streams": g.streams.iter().map(|(name, s)| stream(name, s)).collect::<Vec<_>>(),
    })
}

fn stream(name: &StreamName, s: &StreamState) -> Value {
    let losses = s.counted.as_ref().map(|c| c.losses.as_slice()).unwrap_or_default();
    let losses: Vec<Value> = losses
        .iter()
        .map(|l| {
            json!({
                "ordinal": l.ordinal,
                "first_seq": l.first_seq,
                "last_seq": l.last_seq,
                "first_time": rfc3339(l.first_time_ns),
                "last_time": rfc3339(l.last_time_ns),
                "rows": l.rows,
                "reason": l.reason,
            })
        })
        .collect();
    let quarantined = s.quarantined.as_ref().map(|q| {
        json!({
            "incarnation": q.incarnation.to_string(),
            "first_seq": q.first,
            "last_seq": q.last,
            "reason": q.reason,
            "at": rfc3339(q.at_ns),
            "times": q.times,
        })
    });
    json!({
        "stream": name.as_str(),
        "incarnation": s.head.as_ref().map(|h| h.incarnation.to_string()),
        "last_seq": s.head.as_ref().map(|h| h.last),
        "rows": s.head.as_ref().map(|h| h.rows),
        "lost": s.head.as_ref().map(|h| h.lost),
        "chain": s.head.as_ref().map(|h| h.hash.to_hex()),
        "counts": s.counted.as_ref().map(|c| c.counts),
        "as_of": s.counted.as_ref().map(|c| c.as_of),
        "losses": losses,
        "quarantined": quarantined,
        "refused": s.refused.as_ref().map(|r| r.message.clone()),
    })
}
