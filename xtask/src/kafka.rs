//! `cargo xtask kafka`: a real Apache Kafka on loopback, one node, for tests and the demonstration.
//!
//! A folder holds one broker: its data, its settings, its log and `broker.json`. Starting a folder again keeps data and
//! ports, also after a SIGKILL, and takes about five seconds: the settings of sessions and elections are short. `start`
//! leaves the broker behind; `run` becomes it, for a program that watches its children.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::run::{become_program, run};
use crate::setup::kafka::jars;
use crate::workspace::Workspace;

/// A cold start on a busy machine.
const READY: Duration = Duration::from_secs(90);
const STOPPED: Duration = Duration::from_secs(20);

struct Asked {
    dir: PathBuf,
    json: bool,
    /// Lines that replace those of `server.properties`; `{port}` and `{controller-port}` in them are the broker's.
    settings: Vec<(String, String)>,
    /// The folder of a broker whose cluster a new one becomes part of.
    join: Option<PathBuf>,
    /// Users of a new broker and their passwords, for SCRAM-SHA-512; loopback only, for trials and tests.
    users: Vec<(String, String)>,
}

/// `start`, `run`, `stop` or `status`.
pub(crate) fn kafka(arguments: &[String]) -> anyhow::Result<()> {
    let Some((what, rest)) = arguments.split_first() else {
        bail!(
            "cargo xtask kafka start|run|stop|status [--dir DIR] [--join DIR] [--set KEY=VALUE]… [--user NAME=PASSWORD]… [--json]"
        );
    };
    let asked = asked(rest)?;
    match what.as_str() {
        "start" => start(&asked),
        "run" => become_broker(&asked),
        "stop" => stop(&asked),
        "status" => status(&asked),
        other => bail!("no command `kafka {other}`: use start, run, stop or status"),
    }
}

fn asked(mut rest: &[String]) -> anyhow::Result<Asked> {
    let mut dir = None;
    let mut asked =
        Asked { dir: PathBuf::new(), json: false, settings: Vec::new(), join: None, users: Vec::new() };
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        let mut value = || -> anyhow::Result<&String> {
            let (value, after) = rest.split_first().with_context(|| format!("{first} needs a value"))?;
            rest = after;
            Ok(value)
        };
        match first.as_str() {
            "--json" => asked.json = true,
            "--dir" => dir = Some(std::path::absolute(value()?)?),
            "--join" => asked.join = Some(std::path::absolute(value()?)?),
            "--set" => {
                let (key, value) = value()?.split_once('=').context("--set KEY=VALUE")?;
                asked.settings.push((key.to_owned(), value.to_owned()));
            }
            "--user" => {
                let (name, password) = value()?.split_once('=').context("--user NAME=PASSWORD")?;
                asked.users.push((name.to_owned(), password.to_owned()));
            }
            other => bail!("kafka: unknown argument {other:?}"),
        }
    }
    asked.dir = match dir {
        Some(dir) => dir,
        None => Workspace::get()?.target.join("kafka"),
    };
    Ok(asked)
}

