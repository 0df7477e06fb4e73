//! Durable bytes a second through [`journal::Log`] beside a plain file with the same group commit, in one run;
//! and what opening a large backlog costs.
//!
//! `cargo bench -p journal --bench journal -- [--json] [--rounds 15] [--mib 256] [--backlog-mib 2048] [--dir D]`
//!
//! All sides write the same blocks and sync when 1 MiB was written. Rounds alternate, each side's figure is the
//! median of its rounds. The log gets a group as one frame, which is how the hand-off and the lanes write it, and, for
//! comparison, a frame a block. The plain file is what a program would write that needs no seq, no checksum, no
//! checkpoint and no reader: one write a block, aligned, into a preallocated file, one fdatasync a group.

use journal::{FrameSeq, Log, LogOptions, RealDisk};
use std::{
    fs::File,
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

const BLOCK_BYTES: usize = 64 << 10;
const GROUP_BLOCKS: usize = (1 << 20) / BLOCK_BYTES;
const SEGMENT_BYTES: u64 = 64 << 20;

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let done = match args.iter().position(|arg| arg == "--reopen") {
        Some(at) => args
            .get(at + 1)
            .ok_or_else(|| "--reopen needs a folder".into())
            .and_then(|dir| reopen(Path::new(dir))),
        None => bench(&args),
    };
    done.unwrap_or_else(|e| {
        eprintln!("journal: {e}");
        ExitCode::FAILURE
    })
}

