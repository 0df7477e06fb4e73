//! `/v1/dead-letters`: the newest ones, or one of them with its payload.

use super::{ApiParts, Failure, bounded, number_or};
use crate::rules::{QueryError, QueryLimits, Table};
use axum::{
    Json,
    extract::{Query, State},
};
use record::{DEAD_LETTERS, GatewayId};
use serde_json::{Value, json};
use std::collections::HashMap;

/// Dead letters listed when the request does not say.
const LISTED: u64 = 50;
/// Characters of a payload in a list.
const PAYLOAD_CHARS: usize = 200;

/// `?gateway=&stream=&reason=&limit=`, or `?gateway=&seq=` for one with its whole payload.
pub(super) async fn list(
    State(parts): State<ApiParts>,
    Query(q): Query<HashMap<String, String>>,
) -> Result<Json<Value>, Failure> {
    let limit = bounded(&q, "limit", LISTED)?;
    let sql = statement(&q, limit)?;
    let bounds = QueryLimits {
        rows_max: usize::try_from(limit).unwrap_or(usize::MAX),
        timeout: super::limits::QUERY_TIMEOUT,
    };
    match parts.source.query(&sql, bounds).await {
        Ok(table) => Ok(Json(json!(table))),
        // No gateway has written one yet.
        Err(QueryError::UnknownTable(_)) => Ok(Json(json!(Table::default()))),
        Err(e) => Err(e.into()),
    }
}

fn statement(q: &HashMap<String, String>, limit: u64) -> Result<String, Failure> {
    let mut conditions = vec!["1".to_owned()];
    if let Some(g) = q.get("gateway") {
        let g = GatewayId::new(g).map_err(|e| Failure::bad_request(e.to_string()))?;
        conditions.push(format!("gateway = {}", quoted(g.as_str())));
    }
    for column in ["stream", "reason"] {
        conditions.extend(q.get(column).map(|v| format!("{column} = {}", quoted(v))));
    }
    let one = q.contains_key("seq");
    if one {
        conditions.push(format!("seq = {}", number_or(q, "seq", 0)?));
    }
    let payload = if one {
        "payload".to_owned()
    } else {
        format!("substringUTF8(payload, 1, {PAYLOAD_CHARS}) as payload")
    };
    Ok(format!(
        "select time, gateway, seq, stream, reason, error, module, source, topic, device, {payload} from `{DEAD_LETTERS}` \
         where {} order by time desc, seq desc limit {limit}",
        conditions.join(" and ")
    ))
}

/// Text as an SQL literal.
fn quoted(text: &str) -> String {
    let mut out = String::from("'");
    for c in text.chars() {
        if matches!(c, '\'' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('\'');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_stays_text() {
        let q =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let sql = statement(&q(&[("reason", "x' or \\1=1; drop table m --")]), 5).expect("fine");
        assert!(sql.contains(r"reason = 'x\' or \\1=1; drop table m --'"), "{sql}");
        let sql = statement(&q(&[("gateway", "plant-7"), ("seq", "9")]), 5).expect("fine");
        assert!(sql.contains("gateway = 'plant-7' and seq = 9") && sql.contains(", payload from"), "{sql}");
        assert!(statement(&q(&[("gateway", "a'b")]), 5).is_err());
        assert!(statement(&q(&[("seq", "1 or 1")]), 5).is_err());
    }
}
