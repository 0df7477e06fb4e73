//! `[stream.NAME]`

use super::{Source, graph, source::SourceKind};
use crate::decode::{DecodeRules, DeviceRule, MissingTime, TimeFormat};
use crate::limits::{DEDUP_KEYS_MAX, STREAMS_MAX};
use daemon::config::{Kind, Section};
use record::{Column, ColumnType, DEAD_LETTERS, ModuleRef, SourceName, StreamName, StreamSchema};
use std::{sync::Arc, time::Duration};

/// A stream of rows, and how its rows come about.
#[derive(Debug, Clone)]
pub struct Stream {
    /// Its name.
    pub name: StreamName,
    /// What feeds it.
    pub from: From,
    /// Whether its rows are sent to central.
    pub forward: bool,
    /// The module that makes its rows out of its parent's; a root stream has none.
    pub module: Option<ModuleSetting>,
    /// What to do when the buffer is full; a root stream's setting holds for all below it.
    pub on_full: OnFull,
}

/// What feeds a stream.
#[derive(Debug, Clone)]
pub enum From {
    /// A root stream: events of sources, decoded.
    Sources {
        /// The sources.
        sources: Vec<SourceName>,
        /// MQTT topic filters; an event over HTTP names its stream instead.
        topics: Vec<String>,
        /// How payloads are read.
        decode: DecodeRules,
        /// The declared columns.
        schema: Arc<StreamSchema>,
        /// Recognition of repeats.
        dedup: Option<Dedup>,
    },
    /// Rows of another stream.
    Stream(StreamName),
}

/// `dedup = { key = ["device", "time"], window = "1 h" }`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dedup {
    /// `device`, `time` or declared columns.
    pub key: Vec<String>,
    /// How long a key is remembered after it was accepted.
    pub window: Duration,
    /// Most keys remembered; at more the oldest are forgotten first.
    pub max_keys: usize,
}

/// Policy when the buffer is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFull {
    /// Slow the sources down: nothing is lost.
    #[default]
    Block,
    /// Give up the oldest rows, with a ledger entry.
    DropOldest,
    /// Give up what comes in, with a ledger entry.
    DropNewest,
}

/// Policy for rows that a module fails on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnModuleFailure {
    /// They become dead letters.
    #[default]
    DeadLetter,
    /// They pass as they are; for filters only.
    Pass,
    /// The lane waits and tries again.
    Hold,
}

/// A module and how a stream uses it.
#[derive(Debug, Clone, PartialEq)]
pub struct ModuleSetting {
    /// Which module.
    pub module: ModuleRef,
    /// Its configuration, JSON.
    pub with: String,
    /// Windows; for an aggregate.
    pub window: Option<Window>,
    /// What happens to rows that it fails on.
    pub on_failure: OnModuleFailure,
    /// Its bounds.
    pub limits: ModuleLimits,
}

/// Tumbling windows of event time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Length.
    pub every: Duration,
    /// Columns that a window is kept for each value of; `device` is one of them.
    pub key: Vec<String>,
    /// How far behind the newest event time of its key an event may come.
    pub lateness: Duration,
    /// Closes the windows of a key from which nothing came for this long by the gateway's clock.
    pub idle: Option<Duration>,
}

/// Bounds of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModuleLimits {
    /// Linear memory, bytes.
    pub memory_bytes: u64,
    /// One call.
    pub time: Duration,
    /// What one call may return, bytes.
    pub output_bytes: u64,
}

impl Default for ModuleLimits {
    fn default() -> Self {
        Self { memory_bytes: 16 << 20, time: Duration::from_millis(100), output_bytes: 8 << 20 }
    }
}

/// Reads every `[stream.NAME]`; parents come before children.
pub(super) fn read(root: &Section<'_>, sources: &[Source]) -> Vec<Stream> {
    let sections = root.sections("stream");
    if sections.is_empty() {
        root.error_here("no [stream.NAME]: without one every event would be counted and forgotten");
    }
    if sections.len() > STREAMS_MAX {
        root.error("stream", format!("{} streams, the limit is {STREAMS_MAX}", sections.len()));
    }
    let names: Vec<String> = sections.iter().map(|(name, _)| name.clone()).collect();
    let mut streams = Vec::new();
    for (name, section) in &sections {
        let stream = one(name, section, sources, &names);
        streams.extend(stream.map(|s| (s, section.clone())));
    }
    graph::order(streams)
}

