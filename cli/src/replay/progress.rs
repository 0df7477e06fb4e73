//! What a replay has done so far, and the line that shows it.

use crate::output::thousands;
use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// Counts of all connections.
#[derive(Debug)]
pub(super) struct Counters {
    pub(super) total: u64,
    sent: AtomicU64,
    acknowledged: AtomicU64,
    repeated: AtomicU64,
    refused: AtomicU64,
    reconnects: AtomicU64,
    trouble: Mutex<String>,
    drawn: Mutex<Option<Instant>>,
}

impl Counters {
    pub(super) fn new(total: u64) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            total,
            sent: zero(),
            acknowledged: zero(),
            repeated: zero(),
            refused: zero(),
            reconnects: zero(),
            trouble: Mutex::new("no answer yet".into()),
            drawn: Mutex::new(None),
        }
    }

    pub(super) fn add_sent(&self, n: u64) {
        self.sent.fetch_add(n, Relaxed);
    }
    pub(super) fn add_acknowledged(&self, n: u64) {
        self.acknowledged.fetch_add(n, Relaxed);
    }
    pub(super) fn add_repeated(&self, n: u64) {
        self.repeated.fetch_add(n, Relaxed);
    }
    pub(super) fn add_refused(&self, n: u64) {
        self.refused.fetch_add(n, Relaxed);
    }
    pub(super) fn add_reconnect(&self) {
        self.reconnects.fetch_add(1, Relaxed);
    }
    pub(super) fn trouble(&self, what: impl Into<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = what.into();
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Relaxed)
    }
    pub(super) fn repeated(&self) -> u64 {
        self.repeated.load(Relaxed)
    }
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }
    pub(super) fn reconnects(&self) -> u64 {
        self.reconnects.load(Relaxed)
    }
    pub(super) fn last_trouble(&self) -> String {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Draws the line on stderr: over itself on a terminal, a new one every five seconds elsewhere.
    pub(super) fn draw(&self, started: Instant) {
        let terminal = io::stderr().is_terminal();
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        let done = self.acknowledged() >= self.total;
        if !terminal && !done && drawn.is_some_and(|t| t.elapsed() < Duration::from_secs(5)) {
            return;
        }
        *drawn = Some(Instant::now());
        let line = self.line(started.elapsed());
        let _ =
            if terminal { write!(io::stderr(), "\r{line}\x1b[K") } else { writeln!(io::stderr(), "{line}") };
    }

    fn line(&self, elapsed: Duration) -> String {
        const WIDTH: u64 = 30;
        let acknowledged = self.acknowledged();
        let filled = (acknowledged * WIDTH).checked_div(self.total).unwrap_or(WIDTH).min(WIDTH);
        let bar: String = (0..WIDTH).map(|i| if i < filled { '█' } else { '·' }).collect();
        format!(
            "{bar} {} of {} acknowledged, {} published, {:.0}/s",
            thousands(acknowledged),
            thousands(self.total),
            thousands(self.sent()),
            acknowledged as f64 / elapsed.as_secs_f64().max(1e-9)
        )
    }
}

/// Ends the line of a terminal.
pub(super) fn end() {
    if io::stderr().is_terminal() {
        let _ = writeln!(io::stderr());
    }
}

/// How long nothing may happen.
#[derive(Debug)]
pub(super) struct Patience {
    limit: Duration,
    last: u64,
    since: Instant,
}

impl Patience {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, last: 0, since: Instant::now() }
    }

    pub(super) fn is_over(&mut self, acknowledged: u64) -> bool {
        if acknowledged != self.last {
            (self.last, self.since) = (acknowledged, Instant::now());
        }
        self.since.elapsed() > self.limit
    }
}
