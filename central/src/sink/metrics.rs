//! What the sink counts.

use crate::log::Partition;
use daemon::metrics::{Counter, CounterVec, Gauge, GaugeVec, Histogram, Registry, SECONDS};

/// Shared by all lanes.
#[derive(Clone)]
pub struct SinkMetrics {
    /// Rows in their tables, by table.
    pub rows: CounterVec,
    /// Inserts by table and result.
    pub inserts: CounterVec,
    /// Inserts whose end was not known, by reason.
    pub doubts: CounterVec,
    /// Looks into the tables after a doubt.
    pub read_backs: Counter,
    /// Ranges that needed a new name.
    pub renamed: Counter,
    /// Ranges that views may lack.
    pub views_unsure: Counter,
    /// Blocks put into quarantine.
    pub quarantined: Counter,
    /// Seconds of one insert.
    pub insert_seconds: Histogram,
    /// Seconds from central's taking a record to its being stored.
    pub delay_seconds: Histogram,
    /// Records not stored yet, by partition.
    pub lag: GaugeVec,
    /// 1 while a partition's lane is stopped by a contradiction.
    pub halted: GaugeVec,
    /// When something was last stored.
    pub last_stored: Gauge,
    /// Tables that do not recognise a repeated insert, by kind.
    pub unsafe_tables: GaugeVec,
}

impl SinkMetrics {
    /// Registers all of them.
    pub fn new(registry: &Registry) -> Self {
        Self {
            rows: registry.counter_vec("tidegate_sink_rows_total", "Rows stored in ClickHouse.", &["table"]),
            inserts: registry.counter_vec(
                "tidegate_sink_inserts_total",
                "Inserts sent to ClickHouse, by result (ok or doubt).",
                &["table", "result"],
            ),
            doubts: registry.counter_vec(
                "tidegate_sink_doubts_total",
                "Inserts whose end was not known, by reason.",
                &["reason"],
            ),
            read_backs: registry.counter(
                "tidegate_sink_read_backs_total",
                "Times a range was looked for in the tables after a doubt or a restart.",
            ),
            renamed: registry.counter(
                "tidegate_sink_renamed_ranges_total",
                "Ranges inserted in part under a new token, because an insert was answered but not there.",
            ),
            views_unsure: registry.counter(
                "tidegate_sink_views_unsure_ranges_total",
                "Ranges that are in their tables once, but that a materialized view may lack or have twice.",
            ),
            quarantined: registry.counter(
                "tidegate_sink_quarantined_blocks_total",
                "Blocks that could not become rows and were put into quarantine.",
            ),
            insert_seconds: registry.histogram(
                "tidegate_sink_insert_seconds",
                "Duration of one insert into ClickHouse.",
                SECONDS,
            ),
            delay_seconds: registry.histogram(
                "tidegate_sink_delay_seconds",
                "Time from the taking of a record by central to its being stored.",
                SECONDS,
            ),
            lag: registry.gauge_vec(
                "tidegate_sink_lag_records",
                "Records of the log that are not stored yet.",
                &["partition"],
            ),
            halted: registry.gauge_vec(
                "tidegate_sink_lane_halted",
                "1 while the lane of a partition is stopped by a contradiction that needs a person.",
                &["partition"],
            ),
            last_stored: registry.gauge(
                "tidegate_sink_last_stored_timestamp_seconds",
                "When rows were last stored, in seconds since the epoch.",
            ),
            unsafe_tables: registry.gauge_vec(
                "tidegate_sink_unsafe_tables",
                "Tables in which a repeated insert may double rows: targets of views, and tables of streams.",
                &["kind"],
            ),
        }
    }

    /// Takes back what is said of a partition that this process no longer has.
    pub(super) fn forget(&self, partition: Partition) {
        let partition = partition.to_string();
        self.lag.remove(&[&partition]);
        self.halted.remove(&[&partition]);
    }
}
