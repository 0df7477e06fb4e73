//! The simulation of `tests/crashes.rs` for as many seeds as wanted.
//!
//! `cargo run -p journal --example crash-sim -- --seeds 100000 [--first 0] [--steps 150] [--json]`

#[path = "../tests/model/mod.rs"]
mod model;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::Instant,
};

fn number(args: &[String], name: &str, default: u64) -> u64 {
    let at = args.iter().position(|arg| arg == name);
    at.and_then(|at| args.get(at + 1)).and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let (first, seeds) = (number(&args, "--first", 0), number(&args, "--seeds", 1000));
    let steps = number(&args, "--steps", 150) as u32;
    let started = Instant::now();
    let mut sum = model::Counts::default();
    for seed in first..first + seeds {
        let Ok(counts) = catch_unwind(AssertUnwindSafe(|| model::run(seed, steps))) else {
            eprintln!("seed {seed} failed: run it alone with --first {seed} --seeds 1 --steps {steps}");
            if args.iter().any(|arg| arg == "--json") {
                println!("{{\"name\":\"crash-sim\",\"holds\":false,\"failed_seed\":{seed}}}");
            }
            return ExitCode::FAILURE;
        };
        sum.appends += counts.appends;
        sum.crashes += counts.crashes;
        sum.kills += counts.kills;
        sum.poisoned += counts.poisoned;
        sum.no_space += counts.no_space;
        sum.torn_bytes += counts.torn_bytes;
        sum.trimmed_bytes += counts.trimmed_bytes;
    }
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("{seeds} seeds in {seconds:.1} s: {sum:?}");
    if args.iter().any(|arg| arg == "--json") {
        println!(
            "{{\"name\":\"crash-sim\",\"holds\":true,\"seeds\":{seeds},\"appends\":{},\"crashes\":{},\"kills\":{},\"poisoned\":{},\"no_space\":{},\"torn_bytes\":{},\"seconds\":{seconds:.1}}}",
            sum.appends, sum.crashes, sum.kills, sum.poisoned, sum.no_space, sum.torn_bytes
        );
    }
    ExitCode::SUCCESS
}
