//! What the link role counts.

use crate::{
    limits::LOG_STATUS_INTERVAL,
    log::{Log, Partition},
};
use ::link::{message::RefuseCode, server::Refusal};
use daemon::metrics::{Counter, CounterVec, Gauge, Histogram, Registry, SECONDS};
use journal::Quota;
use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering::Relaxed},
};
use tokio_util::sync::CancellationToken;

/// The counters of the link role; cheap to clone.
#[derive(Clone)]
pub struct LinkMetrics {
    pub(super) sessions: Gauge,
    pub(super) turned_away: CounterVec,
    pub(super) batches: Counter,
    pub(super) rows: Counter,
    pub(super) bytes: Counter,
    pub(super) repeats: Counter,
    pub(super) refused: CounterVec,
    pub(super) lost_rows: Counter,
    pub(super) commits: Counter,
    pub(super) commit_failures: CounterVec,
    pub(super) commit_seconds: Histogram,
    pub(super) claim_failures: Counter,
    pub(super) redirected: Counter,
    pub(super) shards: Gauge,
    pub(super) last_batch_ns: Arc<AtomicI64>,
}

impl LinkMetrics {
    /// Registers them.
    pub fn new(registry: &Registry) -> Self {
        let turned_away = registry.counter_vec(
            "tidegate_link_connections_refused_total",
            "Callers that were turned away before they had a session, by reason.",
            &["reason"],
        );
        Refusal::ALL.iter().for_each(|r| drop(turned_away.with(&[r.name()])));
        let refused = registry.counter_vec(
            "tidegate_link_streams_refused_total",
            "Streams that were refused in a session, by reason.",
            &["reason"],
        );
        for code in [RefuseCode::Gap, RefuseCode::Quarantined, RefuseCode::TypeConflict] {
            refused.with(&[code.name()]);
        }
        let commit_failures = registry.counter_vec(
            "tidegate_link_commit_failures_total",
            "Groups that the log did not take for certain, by reason.",
            &["reason"],
        );
        ["full", "fenced", "unknown", "refused"].iter().for_each(|r| drop(commit_failures.with(&[r])));
        let last_batch_ns = Arc::new(AtomicI64::new(0));
        let last_batch = registry.gauge(
            "tidegate_link_last_batch_timestamp_seconds",
            "When the last block was stored, in seconds since the epoch; 0 before the first.",
        );
        let newest = last_batch_ns.clone();
        registry.on_scrape(move || last_batch.set(newest.load(Relaxed) as f64 / 1e9));
        Self {
            sessions: registry.gauge("tidegate_link_sessions", "Gateways that are connected."),
            turned_away,
            batches: registry.counter("tidegate_link_batches_total", "Blocks stored in the log."),
            rows: registry.counter("tidegate_link_rows_total", "Rows stored in the log."),
            bytes: registry.counter("tidegate_link_bytes_total", "Bytes of blocks stored in the log."),
            repeats: registry.counter(
                "tidegate_link_repeated_batches_total",
                "Blocks that came again and were acknowledged without being stored.",
            ),
            refused,
            lost_rows: registry.counter(
                "tidegate_link_lost_rows_total",
                "Rows that gateways declared lost after they had a seq.",
            ),
            commits: registry.counter("tidegate_link_commits_total", "Groups committed to the log."),
            commit_failures,
            commit_seconds: registry.histogram(
                "tidegate_link_commit_seconds",
                "How long the log took to commit a group.",
                SECONDS,
            ),
            claim_failures: registry.counter(
                "tidegate_link_claim_failures_total",
                "Attempts to begin with a shard that the log did not answer.",
            ),
            redirected: registry.counter(
                "tidegate_link_redirects_total",
                "Gateways that were sent to the process that owns their shard.",
            ),
            shards: registry.gauge("tidegate_link_shards", "Shards whose gateways are committed here."),
            last_batch_ns,
        }
    }
}

/// Registers the extent of the log and keeps it up to date until `stop`.
pub async fn watch_log(registry: &Registry, log: Arc<dyn Log>, stop: CancellationToken) {
    let high = registry.gauge_vec(
        "tidegate_log_end_offset",
        "One past the newest record of a partition of the log.",
        &["partition"],
    );
    loop {
        for n in 0..log.partitions() {
            // A log that does not answer is told where it is written and read; the gauge stays.
            if let Ok(status) = log.status(Partition(n)).await {
                high.with(&[&n.to_string()]).set(status.high.0 as f64);
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOG_STATUS_INTERVAL) => {}
        }
    }
}

/// Registers what the log takes of its quota.
pub fn log_size_metrics(registry: &Registry, quota: &Quota) {
    let bytes = registry.gauge("tidegate_log_bytes", "Bytes that the log's partitions take on disk.");
    registry.gauge("tidegate_log_quota_bytes", "What they may take.").set(quota.limit() as f64);
    let quota = quota.clone();
    registry.on_scrape(move || bytes.set(quota.used() as f64));
}
