//! A program as a child process: started, killed, waited for, never left behind.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Folder of the programs under test: `TIDEGATE_PROGRAMS`, else where this one was built.
pub fn folder() -> anyhow::Result<PathBuf> {
    if let Some(folder) = std::env::var_os("TIDEGATE_PROGRAMS") {
        return Ok(folder.into());
    }
    let me = std::env::current_exe()?;
    me.ancestors()
        .skip(1)
        .find(|folder| folder.join("tidegate-gateway").is_file())
        .map(Path::to_owned)
        .context("the programs are not built: run `cargo build --workspace --bins`, or `cargo xtask test`")
}

/// One of our programs.
pub fn ours(name: &str) -> anyhow::Result<PathBuf> {
    let path = folder()?.join(name);
    anyhow::ensure!(path.is_file(), "no {}: run `cargo build --workspace --bins`", path.display());
    Ok(path)
}

/// A WASM module built by `cargo xtask modules`.
pub fn module(name: &str) -> anyhow::Result<PathBuf> {
    let target = folder()?.parent().map(Path::to_owned).context("the programs have no folder")?;
    let path = target.join("modules").join(format!("{name}.wasm"));
    anyhow::ensure!(path.is_file(), "no {}: run `cargo xtask modules`", path.display());
    Ok(path)
}

/// A program of the system, from the path or from where Debian keeps daemons.
pub fn of_system(names: &[&str]) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> =
        std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]).collect();
    names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("{} is not installed: run `cargo xtask setup`", names.join(" or ")))
}

/// A running child process. Dropping it kills it.
pub struct Program {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts a program; stdout and stderr are appended to `log`.
    ///
    /// Call it from a thread that lives as long as the program shall: where `setpriv` is there, the kernel kills the
    /// child with the thread that made it, so that even a killed test leaves nothing behind.
    pub fn start(name: &str, command: &Path, args: &[&str], log: &Path) -> anyhow::Result<Self> {
        let out = OpenOptions::new().create(true).append(true).open(log)?;
        let err = out.try_clone()?;
        let mut start = match of_system(&["setpriv"]) {
            Ok(setpriv) => {
                let mut start = Command::new(setpriv);
                start.args(["--pdeathsig", "KILL", "--"]).arg(command);
                start
            }
            Err(_) => Command::new(command),
        };
        start.args(args).stdin(Stdio::null()).stdout(out).stderr(err);
        let child = start.spawn().with_context(|| format!("cannot start {}", command.display()))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and waits until it has ended; SIGKILL at the deadline.
    pub fn stop(&mut self, deadline: Duration) -> anyhow::Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        send(self.pid(), Signal::TERM)?;
        self.wait(deadline).inspect_err(|_| self.kill())
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self, deadline: Duration) -> anyhow::Result<ExitStatus> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if began.elapsed() > deadline {
                bail!("{} did not end within {deadline:?}\n{}", self.name, self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// An error with the end of its log when it has ended.
    pub fn expect_running(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} has ended: {status}\n{}", self.name, self.log_tail()),
        }
    }

    /// All that it has said.
    pub fn log(&self) -> String {
        read_lossy(&self.log)
    }

    /// The last lines of what it has said.
    pub fn log_tail(&self) -> String {
        tail(&self.log, 30)
    }

    /// Resident memory, bytes.
    pub fn resident_bytes(&self) -> Option<u64> {
        resident_bytes(self.pid())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a signal to one process.
pub fn send(pid: u32, signal: Signal) -> anyhow::Result<()> {
    let raw = i32::try_from(pid)?;
    let pid = Pid::from_raw(raw).context("0 is no process")?;
    Ok(kill_process(pid, signal)?)
}

/// Resident memory of a process, bytes.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Processes whose parent is `parent` and whose program has this name (the kernel knows its first 15 characters).
pub fn children(parent: u32, name: &str) -> Vec<u32> {
    let short: String = name.chars().take(15).collect();
    let Ok(list) = std::fs::read_dir("/proc") else { return Vec::new() };
    list.flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let Some((before, after)) = stat.rsplit_once(')') else { return false };
            let is_name = before.split_once('(').is_some_and(|(_, comm)| comm == short);
            is_name && after.split_whitespace().nth(1) == Some(&parent.to_string())
        })
        .collect()
}

/// The last lines of a file.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = read_lossy(path);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn read_lossy(path: &Path) -> String {
    use std::io::Read;
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(path) {
        // A log that cannot be read is an empty one: it is only shown, never judged by its absence.
        let _ = file.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
