//! One table per stream: made when its first block comes, widened when a block brings a new column, never narrowed.
//!
//! A column keeps its type for ever; a block that has it with another type is refused with an error that names both.

use super::{ClickHouse, ClickhouseError};
use crate::{
    link::{SchemaGate, SchemaRefusal},
    sink::limits::{HELLO_TIMEOUT, STATEMENT_TIMEOUT, deduplication_window},
};
use async_trait::async_trait;
use record::{Column, ColumnType, StreamName, StreamSchema};
use std::collections::BTreeMap;
use tokio::{sync::Mutex, time::timeout};

/// The table of blocks that could not become rows; no stream may have its name.
pub const QUARANTINE: &str = "quarantined_blocks";

/// What every table and every target of a view needs, so that a repeated insert is recognised, and so that what was
/// acknowledged survives a power cut.
fn engine_settings(window: u64) -> String {
    format!(
        "SETTINGS non_replicated_deduplication_window = {window}, fsync_after_insert = 1, \
         fsync_part_directory = 1"
    )
}

/// Why a stream cannot be stored in its table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// A column has another type already.
    #[error("column {column:?} of table {table:?} is {have}, the stream declares it as {want}")]
    Conflict {
        /// The table, named like its stream.
        table: String,
        /// The column.
        column: String,
        /// Its type.
        have: String,
        /// The stream's type.
        want: ColumnType,
    },
    /// The name belongs to central.
    #[error("a stream may not be called {0:?}: a table of that name belongs to central")]
    Reserved(String),
    /// ClickHouse said no, or nothing.
    #[error(transparent)]
    Clickhouse(#[from] ClickhouseError),
}

type Columns = BTreeMap<String, String>;

/// The tables of the database, as far as known.
#[derive(Debug)]
pub struct Tables {
    clickhouse: ClickHouse,
    /// Blocks that a table made here remembers tokens of.
    window: u64,
    /// Table → column → type. `None` before the first look, and after something was not as expected.
    known: Mutex<Option<BTreeMap<String, Columns>>>,
}

impl Tables {
    /// Nothing is asked before it is needed. Each of the lanes may write each table.
    pub fn new(clickhouse: ClickHouse, lanes: u32) -> Self {
        Self { clickhouse, window: deduplication_window(lanes), known: Mutex::new(None) }
    }

    /// Forgets what is known: the next use looks again.
    pub async fn forget(&self) {
        *self.known.lock().await = None;
    }

    /// Whether a stream with these columns could be stored.
    pub async fn check(&self, stream: &StreamName, columns: &[Column]) -> Result<(), TableError> {
        let mut known = self.known.lock().await;
        let tables = self.look(&mut known).await?;
        judge(stream, columns, tables.get(stream.as_str())).map(drop)
    }

    /// Makes the stream's table have these columns.
    pub async fn ensure(&self, stream: &StreamName, columns: &[Column]) -> Result<(), TableError> {
        let mut known = self.known.lock().await;
        let tables = self.look(&mut known).await?;
        let table = tables.get(stream.as_str());
        let missing = judge(stream, columns, table)?;
        if table.is_some() && missing.is_empty() {
            return Ok(());
        }
        let name = format!("{}.{}", quoted(self.clickhouse.database()), quoted(stream.as_str()));
        let sql = if table.is_some() {
            let add: Vec<String> =
                missing.iter().map(|c| format!("ADD COLUMN IF NOT EXISTS {}", declaration(c))).collect();
            format!("ALTER TABLE {name} {}", add.join(", "))
        } else {
            create_stream_table(&name, columns, self.window)
        };
        tracing::info!(table = %stream, columns = missing.len(), "making or widening a table");
        self.clickhouse.execute(&sql, STATEMENT_TIMEOUT).await?;
        // Another one may have been faster, with other types: look again at what is there now.
        *known = None;
        let tables = self.look(&mut known).await?;
        judge(stream, columns, tables.get(stream.as_str())).map(drop)
    }

    /// Makes the table of quarantined blocks.
    pub async fn ensure_quarantine(&self) -> Result<(), ClickhouseError> {
        let mut known = self.known.lock().await;
        if self.look(&mut known).await?.contains_key(QUARANTINE) {
            return Ok(());
        }
        let sql = format!(
            "CREATE TABLE IF NOT EXISTS {}.{} (time DateTime64(9, 'UTC'), gateway LowCardinality(String), \
             stream LowCardinality(String), incarnation UInt64, first_seq UInt64, last_seq UInt64, rows UInt32, \
             hash String, reason String, block String, _partition UInt32, _offset UInt64) ENGINE = MergeTree \
             ORDER BY (gateway, stream, time) {}",
            quoted(self.clickhouse.database()),
            quoted(QUARANTINE),
            engine_settings(self.window)
        );
        *known = None;
        self.clickhouse.execute(&sql, STATEMENT_TIMEOUT).await
    }

    /// The tables that hold rows of the log.
    pub async fn names(&self) -> Result<Vec<String>, ClickhouseError> {
        let mut known = self.known.lock().await;
        let tables = self.look(&mut known).await?;
        let of_log = |c: &Columns| c.contains_key("_partition") && c.contains_key("_offset");
        Ok(tables.iter().filter(|(_, c)| of_log(c)).map(|(name, _)| name.clone()).collect())
    }

