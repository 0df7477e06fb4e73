//! Failures as JSON: `{"error": "…"}`.

use crate::rules::QueryError;
use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::json;
use std::{collections::HashMap, time::Duration};

/// Why there is no answer.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    message: String,
}

impl Failure {
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into() }
    }

    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, message: message.into() }
    }

    pub(super) fn no_rules() -> Self {
        Self::unavailable("this process does not have the role alerts")
    }

    pub(super) fn no_audit() -> Self {
        Self::unavailable("this process does not have the role audit")
    }

    pub(super) fn timeout(limit: Duration) -> Self {
        Self { status: StatusCode::GATEWAY_TIMEOUT, message: format!("no answer within {limit:?}") }
    }
}

impl From<QueryError> for Failure {
    fn from(e: QueryError) -> Self {
        let status = match e {
            QueryError::UnknownTable(_) | QueryError::Refused(_) => StatusCode::BAD_REQUEST,
            QueryError::Unreachable(_) => StatusCode::SERVICE_UNAVAILABLE,
            QueryError::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
        };
        Self { status, message: e.to_string() }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "error": self.message }))).into_response()
    }
}

/// A number in the query string, or a default.
pub(super) fn number_or(q: &HashMap<String, String>, name: &str, default: u64) -> Result<u64, Failure> {
    match q.get(name) {
        None => Ok(default),
        Some(text) => {
            text.parse().map_err(|_| Failure::bad_request(format!("{name}: {text:?} is not a number")))
        }
    }
}
