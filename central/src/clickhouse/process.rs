//! The embedded server: a process of its own, started, watched and started again.
//!
//! Invariants: it listens on this machine only and behind a password that only this user can read; it ends with its
//! parent, also when the parent is killed; where it listens is known to nobody before it answers.

use crate::sink::limits::{BACKOFF_MAX, BACKOFF_MIN};
use daemon::metrics::Counter;
use record::clock::Random;
use std::{
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    sync::watch,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// How long the server may take until it listens; attaching many tables takes a while.
const START_MAX: Duration = Duration::from_secs(120);
/// How long it may take to close its tables before it is killed (they stand that too).
const STOP_MAX: Duration = Duration::from_secs(15);
/// A server that ran this long was healthy: the next pause is a short one again.
const HEALTHY: Duration = Duration::from_secs(30);

/// How the server is started.
#[derive(Debug, Clone)]
pub struct EmbeddedOptions {
    /// The program, `tidegate-clickhouse`.
    pub program: PathBuf,
    /// The engine's library; the program looks for it where it is not named.
    pub library: Option<PathBuf>,
    /// Folder of its data and of the password.
    pub folder: PathBuf,
    /// Where it listens; a loopback address, port 0 to choose one.
    pub listen: SocketAddr,
}

/// Why it cannot be prepared.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct PrepareError {
    path: PathBuf,
    source: io::Error,
}

/// The supervisor.
#[derive(Debug)]
pub struct Embedded {
    options: EmbeddedOptions,
    password_file: PathBuf,
    password: String,
    url: watch::Sender<Option<String>>,
}

impl Embedded {
    /// Makes the folder, and the password when there is none yet.
    pub fn prepare(options: EmbeddedOptions, random: &dyn Random) -> Result<Self, PrepareError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| PrepareError { path, source }
        };
        std::fs::create_dir_all(&options.folder).map_err(at(&options.folder))?;
        let password_file = options.folder.join("password");
        let password = match std::fs::read_to_string(&password_file) {
            Ok(text) if !text.trim().is_empty() => text.trim().to_owned(),
            Ok(_) => make_password(&password_file, random).map_err(at(&password_file))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                make_password(&password_file, random).map_err(at(&password_file))?
            }
            Err(e) => return Err(at(&password_file)(e)),
        };
        Ok(Self { options, password_file, password, url: watch::Sender::new(None) })
    }

    /// The password of the users `default` and `readonly`.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Where the server listens, while it does.
    pub fn url(&self) -> watch::Receiver<Option<String>> {
        self.url.subscribe()
    }

    /// Keeps the server running until the token is cancelled, and counts each start but the first.
    pub async fn run(mut self, restarts: Counter, token: CancellationToken) {
        let mut pause = BACKOFF_MIN;
        let mut first = true;
        while !token.is_cancelled() {
            if !std::mem::take(&mut first) {
                restarts.inc();
            }
            let begun = Instant::now();
            if let Err(error) = self.once(&token).await {
                tracing::error!(%error, "the embedded clickhouse server");
            }
            self.url.send_replace(None);
            pause = if begun.elapsed() > HEALTHY { BACKOFF_MIN } else { (pause * 2).min(BACKOFF_MAX) };
            tokio::select! {
                () = token.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// One life of the server.
    async fn once(&mut self, token: &CancellationToken) -> io::Result<()> {
        let mut child = self.spawn()?;
        let pid = child.id();
        let stdout = child.stdout.take().ok_or_else(|| io::Error::other("its output is not piped"))?;
        let mut lines = BufReader::new(stdout).lines();
        let line = tokio::select! {
            () = token.cancelled() => return stop(child).await,
            line = timeout(START_MAX, lines.next_line()) => line,
        };
        let line = line.map_err(|_| io::Error::other(format!("did not listen within {START_MAX:?}")))??;
        let Some(address) = line.as_deref().and_then(|l| l.strip_prefix("listening ")) else {
            let status = child.wait().await?;
            return Err(io::Error::other(format!("ended at its start ({status}); its own words are above")));
        };
        // The same port again after a restart, so that those who look at it find it.
        if let Ok(address) = address.parse() {
            self.options.listen = address;
        }
        tracing::info!(address, pid, "the embedded clickhouse server listens");
        self.url.send_replace(Some(format!("http://{address}")));
        tokio::select! {
            () = token.cancelled() => stop(child).await,
            status = child.wait() => Err(io::Error::other(format!("ended unasked ({})", status?))),
        }
    }

    fn spawn(&self) -> io::Result<Child> {
        let mut command = Command::new(&self.options.program);
        command
            .arg("--data-dir")
            .arg(self.options.folder.join("data"))
            .args(["--listen", &self.options.listen.to_string()])
            .arg("--password-file")
            .arg(&self.password_file)
            .args(["--parent-pid", &std::process::id().to_string()]);
        if let Some(library) = &self.options.library {
            command.arg("--library").arg(library);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| io::Error::other(format!("cannot start {}: {e}", self.options.program.display())))
    }
}

async fn stop(mut child: Child) -> io::Result<()> {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    }
    match timeout(STOP_MAX, child.wait()).await {
        Ok(status) => status.map(drop),
        Err(_) => child.kill().await,
    }
}

fn make_password(file: &Path, random: &dyn Random) -> io::Result<String> {
    let password: String = (0..4).map(|_| format!("{:016x}", random.next_u64())).collect();
    let unfinished = file.with_extension("new");
    // A half-written one of a crashed start may be there.
    match std::fs::remove_file(&unfinished) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut out = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    writeln!(out, "{password}")?;
    out.sync_all()?;
    std::fs::rename(&unfinished, file)?;
    Ok(password)
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::clock::SeededRandom;
    use std::os::unix::fs::PermissionsExt as _;

    fn options(dir: &Path, program: &str) -> EmbeddedOptions {
        EmbeddedOptions {
            program: program.into(),
            library: None,
            folder: dir.join("clickhouse"),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        }
    }

    #[tokio::test]
    async fn each_start_but_the_first_is_counted() {
        let dir = tempfile::tempdir().expect("a folder");
        // A program that ends at its start.
        let server =
            Embedded::prepare(options(dir.path(), "false"), &SeededRandom::new(1)).expect("prepared");
        let restarts = daemon::metrics::Registry::new().counter("restarts_total", "Restarts.");
        let (token, seen) = (CancellationToken::new(), restarts.clone());
        let running = tokio::spawn(server.run(restarts.clone(), token.clone()));
        let twice = async {
            while seen.get() < 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(30), twice).await.expect("it is started again and again");
        token.cancel();
        running.await.expect("ended");
    }

    #[test]
    fn the_password_is_kept_and_private() {
        let dir = tempfile::tempdir().expect("a folder");
        let options = options(dir.path(), "nowhere");
        let first = Embedded::prepare(options.clone(), &SeededRandom::new(1)).expect("prepared");
        let again = Embedded::prepare(options, &SeededRandom::new(2)).expect("prepared");
        assert_eq!(first.password(), again.password());
        assert_eq!(first.password().len(), 64);
        let mode = std::fs::metadata(&first.password_file).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
