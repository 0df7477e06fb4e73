//! `tidegate buffer`: what a gateway's data folder holds, whether the gateway runs or not. Nothing is ever changed.

use crate::output::{Output, Verdict, cell, table, thousands};
use anyhow::bail;
use clap::{Args, Subcommand, ValueEnum};
use journal::{FrameSeq, RealDisk, inspect};
use serde_json::{Value, json};
use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// The noun.
#[derive(Debug, Subcommand)]
pub(crate) enum Buffer {
    /// Sizes and ends of both logs
    Status(Folder),
    /// Read every frame and prove every checksum; exit code 1 when something is damaged
    Check(Folder),
    /// Write every readable frame to stdout, one JSON object a line
    Export(Export),
}

/// Which data folder.
#[derive(Debug, Args)]
pub(crate) struct Folder {
    /// The gateway's data-dir
    dir: PathBuf,
}

/// The verb `export`.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The gateway's data-dir
    dir: PathBuf,
    /// Which log: accepted events, or what became of them
    #[arg(long, value_enum, default_value = "input")]
    log: Log,
    /// First frame
    #[arg(long, default_value_t = 1)]
    from: u64,
}

/// The two logs.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Log {
    /// Accepted events
    Input,
    /// What became of them
    Output,
}

impl Log {
    const ALL: [Log; 2] = [Log::Input, Log::Output];

    fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Output => "output",
        }
    }
}

/// The folders of the logs that are there.
fn logs(dir: &Path) -> anyhow::Result<Vec<(Log, PathBuf)>> {
    let found: Vec<(Log, PathBuf)> =
        Log::ALL.into_iter().map(|l| (l, dir.join(l.name()))).filter(|(_, p)| p.is_dir()).collect();
    if found.is_empty() {
        bail!("{} is not a gateway's data-dir: it has neither input/ nor output/", dir.display());
    }
    Ok(found)
}

impl Buffer {
    pub(crate) fn run(self, out: &Output) -> anyhow::Result<Verdict> {
        match self {
            Self::Status(folder) => status(&folder.dir, out),
            Self::Check(folder) => check(&folder.dir, out),
            Self::Export(verb) => verb.run(),
        }
    }
}

fn status(dir: &Path, out: &Output) -> anyhow::Result<Verdict> {
    let mut all = Vec::new();
    for (log, path) in logs(dir)? {
        let s = inspect::status(&RealDisk, &path)?;
        all.push(json!({
            "log": log.name(),
            "bytes": s.bytes,
            "segments": s.segments,
            "frames": s.frames,
            "first": s.first.map(|f| f.0),
            "last": s.last.map(|f| f.0),
            "checkpoint": s.checkpoint.map(|f| f.0),
        }));
    }
    out.show(&json!({ "logs": all }), |v| {
        columns(v, &["log", "bytes", "segments", "frames", "first", "last", "checkpoint"])
    });
    Ok(Verdict::Fine)
}

fn check(dir: &Path, out: &Output) -> anyhow::Result<Verdict> {
    let mut all = Vec::new();
    let mut damage = Vec::new();
    for (log, path) in logs(dir)? {
        let r = inspect::check(&RealDisk, &path)?;
        for d in &r.damage {
            damage.push(format!("{} at {}: {:?}", d.path.display(), d.offset, d.gap));
        }
        all.push(json!({
            "log": log.name(),
            "segments": r.segments,
            "frames": r.frames,
            "payload_bytes": r.payload_bytes,
            "checkpoints": r.checkpoints,
            "damaged": r.damage.len(),
            "unfinished_bytes": r.unfinished_bytes,
        }));
    }
    let fine = damage.is_empty();
    out.show(&json!({ "logs": all, "damage": damage, "fine": fine }), |v| {
        let heads =
            ["log", "segments", "frames", "payload_bytes", "checkpoints", "damaged", "unfinished_bytes"];
        let mut text = columns(v, &heads);
        for d in v["damage"].as_array().into_iter().flatten() {
            text.push_str(&format!("DAMAGED {}\n", cell(d)));
        }
        text
    });
    Ok(Verdict::fine_if(fine))
}

fn columns(v: &Value, names: &[&str]) -> String {
    let show = |v: &Value| v.as_u64().map_or_else(|| cell(v), thousands);
    let rows: Vec<Vec<String>> = v["logs"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|log| names.iter().map(|n| show(&log[*n])).collect())
        .collect();
    table(names, &rows)
}

impl Export {
    fn run(self) -> anyhow::Result<Verdict> {
        let found = logs(&self.dir)?.into_iter().find(|(l, _)| l.name() == self.log.name());
        let Some((_, path)) = found else { bail!("there is no log {}", self.log.name()) };
        let mut frames = inspect::export(&RealDisk, &path, FrameSeq(self.from))?;
        let mut stdout = io::BufWriter::new(io::stdout().lock());
        for frame in &mut frames {
            let frame = frame?;
            let line = json!({
                "seq": frame.seq.0,
                "kind": frame.kind,
                "meta": hex::encode(&frame.meta),
                "payload": hex::encode(&frame.payload),
            });
            writeln!(stdout, "{line}")?;
        }
        stdout.flush()?;
        let damage = frames.damage();
        for d in damage {
            eprintln!("tidegate: passed over damage in {} at {}: {:?}", d.path.display(), d.offset, d.gap);
        }
        Ok(Verdict::fine_if(damage.is_empty()))
    }
}
