//! What a request asks for: statement, settings, parameters, user, as the ClickHouse HTTP interface spells them.

use crate::{
    error::{Failure, code},
    limits::SETTINGS_MAX,
    pool::Access,
};
use axum::{
    extract::Query,
    http::{HeaderMap, Method, Uri},
};
use std::collections::BTreeMap;

/// The user whose requests are always read-only.
const READONLY_USER: &str = "readonly";
const USERS: [&str; 2] = ["default", READONLY_USER];

/// Everything but the body.
#[derive(Debug, Default)]
pub(crate) struct Request {
    /// SQL from the URL; the body's text or data follows it.
    pub(crate) sql: String,
    pub(crate) database: Option<String>,
    pub(crate) default_format: Option<String>,
    pub(crate) query_id: String,
    /// The body is in ClickHouse's block framing.
    pub(crate) decompress: bool,
    pub(crate) settings: BTreeMap<String, String>,
    pub(crate) params: Vec<(String, String)>,
    /// Boundary of a multipart body.
    pub(crate) boundary: Option<String>,
    user: String,
    password: String,
    readonly: bool,
    get: bool,
}

impl Request {
    /// Reads the method, URL and headers.
    pub(crate) fn parse(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Self, Failure> {
        let bad = |why: String| Failure::new(code::BAD_ARGUMENTS, why);
        let get = match *method {
            Method::GET | Method::HEAD => true,
            Method::POST | Method::PUT => false,
            _ => return Err(bad(format!("method {method} is not supported"))),
        };
        let mut request = Self { get, user: "default".into(), ..Self::default() };
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|e| bad(format!("the URL's query: {e}")))?;
        if pairs.len() > SETTINGS_MAX {
            return Err(bad(format!("{} settings and parameters, the limit is {SETTINGS_MAX}", pairs.len())));
        }
        for (name, value) in pairs {
            request.field(name, value)?;
        }
        for (header, field) in [
            ("x-clickhouse-database", "database"),
            ("x-clickhouse-format", "default_format"),
            ("x-clickhouse-user", "user"),
            ("x-clickhouse-key", "password"),
        ] {
            if let Some(value) = headers.get(header) {
                let value = value.to_str().map_err(|_| bad(format!("header {header} is not text")))?;
                request.field(field.into(), value.into())?;
            }
        }
        let content_type = headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default();
        if content_type.starts_with("multipart/form-data") {
            let boundary = content_type.split("boundary=").nth(1).map(|b| b.trim_matches('"').to_owned());
            request.boundary =
                Some(boundary.ok_or_else(|| bad("a multipart body without a boundary".into()))?);
        }
        Ok(request)
    }

    /// Takes one field of the URL, of a header or of a multipart body.
    fn field(&mut self, name: String, value: String) -> Result<(), Failure> {
        match name.as_str() {
            "query" => self.sql.push_str(&value),
            "database" => self.database = Some(value).filter(|d| !d.is_empty()),
            "default_format" => self.default_format = Some(value),
            "query_id" => self.query_id = value,
            "user" => self.user = value,
            "password" => self.password = value,
            "decompress" => self.decompress = value == "1",
            "readonly" => self.readonly |= value != "0",
            "session_id" => {
                return Err(Failure::new(
                    code::NOT_IMPLEMENTED,
                    "sessions are not supported. (NOT_IMPLEMENTED)",
                ));
            }
            // Results go out plain, and whole where the format needs it: these change nothing here.
            "compress"
            | "wait_end_of_query"
            | "buffer_size"
            | "enable_http_compression"
            | "role"
            | "quota_key"
            | "stacktrace"
            | "client_protocol_version"
            | "session_timeout"
            | "session_check" => {}
            _ => match name.strip_prefix("param_") {
                Some(param) => self.params.push((param.to_owned(), value)),
                None => {
                    self.settings.insert(name, value);
                }
            },
        }
        Ok(())
    }

