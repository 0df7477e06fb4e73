//! The driver: fetches the evidence, lets it be judged, shows the verdict.

use super::{
    again::{Reread, Rows, read_again},
    judge::{Evidence, TableRows, judge},
    metrics::AuditMetrics,
    report::Report,
    tally::{Scan, TallyKey},
    views::compare_all,
};
use crate::{
    alerts::rfc3339,
    clickhouse::ViewSource,
    link::Gateways,
    log::{Log, Offset, Partition, ReadError, Shard},
    rules::{Frontier, Positions, QueryError, QueryLimits, QuerySource, Range, Table},
};
use daemon::metrics::Registry;
use record::{StreamName, clock::Clock};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// From one audit to the next, unless an audit takes long.
const EVERY: Duration = Duration::from_secs(60);
/// An audit takes at most one part in so many of the time.
const SHARE: u32 = 20;
/// The name under which the log is read.
pub(super) const READER: &str = "audit";
/// Bytes read from the log at once.
pub(super) const READ_BYTES: usize = 4 << 20;
/// Seqs whose distinct count is asked for at once: bounds the server's memory.
const SEQS_AT_ONCE: u64 = 20_000_000;
/// Rows of one answer: gateways of one stream.
const ANSWER_ROWS_MAX: usize = 100_000;
/// How long one question may take.
const QUERY_TIMEOUT: Duration = Duration::from_secs(60);
/// Questions for an audit that may wait.
const ASKS_MAX: usize = 16;

/// What an auditor is made of.
pub struct AuditParts {
    /// Folder of the tally.
    pub dir: PathBuf,
    /// The log.
    pub log: Arc<dyn Log>,
    /// What central knows of the gateways.
    pub gateways: Arc<Gateways>,
    /// Where the sink stands.
    pub frontier: Arc<dyn Frontier>,
    /// ClickHouse.
    pub source: Arc<dyn QuerySource>,
    /// What users built on the tables.
    pub views: Arc<dyn ViewSource>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Where metrics go.
    pub registry: Registry,
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The tally cannot be read or stored.
    #[error("{path}: {reason}")]
    Tally {
        /// The file.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] ReadError),
    /// The sink's position cannot be read.
    #[error("the sink's position cannot be read: {0}")]
    Frontier(String),
    /// A table cannot be read.
    #[error("the table of {stream}: {source}")]
    Table {
        /// The stream.
        stream: StreamName,
        /// What happened.
        source: QueryError,
    },
}

type Answer = Result<Arc<Report>, String>;

/// A question for an audit.
struct Ask {
    reread: Option<Reread>,
    reply: oneshot::Sender<Answer>,
}

/// The way to a running auditor.
#[derive(Clone)]
pub struct AuditorHandle {
    last: watch::Receiver<Option<Arc<Report>>>,
    asks: mpsc::Sender<Ask>,
    clock: Arc<dyn Clock>,
}

impl AuditorHandle {
    /// A wish to read the records of the log since a moment again: RFC 3339, or how long ago, like `2h`.
    pub fn since(&self, text: &str) -> Result<Reread, String> {
        Reread::since(text, self.clock.wall_ns())
    }

    /// The last verdict; none before the first.
    pub fn last(&self) -> Option<Arc<Report>> {
        self.last.borrow().clone()
    }

    /// A new verdict, or why there is none; if asked for, over a log that was read again.
    pub async fn audit(&self, reread: Option<Reread>) -> Answer {
        let gone = |()| "the auditor is stopping".to_owned();
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask { reread, reply }).await.map_err(|_| gone(()))?;
        answer.await.map_err(|_| gone(()))?
    }
}

/// The task that audits.
pub struct Auditor {
    parts: AuditParts,
    scan: Scan,
    metrics: AuditMetrics,
    last: watch::Sender<Option<Arc<Report>>>,
    asks: mpsc::Receiver<Ask>,
}

impl Auditor {
    /// Reads the tally, or begins one.
    pub fn open(parts: AuditParts) -> Result<(Self, AuditorHandle), AuditError> {
        let mut scan = load(&parts.dir)?;
        if scan.log != parts.log.id() {
            if !scan.log.is_empty() {
                tracing::warn!("the log was made anew: the auditor counts from its beginning");
            }
            scan = Scan::of(parts.log.id());
        }
        let (last, last_out) = watch::channel(None);
        let (asks, asks_in) = mpsc::channel(ASKS_MAX);
        let metrics = AuditMetrics::new(&parts.registry);
        let handle = AuditorHandle { last: last_out, asks, clock: parts.clock.clone() };
        Ok((Self { parts, scan, metrics, last, asks: asks_in }, handle))
    }

