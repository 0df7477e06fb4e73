//! Materialized views that somebody made on central's tables: whether a repeated insert leaves what they hold as it is.
//!
//! A repeat of an insert passes through to every view, also when the stream's table has the rows already, since a view may
//! have failed the first time. What keeps it from being stored twice is the window of tokens of the table that the view
//! writes into, which only tables of the MergeTree family have, and which is 0 unless somebody set it. [`Views::secure`]
//! sets it, on the tables of streams and on the targets of their views, also of views on those; [`Views::look`] says
//! which view has none and why.
//!
//! It never makes, changes or removes a view, and never changes a window that is large enough.

use super::{
    ClickHouse, ClickhouseError, quoted,
    tables::{QUARANTINE, text_literal as text},
};
use crate::sink::limits::{STATEMENT_TIMEOUT, deduplication_window};
use async_trait::async_trait;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// Views that one look follows; with more, nobody knows whether they are safe.
const VIEWS_MAX: usize = 1_000;
/// How far views on the targets of views are followed.
const DEPTH_MAX: usize = 16;

/// A table, wherever it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableName {
    /// Its database.
    pub database: String,
    /// Its name there.
    pub table: String,
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.database, self.table)
    }
}

impl TableName {
    fn new(database: &str, table: &str) -> Self {
        Self { database: database.to_owned(), table: table.to_owned() }
    }

    /// As a statement names it.
    fn sql(&self) -> String {
        format!("{}.{}", quoted(&self.database), quoted(&self.table))
    }
}

/// One view, and what becomes of a repeated insert in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct View {
    /// Its name, with its database.
    pub view: String,
    /// The stream whose rows it sees, if need be through other views.
    pub stream: String,
    /// The table that it selects from, with its database.
    pub source: String,
    /// The table that it writes into, with its database.
    pub target: String,
    /// Its target's engine; empty when there is no target.
    pub engine: String,
    /// How many blocks its target recognises.
    pub window: u64,
    /// Why a repeated insert may double its rows, and what to do; none when it does not.
    pub problem: Option<String>,
    /// What it selects.
    #[serde(skip)]
    pub select: String,
    /// Its target, to ask it.
    #[serde(skip)]
    pub into: Option<TableName>,
}

/// What is built on the tables, and what a repeated insert does to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// All views on tables of streams, by stream and name.
    pub views: Vec<View>,
    /// Tables of streams that do not recognise a repeated insert themselves, each with the reason and what to do.
    pub tables: Vec<String>,
}

/// Where views can be seen.
#[async_trait]
pub trait ViewSource: Send + Sync {
    /// What is there; the error says why it is not known.
    async fn look(&self) -> Result<Look, String>;
}

/// The views of a server.
#[derive(Debug, Clone)]
pub struct Views {
    clickhouse: ClickHouse,
    window: u64,
}

/// A table that holds rows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Holder {
    engine: String,
    window: Window,
    /// Views that see what is inserted here.
    views: Vec<TableName>,
}

/// What a table recognises a repeated block by.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Window {
    /// The last so many tokens; the setting's name.
    Tokens(&'static str, u64),
    /// It keeps nothing, so nothing can stand in it twice.
    Empty,
    /// It recognises none.
    None,
}

/// A view as the server describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Definition {
    engine: String,
    target: Option<TableName>,
    select: String,
}

/// Everything that a look found.
#[derive(Debug, Default)]
struct Found {
    /// Tables of streams and targets of views.
    holders: BTreeMap<TableName, Holder>,
    /// Stream, source and view, each once for each source.
    edges: Vec<(String, TableName, TableName)>,
    definitions: BTreeMap<TableName, Definition>,
    /// Blocks that a table must recognise for each table whose inserts reach it.
    window: u64,
}

/// What servers do where nothing is said.
#[derive(Debug, Clone, Copy, Default)]
struct Defaults {
    plain: u64,
    replicated: u64,
}

