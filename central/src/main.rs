//! `tidegate-central`: reads its configuration and runs the stages of the library.

use daemon::log::{Format, Level};
use std::{path::PathBuf, process::ExitCode};
use tidegate_central::config::{Config, Roles};

const HELP: &str = "\
tidegate-central: takes blocks from gateways, keeps them, writes ClickHouse, judges alert rules

  --config FILE     central.toml
  --roles LIST      link,sink,alerts,api,audit,fanout; what this process does, instead of what the file
                    says; without both all but fanout
  --check           check the configuration and everything it points to, then exit
  --log-format F    text (default) or json
  --log-level L     error, warn, info (default) or debug
  --version, --help
";

struct Arguments {
    config: PathBuf,
    roles: Option<Roles>,
    check: bool,
    format: Format,
    level: Level,
}

/// What the command line asks for; `None` when it was answered already.
fn arguments() -> anyhow::Result<Option<Arguments>> {
    let mut args = pico_args::Arguments::from_env();
    if args.contains(["-h", "--help"]) {
        print!("{HELP}");
        return Ok(None);
    }
    if args.contains(["-V", "--version"]) {
        println!("tidegate-central {}", env!("CARGO_PKG_VERSION"));
        return Ok(None);
    }
    let roles: Option<String> = args.opt_value_from_str("--roles")?;
    let roles = roles.map(|r| Roles::parse(r.split(','))).transpose().map_err(anyhow::Error::msg)?;
    let format = match args.opt_value_from_str::<_, String>("--log-format")?.as_deref() {
        None | Some("text") => Format::Text,
        Some("json") => Format::Json,
        Some(other) => anyhow::bail!("--log-format {other:?} is neither text nor json"),
    };
    let level = match args.opt_value_from_str::<_, String>("--log-level")?.as_deref() {
        Some("error") => Level::Error,
        Some("warn") => Level::Warn,
        None | Some("info") => Level::Info,
        Some("debug") => Level::Debug,
        Some(other) => anyhow::bail!("--log-level {other:?} is not error, warn, info or debug"),
    };
    let check = args.contains("--check");
    let config = args.value_from_str("--config")?;
    let rest = args.finish();
    anyhow::ensure!(rest.is_empty(), "unknown arguments: {rest:?}");
    Ok(Some(Arguments { config, roles, check, format, level }))
}

fn main() -> ExitCode {
    let args = match arguments() {
        Ok(Some(args)) => args,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidegate-central: {error:#}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    let config = match Config::load(&args.config, args.roles) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    if args.check {
        return match tidegate_central::check(&config) {
            Ok(()) => {
                println!("{}: fine", args.config.display());
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("{}: {error}", args.config.display());
                ExitCode::from(2)
            }
        };
    }
    daemon::log::init(args.format, args.level);
    match start(config) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "central could not start");
            ExitCode::FAILURE
        }
    }
}

fn start(config: Config) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let exit = runtime.block_on(async {
        let stop = daemon::signal::stop()?;
        Ok::<_, anyhow::Error>(tidegate_central::run(config, stop).await?)
    });
    // Threads that still wait for a disk or for work are not waited for, also after a start that failed half-way: the
    // process is done, and every start recovers.
    runtime.shutdown_background();
    Ok(exit?.code())
}
