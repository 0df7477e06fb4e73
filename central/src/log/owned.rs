//! A piece of work for each thing that this process owns, as long as its lease.

use super::{Lease, Owned};
use std::collections::{BTreeMap, btree_map::Entry};
use thiserror::Error;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A piece of work ended by a panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a task ended although nobody asked it to")]
pub struct Panicked;

/// Begins work for whatever is owned, until `stop`; then what goes on is dropped wherever it stands. The token of a piece of
/// work is cancelled when its lease has ended, and the next one for the same thing begins when the old one is gone; work
/// that ends under its lease begins again.
///
/// # Errors
///
/// What the first piece of work ended with; the others are dropped.
pub async fn for_each_owned<K, E, F>(
    mut owned: Owned<K>,
    stop: CancellationToken,
    begin: impl Fn(K, Lease, CancellationToken) -> F,
) -> Result<(), E>
where
    K: Copy + Ord + Send + 'static,
    E: From<Panicked> + Send + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
{
    let mut here: BTreeMap<K, (Lease, CancellationToken)> = BTreeMap::new();
    let mut work: JoinSet<(K, Result<(), E>)> = JoinSet::new();
    let mut changes = true;
    loop {
        let now = owned.borrow_and_update().clone();
        for (thing, (lease, token)) in &here {
            if now.get(thing) != Some(lease) {
                token.cancel();
            }
        }
        for (thing, lease) in now {
            if let Entry::Vacant(place) = here.entry(thing) {
                let token = stop.child_token();
                place.insert((lease, token.clone()));
                let one = begin(thing, lease, token);
                work.spawn(async move { (thing, one.await) });
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            // A log whose owner never changes says so by closing the channel.
            changed = owned.changed(), if changes => changes = changed.is_ok(),
            Some(ended) = work.join_next() => {
                let (thing, done) = ended.map_err(|_| Panicked)?;
                done?;
                here.remove(&thing);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::{mpsc, watch};

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Ended {
        Panicked,
        Failed,
    }

    impl From<Panicked> for Ended {
        fn from(_: Panicked) -> Self {
            Self::Panicked
        }
    }

    fn owned(things: &[(u32, u64)]) -> BTreeMap<u32, Lease> {
        things.iter().map(|(thing, lease)| (*thing, Lease(*lease))).collect()
    }

    #[tokio::test]
    async fn work_lasts_as_long_as_its_lease_and_the_next_begins_behind_it() {
        let (tell, told) = watch::channel(owned(&[(1, 10), (2, 20)]));
        let (say, mut said) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let run = for_each_owned::<_, Ended, _>(told, stop.clone(), move |thing, lease, token| {
            let say = say.clone();
            async move {
                say.send(("begins", thing, lease.0)).expect("is heard");
                token.cancelled().await;
                say.send(("ends", thing, lease.0)).expect("is heard");
                Ok(())
            }
        });
        let running = tokio::spawn(run);
        let mut begun = [said.recv().await, said.recv().await];
        begun.sort();
        assert_eq!(begun, [Some(("begins", 1, 10)), Some(("begins", 2, 20))]);
        // Another lease of the one, and the other one is somebody else's.
        tell.send_replace(owned(&[(1, 11)]));
        let next = [said.recv().await, said.recv().await, said.recv().await];
        let at = |what| next.iter().position(|next| *next == Some(what)).expect("is said");
        assert!(at(("ends", 1, 10)) < at(("begins", 1, 11)), "{next:?}");
        at(("ends", 2, 20));
        stop.cancel();
        assert_eq!(running.await.expect("no panic"), Ok(()));
    }

    #[tokio::test]
    async fn work_that_ends_begins_again_and_one_that_fails_ends_all() {
        for (last, expected) in [(None, Ended::Panicked), (Some(Ended::Failed), Ended::Failed)] {
            let (_tell, told) = watch::channel(owned(&[(1, 10)]));
            let times = AtomicU32::new(0);
            let ended = for_each_owned(told, CancellationToken::new(), move |_, _, _| {
                let time = times.fetch_add(1, Ordering::Relaxed);
                async move {
                    match (time, last) {
                        (0 | 1, _) => Ok(()),
                        (_, Some(error)) => Err(error),
                        (_, None) => panic!("on purpose"),
                    }
                }
            });
            assert_eq!(ended.await, Err(expected));
        }
    }
}
