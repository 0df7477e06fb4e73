//! `tidegate query`

use crate::{
    api::Central,
    output::{Output, Verdict, cell, table},
};
use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};
use std::io::Read as _;

/// The verb.
#[derive(Debug, Args)]
pub(crate) struct Query {
    /// The statement; `-` reads it from stdin
    sql: String,
    /// Rows returned at most
    #[arg(long, default_value_t = 1_000)]
    limit: u64,
    #[command(flatten)]
    central: Central,
}

impl Query {
    pub(crate) async fn run(self, out: &Output) -> anyhow::Result<Verdict> {
        let mut sql = self.sql;
        if sql == "-" {
            sql.clear();
            std::io::stdin().read_to_string(&mut sql).context("reading the statement from stdin")?;
        }
        let body = json!({ "sql": sql, "limit": self.limit });
        let answer = self.central.api()?.post("/v1/query", &body).await?;
        out.show(&answer, result);
        if answer["truncated"] == true {
            eprintln!("tidegate: there are more rows; raise --limit to see them");
        }
        Ok(Verdict::Fine)
    }
}

/// A result as a table for eyes.
pub(crate) fn result(answer: &Value) -> String {
    let columns = answer["columns"].as_array().map(Vec::as_slice).unwrap_or_default();
    let head: Vec<&str> = columns.iter().filter_map(|c| c["name"].as_str()).collect();
    let rows = answer["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows: Vec<Vec<String>> =
        rows.iter().filter_map(Value::as_array).map(|r| r.iter().map(cell).collect()).collect();
    table(&head, &rows)
}
