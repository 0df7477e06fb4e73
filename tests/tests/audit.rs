//! The audit against what somebody changed by hand: rows in a ClickHouse server that central only knows by its address, and
//! bytes of a gateway's and of central's logs.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tidegate_tests::http_load::client;
use tidegate_tests::kafka::Kafka;
use tidegate_tests::plant::{Options, Plant};
use tidegate_tests::program::{self, Program};
use tidegate_tests::simple::{self, STREAM};
use tidegate_tests::{ports, wait};

const DEADLINE: Duration = Duration::from_secs(60);
const PASSWORD: &str = "of the test alone";

/// A server of its own, as somebody would run one.
struct Server {
    address: SocketAddr,
    folder: tempfile::TempDir,
    _program: Program,
}

impl Server {
    async fn start() -> anyhow::Result<Self> {
        let (address, folder) = (ports::free(), tempfile::tempdir()?);
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("password"), PASSWORD)?;
        let (data, password, listen) = (path("data"), path("password"), address.to_string());
        let args = ["--data-dir", &data, "--listen", &listen, "--password-file", &password];
        let command = program::ours("tidegate-clickhouse")?;
        let program = Program::start("clickhouse", &command, &args, &folder.path().join("clickhouse.log"))?;
        let server = Self { address, folder, _program: program };
        wait::until_true("the server answers", DEADLINE, async || server.run("select 1").await.is_ok())
            .await?;
        Ok(server)
    }

    async fn run(&self, sql: &str) -> anyhow::Result<String> {
        let request = client().post(format!("http://{}/", self.address)).body(sql.to_owned());
        let answer = request.header("X-ClickHouse-User", "default").header("X-ClickHouse-Key", PASSWORD);
        let answer = answer.send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        ensure!(status.is_success(), "{sql}: {status} {text}");
        Ok(text)
    }

    fn settings(&self) -> String {
        let password = self.folder.path().join("password").display().to_string();
        format!("url = \"http://{}\"\npassword-file = \"{password}\"", self.address)
    }
}

/// The program's exit code, the object it prints, and what it says to people.
fn audit(plant: &Plant) -> anyhow::Result<(i32, Value, String)> {
    audit_of(plant, &[])
}

fn audit_of(plant: &Plant, flags: &[&str]) -> anyhow::Result<(i32, Value, String)> {
    let central = format!("http://{}", plant.api.address());
    let run = |more: &[&str]| {
        let args = [&["audit", "--central", &central], flags, more].concat();
        Command::new(program::ours("tidegate")?).args(args).output().context("tidegate does not start")
    };
    let (json, text) = (run(&["--json"])?, run(&[])?);
    ensure!(json.status == text.status, "{json:?} {text:?}");
    let object = String::from_utf8(json.stdout)?;
    let object = serde_json::from_str(object.lines().last().context("nothing on stdout")?)?;
    Ok((json.status.code().context("killed")?, object, String::from_utf8(text.stdout)?))
}