    /// Audits now and then, and whenever somebody asks, until `stop`.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), AuditError> {
        let mut pause = Duration::from_secs(5);
        loop {
            let mut waiting = Vec::new();
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
                Some(ask) = self.asks.recv() => waiting.push(ask),
            }
            // Whoever asked before it begins shares the verdict; who asks later gets a newer one.
            while let Ok(ask) = self.asks.try_recv() {
                waiting.push(ask);
            }
            let reread = waiting.iter().filter_map(|ask| ask.reread).reduce(Reread::both);
            let started_ns = self.parts.clock.monotonic_ns();
            let answer = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                answer = self.audit(reread) => self.conclude(answer)?,
            };
            for ask in waiting {
                // Who asked may have left.
                let _ = ask.reply.send(answer.clone());
            }
            let took = Duration::from_nanos(self.parts.clock.monotonic_ns().saturating_sub(started_ns));
            pause = EVERY.max(took * SHARE);
        }
    }

    /// Shows a verdict. Only a tally that cannot be stored ends the auditor.
    fn conclude(&mut self, answer: Result<Report, AuditError>) -> Result<Answer, AuditError> {
        match answer {
            Ok(report) => {
                self.metrics.show(&report, self.parts.clock.wall_ns());
                if report.balanced {
                    tracing::debug!(seconds = report.seconds, "audit: balanced");
                } else {
                    let first = report.problems.first().map_or("", String::as_str);
                    tracing::error!(
                        lost = report.lost,
                        duplicated = report.duplicated,
                        first,
                        "audit: not balanced"
                    );
                }
                let report = Arc::new(report);
                self.last.send_replace(Some(report.clone()));
                Ok(Ok(report))
            }
            Err(e @ AuditError::Tally { .. }) => Err(e),
            Err(e) => {
                self.metrics.failures.inc();
                tracing::warn!(reason = %e, "audit: no verdict");
                Ok(Err(e.to_string()))
            }
        }
    }

    async fn audit(&mut self, reread: Option<Reread>) -> Result<Report, AuditError> {
        let started_ns = self.parts.clock.monotonic_ns();
        // The order matters: what central acknowledged before now must be found in the log that is read after it.
        for n in 0..self.parts.log.shards() {
            // Also what other processes of central have committed.
            self.parts.gateways.stored(&self.parts.log.progress(Shard(n)).await?);
        }
        let gateways = self.parts.gateways.snapshot();
        let frontier = self.parts.frontier.committed().await.map_err(AuditError::Frontier)?;
        let mut notes = Vec::new();
        for p in 0..self.parts.log.partitions() {
            let end = Offset(frontier.get(&p).copied().unwrap_or(0));
            self.scan_to(Partition(p), end, &mut notes).await?;
        }
        let counted = self.scan.positions.clone();
        tokio::task::block_in_place(|| save(&self.parts.dir, &self.scan))?;
        let committed = self.scan.clone();
        let mut whole = committed.clone();
        std::mem::swap(&mut self.scan, &mut whole);
        let tail = self.scan_tails(&mut notes).await;
        std::mem::swap(&mut self.scan, &mut whole);
        tail?;
        let mut evidence = Evidence { gateways, committed, whole, notes, ..Evidence::default() };
        self.tables(&counted, &mut evidence).await?;
        if let Some(wish) = reread {
            let (log, clock, ends) = (&*self.parts.log, &*self.parts.clock, &evidence.whole.positions);
            let rows = Rows { source: &*self.parts.source, committed: &counted };
            let again = read_again(log, clock, ends, wish, &rows).await?;
            evidence.notes.extend(again.notes.iter().cloned());
            evidence.again = Some(again);
        }
        self.views(&counted, reread, &mut evidence).await;
        let mut report = judge(&evidence);
        report.at = rfc3339(self.parts.clock.wall_ns());
        report.seconds = self.parts.clock.monotonic_ns().saturating_sub(started_ns) as f64 / 1e9;
        Ok(report)
    }

    /// Counts what the sink has not committed yet, for this audit only.
    async fn scan_tails(&mut self, notes: &mut Vec<String>) -> Result<(), AuditError> {
        for p in 0..self.parts.log.partitions() {
            let end = self.parts.log.status(Partition(p)).await?.high;
            self.scan_to(Partition(p), end, notes).await?;
        }
        Ok(())
    }

    async fn scan_to(
        &mut self,
        p: Partition,
        end: Offset,
        notes: &mut Vec<String>,
    ) -> Result<(), AuditError> {
        while self.scan.position(p) < end {
            let from = self.scan.position(p);
            let records = match self.parts.log.read(READER, p, from, READ_BYTES).await {
                Ok(records) => records,
                Err(ReadError::Trimmed { first, .. }) if first > from => {
                    notes.push(format!(
                        "partition {p}: records before offset {first} were gone before they were counted"
                    ));
                    self.scan.skip_to(p, first);
                    continue;
                }
                Err(e) => return Err(e.into()),
            };
            if records.is_empty() {
                self.scan.reached(p, end);
            }
            tokio::task::block_in_place(|| {
                for r in records {
                    if r.offset >= end {
                        return self.scan.reached(p, end);
                    }
                    self.scan.read(p, &r);
                }
            });
        }
        Ok(())
    }

    /// Looks at what users built on the tables. What is not known about them keeps no verdict on the rows back.
    async fn views(&self, counted: &Positions, reread: Option<Reread>, e: &mut Evidence) {
        let look = match self.parts.views.look().await {
            Ok(look) => look,
            Err(reason) => return e.notes.push(format!("it is not known which views there are: {reason}")),
        };
        e.unsafe_tables.clone_from(&look.tables);
        let since = reread.is_some_and(|r| r.since_ns.is_some());
        let none = Positions::new();
        let from = e.again.as_ref().filter(|_| since).map_or(&none, |again| &again.from);
        e.views = compare_all(&*self.parts.source, look, counted, from).await;
    }

    /// Fetches what the tables hold of each tally.
    async fn tables(&self, counted: &Positions, e: &mut Evidence) -> Result<(), AuditError> {
        let streams: BTreeSet<StreamName> = e.committed.tallies().keys().map(|k| k.stream.clone()).collect();
        let all = Range::new(&Positions::new(), counted, u64::MAX).condition();
        for stream in streams {
            let by_gateway = self.measure(&stream, &all).await?;
            for (gateway, t) in &by_gateway {
                e.totals.insert((gateway.clone(), stream.clone()), t.rows);
            }
            let keys: Vec<TallyKey> =
                e.committed.tallies().keys().filter(|k| k.stream == stream).cloned().collect();
            for key in &keys {
                let lives = keys.iter().filter(|k| k.gateway == key.gateway).count();
                let tally = &e.committed.tallies()[key];
                let rows = if lives == 1 && !tally.began_late {
                    by_gateway.get(key.gateway.as_str()).copied().unwrap_or_default()
                } else {
                    // Seqs begin anew with each life of the gateway's folder: tell the lives apart by their offsets.
                    let part = format!(
                        "gateway = '{}' and _partition = {} and _offset >= {} and _offset <= {}",
                        key.gateway, tally.partition, tally.first_offset, tally.last_offset
                    );
                    self.measure(&stream, &part).await?.remove(key.gateway.as_str()).unwrap_or_default()
                };
                e.tables.insert(key.clone(), rows);
            }
        }
        Ok(())
    }

    /// Rows, distinct seqs, lowest and highest seq per gateway, of the rows that the condition selects.
    async fn measure(
        &self,
        stream: &StreamName,
        condition: &str,
    ) -> Result<BTreeMap<String, TableRows>, AuditError> {
        let sql = format!(
            "select gateway, count() as n, min(seq) as low, max(seq) as high from `{stream}` where {condition} group by gateway"
        );
        let table = ask(&*self.parts.source, stream, &sql).await?;
        let mut out = BTreeMap::new();
        for row in &table.rows {
            let [gateway, rows, low, high] = row.as_slice() else { continue };
            let Some(gateway) = gateway.as_str() else { continue };
            let t =
                TableRows { rows: number(rows), unique: 0, first_seq: number(low), last_seq: number(high) };
            out.insert(gateway.to_owned(), t);
        }
        let highest = out.values().map(|t| t.last_seq).max().unwrap_or(0);
        let mut from = 0;
        while !out.is_empty() && from <= highest {
            let to = from + SEQS_AT_ONCE;
            let sql = format!(
                "select gateway, uniqExact(seq) as n from `{stream}` where {condition} and seq >= {from} and seq < {to} group by gateway"
            );
            for row in &ask(&*self.parts.source, stream, &sql).await?.rows {
                let [gateway, n] = row.as_slice() else { continue };
                if let Some(t) = gateway.as_str().and_then(|g| out.get_mut(g)) {
                    t.unique += number(n);
                }
            }
            from = to;
        }
        Ok(out)
    }
}

