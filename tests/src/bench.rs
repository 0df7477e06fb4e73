//! What the benchmarks of whole programs share: a load program that costs nothing, what a process costs, reports.

pub mod flood;
pub mod process;
pub mod report;

use crate::plant::Options;

/// Whether `--json` was asked for. Cargo adds `--bench` to what a benchmark is called with.
pub fn wants_json() -> bool {
    std::env::args().any(|a| a == "--json")
}

/// A plant with one stream of the load's events and nothing behind it.
pub fn plain_stream(name: &str) -> Options {
    let streams = format!(
        r#"[stream.{name}]
from = ["floor"]
topics = ["load/+/telemetry"]
decode = {{ format = "json", time = "ts", time-format = "ms", device = {{ topic-level = 2 }} }}
columns = {{ temperature = "float64", mode = "string" }}
"#
    );
    Options { streams, ..Options::default() }
}

/// Turns the outcome of a benchmark into an exit code: 0 when every bar holds.
pub fn exit(outcome: anyhow::Result<bool>) -> std::process::ExitCode {
    match outcome {
        Ok(true) => std::process::ExitCode::SUCCESS,
        Ok(false) => std::process::ExitCode::FAILURE,
        Err(e) => {
            eprintln!("{e:#}");
            std::process::ExitCode::from(2)
        }
    }
}
