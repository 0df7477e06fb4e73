//! Central as it is run, each process by itself, so that each one's cost can be told: ClickHouse beside it, the log in
//! its own folder or in a real Kafka.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::process::cpu_seconds;
use crate::{
    http_load::client,
    kafka::Kafka,
    plant::{Options, Plant, READY, ready},
    ports,
    program::{self, Program},
    scrape::Metrics,
    wait,
};

/// How long a statement may take.
const STATEMENT: Duration = Duration::from_secs(600);

/// Where central's log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogKind {
    /// In central's own folder.
    Embedded,
    /// In a real broker on this machine.
    Kafka,
}

impl LogKind {
    /// As in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Kafka => "kafka",
        }
    }

    /// The kinds that `--log` asks for; both when it is not given.
    pub fn asked() -> Result<Vec<Self>> {
        Ok(match super::word("--log").as_deref() {
            None | Some("both") => vec![Self::Embedded, Self::Kafka],
            Some("embedded") => vec![Self::Embedded],
            Some("kafka") => vec![Self::Kafka],
            Some(other) => anyhow::bail!("--log {other}: embedded, kafka or both"),
        })
    }
}

struct Node {
    program: Program,
    api: SocketAddr,
}

/// The processes. Dropping it kills them.
pub struct Site {
    /// Folder, certificates, and the address of the link.
    pub plant: Plant,
    kafka: Option<Kafka>,
    clickhouse: Option<Program>,
    clickhouse_at: SocketAddr,
    nodes: BTreeMap<&'static str, Node>,
}

impl Site {
    /// Link and sink, with the embedded log as one process `central`, with Kafka as two.
    pub async fn whole(log: LogKind) -> Result<Self> {
        match log {
            LogKind::Embedded => Self::start(log, &[("central", &["link", "sink"])], "").await,
            LogKind::Kafka => Self::start(log, &[("link", &["link"]), ("sink", &["sink"])], "").await,
        }
    }

    /// One process with the role `link` and nothing behind its log; `lines` go into its section `[link]`.
    pub async fn link_only(log: LogKind, lines: &str) -> Result<Self> {
        Self::start(log, &[("link", &["link"])], lines).await
    }

    async fn start(log: LogKind, processes: &[(&'static str, &[&str])], link: &str) -> Result<Self> {
        let kafka = match log {
            LogKind::Embedded => None,
            LogKind::Kafka => Some(Kafka::start(&[]).await?),
        };
        let clickhouse_at = ports::free();
        let options = Options {
            log: kafka.as_ref().map(Kafka::central_log).unwrap_or_default(),
            link: link.to_owned(),
            clickhouse: format!("url = \"http://{clickhouse_at}\""),
            ..Options::default()
        };
        let plant = Plant::prepare(&options)?;
        let mut me = Self { plant, kafka, clickhouse: None, clickhouse_at, nodes: BTreeMap::new() };
        if processes.iter().any(|(_, roles)| roles.contains(&"sink")) {
            me.start_clickhouse().await?;
        }
        for (name, roles) in processes {
            let api = ports::free();
            me.plant.configure_central(&options, name, roles, me.plant.link, api)?;
            let program = me.plant.start_process(name)?;
            me.nodes.insert(name, Node { program, api });
        }
        for (name, node) in &mut me.nodes {
            ready(name, node.api, &mut node.program).await?;
        }
        Ok(me)
    }

    async fn start_clickhouse(&mut self) -> Result<()> {
        let data = self.plant.path("clickhouse").display().to_string();
        let args = ["--data-dir", &data, "--listen", &self.clickhouse_at.to_string()];
        let (command, log) = (program::ours("tidegate-clickhouse")?, self.plant.path("clickhouse.log"));
        let mut server = Program::start("clickhouse", &command, &args, &log)?;
        let answers = async || server.expect_running().is_err() || self.sql("SELECT 1").await.is_ok();
        wait::until_true("ClickHouse answers", READY, answers).await?;
        server.expect_running()?;
        self.clickhouse = Some(server);
        Ok(())
    }

    /// Runs one statement; what it answers.
    pub async fn sql(&self, statement: &str) -> Result<String> {
        let url = format!("http://{}/", self.clickhouse_at);
        let ask = client().post(url).timeout(STATEMENT).body(statement.to_owned());
        let answer = ask.send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        ensure!(status.is_success(), "{statement}: {status}: {text}");
        Ok(text.trim().to_owned())
    }

    /// Rows of a table of central's; 0 before there is one.
    pub async fn count(&self, table: &str) -> Result<u64> {
        let there =
            format!("SELECT total_rows FROM system.tables WHERE database = 'tidegate' AND name = '{table}'");
        let rows = self.sql(&there).await?;
        if rows.is_empty() { Ok(0) } else { Ok(rows.parse()?) }
    }

    /// Waits until a table of central's has this many rows; an error when it has more.
    pub async fn rows(&self, table: &str, rows: u64, deadline: Duration) -> Result<()> {
        let what = format!("{rows} rows in {table}");
        let enough =
            wait::until(&what, deadline, async || self.count(table).await.ok().filter(|n| *n >= rows));
        let found = enough.await.with_context(|| self.logs())?;
        ensure!(found == rows, "{found} rows in {table}, {rows} were sent");
        Ok(())
    }

    /// A process' metrics.
    pub async fn metrics(&self, name: &str) -> Result<Metrics> {
        Metrics::of(self.nodes.get(name).context("no such process")?.api).await
    }

    /// A process' id.
    pub fn pid(&self, name: &str) -> Result<u32> {
        Ok(self.nodes.get(name).context("no such process")?.program.pid())
    }

    /// All processes, the load's own too.
    fn pids(&self) -> Vec<(&'static str, u32)> {
        let mut all: Vec<_> = self.nodes.iter().map(|(name, node)| (*name, node.program.pid())).collect();
        all.extend(self.clickhouse.as_ref().map(|server| ("clickhouse", server.pid())));
        all.extend(self.kafka.as_ref().and_then(Kafka::pid).map(|pid| ("kafka", pid)));
        all.push(("load", std::process::id()));
        all
    }

    /// What every process has cost until now.
    pub fn cost(&self) -> Result<Cost> {
        let cpu = self.pids().into_iter().map(|(name, pid)| Ok((name, cpu_seconds(pid)?)));
        Ok(Cost { at: Instant::now(), cpu: cpu.collect::<Result<_>>()? })
    }

    /// The ends of all logs, for messages.
    pub fn logs(&self) -> String {
        let logs = self.nodes.iter().map(|(name, node)| format!("--- {name}\n{}\n", node.program.log_tail()));
        logs.collect()
    }
}

/// CPU seconds of each process up to a moment.
#[derive(Debug, Clone)]
pub struct Cost {
    /// When.
    pub at: Instant,
    cpu: BTreeMap<&'static str, f64>,
}

impl Cost {
    /// What came since: seconds, and CPU seconds of each process.
    pub fn since(&self, before: &Cost) -> (f64, BTreeMap<&'static str, f64>) {
        let more = |(name, now): (&&'static str, &f64)| (*name, now - before.cpu.get(name).unwrap_or(&0.0));
        ((self.at - before.at).as_secs_f64(), self.cpu.iter().map(more).collect())
    }
}
