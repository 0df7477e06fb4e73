//! What the fan-out counts.

use crate::log::Partition;
use daemon::metrics::{Counter, CounterVec, Gauge, GaugeVec, Registry};

/// Shared by all lanes.
#[derive(Clone)]
pub struct FanoutMetrics {
    /// Events published, by stream.
    pub rows: CounterVec,
    /// Transactions committed.
    pub transactions: Counter,
    /// Transactions and claims that did not end well, by reason.
    pub aborts: CounterVec,
    /// Events that consumers will never see, by reason.
    pub skipped: CounterVec,
    /// Records not published yet, by partition.
    pub lag: GaugeVec,
    /// When something was last published.
    pub last_event: Gauge,
}

impl FanoutMetrics {
    /// Registers all of them.
    pub fn new(registry: &Registry) -> Self {
        let skipped = registry.counter_vec(
            "tidegate_fanout_skipped_total",
            "Records and rows that the fan-out passed without publishing them, by reason.",
            &["reason"],
        );
        // Shown from the beginning, so that the first one is an increase.
        ["unreadable", "too-large", "removed"].iter().for_each(|reason| drop(skipped.with(&[reason])));
        Self {
            skipped,
            rows: registry.counter_vec(
                "tidegate_fanout_rows_total",
                "Events published to the topics of their streams.",
                &["stream"],
            ),
            transactions: registry.counter(
                "tidegate_fanout_transactions_total",
                "Transactions of the fan-out that were committed.",
            ),
            aborts: registry.counter_vec(
                "tidegate_fanout_aborts_total",
                "Transactions and claims of the fan-out that were given up and made again, by reason.",
                &["reason"],
            ),
            lag: registry.gauge_vec(
                "tidegate_fanout_lag_records",
                "Records of the log whose events are not published yet.",
                &["partition"],
            ),
            last_event: registry.gauge(
                "tidegate_fanout_last_event_timestamp_seconds",
                "When events were last published, in seconds since the epoch.",
            ),
        }
    }

    /// Takes back what is said of a partition that this process no longer has.
    pub(super) fn forget(&self, partition: Partition) {
        self.lag.remove(&[&partition.to_string()]);
    }
}
