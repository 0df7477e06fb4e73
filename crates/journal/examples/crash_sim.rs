//! The simulation of `tests/crashes.rs` for as many seeds as wanted.
//!
//! `cargo run -p journal --example crash-sim -- [--seeds 1000] [--seed 0] [--steps 150] [--json]`

#[path = "../tests/model/mod.rs"]
mod model;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    str::FromStr,
    time::Instant,
};

const USAGE: &str = "\
crash-sim [--seeds N] [--seed S] [--steps N] [--json]

  --seeds N   how many seeds (default 1000; with --seed only that one)
  --seed S    the first seed (default 0)
  --steps N   random actions with each (default 150)
  --json      one object on stdout";

struct Flags {
    first: u64,
    seeds: u64,
    steps: u32,
    json: bool,
}

fn flags(mut args: impl Iterator<Item = String>) -> Result<Flags, String> {
    let (mut first, mut seeds, mut steps, mut json) = (None, None, 150, false);
    while let Some(name) = args.next() {
        match name.as_str() {
            "--seed" => first = Some(number(&name, args.next())?),
            "--seeds" => seeds = Some(number(&name, args.next())?),
            "--steps" => steps = number(&name, args.next())?,
            "--json" => json = true,
            other => return Err(format!("unknown argument {other}")),
        }
    }
    let seeds = seeds.unwrap_or(if first.is_some() { 1 } else { 1000 });
    Ok(Flags { first: first.unwrap_or(0), seeds, steps, json })
}

fn number<N: FromStr>(name: &str, value: Option<String>) -> Result<N, String> {
    let value = value.ok_or_else(|| format!("{name} needs a number"))?;
    value.parse().map_err(|_| format!("{name} {value}: not a number that fits"))
}

fn main() -> ExitCode {
    let Flags { first, seeds, steps, json } = match flags(std::env::args().skip(1)) {
        Ok(flags) => flags,
        Err(why) => {
            eprintln!("crash-sim: {why}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let started = Instant::now();
    let mut sum = model::Counts::default();
    for seed in first..first.saturating_add(seeds) {
        let Ok(counts) = catch_unwind(AssertUnwindSafe(|| model::run(seed, steps))) else {
            eprintln!("seed {seed} failed: run it alone with --seed {seed} --steps {steps}");
            if json {
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
    if json {
        println!(
            "{{\"name\":\"crash-sim\",\"holds\":true,\"seeds\":{seeds},\"appends\":{},\"crashes\":{},\"kills\":{},\"poisoned\":{},\"no_space\":{},\"torn_bytes\":{},\"seconds\":{seconds:.1}}}",
            sum.appends, sum.crashes, sum.kills, sum.poisoned, sum.no_space, sum.torn_bytes
        );
    }
    ExitCode::SUCCESS
}