const PLAIN: &str = "non_replicated_deduplication_window";
const REPLICATED: &str = "replicated_deduplication_window";

impl Views {
    /// The views of this server; nothing is asked yet. Each of the lanes may write each table.
    pub fn new(clickhouse: ClickHouse, lanes: u32) -> Self {
        Self { clickhouse, window: deduplication_window(lanes) }
    }

    /// All views on tables of streams, and the tables themselves.
    pub async fn look(&self) -> Result<Look, ClickhouseError> {
        Ok(self.find().await?.look())
    }

    /// Gives every table of a stream and every target of a view the window that it needs, where it has a smaller one, and
    /// looks what is left.
    pub async fn secure(&self) -> Result<Look, ClickhouseError> {
        let found = self.find().await?;
        let mut changed = false;
        for (name, holder) in &found.holders {
            let wanted = found.wanted(name);
            let Window::Tokens(setting, window) = holder.window else { continue };
            if window >= wanted {
                continue;
            }
            let sql = format!("ALTER TABLE {} MODIFY SETTING {setting} = {wanted}", name.sql());
            match self.clickhouse.execute(&sql, STATEMENT_TIMEOUT).await {
                Ok(()) => {
                    tracing::info!(table = %name, setting, from = window, to = wanted, "a repeated insert is recognised from now on");
                    changed = true;
                }
                // The look that follows says which table it is, and what to do.
                Err(error) => tracing::debug!(table = %name, %error, "a window cannot be set"),
            }
        }
        let found = if changed { self.find().await? } else { found };
        Ok(found.look())
    }

    async fn find(&self) -> Result<Found, ClickhouseError> {
        let database = text(self.clickhouse.database());
        // Tables that hold rows of the log; a view that carries the columns on has a target that looks the same.
        let roots = format!(
            "database = {database} AND name IN (SELECT table FROM system.columns WHERE database = {database} AND name = \
             '_offset') AND engine NOT LIKE '%View' AND name != {}",
            text(QUARANTINE)
        );
        let mut found = Found { window: self.window, ..Found::default() };
        let roots = self.holders(&roots).await?;
        let mut wave: Vec<(String, TableName)> = roots.keys().map(|n| (n.table.clone(), n.clone())).collect();
        found.holders = roots;
        for _ in 0..DEPTH_MAX {
            let mut next: BTreeSet<(String, TableName, TableName)> = BTreeSet::new();
            for (stream, source) in &wave {
                let views = found.holders.get(source).map(|h| h.views.as_slice()).unwrap_or_default();
                next.extend(views.iter().map(|view| (stream.clone(), source.clone(), view.clone())));
            }
            next.retain(|edge| !found.edges.contains(edge));
            if next.is_empty() {
                break;
            }
            if found.edges.len() + next.len() > VIEWS_MAX {
                return Err(ClickhouseError::Unexpected(format!("there are more than {VIEWS_MAX} views")));
            }
            self.define(&next, &mut found).await?;
            let target = |view: &TableName| found.definitions.get(view).and_then(|d| d.target.clone());
            wave =
                next.iter().filter_map(|(stream, _, view)| Some((stream.clone(), target(view)?))).collect();
            found.edges.extend(next);
        }
        found.only_streams(self.clickhouse.database());
        Ok(found)
    }

