//! A real Apache Kafka broker for tests, one node on loopback, in a folder of its own; and the broker's console tools,
//! which read and write topics without any code of ours.
//!
//! With `TIDEGATE_TEST_KAFKA=host:port` that server is used instead: then names of topics must not repeat, and what
//! kills or pauses the broker is refused, since it is not ours.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::program::{self, Program};
use crate::wait;

/// How long a broker may take to answer, on a busy machine.
const READY: Duration = Duration::from_secs(90);

/// A broker.
pub struct Kafka {
    address: String,
    ours: Option<Ours>,
}

struct Ours {
    settings: Vec<String>,
    program: Option<Program>,
    // The last field: the program is gone before its folder.
    folder: TempDir,
}

impl Kafka {
    /// Starts one with these lines of `server.properties` in place of the usual ones, or takes the one that is named.
    pub async fn start(settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        if let Ok(address) = std::env::var("TIDEGATE_TEST_KAFKA") {
            return Ok(Self { address, ours: None });
        }
        let settings = settings.iter().flat_map(|(k, v)| ["--set".to_owned(), format!("{k}={v}")]);
        let folder = TempDir::with_prefix("tidegate-kafka-")?;
        let ours = Ours { settings: settings.collect(), program: None, folder };
        let mut me = Self { address: String::new(), ours: Some(ours) };
        me.restart().await?;
        Ok(me)
    }

    /// `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The broker's process, when it is ours.
    pub fn pid(&self) -> Option<u32> {
        Some(self.ours.as_ref()?.program.as_ref()?.pid())
    }

    /// Lines of central's `[log]` for a log of its own here.
    pub fn central_log(&self) -> String {
        static LOGS: AtomicU32 = AtomicU32::new(0);
        let (brokers, unique, n) = (&self.address, std::process::id(), LOGS.fetch_add(1, Ordering::Relaxed));
        format!(
            "kind = \"kafka\"\nbrokers = [{brokers:?}]\nprefix = \"t{unique}-{n}\"\npartitions = 2\nprogress-partitions = 2\n\
             replication = 1\nmin-isr = 1"
        )
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.ours()?.program = None;
        Ok(())
    }

    /// Ends it as its operator does, and tells where its files are.
    pub fn stop(&mut self) -> anyhow::Result<PathBuf> {
        let ours = self.ours()?;
        if let Some(mut program) = ours.program.take() {
            program.stop(READY)?;
        }
        Ok(ours.folder.path().join("broker"))
    }

    /// SIGSTOP: it is there, and silent.
    pub fn pause(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    pub fn resume(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    /// Starts it again, on the same port and with its data, and waits until it answers.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        let ours = self.ours()?;
        ours.program = None;
        let xtask = program::ours("xtask")?;
        let dir = ours.folder.path().join("broker").display().to_string();
        let mut args = vec!["kafka", "run", "--dir", &dir];
        args.extend(ours.settings.iter().map(String::as_str));
        let mut broker = Program::start("kafka", &xtask, &args, &ours.folder.path().join("kafka.log"))?;
        let status = wait::until("Kafka answers", READY, async || {
            if broker.expect_running().is_err() {
                return Some(Value::Null);
            }
            let asked = Command::new(&xtask).args(["kafka", "status", "--json", "--dir", &dir]).output();
            let status: Value = serde_json::from_slice(&asked.ok()?.stdout).ok()?;
            (status["answers"] == true).then_some(status)
        })
        .await
        .with_context(|| broker.log_tail())?;
        broker.expect_running()?;
        ours.program = Some(broker);
        self.address = status["address"].as_str().context("the broker has no address")?.to_owned();
        Ok(())
    }

    fn ours(&mut self) -> anyhow::Result<&mut Ours> {
        self.ours.as_mut().context("the broker of TIDEGATE_TEST_KAFKA is not ours to kill, pause or start")
    }

    fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        let program = self.ours()?.program.as_ref().context("the broker does not run")?;
        program::send(program.pid(), signal)
    }

    /// Makes a topic with these settings.
    pub fn create_topic(&self, name: &str, partitions: u32, settings: &[(&str, &str)]) -> anyhow::Result<()> {
        let count = partitions.to_string();
        let mut args = vec!["--create", "--topic", name, "--partitions", &count, "--replication-factor", "1"];
        let settings: Vec<String> = settings.iter().map(|(k, v)| format!("{k}={v}")).collect();
        settings.iter().for_each(|s| args.extend(["--config", s]));
        self.tool("org.apache.kafka.tools.TopicCommand", &args, "").map(drop)
    }

    /// Writes one record a line.
    pub fn produce(&self, topic: &str, lines: &str) -> anyhow::Result<()> {
        self.tool("org.apache.kafka.tools.ConsoleProducer", &["--topic", topic], lines).map(drop)
    }

    /// Reads so many committed records from the beginning, one a line, as the console consumer prints them with these
    /// `print.…` properties.
    pub fn consume(&self, topic: &str, count: usize, print: &[&str]) -> anyhow::Result<Vec<String>> {
        self.read(topic, &["--max-messages", &count.to_string(), "--timeout-ms", "60000"], print)
    }

    /// The same for all records: it ends when none has come for ten seconds.
    pub fn consume_all(&self, topic: &str, print: &[&str]) -> anyhow::Result<Vec<String>> {
        self.read(topic, &["--timeout-ms", "10000"], print)
    }

    fn read(&self, topic: &str, until: &[&str], print: &[&str]) -> anyhow::Result<Vec<String>> {
        let mut args = vec!["--topic", topic, "--from-beginning", "--isolation-level", "read_committed"];
        args.extend(until);
        let print: Vec<String> = print.iter().map(|p| format!("print.{p}=true")).collect();
        print.iter().for_each(|p| args.extend(["--formatter-property", p]));
        let out = self.tool("org.apache.kafka.tools.consumer.ConsoleConsumer", &args, "")?;
        Ok(out.lines().map(str::to_owned).collect())
    }

    /// Runs a tool of the jars to its end.
    fn tool(&self, class: &str, args: &[&str], input: &str) -> anyhow::Result<String> {
        let folder = TempDir::new()?;
        let stdin = folder.path().join("stdin");
        std::fs::write(&stdin, input)?;
        let mut java = Command::new("java");
        java.args(["-XX:TieredStopAtLevel=1", "-Xmx256m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"]);
        java.arg("-cp").arg(format!("{}/*", tools()?.display())).arg(class);
        java.args(["--bootstrap-server", &self.address]).args(args);
        let out = java.stdin(std::fs::File::open(stdin)?).output().context("cannot run java")?;
        if !out.status.success() {
            bail!(
                "{class} {args:?}: {}{}",
                String::from_utf8_lossy(&out.stdout),
                String::from_utf8_lossy(&out.stderr)
            );
        }
        Ok(String::from_utf8(out.stdout)?)
    }
}

fn tools() -> anyhow::Result<PathBuf> {
    let home = std::env::var_os("HOME").context("HOME is not set")?;
    let folder = Path::new(&home).join(".cache/tidegate/kafka-4.4.0/tools");
    anyhow::ensure!(folder.is_dir(), "Kafka's tools are not there: run `cargo xtask setup`");
    Ok(folder)
}
