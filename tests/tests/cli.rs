//! The command line, verb by verb, against programs that run: what README and docs tell a person to type.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use tidegate_tests::plant::{Options, Plant};
use tidegate_tests::simple::{self, STREAM};
use tidegate_tests::{nab, program, wait};

const DEADLINE: Duration = Duration::from_secs(60);

/// What a call of `tidegate` did.
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    /// The one JSON object, the last line of stdout.
    fn json(&self) -> anyhow::Result<Value> {
        let last = self.out.lines().last().context("nothing on stdout")?;
        serde_json::from_str(last).with_context(|| self.out.clone())
    }
}

fn tidegate(folder: &Path, args: &[&str]) -> anyhow::Result<Said> {
    let done = Command::new(program::ours("tidegate")?).args(args).current_dir(folder).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Said { code: done.status.code().unwrap_or(-1), out: text(&done.stdout), err: text(&done.stderr) })
}

/// The same, and it has to be fine.
fn fine(folder: &Path, args: &[&str]) -> anyhow::Result<Said> {
    let said = tidegate(folder, args)?;
    ensure!(said.code == 0, "tidegate {}: exit {}\n{}{}", args.join(" "), said.code, said.out, said.err);
    Ok(said)
}

#[test]
fn an_authority_issues_revokes_and_overwrites_nothing() -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir()?;
    fine(dir.path(), &["pki", "init", "pki"])?;
    fine(dir.path(), &["pki", "issue", "central", "--dir", "pki", "--server", "localhost,127.0.0.1"])?;
    fine(dir.path(), &["pki", "issue", "plant-7", "--dir", "pki"])?;
    for key in ["ca.key", "central.key", "plant-7.key"] {
        let mode = std::fs::metadata(dir.path().join("pki").join(key))?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "{key} has mode {mode:o}");
    }
    let again = tidegate(dir.path(), &["pki", "init", "pki"])?;
    ensure!(again.code == 1 && again.err.contains("ca."), "{}{}", again.out, again.err);
    fine(dir.path(), &["pki", "revoke", "pki/plant-7.pem"])?;
    ensure!(!std::fs::read_to_string(dir.path().join("pki/revoked.txt"))?.trim().is_empty());
    let usage = tidegate(dir.path(), &["pki", "issue"])?;
    ensure!(usage.code == 2, "wrong use: exit {}", usage.code);
    Ok(())
}

#[test]
fn a_new_module_builds_and_is_checked() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wasm-udfs/sdk");
    let sdk = sdk.to_str().context("not UTF-8")?;
    let guests = program::ours("tidegate")?.with_file_name("../guests");
    let guests = guests.to_str().context("not UTF-8")?;
    for (name, kind) in [("hot", "filter"), ("scaled", "transform"), ("sums", "aggregate")] {
        fine(dir.path(), &["module", "new", name, "--kind", kind, "--sdk", sdk])?;
        // Where the toolchain brings no standard library for modules, it is built once for all of them.
        let build = ["module", "build", name, "--out", "modules", "--target-dir", guests, "--json"];
        let built = fine(dir.path(), &build)?.json()?;
        let component = built["component"].as_str().context("no component")?;
        let checked = fine(dir.path(), &["module", "check", component, "--json"])?.json()?;
        ensure!(checked["fine"] == true && checked["world"] == kind, "{checked}");
    }
    std::fs::write(dir.path().join("none.wasm"), b"\0asm what is this")?;
    let refused = tidegate(dir.path(), &["module", "check", "none.wasm"])?;
    ensure!(refused.code == 1 && refused.out.contains("none.wasm"), "{}{}", refused.out, refused.err);
    Ok(())
}

