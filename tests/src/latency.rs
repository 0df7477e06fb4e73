//! How long a message takes from PUBLISH to a row that a query sees.
//!
//! The newest event time per device is asked for again and again; a sampled message counts as queryable at the first
//! answer that has reached its time. So a figure is too high by up to one round of asking, never too low.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::mqtt_load::{Progress, Sample};
use crate::nab::Reading;
use crate::tables::Api;

/// Time between two questions.
const EVERY: Duration = Duration::from_millis(50);

/// One message's way.
#[derive(Debug, Clone, Copy)]
pub struct Taken {
    /// When it was first sent.
    pub at: Instant,
    /// Until a query saw it.
    pub took: Duration,
}

/// Watches until told to stop; gives every sample that was seen.
pub async fn watch(
    api: Api,
    table: &str,
    readings: Arc<[Reading]>,
    progress: Arc<Progress>,
    stop: CancellationToken,
) -> Vec<Taken> {
    let newest_before = running_maximum(&readings);
    let mut waiting: Vec<Sample> = Vec::new();
    let mut taken = Vec::new();
    while !stop.is_cancelled() {
        // A time that is not newer than all before it says nothing about its own message.
        let telling = |s: &Sample| readings[s.index].time_ns > newest_before[s.index];
        waiting.extend(progress.take_samples().into_iter().filter(telling));
        // Central may be down at the moment: that is part of the latency.
        if let Ok(newest) = api.newest(table).await {
            let now = Instant::now();
            waiting.retain(|sample| {
                let seen =
                    newest.get(&sample.device).is_some_and(|time| *time >= readings[sample.index].time_ns);
                if seen {
                    taken.push(Taken { at: sample.at, took: now - sample.at });
                }
                !seen
            });
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(EVERY) => {}
        }
    }
    taken
}

/// For every reading, the newest time before it.
fn running_maximum(readings: &[Reading]) -> Vec<i64> {
    let mut newest = i64::MIN;
    readings
        .iter()
        .map(|reading| {
            let before = newest;
            newest = newest.max(reading.time_ns);
            before
        })
        .collect()
}

/// The quantile (0 to 1) of some durations, in milliseconds; 0 when there are none.
pub fn quantile_ms(mut took: Vec<Duration>, quantile: f64) -> f64 {
    took.sort_unstable();
    let last = took.len().saturating_sub(1);
    let at = (last as f64 * quantile).round() as usize;
    took.get(at).map_or(0.0, |duration| duration.as_secs_f64() * 1e3)
}
