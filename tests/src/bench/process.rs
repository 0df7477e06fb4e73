//! What a process costs, read from `/proc`.

use anyhow::{Context as _, Result};

/// Resident memory of a process in MB (millions of bytes).
pub fn rss_mb(pid: u32) -> Result<f64> {
    field_kib(pid, "VmRSS:")
}

/// The most resident memory that a process ever had, in MB (millions of bytes).
pub fn peak_rss_mb(pid: u32) -> Result<f64> {
    field_kib(pid, "VmHWM:")
}

fn field_kib(pid: u32, name: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = text.lines().find(|l| l.starts_with(name)).with_context(|| format!("{path} has no {name}"))?;
    let kib: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib * 1024.0 / 1e6)
}

/// CPU time that a process has used, user and system, in seconds.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    // The second field is the program's name in parentheses and may hold spaces.
    let after = text.rsplit_once(')').context("no program name")?.1;
    let ticks = |i: usize| after.split_whitespace().nth(i).and_then(|t| t.parse::<f64>().ok());
    let (user, system) = ticks(11).zip(ticks(12)).context("no CPU times")?;
    Ok((user + system) / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_time() {
        let pid = std::process::id();
        assert!(rss_mb(pid).expect("own status") > 0.1);
        assert!(peak_rss_mb(pid).expect("own status") > 0.1);
        assert!(cpu_seconds(pid).expect("own stat") >= 0.0);
    }
}