fn options() -> Options {
    let mut streams = simple::stream(&["floor", "api"]);
    streams.push_str(&format!(
        "\n[stream.hot]\nfrom = [\"{STREAM}\"]\nmodule = \"threshold@0.1.0\"\n\
         with = {{ column = \"value\", above = 90.0 }}\n"
    ));
    Options { streams, modules: vec!["threshold"], ..Options::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replay_query_audit_and_all_that_looks() -> anyhow::Result<()> {
    let plant = Plant::start(&options()).await?;
    let here = plant.path("");
    let central = format!("http://{}", plant.api.address());
    let look = |args: &[&str]| fine(&here, &[args, &["--central", &central, "--json"]].concat());

    // The real file over MQTT, and some of it again over HTTP as another device.
    let file = nab::path();
    let file = file.to_str().context("not UTF-8")?;
    let to = format!("mqtt://{}", plant.mqtt);
    let columns = ["--rename", "value=value", "--rename", "timestamp=ts", "--time-column", "timestamp"];
    let mqtt =
        ["replay", file, "--to", &to, "--topic", "t/{device}/data", "--limit", "2000", "--device", "m"];
    fine(&here, &[&mqtt[..], &columns].concat())?;
    let to = format!("http://{}/v1/ingest/{STREAM}?device=h", plant.http);
    let http = ["replay", file, "--to", &to, "--limit", "500"];
    fine(&here, &[&http[..], &columns].concat())?;
    simple::send(&plant, "bad", vec![b"not json".to_vec()].into()).await?;
    plant.rows(STREAM, 2_500, DEADLINE).await?;
    plant.rows("dead_letters", 1, DEADLINE).await?;

    let sql = format!("select device, count() as n from {STREAM} group by device order by device");
    let rows = look(&["query", &sql])?.json()?;
    ensure!(rows["rows"].as_array().is_some_and(|rows| rows.len() == 2), "{rows}");
    let drop = tidegate(&here, &["query", "drop table telemetry", "--central", &central])?;
    ensure!(drop.code == 1, "a statement that changes something: exit {}\n{}", drop.code, drop.out);

    let balanced = wait::until("a balanced audit", DEADLINE, async || {
        let audit = look(&["audit"]).ok()?.json().ok()?;
        (audit["balanced"] == true).then_some(audit)
    });
    let audit = balanced.await?;
    ensure!(audit["lost"] == 0 && audit["duplicated"] == 0, "{audit}");
    let gateways = look(&["gateway", "list"])?.json()?;
    ensure!(gateways.to_string().contains("plant-1"), "{gateways}");
    look(&["gateway", "status", "plant-1"])?;
    look(&["alerts", "list"])?;
    let letters = look(&["dead-letters", "list"])?.json()?;
    ensure!(letters["rows"].as_array().is_some_and(|rows| rows.len() == 1), "{letters}");
    let shown = look(&["dead-letters", "show", "plant-1", "1"])?;
    ensure!(shown.out.contains("not json"), "{letters}\n{}", shown.out);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modules_are_pushed_activated_and_rolled_back_and_stay() -> anyhow::Result<()> {
    let mut plant = Plant::prepare(&options())?;
    plant.start_gateway()?;
    plant.gateway_listens().await?;
    let here = plant.path("");
    let gateway = format!("http://{}", plant.admin);
    let at = ["--gateway", gateway.as_str(), "--json"];
    let verb = |args: &[&str]| fine(&here, &[args, &at].concat());
    let file = program::module("threshold")?;
    let file = file.to_str().context("not UTF-8")?;
    wait::until_true("the module from the configuration", DEADLINE, async || {
        verb(&["module", "show", "threshold@0.1.0"]).is_ok()
    })
    .await?;

    verb(&["module", "push", file, "threshold@0.2.0", "--no-activate"])?;
    let active = |said: &Said, version: &str| -> anyhow::Result<bool> {
        let all = said.json()?;
        let modules = all["modules"].as_array().context("no modules")?;
        Ok(modules.iter().any(|m| m["name"] == "threshold" && m["version"] == version && m["active"] == true))
    };
    ensure!(!active(&verb(&["module", "list"])?, "0.2.0")?, "pushed with --no-activate");
    verb(&["module", "activate", "threshold@0.2.0"])?;
    verb(&["module", "rollback", "threshold"])?;
    ensure!(active(&verb(&["module", "list"])?, "0.1.0")?, "rolled back to the configured version");
    verb(&["module", "activate", "threshold@0.2.0"])?;
    ensure!(active(&verb(&["module", "list"])?, "0.2.0")?, "activated");
    // What is active stays active in the next life.
    plant.kill_gateway();
    plant.start_gateway()?;
    plant.gateway_listens().await?;
    ensure!(active(&verb(&["module", "list"])?, "0.2.0")?, "after a restart");
    verb(&["module", "push", file, "threshold@0.3.0"])?;
    ensure!(active(&verb(&["module", "list"])?, "0.3.0")?, "pushed and active");
    verb(&["module", "rollback", "threshold"])?;
    ensure!(active(&verb(&["module", "list"])?, "0.2.0")?, "rolled back");

    // And the buffer from outside, while the gateway runs and when it does not.
    simple::send(&plant, "press", simple::payloads(0, 100, 10)).await?;
    for life in ["running", "stopped"] {
        let status = fine(&here, &["buffer", "status", "gateway-data", "--json"])?;
        ensure!(status.json()?.is_object(), "{life}: {}", status.out);
        let check = fine(&here, &["buffer", "check", "gateway-data", "--json"])?;
        ensure!(check.json()?.is_object(), "{life}: {}", check.out);
        let export = fine(&here, &["buffer", "export", "gateway-data"])?;
        ensure!(
            !export.out.is_empty() && export.out.lines().all(|l| l.starts_with('{')),
            "{life}: {}",
            export.out
        );
        plant.kill_gateway();
    }
    Ok(())
}
