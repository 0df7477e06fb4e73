//! `central.toml`: read key by key, every mistake reported at once with its place.

use crate::{
    limits::{CONNECTIONS_MAX, GROUP_BYTES},
    link::LinkConfig,
    log::{embedded::EmbeddedOptions, kafka::KafkaOptions},
};
use ::link::{server::ServerConfigLimits, tls::TlsFiles};
use daemon::config::{Checker, ConfigErrors, Document, Section};
use record::StreamName;
use std::{
    collections::BTreeSet,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use thiserror::Error;

mod kafka;

/// What a process of central does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    /// Takes blocks from gateways.
    pub link: bool,
    /// Writes ClickHouse.
    pub sink: bool,
    /// Judges rules and sends alerts.
    pub alerts: bool,
    /// Answers people and programs.
    pub api: bool,
    /// Compares gateways, log and tables.
    pub audit: bool,
    /// Publishes single events; only when it is asked for.
    pub fanout: bool,
}

impl Roles {
    /// All that a process has unless something else is said: everything but the fan-out.
    pub const ALL: Roles =
        Roles { link: true, sink: true, alerts: true, api: true, audit: true, fanout: false };

    const NONE: Roles =
        Roles { link: false, sink: false, alerts: false, api: false, audit: false, fanout: false };

    /// From their names.
    pub fn parse<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut roles = Roles::NONE;
        for name in names {
            match name.trim() {
                "link" => roles.link = true,
                "sink" => roles.sink = true,
                "alerts" => roles.alerts = true,
                "api" => roles.api = true,
                "audit" => roles.audit = true,
                "fanout" => roles.fanout = true,
                other => {
                    return Err(format!(
                        "{other:?} is no role: use link, sink, alerts, api, audit or fanout"
                    ));
                }
            }
        }
        if roles == Roles::NONE { Err("names no role".into()) } else { Ok(roles) }
    }
}

/// Where ClickHouse is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClickHouse {
    /// `tidegate-clickhouse`, started and watched by central.
    Embedded {
        /// The program; beside central's own when not given.
        program: Option<PathBuf>,
        /// The engine's library; searched for when not given.
        library: Option<PathBuf>,
        /// Database of the tables.
        database: String,
    },
    /// A server that exists.
    Server {
        /// `http://host:8123`.
        url: String,
        /// User.
        user: String,
        /// The password, read from its file.
        password: String,
        /// Database of the tables.
        database: String,
    },
}

impl ClickHouse {
    /// Database of the tables.
    pub fn database(&self) -> &str {
        match self {
            Self::Embedded { database, .. } | Self::Server { database, .. } => database,
        }
    }
}

/// Between link and sink.
#[derive(Debug, Clone)]
pub enum Log {
    /// In this process' own folder.
    Embedded(EmbeddedOptions),
    /// In Apache Kafka.
    Kafka(KafkaOptions),
}

/// Rules and whom they tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Alerts {
    /// Rule files, as patterns with `*` in the last component.
    pub rules: Vec<PathBuf>,
    /// Alertmanagers, by URL.
    pub alertmanagers: Vec<String>,
    /// Webhooks, by URL.
    pub webhooks: Vec<String>,
}

/// What is published as single events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fanout {
    /// The streams; all when not given.
    pub streams: Option<BTreeSet<StreamName>>,
}

/// The checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The folder of everything that central keeps.
    pub data_dir: PathBuf,
    /// What this process does.
    pub roles: Roles,
    /// The link role; there when the role is.
    pub link: Option<LinkConfig>,
    /// The log.
    pub log: Log,
    /// ClickHouse.
    pub clickhouse: ClickHouse,
    /// Rules.
    pub alerts: Alerts,
    /// Single events.
    pub fanout: Fanout,
    /// Where metrics, health and the API are.
    pub api: SocketAddr,
}

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum ConfigFileError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file has mistakes.
    #[error(transparent)]
    Mistakes(#[from] ConfigErrors),
}

impl Config {
    /// Reads and checks a file; `roles` given on the command line win.
    pub fn load(path: &Path, roles: Option<Roles>) -> Result<Self, ConfigFileError> {
        let read = |source| ConfigFileError::Read { path: path.to_owned(), source };
        Ok(Self::parse(&fs::read_to_string(path).map_err(read)?, path, roles)?)
    }

