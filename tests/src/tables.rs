//! What central knows: rows in the tables, the audit, the alerts. Asked over its API, like any user.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::http_load::client;
use crate::model::WindowStats;

/// Most rows of one answer.
const ROWS_MAX: usize = 10_000;
/// Rows of one page where there may be more.
const PAGE: usize = 5_000;

/// Central's API.
#[derive(Debug, Clone, Copy)]
pub struct Api {
    address: SocketAddr,
}

impl Api {
    /// The API at an address.
    pub fn at(address: SocketAddr) -> Self {
        Self { address }
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs one SELECT.
    pub async fn query(&self, sql: &str) -> anyhow::Result<Vec<Vec<Value>>> {
        let url = format!("http://{}/v1/query", self.address);
        let body = json!({ "sql": sql, "limit": ROWS_MAX });
        let answer = client().post(url).json(&body).send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        if !status.is_success() {
            bail!("{sql}: {status}: {text}");
        }
        let answer: Value = serde_json::from_str(&text)?;
        ensure!(answer["truncated"] != true, "{sql}: more than {ROWS_MAX} rows");
        let rows = answer["rows"].as_array().context("an answer without rows")?;
        rows.iter().map(|row| row.as_array().cloned().context("a row that is no list")).collect()
    }

    /// Runs one SELECT that gives one number; 0 when the table is not there yet.
    pub async fn number(&self, sql: &str) -> anyhow::Result<u64> {
        let rows = match self.query(sql).await {
            Err(error) if is_unknown_table(&error) => return Ok(0),
            other => other?,
        };
        integer(rows.first().and_then(|row| row.first()).context("no row")?)
            .and_then(|number| u64::try_from(number).ok())
            .with_context(|| format!("{sql}: {rows:?} is not one number"))
    }

    /// Rows of a table; 0 when it is not there yet.
    pub async fn count(&self, table: &str) -> anyhow::Result<u64> {
        self.number(&format!("select count() from {}", quoted(table))).await
    }

    /// One device's rows as (time, value of a number column).
    pub async fn rows_of(&self, table: &str, device: &str, column: &str) -> anyhow::Result<Vec<(i64, f64)>> {
        let mut found = Vec::new();
        loop {
            let sql = format!(
                "select toUnixTimestamp64Nano(time), {column} from {} where device = '{device}' \
                 order by time, seq limit {PAGE} offset {}",
                quoted(table),
                found.len()
            );
            let rows = match self.query(&sql).await {
                Err(error) if is_unknown_table(&error) => return Ok(found),
                other => other?,
            };
            for row in &rows {
                let time = row.first().and_then(integer).context("a time that is no integer")?;
                let value = row.get(1).and_then(float).context("a value that is no number")?;
                found.push((time, value));
            }
            if rows.len() < PAGE {
                return Ok(found);
            }
        }
    }

    /// One device's windows of the `stats` module over `column`, by their start.
    pub async fn windows_of(
        &self,
        table: &str,
        device: &str,
        column: &str,
    ) -> anyhow::Result<Vec<(i64, WindowStats)>> {
        let sql = format!(
            "select toUnixTimestamp64Nano(time), count, {column}_min, {column}_max, {column}_mean, {column}_last \
             from {} where device = '{device}' order by time",
            quoted(table)
        );
        let rows = match self.query(&sql).await {
            Err(error) if is_unknown_table(&error) => return Ok(Vec::new()),
            other => other?,
        };
        rows.iter()
            .map(|row| {
                ensure!(row.len() == 6, "a row of {} columns", row.len());
                let number = |at: usize| float(&row[at]).context("not a number");
                let stats = WindowStats {
                    count: integer(&row[1]).and_then(|n| u64::try_from(n).ok()).context("not a count")?,
                    min: number(2)?,
                    max: number(3)?,
                    mean: number(4)?,
                    last: number(5)?,
                };
                Ok((integer(&row[0]).context("not a time")?, stats))
            })
            .collect()
    }

    /// The newest event time of every device in a table.
    pub async fn newest(&self, table: &str) -> anyhow::Result<BTreeMap<String, i64>> {
        let sql =
            format!("select device, toUnixTimestamp64Nano(max(time)) from {} group by device", quoted(table));
        let rows = match self.query(&sql).await {
            Err(error) if is_unknown_table(&error) => return Ok(BTreeMap::new()),
            other => other?,
        };
        Ok(rows
            .iter()
            .filter_map(|row| Some((row.first()?.as_str()?.to_owned(), row.get(1).and_then(integer)?)))
            .collect())
    }

    /// A new audit: every term of the conservation equation, per gateway and stream.
    pub async fn audit(&self) -> anyhow::Result<Value> {
        self.get("/v1/audit?fresh=true").await
    }

    /// The alerts that are pending or firing.
    pub async fn alerts(&self) -> anyhow::Result<Vec<Value>> {
        let answer = self.get("/v1/alerts").await?;
        Ok(answer["alerts"].as_array().cloned().unwrap_or_default())
    }

    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let url = format!("http://{}{path}", self.address);
        let answer = client().get(&url).send().await?.error_for_status()?;
        Ok(serde_json::from_str(&answer.text().await?)?)
    }
}

/// A table's name in SQL: streams may hold hyphens.
pub fn quoted(table: &str) -> String {
    format!("`{table}`")
}

/// An integer, also one that was written as text to keep its digits.
pub fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.parse().ok())
}

/// A number, also one that was written as text.
pub fn float(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok())
}

/// ClickHouse's UNKNOWN_TABLE (60): the stream has not sent anything yet. Its database may be missing too (81).
fn is_unknown_table(error: &anyhow::Error) -> bool {
    let text = error.to_string();
    text.contains("UNKNOWN_TABLE") || text.contains("UNKNOWN_DATABASE")
}
