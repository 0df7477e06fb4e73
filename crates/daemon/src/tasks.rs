//! The one set of tasks of a daemon.
//!
//! Invariants
//! - A task that ends before it was asked to, well or badly, stops the process: a daemon that has lost a stage is
//!   restarted by its supervisor and recovers, instead of running on with a part missing.
//! - After the wish to stop there is one deadline; whoever is not done by then is left behind (the logs recover).

use std::fmt::Display;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// What a task says at its end. Any error goes in with `?`.
pub type TaskResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// How the daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Asked to stop, and every task ended in time.
    Clean,
    /// A task ended unasked, failed or panicked.
    TaskEnded,
    /// Asked to stop, but some tasks were not done by the deadline.
    DeadlinePassed,
}

impl Exit {
    /// The process exit code: 0 clean, 1 a task ended, 3 deadline passed (2 is for usage and configuration).
    pub fn code(self) -> u8 {
        match self {
            Self::Clean => 0,
            Self::TaskEnded => 1,
            Self::DeadlinePassed => 3,
        }
    }
}

struct Ended {
    name: String,
    result: TaskResult,
}

/// The task set and its cancellation token.
#[derive(Default)]
pub struct Tasks {
    set: JoinSet<Ended>,
    token: CancellationToken,
}

impl Tasks {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// The token that every task watches; cancelled when the process shall stop.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Adds an asynchronous task. It shall end, with `Ok`, soon after the token is cancelled.
    pub fn spawn<F>(&mut self, name: impl Into<String>, task: F)
    where
        F: Future<Output = TaskResult> + Send + 'static,
    {
        let name = name.into();
        self.set.spawn(async move { Ended { name, result: task.await } });
    }

    /// Adds a task that blocks: it gets a thread of its own.
    pub fn spawn_blocking<F>(&mut self, name: impl Into<String>, task: F)
    where
        F: FnOnce() -> TaskResult + Send + 'static,
    {
        let name = name.into();
        self.set.spawn_blocking(move || Ended { name, result: task() });
    }

    /// Runs until `stop` resolves or a task ends unasked, then cancels and waits for the rest up to `deadline`.
    pub async fn run<S: Display>(mut self, stop: impl Future<Output = S>, deadline: Duration) -> Exit {
        let mut exit = tokio::select! {
            why = stop => {
                tracing::info!(why = %why, "stopping");
                Exit::Clean
            }
            Some(ended) = self.set.join_next() => {
                report(ended, true);
                Exit::TaskEnded
            }
        };
        self.token.cancel();
        let drained = tokio::time::timeout(deadline, async {
            while let Some(ended) = self.set.join_next().await {
                if !report(ended, false) && exit == Exit::Clean {
                    exit = Exit::TaskEnded;
                }
            }
        });
        if drained.await.is_err() {
            tracing::error!(left = self.set.len(), "deadline passed, stopping without the rest");
            self.set.abort_all();
            // A thread cannot be ended from outside; the caller leaves the process, and recovery does the rest.
            if exit == Exit::Clean {
                exit = Exit::DeadlinePassed;
            }
        }
        exit
    }
}

/// Logs how a task ended; true when that is fine.
fn report(ended: Result<Ended, JoinError>, unasked: bool) -> bool {
    match ended {
        Ok(Ended { name, result: Ok(()) }) if unasked => {
            tracing::error!(task = name, "task ended unasked");
            false
        }
        Ok(Ended { name, result: Ok(()) }) => {
            tracing::debug!(task = name, "task ended");
            true
        }
        Ok(Ended { name, result: Err(error) }) => {
            tracing::error!(task = name, error = %crate::log::chain(&*error), "task failed");
            false
        }
        Err(error) => {
            tracing::error!(error = %error, "task panicked");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wish_to_stop_ends_clean() {
        let mut tasks = Tasks::new();
        let token = tasks.token();
        tasks.spawn("waits", async move {
            token.cancelled().await;
            Ok(())
        });
        let exit = tasks.run(async { "test" }, Duration::from_secs(5)).await;
        assert_eq!((exit, exit.code()), (Exit::Clean, 0));
    }

    #[tokio::test]
    async fn an_unasked_end_stops_everything() {
        let mut tasks = Tasks::new();
        let token = tasks.token();
        tasks.spawn("waits", async move {
            token.cancelled().await;
            Ok(())
        });
        tasks.spawn_blocking("leaves", || Ok(()));
        assert_eq!(tasks.run(std::future::pending::<&str>(), Duration::from_secs(5)).await, Exit::TaskEnded);
    }

    #[tokio::test]
    async fn a_panic_is_an_unasked_end() {
        let mut tasks = Tasks::new();
        tasks.spawn("panics", async { panic!("on purpose") });
        assert_eq!(tasks.run(std::future::pending::<&str>(), Duration::from_secs(5)).await, Exit::TaskEnded);
    }

    #[tokio::test]
    async fn the_deadline_is_kept() {
        let mut tasks = Tasks::new();
        tasks.spawn("deaf", std::future::pending());
        assert_eq!(tasks.run(async { "test" }, Duration::from_millis(10)).await, Exit::DeadlinePassed);
    }
}