fn names_the_stream(audit: &Value, text: &str) -> bool {
    let problems = audit["problems"].as_array();
    problems.is_some_and(|all| all.iter().any(|p| p.to_string().contains(STREAM)))
        && text.contains("NOT BALANCED")
        && text.lines().any(|line| line.contains(STREAM) && line.contains("WRONG"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_doubled_or_deleted_by_hand_is_found() -> anyhow::Result<()> {
    let server = Server::start().await?;
    let options = Options { clickhouse: server.settings(), ..simple::options() };
    let plant = Plant::start(&options).await?;
    simple::send(&plant, "press", simple::payloads(0, 200, 0)).await?;
    plant.rows(STREAM, 200, DEADLINE).await?;
    wait::until_true("a balanced audit", DEADLINE, async || audit(&plant).is_ok_and(|(code, ..)| code == 0))
        .await
        .with_context(|| plant.logs())?;

    // As many rows, of the same seqs: only the values tell, and only whoever asks for them hears it.
    let table = format!("tidegate.{STREAM}");
    let (code, found, _) = audit_of(&plant, &["--values"])?;
    ensure!(code == 0 && found["reread"]["records"].as_u64() > Some(0), "{found}");
    let change = |from: &str, to: &str| {
        let wait = "settings mutations_sync = 2";
        format!("alter table {table} update note = '{to}' where note = '{from}' and value = 21 {wait}")
    };
    server.run(&change("", "forged")).await?;
    ensure!(audit(&plant)?.0 == 0, "numbers cannot tell");
    let said = problem(&plant, &["--values", "--since", "1h"])?;
    ensure!(
        said.contains("1 records have other values in the table than in the log, first column \"note\""),
        "{said}"
    );
    ensure!(said.starts_with("plant-1/telemetry") && said.contains(" at offset "), "{said}");
    server.run(&change("forged", "")).await?;
    ensure!(audit_of(&plant, &["--values"])?.0 == 0, "all is as it was");

    server.run(&format!("insert into {table} select * from {table} where value = 17")).await?;
    let (code, found, text) = audit(&plant)?;
    ensure!((code, &found["lost"], &found["duplicated"]) == (1, &0.into(), &1.into()), "{code} {found}");
    ensure!(names_the_stream(&found, &text), "{found}\n{text}");

    // Both copies, so one row of those that were acknowledged is missing.
    server.run(&format!("delete from {table} where value = 17")).await?;
    let (code, found, text) = audit(&plant)?;
    ensure!((code, &found["lost"], &found["duplicated"]) == (1, &1.into(), &0.into()), "{code} {found}");
    ensure!(names_the_stream(&found, &text), "{found}\n{text}");
    Ok(())
}

/// The one problem of an audit that found one, which is also what people read.
fn problem(plant: &Plant, flags: &[&str]) -> anyhow::Result<String> {
    let (code, found, text) = audit_of(plant, flags)?;
    let problems = found["problems"].as_array().context("no problems")?;
    let [only] = problems.as_slice() else { bail!("{found}") };
    let only = only.as_str().context("no text")?;
    ensure!(code == 1 && text.contains(&format!("PROBLEM {only}")), "{code}\n{text}");
    Ok(only.to_owned())
}

async fn balanced(plant: &Plant) -> anyhow::Result<Value> {
    let found = wait::until("a balanced audit", DEADLINE, async || {
        audit(plant).ok().filter(|(code, ..)| *code == 0).map(|(_, found, _)| found)
    });
    found.await.with_context(|| format!("{:?}\n{}", audit(plant), plant.logs()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_that_are_unsafe_or_changed_by_hand_are_named() -> anyhow::Result<()> {
    let server = Server::start().await?;
    let options = Options { clickhouse: server.settings(), ..simple::options() };
    let plant = Plant::start(&options).await?;
    simple::send(&plant, "press", simple::payloads(0, 50, 0)).await?;
    plant.rows(STREAM, 50, DEADLINE).await?;
    let table = format!("tidegate.{STREAM}");
    let half = "create table tidegate.half (seq UInt64, value Float64, _partition UInt32, _offset UInt64)";
    server.run(&format!("{half} engine = MergeTree order by seq")).await?;
    let select = "select seq, assumeNotNull(value) as value, _partition, _offset";
    let view = "create materialized view tidegate.to_half to tidegate.half as";
    server.run(&format!("{view} {select} from {table} where value % 2 = 0")).await?;
    // Central sees it and sets what it needs.
    let seen = wait::until("a safe view", DEADLINE, async || {
        let (code, found, _) = audit(&plant).ok()?;
        (code == 0 && found["views"][0]["safe"] == true).then_some(found)
    });
    let seen = seen.await.with_context(|| plant.logs())?;
    ensure!(
        (&seen["views"][0]["view"], &seen["views"][0]["window"])
            == (&"tidegate.to_half".into(), &25_000.into()),
        "{seen}"
    );

    simple::send(&plant, "press", simple::payloads(50, 200, 0)).await?;
    plant.rows(STREAM, 250, DEADLINE).await?;
    let found = balanced(&plant).await?;
    ensure!(found["views"][0]["not_compared"].is_null(), "{found}");
    // One row instead of another: the number is right.
    server.run("delete from tidegate.half where value = 60").await?;
    server.run("insert into tidegate.half select * from tidegate.half where value = 62").await?;
    let said = problem(&plant, &[])?;
    ensure!(
        said.contains("view tidegate.to_half of stream telemetry: 1 rows are missing and 1 too many"),
        "{said}"
    );
    ensure!(said.contains("first at offset ") && said.contains("of partition "), "{said}");
    server.run("insert into tidegate.half select * from tidegate.half where value in (70, 72)").await?;
    let said = problem(&plant, &[])?;
    ensure!(said.contains(" too many, first at offset "), "{said}");

    // A target that cannot recognise a repeat is no loss, but is told.
    server.run("drop table tidegate.to_half").await?;
    server
        .run(&format!("create materialized view tidegate.memory engine = Memory as select seq from {table}"))
        .await?;
    let (code, found, text) = audit(&plant)?;
    let unsafe_one = found["unsafe_tables"][0].as_str().unwrap_or_default();
    ensure!(code == 1 && found["balanced"] == true, "{code} {found}");
    ensure!(unsafe_one.starts_with("view tidegate.memory of stream telemetry"), "{found}");
    ensure!(text.contains("UNSAFE view tidegate.memory") && text.contains("BALANCED: 0 lost"), "{text}");
    Ok(())
}

/// Flips a byte in the payload of a frame in the middle of a log's first segment that has some.
fn flip_a_byte(log: &Path) -> anyhow::Result<()> {
    let mut segments: Vec<_> =
        std::fs::read_dir(log)?.map(|e| Ok(e?.path())).collect::<std::io::Result<_>>()?;
    segments.retain(|path| path.is_file());
    segments.sort();
    for segment in segments {
        let mut bytes = std::fs::read(&segment)?;
        let starts: Vec<usize> =
            bytes.windows(4).enumerate().filter(|(_, w)| w == b"TGJ1").map(|(at, _)| at).collect();
        let length = |at: usize, field: usize| -> usize {
            let four = bytes[at + field..at + field + 4].try_into().unwrap_or_default();
            u32::from_le_bytes(four) as usize
        };
        // Frames that hold something; the last one stays, so that damage is told from a torn end.
        let full: Vec<(usize, usize)> = starts
            .iter()
            .filter(|at| bytes[**at + 5] != 255 && length(**at, 36) > 0)
            .map(|at| (*at, 48 + length(*at, 32) + length(*at, 36) / 2))
            .collect();
        if full.len() >= 3 {
            let (at, inside) = full[full.len() / 2];
            bytes[at + inside] ^= 1;
            return Ok(std::fs::write(&segment, bytes)?);
        }
    }
    bail!("no segment in {} has three frames", log.display())
}

/// Several blocks, one after the other, each in a frame of its own.
async fn send_blocks(plant: &Plant, stored: bool) -> anyhow::Result<()> {
    for n in 0..6 {
        simple::send(plant, "press", simple::payloads(n * 40, 40, 100)).await?;
        if stored {
            plant.rows(STREAM, (n as u64 + 1) * 40, DEADLINE).await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_byte_flipped_in_centrals_log_is_named() -> anyhow::Result<()> {
    let mut plant = Plant::start(&simple::options()).await?;
    send_blocks(&plant, true).await?;
    let found = balanced(&plant).await?;
    ensure!(found["reread"]["records"].as_u64().is_some_and(|n| n >= 6), "{found}");
    plant.kill_central();
    let parts = std::fs::read_dir(plant.path("central-data/log"))?.filter_map(|e| Some(e.ok()?.path()));
    let parts: Vec<_> = parts.filter(|p| p.is_dir() && !p.ends_with("offsets")).collect();
    ensure!(parts.iter().any(|p| flip_a_byte(p).is_ok()), "no partition of {parts:?} has three groups");
    plant.start_central()?;
    plant.central_ready().await?;

    // All rows are in their table: the periodic audit has nothing to say, the one that reads again has.
    let said = wait::until("a verdict", DEADLINE, async || problem(&plant, &[]).ok());
    let said = said.await.with_context(|| format!("{:?}\n{}", audit(&plant), plant.logs()))?;
    ensure!(
        said.starts_with("plant-1/telemetry: ")
            && said.contains("seqs of the log cannot be read any more: seqs "),
        "{said}"
    );
    ensure!(said.contains("before offset ") && said.contains("of partition "), "{said}");
    ensure!(
        problem(&plant, &["--since", "1h", "--stream", STREAM, "--gateway", "plant-1"])? == said,
        "{said}"
    );
    let (code, found, _) = audit_of(&plant, &["--since", "2099-01-01T00:00:00Z"])?;
    ensure!(code == 0 && found["reread"]["records"] == 0, "nothing is that new: {found}");
    let (code, found, _) = audit_of(&plant, &["--last"])?;
    ensure!(code == 0, "{found}");
    Ok(())
}

/// The files below a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { files(&path, found)? } else { found.push(path) }
    }
    Ok(())
}

/// Flips a byte in the rows of a block in the middle of a topic's file. Every message in a block begins with four bytes
/// of ones; the one with the rows is the long one.
fn flip_a_byte_of_topic(broker: &Path, topic: &str) -> anyhow::Result<()> {
    let mut found = Vec::new();
    files(broker, &mut found)?;
    found.retain(|f| f.to_string_lossy().contains(topic) && f.extension().is_some_and(|e| e == "log"));
    for file in found {
        let mut bytes = std::fs::read(&file)?;
        let starts: Vec<usize> =
            bytes.windows(4).enumerate().filter(|(_, w)| *w == [0xff; 4]).map(|(at, _)| at).collect();
        let long: Vec<usize> = starts.windows(2).filter(|w| w[1] - w[0] > 2_000).map(|w| w[0]).collect();
        if long.len() >= 3 {
            bytes[long[long.len() / 2] + 1_500] ^= 1;
            return Ok(std::fs::write(&file, bytes)?);
        }
    }
    bail!("no file of {topic} holds three blocks")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_byte_flipped_on_a_brokers_disk_is_named() -> anyhow::Result<()> {
    let mut kafka = Kafka::start(&[]).await?;
    let options = Options { log: kafka.central_log(), ..simple::options() };
    let mut plant = Plant::start(&options).await?;
    send_blocks(&plant, true).await?;
    balanced(&plant).await?;
    plant.kill_central();
    // Whoever names a broker of their own keeps its disk to themselves.
    let Ok(folder) = kafka.stop() else { return Ok(()) };
    flip_a_byte_of_topic(&folder, ".data-")?;
    kafka.restart().await?;
    plant.start_central()?;
    plant.central_ready().await?;

    // The broker gives out what its disk gives it. Whoever reads it sees that the bytes have another hash, and puts it aside.
    let said = wait::until("the audit's word", DEADLINE, async || problem(&plant, &["--since", "1h"]).ok());
    let said = said.await.with_context(|| format!("{:?}\n{}", audit(&plant), plant.logs()))?;
    ensure!(
        said.starts_with("plant-1/telemetry: ")
            && said.contains("seqs of the log cannot be read any more: seqs "),
        "{said}"
    );
    ensure!(said.contains("before offset ") && said.contains("of partition "), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_byte_flipped_in_a_gateways_output_is_named() -> anyhow::Result<()> {
    let mut plant = Plant::start(&simple::options()).await?;
    simple::send(&plant, "press", simple::payloads(0, 10, 0)).await?;
    plant.rows(STREAM, 10, DEADLINE).await?;
    balanced(&plant).await?;
    // What comes now stays in the gateway.
    plant.kill_central();
    send_blocks(&plant, false).await?;
    plant.kill_gateway();
    flip_a_byte(&plant.path("gateway-data/output"))?;
    plant.start_central()?;
    plant.start_gateway()?;
    plant.central_ready().await?;
    plant.gateway_ready().await?;

    let said = wait::until("the audit's word", DEADLINE, async || problem(&plant, &[]).ok());
    let said = said.await.with_context(|| format!("{:?}\n{}", audit(&plant), plant.logs()))?;
    ensure!(
        said.starts_with("plant-1/telemetry: the gateway declared ")
            && said.contains("frames of its buffer are damaged"),
        "{said}"
    );
    let (_, found, _) = audit(&plant)?;
    let lost = found["lost"].as_u64().unwrap_or_default();
    ensure!(lost > 0 && lost < 250 && found["duplicated"] == 0, "{found}");
    let rows = plant.api.count(STREAM).await?;
    let stream = |g: &Value| g["streams"].as_array()?.iter().find(|s| s["stream"] == STREAM).cloned();
    let stream = stream(&found["gateways"][0]).context("no stream")?;
    ensure!(stream["last_seq"] == 250 && rows + lost == 250, "{rows} rows, {found}");
    Ok(())
}
