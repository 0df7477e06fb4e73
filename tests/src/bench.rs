//! What the benchmarks of whole programs share: loads that cost next to nothing, central's processes, what a process, a disk
//! and loopback can do and cost, reports.

pub mod blocks;
pub mod bursts;
pub mod feed;
pub mod flood;
pub mod plain;
pub mod process;
pub mod report;
pub mod site;

use crate::plant::Options;

/// Whether `--json` was asked for. Cargo adds `--bench` to what a benchmark is called with.
pub fn wants_json() -> bool {
    std::env::args().any(|a| a == "--json")
}

/// The word behind an argument.
pub fn word(name: &str) -> Option<String> {
    std::env::args().skip_while(|arg| arg != name).nth(1)
}

/// The number behind an argument, or the usual one.
pub fn number(name: &str, usual: u64) -> anyhow::Result<u64> {
    let Some(word) = word(name) else { return Ok(usual) };
    word.parse().map_err(|_| anyhow::anyhow!("{name} {word}: not a number"))
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
