//! The audit against rows that somebody changed by hand, in a ClickHouse server that central only knows by its address.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use tidegate_tests::http_load::client;
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
    let central = format!("http://{}", plant.api.address());
    let run = |more: &[&str]| {
        let args = [&["audit", "--central", &central], more].concat();
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

    let table = format!("tidegate.{STREAM}");
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
