//! `cargo xtask chaos [--kafka] [--rounds N] [--seed S] [--json]`: things are broken at random moments under load. Exits 1
//! when an acknowledged event is lost or doubled, an aggregate is wrong, or the audit does not balance.

use std::process::ExitCode;

use clap::Parser;
use serde_json::Value;
use tidegate_tests::chaos::{Settings, embedded, real};

/// Things are broken at random moments under load; then every row is compared.
#[derive(Debug, Parser)]
struct Args {
    /// Central on five processes with a real Kafka, and everything may be killed, stopped or cut off; without it: SIGKILL
    /// of gateway, central and ClickHouse
    #[arg(long)]
    kafka: bool,
    /// Times that something is broken
    #[arg(long, default_value_t = 10)]
    rounds: u64,
    /// Names the run's random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let settings = Settings { rounds: args.rounds, seed: args.seed };
    let outcome = if args.kafka {
        real::run(settings).await.map(|outcome| (outcome.holds(), outcome.json()))
    } else {
        embedded::run(settings).await.map(|outcome| (outcome.holds(), outcome.json()))
    };
    let (holds, outcome) = match outcome {
        Ok(outcome) => outcome,
        Err(error) => {
            eprintln!("chaos: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    if args.json {
        println!("{outcome}");
    } else {
        report(holds, &outcome);
    }
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The same for people.
fn report(holds: bool, outcome: &Value) {
    println!("{}", if holds { "EVERY EVENT ONCE" } else { "FAILED" });
    let wrong = ["problems", "examples"];
    for (name, value) in outcome.as_object().into_iter().flatten() {
        if !wrong.contains(&name.as_str()) {
            println!("{}: {value}", name.replace('_', " "));
        }
    }
    for text in wrong.iter().flat_map(|name| outcome[*name].as_array().into_iter().flatten()) {
        println!("WRONG: {}", text.as_str().unwrap_or_default());
    }
}
