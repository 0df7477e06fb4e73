//! `tidegate-clickhouse`: ClickHouse's HTTP interface over the engine's library (libchdb), for one machine.
//!
//! Job: serve one data folder to programs on this machine as a ClickHouse server would: statements, inserts in any of the
//! engine's formats, results, errors.
//!
//! Invariants:
//! - data is never SQL: an insert's body goes to the engine as data, whatever it contains;
//! - one statement a request, by the count of the engine's own parser;
//! - the read-only pool changes nothing and reads nothing but tables;
//! - one process per data folder; loopback only.
//!
//! It never decides what a statement does by looking at its text, and never keeps state between requests.

mod engine;
mod error;
mod framing;
mod library;
mod limits;
mod pool;
mod request;
mod serve;
mod statement;

use anyhow::Context as _;
use std::{
    fs::{File, TryLockError},
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

const USAGE: &str = "\
tidegate-clickhouse --data-dir DIR [options]

  --data-dir DIR        the engine's folder; made when it is not there
  --listen ADDR         a loopback address (default 127.0.0.1:8123; port 0 chooses one)
  --library FILE        libchdb.so (default: $TIDEGATE_LIBCHDB, else the cache folder of `cargo xtask setup`)
  --password-file FILE  the first line is the password of the users default and readonly
  --parent-pid PID      end when this parent is gone
";

struct Flags {
    data_dir: PathBuf,
    listen: SocketAddr,
    library: Option<PathBuf>,
    password_file: Option<PathBuf>,
    parent: Option<u32>,
}

fn flags() -> anyhow::Result<Option<Flags>> {
    let mut args = pico_args::Arguments::from_env();
    if args.contains(["-h", "--help"]) {
        return Ok(None);
    }
    let flags = Flags {
        data_dir: args.value_from_str("--data-dir")?,
        listen: args.opt_value_from_str("--listen")?.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8123))),
        library: args.opt_value_from_str("--library")?,
        password_file: args.opt_value_from_str("--password-file")?,
        parent: args.opt_value_from_str("--parent-pid")?,
    };
    let rest = args.finish();
    anyhow::ensure!(rest.is_empty(), "unknown arguments {rest:?}");
    anyhow::ensure!(
        flags.listen.ip().is_loopback(),
        "--listen {}: this server has no users, roles or TLS, so it listens on a loopback address only",
        flags.listen
    );
    Ok(Some(flags))
}

fn main() -> ExitCode {
    let flags = match flags() {
        Ok(Some(flags)) => flags,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(e) => {
            eprintln!("tidegate-clickhouse: {e:#}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    daemon::log::init(daemon::log::Format::default(), daemon::log::Level::default());
    match run(flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("tidegate-clickhouse: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: Flags) -> anyhow::Result<()> {
    let password = flags.password_file.as_deref().map(read_password).transpose()?;
    std::fs::create_dir_all(&flags.data_dir)
        .with_context(|| format!("cannot make the data folder {}", flags.data_dir.display()))?;
    let data = flags.data_dir.canonicalize()?;
    let _lock = lock(&data)?;
    let path = library::find(flags.library)?;
    let lib = engine::Library::load(&path)
        .with_context(|| format!("cannot load the engine's library {}", path.display()))?;
    let engine = Arc::new(pool::Engine::open(lib, &data).context("cannot open the engine")?);
    tracing::info!(library = lib.version(), engine = engine.version, data = %data.display(), "engine open");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served =
        runtime.block_on(serve::serve(engine.clone(), password, flags.listen, flags.parent, |addr| {
            let mut out = std::io::stdout();
            writeln!(out, "listening {addr}")?;
            out.flush()
        }));
    runtime.shutdown_timeout(limits::SHUTDOWN);
    let stopped = engine.close();
    tracing::info!(engine_stopped = stopped, "closed");
    served.context("cannot serve")
}

fn read_password(file: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("cannot read the password file {}", file.display()))?;
    let password = text.lines().next().unwrap_or_default().to_owned();
    anyhow::ensure!(!password.is_empty(), "the password file {} is empty", file.display());
    Ok(password)
}

/// Holds the folder against a second process; the lock goes with the process, also when it is killed.
fn lock(data: &Path) -> anyhow::Result<File> {
    let path = data.join("tidegate-clickhouse.lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            anyhow::bail!("another process serves the data folder {}", data.display())
        }
        Err(TryLockError::Error(e)) => Err(e).with_context(|| format!("cannot lock {}", path.display())),
    }
}