    /// Reads what these views are, and what their targets are.
    async fn define(
        &self,
        edges: &BTreeSet<(String, TableName, TableName)>,
        found: &mut Found,
    ) -> Result<(), ClickhouseError> {
        let unknown: BTreeSet<&TableName> =
            edges.iter().map(|(_, _, v)| v).filter(|v| !found.definitions.contains_key(v)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "SELECT database, name, toString(uuid), engine, create_table_query, as_select FROM system.tables WHERE {}",
            among(unknown)
        );
        type Row = (String, String, String, String, String, String);
        for (database, name, uuid, engine, create, select) in
            self.clickhouse.rows::<Row>(&sql, STATEMENT_TIMEOUT).await?
        {
            let name = TableName::new(&database, &name);
            let target = target_of(&name, &uuid, &create);
            found.definitions.insert(name, Definition { engine, target, select });
        }
        let targets: BTreeSet<&TableName> =
            found.definitions.values().filter_map(|d| d.target.as_ref()).collect();
        let new: BTreeSet<&TableName> =
            targets.into_iter().filter(|t| !found.holders.contains_key(t)).collect();
        if !new.is_empty() {
            let targets = self.holders(&among(new)).await?;
            found.holders.extend(targets);
        }
        Ok(())
    }

    async fn holders(&self, condition: &str) -> Result<BTreeMap<TableName, Holder>, ClickhouseError> {
        // A row for each view; one without for a table that has none.
        let sql = format!(
            "SELECT database, name, engine, engine_full, d, t FROM system.tables LEFT ARRAY JOIN dependencies_database AS d, \
             dependencies_table AS t WHERE {condition}"
        );
        type Row = (String, String, String, String, String, String);
        let rows = self.clickhouse.rows::<Row>(&sql, STATEMENT_TIMEOUT).await?;
        let defaults = if rows.is_empty() { Defaults::default() } else { self.defaults().await? };
        let mut holders: BTreeMap<TableName, Holder> = BTreeMap::new();
        for (database, name, engine, full, view_database, view) in rows {
            let holder = holders.entry(TableName::new(&database, &name)).or_insert_with(|| Holder {
                window: window_of(&engine, &full, defaults),
                engine,
                views: Vec::new(),
            });
            if !view.is_empty() {
                holder.views.push(TableName::new(&view_database, &view));
            }
        }
        Ok(holders)
    }

    /// What a table has that says nothing of its window.
    async fn defaults(&self) -> Result<Defaults, ClickhouseError> {
        let sql = format!(
            "SELECT name, toUInt64OrZero(value) FROM system.merge_tree_settings WHERE name = '{PLAIN}' UNION ALL SELECT name, \
             toUInt64OrZero(value) FROM system.replicated_merge_tree_settings WHERE name = '{REPLICATED}'"
        );
        let mut defaults = Defaults::default();
        for (name, value) in self.clickhouse.rows::<(String, u64)>(&sql, STATEMENT_TIMEOUT).await? {
            if name == PLAIN {
                defaults.plain = value;
            } else {
                defaults.replicated = value;
            }
        }
        Ok(defaults)
    }
}

#[async_trait]
impl ViewSource for Views {
    async fn look(&self) -> Result<Look, String> {
        Views::look(self).await.map_err(|e| e.to_string())
    }
}

impl Found {
    /// A target that carries the log's columns on was taken for the table of a stream at first.
    fn only_streams(&mut self, database: &str) {
        let targets: BTreeSet<&TableName> =
            self.definitions.values().filter_map(|d| d.target.as_ref()).collect();
        self.edges.retain(|(stream, ..)| !targets.contains(&TableName::new(database, stream)));
    }

    /// The tables that no view writes into: those of streams.
    fn streams(&self) -> impl Iterator<Item = (&TableName, &Holder)> {
        let targets: BTreeSet<&TableName> =
            self.definitions.values().filter_map(|d| d.target.as_ref()).collect();
        self.holders.iter().filter(move |(name, _)| !targets.contains(name))
    }

    /// Blocks that a table must recognise: as many for each table whose inserts reach it.
    fn wanted(&self, name: &TableName) -> u64 {
        let writes =
            |view: &TableName| self.definitions.get(view).and_then(|d| d.target.as_ref()) == Some(name);
        let sources: BTreeSet<(&String, &TableName)> = self
            .edges
            .iter()
            .filter(|(.., view)| writes(view))
            .map(|(stream, _, view)| (stream, view))
            .collect();
        self.window * (sources.len().max(1) as u64)
    }

