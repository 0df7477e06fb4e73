//! Building, and running what was built.
//!
//! Everything for tests and demonstration is built by one and the same cargo call over the whole workspace, so that
//! no dependency is compiled twice with different features.

use std::path::PathBuf;

use anyhow::Context;

use crate::run::{become_program, run};
use crate::setup;
use crate::workspace::Workspace;

/// All programs, with the profile of tests and demonstration.
pub(crate) fn programs() -> anyhow::Result<()> {
    // Without xtask itself: it is running, and was built a moment ago.
    run(&mut Workspace::get()?.cargo(&["build", "--workspace", "--bins", "--exclude", "xtask"]))
}

/// All programs, optimised, for benchmarks of whole programs; this one too, which starts their broker.
pub(crate) fn release_programs() -> anyhow::Result<()> {
    run(&mut Workspace::get()?.cargo(&["build", "--release", "--workspace", "--bins"]))
}

/// The WASM modules, into `target/modules/`.
pub(crate) fn modules() -> anyhow::Result<()> {
    let workspace = Workspace::get()?;
    let guests = guests()?;
    let mut build = std::process::Command::new(workspace.program("tidegate-module-build"));
    build.arg("--out").arg(workspace.target.join("modules"));
    build.arg("--target-dir").arg(workspace.target.join("guests"));
    // What it prints is progress; stdout belongs to results.
    build.args(guests).stdout(std::io::stderr());
    run(&mut build)
}

/// The guest crates: every folder of `wasm-udfs/` that makes a module.
fn guests() -> anyhow::Result<Vec<PathBuf>> {
    let folder = Workspace::get()?.root.join("wasm-udfs");
    let mut guests = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        let manifest = std::fs::read_to_string(path.join("Cargo.toml")).unwrap_or_default();
        if manifest.contains("cdylib") {
            guests.push(path);
        }
    }
    guests.sort();
    Ok(guests)
}

/// Builds everything, then becomes a program of the `tests` package.
pub(crate) fn program_of_tests(name: &str, args: &[String]) -> anyhow::Result<()> {
    setup::demonstration()?;
    eprintln!("building");
    programs()?;
    modules()?;
    let workspace = Workspace::get()?;
    become_program(std::process::Command::new(workspace.program(name)).args(args))
}

/// The journal's crash simulation, optimised, for as many seeds as wanted.
pub(crate) fn crash_sim(args: &[String]) -> anyhow::Result<()> {
    let mut command = Workspace::get()?.cargo(&[
        "run",
        "--release",
        "--package",
        "journal",
        "--example",
        "crash-sim",
        "--",
    ]);
    become_program(command.args(args))
}

/// The simulation of the whole system, optimised.
pub(crate) fn sim(args: &[String]) -> anyhow::Result<()> {
    let workspace = Workspace::get()?;
    run(&mut workspace.cargo(&["build", "--release", "--package", "tidegate-sim", "--bin", "sim"]))?;
    become_program(std::process::Command::new(workspace.target.join("release").join("sim")).args(args))
}

/// The gateway for devices.
pub(crate) fn release_gateway() -> anyhow::Result<()> {
    let workspace = Workspace::get()?;
    run(&mut workspace.cargo(&["build", "--profile", "dist", "--package", "tidegate-gateway"]))?;
    let path = workspace.target.join("dist").join("tidegate-gateway");
    let bytes = std::fs::metadata(&path).with_context(|| format!("no {}", path.display()))?.len();
    eprintln!("{} {:.1} MB", path.display(), bytes as f64 / 1e6);
    Ok(())
}