fn one(name: &str, section: &Section<'_>, sources: &[Source], streams: &[String]) -> Option<Stream> {
    let from = section.strings("from").required();
    let source = |n: &String| sources.iter().find(|s| s.name.as_str() == n);
    let unknown: Vec<&String> = from.iter().filter(|f| source(f).is_none() && !streams.contains(f)).collect();
    for f in &unknown {
        section.error("from", format!("there is no source and no stream named `{f}`"));
    }
    let parents: Vec<&String> = from.iter().filter(|f| source(f).is_none() && streams.contains(f)).collect();
    let feeding: Vec<&Source> = from.iter().filter_map(source).collect();
    let from = match (feeding.is_empty(), parents.as_slice()) {
        (false, []) => roots(section, &feeding),
        (true, [parent]) => StreamName::new(parent).ok().map(From::Stream),
        (true, []) => None,
        _ => {
            section.error("from", "must be sources only, or one other stream");
            None
        }
    };
    let module = match &from {
        Some(From::Sources { .. }) => {
            refuse(
                section,
                &["module", "with", "window", "on-module-failure", "limits"],
                "a stream of a source",
            );
            None
        }
        _ => module(section),
    };
    if matches!(from, Some(From::Stream(_))) {
        refuse(section, &["topics", "decode", "columns", "dedup", "on-full"], "a stream of another stream");
    }
    let policies =
        [("block", OnFull::Block), ("drop-oldest", OnFull::DropOldest), ("drop-newest", OnFull::DropNewest)];
    let on_full = section.choice("on-full", &policies).or(OnFull::Block);
    let forward = section.boolean("forward").or(true);
    let name = match StreamName::new(name) {
        Ok(name) if name.as_str() == DEAD_LETTERS => {
            section.error_here(format!("the name `{DEAD_LETTERS}` is reserved for the dead letters"));
            return None;
        }
        Ok(name) => name,
        Err(e) => {
            section.error_here(e.to_string());
            return None;
        }
    };
    Some(Stream { name, from: from?, forward, module, on_full })
}

fn refuse(section: &Section<'_>, keys: &[&str], whose: &str) {
    for key in keys.iter().filter(|k| section.kind(k).is_some()) {
        section.error(key, format!("does not belong to {whose}"));
    }
}

fn roots(section: &Section<'_>, feeding: &[&Source]) -> Option<From> {
    let topics = section.strings("topics").optional().unwrap_or_default();
    for topic in &topics {
        if let Err(e) = topic_filter(topic) {
            section.error("topics", e);
        }
    }
    let over_mqtt = feeding.iter().any(|s| !matches!(s.kind, SourceKind::Http(_)));
    if over_mqtt && topics.is_empty() {
        section.error_here("`topics` is missing: events of an MQTT source find their stream by topic");
    }
    let schema = schema(section)?;
    let dedup = section.optional_section("dedup").map(|s| dedup(&s, &schema));
    Some(From::Sources {
        sources: feeding.iter().map(|s| s.name.clone()).collect(),
        topics,
        decode: decode(section),
        schema: Arc::new(schema),
        dedup,
    })
}

fn schema(section: &Section<'_>) -> Option<StreamSchema> {
    let table = section.section("columns");
    let columns: Vec<Column> = table
        .keys()
        .into_iter()
        .map(|name| {
            let ty = table.parsed(&name, ColumnType::String, str::parse::<ColumnType>).required();
            Column { name, ty }
        })
        .collect();
    match StreamSchema::new(columns) {
        Ok(schema) => Some(schema),
        Err(e) => {
            table.error_here(e.to_string());
            None
        }
    }
}

