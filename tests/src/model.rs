//! What has to come out, computed plainly from the input: no windows, watermarks, modules or batches of ours.

use std::collections::{BTreeMap, HashMap};

use crate::nab::Reading;

/// Result of one window.
#[derive(Debug, Clone, PartialEq)]
pub struct WindowStats {
    /// Rows.
    pub count: u64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
    /// Mean.
    pub mean: f64,
    /// Value of the latest event time.
    pub last: f64,
}

/// What one device's readings become.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Rows of the root stream: time → value; the first reading of a time counts.
    pub rows: BTreeMap<i64, f64>,
    /// Readings whose time was already there with another value.
    pub conflicts: u64,
    /// Readings whose time was already there with the same value.
    pub repeats: u64,
    /// Closed windows by their start.
    pub windows: BTreeMap<i64, WindowStats>,
    /// Rows in windows that the newest event time has not closed yet.
    pub rows_in_open_windows: u64,
}

impl Expected {
    /// Rows above a limit.
    pub fn above(&self, limit: f64) -> u64 {
        self.rows.values().filter(|value| **value > limit).count() as u64
    }
}

/// Computes one device's expectation: windows of `every_ns`, closed once their end plus `lateness_ns` is reached by the
/// newest event time. The input may step back by no more than the lateness.
pub fn expect(readings: &[Reading], every_ns: i64, lateness_ns: i64) -> Expected {
    let mut out = Expected::default();
    for reading in readings {
        match out.rows.get(&reading.time_ns) {
            None => {
                out.rows.insert(reading.time_ns, reading.value);
            }
            Some(value) if *value == reading.value => out.repeats += 1,
            Some(_) => out.conflicts += 1,
        }
    }
    let newest = out.rows.keys().next_back().copied().unwrap_or(i64::MIN);
    let mut windows: BTreeMap<i64, Vec<(i64, f64)>> = BTreeMap::new();
    for (time, value) in &out.rows {
        windows.entry(time.div_euclid(every_ns) * every_ns).or_default().push((*time, *value));
    }
    for (start, rows) in windows {
        if start + every_ns + lateness_ns <= newest {
            out.windows.insert(start, summarise(&rows));
        } else {
            out.rows_in_open_windows += rows.len() as u64;
        }
    }
    out
}

fn summarise(rows: &[(i64, f64)]) -> WindowStats {
    let values = || rows.iter().map(|(_, value)| *value);
    WindowStats {
        count: rows.len() as u64,
        min: values().fold(f64::INFINITY, f64::min),
        max: values().fold(f64::NEG_INFINITY, f64::max),
        mean: values().sum::<f64>() / rows.len() as f64,
        last: rows.iter().max_by_key(|(time, _)| *time).map_or(f64::NAN, |(_, value)| *value),
    }
}

/// Differences between the rows that should be there and those that are; every sort counted, the first few named.
#[derive(Debug, Clone, Default)]
pub struct Difference {
    /// Expected, not there.
    pub lost: u64,
    /// There more often than expected.
    pub doubled: u64,
    /// There, never expected (or with another value).
    pub foreign: u64,
    /// A few examples in words.
    pub examples: Vec<String>,
}

impl Difference {
    /// Whether both sets are the same.
    pub fn is_none(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.foreign == 0
    }

    /// Adds another device's differences.
    pub fn add(&mut self, other: Self) {
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.foreign += other.foreign;
        self.examples.extend(other.examples);
        self.examples.truncate(10);
    }

    fn note(&mut self, example: String) {
        if self.examples.len() < 10 {
            self.examples.push(example);
        }
    }
}

/// Compares one device's rows as sets of (time, value), exactly.
pub fn compare(device: &str, expected: &BTreeMap<i64, f64>, found: &[(i64, f64)]) -> Difference {
    let mut difference = Difference::default();
    let mut seen: HashMap<i64, u64> = HashMap::with_capacity(found.len());
    for (time, value) in found {
        let times = seen.entry(*time).or_default();
        *times += 1;
        match expected.get(time) {
            Some(wanted) if wanted.to_bits() == value.to_bits() => {
                if *times > 1 {
                    difference.doubled += 1;
                    difference.note(format!("{device} at {time}: there {times} times"));
                }
            }
            Some(wanted) => {
                difference.foreign += 1;
                difference.note(format!("{device} at {time}: {value}, expected {wanted}"));
            }
            None => {
                difference.foreign += 1;
                difference.note(format!("{device} at {time}: {value}, expected nothing"));
            }
        }
    }
    for time in expected.keys().filter(|time| !seen.contains_key(time)) {
        difference.lost += 1;
        difference.note(format!("{device} at {time}: lost"));
    }
    difference
}

/// Compares windows: counts and extremes exactly, means within rounding (the sum may be taken in another order).
pub fn compare_windows(
    device: &str,
    expected: &BTreeMap<i64, WindowStats>,
    found: &[(i64, WindowStats)],
) -> Difference {
    let mut difference = Difference::default();
    let mut seen: HashMap<i64, u64> = HashMap::new();
    for (start, stats) in found {
        let times = seen.entry(*start).or_default();
        *times += 1;
        match expected.get(start) {
            Some(wanted) if same(wanted, stats) => {
                if *times > 1 {
                    difference.doubled += 1;
                    difference.note(format!("{device}, window {start}: there {times} times"));
                }
            }
            wanted => {
                difference.foreign += 1;
                difference.note(format!("{device}, window {start}: {stats:?}, expected {wanted:?}"));
            }
        }
    }
    for start in expected.keys().filter(|start| !seen.contains_key(start)) {
        difference.lost += 1;
        difference.note(format!("{device}, window {start}: lost"));
    }
    difference
}

fn same(a: &WindowStats, b: &WindowStats) -> bool {
    a.count == b.count
        && a.min == b.min
        && a.max == b.max
        && a.last == b.last
        && (a.mean - b.mean).abs() <= 1e-9 * a.mean.abs().max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nab;

    const HOUR_NS: i64 = 3_600_000_000_000;

    #[test]
    fn the_real_input_becomes_what_is_known_about_it() {
        let expected = expect(&nab::readings(), HOUR_NS, 2 * HOUR_NS);
        assert_eq!((expected.rows.len(), expected.conflicts, expected.repeats), (22_683, 12, 0));
        let in_windows: u64 = expected.windows.values().map(|w| w.count).sum();
        assert_eq!(in_windows + expected.rows_in_open_windows, 22_683);
        assert!(expected.windows.values().all(|w| w.min <= w.mean && w.mean <= w.max && w.count <= 12));
    }

    #[test]
    fn differences_are_seen() {
        let expected = BTreeMap::from([(1, 1.0), (2, 2.0), (3, 3.0)]);
        assert!(compare("d", &expected, &[(1, 1.0), (3, 3.0), (2, 2.0)]).is_none());
        let difference = compare("d", &expected, &[(1, 1.0), (1, 1.0), (2, 2.5), (9, 9.0)]);
        assert_eq!((difference.lost, difference.doubled, difference.foreign), (1, 1, 2));
    }
}
