//! What the rules need from the rest of central: answers to read-only SQL, and how far the sink has come.

use super::sql::Positions;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Duration;

/// Bounds of one query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueryLimits {
    /// Rows returned at most; what is over is left out and [`Table::truncated`] says so.
    pub rows_max: usize,
    /// Time after which the query is given up.
    pub timeout: Duration,
}

/// A column of a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultColumn {
    /// Name.
    pub name: String,
    /// ClickHouse's name of its type.
    #[serde(rename = "type")]
    pub ty: String,
}

/// A result: rows of JSON values in the order of the columns.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// Columns.
    pub columns: Vec<ResultColumn>,
    /// Rows.
    pub rows: Vec<Vec<Value>>,
    /// Whether rows were left out because of [`QueryLimits::rows_max`].
    #[serde(default)]
    pub truncated: bool,
}

/// Why a query has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// The table is not there: no row of its stream has been stored yet, or there is no such stream.
    #[error("{0}")]
    UnknownTable(String),
    /// ClickHouse refused or failed it; the message is for the author of the SQL.
    #[error("clickhouse refused the query: {0}")]
    Refused(String),
    /// ClickHouse could not be asked.
    #[error("clickhouse is not reachable: {0}")]
    Unreachable(String),
    /// It took too long.
    #[error("the query took longer than {0:?}")]
    Timeout(Duration),
}

impl QueryError {
    /// One word for a metric.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::UnknownTable(_) => "unknown_table",
            Self::Refused(_) => "refused",
            Self::Unreachable(_) => "unreachable",
            Self::Timeout(_) => "timeout",
        }
    }
}

/// Something that answers read-only SQL.
#[async_trait]
pub trait QuerySource: Send + Sync {
    /// Runs one statement with a user that can change nothing.
    async fn query(&self, sql: &str, limits: QueryLimits) -> Result<Table, QueryError>;
}

/// How far the sink has come.
#[async_trait]
pub trait Frontier: Send + Sync {
    /// The offset before which every row is in its table, per partition; the error says why it is not known now.
    async fn committed(&self) -> Result<Positions, String>;
}
