//! All tests, stage by stage, stopping at the first stage that fails.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::run::{run, run_seeing};
use crate::workspace::Workspace;
use crate::{build, run, setup};

/// Results of cargo's test programs, summed.
#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
}

/// Runs every stage. The last line of stdout is `N passed, N failed`.
pub(crate) fn test() -> anyhow::Result<()> {
    let mut tally = Tally::default();
    let began = Instant::now();
    let result = stages(&mut tally);
    if result.is_ok() {
        println!("all stages done in {}", show(began.elapsed()));
    } else if tally.failed == 0 {
        // A stage that is no test program (format, lints, build) counts as one failed check.
        tally.failed = 1;
    }
    if let Err(error) = &result {
        println!("FAILED: {error:#}");
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    result.context("the tests did not pass")
}

fn stages(tally: &mut Tally) -> anyhow::Result<()> {
    let workspace = Workspace::get()?;
    stage("set-up", setup::all)?;
    stage("format", || {
        run(&mut workspace.cargo(&["fmt", "--all", "--check"]))?;
        run(&mut workspace.cargo(&["fmt", "--all", "--check", "--manifest-path", "wasm-udfs/Cargo.toml"]))
    })?;
    stage("lints", || {
        run(&mut workspace.cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
    })?;
    stage("licences and bans", deny)?;
    stage("build", || {
        build::programs()?;
        run(&mut workspace.cargo(&["test", "--workspace", "--no-run"]))
    })?;
    stage("modules", build::modules)?;
    stage("unit, property and crash tests", || {
        let mut test = workspace.cargo(&["test", "--workspace", "--no-fail-fast", "--lib", "--bins"]);
        cargo_test(test.args(tests(workspace, false)), tally)?;
        cargo_test(&mut workspace.cargo(&["test", "--workspace", "--no-fail-fast", "--doc"]), tally)
    })?;
    stage("end-to-end tests", || {
        let mut test = workspace.cargo(&["test", "--workspace", "--no-fail-fast"]);
        // One at a time: each starts several programs and measures deadlines.
        cargo_test(test.args(tests(workspace, true)).args(["--", "--test-threads=1"]), tally)
    })
}

/// `--test NAME` for the end-to-end tests, or for those of the rooms. All are chosen by name, never by package: a part of
/// the workspace has other features in its dependencies, and cargo would build them a second time.
fn tests(workspace: &Workspace, end_to_end: bool) -> Vec<String> {
    let all = workspace.targets("test").into_iter();
    let chosen = all.filter(|test| (test.package == "tidegate-tests") == end_to_end);
    chosen.flat_map(|test| ["--test".to_owned(), test.name]).collect()
}

fn deny() -> anyhow::Result<()> {
    if !run::on_path("cargo-deny") {
        println!("cargo-deny is not installed here: skipped");
        return Ok(());
    }
    run(&mut Workspace::get()?.cargo(&["deny", "check", "bans", "licenses", "sources"]))
}

fn cargo_test(command: &mut Command, tally: &mut Tally) -> anyhow::Result<()> {
    let success = run_seeing(command, |line| {
        if let Some((passed, failed)) = read_result(line) {
            tally.passed += passed;
            tally.failed += failed;
        }
    })?;
    if success { Ok(()) } else { bail!("a test failed") }
}

/// `test result: ok. 18 passed; 0 failed; …`
fn read_result(line: &str) -> Option<(u64, u64)> {
    let rest = line.strip_prefix("test result: ")?;
    let number = |word: &str| -> Option<u64> {
        let before = &rest[..rest.find(word)?];
        before.trim_end().rsplit(' ').next()?.parse().ok()
    };
    Some((number(" passed")?, number(" failed")?))
}

fn stage(name: &str, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    println!("== {name}");
    let began = Instant::now();
    work().with_context(|| name.to_owned())?;
    println!("== {name}: {}", show(began.elapsed()));
    Ok(())
}

fn show(time: Duration) -> String {
    match time.as_secs() {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        seconds => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read() {
        let line = "test result: FAILED. 17 passed; 1 failed; 2 ignored; 0 measured; 3 filtered out; finished in 0.19s";
        assert_eq!(read_result(line), Some((17, 1)));
        assert_eq!(read_result("test config::tests::x ... ok"), None);
    }
}
