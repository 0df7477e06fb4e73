//! What lanes and forwarding show of themselves. Labels are names of the configuration, never devices.

use crate::{
    dead_letter::Reason,
    output::Loss,
    step::{Effects, Health, Troubles},
};
use daemon::metrics::{Counter, CounterVec, Gauge, GaugeVec, Histogram, HistogramVec, Registry, SECONDS};
use record::{Counts, Seq, StreamName};
use std::sync::{Arc, Mutex, PoisonError};

/// Families of the lanes.
#[derive(Clone)]
pub struct LanesMetrics {
    rows: CounterVec,
    dead_letters: CounterVec,
    undeclared: CounterVec,
    held: GaugeVec,
    suspended: GaugeVec,
    module_failures: CounterVec,
    open_windows: GaugeVec,
    windows_forgotten: CounterVec,
    last_event: GaugeVec,
    input_frames_lost: CounterVec,
    given_up: CounterVec,
    step_seconds: HistogramVec,
}

impl LanesMetrics {
    /// Registers the families.
    pub fn new(registry: &Registry) -> Self {
        let gauge = |name: &str, help: &str, label: &str| registry.gauge_vec(name, help, &[label]);
        let counter = |name: &str, help: &str, label: &str| registry.counter_vec(name, help, &[label]);
        Self {
            rows: registry.counter_vec(
                "tidegate_stream_rows_total",
                "Rows by what became of them since the process started.",
                &["stream", "outcome"],
            ),
            dead_letters: registry.counter_vec(
                "tidegate_dead_letters_total",
                "Dead letters by stream and reason.",
                &["stream", "reason"],
            ),
            undeclared: counter(
                "tidegate_undeclared_fields_total",
                "Values stepped over because no column is declared for them.",
                "stream",
            ),
            held: gauge("tidegate_lane_held", "1 while the lane waits for a module.", "lane"),
            suspended: gauge(
                "tidegate_module_suspended",
                "1 while the stream's module is suspended.",
                "stream",
            ),
            module_failures: registry.counter_vec(
                "tidegate_module_failures_total",
                "Calls of the stream's module that failed.",
                &["stream", "reason"],
            ),
            open_windows: gauge("tidegate_windows_open", "Open windows of the stream.", "stream"),
            windows_forgotten: registry.counter_vec(
                "tidegate_windows_forgotten_total",
                "Open windows that were given up without a result.",
                &["stream", "cause"],
            ),
            last_event: gauge(
                "tidegate_lane_last_event_timestamp_seconds",
                "When the newest event that the lane took was accepted.",
                "lane",
            ),
            input_frames_lost: counter(
                "tidegate_lane_input_frames_lost_total",
                "Input frames that could not be read.",
                "lane",
            ),
            given_up: registry.counter_vec(
                "tidegate_given_up_rows_total",
                "Rows, or events that were no rows yet, that were given up because the buffer was full.",
                &["stream", "reason"],
            ),
            step_seconds: registry.histogram_vec(
                "tidegate_lane_step_seconds",
                "Time of one step, without writing it.",
                SECONDS,
                &["lane"],
            ),
        }
    }

    /// Rows, or events that were no rows yet, were given up.
    pub fn given_up(&self, loss: &Loss) {
        if loss.rows > 0 {
            self.given_up.with(&[loss.stream.as_str(), &loss.reason]).inc_by(loss.rows);
        }
    }

    /// The metrics of one lane.
    pub fn lane(&self, lane: &StreamName) -> LaneMetrics {
        let name = lane.as_str();
        LaneMetrics {
            families: self.clone(),
            held: self.held.with(&[name]),
            why_held: Arc::default(),
            last_event: self.last_event.with(&[name]),
            undeclared: self.undeclared.with(&[name]),
            input_frames_lost: self.input_frames_lost.with(&[name]),
            step_seconds: self.step_seconds.with(&[name]),
        }
    }
}

/// Metrics of one lane.
#[derive(Clone)]
pub struct LaneMetrics {
    families: LanesMetrics,
    held: Gauge,
    why_held: Arc<Mutex<Option<String>>>,
    last_event: Gauge,
    undeclared: Counter,
    /// Input frames that could not be read.
    pub input_frames_lost: Counter,
    /// Time of a step.
    pub step_seconds: Histogram,
}

impl LaneMetrics {
    /// Whether the lane waits, and why.
    pub fn held(&self, why: Option<&str>) {
        self.held.set(if why.is_some() { 1.0 } else { 0.0 });
        *self.why_held.lock().unwrap_or_else(PoisonError::into_inner) = why.map(str::to_owned);
    }

