//! Keeps the events whose number in one column is above, or below, a limit.
//!
//! `with = { column = "temperature", above = 90.0 }`, or `below`, or both for a band outside of which events stay out:
//! `above = 10, below = 20` keeps what is between. Events without a value in the column do not stay.

use tidegate_udf::{Batch, Bits, Field, Filter, Needs, Result, export_filter, settings};

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Threshold {
    column: String,
    above: Option<f64>,
    below: Option<f64>,
}

impl Filter for Threshold {
    fn configure(config: &str, input: &[Field]) -> Result<(Self, Needs)> {
        let threshold: Threshold = settings(config)?;
        if threshold.above.is_none() && threshold.below.is_none() {
            return Err("configuration: say above, below or both".into());
        }
        Field::expect_number(input, &threshold.column)?;
        let needs = Needs::of([&threshold.column]);
        Ok((threshold, needs))
    }

    fn keep(&mut self, rows: &Batch) -> Result<Bits> {
        let column = rows.column(&self.column)?;
        match (self.above, self.below) {
            (Some(above), None) => column.select(|v| v > above),
            (None, Some(below)) => column.select(|v| v < below),
            (above, below) => {
                let (above, below) = (above.unwrap_or(f64::NEG_INFINITY), below.unwrap_or(f64::INFINITY));
                column.select(|v| v > above && v < below)
            }
        }
    }
}

export_filter!(Threshold);
