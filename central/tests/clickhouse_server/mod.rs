//! A real ClickHouse server for the tests of this folder: one that is started, or the one of `TIDEGATE_TEST_CLICKHOUSE_URL`.

use daemon::{clock::SystemRandom, metrics::Registry, tasks::Tasks};
use std::path::{Path, PathBuf};
use tidegate_central::clickhouse::{
    Account, ClickHouse,
    process::{Embedded, EmbeddedOptions},
};

fn program() -> PathBuf {
    let here = std::env::current_exe().expect("a path");
    let folder = here.parent().and_then(Path::parent).expect("target/debug/deps");
    let program = folder.join("tidegate-clickhouse");
    assert!(program.is_file(), "{} is not built: cargo build --workspace --bins", program.display());
    program
}

/// A client with a database of its own, and the account that it uses; the server ends with the tasks.
pub(crate) fn start(folder: &Path, database: &str, tasks: &mut Tasks) -> (ClickHouse, Account) {
    let account = |password: &str| Account {
        user: "default".into(),
        password: password.to_owned(),
        database: database.to_owned(),
    };
    if let Ok(url) = std::env::var("TIDEGATE_TEST_CLICKHOUSE_URL") {
        return (ClickHouse::at(&url, account("")), account(""));
    }
    let options = EmbeddedOptions {
        program: program(),
        library: None,
        folder: folder.join("clickhouse"),
        listen: ([127, 0, 0, 1], 0).into(),
    };
    let server = Embedded::prepare(options, &SystemRandom).expect("prepared");
    let account = account(server.password());
    let clickhouse = ClickHouse::following(server.url(), account.clone());
    let restarts = Registry::new().counter("restarts_total", "Restarts.");
    let token = tasks.token();
    tasks.spawn("clickhouse", async move {
        server.run(restarts, token).await;
        Ok(())
    });
    (clickhouse, account)
}
