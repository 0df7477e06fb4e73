//! A real Apache Kafka broker for tests, one node on loopback, in a folder of its own; and the broker's console tools,
//! which read and write topics without any code of ours.
//!
//! With `TIDEGATE_TEST_KAFKA=host:port` that server is used instead: then names of topics must not repeat, and what
//! kills or pauses the broker is refused, since it is not ours.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow, bail};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::program::{self, Program};
use crate::wait;

/// How long a broker may take to answer, on a busy machine.
const READY: Duration = Duration::from_secs(90);

/// When the console consumer gives up waiting for more; it takes a while to find the first record.
const SILENCE_MS: &str = "12000";

/// How the broker's tools are run: they are short, and say only what goes wrong.
const JVM: [&str; 3] =
    ["-XX:TieredStopAtLevel=1", "-Xmx256m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"];

/// A record as the console consumer shows it.
#[derive(Debug)]
pub struct Record<'a> {
    /// Its partition.
    pub partition: u32,
    /// Its offset.
    pub offset: u64,
    /// Its headers.
    pub headers: BTreeMap<&'a str, &'a str>,
    /// Its key.
    pub key: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

impl<'a> Record<'a> {
    /// `Partition:1<tab>Offset:17<tab>name:value,…<tab>key<tab>value`.
    fn of(line: &'a [u8]) -> anyhow::Result<Self> {
        let shown = || {
            format!("the console consumer shows {:?}", String::from_utf8_lossy(&line[..line.len().min(300)]))
        };
        let mut parts = line.splitn(5, |byte| *byte == b'\t');
        let mut next = || parts.next().with_context(shown);
        let (partition, offset, headers, key, value) = (next()?, next()?, next()?, next()?, next()?);
        let number = |part: &[u8], name: &str| -> anyhow::Result<u64> {
            let text = std::str::from_utf8(part)?.strip_prefix(name).with_context(shown)?;
            text.parse().with_context(shown)
        };
        let pairs = std::str::from_utf8(headers)?.split(',').filter_map(|pair| pair.split_once(':'));
        Ok(Self {
            partition: u32::try_from(number(partition, "Partition:")?)?,
            offset: number(offset, "Offset:")?,
            headers: pairs.collect(),
            key,
            value,
        })
    }
}

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

impl Ours {
    fn dir(&self) -> String {
        self.folder.path().join("broker").display().to_string()
    }
}

impl Kafka {
    /// Starts one with these lines of `server.properties` in place of the usual ones, or takes the one that is named.
    pub async fn start(settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        if let Ok(address) = std::env::var("TIDEGATE_TEST_KAFKA") {
            return Ok(Self { address, ours: None });
        }
        Self::start_own(settings).await
    }

    /// Starts one, whatever is named.
    pub async fn start_own(settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::start_own_with_users(settings, &[]).await
    }

    /// The same with users and their passwords, for SCRAM-SHA-512.
    pub async fn start_own_with_users(
        settings: &[(&str, &str)],
        users: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let option = |name: &str, pairs: &[(&str, &str)]| -> Vec<String> {
            pairs.iter().flat_map(|(k, v)| [name.to_owned(), format!("{k}={v}")]).collect()
        };
        let settings = [option("--set", settings), option("--user", users)].concat();
        let folder = TempDir::with_prefix("tidegate-kafka-")?;
        let ours = Ours { settings, program: None, folder };
        let mut me = Self { address: String::new(), ours: Some(ours) };
        me.restart().await?;
        Ok(me)
    }

    /// Leaves the broker's folder behind, for whoever wants to look into it; its path, when the broker is ours.
    pub fn keep(&mut self) -> Option<&Path> {
        let ours = self.ours.as_mut()?;
        ours.folder.disable_cleanup(true);
        Some(ours.folder.path())
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
        log_lines(&self.address, &new_prefix())
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
        self.start_again()?;
        let ours = self.ours()?;
        let (xtask, dir) = (program::ours("xtask")?, ours.dir());
        let broker = ours.program.as_mut().context("the broker is not started")?;
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
        self.address = status["address"].as_str().context("the broker has no address")?.to_owned();
        Ok(())
    }

