//! Threads that poll the library's clients, which call back and fetch only while they are polled.
//!
//! Invariants:
//! - a thread belongs to whoever started it, and is gone when that is gone;
//! - one that ends although nobody asked it to is told to [`Watch`], whose owner ends the process.

use std::{
    sync::{Mutex, PoisonError},
    thread::{Builder, JoinHandle},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Whether all threads of a log live.
#[derive(Clone)]
pub(super) struct Watch(watch::Sender<Option<&'static str>>);

impl Watch {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// Waits until one has ended unasked, and says which.
    pub(super) async fn ended(&self) -> &'static str {
        let mut told = self.0.subscribe();
        loop {
            if let Some(name) = *told.borrow_and_update() {
                return name;
            }
            if told.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

/// One thread.
pub(super) struct Polling {
    name: &'static str,
    stop: CancellationToken,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Tells the watch when it is dropped before anybody wished so, as by a panic.
struct Alive(&'static str, CancellationToken, Watch);

impl Drop for Alive {
    fn drop(&mut self) {
        if !self.1.is_cancelled() {
            self.2.0.send_replace(Some(self.0));
        }
    }
}

impl Polling {
    /// Starts it; `work` ends soon after its token is cancelled.
    pub(super) fn start(
        name: &'static str,
        watch: &Watch,
        work: impl FnOnce(&CancellationToken) + Send + 'static,
    ) -> Result<Self, String> {
        let stop = CancellationToken::new();
        let alive = Alive(name, stop.clone(), watch.clone());
        let thread = Builder::new().name(name.to_owned()).spawn(move || {
            // Whole, so that it is dropped when the work ends, however that is.
            let alive = alive;
            work(&alive.1);
        });
        let thread = thread.map_err(|e| format!("the thread {name} cannot be started: {e}"))?;
        Ok(Self { name, stop, thread: Mutex::new(Some(thread)) })
    }

    /// Ends it, and waits until it has ended. Blocks.
    pub(super) fn end(&self) {
        self.stop.cancel();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!(name = self.name, "a thread of the log had ended");
        }
    }
}

impl Drop for Polling {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn an_end_that_nobody_asked_for_is_told() {
        let watch = Watch::new();
        let asked = Polling::start("asked", &watch, |stop| {
            while !stop.is_cancelled() {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        drop(asked.expect("starts"));
        assert_eq!(*watch.0.borrow(), None);
        let _unasked = Polling::start("unasked", &watch, |_| {}).expect("starts");
        assert_eq!(watch.ended().await, "unasked");
    }
}