    fn look(&self) -> Look {
        let mut views: Vec<View> =
            self.edges.iter().map(|(stream, source, view)| self.view(stream, source, view)).collect();
        views.sort_by(|a, b| (&a.stream, &a.view).cmp(&(&b.stream, &b.view)));
        let tables = self.streams().filter_map(|(name, holder)| self.doubles(name, holder)).collect();
        Look { views, tables }
    }

    fn view(&self, stream: &str, source: &TableName, view: &TableName) -> View {
        let definition = self.definitions.get(view);
        let target = definition.and_then(|d| d.target.as_ref());
        let holder = target.and_then(|t| self.holders.get(t));
        View {
            view: view.to_string(),
            stream: stream.to_owned(),
            source: source.to_string(),
            target: target.map(ToString::to_string).unwrap_or_default(),
            engine: holder.map(|h| h.engine.clone()).unwrap_or_default(),
            window: match holder.map(|h| &h.window) {
                Some(Window::Tokens(_, n)) => *n,
                _ => 0,
            },
            problem: self.problem(definition, target, holder),
            select: definition.map(|d| d.select.clone()).unwrap_or_default(),
            into: holder.and(target).cloned(),
        }
    }

    fn problem(
        &self,
        definition: Option<&Definition>,
        target: Option<&TableName>,
        holder: Option<&Holder>,
    ) -> Option<String> {
        let Some(definition) = definition else {
            return Some("central's user may not see its definition: grant it SHOW TABLES on it".into());
        };
        if definition.engine != "MaterializedView" {
            return Some(format!(
                "it is a {}, of which it is not known what a repeated insert does: use a materialized view",
                definition.engine
            ));
        }
        let (Some(target), Some(holder)) = (target, holder) else {
            return Some("its target is not there, or not to be seen by central's user".into());
        };
        self.doubles(target, holder)
    }

    /// Why a repeated insert may double rows here, and what to do.
    fn doubles(&self, name: &TableName, holder: &Holder) -> Option<String> {
        match holder.window {
            Window::Empty => None,
            Window::Tokens(setting, window) => {
                let wanted = self.wanted(name);
                (window < wanted).then(|| {
                    format!(
                        "{name} recognises a repeat of its last {window} blocks, it should of {wanted}: ALTER TABLE {} \
                         MODIFY SETTING {setting} = {wanted}, or grant central's user ALTER SETTINGS on it and it will",
                        name.sql()
                    )
                })
            }
            Window::None => Some(format!(
                "{name} is a {}, which recognises no repeated block: use an engine of the MergeTree family",
                holder.engine
            )),
        }
    }
}

/// A condition that is true for these tables.
fn among(names: BTreeSet<&TableName>) -> String {
    let pairs: Vec<String> =
        names.iter().map(|n| format!("({}, {})", text(&n.database), text(&n.table))).collect();
    format!("(database, name) IN ({})", pairs.join(", "))
}

/// What an engine's text says of a setting. The name of one ends in that of another: a word begins behind a blank.
fn said(full: &str, setting: &str) -> Option<u64> {
    let (_, rest) = full.split_once(&format!(" {setting} = "))?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn window_of(engine: &str, full: &str, defaults: Defaults) -> Window {
    match engine {
        "Null" => Window::Empty,
        e if !e.ends_with("MergeTree") => Window::None,
        e if e.starts_with("Replicated") || e.starts_with("Shared") => {
            Window::Tokens(REPLICATED, said(full, REPLICATED).unwrap_or(defaults.replicated))
        }
        _ => Window::Tokens(PLAIN, said(full, PLAIN).unwrap_or(defaults.plain)),
    }
}

/// Where a view writes: the table behind `TO`, or the one that came with the view.
fn target_of(view: &TableName, uuid: &str, create: &str) -> Option<TableName> {
    let rest = create.strip_prefix("CREATE MATERIALIZED VIEW ")?;
    let (_, rest) = take_name(rest, &view.database)?;
    if let Some(rest) = rest.trim_start().strip_prefix("TO ") {
        return take_name(rest, &view.database).map(|(name, _)| name);
    }
    let inner = if uuid.chars().all(|c| matches!(c, '0' | '-')) {
        format!(".inner.{}", view.table)
    } else {
        format!(".inner_id.{uuid}")
    };
    Some(TableName { database: view.database.clone(), table: inner })
}

/// Takes a name, with its database or without, from the beginning of an SQL text as the server writes it.
fn take_name<'a>(text: &'a str, database: &str) -> Option<(TableName, &'a str)> {
    let (first, rest) = take_word(text)?;
    match rest.strip_prefix('.') {
        Some(rest) => {
            let (table, rest) = take_word(rest)?;
            Some((TableName { database: first, table }, rest))
        }
        None => Some((TableName { database: database.to_owned(), table: first }, rest)),
    }
}