fn number(args: &[String], name: &str, default: usize) -> usize {
    let at = args.iter().position(|arg| arg == name);
    at.and_then(|at| args.get(at + 1)).and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn bench(args: &[String]) -> Result<ExitCode, Failure> {
    let (rounds, mib) = (number(args, "--rounds", 15), number(args, "--mib", 256));
    let parent =
        args.iter().position(|arg| arg == "--dir").and_then(|at| args.get(at + 1)).map(PathBuf::from);
    let dir = match parent {
        Some(parent) => tempfile::tempdir_in(parent)?,
        None => tempfile::tempdir_in(".")?,
    };
    // Not compressible, not repeated: as blocks are that were compressed before.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let block: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(BLOCK_BYTES)
    .collect();
    let blocks = mib * GROUP_BLOCKS;
    let (mut logs, mut singles, mut plains, mut written) = (Vec::new(), Vec::new(), Vec::new(), 0.0);
    let log_dir = dir.path().join("log");
    for round in 0..rounds {
        // Who goes first changes from round to round.
        for side in 0..3 {
            match (round + side) % 3 {
                0 => {
                    let (rate, on_disk) = through_log(&log_dir, &block, blocks, GROUP_BLOCKS)?;
                    written = on_disk as f64 / (blocks * BLOCK_BYTES) as f64;
                    logs.push(rate);
                }
                1 => plains.push(through_file(&dir.path().join("plain"), &block, blocks)?),
                _ => singles.push(through_log(&log_dir, &block, blocks, 1)?.0),
            }
        }
        let (log, single, plain) = (logs[round], singles[round], plains[round]);
        eprintln!(
            "round {}: log {log:.0} MB/s, a frame a block {single:.0} MB/s, plain file {plain:.0} MB/s",
            round + 1
        );
    }
    let (log, single, plain) = (median(&mut logs), median(&mut singles), median(&mut plains));
    let backlog_mib = number(args, "--backlog-mib", 2048);
    let backlog = dir.path().join("backlog");
    through_log(&backlog, &block, backlog_mib * GROUP_BLOCKS, GROUP_BLOCKS)?;
    let (reopen_ms, rss_mib) = reopened(&backlog)?;
    let figures = [log, plain, log / plain, single / plain, written, reopen_ms, rss_mib, backlog_mib as f64];
    Ok(report(args, &figures))
}

fn report(args: &[String], figures: &[f64; 8]) -> ExitCode {
    let [log, plain, ratio, single, written, reopen_ms, rss_mib, backlog_mib] = figures;
    let bars = [
        ("durable_ratio_to_plain_file", ">=", 0.8, *ratio),
        ("written_bytes_per_logged_byte", "<=", 1.1, *written),
        ("reopen_ms", "<=", 1000.0, *reopen_ms),
        ("reopen_rss_mib", "<=", 32.0, *rss_mib),
    ];
    let holds =
        |operator: &str, bar: f64, value: f64| if operator == ">=" { value >= bar } else { value <= bar };
    let lines: Vec<String> = bars
        .iter()
        .map(|&(figure, operator, bar, value)| {
            let holds = holds(operator, bar, value);
            eprintln!("{figure} {value:.3} (bar {operator} {bar}): {}", if holds { "holds" } else { "falls short" });
            format!(r#"{{"figure":"{figure}","operator":"{operator}","bar":{bar},"value":{value:.4},"holds":{holds}}}"#)
        })
        .collect();
    if args.iter().any(|arg| arg == "--json") {
        println!(
            r#"{{"name":"journal","figures":{{"log_mb_per_s":{log:.1},"plain_file_mb_per_s":{plain:.1},"durable_ratio_to_plain_file":{ratio:.4},"durable_ratio_a_frame_a_block":{single:.4},"written_bytes_per_logged_byte":{written:.4},"reopen_backlog_mib":{backlog_mib},"reopen_ms":{reopen_ms:.1},"reopen_rss_mib":{rss_mib:.1}}},"bars":[{}]}}"#,
            lines.join(",")
        );
    }
    let all = bars.iter().all(|&(_, operator, bar, value)| holds(operator, bar, value));
    if all { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn median(rates: &mut [f64]) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// MB/s with so many blocks a frame, and the bytes that were written for it.
fn through_log(dir: &Path, block: &[u8], blocks: usize, a_frame: usize) -> Result<(f64, u64), Failure> {
    let _ = std::fs::remove_dir_all(dir);
    settle()?;
    let options = LogOptions { segment_bytes: SEGMENT_BYTES, salt: 1, quota: None };
    let (mut log, _) = Log::open(RealDisk, dir, options)?;
    let before = written_bytes()?;
    let payload = vec![block; a_frame];
    let started = Instant::now();
    for i in 0..blocks / a_frame {
        log.append(1, &(i as u64).to_le_bytes(), &payload, &mut || vec![0; 4096])?;
        if ((i + 1) * a_frame).is_multiple_of(GROUP_BLOCKS) {
            log.sync()?;
        }
    }
    log.sync()?;
    let rate = (blocks * block.len()) as f64 / 1e6 / started.elapsed().as_secs_f64();
    Ok((rate, written_bytes()? - before))
}

/// What this process had written to disk so far, by the kernel's count of pages made dirty.
fn written_bytes() -> Result<u64, Failure> {
    let io = std::fs::read_to_string("/proc/self/io")?;
    Ok(io
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: "))
        .ok_or("no write_bytes")?
        .trim()
        .parse()?)
}

fn through_file(path: &Path, block: &[u8], blocks: usize) -> Result<f64, Failure> {
    let _ = std::fs::remove_file(path);
    settle()?;
    let file = File::create(path)?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, (blocks * block.len()) as u64)?;
    file.sync_all()?;
    let started = Instant::now();
    for i in 0..blocks {
        file.write_all_at(block, (i * block.len()) as u64)?;
        if (i + 1) % GROUP_BLOCKS == 0 {
            file.sync_data()?;
        }
    }
    file.sync_data()?;
    Ok((blocks * block.len()) as f64 / 1e6 / started.elapsed().as_secs_f64())
}

/// Nothing of the round before is still on its way to the disk.
fn settle() -> Result<(), Failure> {
    rustix::fs::sync();
    std::io::stderr().flush()?;
    Ok(())
}

/// Milliseconds and MiB of a process of its own that opens the log in `dir` and reads one frame.
fn reopened(dir: &Path) -> Result<(f64, f64), Failure> {
    let output = Command::new(std::env::current_exe()?).arg("--reopen").arg(dir).output()?;
    let text = String::from_utf8(output.stdout)?;
    let mut words = text.split_whitespace();
    let mut next = || -> Result<f64, Failure> { Ok(words.next().ok_or("the child said nothing")?.parse()?) };
    Ok((next()?, next()?))
}

fn reopen(dir: &Path) -> Result<ExitCode, Failure> {
    let started = Instant::now();
    let options = LogOptions { segment_bytes: SEGMENT_BYTES, salt: 2, quota: None };
    let (log, recovery) = Log::open(RealDisk, dir, options)?;
    let mut reader = log.reader(recovery.first.unwrap_or(FrameSeq(1)));
    reader.next()?.ok_or("an empty backlog")?;
    let elapsed = started.elapsed();
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    let kib: f64 = peak.trim().trim_end_matches(" kB").parse()?;
    println!("{:.1} {:.1}", elapsed.as_secs_f64() * 1e3, kib / 1024.0);
    Ok(ExitCode::SUCCESS)
}