    async fn look<'a>(
        &self,
        known: &'a mut Option<BTreeMap<String, Columns>>,
    ) -> Result<&'a BTreeMap<String, Columns>, ClickhouseError> {
        if known.is_none() {
            let database = quoted(self.clickhouse.database());
            let make = format!("CREATE DATABASE IF NOT EXISTS {database} ENGINE = Atomic");
            self.clickhouse.execute(&make, STATEMENT_TIMEOUT).await?;
            let sql = format!(
                "SELECT table, name, type FROM system.columns WHERE database = {}",
                text_literal(self.clickhouse.database())
            );
            let rows = self.clickhouse.rows::<(String, String, String)>(&sql, STATEMENT_TIMEOUT).await?;
            let mut tables: BTreeMap<String, Columns> = BTreeMap::new();
            for (table, column, ty) in rows {
                tables.entry(table).or_default().insert(column, ty);
            }
            *known = Some(tables);
        }
        Ok(known.get_or_insert_default())
    }
}

/// A gateway that says hello does not wait long for ClickHouse: the log takes its blocks all the same.
#[async_trait]
impl SchemaGate for Tables {
    async fn check(&self, stream: &StreamName, schema: &StreamSchema) -> Result<(), SchemaRefusal> {
        match timeout(HELLO_TIMEOUT, Tables::check(self, stream, schema.columns())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(TableError::Clickhouse(error))) => Err(SchemaRefusal::Unavailable(error.to_string())),
            Ok(Err(error)) => Err(SchemaRefusal::Conflict(error.to_string())),
            Err(_) => Err(SchemaRefusal::Unavailable(format!("no answer within {HELLO_TIMEOUT:?}"))),
        }
    }
}

/// The declared columns that a table lacks; an error when one has another type.
fn judge<'a>(
    stream: &StreamName,
    columns: &'a [Column],
    table: Option<&Columns>,
) -> Result<Vec<&'a Column>, TableError> {
    if stream.as_str() == QUARANTINE {
        return Err(TableError::Reserved(QUARANTINE.into()));
    }
    let Some(table) = table else { return Ok(columns.iter().collect()) };
    let mut missing = Vec::new();
    for column in columns {
        match table.get(&column.name) {
            None => missing.push(column),
            Some(ty) if kinds(ty).contains(&column.ty) => {}
            Some(ty) => {
                let have = kinds(ty).first().map_or_else(|| ty.clone(), |kind| kind.to_string());
                return Err(TableError::Conflict {
                    table: stream.to_string(),
                    column: column.name.clone(),
                    have,
                    want: column.ty,
                });
            }
        }
    }
    Ok(missing)
}

/// The column types that a ClickHouse type holds.
fn kinds(ty: &str) -> &'static [ColumnType] {
    let inner = |ty: &'static str| move |t: &str| t == ty || t == format!("Nullable({ty})");
    match ty {
        t if inner("Bool")(t) => &[ColumnType::Bool],
        t if inner("Int64")(t) => &[ColumnType::Int64],
        t if inner("Float64")(t) => &[ColumnType::Float64],
        t if inner("String")(t) => &[ColumnType::String, ColumnType::Bytes],
        "LowCardinality(String)" | "LowCardinality(Nullable(String))" => {
            &[ColumnType::String, ColumnType::Bytes]
        }
        _ => &[],
    }
}

fn declaration(column: &Column) -> String {
    let ty = match column.ty {
        ColumnType::Bool => "Bool",
        ColumnType::Int64 => "Int64",
        ColumnType::Float64 => "Float64",
        ColumnType::String | ColumnType::Bytes => "String",
    };
    format!("{} Nullable({ty})", quoted(&column.name))
}

fn create_stream_table(name: &str, columns: &[Column], window: u64) -> String {
    let declared: String = columns.iter().map(|c| format!("{}, ", declaration(c))).collect();
    format!(
        "CREATE TABLE IF NOT EXISTS {name} (time DateTime64(9, 'UTC'), device LowCardinality(String), {declared}\
         gateway LowCardinality(String), seq UInt64, _partition UInt32, _offset UInt64, \
         INDEX log_position (_partition, _offset) TYPE minmax GRANULARITY 1) \
         ENGINE = MergeTree ORDER BY (device, time) {}",
        engine_settings(window)
    )
}

/// A name as ClickHouse reads it whatever it contains.
pub fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}

/// A text as SQL has it.
pub fn text_literal(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, ty: ColumnType) -> Column {
        Column { name: name.into(), ty }
    }

    #[test]
    fn new_columns_are_found_and_other_types_refused() {
        let stream = StreamName::new("m").expect("valid");
        let table: Columns = [("a", "Nullable(Float64)"), ("b", "LowCardinality(String)")]
            .map(|(n, t)| (n.to_owned(), t.to_owned()))
            .into();
        let columns = [column("a", ColumnType::Float64), column("c", ColumnType::Int64)];
        assert_eq!(judge(&stream, &columns, Some(&table)).expect("fits"), [&columns[1]]);
        assert_eq!(judge(&stream, &columns, None).expect("new").len(), 2);
        let error = judge(&stream, &[column("a", ColumnType::String)], Some(&table)).expect_err("conflict");
        assert_eq!(
            error.to_string(),
            "column \"a\" of table \"m\" is float64, the stream declares it as string"
        );
        let quarantine = StreamName::new(QUARANTINE).expect("valid");
        assert!(matches!(judge(&quarantine, &[], None), Err(TableError::Reserved(_))));
    }

    #[test]
    fn names_and_texts_cannot_break_out() {
        assert_eq!(quoted("a`b\\c"), "`a\\`b\\\\c`");
        assert_eq!(text_literal("a'b\\c"), "'a\\'b\\\\c'");
        let sql = create_stream_table("t", &[column("a", ColumnType::Bytes)], 99);
        assert!(sql.contains("`a` Nullable(String), gateway"), "{sql}");
        assert!(sql.contains("non_replicated_deduplication_window = 99,"), "{sql}");
    }
}
