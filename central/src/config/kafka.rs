//! `[log]` with `kind = "kafka"`: where the cluster is, how it is spoken with, and what the log is like.

use super::{Roles, password};
use crate::log::kafka::{ClientOptions, KafkaOptions, check_client};
use daemon::config::{Kind, Section};
use std::time::Duration;

/// Options of the client that the log sets itself, because the promise rests on them.
const OURS: &[&str] = &[
    "acks",
    "auto.offset.reset",
    "bootstrap.servers",
    "client.id",
    "compression.codec",
    "compression.type",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "group.remote.assignor",
    "heartbeat.interval.ms",
    "isolation.level",
    "linger.ms",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "message.max.bytes",
    "metadata.broker.list",
    "partition.assignment.strategy",
    "plugin.library.paths",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.ms",
    "request.required.acks",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.password",
    "sasl.username",
    "security.protocol",
    "session.timeout.ms",
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "transaction.timeout.ms",
    "transactional.id",
];

pub(super) fn log(section: &Section<'_>, at: (bool, Option<String>), roles: Roles) -> KafkaOptions {
    let count = |key: &str, range, default: u32| {
        u32::try_from(section.integer(key, range).or(default.into())).unwrap_or(default)
    };
    let brokers = section.strings("brokers").required();
    for broker in &brokers {
        if !broker
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        {
            section.error("brokers", format!("`{broker}` is not HOST:PORT"));
        }
    }
    let prefix = section.string("prefix").or("tidegate".into());
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if prefix.is_empty() || prefix.len() > 64 || !prefix.chars().all(plain) {
        section.error("prefix", "may hold 1 to 64 of ASCII letters, digits, '-', '_' and '.'");
    }
    let partitions = count("partitions", 1..=1_024, 16);
    let shards = count("progress-partitions", 1..=1_024, 16);
    if partitions % shards != 0 {
        section
            .error("partitions", format!("{partitions} must be a multiple of progress-partitions, {shards}"));
    }
    let (replication, min_isr) = (count("replication", 1..=16, 3), count("min-isr", 1..=16, 2));
    if min_isr > replication {
        section
            .error("min-isr", format!("{min_isr} copies cannot be asked for where there are {replication}"));
    }
    let (link, advertise) = at;
    if link && advertise.is_none() {
        section.error("kind", "with \"kafka\" other processes must know where gateways reach this one: set link.advertise = \"https://HOST:7443\"");
    }
    KafkaOptions {
        brokers,
        prefix,
        partitions,
        shards,
        replication: i32::try_from(replication).unwrap_or(i32::MAX),
        min_isr,
        retention: section.duration("retention", "1 h", "3650 d").or(Duration::from_secs(7 * 86_400)),
        client: client(section),
        advertise: advertise.filter(|_| link),
        sink: roles.sink,
        fanout: roles.fanout,
    }
}

/// How the client speaks with the brokers.
fn client(section: &Section<'_>) -> ClientOptions {
    let mut all = ClientOptions::default();
    let mut set = |key: &str, value: &str| drop(all.0.insert(key.to_owned(), value.to_owned()));
    set("client.id", &section.string("client-id").or("tidegate-central".into()));
    let tls = section.optional_section("tls");
    if let Some(tls) = &tls {
        let file = |key: &str, needed: bool| {
            let field = tls.path_to(key);
            let path = if needed { Some(field.required()) } else { field.optional() }?;
            if !path.as_os_str().is_empty() && !path.is_file() {
                tls.error(key, format!("{} is no file", path.display()));
            }
            Some(path.display().to_string())
        };
        let (ca, cert, key) = (file("ca", true), file("cert", false), file("key", false));
        if cert.is_some() != key.is_some() {
            tls.error_here("cert and key go together");
        }
        let files = [("ssl.ca.location", ca), ("ssl.certificate.location", cert), ("ssl.key.location", key)];
        files.iter().filter_map(|(k, v)| Some((k, v.as_ref()?))).for_each(|(k, v)| set(k, v));
    }
    let sasl = section.optional_section("sasl");
    if let Some(sasl) = &sasl {
        let names = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"].map(|name| (name, name));
        let mechanism = sasl.choice("mechanism", &names).required();
        if mechanism == "PLAIN" && tls.is_none() {
            sasl.error("mechanism", "PLAIN sends the password as it is: set log.tls, or use SCRAM-SHA-512");
        }
        set("sasl.mechanism", mechanism);
        set("sasl.username", &sasl.string("user").required());
        if sasl.keys().iter().any(|key| key == "password-file") {
            set("sasl.password", &password(sasl));
        } else {
            sasl.error_here("password-file is missing: a file whose first line is the password");
        }
    }
    let protocol = match (tls.is_some(), sasl.is_some()) {
        (false, false) => "plaintext",
        (true, false) => "ssl",
        (false, true) => "sasl_plaintext",
        (true, true) => "sasl_ssl",
    };
    set("security.protocol", protocol);
    if let Some(options) = section.optional_section("options") {
        further(&options, &mut all);
    }
    all
}

/// `[log.options]`: any option of librdkafka that is not the log's own.
fn further(options: &Section<'_>, all: &mut ClientOptions) {
    for key in options.keys() {
        let value = match options.kind(&key) {
            // Numbers and booleans are written there as here.
            Some(Kind::Scalar) => options.json(&key).required(),
            _ => options.string(&key).required(),
        };
        if OURS.contains(&key.as_str()) {
            options.error(
                &key,
                "belongs to the log: it is set by the keys of [log], or because the promise rests on it",
            );
        } else if let Err(error) = check_client(&key, &value) {
            options.error(&key, error);
        } else {
            all.0.insert(key, value);
        }
    }
}
