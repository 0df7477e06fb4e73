//! The lane's hands on ClickHouse: insert a range, read one back.

use super::{
    ahead::Prepared,
    block::{self, Opened, Piece},
    core::{Answer, Found, Tables as Held},
    intent::Intent,
    limits::{CLOCK_SKEW, INSERT_TIMEOUT, STATEMENT_TIMEOUT},
    metrics::SinkMetrics,
};
use crate::{
    clickhouse::{ClickHouse, ClickhouseError, QUARANTINE, TableError, Tables, quoted, text_literal},
    log::{Log, Offset, Partition, StoredRecord},
};
use bytes::Bytes;
use record::StreamName;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};
use tokio::task::JoinSet;

/// A record that cannot become rows, and why.
type Refused = (StoredRecord, String);

/// Shared by all lanes.
#[derive(Clone)]
pub struct Store {
    clickhouse: ClickHouse,
    tables: Arc<Tables>,
    log: Arc<dyn Log>,
    metrics: SinkMetrics,
}

impl Store {
    /// Inserts into this server; what cannot be rows is told to the log, too.
    pub fn new(clickhouse: ClickHouse, tables: Arc<Tables>, log: Arc<dyn Log>, metrics: SinkMetrics) -> Self {
        Self { clickhouse, tables, log, metrics }
    }

    /// Whether there is a server at the moment.
    pub fn is_running(&self) -> bool {
        self.clickhouse.url().is_some()
    }

    /// Inserts records, opened or not, under the intent's tokens, the tables side by side; one answer a table.
    pub async fn insert(
        &self,
        partition: Partition,
        intent: &Intent,
        records: Vec<Prepared>,
    ) -> Vec<(StreamName, Answer)> {
        let mut by_stream: BTreeMap<StreamName, Vec<Prepared>> = BTreeMap::new();
        for (record, opened) in records {
            by_stream.entry(record.headers.stream.clone()).or_default().push((record, opened));
        }
        let mut running = JoinSet::new();
        for (stream, records) in by_stream {
            let (store, intent) = (self.clone(), intent.clone());
            running.spawn(async move {
                let result = store.insert_stream(partition, &intent, &stream, records).await;
                let answer = match result {
                    Ok(()) => Answer::Done,
                    Err(error) => {
                        // What is known about the tables may be what was wrong.
                        store.tables.forget().await;
                        store.metrics.doubts.with(&[error.reason()]).inc();
                        Answer::Doubt { ended: error.ended(), reason: format!("table {stream}: {error}") }
                    }
                };
                (stream, answer)
            });
        }
        let mut answers = Vec::new();
        while let Some(joined) = running.join_next().await {
            match joined {
                Ok(answer) => answers.push(answer),
                // A table without an answer is a table in doubt.
                Err(error) => tracing::error!(%error, "an insert's task ended"),
            }
        }
        answers
    }

    async fn insert_stream(
        &self,
        partition: Partition,
        intent: &Intent,
        stream: &StreamName,
        records: Vec<Prepared>,
    ) -> Result<(), ClickhouseError> {
        let (good, mut refused) = blocking(move || open_all(records)).await?;
        let (good, conflicts) = self.fit(stream, good).await?;
        refused.extend(conflicts);
        if !good.is_empty() {
            let pieces = blocking(move || block::assemble(partition, &good)).await?;
            let pieces =
                pieces.map_err(|e| ClickhouseError::Unexpected(format!("cannot make a block: {e}")))?;
            for (n, piece) in pieces.into_iter().enumerate() {
                let token = intent.token(partition, stream.as_str(), n);
                self.insert_piece(stream.as_str(), piece, &token).await?;
            }
        }
        if refused.is_empty() {
            return Ok(());
        }
        let token = intent.token(partition, &format!("{QUARANTINE}-{stream}"), 0);
        self.quarantine(partition, &refused, &token).await
    }