    /// Checks the text of a file.
    pub fn parse(text: &str, path: &Path, roles: Option<Roles>) -> Result<Self, ConfigErrors> {
        let document = Document::parse(text, path)?;
        let check = Checker::new(&document);
        let root = check.root();
        let central = root.section("central");
        let data_dir = central.path_to("data-dir").required();
        let said = central.strings("roles").optional().map(|names| {
            Roles::parse(names.iter().map(String::as_str)).unwrap_or_else(|why| {
                central.error("roles", why);
                Roles::ALL
            })
        });
        let roles = roles.or(said).unwrap_or(Roles::ALL);
        // A process without the role may share the file of one that has it: the section is checked all the same.
        let section = if roles.link { Some(root.section("link")) } else { root.optional_section("link") };
        let advertise =
            section.as_ref().and_then(|s| s.parsed("advertise", String::new(), advertised).optional());
        let link = section.map(|s| link(&s)).filter(|_| roles.link);
        let advertise = advertise.or_else(|| Some(format!("https://{}", reachable(link.as_ref()?.bind)?)));
        let at = (link.is_some(), advertise);
        let log = root.optional_section("log").map_or_else(default_log, |s| log(&s, at, roles));
        let clickhouse = root.optional_section("clickhouse").map_or_else(embedded, |s| clickhouse(&s));
        if roles.fanout && matches!(log, Log::Embedded(_)) {
            let why = "the role fanout publishes to topics, which only log.kind = \"kafka\" has: leave it out, or use that log";
            central.error("roles", why);
        }
        let alerts = root.optional_section("alerts").map_or_else(Alerts::default, |s| alerts(&s));
        let fanout = root.optional_section("fanout").map_or_else(Fanout::default, |s| fanout(&s));
        let api = root.optional_section("api").and_then(|s| s.socket("bind").optional());
        let api = api.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 9465)));
        check.finish()?;
        Ok(Self { data_dir, roles, link, log, clickhouse, alerts, fanout, api })
    }
}

fn link(section: &Section<'_>) -> LinkConfig {
    let tls = section.section("tls");
    let defaults = ServerConfigLimits::default();
    let connections = section.integer("connections", 1..=CONNECTIONS_MAX).or(defaults.connections as i64);
    LinkConfig {
        bind: section.socket("bind").or(SocketAddr::from(([0, 0, 0, 0], 7443))),
        tls: TlsFiles {
            ca: tls.path_to("ca").required(),
            cert: tls.path_to("cert").required(),
            key: tls.path_to("key").required(),
            revoked: tls.path_to("revoked").optional(),
        },
        commit_interval: section.duration("commit-interval", "0 s", "1 s").or(Duration::from_millis(20)),
        commit_bytes: GROUP_BYTES,
        limits: ServerConfigLimits {
            connections: usize::try_from(connections).unwrap_or(defaults.connections),
            ..defaults
        },
    }
}

/// An address that others can name; none for one that means all of this machine's.
fn reachable(bind: SocketAddr) -> Option<SocketAddr> {
    Some(bind).filter(|b| !b.ip().is_unspecified())
}

fn advertised(text: &str) -> Result<String, String> {
    match text.strip_prefix("https://") {
        Some(host) if !host.is_empty() && !host.contains(['/', ' ']) => Ok(text.to_owned()),
        _ => Err(format!("`{text}` is not a URL like \"https://central-1.example:7443\"")),
    }
}

fn default_embedded() -> EmbeddedOptions {
    EmbeddedOptions { groups: vec![crate::SINK_GROUP.to_owned()], ..EmbeddedOptions::default() }
}

fn default_log() -> Log {
    Log::Embedded(default_embedded())
}

/// `at`: whether the process has the link role, and where gateways reach it.
fn log(section: &Section<'_>, at: (bool, Option<String>), roles: Roles) -> Log {
    let kind = section.string("kind").or("embedded".into());
    match kind.as_str() {
        "embedded" => Log::Embedded(embedded_log(section)),
        "kafka" => Log::Kafka(kafka::log(section, at, roles)),
        other => {
            section.error(
                "kind",
                format!("{other:?} is not a log that this program has: use \"embedded\" or \"kafka\""),
            );
            section.ignore_rest();
            default_log()
        }
    }
}

