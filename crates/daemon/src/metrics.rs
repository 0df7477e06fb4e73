//! Metrics and health, and the three pages that show them: `/metrics`, `/healthz`, `/readyz`.
//!
//! Names are registered at start, under the prefix `tidegate_`; asking again for a family that is there (two sources of
//! one kind do) gives the same one, while a malformed name, or one name for two different families, is a mistake of the
//! program and stops it there. Label values come from configuration only, never from devices: they are bounded.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus::core::Collector;
use prometheus::{
    Encoder, GaugeVec as RawGaugeVec, HistogramOpts, HistogramVec as RawHistogramVec,
    IntCounterVec as RawCounterVec, Opts, TextEncoder,
};

mod process;

/// A number that only grows.
pub type Counter = prometheus::IntCounter;
/// A number that goes up and down.
pub type Gauge = prometheus::Gauge;
/// Observations counted in buckets.
pub type Histogram = prometheus::Histogram;

/// Buckets for durations in seconds, from 100 µs to about 100 s, three per decade.
pub const SECONDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    25.0, 50.0, 100.0,
];

type Hook = Box<dyn Fn() + Send + Sync>;

/// All metrics of a process. Clones are the same registry.
#[derive(Clone, Default)]
pub struct Registry {
    inner: prometheus::Registry,
    hooks: Arc<Mutex<Vec<Hook>>>,
    /// The families, by the ids of their descriptions.
    families: Arc<Mutex<BTreeMap<u64, Box<dyn Any + Send>>>>,
}

/// A family of counters, one per combination of label values.
#[derive(Clone)]
pub struct CounterVec(RawCounterVec);
/// A family of gauges, one per combination of label values.
#[derive(Clone)]
pub struct GaugeVec(RawGaugeVec);
/// A family of histograms, one per combination of label values.
#[derive(Clone)]
pub struct HistogramVec(RawHistogramVec);

impl CounterVec {
    /// The counter of these label values, in the order in which the labels were declared.
    pub fn with(&self, values: &[&str]) -> Counter {
        self.0.with_label_values(values)
    }
}

impl GaugeVec {
    /// The gauge of these label values.
    pub fn with(&self, values: &[&str]) -> Gauge {
        self.0.with_label_values(values)
    }

    /// Forgets the gauge of these label values, if there is one.
    pub fn remove(&self, values: &[&str]) {
        let _ = self.0.remove_label_values(values);
    }

    /// Forgets all gauges of the family.
    pub fn clear(&self) {
        self.0.reset();
    }
}

impl HistogramVec {
    /// The histogram of these label values.
    pub fn with(&self, values: &[&str]) -> Histogram {
        self.0.with_label_values(values)
    }
}

impl Registry {
    /// A registry that already tells about the process itself: memory, CPU time, open files, start.
    pub fn new() -> Self {
        let registry = Self::default();
        process::register(&registry);
        registry
    }

    /// A counter without labels. Its name ends in `_total`.
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        self.counter_vec(name, help, &[]).with(&[])
    }

    /// A family of counters.
    pub fn counter_vec(&self, name: &str, help: &str, labels: &[&str]) -> CounterVec {
        debug_assert!(name.ends_with("_total"), "counter {name} must end in _total");
        CounterVec(self.add(RawCounterVec::new(Opts::new(name, help), labels)))
    }

    /// A gauge without labels.
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.gauge_vec(name, help, &[]).with(&[])
    }

    /// A family of gauges.
    pub fn gauge_vec(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        GaugeVec(self.add(RawGaugeVec::new(Opts::new(name, help), labels)))
    }

    /// A histogram without labels; `buckets` are upper bounds in the unit that the name says.
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.histogram_vec(name, help, buckets, &[]).with(&[])
    }

    /// A family of histograms.
    pub fn histogram_vec(&self, name: &str, help: &str, buckets: &[f64], labels: &[&str]) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        HistogramVec(self.add(RawHistogramVec::new(options, labels)))
    }

    /// Called before every scrape: the place to set gauges that are read from a snapshot instead of kept up to date.
    pub fn on_scrape(&self, hook: impl Fn() + Send + Sync + 'static) {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(hook));
    }

    /// All metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        for hook in self.hooks.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            hook();
        }
        let mut bytes = Vec::with_capacity(16 * 1024);
        TextEncoder::new().encode(&self.inner.gather(), &mut bytes).expect(
            "a family is registered only with a valid name and valid labels, and memory takes every byte",
        );
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn add<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let collector = made.expect("metric names and labels are written in the program and well formed");
        let id = collector.desc().first().map_or(0, |description| description.id);
        let mut families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = families.get(&id).and_then(|family| family.downcast_ref::<C>()) {
            return known.clone();
        }
        self.inner
            .register(Box::new(collector.clone()))
            .expect("a name stands for one family, with one help text and one set of labels");
        families.insert(id, Box::new(collector.clone()));
        collector
    }
}

