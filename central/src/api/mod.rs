//! What people and programs may ask central over HTTP: read-only SQL, gateways, alerts, the audit, dead letters, metrics
//! and health.
//!
//! It has no accounts: it listens on loopback unless told otherwise, and belongs behind a proxy that knows who may ask.
//! POST bodies must be declared as JSON, so that no foreign web page can make a browser ask.
//!
//! It never changes data; the one thing that it sets off is a test alert.

mod answer;
mod audit;
mod dead_letters;
mod gateways;

use crate::{
    audit::AuditorHandle,
    link::Gateways,
    rules::{QueryLimits, QuerySource, RulerHandle},
};
use answer::{Failure, number_or};
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    routing::{get, post},
};
use daemon::metrics::{Readiness, Registry};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{collections::HashMap, sync::Arc, time::Duration};

/// Bounds of the API.
pub mod limits {
    use std::time::Duration;

    /// Bytes of a request's body.
    pub const BODY_BYTES_MAX: usize = 1 << 20;
    /// Rows of an answer when the request does not say.
    pub const ROWS_DEFAULT: u64 = 1_000;
    /// Rows of an answer at most.
    pub const ROWS_MAX: u64 = 100_000;
    /// How long a statement of a user may take.
    pub const QUERY_TIMEOUT: Duration = Duration::from_secs(30);
    /// How long an audit that somebody waits for may take.
    pub const AUDIT_TIMEOUT: Duration = Duration::from_secs(110);
    /// How long one may take that reads a part of the log again that somebody named, or compares values.
    pub const AUDIT_LONG_TIMEOUT: Duration = Duration::from_secs(600);
}

/// What the API looks at.
#[derive(Clone)]
pub struct ApiParts {
    /// What central knows of the gateways.
    pub gateways: Arc<Gateways>,
    /// Partitions of the log.
    pub partitions: u32,
    /// ClickHouse.
    pub source: Arc<dyn QuerySource>,
    /// The rules, when this process has the role.
    pub ruler: Option<RulerHandle>,
    /// The auditor, where this process has the role.
    pub auditor: Option<AuditorHandle>,
    /// How many receivers a test alert goes to.
    pub receivers: usize,
}

/// All pages: the API, and metrics and health beside it.
pub fn router(parts: ApiParts, registry: Registry, readiness: Readiness) -> Router {
    Router::new()
        .route("/v1/query", post(query))
        .route("/v1/gateways", get(gateways::list))
        .route("/v1/alerts", get(alerts))
        .route("/v1/alerts/test", post(alerts_test))
        .route("/v1/audit", get(audit::audit))
        .route("/v1/dead-letters", get(dead_letters::list))
        .layer(DefaultBodyLimit::max(limits::BODY_BYTES_MAX))
        .with_state(parts)
        .merge(daemon::metrics::router(registry, readiness))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct QueryBody {
    sql: String,
    limit: Option<u64>,
}

async fn query(State(parts): State<ApiParts>, Json(body): Json<QueryBody>) -> Result<Json<Value>, Failure> {
    let rows = body.limit.unwrap_or(limits::ROWS_DEFAULT).min(limits::ROWS_MAX);
    let bounds =
        QueryLimits { rows_max: usize::try_from(rows).unwrap_or(usize::MAX), timeout: limits::QUERY_TIMEOUT };
    let table = parts.source.query(&body.sql, bounds).await?;
    Ok(Json(json!(table)))
}

async fn alerts(State(parts): State<ApiParts>) -> Result<Json<Value>, Failure> {
    let ruler = parts.ruler.ok_or_else(Failure::no_rules)?;
    let view = ruler.view();
    let mut value = json!(*view);
    for alert in value["alerts"].as_array_mut().into_iter().flatten() {
        let since = alert["active_ns"].as_i64().map(crate::alerts::rfc3339);
        alert["active_since"] = json!(since);
        alert["fired_at"] = json!(alert["fired_wall_ns"].as_i64().map(crate::alerts::rfc3339));
    }
    Ok(Json(value))
}

async fn alerts_test(State(parts): State<ApiParts>, Json(_): Json<Value>) -> Result<Json<Value>, Failure> {
    let ruler = parts.ruler.ok_or_else(Failure::no_rules)?;
    let ids = ruler.send_test().await.ok_or_else(|| Failure::unavailable("the rules are stopping"))?;
    Ok(Json(json!({ "ids": ids, "receivers": parts.receivers })))
}

/// The answer, if it comes in time.
async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, Failure> {
    tokio::time::timeout(limit, work).await.map_err(|_| Failure::timeout(limit))
}

/// A number in the query string, bounded.
fn bounded(q: &HashMap<String, String>, name: &str, default: u64) -> Result<u64, Failure> {
    Ok(number_or(q, name, default)?.min(limits::ROWS_MAX))
}

#[cfg(test)]
mod tests;
