//! Metrics that Prometheus' own linter accepts, on both programs; and everything in `deploy/` that speaks of metrics
//! speaks of metrics that exist.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use tidegate_tests::machines;
use tidegate_tests::plant::Plant;
use tidegate_tests::scrape::{self, Metrics};
use tidegate_tests::{program, simple, webhook};

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn promtool(args: &[&str], input: &str) -> anyhow::Result<()> {
    let mut child = Command::new(program::of_system(&["promtool"])?)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("stdin was asked for")?.write_all(input.as_bytes())?;
    let out = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "promtool {args:?}: {said}\n{input}");
    Ok(())
}

/// Every word of an expression that looks like one of our metrics, without a histogram's suffixes.
fn metrics_in(expression: &str) -> BTreeSet<String> {
    expression
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("tidegate_") || word.starts_with("process_"))
        .map(|word| {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| word.strip_suffix(suffix));
            base.unwrap_or(word).to_owned()
        })
        .collect()
}

/// Adds every metric name that stands in quotes in a source file below a folder.
fn collect_names(folder: &Path, names: &mut BTreeSet<String>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            collect_names(&path, names)?;
        } else {
            let text = std::fs::read_to_string(&path)?;
            let quoted =
                text.split('"').filter(|t| t.starts_with("tidegate_") && !t.contains(char::is_whitespace));
            names.extend(quoted.map(str::to_owned));
        }
    }
    Ok(())
}

/// All expressions of the dashboards and the alerting rules, with where they stand.
fn expressions() -> anyhow::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(deploy().join("grafana"))? {
        let path = entry?.path();
        let name = path.display().to_string();
        let dashboard: Value =
            serde_json::from_str(&std::fs::read_to_string(&path)?).context(name.clone())?;
        let panels = dashboard["panels"].as_array().with_context(|| format!("{name} has no panels"))?;
        for panel in panels {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let expression =
                    target["expr"].as_str().with_context(|| format!("{name}: a target without expr"))?;
                found.push((format!("{name}: {}", panel["title"]), expression.to_owned()));
            }
        }
    }
    let rules = std::fs::read_to_string(deploy().join("prometheus/tidegate-alerts.yml"))?;
    for line in rules.lines().filter_map(|line| line.trim().strip_prefix("expr: ")) {
        found.push(("tidegate-alerts.yml".to_owned(), line.to_owned()));
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_are_clean_and_deploy_speaks_of_those_that_exist() -> anyhow::Result<()> {
    let webhook = webhook::Webhook::listen().await?;
    let mut options = machines::options(&webhook.url());
    options.streams.push_str(&simple::stream(&["floor"]));
    let plant = Plant::start(&options).await?;
    // A little of everything, so that metrics with labels have shown themselves.
    simple::send(&plant, "press", simple::payloads(0, 10, 0)).await?;
    let bad: Vec<Vec<u8>> = vec![b"not json".to_vec()];
    simple::send(&plant, "bad", bad.into()).await?;
    plant.rows(simple::STREAM, 10, Duration::from_secs(60)).await?;
    plant.rows("dead_letters", 1, Duration::from_secs(60)).await?;

    let mut names = BTreeSet::new();
    for address in [plant.admin, plant.api.address()] {
        let text = scrape::text(address).await?;
        promtool(&["check", "metrics"], &text)?;
        for name in Metrics::parse(&text).names() {
            names.extend(metrics_in(&name));
        }
    }
    // A family that has no sample yet (no failure so far) shows only in the programs' text.
    for folder in ["gateway/src", "central/src", "crates/daemon/src"] {
        collect_names(&deploy().join("..").join(folder), &mut names)?;
    }
    let expressions = expressions()?;
    ensure!(expressions.len() > 20, "only {} expressions found", expressions.len());
    for (place, expression) in expressions {
        let used = metrics_in(&expression);
        ensure!(!used.is_empty(), "{place}: `{expression}` names no metric of ours");
        let unknown: Vec<&String> = used.difference(&names).collect();
        ensure!(unknown.is_empty(), "{place}: `{expression}` names {unknown:?}, which nobody exports");
    }
    Ok(())
}

#[test]
fn prometheus_accepts_rules_and_configuration() -> anyhow::Result<()> {
    let folder = deploy().join("prometheus");
    promtool(&["check", "rules", &folder.join("tidegate-alerts.yml").display().to_string()], "")?;
    promtool(&["check", "config", &folder.join("prometheus.yml").display().to_string()], "")
}
