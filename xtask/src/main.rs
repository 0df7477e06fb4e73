//! `cargo xtask …`: everything that is done with this repository, one command each.
//!
//! Each command does its own set-up, says what it does, and is safe to repeat. Results go to stdout, everything else
//! to stderr.

mod bench;
mod build;
mod kafka;
mod run;
mod setup;
mod test;
mod workspace;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  setup                       check what is needed; install it where that is possible
  test                        all tests, exactly as the continuous integration runs them
  modules                     build the WASM modules of wasm-udfs/ into target/modules/
  demo [--kafka] [--json] [--keep]
                              the main job on real data, with crashes in the middle; on Kafka or on central's own log
  chaos [--kafka] [--rounds N] [--seed S] [--json]
                              SIGKILL at random moments under load, then compare every row; with --kafka seven programs of
                              ours, a real Kafka and ClickHouse, killed, stopped and cut off from each other
  crash-sim [--seeds N] [--seed S] [--steps N] [--json]
                              the journal on a simulated disk that crashes; --seed alone repeats one run
  sim [--seeds N] [--from S] [--json] | --seed N [--trace] | --mutants [--json]
                              the whole system in one simulated process; --mutants: mistakes made on purpose, and how many
                              seeds it takes to find each
  kafka start|run|stop|status [--dir DIR] [--set KEY=VALUE]... [--json]
                              a real Apache Kafka on loopback, one node; its folder keeps data and ports;
                              start leaves it behind, run becomes it
  bench NAME [--json]         one benchmark; without NAME the list of them
  release-gateway             the gateway as it goes onto a device: small and stripped";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = match args.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("", &[][..]),
    };
    let done = match command {
        "setup" => setup::all(),
        "test" => test::test(),
        "modules" => setup::for_modules().and_then(|()| build::programs()).and_then(|()| build::modules()),
        "demo" => build::program_of_tests("demo", rest),
        "chaos" => build::program_of_tests("chaos", rest),
        "crash-sim" => build::crash_sim(rest),
        "sim" => build::sim(rest),
        "kafka" => kafka::kafka(rest),
        "bench" => bench::bench(rest),
        "release-gateway" => build::release_gateway(),
        "" | "help" | "--help" | "-h" => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        other => {
            eprintln!("no command `{other}`\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
