//! The process about itself, from `/proc`, under the names that Prometheus' own client libraries use.

use std::time::{SystemTime, UNIX_EPOCH};

use super::Registry;

/// Linux reports CPU time in ticks of 1/100 s on every platform that Rust supports (USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;

pub(super) fn register(registry: &Registry) {
    let start =
        registry.gauge("process_start_time_seconds", "When the process started, seconds since the epoch.");
    start.set(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64()));
    let resident = registry.gauge("process_resident_memory_bytes", "Memory held by the process.");
    let cpu = registry.add(prometheus::Counter::new(
        "process_cpu_seconds_total",
        "CPU time used by the process, user and system.",
    ));
    let files = registry.gauge("process_open_fds", "Open files and sockets.");
    registry.on_scrape(move || {
        if let Some(bytes) = resident_bytes() {
            resident.set(bytes);
        }
        if let Some(seconds) = cpu_seconds() {
            cpu.inc_by((seconds - cpu.get()).max(0.0));
        }
        if let Ok(list) = std::fs::read_dir("/proc/self/fd") {
            files.set(list.count() as f64);
        }
    });
}

fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0)
}

fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in brackets and may hold anything; the rest is numbers.
    let numbers: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let (user, system): (f64, f64) = (numbers.get(11)?.parse().ok()?, numbers.get(12)?.parse().ok()?);
    Some((user + system) / TICKS_PER_SECOND)
}
