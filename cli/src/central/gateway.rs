//! `tidegate gateway`

use crate::{
    api::Central,
    output::{Output, Verdict, cell, table},
};
use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::Value;

/// The noun.
#[derive(Debug, Subcommand)]
pub(crate) enum Gateway {
    /// Every gateway that central ever heard of
    List(List),
    /// One gateway, stream by stream; exit code 1 when it is not connected or something was quarantined
    Status(Status),
}

/// The verb `list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    central: Central,
}

/// The verb `status`.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// The gateway's id
    gateway: String,
    #[command(flatten)]
    central: Central,
}

impl Gateway {
    pub(crate) async fn run(self, out: &Output) -> anyhow::Result<Verdict> {
        match self {
            Self::List(verb) => {
                let answer = verb.central.api()?.get("/v1/gateways", &[]).await?;
                out.show(&answer, list);
                Ok(Verdict::Fine)
            }
            Self::Status(verb) => {
                let answer = verb.central.api()?.get("/v1/gateways", &[]).await?;
                let all = answer["gateways"].as_array().map(Vec::as_slice).unwrap_or_default();
                let Some(one) = all.iter().find(|g| g["gateway"] == verb.gateway.as_str()) else {
                    bail!("central has never heard of a gateway {:?}", verb.gateway);
                };
                out.show(one, status);
                let quarantined = streams(one).iter().any(|s| !s["quarantined"].is_null());
                Ok(Verdict::fine_if(one["connected"] == true && !quarantined))
            }
        }
    }
}

fn streams(gateway: &Value) -> &[Value] {
    gateway["streams"].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn list(answer: &Value) -> String {
    let all = answer["gateways"].as_array().map(Vec::as_slice).unwrap_or_default();
    if all.is_empty() {
        return "no gateway has connected yet".into();
    }
    let row = |g: &Value| {
        let rows: u64 = streams(g).iter().filter_map(|s| s["rows"].as_u64()).sum();
        vec![
            cell(&g["gateway"]),
            if g["connected"] == true { "connected" } else { "away" }.to_owned(),
            cell(&g["partition"]),
            streams(g).len().to_string(),
            rows.to_string(),
            cell(&g["heard_at"]),
        ]
    };
    let rows: Vec<Vec<String>> = all.iter().map(row).collect();
    table(&["gateway", "link", "partition", "streams", "rows", "counts heard"], &rows)
}

fn status(g: &Value) -> String {
    let mut out = format!(
        "gateway {}, {}\n\n",
        cell(&g["gateway"]),
        if g["connected"] == true { "connected" } else { "not connected" },
    );
    let row = |s: &Value| {
        let c = &s["counts"];
        vec![
            cell(&s["stream"]),
            cell(&s["last_seq"]),
            cell(&s["rows"]),
            cell(&c["received"]),
            cell(&c["repeats"]),
            cell(&c["filtered"]),
            cell(&c["aggregated"]),
            cell(&c["dead_lettered"]),
            cell(&c["dropped"]),
            cell(&s["incarnation"]),
        ]
    };
    let rows: Vec<Vec<String>> = streams(g).iter().map(row).collect();
    out.push_str(&table(
        &[
            "stream",
            "last seq",
            "rows",
            "received",
            "repeats",
            "filtered",
            "aggregated",
            "dead",
            "dropped",
            "incarnation",
        ],
        &rows,
    ));
    for s in streams(g).iter().filter(|s| !s["quarantined"].is_null()) {
        out.push_str(&format!(
            "quarantined in {}: {}\n",
            cell(&s["stream"]),
            cell(&s["quarantined"]["reason"])
        ));
    }
    out
}
