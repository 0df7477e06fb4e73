//! Headers and bodies of answers.

use crate::{engine::Output, error::Failure};
use axum::{
    body::Body,
    http::{HeaderValue, StatusCode},
    response::Response,
};
use bytes::Bytes;

/// An error as a ClickHouse server tells it.
pub(super) fn failure(failure: &Failure, version: &str) -> Response {
    let mut response = Response::new(Body::from(format!("{failure} (version {version} (official build))\n")));
    *response.status_mut() =
        StatusCode::from_u16(failure.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert("X-ClickHouse-Exception-Code", HeaderValue::from(failure.code));
    headers.insert("Content-Type", HeaderValue::from_static("text/plain; charset=UTF-8"));
    response
}

/// An answer in a format, with a summary of what was read and written.
pub(super) fn success(body: Body, format: &str, query_id: &str, summary: Option<&str>) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert("Content-Type", HeaderValue::from_static(content_type(format)));
    for (name, value) in [
        ("X-ClickHouse-Format", format),
        ("X-ClickHouse-Query-Id", query_id),
        ("X-ClickHouse-Server-Display-Name", "tidegate-clickhouse"),
        ("X-ClickHouse-Timezone", "UTC"),
        ("X-ClickHouse-Summary", summary.unwrap_or_default()),
    ] {
        if let Some(value) = HeaderValue::from_str(value).ok().filter(|v| !v.is_empty()) {
            headers.insert(name, value);
        }
    }
    response
}

/// The engine's buffer as a body, without copying.
pub(super) fn bytes(output: Output) -> Bytes {
    Bytes::from_owner(output)
}

/// The value of `X-ClickHouse-Summary`.
pub(super) fn summary(output: &Output, elapsed: std::time::Duration) -> String {
    format!(
        "{{\"read_rows\":\"{}\",\"read_bytes\":\"0\",\"written_rows\":\"{}\",\"written_bytes\":\"{}\",\
         \"total_rows_to_read\":\"0\",\"result_rows\":\"{}\",\"result_bytes\":\"{}\",\"elapsed_ns\":\"{}\"}}",
        output.rows_read(),
        output.rows_written(),
        output.bytes_written(),
        output.rows_read().max(output.rows_written()),
        output.as_ref().len(),
        elapsed.as_nanos()
    )
}

fn content_type(format: &str) -> &'static str {
    match format {
        f if f.starts_with("JSONEachRow") => "application/x-ndjson; charset=UTF-8",
        f if f.starts_with("JSON") => "application/json; charset=UTF-8",
        f if f.starts_with("CSV") => "text/csv; charset=UTF-8",
        f if f.starts_with("TabSeparated") || f.starts_with("TSV") => {
            "text/tab-separated-values; charset=UTF-8"
        }
        "Pretty" | "PrettyCompact" | "Vertical" | "Values" | "Markdown" => "text/plain; charset=UTF-8",
        _ => "application/octet-stream",
    }
}
