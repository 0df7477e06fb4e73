//! The verdict as metrics.

use super::report::Report;
use daemon::metrics::{Counter, Gauge, GaugeVec, Registry};
use std::{cmp::Reverse, collections::BTreeMap};

/// Pairs of gateway and stream that have samples of their own; the others are one sample together.
const STREAMS_MAX: usize = 1_000;
/// Gateway and stream of that sample; no id may hold such signs.
const OTHERS: &str = "(others)";

pub(super) struct AuditMetrics {
    balanced: Gauge,
    lost: Gauge,
    duplicated: Gauge,
    dropped: Gauge,
    in_flight: Gauge,
    buffered: Gauge,
    problems: Gauge,
    unsafe_tables: Gauge,
    stream_lost: GaugeVec,
    stream_duplicated: GaugeVec,
    stream_behind: GaugeVec,
    last: Gauge,
    seconds: Gauge,
    pub(super) failures: Counter,
}

impl AuditMetrics {
    pub(super) fn new(r: &Registry) -> Self {
        let by_stream = &["gateway", "stream"];
        Self {
            balanced: r.gauge(
                "tidegate_audit_balanced",
                "1 when the last audit found nothing lost, doubled or unexplained.",
            ),
            lost: r.gauge("tidegate_audit_lost_rows", "Rows that the last audit could not find."),
            duplicated: r
                .gauge("tidegate_audit_duplicated_rows", "Rows that the last audit found more than once."),
            dropped: r
                .gauge("tidegate_audit_dropped_rows", "Rows that gateways gave up by policy and declared."),
            in_flight: r.gauge(
                "tidegate_audit_in_flight_rows",
                "Rows in central's log that the sink had not committed.",
            ),
            buffered: r.gauge("tidegate_audit_buffered_rows", "Rows that gateways had not got acknowledged."),
            problems: r.gauge("tidegate_audit_problems", "Things that did not fit in the last audit."),
            unsafe_tables: r.gauge(
                "tidegate_audit_unsafe_tables",
                "Tables and targets of views in which a repeated insert may double rows, in the last audit.",
            ),
            stream_lost: r.gauge_vec(
                "tidegate_audit_stream_lost_rows",
                "Rows of a gateway's stream that the last audit could not find.",
                by_stream,
            ),
            stream_duplicated: r.gauge_vec(
                "tidegate_audit_stream_duplicated_rows",
                "Rows of a gateway's stream that the last audit found more than once.",
                by_stream,
            ),
            stream_behind: r.gauge_vec(
                "tidegate_audit_stream_behind_rows",
                "Rows of a gateway's stream that were not in their table: not acknowledged, or in the log.",
                by_stream,
            ),
            last: r.gauge("tidegate_audit_last_timestamp_seconds", "When the last audit was complete."),
            seconds: r.gauge("tidegate_audit_duration_seconds", "How long the last audit took."),
            failures: r.counter(
                "tidegate_audit_failures_total",
                "Audits without a verdict because something could not be read.",
            ),
        }
    }

    pub(super) fn show(&self, r: &Report, wall_ns: i64) {
        self.balanced.set(f64::from(u8::from(r.balanced)));
        self.lost.set(r.lost as f64);
        self.duplicated.set(r.duplicated as f64);
        self.dropped.set(r.dropped as f64);
        self.in_flight.set(r.in_flight as f64);
        self.buffered.set(r.buffered as f64);
        self.problems.set(r.problems.len() as f64);
        self.unsafe_tables.set(r.unsafe_tables.len() as f64);
        self.last.set(wall_ns as f64 / 1e9);
        self.seconds.set(r.seconds);
        let families = [&self.stream_lost, &self.stream_duplicated, &self.stream_behind];
        families.iter().for_each(|f| f.clear());
        for ((gateway, stream), terms) in by_stream(r) {
            for (family, term) in families.iter().zip(terms) {
                family.with(&[&gateway, &stream]).set(term as f64);
            }
        }
    }
}

/// Lost, duplicated and behind, of all lives of a stream together; the worst first when there are too many.
fn by_stream(r: &Report) -> Vec<((String, String), [u64; 3])> {
    let mut all: BTreeMap<(String, String), [u64; 3]> = BTreeMap::new();
    for g in &r.gateways {
        for s in &g.streams {
            let sum = all.entry((g.gateway.clone(), s.stream.clone())).or_default();
            for (sum, term) in sum.iter_mut().zip([s.lost, s.duplicated, s.in_flight + s.buffered]) {
                *sum += term;
            }
        }
    }
    let mut all: Vec<_> = all.into_iter().collect();
    if all.len() > STREAMS_MAX {
        all.sort_by_key(|(_, terms)| Reverse(*terms));
        let mut others = [0; 3];
        for (_, terms) in all.drain(STREAMS_MAX..) {
            others.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
        }
        all.push(((OTHERS.to_owned(), OTHERS.to_owned()), others));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{GatewayReport, StreamReport};

    #[test]
    fn the_worst_have_samples_of_their_own_and_the_rest_is_one() {
        let stream = |lost| StreamReport { stream: "m".into(), lost, buffered: 1, ..StreamReport::default() };
        let gateway = |n: usize| GatewayReport {
            gateway: format!("g{n}"),
            dead_letters_counted: 0,
            dead_letters_written: 0,
            streams: vec![stream(u64::from(n == 1_200)), stream(0)],
        };
        let r = Report { gateways: (0..1_500).map(gateway).collect(), ..Report::default() };
        let all = by_stream(&r);
        assert_eq!((all.len(), all[0].0.0.as_str(), all[0].1), (STREAMS_MAX + 1, "g1200", [1, 0, 2]));
        assert_eq!(all[STREAMS_MAX], ((OTHERS.into(), OTHERS.into()), [0, 0, 1_000]));
    }
}
