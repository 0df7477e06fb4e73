//! `sim`: runs seeds of the simulation; see the library.

use std::process::ExitCode;
use tidegate_sim::{Fault, Mutant, Record, Trace, hunt_all, many, run};

const USAGE: &str = "\
usage: sim [--seeds N] [--from S] [--json]
       sim --seed N [--trace] [--mutant NAME]
       sim --mutants [--seeds N] [--from S] [--json]

  --seeds N      so many runs (1000); with --mutants so many for each at most (5000)
  --from S       the first seed (0)
  --seed N       this one only; --trace prints each step
  --mutants      deliberate mistakes: how many seeds it takes to find each
  --mutant NAME  the seed with this mistake
  --json         one object on stdout";

struct Flags {
    seeds: Option<u64>,
    from: u64,
    seed: Option<u64>,
    trace: bool,
    mutants: bool,
    mutant: Option<Mutant>,
    json: bool,
}

fn flags() -> Result<Flags, String> {
    let mut args = pico_args::Arguments::from_env();
    let text = |e: pico_args::Error| e.to_string();
    if args.contains("--help") {
        return Err(String::new());
    }
    let named = |name: &str| Mutant::named(name).ok_or_else(|| format!("there is no mutant {name:?}"));
    let flags = Flags {
        seeds: args.opt_value_from_str("--seeds").map_err(text)?,
        from: args.opt_value_from_str("--from").map_err(text)?.unwrap_or(0),
        seed: args.opt_value_from_str("--seed").map_err(text)?,
        trace: args.contains("--trace"),
        mutants: args.contains("--mutants"),
        mutant: args.opt_value_from_fn("--mutant", named).map_err(text)?,
        json: args.contains("--json"),
    };
    let left = args.finish();
    if left.is_empty() { Ok(flags) } else { Err(format!("what is {left:?}?")) }
}

fn main() -> ExitCode {
    let flags = match flags() {
        Ok(flags) => flags,
        Err(why) => {
            eprintln!("{why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let holds = if let Some(seed) = flags.seed {
        one(seed, &flags)
    } else if flags.mutants {
        mutants(&flags)
    } else {
        let record = many(flags.from, flags.seeds.unwrap_or(1_000));
        if flags.json {
            println!("{}", json(&record))
        } else {
            show(&record)
        }
        record.failed.is_empty()
    };
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn one(seed: u64, flags: &Flags) -> bool {
    let trace = if flags.trace { Trace::Print } else { Trace::Last };
    let outcome = run(seed, flags.mutant, trace);
    println!("seed {seed}: {} events, {} s simulated", outcome.events, outcome.simulated_ns / 1_000_000_000);
    match outcome.failure {
        None => println!("holds"),
        Some(ref failure) => {
            if !flags.trace {
                failure.trace.iter().for_each(|line| println!("{line}"));
            }
            println!("{}: {}", failure.kind, failure.text);
        }
    }
    outcome.failure.is_none()
}

fn mutants(flags: &Flags) -> bool {
    let most = flags.seeds.unwrap_or(10_000);
    let hunted = hunt_all(flags.from, most);
    if flags.json {
        let all: Vec<_> = hunted
            .iter()
            .map(|h| {
                serde_json::json!({
                    "mutant": h.mutant.name(),
                    "breaks": h.mutant.text(),
                    "seeds": h.found.as_ref().map(|(n, _)| n),
                    "shows_as": h.found.as_ref().map(|(_, f)| &f.kind),
                })
            })
            .collect();
        println!(
            "{}",
            serde_json::json!({ "name": "mutants", "from": flags.from, "most": most, "mutants": all })
        );
    } else {
        println!("| mutant | what is wrong | seeds | shows as |\n| --- | --- | --- | --- |");
        for h in &hunted {
            let (seeds, shows) = match &h.found {
                Some((n, failure)) => (n.to_string(), failure.kind.as_str()),
                None => (format!("not in {most}"), ""),
            };
            println!("| {} | {} | {seeds} | {shows} |", h.mutant.name(), h.mutant.text());
        }
    }
    hunted.iter().all(|h| h.found.is_some())
}

fn show(record: &Record) {
    for (seed, failure) in &record.failed {
        failure.trace.iter().for_each(|line| println!("{line}"));
        println!("seed {seed}: {}: {}\n", failure.kind, failure.text);
    }
    for fault in Fault::ALL {
        println!("{:>12}  {}", record.faults.of(*fault), fault.text());
    }
    let seconds = record.took.as_secs_f64();
    println!(
        "{} seeds from {} in {seconds:.1} s ({:.0} a second): {} events, {} faults, {} hours simulated; {} failed",
        record.seeds,
        record.from,
        record.seeds as f64 / seconds,
        record.events,
        record.faults.total(),
        record.simulated_s / 3_600,
        record.failed.len(),
    );
    for (seed, _) in &record.failed {
        println!("cargo xtask sim --seed {seed} --trace");
    }
}

fn json(record: &Record) -> serde_json::Value {
    let faults: serde_json::Map<_, _> =
        Fault::ALL.iter().map(|f| (f.name().to_owned(), record.faults.of(*f).into())).collect();
    let failed: Vec<_> = record
        .failed
        .iter()
        .map(|(seed, f)| serde_json::json!({ "seed": seed, "kind": f.kind, "text": f.text }))
        .collect();
    serde_json::json!({
        "name": "sim",
        "holds": record.failed.is_empty(),
        "seeds": record.seeds,
        "from": record.from,
        "seconds": record.took.as_secs_f64(),
        "events": record.events,
        "simulated_seconds": record.simulated_s,
        "faults": faults,
        "failed": failed,
    })
}
