//! What keeps a program from starting is said, at once and in whole; what is shipped in `deploy/` starts.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use link::pki::{self, Role, Validity};
use tidegate_tests::plant::Plant;
use tidegate_tests::program::{self, Program};
use tidegate_tests::simple;

fn check(program: &str, config: &Path) -> anyhow::Result<Output> {
    Ok(Command::new(program::ours(program)?).arg("--config").arg(config).arg("--check").output()?)
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

/// Only the certificates are made here: everything else is as it is shipped.
#[test]
fn shipped_configurations_are_right() -> anyhow::Result<()> {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let folder = tempfile::tempdir()?;
    let pki_folder = folder.path().join("pki");
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?;
    let valid = Validity::days(now, 1);
    pki::init(&pki_folder, "authority", valid)?;
    pki::issue(&pki_folder, "central", &Role::Server(vec!["central.example".to_owned()]), valid)?;
    pki::issue(&pki_folder, "plant-7", &Role::Gateway, valid)?;
    std::fs::create_dir(folder.path().join("rules"))?;
    for file in ["gateway.toml", "central.toml", "rules/machines.yaml"] {
        std::fs::copy(deploy.join(file), folder.path().join(file))?;
    }
    for (program, file) in [("tidegate-gateway", "gateway.toml"), ("tidegate-central", "central.toml")] {
        let out = check(program, &folder.path().join(file))?;
        ensure!(out.status.success(), "{file}: {}", said(&out));
    }
    Ok(())
}

#[test]
fn five_mistakes_are_told_at_once_with_their_places() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("gateway.toml");
    let text = r#"[gateway]
id = "plant-7"
data_dir = "data"
admin = "here"

[buffer]
quota = "lots"

[central]
url = "http://central.example:7443"
tls = { ca = "ca.pem", cert = "c.pem", key = "c.key" }

[source.floor]
kind = "mqtt-listner"
bind = "0.0.0.0:1883"

[stream.machine]
from = ["flor"]
topics = ["machines/+/telemetry"]
columns = { temperature = "float64" }
"#;
    std::fs::write(&config, text)?;
    let out = check("tidegate-gateway", &config)?;
    let said = said(&out);
    ensure!(out.status.code() == Some(2), "exit {:?}: {said}", out.status);
    for place in [
        ":3:1: gateway.data_dir",
        ":4:9: gateway.admin",
        ":7:9: buffer.quota",
        ":10:7: central.url",
        ":14:8: source.floor.kind",
        ":18:8: stream.machine.from",
    ] {
        ensure!(said.contains(place), "{place} is not told:\n{said}");
    }
    ensure!(said.contains("did you mean `data-dir`?"), "no hint:\n{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_gateway_on_the_same_folder_is_refused() -> anyhow::Result<()> {
    let mut plant = Plant::prepare(&simple::options())?;
    plant.start_gateway()?;
    plant.gateway_listens().await?;
    let config = plant.path("gateway.toml").display().to_string();
    let log = plant.path("second.log");
    let command = program::ours("tidegate-gateway")?;
    let mut second = Program::start("second gateway", &command, &["--config", &config], &log)?;
    let status = second.wait(Duration::from_secs(30))?;
    ensure!(!status.success(), "a second gateway ran");
    let said = second.log();
    ensure!(said.contains("lock") || said.contains("another process"), "it does not say why:\n{said}");
    // The first does not notice.
    plant.gateway_listens().await
}

#[test]
fn a_folder_that_is_a_file_is_said() -> anyhow::Result<()> {
    let mut plant = Plant::prepare(&simple::options())?;
    std::fs::write(plant.path("gateway-data"), "a file")?;
    plant.start_gateway()?;
    expect_end_that_says(plant.gateway.as_mut(), &["gateway-data"])
}

#[test]
fn an_engine_that_is_not_there_is_said_with_what_to_do() -> anyhow::Result<()> {
    let mut plant = Plant::prepare(&simple::options())?;
    let config = plant.path("central.toml");
    let text = std::fs::read_to_string(&config)?;
    let named = text.replace("embedded = true", "embedded = true\nlibrary = \"engine/libchdb.so\"");
    ensure!(named != text, "the plant's central has another ClickHouse");
    std::fs::write(&config, named)?;
    let out = check("tidegate-central", &config)?;
    ensure!(out.status.success(), "--check needs the engine: {}", said(&out));
    plant.start_central()?;
    let needles = ["engine/libchdb.so", "cargo xtask setup", "clickhouse.library"];
    expect_end_that_says(plant.central.as_mut(), &needles)
}

#[test]
fn a_folder_that_cannot_be_read_is_said() -> anyhow::Result<()> {
    let mut plant = Plant::prepare(&simple::options())?;
    let folder = plant.path("gateway-data");
    std::fs::create_dir(&folder)?;
    std::fs::set_permissions(&folder, Permissions::from_mode(0o000))?;
    if rustix::process::geteuid().is_root() {
        plant.gateway = Some(start_gateway_that_obeys_modes(&plant)?);
    } else {
        plant.start_gateway()?;
    }
    let end = expect_end_that_says(plant.gateway.as_mut(), &["gateway-data", "Permission denied"]);
    // Or else nobody but root could remove it.
    std::fs::set_permissions(&folder, Permissions::from_mode(0o700))?;
    end
}

/// The gateway as root, but without the capabilities that make root pass by the modes of files.
fn start_gateway_that_obeys_modes(plant: &Plant) -> anyhow::Result<Program> {
    const WITHOUT: &str = "-dac_override,-dac_read_search";
    let setpriv = program::of_system(&["setpriv"])?;
    let gateway = program::ours("tidegate-gateway")?.display().to_string();
    let config = plant.path("gateway.toml").display().to_string();
    let args = [
        "--bounding-set",
        WITHOUT,
        "--inh-caps",
        WITHOUT,
        "--",
        gateway.as_str(),
        "--config",
        config.as_str(),
    ];
    Program::start("gateway that obeys modes", &setpriv, &args, &plant.path("gateway.log"))
}

fn expect_end_that_says(program: Option<&mut Program>, needles: &[&str]) -> anyhow::Result<()> {
    let program = program.context("it was not started")?;
    let status = program.wait(Duration::from_secs(30))?;
    let said = program.log();
    ensure!(!status.success(), "it ran:\n{said}");
    for needle in needles {
        ensure!(said.contains(needle), "it does not say {needle}:\n{said}");
    }
    Ok(())
}
