//! `tidegate-module-build --out DIR --target-dir DIR GUEST_DIR...`: builds guest crates into components.

use module_build::{BuildError, Options, Toolchain, build};
use std::{path::PathBuf, process::ExitCode};

const USAGE: &str = "usage: tidegate-module-build --out DIR --target-dir DIR GUEST_DIR...";

fn main() -> ExitCode {
    let Some((options, guests)) = arguments(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match build_all(&options, &guests) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn arguments(mut args: impl Iterator<Item = String>) -> Option<(Options, Vec<PathBuf>)> {
    let (mut out_dir, mut target_dir, mut guests) = (None, None, Vec::new());
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--out" => out_dir = Some(absolute(&args.next()?)?),
            "--target-dir" => target_dir = Some(absolute(&args.next()?)?),
            flag if flag.starts_with('-') => return None,
            dir => guests.push(dir.into()),
        }
    }
    let options = Options { out_dir: out_dir?, target_dir: target_dir?, locked: true };
    (!guests.is_empty()).then_some((options, guests))
}

/// Cargo runs in the guest's folder, where a relative path would mean another place.
fn absolute(path: &str) -> Option<PathBuf> {
    std::path::absolute(path).ok()
}

fn build_all(options: &Options, guests: &[PathBuf]) -> Result<(), BuildError> {
    let toolchain = Toolchain::find()?;
    if toolchain.builds_std() && !options.target_dir.exists() {
        eprintln!("building Rust's standard library for {} too: about a minute, once", module_build::TARGET);
    }
    for guest in guests {
        let built = build(&toolchain, guest, options)?;
        let (kib, seconds) = (built.bytes.div_ceil(1024), built.took.as_secs_f64());
        println!(
            "{}@{} {} ({kib} KiB, {seconds:.1} s)",
            built.name,
            built.version,
            built.component.display()
        );
    }
    Ok(())
}
