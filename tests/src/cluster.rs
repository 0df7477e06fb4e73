//! Central on several processes: the log in Kafka, a ClickHouse server of its own, two processes that take gateways, two
//! that write tables, and one that judges and answers; with a gateway that knows both of the first.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use rustix::process::Signal;

use crate::chaos::lines::Lines;
use crate::kafka::{self, Kafka};
use crate::plant::{Options, Plant, READY, is_ready, ready};
use crate::program::{self, Program};
use crate::scrape::Metrics;
use crate::{ports, wait};

/// The processes that take gateways.
pub const LINKS: [&str; 2] = ["link-a", "link-b"];
/// The processes that write tables.
pub const SINKS: [&str; 2] = ["sink-a", "sink-b"];
/// The process that judges and answers.
pub const JUDGE: &str = "central";

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
    /// What the names of the log's topics begin with.
    pub prefix: String,
    /// What the gateways are configured with.
    pub options: Options,
    /// What lies between the processes, when they do not reach each other directly.
    pub lines: Option<Lines>,
    nodes: BTreeMap<&'static str, Node>,
    clickhouse: Option<Program>,
    clickhouse_at: SocketAddr,
}

impl Cluster {
    /// Starts everything and waits until it is ready.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let kafka = Kafka::start(&[]).await?;
        let links = LINKS.map(|_| ports::free());
        let mut me = Self::prepare(options, kafka, ports::free(), links, None)?;
        me.start_central().await?;
        me.plant.start_gateway()?;
        me.plant.gateway_ready().await.with_context(|| me.logs())?;
        Ok(me)
    }

    /// Starts central with its servers, which are all its own, and lines between the processes; no gateway.
    pub async fn start_with_lines(options: Options) -> anyhow::Result<Self> {
        let (clickhouse_at, links) = (ports::free(), LINKS.map(|_| ports::free()));
        let lines = Lines::open(clickhouse_at, links).await?;
        let kafka = Kafka::start_own(&lines.kafka_settings()).await?;
        let mut me = Self::prepare(options, kafka, clickhouse_at, links, Some(lines))?;
        me.start_central().await?;
        Ok(me)
    }

    fn prepare(
        options: Options,
        kafka: Kafka,
        clickhouse_at: SocketAddr,
        links: [SocketAddr; 2],
        lines: Option<Lines>,
    ) -> anyhow::Result<Self> {
        let prefix = kafka::new_prefix();
        // What one process has for its way to the servers.
        let of = |name: &str, options: &Options| -> anyhow::Result<Options> {
            let (mut broker, mut server) = (kafka.address().to_owned(), clickhouse_at);
            let mut link = String::new();
            if let Some(lines) = &lines {
                broker = lines.to_kafka(name)?.address().to_string();
                server = lines.to_clickhouse(name)?.address();
                if LINKS.contains(&name) {
                    link = format!("advertise = \"https://{}\"", lines.to_link(name)?.address());
                }
            }
            let clickhouse = match std::env::var("TIDEGATE_TEST_CLICKHOUSE_URL") {
                Ok(url) if lines.is_none() => {
                    format!("url = {url:?}\ndatabase = \"t{}\"", std::process::id())
                }
                _ => format!("url = \"http://{server}\""),
            };
            Ok(Options { log: kafka::log_lines(&broker, &prefix), clickhouse, link, ..options.clone() })
        };
        let centrals = match &lines {
            Some(lines) => {
                LINKS.iter().map(|n| Ok(lines.to_link(n)?.address())).collect::<anyhow::Result<_>>()?
            }
            None => links.to_vec(),
        };
        let options = Options { roles: vec!["alerts", "api", "audit"], centrals, ..options };
        let plant = Plant::prepare(&of(JUDGE, &options)?)?;
        let mut nodes = BTreeMap::new();
        for (name, link) in LINKS.into_iter().zip(links) {
            let api = ports::free();
            plant.configure_central(&of(name, &options)?, name, &["link"], link, api)?;
            nodes.insert(name, Node { api, program: None });
        }
        for name in SINKS {
            let api = ports::free();
            plant.configure_central(&of(name, &options)?, name, &["sink"], plant.link, api)?;
            nodes.insert(name, Node { api, program: None });
        }
        Ok(Self { plant, kafka, prefix, options, lines, nodes, clickhouse: None, clickhouse_at })
    }

    async fn start_central(&mut self) -> anyhow::Result<()> {
        self.start_clickhouse()?;
        for name in LINKS.into_iter().chain(SINKS) {
            self.start_node(name)?;
        }
        self.plant.start_central()?;
        for name in LINKS.into_iter().chain(SINKS) {
            self.node_ready(name).await.with_context(|| self.logs())?;
        }
        self.plant.central_ready().await.with_context(|| self.logs())
    }

    /// Starts the ClickHouse server (again), unless it is one that was there before.
    pub fn start_clickhouse(&mut self) -> anyhow::Result<()> {
        if self.lines.is_none() && std::env::var_os("TIDEGATE_TEST_CLICKHOUSE_URL").is_some() {
            return Ok(());
        }
        let data = self.plant.path("clickhouse").display().to_string();
        let args = ["--data-dir", &data, "--listen", &self.clickhouse_at.to_string()];
        let (command, log) = (program::ours("tidegate-clickhouse")?, self.plant.path("clickhouse.log"));
        self.clickhouse = Some(Program::start("clickhouse", &command, &args, &log)?);
        Ok(())
    }

    /// Where our ClickHouse server listens.
    pub fn clickhouse_at(&self) -> SocketAddr {
        self.clickhouse_at
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

    /// SIGTERM, without waiting for its end.
    pub fn ask_node_to_stop(&mut self, name: &str) -> anyhow::Result<()> {
        self.signal(name, Signal::TERM)
    }

    /// SIGSTOP: the process is there, and silent.
    pub fn pause_node(&mut self, name: &str) -> anyhow::Result<()> {
        self.signal(name, Signal::STOP)
    }

    /// SIGCONT: it goes on as if no time had passed.
    pub fn resume_node(&mut self, name: &str) -> anyhow::Result<()> {
        self.signal(name, Signal::CONT)
    }

    /// SIGSTOP or SIGCONT for ClickHouse.
    pub fn signal_clickhouse(&self, signal: Signal) -> anyhow::Result<()> {
        let program = self.clickhouse.as_ref().context("ClickHouse does not run")?;
        program::send(program.pid(), signal)
    }

    /// A program that ended although nobody killed it is an error.
    pub fn expect_all_running(&mut self) -> anyhow::Result<()> {
        for (name, node) in &mut self.nodes {
            node.program
                .as_mut()
                .with_context(|| format!("{name} was not started again"))?
                .expect_running()?;
        }
        self.plant.central.as_mut().context("central was not started again")?.expect_running()?;
        self.clickhouse.as_mut().context("ClickHouse was not started again")?.expect_running()?;
        self.kafka.expect_running()
    }

    /// Sends a signal to a process.
    pub fn signal(&mut self, name: &str, signal: Signal) -> anyhow::Result<()> {
        let program = self.node(name)?.program.as_ref().context("it does not run")?;
        program::send(program.pid(), signal)
    }

    /// Whether a process says that it is ready.
    pub async fn is_ready(&self, name: &str) -> bool {
        let address = self.nodes.get(name).map_or(self.plant.api.address(), |node| node.api);
        is_ready(address).await
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
