//! When the next event is due, for a device that sends at a steady rate.

use std::time::Duration;

use tokio::time::Instant;

/// A steady rate from a start; a device that fell behind may catch up.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    start: Instant,
    interval: Duration,
}

impl Pace {
    /// One event every `1/per_second` seconds, from now on.
    pub fn per_second(per_second: f64) -> Self {
        Self { start: Instant::now(), interval: Duration::from_secs_f64(1.0 / per_second) }
    }

    /// As fast as the window allows.
    pub fn unlimited() -> Self {
        Self { start: Instant::now(), interval: Duration::ZERO }
    }

    /// When event `index` is due.
    pub fn due(&self, index: usize) -> Instant {
        self.start + self.interval.mul_f64(index as f64)
    }
}
