//! Our programs accept the configurations of `deploy/compose.yaml`, with the secrets that its script makes elsewhere.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use tempfile::TempDir;
use tidegate_tests::program;

fn deploy() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy"))
}

#[test]
fn the_programs_accept_the_configurations_of_compose() -> anyhow::Result<()> {
    let folder = TempDir::with_prefix("tidegate-compose-")?;
    let script = folder.path().join("prepare.sh");
    std::fs::copy(deploy().join("compose/prepare.sh"), &script)?;
    let programs = program::ours("tidegate")?.parent().context("a program has a folder")?.to_owned();
    let path = std::env::join_paths(
        std::iter::once(programs).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    )?;
    let made = Command::new("sh").arg(&script).env("PATH", &path).output()?;
    ensure!(made.status.success(), "prepare.sh: {}", String::from_utf8_lossy(&made.stderr));
    let again = Command::new("sh").arg(&script).env("PATH", &path).output()?;
    ensure!(!again.status.success(), "it overwrites what is there");

    let secrets = folder.path().join("secrets").display().to_string();
    let rules = deploy().join("rules").display().to_string();
    for (program, config) in [
        ("tidegate-central", "central-1.toml"),
        ("tidegate-central", "central-2.toml"),
        ("tidegate-gateway", "gateway.toml"),
    ] {
        let text = std::fs::read_to_string(deploy().join("compose").join(config))?;
        let text = text.replace("/run/secrets", &secrets).replace("/etc/tidegate/rules", &rules);
        let file = folder.path().join(config);
        std::fs::write(&file, text)?;
        let checked =
            Command::new(program::ours(program)?).arg("--config").arg(&file).arg("--check").output()?;
        let said = String::from_utf8_lossy(&checked.stderr).into_owned();
        ensure!(checked.status.success(), "{config}: {said}");
    }
    Ok(())
}