fn decode(section: &Section<'_>) -> DecodeRules {
    let mut rules = DecodeRules::default();
    let Some(table) = section.optional_section("decode") else { return rules };
    table.choice("format", &[("json", ())]).or(());
    rules.time = table.string("time").or(rules.time);
    let formats = [
        ("auto", TimeFormat::Auto),
        ("rfc3339", TimeFormat::Rfc3339),
        ("s", TimeFormat::Seconds),
        ("ms", TimeFormat::Millis),
        ("us", TimeFormat::Micros),
        ("ns", TimeFormat::Nanos),
    ];
    rules.time_format = table.choice("time-format", &formats).or(TimeFormat::Auto);
    let missing = [("dead-letter", MissingTime::DeadLetter), ("receive", MissingTime::Receive)];
    rules.missing_time = table.choice("missing-time", &missing).or(MissingTime::DeadLetter);
    let future = table.duration("future-limit", "0 s", "3650 d").optional();
    rules.future_limit_ns = future.map_or(rules.future_limit_ns, ns);
    match table.kind("device") {
        Some(Kind::Table) => {
            let device = table.section("device");
            let level = device.integer("topic-level", 1..=128).optional();
            let field = device.string("field").optional();
            rules.device = match (level, field) {
                (Some(level), None) => DeviceRule::TopicLevel(usize::try_from(level).unwrap_or(1)),
                (None, Some(field)) => DeviceRule::Field(field),
                _ => {
                    device.error_here("must be { topic-level = N }, { field = \"NAME\" } or \"client-id\"");
                    rules.device
                }
            };
        }
        Some(_) => {
            let rule = table.choice("device", &[("client-id", DeviceRule::ClientId)]);
            rules.device = rule.or(DeviceRule::ClientId);
        }
        None => {}
    }
    rules
}

fn dedup(section: &Section<'_>, schema: &StreamSchema) -> Dedup {
    let key = section.strings("key").required();
    let known = |k: &String| k == "device" || k == "time" || schema.columns().iter().any(|c| c.name == *k);
    for unknown in key.iter().filter(|k| !known(k)) {
        section.error("key", format!("there is no column `{unknown}`"));
    }
    if key.is_empty() {
        section.error("key", "names no column");
    }
    let window = section.duration("window", "1 s", "366 d").or(Duration::from_secs(3600));
    let max_keys = section.integer("max-keys", 1..=DEDUP_KEYS_MAX).or(200_000);
    Dedup { key, window, max_keys: usize::try_from(max_keys).unwrap_or(200_000) }
}

fn module(section: &Section<'_>) -> Option<ModuleSetting> {
    let stand_in = ModuleRef { name: "module".into(), version: "0".into() };
    let module = section.parsed("module", stand_in, str::parse::<ModuleRef>).required();
    let with = section.json("with").or("{}".to_owned());
    let choices = [
        ("dead-letter", OnModuleFailure::DeadLetter),
        ("pass", OnModuleFailure::Pass),
        ("hold", OnModuleFailure::Hold),
    ];
    let on_failure = section.choice("on-module-failure", &choices).or(OnModuleFailure::DeadLetter);
    let window = section.optional_section("window").map(|s| window(&s));
    if window.is_some() && on_failure == OnModuleFailure::Pass {
        section.error(
            "on-module-failure",
            "\"pass\" is for filters: a row cannot pass through a window as it is",
        );
    }
    let default = ModuleLimits::default();
    let limits = section.optional_section("limits").map_or(default, |s| ModuleLimits {
        memory_bytes: s.bytes("memory", "1 MiB", "1 GiB").or(default.memory_bytes),
        time: s.duration("time", "1 ms", "60 s").or(default.time),
        output_bytes: s.bytes("output", "1 KiB", "256 MiB").or(default.output_bytes),
    });
    Some(ModuleSetting { module, with, window, on_failure, limits })
}

fn window(section: &Section<'_>) -> Window {
    section.choice("kind", &[("tumbling", ())]).required();
    let key = section.strings("key").or(vec!["device".to_owned()]);
    if !key.iter().any(|k| k == "device") {
        section.error("key", "must name `device`: rows of central's tables have one");
    }
    Window {
        every: section.duration("every", "1 ms", "366 d").required(),
        key,
        lateness: section.duration("lateness", "0 s", "366 d").or(Duration::ZERO),
        idle: section.duration("idle", "100 ms", "366 d").optional(),
    }
}

/// A duration in nanoseconds, as event times count them.
pub(crate) fn ns(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// Checks an MQTT topic filter.
pub(super) fn topic_filter(text: &str) -> Result<String, String> {
    match mqtt::TopicFilter::parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(e) => Err(format!("`{text}` is not a topic filter: {e}")),
    }
}