    /// Starts it (again) and does not wait.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        let ours = self.ours()?;
        ours.program = None;
        let dir = ours.dir();
        let mut args = vec!["kafka", "run", "--dir", &dir];
        args.extend(ours.settings.iter().map(String::as_str));
        let log = ours.folder.path().join("kafka.log");
        ours.program = Some(Program::start("kafka", &program::ours("xtask")?, &args, &log)?);
        Ok(())
    }

    /// An error with the end of its log when it has ended by itself.
    pub fn expect_running(&mut self) -> anyhow::Result<()> {
        self.ours()?.program.as_mut().context("the broker was not started again")?.expect_running()
    }

    fn ours(&mut self) -> anyhow::Result<&mut Ours> {
        self.ours.as_mut().context("the broker of TIDEGATE_TEST_KAFKA is not ours to kill, pause or start")
    }

    /// Sends it a signal.
    pub fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
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

    /// Runs lines for a shell that call `kafka-acls.sh`, as Kafka's own package has it, with `broker:9092` for the broker.
    pub fn run_acls(&self, lines: &str) -> anyhow::Result<()> {
        let folder = TempDir::new()?;
        let script = folder.path().join("kafka-acls.sh");
        std::fs::write(folder.path().join("admin.properties"), "")?;
        let (jvm, jars) = (JVM.join(" "), tools()?);
        let java = format!("java {jvm} -cp '{}/*' org.apache.kafka.tools.AclCommand", jars.display());
        std::fs::write(&script, format!("#!/bin/sh\nexec {java} \"$@\"\n"))?;
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let path = std::env::var("PATH").unwrap_or_default();
        let lines = format!("set -e\n{}", lines.replace("broker:9092", &self.address));
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(&lines).current_dir(&folder);
        shell.env("PATH", format!("{}:{path}", folder.path().display()));
        let out = shell.output()?;
        if !out.status.success() {
            bail!("{lines}\n{}", String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr));
        }
        Ok(())
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

    /// Shows every committed record of a topic, bytes as they are, to `each`; a partition's records come in order. The
    /// end is where nothing has come for a while. Blocks.
    pub fn every_record(
        &self,
        topic: &str,
        mut each: impl FnMut(Record<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        // No block holds it: it is drawn for this call.
        let end = format!("\u{1}{:?}-{}\u{2}", SystemTime::now(), std::process::id());
        let mut java = self.java("org.apache.kafka.tools.consumer.ConsoleConsumer")?;
        java.args(["--topic", topic, "--from-beginning", "--isolation-level", "read_committed"]);
        java.args(["--timeout-ms", SILENCE_MS, "--formatter-property", &format!("line.separator={end}")]);
        for part in ["partition", "offset", "headers", "key"] {
            java.args(["--formatter-property", &format!("print.{part}=true")]);
        }
        let log = TempDir::new()?;
        let said = log.path().join("stderr");
        java.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(std::fs::File::create(&said)?);
        let mut consumer = java.spawn().context("cannot run java")?;
        let mut out =
            BufReader::with_capacity(1 << 20, consumer.stdout.take().context("stdout was asked for")?);
        let (mut record, last) = (Vec::new(), end.as_bytes()[end.len() - 1]);
        let read = loop {
            match out.read_until(last, &mut record) {
                Ok(0) if record.is_empty() => break Ok(()),
                Ok(0) => break Err(anyhow!("the last record of {topic} has no end")),
                Err(error) => break Err(error.into()),
                Ok(_) => {}
            }
            if let Some(line) = record.strip_suffix(end.as_bytes()) {
                if let Err(error) = Record::of(line).and_then(&mut each) {
                    break Err(error);
                }
                record.clear();
            }
        };
        if read.is_err() {
            // It is of no more use; it may have ended.
            let _ = consumer.kill();
        }
        let status = consumer.wait()?;
        read?;
        if !status.success() {
            bail!("the console consumer: {status}: {}", std::fs::read_to_string(said)?);
        }
        Ok(())
    }

    fn java(&self, class: &str) -> anyhow::Result<Command> {
        let mut java = Command::new("java");
        java.args(JVM);
        java.arg("-cp").arg(format!("{}/*", tools()?.display())).arg(class);
        java.args(["--bootstrap-server", &self.address]);
        Ok(java)
    }

    /// Runs a tool of the jars to its end.
    fn tool(&self, class: &str, args: &[&str], input: &str) -> anyhow::Result<String> {
        let folder = TempDir::new()?;
        let stdin = folder.path().join("stdin");
        std::fs::write(&stdin, input)?;
        let mut java = self.java(class)?;
        java.args(args);
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

/// The beginning of names of topics that nobody has used before.
pub fn new_prefix() -> String {
    static LOGS: AtomicU32 = AtomicU32::new(0);
    format!("t{}-{}", std::process::id(), LOGS.fetch_add(1, Ordering::Relaxed))
}

/// Lines of central's `[log]` for the log with this prefix, by way of this broker.
pub fn log_lines(broker: &str, prefix: &str) -> String {
    format!(
        "kind = \"kafka\"\nbrokers = [{broker:?}]\nprefix = \"{prefix}\"\npartitions = 2\nprogress-partitions = 2\n\
         replication = 1\nmin-isr = 1"
    )
}

fn tools() -> anyhow::Result<PathBuf> {
    let home = std::env::var_os("HOME").context("HOME is not set")?;
    let folder = Path::new(&home).join(".cache/tidegate/kafka-4.4.0/tools");
    anyhow::ensure!(folder.is_dir(), "Kafka's tools are not there: run `cargo xtask setup`");
    Ok(folder)
}