/// Asks for rows; a table that is not there has none.
pub(super) async fn ask(
    source: &dyn QuerySource,
    stream: &StreamName,
    sql: &str,
) -> Result<Table, AuditError> {
    let limits = QueryLimits { rows_max: ANSWER_ROWS_MAX, timeout: QUERY_TIMEOUT };
    match source.query(sql, limits).await {
        Ok(table) => Ok(table),
        Err(QueryError::UnknownTable(_)) => Ok(Table::default()),
        Err(source) => Err(AuditError::Table { stream: stream.clone(), source }),
    }
}

/// ClickHouse writes 64-bit integers as text, depending on its settings.
pub(super) fn number(v: &serde_json::Value) -> u64 {
    v.as_u64().or_else(|| v.as_str()?.parse().ok()).unwrap_or(0)
}

const NAME: &str = "tally.json";

fn load(dir: &Path) -> Result<Scan, AuditError> {
    let path = dir.join(NAME);
    let bad = |reason: String| AuditError::Tally { path: path.clone(), reason };
    fs::create_dir_all(dir).map_err(|e| bad(e.to_string()))?;
    match fs::read(&path) {
        Ok(bytes) => Scan::decode(&bytes).map_err(bad),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Scan::default()),
        Err(e) => Err(bad(e.to_string())),
    }
}

fn save(dir: &Path, scan: &Scan) -> Result<(), AuditError> {
    let unfinished = dir.join("tally.json.new");
    let write = || {
        let mut file = File::create(&unfinished)?;
        file.write_all(&scan.encode())?;
        file.sync_all()?;
        fs::rename(&unfinished, dir.join(NAME))?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|e: io::Error| AuditError::Tally { path: unfinished.clone(), reason: e.to_string() })
}