fn take_word(text: &str) -> Option<(String, &str)> {
    let Some(inner) = text.strip_prefix('`') else {
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        return (end > 0).then(|| (text[..end].to_owned(), &text[end..]));
    };
    let mut word = String::new();
    let mut chars = inner.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '`' => return Some((word, &inner[at + 1..])),
            '\\' => word.push(chars.next()?.1),
            c => word.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(create: &str) -> Option<String> {
        let view = TableName::new("d", "v");
        target_of(&view, "f0b1fad4-fafc-45a9-8123-88da79ce1570", create).map(|t| t.to_string())
    }

    #[test]
    fn targets_are_read_from_the_servers_own_text() {
        let of = |create: &str| target(&format!("CREATE MATERIALIZED VIEW {create}"));
        assert_eq!(of("d.v TO other.t (`a` UInt64) AS SELECT a FROM d.m").as_deref(), Some("other.t"));
        assert_eq!(of("d.`v x` TO d.`o dd\\`x` (`a` UInt64) AS SELECT 1").as_deref(), Some("d.o dd`x"));
        let inner = "d..inner_id.f0b1fad4-fafc-45a9-8123-88da79ce1570";
        assert_eq!(of("d.v (`a` UInt64) ENGINE = MergeTree ORDER BY a AS SELECT 1").as_deref(), Some(inner));
        assert_eq!(target("CREATE VIEW d.v AS SELECT 1"), None);
        let old = target_of(
            &TableName::new("d", "v"),
            "00000000-0000-0000-0000-000000000000",
            "CREATE MATERIALIZED VIEW d.v (`a` UInt8) ENGINE = Memory AS SELECT 1",
        );
        assert_eq!(old.map(|t| t.table), Some(".inner.v".into()));
    }

    #[test]
    fn windows_are_read_from_engines() {
        let defaults = Defaults { plain: 0, replicated: 7 };
        let full = "MergeTree ORDER BY a SETTINGS index_granularity = 8192, non_replicated_deduplication_window = 100";
        assert_eq!(window_of("MergeTree", full, defaults), Window::Tokens(PLAIN, 100));
        assert_eq!(
            window_of("SummingMergeTree", "SummingMergeTree ORDER BY a", defaults),
            Window::Tokens(PLAIN, 0)
        );
        let full = "ReplicatedMergeTree('/t', 'r') ORDER BY a SETTINGS replicated_deduplication_window = 9";
        assert_eq!(window_of("ReplicatedMergeTree", full, defaults), Window::Tokens(REPLICATED, 9));
        let full =
            "ReplicatedMergeTree('/t', 'r') ORDER BY a SETTINGS non_replicated_deduplication_window = 9";
        assert_eq!(window_of("ReplicatedMergeTree", full, defaults), Window::Tokens(REPLICATED, 7));
        assert_eq!(window_of("Null", "`Null`", defaults), Window::Empty);
        assert_eq!(window_of("Memory", "Memory", defaults), Window::None);
    }
}