fn embedded_log(section: &Section<'_>) -> EmbeddedOptions {
    let defaults = default_embedded();
    let partitions = section.integer("partitions", 1..=256).or(defaults.partitions.into());
    let options = EmbeddedOptions {
        partitions: u32::try_from(partitions).unwrap_or(defaults.partitions),
        segment_bytes: section.bytes("segment", "1 MiB", "1 GiB").or(defaults.segment_bytes),
        quota_bytes: section.bytes("quota", "16 MiB", "1024 TiB").or(defaults.quota_bytes),
        keep_bytes: section.bytes("keep", "0 B", "1024 TiB").or(defaults.keep_bytes),
        groups: defaults.groups,
    };
    let least = options.quota_bytes_min();
    if options.quota_bytes < least {
        let least = least.div_ceil(1 << 20);
        section.error("quota", format!("must hold two segments of each partition: \"{least} MiB\" at least"));
    }
    options
}

fn embedded() -> ClickHouse {
    ClickHouse::Embedded { program: None, library: None, database: "tidegate".into() }
}

fn clickhouse(section: &Section<'_>) -> ClickHouse {
    let database = section.string("database").or("tidegate".into());
    if database.len() > 64 || !database.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        section.error("database", "may hold only ASCII letters, digits and '_'");
    }
    if section.boolean("embedded").or(!section.keys().contains(&"url".to_owned())) {
        let program = section.path_to("program").optional();
        let library = section.path_to("library").optional();
        return ClickHouse::Embedded { program, library, database };
    }
    let url = section.parsed("url", String::new(), clickhouse_url).required();
    let user = section.string("user").or("default".into());
    let password = password(section);
    ClickHouse::Server { url, user, password, database }
}

/// The first line of `password-file`; nothing when the key is not there.
fn password(section: &Section<'_>) -> String {
    let Some(path) = section.path_to("password-file").optional() else { return String::new() };
    match fs::read_to_string(&path) {
        Ok(text) => text.lines().next().unwrap_or_default().to_owned(),
        Err(e) => {
            section.error("password-file", format!("{}: {e}", path.display()));
            String::new()
        }
    }
}

fn alerts(section: &Section<'_>) -> Alerts {
    let urls = |key: &str| {
        let urls = section.strings(key).optional().unwrap_or_default();
        for url in &urls {
            if let Err(why) = http_url(url) {
                section.error(key, why);
            }
        }
        urls
    };
    let (alertmanagers, webhooks) = (urls("alertmanagers"), urls("webhooks"));
    let rules = section.strings("rules").optional().unwrap_or_default();
    let folder = section.folder();
    let rules = rules.into_iter().map(|r| folder.join(r)).collect();
    Alerts { rules, alertmanagers, webhooks }
}

fn fanout(section: &Section<'_>) -> Fanout {
    let named = |name: &String| match StreamName::new(name) {
        Ok(stream) => Some(stream),
        Err(why) => {
            section.error("streams", why.to_string());
            None
        }
    };
    let streams = section.strings("streams").optional();
    Fanout { streams: streams.map(|all| all.iter().filter_map(named).collect()) }
}

/// Where ClickHouse answers. The client speaks no TLS, and a URL that it could not use must not pass the check.
fn clickhouse_url(text: &str) -> Result<String, String> {
    if text.starts_with("https://") {
        return Err(format!(
            "`{text}` needs TLS, which central does not speak to ClickHouse: name a plain endpoint on this machine, such \
             as \"http://127.0.0.1:8123\", the server's own or that of a proxy that speaks TLS to it"
        ));
    }
    http_url(text)
}

