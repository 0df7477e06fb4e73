//! Keeps repeated inserts harmless to what users build on the tables: sees new views soon after they are made and sets the
//! windows of tokens that they need ([`Views::secure`]).
//!
//! A view is protected from the first insert after its window was set; until then a repeat of an insert may double in it.
//! So looks follow each other closely, and cost a few questions to the server's own tables.

use super::metrics::SinkMetrics;
use crate::clickhouse::{Look, Views};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// From one look to the next.
const EVERY: Duration = Duration::from_secs(5);

/// Looks after the views until `stop`.
pub(super) async fn keep_secure(views: Views, metrics: SinkMetrics, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = look_again_and_again(views, metrics) => {}
    }
}

async fn look_again_and_again(views: Views, metrics: SinkMetrics) {
    let mut told = Look::default();
    loop {
        match views.secure().await {
            Ok(now) => {
                tell(&told, &now, &metrics);
                told = now;
            }
            // Nothing is inserted either while the server does not answer; the lanes say so.
            Err(error) => tracing::debug!(%error, "views cannot be looked at"),
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Each reason once, as long as it lasts.
fn tell(before: &Look, now: &Look, metrics: &SinkMetrics) {
    let problems = now.views.iter().filter_map(|v| Some((v, v.problem.as_ref()?)));
    for (view, problem) in problems.clone() {
        if !before.views.contains(view) {
            tracing::warn!(view = view.view, problem, "a view may get rows twice when an insert is repeated");
        }
    }
    for problem in now.tables.iter().filter(|t| !before.tables.contains(t)) {
        tracing::warn!(problem, "a table may get rows twice when an insert is repeated");
    }
    metrics.unsafe_tables.with(&["view"]).set(problems.count() as f64);
    metrics.unsafe_tables.with(&["stream"]).set(now.tables.len() as f64);
}
