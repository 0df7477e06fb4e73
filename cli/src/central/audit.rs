//! `tidegate audit`

use crate::{
    api::Central,
    output::{Output, Verdict, cell, table},
};
use clap::Args;
use serde_json::Value;

/// The verb.
#[derive(Debug, Args)]
pub(crate) struct Audit {
    /// Only this gateway
    #[arg(long)]
    gateway: Option<String>,
    /// The last periodic audit instead of a new one
    #[arg(long)]
    last: bool,
    #[command(flatten)]
    central: Central,
}

impl Audit {
    pub(crate) async fn run(self, out: &Output) -> anyhow::Result<Verdict> {
        let mut query = vec![("fresh", (!self.last).to_string())];
        query.extend(self.gateway.map(|g| ("gateway", g)));
        let answer = self.central.api()?.get("/v1/audit", &query).await?;
        out.show(&answer, report);
        Ok(Verdict::fine_if(answer["balanced"] == true))
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
