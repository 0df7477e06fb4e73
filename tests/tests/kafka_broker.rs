//! `cargo xtask kafka`: the broker of the tests is a real one, and comes back with its data after a SIGKILL.

use std::process::Command;

use anyhow::ensure;
use serde_json::Value;
use tempfile::TempDir;
use tidegate_tests::kafka::Kafka;
use tidegate_tests::program;

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_survives_a_kill_with_its_data_and_address() -> anyhow::Result<()> {
    if std::env::var_os("TIDEGATE_TEST_KAFKA").is_some() {
        return Ok(());
    }
    let mut kafka = Kafka::start(&[]).await?;
    let address = kafka.address().to_owned();
    kafka.create_topic("t", 1, &[("cleanup.policy", "delete")])?;
    kafka.produce("t", "one\ntwo\n")?;
    kafka.kill()?;
    kafka.restart().await?;
    ensure!(kafka.address() == address, "{address}, then {}", kafka.address());
    kafka.produce("t", "three\n")?;
    let records = kafka.consume("t", 3, &["offset"])?;
    ensure!(records == ["Offset:0\tone", "Offset:1\ttwo", "Offset:2\tthree"], "{records:?}");
    Ok(())
}

#[test]
fn without_java_the_error_says_what_installs_it() -> anyhow::Result<()> {
    let folder = TempDir::new()?;
    let dir = folder.path().join("broker").display().to_string();
    let ask = |what: &str| {
        let mut xtask = Command::new(program::ours("xtask")?);
        Ok::<_, anyhow::Error>(xtask.args(["kafka", what, "--dir", &dir]).env("PATH", "/nowhere").output()?)
    };
    let start = ask("start")?;
    let said = String::from_utf8_lossy(&start.stderr).into_owned();
    let line = "apt-get install -y default-jre-headless maven";
    ensure!(!start.status.success() && said.contains(line) && said.trim().lines().count() == 1, "{said}");
    ensure!(ask("status")?.status.success(), "what needs no Java goes without");
    Ok(())
}

#[test]
fn a_folder_is_started_once_stopped_and_asked() -> anyhow::Result<()> {
    let folder = TempDir::new()?;
    let dir = folder.path().join("broker").display().to_string();
    let ask = |what: &str| -> anyhow::Result<Value> {
        let out =
            Command::new(program::ours("xtask")?).args(["kafka", what, "--json", "--dir", &dir]).output()?;
        ensure!(out.status.success(), "{what}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(serde_json::from_slice(&out.stdout)?)
    };
    ensure!(ask("status")?["state"] == "stopped");
    let first = ask("start")?;
    ensure!(first["answers"] == true && first == ask("start")? && first == ask("status")?, "{first}");
    let stopped = ask("stop")?;
    ensure!(stopped["state"] == "stopped" && stopped["port"] == first["port"], "{stopped}");
    ensure!(ask("stop")?["state"] == "stopped");
    let wrong = Command::new(program::ours("xtask")?).args(["kafka", "halt"]).output()?;
    ensure!(
        !wrong.status.success()
            && String::from_utf8_lossy(&wrong.stderr).contains("use start, run, stop or status")
    );
    Ok(())
}
