//! `tidegate audit`

use crate::{
    api::Central,
    output::{Output, Verdict, cell, table},
};
use clap::Args;
use serde_json::Value;
use std::time::Duration;

/// How long an audit may take that reads much of the log again; central gives up a little earlier.
const PATIENCE: Duration = Duration::from_secs(620);

/// The verb.
#[derive(Debug, Args)]
pub(crate) struct Audit {
    /// Show only this gateway; the verdict is over all
    #[arg(long)]
    gateway: Option<String>,
    /// Show only this stream; the verdict is over all
    #[arg(long)]
    stream: Option<String>,
    /// Read again what came into the log since then: a time like 2026-03-01T08:00:00Z, or how long ago, like 2h
    #[arg(long, value_name = "T")]
    since: Option<String>,
    /// Compare the values in the tables with the records that are read again
    #[arg(long)]
    values: bool,
    /// The last periodic audit instead of a new one
    #[arg(long, conflicts_with_all = ["since", "values"])]
    last: bool,
    #[command(flatten)]
    central: Central,
}

impl Audit {
    pub(crate) async fn run(self, out: &Output) -> anyhow::Result<Verdict> {
        let fresh = (!self.last).to_string();
        let mut query =
            vec![("fresh", fresh.clone()), ("reread", fresh), ("values", self.values.to_string())];
        let words = [("gateway", self.gateway), ("stream", self.stream), ("since", self.since)];
        query.extend(words.into_iter().filter_map(|(name, word)| Some((name, word?))));
        let answer = self.central.api()?.patient(PATIENCE)?.get("/v1/audit", &query).await?;
        out.show(&answer, report);
        Ok(Verdict::fine_if(answer["balanced"] == true && list(&answer["unsafe_tables"]).is_empty()))
    }
}

fn list(v: &Value) -> &[Value] {
    v.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn report(answer: &Value) -> String {
    let mut out = String::new();
    for g in list(&answer["gateways"]) {
        out.push_str(&format!("gateway {}\n", cell(&g["gateway"])));
        let rows: Vec<Vec<String>> = list(&g["streams"]).iter().map(stream).collect();
        let head = [
            "stream",
            "received",
            "repeats",
            "kept",
            "filtered",
            "aggregated",
            "dead",
            "dropped",
            "produced",
            "last seq",
            "log",
            "table",
            "lost",
            "doubled",
            "",
        ];
        for line in table(&head, &rows).lines() {
            out.push_str(&format!("  {line}\n"));
        }
        let terms = [
            ("dead letters written", "dead_letters_written"),
            ("dead letters counted", "dead_letters_counted"),
        ];
        let words: Vec<String> = terms.iter().map(|(w, k)| format!("{w} {}", cell(&g[*k]))).collect();
        out.push_str(&format!("  {}\n", words.join(", ")));
        for s in list(&g["streams"]) {
            let head = &s["chain"];
            if !head.is_null() {
                out.push_str(&format!("  chain of {}: {}\n", cell(&s["stream"]), cell(head)));
            }
        }
    }
    out.push_str(&views(list(&answer["views"])));
    let again = &answer["reread"];
    if !again.is_null() {
        let (records, bytes) = (cell(&again["records"]), cell(&again["bytes"]));
        out.push_str(&format!("log read again: {records} records, {bytes} bytes\n"));
    }
    for u in list(&answer["unsafe_tables"]) {
        out.push_str(&format!("UNSAFE {}\n", cell(u)));
    }
    for p in list(&answer["problems"]) {
        out.push_str(&format!("PROBLEM {}\n", cell(p)));
    }
    for n in list(&answer["notes"]) {
        out.push_str(&format!("note: {}\n", cell(n)));
    }
    let verdict = if answer["balanced"] == true { "BALANCED" } else { "NOT BALANCED" };
    out.push_str(&format!(
        "{verdict}: {} lost, {} duplicated\n",
        cell(&answer["lost"]),
        cell(&answer["duplicated"])
    ));
    out
}

fn views(all: &[Value]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let row = |v: &Value| {
        let compared = v["not_compared"].is_null();
        let count = |key: &str| if compared { cell(&v[key]) } else { "–".to_owned() };
        let safe = if v["safe"] == true { "safe" } else { "UNSAFE" };
        let mut row = vec![cell(&v["view"]), cell(&v["stream"]), cell(&v["target"]), cell(&v["window"])];
        row.extend([count("missing"), count("extra"), safe.to_owned(), cell(&v["not_compared"])]);
        row
    };
    let rows: Vec<Vec<String>> = all.iter().map(row).collect();
    let head = ["view", "stream", "target", "window", "missing", "too many", "", "not compared, because"];
    let lines = table(&head, &rows);
    format!("views\n{}", lines.lines().map(|l| format!("  {l}\n")).collect::<String>())
}

fn stream(s: &Value) -> Vec<String> {
    let c = &s["counts"];
    let mut row = vec![cell(&s["stream"])];
    for term in
        ["received", "repeats", "kept", "filtered", "aggregated", "dead_lettered", "dropped", "produced"]
    {
        row.push(if c.is_null() { "–".into() } else { cell(&c[term]) });
    }
    for term in ["last_seq", "log_rows", "table_rows", "lost", "duplicated"] {
        row.push(cell(&s[term]));
    }
    row.push(if list(&s["problems"]).is_empty() { "ok" } else { "WRONG" }.into());
    row
}
