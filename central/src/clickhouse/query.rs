//! Questions of users and rules: read-only, bounded, and answered as JSON values.

use super::{ClickHouse, ClickhouseError};
use crate::rules::{QueryError, QueryLimits, QuerySource, ResultColumn, Table};
use async_trait::async_trait;
use serde_json::Value;
use tokio::time::timeout;

/// Names, types, then one JSON array a row.
const FORMAT: &str = "JSONCompactEachRowWithNamesAndTypes";

/// Asks with `readonly = 2`: the server refuses whatever writes, and the embedded one also whatever reaches files or
/// networks. With a server of your own, give central's user no right to table functions, if users may ask anything.
#[derive(Debug, Clone)]
pub struct Reader(ClickHouse);

impl Reader {
    /// Questions to this server; names without a database mean central's.
    pub fn new(clickhouse: ClickHouse) -> Self {
        Self(clickhouse)
    }

    async fn ask(&self, sql: &str, limits: QueryLimits) -> Result<bytes::Bytes, ClickhouseError> {
        let seconds = limits.timeout.as_secs().max(1);
        let mut answer = self
            .0
            .client()?
            .with_database(self.0.database())
            .query_raw(sql)
            .with_setting("readonly", "2")
            .with_setting("max_execution_time", seconds.to_string())
            .with_setting("max_result_rows", (limits.rows_max as u64).saturating_add(1).to_string())
            .with_setting("result_overflow_mode", "break")
            .fetch_bytes(FORMAT)?;
        timeout(limits.timeout, answer.collect())
            .await
            .map_err(|_| ClickhouseError::Timeout(limits.timeout))?
            .map_err(Into::into)
    }
}

#[async_trait]
impl QuerySource for Reader {
    async fn query(&self, sql: &str, limits: QueryLimits) -> Result<Table, QueryError> {
        let bytes = self.ask(sql, limits).await.map_err(|error| match error {
            ClickhouseError::Refused { code: 60 | 81, text } => QueryError::UnknownTable(text),
            ClickhouseError::Refused { code: 159, .. } | ClickhouseError::Timeout(_) => {
                QueryError::Timeout(limits.timeout)
            }
            ClickhouseError::Refused { text, .. } => QueryError::Refused(text),
            ClickhouseError::Unexpected(text) => QueryError::Refused(text),
            other => QueryError::Unreachable(other.to_string()),
        })?;
        table(&bytes, limits.rows_max).map_err(QueryError::Refused)
    }
}

fn table(bytes: &[u8], rows_max: usize) -> Result<Table, String> {
    let mut lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    let mut words = || -> Result<Vec<String>, String> {
        let Some(line) = lines.next() else { return Ok(Vec::new()) };
        serde_json::from_slice(line).map_err(|e| format!("the result's header: {e}"))
    };
    let (names, types) = (words()?, words()?);
    let columns = names.into_iter().zip(types).map(|(name, ty)| ResultColumn { name, ty }).collect();
    let mut rows: Vec<Vec<Value>> = Vec::new();
    let mut truncated = false;
    for line in lines {
        if rows.len() == rows_max {
            truncated = true;
            break;
        }
        rows.push(serde_json::from_slice(line).map_err(|e| format!("a row of the result: {e}"))?);
    }
    Ok(Table { columns, rows, truncated })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_and_cut() {
        let text = b"[\"a\", \"b\"]\n[\"UInt8\", \"String\"]\n[1, \"x\"]\n[2, \"y\\nz\"]\n";
        let all = table(text, 9).expect("valid");
        assert_eq!((all.columns[1].ty.as_str(), all.rows.len(), all.truncated), ("String", 2, false));
        let one = table(text, 1).expect("valid");
        assert_eq!((one.rows.len(), one.truncated), (1, true));
        assert_eq!(table(b"", 1), Ok(Table::default()));
        assert!(table(b"[\"a\"]\n[\"UInt8\"]\nCode: 1", 1).is_err());
    }
}
