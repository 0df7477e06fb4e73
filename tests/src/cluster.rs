//! Central on several processes: the log in Kafka, a ClickHouse server of its own, two processes that take gateways, two
//! that write tables, and one that judges and answers; with a gateway that knows both of the first.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use rustix::process::Signal;

use crate::kafka::Kafka;
use crate::plant::{Options, Plant, READY, ready};
use crate::program::{self, Program};
use crate::scrape::Metrics;
use crate::{ports, wait};

/// The processes that take gateways.
pub const LINKS: [&str; 2] = ["link-a", "link-b"];
/// The processes that write tables.
pub const SINKS: [&str; 2] = ["sink-a", "sink-b"];

struct Node {
    api: SocketAddr,
    program: Option<Program>,
}

/// The installation. The plant's own central has the roles `alerts`, `api` and `audit`.
pub struct Cluster {
    /// Gateway and desk.
    pub plant: Plant,
    /// The broker.
    pub kafka: Kafka,
    nodes: BTreeMap<&'static str, Node>,
    clickhouse: Option<Program>,
    clickhouse_at: SocketAddr,
}

impl Cluster {
    /// Starts everything and waits until it is ready.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let kafka = Kafka::start(&[]).await?;
        let clickhouse_at = ports::free();
        let links: Vec<SocketAddr> = LINKS.iter().map(|_| ports::free()).collect();
        let clickhouse = match std::env::var("TIDEGATE_TEST_CLICKHOUSE_URL") {
            Ok(url) => format!("url = {url:?}\ndatabase = \"t{}\"", std::process::id()),
            Err(_) => format!("url = \"http://{clickhouse_at}\""),
        };
        let log = kafka.central_log();
        let roles = vec!["alerts", "api", "audit"];
        let options = Options { log, clickhouse, roles, centrals: links.clone(), ..options };
        let plant = Plant::prepare(&options)?;
        let mut nodes = BTreeMap::new();
        for (name, link) in LINKS.into_iter().zip(links) {
            let api = ports::free();
            plant.configure_central(&options, name, &["link"], link, api)?;
            nodes.insert(name, Node { api, program: None });
        }
        for name in SINKS {
            let api = ports::free();
            plant.configure_central(&options, name, &["sink"], plant.link, api)?;
            nodes.insert(name, Node { api, program: None });
        }
        let mut me = Self { plant, kafka, nodes, clickhouse: None, clickhouse_at };
        me.start_clickhouse()?;
        for name in LINKS.into_iter().chain(SINKS) {
            me.start_node(name)?;
        }
        me.plant.start_central()?;
        for name in LINKS.into_iter().chain(SINKS) {
            me.node_ready(name).await.with_context(|| me.logs())?;
        }
        me.plant.central_ready().await.with_context(|| me.logs())?;
        me.plant.start_gateway()?;
        me.plant.gateway_ready().await.with_context(|| me.logs())?;
        Ok(me)
    }

    /// Starts the ClickHouse server (again), unless it is one that was there before.
    pub fn start_clickhouse(&mut self) -> anyhow::Result<()> {
        if std::env::var_os("TIDEGATE_TEST_CLICKHOUSE_URL").is_some() {
            return Ok(());
        }
        let data = self.plant.path("clickhouse").display().to_string();
        let args = ["--data-dir", &data, "--listen", &self.clickhouse_at.to_string()];
        let (command, log) = (program::ours("tidegate-clickhouse")?, self.plant.path("clickhouse.log"));
        self.clickhouse = Some(Program::start("clickhouse", &command, &args, &log)?);
        Ok(())
    }

    /// SIGKILL for ClickHouse; false when it is not ours.
    pub fn kill_clickhouse(&mut self) -> bool {
        self.clickhouse.take().is_some()
    }

    /// Starts a process.
    pub fn start_node(&mut self, name: &str) -> anyhow::Result<()> {
        let program = self.plant.start_process(name)?;
        self.node(name)?.program = Some(program);
        Ok(())
    }

    /// Waits until it says that it is ready.
    pub async fn node_ready(&mut self, name: &str) -> anyhow::Result<()> {
        let node = self.node(name)?;
        let program = node.program.as_mut().context("it is not started")?;
        ready(name, node.api, program).await
    }

    /// SIGKILL.
    pub fn kill_node(&mut self, name: &str) -> anyhow::Result<()> {
        self.node(name)?.program = None;
        Ok(())
    }

    /// SIGTERM, and waits until it has ended.
    pub fn stop_node(&mut self, name: &str) -> anyhow::Result<()> {
        let mut program = self.node(name)?.program.take().context("it does not run")?;
        let status = program.stop(READY)?;
        anyhow::ensure!(status.success(), "{name} ended with {status}\n{}", self.logs());
        Ok(())
    }

    /// SIGSTOP: the process is there, and silent.
    pub fn pause_node(&mut self, name: &str) -> anyhow::Result<()> {
        self.signal(name, Signal::STOP)
    }

    /// SIGCONT: it goes on as if no time had passed.
    pub fn resume_node(&mut self, name: &str) -> anyhow::Result<()> {
        self.signal(name, Signal::CONT)
    }

    fn signal(&mut self, name: &str, signal: Signal) -> anyhow::Result<()> {
        let program = self.node(name)?.program.as_ref().context("it does not run")?;
        program::send(program.pid(), signal)
    }

    /// A process' metrics.
    pub async fn metrics(&self, name: &str) -> anyhow::Result<Metrics> {
        Metrics::of(self.nodes.get(name).context("no such process")?.api).await
    }

    /// The one of these processes whose metric is above zero; waits until there is one.
    pub async fn who(
        &self,
        names: &[&'static str],
        metric: &str,
        deadline: Duration,
    ) -> anyhow::Result<&'static str> {
        let what = format!("a process has {metric}");
        let found = wait::until(&what, deadline, async || {
            for name in names {
                if self.nodes.get(name).is_none_or(|node| node.program.is_none()) {
                    continue;
                }
                if self.metrics(name).await.is_ok_and(|m| m.sum(metric, &[]) > 0.0) {
                    return Some(*name);
                }
            }
            None
        });
        found.await.with_context(|| self.logs())
    }

    /// The ends of all logs.
    pub fn logs(&self) -> String {
        let mut out = self.plant.logs();
        for name in self.nodes.keys() {
            let log = self.plant.path(&format!("{name}.log"));
            let _ = write!(out, "--- {name}\n{}\n", program::tail(&log, 25));
        }
        let log = self.plant.path("clickhouse.log");
        let _ = write!(out, "--- clickhouse\n{}\n", program::tail(&log, 10));
        out
    }

    fn node(&mut self, name: &str) -> anyhow::Result<&mut Node> {
        self.nodes.get_mut(name).with_context(|| format!("no process {name}"))
    }
}
