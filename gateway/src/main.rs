//! `tidegate-gateway --config gateway.toml [--check]`

use anyhow::Context;
use daemon::{log, signal};
use std::{path::PathBuf, process::ExitCode};
use tidegate_gateway::config::Config;

const USAGE: &str = "\
The Tidegate gateway.

    tidegate-gateway --config gateway.toml [--check]

    --config FILE   what to do
    --check         look whether the file is right, and exit
    --version       name and version

Exit code: 0 fine, 1 a stage failed, 2 usage or configuration, 3 stopped without finishing in time.";

fn main() -> ExitCode {
    let (config, check) = match arguments() {
        Ok(Some(arguments)) => arguments,
        Ok(None) => return ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let config = match Config::read(&config) {
        Ok(config) => config,
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::from(2);
        }
    };
    if check {
        println!("the configuration is right");
        return ExitCode::SUCCESS;
    }
    log::init(if config.log_json { log::Format::Json } else { log::Format::Text }, log::Level::Info);
    match run(config) {
        Ok(code) => {
            // A thread that is still inside a module or a sync must not keep the process: recovery does the rest.
            std::process::exit(i32::from(code));
        }
        Err(e) => {
            tracing::error!(error = format!("{e:#}"), "the gateway does not start");
            ExitCode::from(1)
        }
    }
}

fn run(config: Config) -> anyhow::Result<u8> {
    // The provider of cryptography is chosen once for the whole process; a second choice would be refused.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    let exit = runtime.block_on(async {
        let stop = signal::stop().context("watch for signals")?;
        tidegate_gateway::run(config, stop).await.context("start")
    });
    // Not waited for, also after a start that failed half-way: threads of what did start wait for work.
    runtime.shutdown_background();
    Ok(exit?.code())
}

fn arguments() -> Result<Option<(PathBuf, bool)>, pico_args::Error> {
    let mut args = pico_args::Arguments::from_env();
    if args.contains(["-h", "--help"]) {
        println!("{USAGE}");
        return Ok(None);
    }
    if args.contains("--version") {
        println!("tidegate-gateway {}", env!("CARGO_PKG_VERSION"));
        return Ok(None);
    }
    let check = args.contains("--check");
    let config: PathBuf = args.value_from_str("--config")?;
    match args.finish().first() {
        Some(rest) => Err(pico_args::Error::ArgumentParsingFailed {
            cause: format!("{} is not understood", rest.to_string_lossy()),
        }),
        None => Ok(Some((config, check))),
    }
}
