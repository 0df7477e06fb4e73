//! Conditions with deadlines: the only way in which a test waits.

use std::time::{Duration, Instant};

use anyhow::bail;

/// How often a condition is looked at.
const EVERY: Duration = Duration::from_millis(20);

/// Asks `attempt` until it gives a value; an error that names `what` when the deadline passes.
pub async fn until<T>(
    what: &str,
    deadline: Duration,
    mut attempt: impl AsyncFnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let began = Instant::now();
    loop {
        if let Some(value) = attempt().await {
            return Ok(value);
        }
        if began.elapsed() > deadline {
            bail!("after {deadline:?} still not: {what}");
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// The same for a condition that is true or not.
pub async fn until_true(
    what: &str,
    deadline: Duration,
    mut condition: impl AsyncFnMut() -> bool,
) -> anyhow::Result<()> {
    until(what, deadline, async || condition().await.then_some(())).await
}