fn http_url(text: &str) -> Result<String, String> {
    let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    match host {
        Some(h) if !h.is_empty() && !h.starts_with('/') && !h.contains(char::is_whitespace) => {
            Ok(text.trim_end_matches('/').to_owned())
        }
        _ => Err(format!("`{text}` is not a URL like \"http://127.0.0.1:8123\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigErrors> {
        Config::parse(text, Path::new("/etc/tidegate/central.toml"), None)
    }

    const SMALL: &str = r#"
[central]
data-dir = "data"
[link]
tls = { ca = "ca.pem", cert = "central.pem", key = "central.key" }
"#;

    #[test]
    fn a_small_file_is_enough() {
        let c = parse(SMALL).expect("fine");
        assert_eq!(c.data_dir, Path::new("/etc/tidegate/data"));
        assert_eq!(c.roles, Roles::ALL);
        let link = c.link.expect("the role is on");
        assert_eq!(link.tls.ca, Path::new("/etc/tidegate/ca.pem"));
        assert_eq!(link.commit_interval, Duration::from_millis(20));
        let Log::Embedded(log) = c.log else { panic!("embedded") };
        assert_eq!((log.partitions, log.groups), (2, vec!["sink".to_owned()]));
        assert!(matches!(c.clickhouse, ClickHouse::Embedded { .. }));
    }

    #[test]
    fn a_server_and_rules() {
        let text = format!(
            "{SMALL}\n[clickhouse]\nurl = \"http://ch:8123/\"\nuser = \"t\"\n[alerts]\nrules = [\"rules/*.yaml\"]\nwebhooks = \"http://h/x\"\n[api]\nbind = \"127.0.0.1:0\"\n"
        );
        let c = parse(&text).expect("fine");
        assert!(
            matches!(c.clickhouse, ClickHouse::Server { url, user, .. } if url == "http://ch:8123" && user == "t")
        );
        assert_eq!(c.alerts.rules, vec![PathBuf::from("/etc/tidegate/rules/*.yaml")]);
        assert_eq!(c.alerts.webhooks, vec!["http://h/x"]);
    }

    #[test]
    fn the_log_in_kafka() {
        let kafka = |more: &str| parse(&format!("{SMALL}\n[log]\nkind = \"kafka\"\n{more}"));
        let errors = kafka("brokers = [\"k\"]\npartitions = 6\nprogress-partitions = 4\nmin-isr = 4\n")
            .expect_err("wrong");
        let all: Vec<String> = errors.errors.iter().map(|e| format!("{} {}", e.key, e.message)).collect();
        for needle in
            ["log.brokers `k` is not HOST:PORT", "log.partitions 6", "log.min-isr 4", "set link.advertise"]
        {
            assert!(all.iter().any(|e| e.contains(needle)), "{needle} in {all:?}");
        }
        let text = SMALL.replace("[link]", "[link]\nbind = \"127.0.0.1:7443\"");
        let text = format!("{text}\n[log]\nkind = \"kafka\"\nbrokers = \"k1:9092\"\n");
        let Log::Kafka(k) = parse(&text).expect("fine").log else { panic!("kafka") };
        assert_eq!((k.partitions, k.shards, k.replication, k.min_isr, k.sink), (16, 16, 3, 2, true));
        assert_eq!(k.advertise.as_deref(), Some("https://127.0.0.1:7443"));
        let sink = Some(Roles::parse(["sink"]).expect("roles"));
        let Log::Kafka(k) = Config::parse(&text, Path::new("c.toml"), sink).expect("fine").log else {
            panic!("kafka")
        };
        assert_eq!(k.advertise, None);
    }

    #[test]
    fn kafka_over_tls_with_a_password_and_options() {
        let folder = tempfile::TempDir::new().expect("temp dir");
        let put = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("writes");
        put("ca.pem", "");
        put("password", "s3cret\nsecond line\n");
        let parse = |more: &str| {
            let text = SMALL.replace("[link]", "[link]\nbind = \"127.0.0.1:7443\"");
            let text = format!("{text}\n[log]\nkind = \"kafka\"\nbrokers = \"k1:9092\"\n{more}");
            Config::parse(&text, &folder.path().join("central.toml"), None).map(|c| c.log)
        };
        let good = "client-id = \"c1\"\ntls = { ca = \"ca.pem\" }\n\
                    sasl = { mechanism = \"SCRAM-SHA-512\", user = \"u\", password-file = \"password\" }\n\
                    options = { \"socket.keepalive.enable\" = true, \"statistics.interval.ms\" = 5000 }\n";
        let Log::Kafka(k) = parse(good).expect("fine") else { panic!("kafka") };
        let get = |key: &str| k.client.0.get(key).map(String::as_str);
        assert_eq!(get("security.protocol"), Some("sasl_ssl"));
        assert_eq!((get("sasl.password"), get("client.id")), (Some("s3cret"), Some("c1")));
        assert_eq!(
            (get("socket.keepalive.enable"), get("statistics.interval.ms")),
            (Some("true"), Some("5000"))
        );
        assert!(!format!("{k:?}").contains("s3cret"), "{k:?}");
        let bad = "tls = { ca = \"no.pem\", cert = \"ca.pem\" }\nsasl = { mechanism = \"GSSAPI\", user = \"u\" }\n\
                   options = { \"acks\" = 1, \"no.such\" = 1, \"socket.keepalive.enable\" = 7 }\n";
        let errors = parse(bad).expect_err("wrong").errors;
        let all: Vec<String> = errors.iter().map(|e| format!("{} {}", e.key, e.message)).collect();
        for needle in [
            "no.pem is no file",
            "cert and key go together",
            "log.sasl.mechanism",
            "password-file is missing",
            "log.options.acks belongs to the log",
            "no.such",
            "log.options.socket.keepalive.enable",
        ] {
            assert!(all.iter().any(|e| e.contains(needle)), "{needle} in {all:?}");
        }
        let plain = "sasl = { mechanism = \"PLAIN\", user = \"u\", password-file = \"password\" }";
        assert!(parse(plain).expect_err("refused").to_string().contains("PLAIN sends the password as it is"));
    }

    #[test]
    fn a_server_behind_tls_is_refused_with_the_way_out() {
        let text = format!("{SMALL}\n[clickhouse]\nurl = \"https://ch.example:8443\"\n");
        let errors = parse(&text).expect_err("refused").errors;
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].key, "clickhouse.url");
        for needle in ["`https://ch.example:8443` needs TLS", "http://127.0.0.1:8123", "proxy"] {
            assert!(errors[0].message.contains(needle), "{needle} in {}", errors[0].message);
        }
        let receivers = format!("{SMALL}\n[alerts]\nwebhooks = [\"https://h/x\"]\n");
        assert!(parse(&receivers).is_ok(), "receivers may be behind TLS");
    }

    #[test]
    fn five_mistakes_are_five_lines() {
        let text = r#"
[central]
data-dri = "data"
roles = ["link", "snik"]
[link]
bind = "nowhere"
[log]
kind = "redis"
[alerts]
alertmanagers = ["am:9093"]
"#;
        let errors = parse(text).expect_err("wrong").errors;
        let all = errors
            .iter()
            .map(|e| format!("{}:{} {}", e.line, e.key, e.message))
            .collect::<Vec<_>>()
            .join("\n");
        for needle in [
            "3:central.data-dri unknown key, did you mean `data-dir`?",
            "central.data-dir",
            "4:central.roles \"snik\" is no role",
            "6:link.bind `nowhere` is not an address",
            "link.tls missing section",
            "8:log.kind \"redis\" is not a log",
            "alerts.alertmanagers `am:9093` is not a URL",
        ] {
            assert!(all.contains(needle), "{needle} in\n{all}");
        }
    }

    #[test]
    fn the_fan_out_needs_a_log_with_topics() {
        let roles = Some(Roles::parse(["fanout", "api"]).expect("roles"));
        let of = |log: &str| {
            let text =
                format!("[central]\ndata-dir = \"d\"\n[log]\n{log}\n[fanout]\nstreams = [\"machine\"]\n");
            Config::parse(&text, Path::new("c.toml"), roles)
        };
        let errors = of("kind = \"embedded\"").expect_err("no topics").errors;
        assert_eq!(errors.len(), 1);
        assert!(errors[0].key == "central.roles" && errors[0].message.contains("kafka"), "{errors:?}");
        let c = of("kind = \"kafka\"\nbrokers = [\"k:9092\"]").expect("fine");
        let Log::Kafka(k) = c.log else { panic!("kafka") };
        assert_eq!((k.fanout, k.sink, k.advertise), (true, false, None));
        assert_eq!(c.fanout.streams, Some(BTreeSet::from([StreamName::new("machine").expect("valid")])));
        let usual = parse(SMALL).expect("fine");
        assert!(!usual.roles.fanout, "it is there only for those who ask");
    }

    #[test]
    fn roles_on_the_command_line_win() {
        let only = Roles::parse(["sink", "api"]).expect("roles");
        let c =
            Config::parse("[central]\ndata-dir = \"d\"\n", Path::new("c.toml"), Some(only)).expect("fine");
        assert!(c.link.is_none() && !c.roles.link && c.roles.sink);
        assert!(Roles::parse([""]).is_err());
    }
}
