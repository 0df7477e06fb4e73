//! Which shards are committed here: one [`Committer`] for each that this process owns, from a claim to the next.
//!
//! Invariants:
//! - a shard has at most one committer in a process, and a session finds it only after its claim;
//! - a commit in doubt ends the committer and all sessions of the shard; the next claim tells what is stored.

use super::{
    LinkConfig, LinkError, LinkParts,
    committer::{Committer, Ended, Input},
};
use crate::{
    limits::{CLAIM_BACKOFF_MAX, CLAIM_BACKOFF_MIN, COMMITTER_INPUTS},
    log::{ClaimError, CommitError, Shard, for_each_owned},
};
use std::{collections::BTreeMap, time::Duration};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// The way to the committer of each shard that has one here.
#[derive(Clone, Default)]
pub(super) struct Routes(watch::Sender<BTreeMap<Shard, mpsc::Sender<Input>>>);

impl Routes {
    pub(super) fn to(&self, shard: Shard) -> Option<mpsc::Sender<Input>> {
        self.0.borrow().get(&shard).cloned()
    }

    /// Waits until there is one.
    pub(super) async fn wait(&self, shard: Shard) -> Option<mpsc::Sender<Input>> {
        let mut routes = self.0.subscribe();
        routes.wait_for(|routes| routes.contains_key(&shard)).await.ok()?.get(&shard).cloned()
    }

    fn put(&self, shard: Shard, inputs: mpsc::Sender<Input>) {
        self.0.send_modify(|routes| drop(routes.insert(shard, inputs)));
    }

    fn take(&self, shard: Shard) {
        self.0.send_modify(|routes| drop(routes.remove(&shard)));
    }
}

/// Claims and commits what this process owns until `stop`, or until the log can no longer be used.
pub(super) async fn own_shards(
    parts: LinkParts,
    config: LinkConfig,
    routes: Routes,
    stop: CancellationToken,
) -> Result<(), LinkError> {
    let owned = parts.log.shards_owned();
    for_each_owned(owned, stop, move |shard, _lease, token| {
        let (parts, config, routes) = (parts.clone(), config.clone(), routes.clone());
        async move {
            let done = own(shard, &parts, &config, &routes, token).await;
            routes.take(shard);
            done
        }
    })
    .await
}

/// One shard, for one lease.
async fn own(
    shard: Shard,
    parts: &LinkParts,
    config: &LinkConfig,
    routes: &Routes,
    stop: CancellationToken,
) -> Result<(), LinkError> {
    let mut pause = CLAIM_BACKOFF_MIN;
    loop {
        let claimed = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            claimed = parts.log.claim(shard) => claimed,
        };
        match claimed {
            Ok(stored) => {
                tracing::debug!(%shard, records = stored.len(), "a shard is committed here");
                let (inputs, taken) = mpsc::channel(COMMITTER_INPUTS);
                let committer = Committer::new(shard, parts.clone(), config, taken, stored);
                routes.put(shard, inputs);
                parts.metrics.shards.inc();
                let ended = committer.run(stop.child_token()).await;
                parts.metrics.shards.dec();
                routes.take(shard);
                match ended {
                    Ended::Asked => return Ok(()),
                    // Where two believe that they own it, the one that is wrong hears so soon.
                    Ended::InDoubt(CommitError::Fenced) => pause = CLAIM_BACKOFF_MAX,
                    Ended::InDoubt(_) => pause = CLAIM_BACKOFF_MIN,
                }
            }
            Err(error @ ClaimError::Failed { .. }) => return Err(error.into()),
            Err(error @ ClaimError::NotOwner(_)) => {
                tracing::debug!(%shard, %error, "a shard is not claimed");
                pause = CLAIM_BACKOFF_MAX;
            }
            Err(error @ ClaimError::Unavailable { .. }) => {
                if pause == CLAIM_BACKOFF_MIN {
                    tracing::warn!(%shard, %error, "a shard is not claimed yet; its gateways wait");
                }
                parts.metrics.claim_failures.inc();
                pause = (pause * 2).min(CLAIM_BACKOFF_MAX);
            }
        }
        if rest(pause, &stop).await {
            return Ok(());
        }
    }
}

/// Whether `stop` came meanwhile.
async fn rest(pause: Duration, stop: &CancellationToken) -> bool {
    tokio::select! {
        biased;
        () = stop.cancelled() => true,
        () = tokio::time::sleep(pause) => false,
    }
}
