//! The pages over a real socket, with a scripted ClickHouse.

use super::*;
use crate::{
    audit::{AuditParts, Auditor},
    clickhouse::{Look, ViewSource},
    log::{
        Log,
        embedded::{Embedded, EmbeddedOptions},
    },
    rules::{self, Frontier, Parts, Positions, QueryError, ResultColumn, Ruler, Table},
};
use async_trait::async_trait;
use daemon::clock::{SystemClock, SystemRandom};
use journal::RealDisk;
use std::{path::Path, sync::Mutex};
use tokio_util::sync::CancellationToken;

struct Script(Mutex<Vec<String>>);

#[async_trait]
impl QuerySource for Script {
    async fn query(&self, sql: &str, _: QueryLimits) -> Result<Table, QueryError> {
        self.0.lock().expect("no panic while held").push(sql.to_owned());
        if sql.contains("broken") {
            return Err(QueryError::Refused("syntax error".into()));
        }
        let columns = vec![
            ResultColumn { name: "device".into(), ty: "String".into() },
            ResultColumn { name: "value".into(), ty: "Float64".into() },
        ];
        Ok(Table { columns, rows: vec![vec![json!("m-1"), json!(96.5)]], truncated: false })
    }
}

struct NoViews;

#[async_trait]
impl ViewSource for NoViews {
    async fn look(&self) -> Result<Look, String> {
        Ok(Look::default())
    }
}

struct Still;

#[async_trait]
impl Frontier for Still {
    async fn committed(&self) -> Result<Positions, String> {
        Ok(Positions::new())
    }
}

const RULES: &str = "
groups:
  - name: g
    every: 100ms
    rules:
      - { alert: Hot, sql: 'select device, value from m', labels: { severity: page } }
";

struct Bed {
    base: String,
    client: reqwest::Client,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

async fn bed() -> Bed {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().expect("a folder");
    let stop = CancellationToken::new();
    let (registry, readiness) = (Registry::new(), Readiness::new());
    let source: Arc<dyn QuerySource> = Arc::new(Script(Mutex::default()));
    let log = Embedded::open(RealDisk, &dir.path().join("log"), &EmbeddedOptions::default(), &SystemRandom);
    let log: Arc<dyn Log> = Arc::new(log.expect("opens"));
    let clock = Arc::new(SystemClock::new());
    let gateways = Arc::new(Gateways::new());
    let parts = AuditParts {
        dir: dir.path().join("audit"),
        log: log.clone(),
        gateways: gateways.clone(),
        frontier: Arc::new(Still),
        source: source.clone(),
        views: Arc::new(NoViews),
        clock: clock.clone(),
        registry: registry.clone(),
    };
    let (auditor, auditor_handle) = Auditor::open(parts).expect("opens");
    let parts = Parts {
        dir: dir.path().join("rules"),
        log: log.id().to_owned(),
        rules: rules::file::parse(Path::new("r.yaml"), RULES).expect("valid"),
        receivers: Vec::new(),
        source: source.clone(),
        frontier: Arc::new(Still),
        clock,
        random: Arc::new(SystemRandom),
        registry: registry.clone(),
    };
    let (ruler, ruler_handle) = Ruler::open(parts).await.expect("opens");
    tokio::spawn(auditor.run(stop.clone()));
    tokio::spawn(ruler.run(stop.clone()));
    let api = ApiParts {
        gateways,
        partitions: 2,
        source,
        ruler: Some(ruler_handle),
        auditor: Some(auditor_handle),
        receivers: 0,
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let base = format!("http://{}", listener.local_addr().expect("bound"));
    let pages = router(api, registry, readiness);
    let ended = stop.clone();
    tokio::spawn(async move {
        axum::serve(listener, pages).with_graceful_shutdown(ended.cancelled_owned()).await
    });
    Bed { base, client: reqwest::Client::new(), stop, _dir: dir }
}

impl Bed {
    async fn get(&self, path: &str) -> (u16, String) {
        let answer = self.client.get(format!("{}{path}", self.base)).send().await.expect("answers");
        (answer.status().as_u16(), answer.text().await.expect("text"))
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let answer =
            self.client.post(format!("{}{path}", self.base)).json(body).send().await.expect("answers");
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_answers() {
    let b = bed().await;
    let (status, rows) = b.post("/v1/query", &json!({ "sql": "select 1" })).await;
    assert_eq!(
        (status, &rows["rows"][0][0], &rows["columns"][1]["type"]),
        (200, &json!("m-1"), &json!("Float64"))
    );
    let (status, error) = b.post("/v1/query", &json!({ "sql": "broken" })).await;
    assert_eq!((status, &error["error"]), (400, &json!("clickhouse refused the query: syntax error")));
    let plain = b
        .client
        .post(format!("{}/v1/query", b.base))
        .body("{\"sql\":\"select 1\"}")
        .send()
        .await
        .expect("answers");
    assert_eq!(plain.status().as_u16(), 415, "a browser can send text without asking first");

    // The rule is evaluated within its interval; wait for the alert, not for a time.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    let alerts = loop {
        let (status, text) = b.get("/v1/alerts").await;
        assert_eq!(status, 200, "{text}");
        let v: Value = serde_json::from_str(&text).expect("JSON");
        if v["alerts"][0]["phase"] == "firing" {
            break v;
        }
        assert!(tokio::time::Instant::now() < deadline, "{text}");
        tokio::task::yield_now().await;
    };
    assert_eq!(alerts["alerts"][0]["labels"]["severity"], "page");
    assert!(alerts["alerts"][0]["active_since"].as_str().is_some_and(|t| t.ends_with('Z')));

    let (status, text) = b.get("/v1/audit?fresh=true").await;
    assert!(status == 200 && text.contains("\"balanced\":true"), "{text}");
    let (status, text) = b.get("/v1/audit?since=2h&stream=m&gateway=g").await;
    assert!(status == 200 && text.contains("\"records\":0"), "{text}");
    let (status, text) = b.get("/v1/audit?since=yesterday").await;
    assert!(status == 400 && text.contains("neither a time like"), "{text}");
    assert_eq!(b.get("/v1/gateways").await, (200, "{\"gateways\":[]}".to_owned()));
    assert_eq!(b.get("/v1/dead-letters?limit=x").await.0, 400);
    assert_eq!(b.get("/v1/dead-letters").await.0, 200);
    assert_eq!(b.post("/v1/alerts/test", &json!({})).await.1["ids"].as_array().map(Vec::len), Some(2));
    let (status, metrics) = b.get("/metrics").await;
    assert_eq!(status, 200);
    for line in ["tidegate_alerts{alertname=\"Hot\",alertstate=\"firing\"} 1", "tidegate_audit_balanced 1"] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    b.stop.cancel();
}