    /// Why the lane waits, if it does.
    pub fn why_held(&self) -> Option<String> {
        self.why_held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Rows were given up.
    pub fn given_up(&self, loss: &Loss) {
        self.families.given_up(loss);
    }

    /// When the newest event was accepted.
    pub fn last_event(&self, received_ns: i64) {
        self.last_event.set(received_ns as f64 / 1e9);
    }

    /// How the streams below the root fare.
    pub fn health(&self, health: &[Health]) {
        for h in health {
            let name = h.stream.as_str();
            self.families.suspended.with(&[name]).set(if h.suspended { 1.0 } else { 0.0 });
            self.families.open_windows.with(&[name]).set(h.open_windows as f64);
        }
    }

    /// Counts the calls that failed since this was last done.
    pub fn module_failures(&self, troubles: &Troubles) {
        for ((stream, reason), calls) in troubles.take_failures() {
            self.families.module_failures.with(&[stream.as_str(), reason]).inc_by(calls);
        }
    }

    /// Counts what a step brought about.
    pub fn effects(&self, fx: &Effects) {
        self.undeclared.inc_by(fx.undeclared);
        for (stream, c) in &fx.counts {
            self.rows(stream, c);
        }
        for ((stream, cause), windows) in &fx.forgotten {
            self.families.windows_forgotten.with(&[stream.as_str(), cause]).inc_by(*windows);
        }
        for letter in &fx.dead_letters {
            self.families.dead_letters.with(&[letter.stream.as_str(), Reason::name(letter.reason)]).inc();
        }
    }

    fn rows(&self, stream: &StreamName, c: &Counts) {
        let outcomes = [
            ("received", c.received),
            ("repeats", c.repeats),
            ("kept", c.kept),
            ("filtered", c.filtered),
            ("aggregated", c.aggregated),
            ("dead_lettered", c.dead_lettered),
            ("dropped", c.dropped),
            ("produced", c.produced),
        ];
        for (outcome, n) in outcomes {
            if n > 0 {
                self.families.rows.with(&[stream.as_str(), outcome]).inc_by(n);
            }
        }
    }
}

/// Metrics of forwarding.
#[derive(Clone)]
pub struct ForwardMetrics {
    connected: Gauge,
    sessions: Counter,
    acked: GaugeVec,
    halted: GaugeVec,
    last_ack: Gauge,
    in_flight_blocks: Gauge,
    in_flight_bytes: Gauge,
    /// Output frames that could not be read.
    pub frames_lost: Counter,
}

impl ForwardMetrics {
    /// Registers the families.
    pub fn new(registry: &Registry) -> Self {
        let gauge = |name: &str, help: &str| registry.gauge(name, help);
        gauge("tidegate_forward_in_flight_blocks_max", "Most blocks sent and not acknowledged.")
            .set(link::limits::IN_FLIGHT_BATCHES as f64);
        gauge("tidegate_forward_in_flight_bytes_max", "Most bytes sent and not acknowledged.")
            .set(link::limits::IN_FLIGHT_BYTES as f64);
        Self {
            connected: gauge("tidegate_forward_connected", "1 while a session with central stands."),
            sessions: registry.counter("tidegate_forward_sessions_total", "Sessions with central so far."),
            acked: registry.gauge_vec(
                "tidegate_forward_acked_seq",
                "The last seq of the stream that central has stored.",
                &["stream"],
            ),
            halted: registry.gauge_vec(
                "tidegate_forward_halted",
                "1 while the stream is not forwarded; its data is kept.",
                &["stream", "reason"],
            ),
            last_ack: gauge(
                "tidegate_forward_last_ack_timestamp_seconds",
                "When central last acknowledged something.",
            ),
            in_flight_blocks: gauge("tidegate_forward_in_flight_blocks", "Blocks sent and not acknowledged."),
            in_flight_bytes: gauge("tidegate_forward_in_flight_bytes", "Bytes sent and not acknowledged."),
            frames_lost: registry
                .counter("tidegate_forward_frames_lost_total", "Output frames that could not be read."),
        }
    }

    /// A session began or ended.
    pub fn connected(&self, yes: bool) {
        self.connected.set(if yes { 1.0 } else { 0.0 });
        if yes {
            self.sessions.inc();
            self.halted.clear();
        }
    }

    /// Whether a session stands.
    pub fn is_connected(&self) -> bool {
        self.connected.get() > 0.0
    }

    /// Central stored a stream up to a seq.
    pub fn acked(&self, stream: &StreamName, seq: Seq, now_ns: i64) {
        self.acked.with(&[stream.as_str()]).set(seq.0 as f64);
        self.last_ack.set(now_ns as f64 / 1e9);
    }

    /// The last seq of a stream that central has stored, as far as this process heard.
    pub fn acked_seq(&self, stream: &StreamName) -> u64 {
        self.acked.with(&[stream.as_str()]).get() as u64
    }

    /// A stream is not forwarded.
    pub fn halted(&self, stream: &StreamName, reason: &str) {
        self.halted.with(&[stream.as_str(), reason]).set(1.0);
    }

    /// What is under way.
    pub fn in_flight(&self, blocks: usize, bytes: usize) {
        self.in_flight_blocks.set(blocks as f64);
        self.in_flight_bytes.set(bytes as f64);
    }
}
