//! `tidegate alerts`

use crate::{
    api::Central,
    output::{Output, Verdict, cell, table},
};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

/// The noun.
#[derive(Debug, Subcommand)]
pub(crate) enum Alerts {
    /// Pending and firing alerts, rules that fail or wait for a table, receivers that lag
    List(List),
    /// Send a test alert and its end to every receiver
    Test(Test),
}

/// The verb `list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Exit with 1 while an alert fires or a rule fails
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    central: Central,
}

/// The verb `test`.
#[derive(Debug, Args)]
pub(crate) struct Test {
    #[command(flatten)]
    central: Central,
}

impl Alerts {
    pub(crate) async fn run(self, out: &Output) -> anyhow::Result<Verdict> {
        match self {
            Self::List(verb) => {
                let answer = verb.central.api()?.get("/v1/alerts", &[]).await?;
                out.show(&answer, list);
                let fires = array(&answer["alerts"]).iter().any(|a| a["phase"] == "firing");
                let fails = array(&answer["rules"]).iter().any(|r| !r["last_error"].is_null());
                Ok(Verdict::fine_if(!verb.check || !(fires || fails)))
            }
            Self::Test(verb) => {
                let answer = verb.central.api()?.post("/v1/alerts/test", &json!({})).await?;
                out.show(&answer, |a| {
                    let ids: Vec<String> = array(&a["ids"]).iter().map(cell).collect();
                    format!(
                        "TidegateTest and its end are on their way to {} receivers ({}); `tidegate alerts list` shows what waits",
                        cell(&a["receivers"]),
                        ids.join(", ")
                    )
                });
                Ok(Verdict::Fine)
            }
        }
    }
}

fn array(v: &Value) -> &[Value] {
    v.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn labels(v: &Value) -> String {
    let pairs = v.as_object().into_iter().flatten().filter(|(k, _)| *k != "alertname");
    pairs.map(|(k, v)| format!("{k}={}", cell(v))).collect::<Vec<_>>().join(" ")
}

fn list(answer: &Value) -> String {
    let alerts = array(&answer["alerts"]);
    let rows: Vec<Vec<String>> = alerts
        .iter()
        .map(|a| {
            vec![
                cell(&a["labels"]["alertname"]),
                cell(&a["phase"]),
                cell(&a["active_since"]),
                cell(&a["value"]),
                labels(&a["labels"]),
                cell(&a["annotations"]["summary"]),
            ]
        })
        .collect();
    let mut out = match rows.as_slice() {
        [] => "no alert is pending or firing\n".to_owned(),
        rows => table(&["alert", "state", "since", "value", "labels", "summary"], rows),
    };
    for r in array(&answer["rules"]).iter().filter(|r| !r["last_error"].is_null()) {
        out.push_str(&format!("rule {} fails: {}\n", cell(&r["rule"]), cell(&r["last_error"])));
    }
    for r in array(&answer["rules"]).iter().filter(|r| !r["unknown_table"].is_null()) {
        let (rule, why) = (cell(&r["rule"]), cell(&r["unknown_table"]));
        out.push_str(&format!("rule {rule} waits for a table that is not there: {why}\n"));
    }
    for r in array(&answer["receivers"]).iter().filter(|r| r["pending"] != 0 || r["failures"] != 0) {
        out.push_str(&format!(
            "receiver {}: {} waiting, {} failures in a row\n",
            cell(&r["receiver"]),
            cell(&r["pending"]),
            cell(&r["failures"])
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failing_and_waiting_rules_are_told_apart() {
        let rule = |name: &str, error: Option<&str>, table: Option<&str>| json!({ "rule": name, "last_error": error, "unknown_table": table });
        let answer = json!({
            "alerts": [],
            "rules": [rule("g/Fine", None, None), rule("g/Broken", Some("syntax"), None), rule("g/Early", None, Some("no m"))],
            "receivers": [],
        });
        let lines = [
            "no alert is pending or firing",
            "rule g/Broken fails: syntax",
            "rule g/Early waits for a table that is not there: no m",
        ];
        assert_eq!(list(&answer).lines().collect::<Vec<_>>(), lines);
    }
}
