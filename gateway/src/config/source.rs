//! `[source.NAME]`

use crate::limits::{CONNECTIONS_MAX, SOURCES_MAX};
use daemon::config::{Kind, Section};
use record::SourceName;
use std::{net::SocketAddr, path::PathBuf};

/// Where events come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its name.
    pub name: SourceName,
    /// What it is.
    pub kind: SourceKind,
}

/// The kinds of sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceKind {
    /// Devices connect to the gateway over MQTT.
    Listener(ListenerSource),
    /// The gateway subscribes to a broker.
    Mqtt(MqttSource),
    /// Devices or programs post JSON.
    Http(HttpSource),
}

/// What to do with a publish whose topic no stream wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmatched {
    /// Count it and acknowledge it.
    Acknowledge,
    /// Count it and end the connection (MQTT 5: answer "topic name invalid").
    Refuse,
}

/// `kind = "mqtt-listener"`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerSource {
    /// Address to listen on.
    pub bind: SocketAddr,
    /// Most connections at a time.
    pub connections: usize,
    /// For topics that no stream wants.
    pub unmatched: Unmatched,
}

/// One topic filter of a broker subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// MQTT topic filter.
    pub topic: String,
    /// 0 or 1.
    pub qos: u8,
}

/// `kind = "mqtt"`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MqttSource {
    /// Broker's host.
    pub host: String,
    /// Broker's port.
    pub port: u16,
    /// Whether the connection is TLS (`mqtts://`).
    pub tls: bool,
    /// Authority that signed the broker's certificate, PEM; needed with TLS.
    pub ca: Option<PathBuf>,
    /// Client id; its session is persistent. Default: `tidegate-<gateway>-<source>`.
    pub client_id: Option<String>,
    /// User name.
    pub user: Option<String>,
    /// File that holds the password.
    pub password_file: Option<PathBuf>,
    /// What to subscribe to.
    pub subscribe: Vec<Subscription>,
}

/// `kind = "http"`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSource {
    /// Address to listen on.
    pub bind: SocketAddr,
    /// Most requests at a time.
    pub requests: usize,
}

/// Reads every `[source.NAME]`.
pub(super) fn read(root: &Section<'_>) -> Vec<Source> {
    let sections = root.sections("source");
    if sections.is_empty() {
        root.error_here("no [source.NAME]: a gateway without a source has nothing to do");
    }
    if sections.len() > SOURCES_MAX {
        root.error("source", format!("{} sources, the limit is {SOURCES_MAX}", sections.len()));
    }
    let mut out = Vec::new();
    for (name, section) in sections {
        let kinds = [("mqtt-listener", 0), ("mqtt", 1), ("http", 2)];
        let kind = section.choice("kind", &kinds).required();
        let kind = match kind {
            0 => SourceKind::Listener(listener(&section)),
            1 => SourceKind::Mqtt(mqtt(&section)),
            _ => SourceKind::Http(http(&section)),
        };
        match SourceName::new(&name) {
            Ok(name) => out.push(Source { name, kind }),
            Err(e) => section.error_here(e.to_string()),
        }
    }
    out
}

fn listener(section: &Section<'_>) -> ListenerSource {
    let choices = [("ack", Unmatched::Acknowledge), ("refuse", Unmatched::Refuse)];
    ListenerSource {
        bind: section.socket("bind").required(),
        connections: count(section, "connections", CONNECTIONS_MAX, 1_000),
        unmatched: section.choice("unmatched", &choices).or(Unmatched::Acknowledge),
    }
}

fn http(section: &Section<'_>) -> HttpSource {
    HttpSource { bind: section.socket("bind").required(), requests: count(section, "requests", 1_024, 64) }
}

fn count(section: &Section<'_>, key: &str, most: usize, default: usize) -> usize {
    let range = 1..=i64::try_from(most).unwrap_or(i64::MAX);
    let n = section.integer(key, range).or(i64::try_from(default).unwrap_or(i64::MAX));
    usize::try_from(n).unwrap_or(default)
}

fn mqtt(section: &Section<'_>) -> MqttSource {
    let address = section.parsed("url", (String::new(), 0, false), |text| {
        let plain = text.strip_prefix("mqtt://").map(|rest| (rest, false, 1883));
        let secure = text.strip_prefix("mqtts://").map(|rest| (rest, true, 8883));
        let wrong = || format!("`{text}` is not an address like \"mqtts://broker.local:8883\"");
        let (rest, tls, default) = plain.or(secure).ok_or_else(wrong)?;
        let rest = rest.trim_end_matches('/');
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) => (host, port.parse::<u16>().map_err(|_| wrong())?),
            None => (rest, default),
        };
        if host.is_empty() || host.contains(['/', '@']) {
            Err(wrong())
        } else {
            Ok((host.to_owned(), port, tls))
        }
    });
    let (host, port, tls) = address.required();
    let ca = section.path_to("ca").optional();
    if tls && ca.is_none() {
        section
            .error_here("a mqtts:// source needs `ca`, the authority that signed the broker's certificate");
    }
    MqttSource {
        host,
        port,
        tls,
        ca,
        client_id: section.string("client-id").optional(),
        user: section.string("user").optional(),
        password_file: section.path_to("password-file").optional(),
        subscribe: subscriptions(section),
    }
}

fn subscriptions(section: &Section<'_>) -> Vec<Subscription> {
    if section.kind("subscribe").is_some_and(|k| k != Kind::List) {
        section.error("subscribe", "must be a list like [{ topic = \"plc/+/data\", qos = 1 }]");
        return Vec::new();
    }
    let list = section.list("subscribe");
    if list.is_empty() {
        section.error_here("`subscribe` names no topic, like [{ topic = \"plc/+/data\", qos = 1 }]");
    }
    list.iter()
        .map(|item| Subscription {
            topic: item.parsed("topic", String::new(), super::stream::topic_filter).required(),
            qos: u8::try_from(item.integer("qos", 0..=1).or(1)).unwrap_or(1),
        })
        .collect()
}
