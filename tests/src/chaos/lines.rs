//! Lines between the processes of a cluster: one from each process to the broker, one from each to ClickHouse, and one in
//! front of each process that takes gateways.
//!
//! A broker tells its clients where it is, so each process has a listener of the broker for itself, whose advertised
//! address is that process' line.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;

use super::proxy::Line;
use crate::cluster::{JUDGE, LINKS, SINKS};
use crate::ports;

/// How long the broker may be silent before it is fenced.
pub const BROKER_SESSION: Duration = Duration::from_secs(9);

/// The lines, by the process that connects, or that is connected to.
pub struct Lines {
    to_kafka: BTreeMap<&'static str, Line>,
    to_clickhouse: BTreeMap<&'static str, Line>,
    to_link: BTreeMap<&'static str, Line>,
    kafka_settings: Vec<(&'static str, String)>,
}

impl Lines {
    /// Lines to servers that are still to be started: ClickHouse and the links at these addresses.
    pub async fn open(clickhouse: SocketAddr, links: [SocketAddr; 2]) -> anyhow::Result<Self> {
        let (mut to_kafka, mut to_clickhouse, mut to_link) =
            (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut listeners =
            "PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller-port}".to_owned();
        let mut advertised = "PLAINTEXT://127.0.0.1:{port}".to_owned();
        let mut protocols = "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT".to_owned();
        for (number, name) in LINKS.into_iter().chain(SINKS).chain([JUDGE]).enumerate() {
            let listener = ports::free();
            let line = Line::to(listener).await?;
            listeners += &format!(",LINE{number}://{listener}");
            advertised += &format!(",LINE{number}://{}", line.address());
            protocols += &format!(",LINE{number}:PLAINTEXT");
            to_kafka.insert(name, line);
            to_clickhouse.insert(name, Line::to(clickhouse).await?);
        }
        for (name, link) in LINKS.into_iter().zip(links) {
            to_link.insert(name, Line::to(link).await?);
        }
        let kafka_settings = vec![
            ("listeners", listeners),
            ("advertised.listeners", advertised),
            ("listener.security.protocol.map", protocols),
            // Each listener has its own.
            ("num.network.threads", "1".to_owned()),
            // Kafka's own. A single broker that misses a shorter one, on a busy machine or while it is stopped, fences itself;
            // its partitions then have no leader for a moment, in which its coordinator gives up the markers of
            // transactions that it has just called committed ("likely deleted already").
            ("broker.session.timeout.ms", BROKER_SESSION.as_millis().to_string()),
        ];
        Ok(Self { to_kafka, to_clickhouse, to_link, kafka_settings })
    }

    /// What the broker has to be started with.
    pub fn kafka_settings(&self) -> Vec<(&str, &str)> {
        self.kafka_settings.iter().map(|(key, value)| (*key, value.as_str())).collect()
    }

    /// From a process to the broker.
    pub fn to_kafka(&self, process: &str) -> anyhow::Result<&Line> {
        self.to_kafka.get(process).with_context(|| format!("{process} has no line to the broker"))
    }

    /// From a process to ClickHouse.
    pub fn to_clickhouse(&self, process: &str) -> anyhow::Result<&Line> {
        self.to_clickhouse.get(process).with_context(|| format!("{process} has no line to ClickHouse"))
    }

    /// From gateways to a link.
    pub fn to_link(&self, process: &str) -> anyhow::Result<&Line> {
        self.to_link.get(process).with_context(|| format!("there is no line to {process}"))
    }

    /// Ends every fault.
    pub fn clear(&self) {
        [&self.to_kafka, &self.to_clickhouse, &self.to_link]
            .into_iter()
            .flat_map(BTreeMap::values)
            .for_each(Line::clear);
    }
}
