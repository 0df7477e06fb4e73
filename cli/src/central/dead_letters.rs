//! `tidegate dead-letters`

use super::query::result;
use crate::{
    api::Central,
    output::{Output, Verdict, cell},
};
use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

/// The noun.
#[derive(Debug, Subcommand)]
pub(crate) enum DeadLetters {
    /// The newest dead letters, without their payloads
    List(List),
    /// One dead letter with its payload
    Show(Show),
}

/// The verb `list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only of this gateway
    #[arg(long)]
    gateway: Option<String>,
    /// Only for this stream
    #[arg(long)]
    stream: Option<String>,
    /// Only with this reason, e.g. `late`
    #[arg(long)]
    reason: Option<String>,
    /// How many at most
    #[arg(long, default_value_t = 50)]
    limit: u64,
    #[command(flatten)]
    central: Central,
}

/// The verb `show`.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The gateway it came from
    gateway: String,
    /// Its seq, as `list` shows it
    seq: u64,
    #[command(flatten)]
    central: Central,
}

impl DeadLetters {
    pub(crate) async fn run(self, out: &Output) -> anyhow::Result<Verdict> {
        match self {
            Self::List(verb) => {
                let mut query = vec![("limit", verb.limit.to_string())];
                for (name, value) in
                    [("gateway", verb.gateway), ("stream", verb.stream), ("reason", verb.reason)]
                {
                    query.extend(value.map(|v| (name, v)));
                }
                let answer = verb.central.api()?.get("/v1/dead-letters", &query).await?;
                out.show(&answer, |a| match a["rows"].as_array() {
                    Some(rows) if !rows.is_empty() => result(a),
                    _ => "no dead letters".into(),
                });
                Ok(Verdict::Fine)
            }
            Self::Show(verb) => {
                let query = [("gateway", verb.gateway.clone()), ("seq", verb.seq.to_string())];
                let answer = verb.central.api()?.get("/v1/dead-letters", &query).await?;
                let names = answer["columns"].as_array().map(Vec::as_slice).unwrap_or_default();
                let Some(row) = answer["rows"][0].as_array() else {
                    bail!("{} has no dead letter with seq {}", verb.gateway, verb.seq);
                };
                let pairs = names
                    .iter()
                    .zip(row)
                    .filter_map(|(c, v)| Some((c["name"].as_str()?.to_owned(), v.clone())));
                let letter = json!(pairs.collect::<serde_json::Map<_, _>>());
                out.show(&letter, show);
                Ok(Verdict::Fine)
            }
        }
    }
}

fn show(letter: &Value) -> String {
    let pairs = letter.as_object().into_iter().flatten();
    pairs.map(|(k, v)| format!("{k:<12} {}\n", cell(v))).collect()
}
