//! Seeds that hold, and mistakes that do not.

use tidegate_sim::{Fault, Mutant, Trace, hunt_all, many, run};

/// More is done by hand: `cargo xtask sim --seeds 1000000`.
const SEEDS: u64 = 10_000;
/// A mutant that lives longer is not found.
const SEEDS_PER_MUTANT: u64 = 10_000;

#[test]
fn ten_thousand_seeds_hold() {
    let record = many(0, SEEDS);
    for (seed, failure) in &record.failed {
        failure.trace.iter().for_each(|line| println!("{line}"));
        println!("seed {seed}: {}: {}", failure.kind, failure.text);
        println!("cargo xtask sim --seed {seed} --trace");
    }
    assert!(record.failed.is_empty(), "{} seeds failed", record.failed.len());
    let never: Vec<&str> =
        Fault::ALL.iter().filter(|f| record.faults.of(**f) == 0).map(|f| f.text()).collect();
    assert!(never.is_empty(), "the world was too kind; never: {never:?}");
}

#[test]
fn a_seed_replays() {
    for seed in 0..50 {
        assert_eq!(run(seed, None, Trace::Last), run(seed, None, Trace::Last), "seed {seed}");
    }
}

#[test]
fn every_mutant_is_found() {
    let hunted = hunt_all(0, SEEDS_PER_MUTANT);
    assert_eq!(hunted.len(), Mutant::ALL.len());
    let alive: Vec<&str> = hunted.iter().filter(|h| h.found.is_none()).map(|h| h.mutant.name()).collect();
    assert!(alive.is_empty(), "not found within {SEEDS_PER_MUTANT} seeds: {alive:?}");
}