fn start(asked: &Asked) -> anyhow::Result<()> {
    if let Some(broker) = read(&asked.dir).filter(|b| running(&asked.dir, b)) {
        return say(asked, &broker, "running");
    }
    let Prepared { mut java, mut broker } = prepare(asked)?;
    let log = asked.dir.join("broker.log");
    let out = fs::File::create(&log)?;
    java.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    // In a group of its own, so that Ctrl-C at whoever started it does not reach it.
    let mut child = java.process_group(0).spawn().context("cannot run java")?;
    broker["pid"] = child.id().into();
    write(&asked.dir, &broker)?;
    let deadline = Instant::now() + READY;
    // It answers before it takes part in the cluster, and somebody else may answer: its own word counts too.
    while !(fs::read_to_string(&log)?.contains("Kafka Server started") && answers(&broker)) {
        let ended = child.try_wait()?;
        if ended.is_some() || Instant::now() > deadline {
            // It is ours, and of no use.
            let _ = child.kill();
            let address = broker["address"].as_str().unwrap_or_default();
            bail!("the broker does not answer on {address}; the end of {}:\n{}", log.display(), tail(&log));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    say(asked, &broker, "running")
}

fn become_broker(asked: &Asked) -> anyhow::Result<()> {
    if read(&asked.dir).is_some_and(|b| running(&asked.dir, &b)) {
        bail!("Kafka runs in {} already", asked.dir.display());
    }
    let Prepared { mut java, mut broker } = prepare(asked)?;
    broker["pid"] = std::process::id().into();
    write(&asked.dir, &broker)?;
    become_program(&mut java)
}

/// What starts the broker, and what is known of it so far.
struct Prepared {
    java: Command,
    broker: Value,
}

fn prepare(asked: &Asked) -> anyhow::Result<Prepared> {
    let jars = jars()?;
    fs::create_dir_all(&asked.dir)?;
    let (port, controller) = match read(&asked.dir) {
        Some(known) => (number(&known, "port")?, number(&known, "controller_port")?),
        None => free_pair()?,
    };
    let properties = asked.dir.join("server.properties");
    fs::write(&properties, settings(asked, port, controller)?)?;
    if !asked.dir.join("data/meta.properties").is_file() {
        format(&jars, &properties, asked)?;
    }
    let mut java = Command::new("java");
    java.args(["-XX:TieredStopAtLevel=1", "-Xms256m", "-Xmx512m", "-cp"]);
    java.arg(class_path(&jars)).arg("kafka.Kafka").arg(&properties);
    let broker = json!({
        "address": format!("127.0.0.1:{port}"), "port": port, "controller_port": controller,
        "jars": jars.display().to_string(),
    });
    Ok(Prepared { java, broker })
}

/// Makes the storage of a new cluster, or of a broker that joins one.
fn format(jars: &Path, properties: &Path, asked: &Asked) -> anyhow::Result<()> {
    let tool = || {
        let mut java = Command::new("java");
        java.arg("-cp").arg(class_path(jars)).arg("kafka.tools.StorageTool");
        java
    };
    let (id, first) = match &asked.join {
        Some(other) => (cluster(other)?, "--no-initial-controllers"),
        None => {
            let made = tool().arg("random-uuid").stderr(Stdio::null()).output().context("cannot run java")?;
            (String::from_utf8(made.stdout)?.trim().to_owned(), "--standalone")
        }
    };
    ensure!(!id.is_empty(), "Kafka's StorageTool made no id");
    let mut format = tool();
    format.args(["format", "-t", &id, first, "-c"]).arg(properties);
    for (name, password) in &asked.users {
        format.arg("--add-scram").arg(format!("SCRAM-SHA-512=[name={name},password={password}]"));
    }
    let formatted = format.output()?;
    let said = || {
        String::from_utf8_lossy(&[formatted.stdout.clone(), formatted.stderr.clone()].concat()).into_owned()
    };
    ensure!(formatted.status.success(), "Kafka's StorageTool did not make the storage:\n{}", said());
    Ok(())
}

/// The id of the cluster that the broker of a folder belongs to.
fn cluster(dir: &Path) -> anyhow::Result<String> {
    let properties = dir.join("data/meta.properties");
    let text = fs::read_to_string(&properties).with_context(|| format!("no {}", properties.display()))?;
    let id = text.lines().find_map(|line| line.strip_prefix("cluster.id="));
    Ok(id.with_context(|| format!("{} names no cluster", properties.display()))?.to_owned())
}

fn settings(asked: &Asked, port: u16, controller: u16) -> anyhow::Result<String> {
    let data = asked.dir.join("data").display().to_string();
    let own = |key: &str, value: String| (key.to_owned(), value);
    let at = format!("PLAINTEXT://127.0.0.1:{port}");
    let (roles, node, controller_at, listeners) = match &asked.join {
        None => ("broker,controller", "1", controller, format!("{at},CONTROLLER://127.0.0.1:{controller}")),
        Some(dir) => {
            let first = read(dir).with_context(|| format!("no broker in {}", dir.display()))?;
            ("broker", "2", number(&first, "controller_port")?, at.clone())
        }
    };
    let mut all = vec![
        own("process.roles", roles.into()),
        own("node.id", node.into()),
        own("controller.quorum.bootstrap.servers", format!("127.0.0.1:{controller_at}")),
        own("listeners", listeners),
        own("advertised.listeners", at),
        own("controller.listener.names", "CONTROLLER".into()),
        own("inter.broker.listener.name", "PLAINTEXT".into()),
        own("log.dirs", data),
        own("auto.create.topics.enable", "false".into()),
        own("group.initial.rebalance.delay.ms", "0".into()),
    ];
    for topic in ["offsets.topic", "transaction.state.log", "share.coordinator.state.topic"] {
        all.push(own(&format!("{topic}.replication.factor"), "1".into()));
        all.push(own(&format!("{topic}.num.partitions"), "4".into()));
    }
    for key in ["transaction.state.log.min.isr", "share.coordinator.state.topic.min.isr"] {
        all.push(own(key, "1".into()));
    }
    // With the defaults a broker that was killed needs twelve seconds to come back. A session of 1.5 s was too short: on a
    // machine with much to do the broker fenced itself, and a single one that has done so skips the ends of transactions.
    for (key, ms) in [
        ("broker.session.timeout.ms", "3000"),
        ("broker.heartbeat.interval.ms", "500"),
        ("controller.quorum.election.timeout.ms", "200"),
        ("controller.quorum.election.backoff.max.ms", "100"),
        ("controller.quorum.fetch.timeout.ms", "500"),
    ] {
        all.push(own(key, ms.into()));
    }
    all.retain(|(key, _)| !asked.settings.iter().any(|(other, _)| other == key));
    let ports = [("{port}", port.to_string()), ("{controller-port}", controller.to_string())];
    all.extend(asked.settings.iter().map(|(key, value)| {
        let put = |value: String, (name, port): &(&str, String)| value.replace(name, port);
        (key.clone(), ports.iter().fold(value.clone(), put))
    }));
    Ok(all.iter().map(|(key, value)| format!("{key}={value}\n")).collect())
}

fn stop(asked: &Asked) -> anyhow::Result<()> {
    let Some(broker) = read(&asked.dir).filter(|b| running(&asked.dir, b)) else {
        return say(asked, &Value::Null, "stopped");
    };
    let pid = broker["pid"].to_string();
    let deadline = Instant::now() + STOPPED;
    run(Command::new("kill").arg(&pid))?;
    while running(&asked.dir, &broker) {
        if Instant::now() > deadline {
            run(Command::new("kill").args(["-9", &pid]))?;
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    say(asked, &broker, "stopped")
}

fn status(asked: &Asked) -> anyhow::Result<()> {
    match read(&asked.dir) {
        Some(broker) if running(&asked.dir, &broker) => say(asked, &broker, "running"),
        broker => say(asked, &broker.unwrap_or_default(), "stopped"),
    }
}

fn say(asked: &Asked, broker: &Value, state: &str) -> anyhow::Result<()> {
    if asked.json {
        let mut value = if broker.is_object() { broker.clone() } else { json!({}) };
        value["state"] = state.into();
        value["answers"] = (state == "running" && answers(broker)).into();
        println!("{value}");
    } else {
        let at = broker["address"].as_str().map(|a| format!(" on {a}")).unwrap_or_default();
        println!("Kafka in {} is {state}{at}", asked.dir.display());
    }
    Ok(())
}

fn class_path(jars: &Path) -> String {
    format!("{}/*", jars.display())
}

fn read(dir: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(dir.join("broker.json")).ok()?).ok()
}

fn write(dir: &Path, broker: &Value) -> anyhow::Result<()> {
    let unfinished = dir.join("broker.json.new");
    fs::File::create(&unfinished)?.write_all(broker.to_string().as_bytes())?;
    Ok(fs::rename(unfinished, dir.join("broker.json"))?)
}

fn number(broker: &Value, key: &str) -> anyhow::Result<u16> {
    let number = broker[key].as_u64().and_then(|n| u16::try_from(n).ok());
    number.with_context(|| format!("broker.json has no {key}"))
}

/// Whether the process is there and is the broker of this folder: a process id may have gone to somebody else.
fn running(dir: &Path, broker: &Value) -> bool {
    let path = format!("/proc/{}/cmdline", broker["pid"]);
    let properties = dir.join("server.properties").display().to_string();
    fs::read(path).is_ok_and(|line| String::from_utf8_lossy(&line).contains(&properties))
}

/// Two neighbouring ports that nobody listens on, from below those that the kernel gives to outgoing connections:
/// nobody takes them while the broker is down. Each process begins at a pair of its own, so that brokers that are
/// started at the same time, and listen only seconds later, do not meet.
fn free_pair() -> anyhow::Result<(u16, u16)> {
    const FIRST: u16 = 12_000;
    const PAIRS: u16 = 4_000;
    let own = u16::try_from(std::process::id() % u32::from(PAIRS))?;
    let mut pairs = (own..PAIRS).chain(0..own).map(|pair| (FIRST + 2 * pair, FIRST + 2 * pair + 1));
    let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    pairs.find(|(one, other)| free(*one) && free(*other)).context("no port is free")
}

/// Asks for the versions of the protocol (ApiVersions, version 0) and takes any answer without an error.
fn answers(broker: &Value) -> bool {
    let Some(address) = broker["address"].as_str() else { return false };
    let ask = || -> std::io::Result<bool> {
        let mut broker = TcpStream::connect(address)?;
        broker.set_read_timeout(Some(Duration::from_secs(2)))?;
        // Length, key 18, version 0, correlation 7, no client id.
        broker.write_all(&[0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 7, 0xff, 0xff])?;
        let mut answer = [0; 10];
        broker.read_exact(&mut answer)?;
        Ok(answer[4..8] == [0, 0, 0, 7] && answer[8..10] == [0, 0])
    };
    ask().unwrap_or(false)
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