    /// Adds the fields of a multipart body.
    pub(crate) fn multipart(&mut self, body: &[u8]) -> Result<(), Failure> {
        let Some(boundary) = self.boundary.take() else { return Ok(()) };
        let bad = |why: &str| Failure::new(code::BAD_ARGUMENTS, format!("multipart body: {why}"));
        let text = std::str::from_utf8(body).map_err(|_| bad("not UTF-8"))?;
        let mark = format!("\r\n--{boundary}");
        let first = format!("--{boundary}");
        let mut rest =
            text.strip_prefix(first.as_str()).ok_or_else(|| bad("no boundary at its beginning"))?;
        let mut fields = 0;
        while !rest.starts_with("--") {
            let part = rest.strip_prefix("\r\n").ok_or_else(|| bad("no line end behind a boundary"))?;
            let (head, tail) = part.split_once("\r\n\r\n").ok_or_else(|| bad("a field without a head"))?;
            let name = head.split("name=\"").nth(1).and_then(|n| n.split('"').next());
            let name = name.ok_or_else(|| bad("a field without a name"))?;
            let end = tail.find(&mark).ok_or_else(|| bad("a field without an end"))?;
            fields += 1;
            if fields > SETTINGS_MAX {
                return Err(bad("too many fields"));
            }
            if ["user", "password", "readonly"].contains(&name) {
                return Err(bad("who asks is said in the URL or in the headers"));
            }
            self.field(name.to_owned(), tail[..end].to_owned())?;
            rest = &tail[end + mark.len()..];
        }
        Ok(())
    }

    /// Whether this user gave this password. Both users share it.
    pub(crate) fn authenticate(&self, password: Option<&str>) -> Result<(), Failure> {
        let known = USERS.contains(&self.user.as_str());
        if known && password.is_none_or(|p| same(p.as_bytes(), self.password.as_bytes())) {
            return Ok(());
        }
        Err(Failure::new(
            code::AUTHENTICATION_FAILED,
            format!(
                "{}: Authentication failed: password is incorrect, or there is no user with such name. \
                 (AUTHENTICATION_FAILED)",
                self.user
            ),
        ))
    }

    /// The pool that serves it.
    pub(crate) fn access(&self) -> Access {
        if self.get || self.readonly || self.user == READONLY_USER { Access::Read } else { Access::Write }
    }
}

/// Compares in a time that tells only the lengths.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |d, (x, y)| d | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Result<Request, Failure> {
        let mut map = HeaderMap::new();
        for (n, v) in headers {
            let name: axum::http::HeaderName = n.parse().expect("valid");
            map.insert(name, v.parse().expect("valid"));
        }
        Request::parse(&method.parse().expect("valid"), &uri.parse().expect("valid"), &map)
    }

    #[test]
    fn the_url_is_read() {
        let r =
            request("POST", "/?query=select%201&database=d&max_threads=2&param_x=a%20b&decompress=1", &[])
                .expect("valid");
        assert_eq!((r.sql.as_str(), r.database.as_deref(), r.decompress), ("select 1", Some("d"), true));
        assert_eq!(r.settings.get("max_threads").map(String::as_str), Some("2"));
        assert_eq!(r.params, [("x".to_owned(), "a b".to_owned())]);
        assert_eq!(r.access(), Access::Write);
    }

    #[test]
    fn who_may_only_read() {
        assert_eq!(request("GET", "/", &[]).expect("valid").access(), Access::Read);
        assert_eq!(request("POST", "/?readonly=1", &[]).expect("valid").access(), Access::Read);
        let r = request("POST", "/", &[("x-clickhouse-user", "readonly"), ("x-clickhouse-key", "pw")]);
        let r = r.expect("valid");
        assert_eq!(r.access(), Access::Read);
        assert!(r.authenticate(Some("pw")).is_ok() && r.authenticate(Some("pq")).is_err());
        assert!(request("POST", "/?user=root", &[]).expect("valid").authenticate(None).is_err());
    }

    #[test]
    fn multipart_fields_are_read() {
        let body = "--B\r\nContent-Disposition: form-data; name=\"query\"\r\n\r\nselect {a:String}\r\n--B\r\n\
                    Content-Disposition: form-data; name=\"param_a\"\r\n\r\nx\r\ny\r\n--B--\r\n";
        let head = [("content-type", "multipart/form-data; boundary=B")];
        let mut r = request("POST", "/", &head).expect("valid");
        r.multipart(body.as_bytes()).expect("valid");
        assert_eq!(r.sql, "select {a:String}");
        assert_eq!(r.params, [("a".to_owned(), "x\r\ny".to_owned())]);
        for cut in 0..body.len() - 4 {
            let mut r = request("POST", "/", &head).expect("valid");
            assert!(r.multipart(&body.as_bytes()[..cut]).is_err(), "cut at {cut}");
        }
    }
}
