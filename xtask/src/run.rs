//! Running other programs: said before, timed, judged after.
//!
//! A child stands in this process's group, so Ctrl-C reaches it. A child that outlives a stage is never started here:
//! the demonstration and the benchmarks take this process's place instead of running below it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// Runs to the end; a failure is an error that names the command.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let shown = show(command);
    let status = command.status().with_context(|| format!("cannot run {shown}"))?;
    if status.success() { Ok(()) } else { bail!("{shown}: {status}") }
}

/// Runs to the end with its stdout passed on line by line, each also shown to `each`. True when it succeeded.
pub(crate) fn run_seeing(command: &mut Command, mut each: impl FnMut(&str)) -> anyhow::Result<bool> {
    let shown = show(command);
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run {shown}"))?;
    let stdout = child.stdout.take().context("stdout was asked for")?;
    let mut reader = BufReader::new(stdout);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        std::io::stdout().write_all(&line)?;
        each(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    Ok(child.wait()?.success())
}

/// Puts the program in this process's place: signals and the exit code are its own.
pub(crate) fn become_program(command: &mut Command) -> anyhow::Result<()> {
    let shown = show(command);
    Err(command.exec()).with_context(|| format!("cannot run {shown}"))
}

/// Whether a program is on the path.
pub(crate) fn on_path(name: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        // Debian keeps daemons in sbin, which is on root's path only.
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
            .any(|folder| folder.join(name).is_file())
    })
}

fn show(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}
