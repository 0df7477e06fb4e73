//! `tidegate-module-compiler --in X.wasm --out Y.cwasm`: validates a module and compiles it to native code.
//!
//! Job: one module, then the end. It bounds its own memory (address space), time and open files before it reads a byte
//! of the module, so that a module made to hurt a compiler hurts only this process.
//!
//! Exit codes: 0 compiled (the world on stdout), 1 the module is refused (why on stderr), 2 wrong use, 3 out of time,
//! 4 anything else. It never runs the module and never reads anything but the one file.

use anyhow::{Context as _, Result};
use rustix::process::{Resource, Rlimit, setrlimit};
use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{ExitCode, exit},
    thread,
    time::{Duration, Instant},
};
use udf_host::{UdfError, World, compile::compile, limits, validate::ModuleLimits};

const USAGE: &str = "usage: tidegate-module-compiler --in X.wasm --out Y.cwasm
       [--memory-bytes N] [--seconds N] [--module-bytes-max N] [--start-memory-bytes-max N] [--any-world]";

const REFUSED: u8 = 1;
const WRONG_USE: u8 = 2;
const OUT_OF_TIME: i32 = 3;
const FAILED: u8 = 4;

struct Arguments {
    component: PathBuf,
    artifact: PathBuf,
    memory_bytes: u64,
    seconds: u64,
    limits: ModuleLimits,
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(e) => {
            eprintln!("{e}\n{USAGE}");
            return ExitCode::from(WRONG_USE);
        }
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e:#}");
            let refused = matches!(e.downcast_ref(), Some(UdfError::Refused(_)));
            ExitCode::from(if refused { REFUSED } else { FAILED })
        }
    }
}

fn arguments() -> Result<Arguments, pico_args::Error> {
    let mut args = pico_args::Arguments::from_env();
    let default = ModuleLimits::default();
    let parsed = Arguments {
        component: args.value_from_os_str("--in", |s| Ok::<_, String>(s.into()))?,
        artifact: args.value_from_os_str("--out", |s| Ok::<_, String>(s.into()))?,
        memory_bytes: args.opt_value_from_str("--memory-bytes")?.unwrap_or(limits::COMPILER_MEMORY_BYTES),
        seconds: args.opt_value_from_str("--seconds")?.unwrap_or(limits::COMPILER_TIME.as_secs()),
        limits: ModuleLimits {
            module_bytes: args.opt_value_from_str("--module-bytes-max")?.unwrap_or(default.module_bytes),
            start_memory_bytes: args
                .opt_value_from_str("--start-memory-bytes-max")?
                .unwrap_or(default.start_memory_bytes),
            world: !args.contains("--any-world"),
        },
    };
    match args.finish().first() {
        None => Ok(parsed),
        Some(extra) => Err(pico_args::Error::ArgumentParsingFailed {
            cause: format!("unknown argument {}", extra.to_string_lossy()),
        }),
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let began = Instant::now();
    bound_myself(arguments)?;
    let bytes = read(&arguments.component, arguments.limits.module_bytes)?;
    let (world, artifact) = compile(&bytes, &arguments.limits)?;
    write(&arguments.artifact, artifact.as_bytes())?;
    println!(
        "{}: {} bytes of WebAssembly, {} bytes of native code, {} ms",
        world.map_or("no world of the contract", World::name),
        bytes.len(),
        artifact.as_bytes().len(),
        began.elapsed().as_millis()
    );
    Ok(())
}

/// No more memory, time or core dumps than allowed.
fn bound_myself(arguments: &Arguments) -> Result<()> {
    let set = |what, resource, limit| {
        let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
        setrlimit(resource, limit).with_context(|| format!("limiting {what}"))
    };
    set("the memory", Resource::As, arguments.memory_bytes)?;
    set("the time", Resource::Cpu, arguments.seconds.saturating_add(1))?;
    set("core dumps", Resource::Core, 0)?;
    let time = Duration::from_secs(arguments.seconds);
    let watch = move || {
        thread::sleep(time);
        eprintln!("the module took more than {} s to compile", time.as_secs());
        exit(OUT_OF_TIME)
    };
    thread::Builder::new().stack_size(64 << 10).spawn(watch).context("starting the watch")?;
    Ok(())
}

/// At most one byte more than allowed: the size check then says so.
fn read(path: &Path, max: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(|| format!("reading {}", path.display()))?;
    file.take(max.saturating_add(1))
        .read_to_end(&mut bytes)
        .with_context(|| format!("reading {}", path.display()))?;
    Ok(bytes)
}

/// Whoever reads the artifact checks its digest, so a torn file is refused; it is synced by the one who names it.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let done = File::create(path).and_then(|mut f| f.write_all(bytes));
    done.inspect_err(|_| drop(fs::remove_file(path))).with_context(|| format!("writing {}", path.display()))
}
