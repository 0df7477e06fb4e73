//! A real broker for the tests of this folder.

use daemon::clock::SystemRandom;
use record::clock::Random as _;
use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The broker, from `cargo xtask kafka`, or the one of `TIDEGATE_TEST_KAFKA`.
pub(crate) struct Broker {
    /// `host:port`.
    pub(crate) address: String,
    folder: Option<TempDir>,
}

fn xtask() -> PathBuf {
    let me = std::env::current_exe().expect("a program");
    let found = me.ancestors().map(|folder| folder.join("xtask")).find(|path| path.is_file());
    found.expect("built: run `cargo build --workspace --bins`, or `cargo xtask test`")
}

impl Broker {
    #[allow(dead_code, reason = "one test needs a cluster of its own")]
    pub(crate) fn start() -> Self {
        if let Ok(address) = std::env::var("TIDEGATE_TEST_KAFKA") {
            return Self { address, folder: None };
        }
        let mut me = Self { address: String::new(), folder: Some(TempDir::new().expect("temp dir")) };
        me.address = me.ask("start")["address"].as_str().expect("an address").to_owned();
        me
    }

    /// One of our own with these lines of `server.properties`, which knows the user `central`.
    #[allow(dead_code, reason = "not every test wants settings of its own")]
    pub(crate) fn with(folder: TempDir, settings: &[(&str, &str)]) -> Self {
        let mut me = Self { address: String::new(), folder: Some(folder) };
        let set: Vec<String> = settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let mut set: Vec<String> = set.into_iter().flat_map(|line| ["--set".to_owned(), line]).collect();
        set.extend(["--user".to_owned(), "central=s3cret".to_owned()]);
        me.address = me.ask_with("start", &set)["address"].as_str().expect("an address").to_owned();
        me
    }

    /// A second broker in the cluster of `first`, which is one of our own.
    #[allow(dead_code, reason = "most tests need one broker")]
    pub(crate) fn joined(first: &Broker) -> Self {
        let mut me = Self { address: String::new(), folder: Some(TempDir::new().expect("temp dir")) };
        let first = first.folder.as_ref().expect("ours").path().join("broker");
        let join = ["--join".to_owned(), first.display().to_string()];
        me.address = me.ask_with("start", &join)["address"].as_str().expect("an address").to_owned();
        me
    }

    /// SIGKILL.
    #[allow(dead_code, reason = "most tests let it live")]
    pub(crate) fn kill(&self) {
        let pid = self.ask("status")["pid"].to_string();
        assert!(Command::new("kill").args(["-9", &pid]).status().expect("runs").success());
    }

    /// Starts one that was killed and had joined `first`.
    #[allow(dead_code, reason = "most tests let it live")]
    pub(crate) fn joined_again(&self, first: &Broker) {
        let first = first.folder.as_ref().expect("ours").path().join("broker");
        self.ask_with("start", &["--join".to_owned(), first.display().to_string()]);
    }

    fn ask(&self, what: &str) -> serde_json::Value {
        self.ask_with(what, &[])
    }

    fn ask_with(&self, what: &str, more: &[String]) -> serde_json::Value {
        let folder = self.folder.as_ref().expect("ours").path().join("broker");
        let mut ask = Command::new(xtask());
        let out = ask.args(["kafka", what, "--json", "--dir"]).arg(folder).args(more).output();
        let out = out.expect("runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).expect("json")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if self.folder.is_some() {
            self.ask("stop");
        }
    }
}

/// What names of topics begin with: another one for each log.
pub(crate) fn prefix() -> String {
    format!("t{:016x}", SystemRandom.next_u64())
}

/// Waits for it.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
