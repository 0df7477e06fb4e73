//! `tidegate`, the command line: asks central and gateways, looks into buffers, makes certificates, builds modules,
//! replays files as if devices sent them.
//!
//! Exit codes: 0 fine, 1 found something wrong or could not do it, 2 usage. With `--json` a reading verb prints exactly one JSON
//! object, the last line of stdout; everything meant for eyes only goes to stderr then.

mod api;
mod buffer;
mod central;
mod module;
mod output;
mod pki;
mod replay;

use clap::{Parser, Subcommand};
use output::{Output, Verdict};
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "tidegate",
    version,
    about = "Asks, checks and feeds a Tidegate installation",
    max_term_width = 100
)]
struct Cli {
    /// Print one JSON object instead of text
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    noun: Noun,
}

#[derive(Subcommand)]
enum Noun {
    /// Prove that nothing was lost or doubled: every term of the conservation equation, per gateway and stream
    Audit(central::audit::Audit),
    /// Run one read-only SQL statement
    Query(central::query::Query),
    /// Gateways that central knows
    #[command(subcommand)]
    Gateway(central::gateway::Gateway),
    /// Alerts, their rules and receivers
    #[command(subcommand)]
    Alerts(central::alerts::Alerts),
    /// Events that no stream could take, with the reason
    #[command(subcommand)]
    DeadLetters(central::dead_letters::DeadLetters),
    /// Modules: make, build, check, push
    #[command(subcommand)]
    Module(module::Module),
    /// A gateway's data folder, looked at from outside
    #[command(subcommand)]
    Buffer(buffer::Buffer),
    /// Certificates: an authority, its gateways and central
    #[command(subcommand)]
    Pki(pki::Pki),
    /// Send a CSV or NDJSON file over MQTT or HTTP
    Replay(Box<replay::Replay>),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let out = Output { json: cli.json };
    // reqwest and rumqttc share this provider; a second installation cannot happen in one process.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(r) => r,
        Err(e) => {
            eprintln!("tidegate: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(cli.noun, &out)) {
        Ok(Verdict::Fine) => ExitCode::SUCCESS,
        Ok(Verdict::Wrong) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("tidegate: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(noun: Noun, out: &Output) -> anyhow::Result<Verdict> {
    match noun {
        Noun::Audit(verb) => verb.run(out).await,
        Noun::Query(verb) => verb.run(out).await,
        Noun::Gateway(verb) => verb.run(out).await,
        Noun::Alerts(verb) => verb.run(out).await,
        Noun::DeadLetters(verb) => verb.run(out).await,
        Noun::Module(verb) => verb.run(out).await,
        Noun::Buffer(verb) => verb.run(out),
        Noun::Pki(verb) => verb.run(out),
        Noun::Replay(verb) => verb.run(out).await,
    }
}
