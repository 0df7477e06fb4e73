//! `cargo xtask chaos [--rounds N] [--seed S] [--json]`: SIGKILL at random moments under load. Exits 1 when an
//! acknowledged event is lost or doubled, an aggregate is wrong, or the audit does not balance.

use std::process::ExitCode;

use clap::Parser;
use tidegate_tests::chaos::{self, Settings};

/// SIGKILL at random moments under load; then every row is compared.
#[derive(Debug, Parser)]
struct Args {
    /// Kills
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
    let outcome = match chaos::run(Settings { rounds: args.rounds, seed: args.seed }).await {
        Ok(outcome) => outcome,
        Err(error) => {
            eprintln!("chaos: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    if args.json {
        println!("{}", outcome.json());
    } else {
        println!(
            "{}: seed {}, {} rounds (gateway {}, central {}, clickhouse {} killed), {} events acknowledged, {} sent again, \
             {} rows, {} windows, {} lost, {} doubled, balanced: {}, {:.0} s",
            if outcome.holds() { "EVERY EVENT ONCE" } else { "FAILED" },
            outcome.seed,
            outcome.rounds,
            outcome.kills[0],
            outcome.kills[1],
            outcome.kills[2],
            outcome.acknowledged,
            outcome.repeated,
            outcome.rows,
            outcome.windows,
            outcome.raw.lost + outcome.raw.foreign,
            outcome.raw.doubled,
            outcome.balanced,
            outcome.seconds,
        );
        for example in
            outcome.raw.examples.iter().chain(&outcome.aggregates.examples).chain(&outcome.problems)
        {
            println!("WRONG: {example}");
        }
    }
    if outcome.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
