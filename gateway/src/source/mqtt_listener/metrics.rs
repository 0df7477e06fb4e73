//! What a listener counts, and how it avoids logging the same thing ten thousand times.

use daemon::metrics::{Counter, CounterVec, Gauge, Registry};
use mqtt::{DecodeError, Ended, ReasonCode};
use record::SourceName;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// One kind of trouble is logged at most this often.
const LOG_EVERY: Duration = Duration::from_secs(60);

pub(super) struct ListenerMetrics {
    source: String,
    pub(super) connections: Gauge,
    pub(super) connects: Counter,
    pub(super) qos_0_lost: Counter,
    refused: CounterVec,
    disconnects: CounterVec,
    logged: Mutex<HashMap<&'static str, Instant>>,
}

impl ListenerMetrics {
    pub(super) fn new(registry: &Registry, name: &SourceName) -> Self {
        let source = [name.as_str()];
        let connections = registry.gauge_vec(
            "tidegate_mqtt_connections",
            "Connections to the listener, before and after their CONNECT.",
            &["source"],
        );
        let connects = registry.counter_vec("tidegate_mqtt_connects_total", "Clients let in.", &["source"]);
        let qos_0_lost = registry.counter_vec(
            "tidegate_mqtt_qos_0_lost_total",
            "Publishes of QoS 0 whose connection ended before the buffer had room for them.",
            &["source"],
        );
        Self {
            source: name.as_str().to_owned(),
            connections: connections.with(&source),
            connects: connects.with(&source),
            qos_0_lost: qos_0_lost.with(&source),
            refused: registry.counter_vec(
                "tidegate_mqtt_refused_total",
                "Connections that were not let in.",
                &["source", "reason"],
            ),
            disconnects: registry.counter_vec(
                "tidegate_mqtt_disconnects_total",
                "Ends of connections that had been let in.",
                &["source", "reason"],
            ),
            logged: Mutex::new(HashMap::new()),
        }
    }

    pub(super) fn refused(&self, reason: &'static str) {
        self.refused.with(&[&self.source, reason]).inc();
    }

    pub(super) fn disconnected(&self, reason: &'static str) {
        self.disconnects.with(&[&self.source, reason]).inc();
    }

    /// Runs `log` unless this kind was logged a short while ago.
    pub(super) fn once(&self, kind: &'static str, log: impl FnOnce()) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if logged.get(kind).is_none_or(|last| now.duration_since(*last) >= LOG_EVERY) {
            logged.insert(kind, now);
            drop(logged);
            log();
        }
    }
}

/// The value of the `reason` label.
pub(super) fn reason(ended: Ended) -> &'static str {
    match ended {
        Ended::Decode(DecodeError::TooLarge { .. }) => "packet_too_large",
        Ended::Decode(_) => "malformed",
        Ended::ConnectExpected => "no_connect",
        Ended::ConnectTimeout => "connect_timeout",
        Ended::KeepAliveTimeout => "keep_alive",
        Ended::QosNotSupported => "qos_not_supported",
        Ended::ReceiveMaximumExceeded => "receive_maximum",
        Ended::Rejected(code) | Ended::Closed(code) => code_name(code),
        Ended::SecondConnect | Ended::AliasAboveMaximum(_) | Ended::AliasUnknown(_) | Ended::Protocol => {
            "protocol_error"
        }
    }
}

fn code_name(code: ReasonCode) -> &'static str {
    match code {
        ReasonCode::CLIENT_ID_NOT_VALID => "client_id",
        ReasonCode::BAD_AUTHENTICATION_METHOD => "authentication_method",
        ReasonCode::QOS_NOT_SUPPORTED => "qos_not_supported",
        ReasonCode::QUOTA_EXCEEDED => "too_many_connections",
        ReasonCode::SERVER_SHUTTING_DOWN => "shutdown",
        ReasonCode::SESSION_TAKEN_OVER => "taken_over",
        ReasonCode::TOPIC_NAME_INVALID => "unmatched_topic",
        ReasonCode::SERVER_BUSY => "busy",
        ReasonCode::SERVER_UNAVAILABLE => "log_failed",
        _ => "other",
    }
}