/// Named conditions that must hold before the process takes work. Clones are the same set.
#[derive(Clone, Default)]
pub struct Readiness {
    checks: Arc<Mutex<BTreeMap<String, Option<String>>>>,
}

/// One condition of a [`Readiness`]; its owner says when it holds.
#[derive(Clone)]
pub struct Check {
    name: String,
    set: Readiness,
}

impl Readiness {
    /// Nothing to wait for yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition, not holding until its owner says so.
    pub fn check(&self, name: &str) -> Check {
        let check = Check { name: name.to_owned(), set: self.clone() };
        check.not_ready("starting");
        check
    }

    /// What does not hold, with the reason; empty when ready.
    pub fn missing(&self) -> Vec<(String, String)> {
        let checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        checks.iter().filter_map(|(name, reason)| Some((name.clone(), reason.clone()?))).collect()
    }

    fn set(&self, name: &str, reason: Option<String>) {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), reason);
    }
}

impl Check {
    /// The condition holds.
    pub fn ready(&self) {
        self.set.set(&self.name, None);
    }

    /// The condition does not hold, and why.
    pub fn not_ready(&self, reason: impl Into<String>) {
        self.set.set(&self.name, Some(reason.into()));
    }
}

/// `/metrics` (text), `/healthz` (200 while the process runs), `/readyz` (200, or 503 with a line per missing
/// condition). Merge it into the daemon's admin router.
pub fn router(registry: Registry, readiness: Readiness) -> Router {
    Router::new()
        .route("/metrics", get(metrics_page).with_state(registry))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready_page).with_state(readiness))
}

async fn metrics_page(State(registry): State<Registry>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], registry.render())
}

async fn ready_page(State(readiness): State<Readiness>) -> (StatusCode, String) {
    let missing = readiness.missing();
    if missing.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    let mut text = String::new();
    for (name, reason) in missing {
        let _ = writeln!(text, "{name}: {reason}");
    }
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt;

    use super::*;

    #[test]
    fn asking_twice_gives_the_same_family() {
        let registry = Registry::new();
        let ask = || registry.counter_vec("tidegate_asked_total", "Asked.", &["source"]);
        ask().with(&["a"]).inc();
        ask().with(&["b"]).inc();
        let page = registry.render();
        assert!(page.contains("tidegate_asked_total{source=\"a\"} 1"));
        assert!(page.contains("tidegate_asked_total{source=\"b\"} 1"));
    }

    async fn page(router: &Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn pages_show_metrics_and_readiness() {
        let (registry, readiness) = (Registry::new(), Readiness::new());
        let events = registry.counter_vec("tidegate_events_total", "Events taken.", &["source"]);
        events.with(&["floor"]).inc_by(3);
        let depth = registry.gauge("tidegate_depth", "Depth.");
        let hooked = depth.clone();
        registry.on_scrape(move || hooked.set(7.0));
        registry.histogram("tidegate_wait_seconds", "Wait.", SECONDS).observe(0.002);
        let check = readiness.check("storage");
        let router = router(registry, readiness);

        let (status, text) = page(&router, "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(text.contains("tidegate_events_total{source=\"floor\"} 3"), "{text}");
        assert!(text.contains("tidegate_depth 7"), "{text}");
        assert!(text.contains("tidegate_wait_seconds_count 1"), "{text}");
        assert!(text.contains("process_resident_memory_bytes"), "{text}");

        assert_eq!(page(&router, "/healthz").await.0, StatusCode::OK);
        let (status, text) = page(&router, "/readyz").await;
        assert_eq!((status, text.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "storage: starting\n"));
        check.ready();
        assert_eq!(page(&router, "/readyz").await.0, StatusCode::OK);
    }
}
