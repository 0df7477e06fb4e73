//! `/v1/audit`

use super::{ApiParts, Failure, limits, within};
use crate::audit::Reread;
use axum::{
    Json,
    extract::{Query, State},
};
use serde_json::{Value, json};
use std::collections::HashMap;

/// `?fresh=true` audits now; otherwise the last verdict. `?reread=true` reads the newest records of the log again besides,
/// `?since=T` those since then, and `?values=true` compares the tables' values with them. `?gateway=ID` and `?stream=NAME` show a part, the verdict is over all.
pub(super) async fn audit(
    State(parts): State<ApiParts>,
    Query(q): Query<HashMap<String, String>>,
) -> Result<Json<Value>, Failure> {
    let auditor = parts.auditor.ok_or_else(Failure::no_audit)?;
    let says = |name: &str| q.get(name).is_some_and(|v| v == "true");
    let reread = match q.get("since") {
        Some(since) => Some(auditor.since(since).map_err(|e| Failure::bad_request(format!("since: {e}")))?),
        None => (says("reread") || says("values")).then_some(Reread::default()),
    };
    let reread = reread.map(|r| Reread { values: says("values"), ..r });
    let last = if says("fresh") || reread.is_some() { None } else { auditor.last() };
    let report = match last {
        Some(report) => report,
        None => {
            let long = reread.is_some_and(|r| r.since_ns.is_some() || r.values);
            let limit = if long { limits::AUDIT_LONG_TIMEOUT } else { limits::AUDIT_TIMEOUT };
            within(limit, auditor.audit(reread)).await?.map_err(Failure::unavailable)?
        }
    };
    let mut value = json!(*report);
    if let (Some(only), Some(all)) = (q.get("gateway"), value["gateways"].as_array_mut()) {
        all.retain(|g| g["gateway"] == only.as_str());
    }
    if let Some(only) = q.get("stream") {
        let of = |v: &Value| v["stream"] == only.as_str();
        for gateway in value["gateways"].as_array_mut().into_iter().flatten() {
            gateway["streams"].as_array_mut().into_iter().for_each(|all| all.retain(of));
        }
        value["views"].as_array_mut().into_iter().for_each(|all| all.retain(of));
    }
    Ok(Json(value))
}
