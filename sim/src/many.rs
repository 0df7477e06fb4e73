//! Many seeds, on all cores.

use crate::{Failure, Faults, Mutant, Outcome, Trace, run};
use std::{
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

/// What many runs came to.
#[derive(Debug, Clone)]
pub struct Record {
    /// Runs.
    pub seeds: u64,
    /// The first seed.
    pub from: u64,
    /// Time that it took.
    pub took: Duration,
    /// Events of all runs.
    pub events: u64,
    /// Simulated seconds of all runs.
    pub simulated_s: u64,
    /// What went wrong on purpose.
    pub faults: Faults,
    /// Seeds that did not hold, lowest first, and why; after the first few the rest is not run.
    pub failed: Vec<(u64, Failure)>,
}

/// So many failures are enough.
const FAILURES_MAX: usize = 10;

/// Runs `seeds` seeds from `from` on.
pub fn many(from: u64, seeds: u64) -> Record {
    let began = Instant::now();
    let (next, enough) = (AtomicU64::new(0), AtomicBool::new(false));
    let worker = || {
        let mut mine = Record {
            seeds: 0,
            from,
            took: Duration::ZERO,
            events: 0,
            simulated_s: 0,
            faults: Faults::default(),
            failed: Vec::new(),
        };
        while !enough.load(Relaxed) {
            let n = next.fetch_add(1, Relaxed);
            if n >= seeds {
                break;
            }
            let outcome = run(from + n, None, Trace::Off);
            mine.seeds += 1;
            mine.events += outcome.events;
            mine.simulated_s += outcome.simulated_ns / 1_000_000_000;
            mine.faults.add(&outcome.faults);
            if outcome.failure.is_some() {
                // The same again, now with its last steps.
                let failure = run(from + n, None, Trace::Last).failure;
                mine.failed.extend(failure.map(|f| (from + n, f)));
                enough.fetch_or(mine.failed.len() >= FAILURES_MAX, Relaxed);
            }
        }
        mine
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let all: Vec<Record> = thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().filter_map(|w| w.join().ok()).collect()
    });
    let mut sum = Record {
        seeds: 0,
        from,
        took: Duration::ZERO,
        events: 0,
        simulated_s: 0,
        faults: Faults::default(),
        failed: Vec::new(),
    };
    for one in all {
        sum.seeds += one.seeds;
        sum.events += one.events;
        sum.simulated_s += one.simulated_s;
        sum.faults.add(&one.faults);
        sum.failed.extend(one.failed);
    }
    sum.failed.sort_by_key(|(seed, _)| *seed);
    sum.took = began.elapsed();
    sum
}

/// How long a mutant lived.
#[derive(Debug, Clone)]
pub struct Hunted {
    /// Which.
    pub mutant: Mutant,
    /// Seeds that were needed, and how it showed; none when it was not found.
    pub found: Option<(u64, Failure)>,
}

/// Looks for one mutant, seed by seed from `from` on, `most` of them. A seed that does not hold without it finds nothing.
pub fn hunt(mutant: Mutant, from: u64, most: u64) -> Hunted {
    let found = (0..most).find_map(|n| {
        let Outcome { failure, .. } = run(from + n, Some(mutant), Trace::Off);
        let failure = failure.filter(|_| run(from + n, None, Trace::Off).failure.is_none());
        failure.map(|f| (n + 1, f))
    });
    Hunted { mutant, found }
}

/// Looks for all of them, on all cores.
pub fn hunt_all(from: u64, most: u64) -> Vec<Hunted> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mine = || Mutant::ALL.get(next.fetch_add(1, Relaxed));
        std::iter::from_fn(mine).map(|mutant| hunt(*mutant, from, most)).collect::<Vec<_>>()
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut all: Vec<Hunted> = thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().filter_map(|w| w.join().ok()).flatten().collect()
    });
    all.sort_by_key(|h| h.mutant);
    all
}