    /// Makes the table fit; the records whose columns have another type there come back as refused.
    async fn fit(
        &self,
        stream: &StreamName,
        records: Vec<StoredAndOpened>,
    ) -> Result<(Vec<Opened>, Vec<Refused>), ClickhouseError> {
        let (mut good, mut refused) = (Vec::with_capacity(records.len()), Vec::new());
        // Records of one schema, which is the usual case, are judged once.
        let mut fitting: BTreeSet<u64> = BTreeSet::new();
        for (stored, opened) in records {
            if !fitting.contains(&opened.headers.schema) {
                match self.tables.ensure(stream, opened.batch.schema().columns()).await {
                    Ok(()) => {
                        fitting.insert(opened.headers.schema);
                    }
                    Err(TableError::Clickhouse(error)) => return Err(error),
                    Err(error) => {
                        refused.push((stored, error.to_string()));
                        continue;
                    }
                }
            }
            good.push(opened);
        }
        Ok((good, refused))
    }

    async fn insert_piece(&self, table: &str, piece: Piece, token: &str) -> Result<(), ClickhouseError> {
        let names: Vec<String> = piece.columns.iter().map(|c| quoted(c)).collect();
        let into = format!("{} ({})", self.named(table), names.join(", "));
        let begun = Instant::now();
        let result = self.send(&into, "ArrowStream", piece.body, token).await;
        self.metrics.insert_seconds.observe(begun.elapsed().as_secs_f64());
        let word = if result.is_ok() { "ok" } else { "doubt" };
        self.metrics.inserts.with(&[table, word]).inc();
        result
    }

    async fn send(&self, into: &str, format: &str, body: Bytes, token: &str) -> Result<(), ClickhouseError> {
        // The server gives up a little earlier than the client, so that its answer usually arrives.
        let server_seconds = INSERT_TIMEOUT.as_secs().saturating_sub(5).max(1);
        let mut insert = self
            .clickhouse
            .client()?
            .insert_formatted_with(format!("INSERT INTO {into} FORMAT {format}"))
            .with_setting("async_insert", "0")
            .with_setting("deduplicate_insert", "enable")
            .with_setting("insert_deduplication_token", token)
            .with_setting("deduplicate_blocks_in_dependent_materialized_views", "1")
            .with_setting("max_insert_block_size", "1048449")
            .with_setting("min_insert_block_size_rows", "1048449")
            .with_setting("min_insert_block_size_bytes", "268402944")
            .with_setting("max_insert_threads", "1")
            .with_setting("max_execution_time", server_seconds.to_string())
            .with_timeouts(Some(INSERT_TIMEOUT), Some(INSERT_TIMEOUT));
        let sent = match insert.send(body).await {
            Ok(()) => insert.end().await,
            Err(error) => Err(error),
        };
        sent.map_err(Into::into)
    }

    async fn quarantine(
        &self,
        partition: Partition,
        refused: &[Refused],
        token: &str,
    ) -> Result<(), ClickhouseError> {
        self.tables.ensure_quarantine().await?;
        let mut body = Vec::new();
        for (record, reason) in refused {
            let h = &record.headers;
            tracing::error!(
                gateway = %h.gateway, stream = %h.stream, first = %h.first_seq, last = %h.last_seq, reason,
                "a block is quarantined: its rows are not in their table"
            );
            self.metrics.quarantined.inc();
            let kept = self.log.quarantine(partition, record, reason).await;
            kept.map_err(|e| ClickhouseError::Unexpected(format!("the log's quarantine: {e}")))?;
            row_binary(&mut body, partition, record, reason);
        }
        let into = format!(
            "{} (time, gateway, stream, incarnation, first_seq, last_seq, rows, hash, reason, block, _partition, _offset)",
            self.named(QUARANTINE)
        );
        self.send(&into, "RowBinary", body.into(), token).await
    }

    /// What the tables hold of the records of an intent, which are of these streams.
    pub async fn read_back(
        &self,
        partition: Partition,
        intent: &Intent,
        streams: &BTreeSet<StreamName>,
    ) -> Result<Held, ClickhouseError> {
        self.metrics.read_backs.inc();
        let (from, to) = (intent.from, intent.to);
        let range = format!("_partition = {partition} AND _offset >= {from} AND _offset < {to}");
        let mut tables = Held::default();
        let found = &mut tables.found;
        for stream in streams {
            let newer = self.inserts_since(stream, intent.named_at).await?;
            tables.newer.insert(stream.clone(), newer);
            let sql = format!(
                "SELECT _offset, count(), min(seq), max(seq) FROM {} WHERE {range} GROUP BY _offset",
                self.named(stream.as_str())
            );
            let rows = self.clickhouse.rows::<(u64, u64, u64, u64)>(&sql, STATEMENT_TIMEOUT).await;
            for (offset, rows, first_seq, last_seq) in none_without_table(rows)? {
                let entry = found.entry(Offset(offset)).or_default();
                *entry = Found { rows, first_seq, last_seq, ..*entry };
            }
        }
        let sql =
            format!("SELECT _offset, count() FROM {} WHERE {range} GROUP BY _offset", self.named(QUARANTINE));
        let rows = self.clickhouse.rows::<(u64, u64)>(&sql, STATEMENT_TIMEOUT).await;
        for (offset, times) in none_without_table(rows)? {
            found.entry(Offset(offset)).or_default().quarantined = times;
        }
        Ok(tables)
    }

