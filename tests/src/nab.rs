//! The real input: a machine's temperature until it failed (see `tests/data/nab/README.md`).

use std::path::{Path, PathBuf};

use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{PrimitiveDateTime, UtcDateTime};

const CSV: &str = include_str!("../data/nab/machine_temperature_system_failure.csv");
const WINDOWS: &str = include_str!("../data/nab/windows.json");
const FORMAT: &[BorrowedFormatItem<'static>] =
    format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");

/// The file.
pub fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/nab/machine_temperature_system_failure.csv")
}

/// One line of the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Event time, nanoseconds since the epoch.
    pub time_ns: i64,
    /// The time as RFC 3339.
    pub time: String,
    /// The value.
    pub value: f64,
    /// The value as the file writes it.
    pub value_text: String,
}

impl Reading {
    /// What the device sends.
    pub fn json(&self) -> String {
        format!(r#"{{"ts":"{}","temperature":{}}}"#, self.time, self.value_text)
    }
}

/// A labelled stretch of failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// First second, nanoseconds since the epoch.
    pub from_ns: i64,
    /// Last second.
    pub until_ns: i64,
    /// Both as the file writes them.
    pub text: String,
}

/// All readings, in the order of the file.
pub fn readings() -> Vec<Reading> {
    let lines = CSV.lines().skip(1).filter(|line| !line.is_empty());
    let read = |line: &str| {
        let (time, value) = line.split_once(',')?;
        Some(Reading {
            time_ns: parse_time(time)?,
            time: format!("{}Z", time.replace(' ', "T")),
            value: value.parse().ok()?,
            value_text: value.to_owned(),
        })
    };
    lines.map(|line| read(line).expect("the file that is part of the repository is well formed")).collect()
}

/// The stretches that the benchmark's authors labelled.
pub fn failures() -> Vec<Failure> {
    let pairs: Vec<[String; 2]> = serde_json::from_str(WINDOWS).expect("part of the repository");
    let at = |text: &str| parse_time(text.split('.').next()?).or(None);
    pairs
        .into_iter()
        .map(|[from, until]| Failure {
            from_ns: at(&from).expect("part of the repository"),
            until_ns: at(&until).expect("part of the repository"),
            text: format!("{} to {}", &from[..16], &until[..16]),
        })
        .collect()
}

/// Nanoseconds since the epoch as `YYYY-MM-DD hh:mm:ss`.
pub fn show_time(ns: i64) -> String {
    UtcDateTime::from_unix_timestamp_nanos(i128::from(ns))
        .ok()
        .and_then(|time| time.format(FORMAT).ok())
        .unwrap_or_else(|| ns.to_string())
}

fn parse_time(text: &str) -> Option<i64> {
    let time = PrimitiveDateTime::parse(text, FORMAT).ok()?.assume_utc();
    i64::try_from(time.unix_timestamp_nanos()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_what_the_readme_says() {
        let readings = readings();
        assert_eq!(readings.len(), 22_695);
        assert_eq!(readings[0].json(), r#"{"ts":"2013-12-02T21:15:00Z","temperature":73.96732207}"#);
        assert_eq!(show_time(readings[0].time_ns), "2013-12-02 21:15:00");
        let times: std::collections::HashSet<i64> = readings.iter().map(|r| r.time_ns).collect();
        assert_eq!(times.len(), 22_683);
        let failures = failures();
        assert_eq!(failures.len(), 4);
        assert_eq!(failures[1].text, "2013-12-15 17:50 to 2013-12-17 17:00");
    }
}
