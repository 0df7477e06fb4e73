//! What a benchmark prints: figures for people, bars that hold or do not, and one JSON object as the last line.

use serde_json::{Map, Value, json};

/// Figures and bars of one benchmark.
#[derive(Debug)]
pub struct Report {
    name: &'static str,
    figures: Map<String, Value>,
    bars: Vec<Value>,
    holds: bool,
}

impl Report {
    /// An empty report.
    pub fn new(name: &'static str) -> Self {
        Self { name, figures: Map::new(), bars: Vec::new(), holds: true }
    }

    /// Notes a figure; the name ends in its unit.
    pub fn figure(&mut self, name: &str, value: f64) {
        eprintln!("{name:44} {value:>14.3}");
        self.figures.insert(name.to_owned(), json!((value * 1000.0).round() / 1000.0));
    }

    /// Notes a figure that must be at least `bar`.
    pub fn at_least(&mut self, name: &str, value: f64, bar: f64) {
        self.bar(name, ">=", value, bar, value >= bar);
    }

    /// Notes a figure that may be at most `bar`.
    pub fn at_most(&mut self, name: &str, value: f64, bar: f64) {
        self.bar(name, "<=", value, bar, value <= bar);
    }

    fn bar(&mut self, name: &str, operator: &str, value: f64, bar: f64, holds: bool) {
        self.figure(name, value);
        eprintln!("{:44} {operator} {bar} {}", "", if holds { "holds" } else { "FALLS SHORT" });
        self.holds &= holds;
        self.bars.push(json!({
            "figure": name, "operator": operator, "bar": bar,
            "value": (value * 1000.0).round() / 1000.0, "holds": holds,
        }));
    }

    /// Prints the object on stdout when asked for; whether every bar holds.
    pub fn finish(self, as_json: bool) -> bool {
        if as_json {
            println!("{}", json!({ "name": self.name, "figures": self.figures, "bars": self.bars }));
        }
        self.holds
    }
}

/// The value below which the fraction `p` (0 to 1) of the samples lie; NaN without samples. Sorts them.
pub fn percentile(samples: &mut [f64], p: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let last = samples.len().saturating_sub(1);
    samples.get(((last as f64) * p).round() as usize).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_decide() {
        let mut r = Report::new("x");
        r.at_least("a_ratio", 1.2, 1.0);
        assert!(r.holds);
        r.at_most("b_ms", 3.0, 2.0);
        assert!(!r.finish(false));
    }

    #[test]
    fn percentiles() {
        let mut v = vec![3.0, 1.0, 2.0];
        assert!((percentile(&mut v, 0.5) - 2.0).abs() < f64::EPSILON);
        assert!(percentile(&mut [], 0.5).is_nan());
    }
}
