//! What the rules and the outbox show. Labels come from the configuration only: names of groups, alerts and receivers.

use super::{engine::Engine, state::Phase};
use crate::alerts::{Outbox, Outcome, outbox};
use daemon::metrics::{Counter, CounterVec, Gauge, GaugeVec, Histogram, Registry, SECONDS};
use std::collections::BTreeMap;

pub(super) struct RuleMetrics {
    alerts: GaugeVec,
    evaluations: CounterVec,
    failures: CounterVec,
    waiting: GaugeVec,
    suppressed: CounterVec,
    last_evaluation: GaugeVec,
    clock: GaugeVec,
    pub(super) duration: Histogram,
    pub(super) instances: Gauge,
    transitions: CounterVec,
    deliveries: CounterVec,
    dropped: CounterVec,
    pending: GaugeVec,
    last_delivery: GaugeVec,
    seen_dropped: BTreeMap<String, u64>,
    seen_suppressed: BTreeMap<String, u64>,
}

impl RuleMetrics {
    pub(super) fn new(r: &Registry) -> Self {
        r.gauge("tidegate_notifications_pending_limit", "Transitions that may wait for one receiver.")
            .set(outbox::limits::QUEUE_MAX as f64);
        Self {
            alerts: r.gauge_vec(
                "tidegate_alerts",
                "Alert instances, by state.",
                &["alertname", "alertstate"],
            ),
            evaluations: r.counter_vec(
                "tidegate_rule_evaluations_total",
                "Evaluations of rules.",
                &["group"],
            ),
            failures: r.counter_vec(
                "tidegate_rule_failures_total",
                "Evaluations that failed and will be repeated.",
                &["group", "reason"],
            ),
            waiting: r.gauge_vec(
                "tidegate_rules_without_table",
                "Rules that wait for a table that is not there.",
                &["group"],
            ),
            suppressed: r.counter_vec(
                "tidegate_rule_suppressed_total",
                "Rows and instances of rules that were over a bound.",
                &["group"],
            ),
            last_evaluation: r.gauge_vec(
                "tidegate_rule_last_evaluation_timestamp_seconds",
                "When a group was evaluated last.",
                &["group"],
            ),
            clock: r.gauge_vec(
                "tidegate_rule_clock_timestamp_seconds",
                "What a group's clock shows.",
                &["group"],
            ),
            duration: r.histogram(
                "tidegate_rule_group_duration_seconds",
                "Time one evaluation of a group takes.",
                SECONDS,
            ),
            instances: r.gauge("tidegate_rule_instances", "Pending and firing instances of all rules."),
            transitions: r.counter_vec(
                "tidegate_alert_transitions_total",
                "Alerts that began or ceased to fire.",
                &["alertname", "kind"],
            ),
            deliveries: r.counter_vec(
                "tidegate_notifications_total",
                "Requests to receivers, by outcome.",
                &["receiver", "outcome"],
            ),
            dropped: r.counter_vec(
                "tidegate_notifications_dropped_total",
                "Transitions given up: refused by the receiver, or over the limit.",
                &["receiver"],
            ),
            pending: r.gauge_vec(
                "tidegate_notifications_pending",
                "Transitions waiting for a receiver.",
                &["receiver"],
            ),
            last_delivery: r.gauge_vec(
                "tidegate_notification_last_success_timestamp_seconds",
                "When a receiver accepted a request last.",
                &["receiver"],
            ),
            seen_dropped: BTreeMap::new(),
            seen_suppressed: BTreeMap::new(),
        }
    }

    pub(super) fn failure(&self, group: &str, reason: &str) {
        self.failures.with(&[group, reason]).inc();
    }

    pub(super) fn evaluated(&self, group: &str, rules: usize, wall_ns: i64, clock_ns: Option<i64>) {
        self.evaluations.with(&[group]).inc_by(rules as u64);
        self.last_evaluation.with(&[group]).set(seconds(wall_ns));
        if let Some(ns) = clock_ns {
            self.clock.with(&[group]).set(seconds(ns));
        }
    }

    pub(super) fn transition(&self, alert: &str, kind: &str) {
        self.transitions.with(&[alert, kind]).inc();
    }

    pub(super) fn delivered(&self, receiver: &str, outcome: &Outcome, wall_ns: i64) {
        let word = match outcome {
            Outcome::Accepted => {
                self.last_delivery.with(&[receiver]).set(seconds(wall_ns));
                "accepted"
            }
            Outcome::Failed(_) => "failed",
            Outcome::Refused(_) => "refused",
        };
        self.deliveries.with(&[receiver, word]).inc();
    }

    /// Sets what is read from the state.
    pub(super) fn snapshot(&mut self, engine: &Engine, outbox: &Outbox) {
        let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for group in &engine.rules().groups {
            for rule in &group.rules {
                counts.insert((&rule.alert, "pending"), 0);
                counts.insert((&rule.alert, "firing"), 0);
            }
        }
        let mut instances = 0;
        for (_, i) in engine.instances() {
            let state = if i.phase == Phase::Firing { "firing" } else { "pending" };
            *counts.entry((i.labels.get("alertname").map_or("", String::as_str), state)).or_default() += 1;
            instances += 1;
        }
        for ((alert, state), n) in counts {
            self.alerts.with(&[alert, state]).set(n as f64);
        }
        self.instances.set(f64::from(instances));
        for (receiver, dropped, _) in outbox.health() {
            self.pending.with(&[receiver]).set(engine.state.outbox.waiting(receiver) as f64);
            grow(&mut self.seen_dropped, receiver, dropped, &self.dropped.with(&[receiver]));
        }
        let mut by_group: BTreeMap<&str, (u64, u32)> = BTreeMap::new();
        for (key, h) in engine.health() {
            let (suppressed, waiting) =
                by_group.entry(key.split('/').next().unwrap_or_default()).or_default();
            *suppressed += h.suppressed;
            *waiting += u32::from(h.unknown_table.is_some());
        }
        for (group, (n, waiting)) in by_group {
            self.waiting.with(&[group]).set(f64::from(waiting));
            grow(&mut self.seen_suppressed, group, n, &self.suppressed.with(&[group]));
        }
    }
}

/// Brings a counter up to a total that is kept elsewhere.
fn grow(seen: &mut BTreeMap<String, u64>, name: &str, total: u64, counter: &Counter) {
    let before = seen.insert(name.to_owned(), total).unwrap_or(0);
    counter.inc_by(total.saturating_sub(before));
}

fn seconds(ns: i64) -> f64 {
    ns as f64 / 1e9
}