    /// Inserts that a table took since this second of the epoch, at most. Each takes a number, and a part names the
    /// highest one in it; parts that were merged away are told of for some minutes.
    pub async fn inserts_since(&self, stream: &StreamName, at: u64) -> Result<u64, ClickhouseError> {
        let before = at.saturating_sub(CLOCK_SKEW.as_secs());
        let sql = format!(
            "SELECT toUInt64(greatest(max(max_block_number), 0)), \
             toUInt64(greatest(maxIf(max_block_number, toUnixTimestamp(modification_time) < {before}), 0)) \
             FROM system.parts WHERE database = {} AND table = {}",
            text_literal(self.clickhouse.database()),
            text_literal(stream.as_str())
        );
        let rows = self.clickhouse.rows::<(u64, u64)>(&sql, STATEMENT_TIMEOUT).await?;
        Ok(rows.first().map_or(0, |(newest, then)| newest - then))
    }

    /// The largest offset of a partition in any table.
    pub async fn max_offset(&self, partition: Partition) -> Result<Option<Offset>, ClickhouseError> {
        let mut max = None;
        for table in self.tables.names().await? {
            let table = self.named(&table);
            let sql = format!("SELECT max(_offset), count() FROM {table} WHERE _partition = {partition}");
            let rows = self.clickhouse.rows::<(u64, u64)>(&sql, STATEMENT_TIMEOUT).await?;
            max = rows.into_iter().filter(|(_, n)| *n > 0).map(|(offset, _)| Offset(offset)).max().max(max);
        }
        Ok(max)
    }

    fn named(&self, table: &str) -> String {
        format!("{}.{}", quoted(self.clickhouse.database()), quoted(table))
    }
}

type StoredAndOpened = (StoredRecord, Opened);

fn open_all(records: Vec<Prepared>) -> (Vec<StoredAndOpened>, Vec<Refused>) {
    let (mut good, mut refused) = (Vec::with_capacity(records.len()), Vec::new());
    for (record, opened) in records {
        match opened.map_or_else(|| block::open(&record), Ok) {
            Ok(opened) => good.push((record, opened)),
            Err(reason) => refused.push((record, reason)),
        }
    }
    (good, refused)
}

/// Decoding takes milliseconds: not on the threads that serve sockets.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ClickhouseError> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(|e| ClickhouseError::Unexpected(format!("the work on a block ended: {e}")))
}

fn none_without_table<T>(rows: Result<Vec<T>, ClickhouseError>) -> Result<Vec<T>, ClickhouseError> {
    match rows {
        Err(error) if error.is_unknown_table() => Ok(Vec::new()),
        other => other,
    }
}

/// One row of the table of quarantined blocks, in its order of columns.
fn row_binary(out: &mut Vec<u8>, partition: Partition, record: &StoredRecord, reason: &str) {
    let h = &record.headers;
    out.extend(h.produced_at_ns.to_le_bytes());
    text(out, h.gateway.as_str().as_bytes());
    text(out, h.stream.as_str().as_bytes());
    for n in [h.incarnation.0, h.first_seq.0, h.last_seq.0] {
        out.extend(n.to_le_bytes());
    }
    out.extend(h.rows.to_le_bytes());
    text(out, h.hash.to_string().as_bytes());
    text(out, reason.as_bytes());
    text(out, &record.bytes);
    out.extend(partition.0.to_le_bytes());
    out.extend(record.offset.0.to_le_bytes());
}

/// A string of RowBinary: its length in seven-bit groups, then its bytes.
fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    let mut len = bytes.len();
    while len >= 0x80 {
        out.push((len & 0x7f) as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    out.extend_from_slice(bytes);
}
