//! `gateway.toml`, read, checked and made into types; every mistake of the file is reported at once with its place.
//!
//! Nothing is opened and nothing is connected to while a configuration is read: `--check` touches no data.

mod graph;
mod source;
mod stream;
#[cfg(test)]
mod tests;

pub use source::{HttpSource, ListenerSource, MqttSource, Source, SourceKind, Subscription, Unmatched};
pub use stream::{Dedup, From, ModuleLimits, ModuleSetting, OnFull, OnModuleFailure, Stream, Window};

use crate::limits::STEP_INTERVAL;
use daemon::config::{Checker, ConfigErrors, Document, Section};
use record::{GatewayId, ModuleRef, StreamName};
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// Everything that a gateway is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its id; equals its certificate's name.
    pub id: GatewayId,
    /// Where it keeps its logs and modules.
    pub data_dir: PathBuf,
    /// `/metrics`, `/healthz`, `/readyz` and the admin API; loopback.
    pub admin: SocketAddr,
    /// Log lines as JSON instead of text.
    pub log_json: bool,
    /// The durable buffer.
    pub buffer: Buffer,
    /// Where to forward to.
    pub central: Central,
    /// Sources, in the file's order.
    pub sources: Vec<Source>,
    /// Streams, parents before their children.
    pub streams: Vec<Stream>,
    /// Modules and their compiler.
    pub modules: Modules,
    /// Streams that are no longer configured, and whose waiting events may be given up.
    pub discard: BTreeSet<StreamName>,
}

/// `[buffer]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Bytes that the two logs may take together.
    pub quota_bytes: u64,
    /// How long a group commit collects.
    pub commit_interval: Duration,
    /// How long a step waits for more events.
    pub step_interval: Duration,
    /// Size of a segment file.
    pub segment_bytes: u64,
}

/// `[central]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Central {
    /// `https://host:port` of each process that takes gateways, one at least.
    pub urls: Vec<String>,
    /// The authority that signed central's certificate, PEM.
    pub ca: PathBuf,
    /// This gateway's certificate, PEM.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}

/// `[modules]`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Modules {
    /// The compiler program; found beside the gateway's own when not given.
    pub compiler: Option<PathBuf>,
    /// Modules put in at the start if they are not there yet.
    pub preload: Vec<(ModuleRef, PathBuf)>,
}

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, ConfigErrors> {
        Self::build(&Document::read(path)?)
    }

    /// Reads and checks a text; `path` is for messages and relative paths.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigErrors> {
        Self::build(&Document::parse(text, path)?)
    }

    fn build(document: &Document) -> Result<Self, ConfigErrors> {
        let check = Checker::new(document);
        let root = check.root();
        let gateway = root.section("gateway");
        let admin = gateway.socket("admin").or(SocketAddr::from(([127, 0, 0, 1], 9464)));
        if !admin.ip().is_loopback() {
            gateway.error("admin", "must be a loopback address: the admin API has no authentication");
        }
        let stand_in = || GatewayId::new("gateway").ok();
        let id = gateway.parsed("id", stand_in(), |t| GatewayId::new(t).map(Some).map_err(|e| e.to_string()));
        let id = id.required();
        let data_dir = gateway.path_to("data-dir").required();
        let log_json = gateway.choice("log", &[("text", false), ("json", true)]).or(false);
        let (buffer, discard) = buffer(&root);
        let central = central(&root.section("central"));
        let sources = source::read(&root);
        let streams = stream::read(&root, &sources);
        let modules = modules(&root);
        for stream in streams.iter().filter(|s| discard.contains(&s.name)) {
            let message = format!("`{}` is configured below: only what is not can be given up", stream.name);
            root.section("buffer").error("discard", message);
        }
        check.finish()?;
        // `id` is only absent when `finish` has refused the file.
        let id = id.or_else(stand_in).expect("\"gateway\" is a valid name");
        Ok(Self { id, data_dir, admin, log_json, buffer, central, sources, streams, modules, discard })
    }

    /// Whether a stream takes events from sources, and so has a lane.
    pub fn is_root(&self, name: &StreamName) -> bool {
        self.stream(name.as_str()).is_some_and(|s| matches!(s.from, From::Sources { .. }))
    }

    /// The stream of this name.
    pub fn stream(&self, name: &str) -> Option<&Stream> {
        self.streams.iter().find(|s| s.name.as_str() == name)
    }
}

fn buffer(root: &Section<'_>) -> (Buffer, BTreeSet<StreamName>) {
    let default = Buffer {
        quota_bytes: 2 << 30,
        commit_interval: Duration::from_millis(5),
        step_interval: STEP_INTERVAL,
        segment_bytes: 64 << 20,
    };
    let Some(section) = root.optional_section("buffer") else {
        return (default, BTreeSet::new());
    };
    let quota_bytes = section.bytes("quota", "8 MiB", "64 TiB").or(default.quota_bytes);
    let commit_interval = section.duration("commit-interval", "100 us", "1 s").or(default.commit_interval);
    let step_interval = section.duration("step-interval", "0 s", "1 s").or(default.step_interval);
    // A small quota wants small segments: whole segments are what is given back.
    let fitting = default.segment_bytes.min((quota_bytes / 16).next_power_of_two()).max(1 << 20);
    let segment_bytes = section.bytes("segment", "1 MiB", "1 GiB").or(fitting);
    if segment_bytes.saturating_mul(8) > quota_bytes {
        section.error("quota", "must be at least eight segments");
    }
    let mut discard = BTreeSet::new();
    for name in section.strings("discard").or(Vec::new()) {
        match StreamName::new(&name) {
            Ok(name) => drop(discard.insert(name)),
            Err(e) => section.error("discard", format!("`{name}`: {e}")),
        }
    }
    (Buffer { quota_bytes, commit_interval, step_interval, segment_bytes }, discard)
}

fn central(section: &Section<'_>) -> Central {
    let urls = section.strings("url").required();
    for text in &urls {
        let host = text.strip_prefix("https://").map(|h| h.trim_end_matches('/'));
        if !host
            .and_then(|h| h.rsplit_once(':'))
            .is_some_and(|(n, p)| !n.is_empty() && p.parse::<u16>().is_ok())
        {
            let like = "is not an address like \"https://central.example:7443\"";
            section.error("url", format!("`{text}` {like}"));
        }
    }
    if urls.is_empty() && section.keys().iter().any(|key| key == "url") {
        section.error("url", "must name one address at least");
    }
    let tls = section.section("tls");
    Central {
        urls,
        ca: tls.path_to("ca").required(),
        cert: tls.path_to("cert").required(),
        key: tls.path_to("key").required(),
    }
}

fn modules(root: &Section<'_>) -> Modules {
    let Some(section) = root.optional_section("modules") else { return Modules::default() };
    let compiler = section.path_to("compiler").optional();
    let mut preload = Vec::new();
    if let Some(table) = section.optional_section("preload") {
        for key in table.keys() {
            match key.parse::<ModuleRef>() {
                Ok(module) => preload.push((module, table.path_to(&key).required())),
                Err(e) => table.error(&key, e.to_string()),
            }
        }
    }
    Modules { compiler, preload }
}
