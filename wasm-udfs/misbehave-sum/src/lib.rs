//! An aggregate that fails, on purpose, in the middle of a batch, after it has already changed some states: for tests
//! of what the host makes of that.
//!
//! `with = { column = "temperature", equals = 13.0, mode = "trap" }` sums the column, and traps (or spins, or says no:
//! `spin`, `error`) at a row with this value.

use tidegate_udf::{
    Aggregate, Batch, Column, Field, Kind, Needs, Result, StateReader, StateWriter, export_aggregate,
    settings,
};

#[derive(serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    Trap,
    Spin,
    Error,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Sum {
    column: String,
    equals: f64,
    mode: Mode,
}

impl Aggregate for Sum {
    type State = f64;

    fn configure(config: &str, input: &[Field]) -> Result<(Self, Needs, Vec<Field>)> {
        let sum: Sum = settings(config)?;
        Field::expect_number(input, &sum.column)?;
        let needs = Needs::of([&sum.column]);
        Ok((sum, needs, vec![Field::new("sum", Kind::Float)]))
    }

    fn empty(&self) -> f64 {
        0.0
    }

    fn update(&self, states: &mut [f64], group: &[u32], rows: &Batch) -> Result<()> {
        let column = rows.column(&self.column)?;
        for (row, (v, g)) in column.numbers()?.iter().zip(group).enumerate() {
            if !column.is_valid(row) {
                continue;
            }
            if *v == self.equals {
                match self.mode {
                    Mode::Trap => panic!("a value of {v} in row {row}"),
                    Mode::Spin => loop {
                        std::hint::black_box(v);
                    },
                    Mode::Error => return Err(format!("a value of {v} in row {row}")),
                }
            }
            states[*g as usize] += v;
        }
        Ok(())
    }

    fn merge(&self, target: &mut f64, source: &f64) {
        *target += source;
    }

    fn finish(&self, states: &[&f64]) -> Result<Vec<Column>> {
        Ok(vec![Column::floats("sum", states.iter().map(|s| Some(**s)))])
    }

    fn save(&self, state: &f64) -> Vec<u8> {
        let mut w = StateWriter::new(1);
        w.f64(*state);
        w.finish()
    }

    fn load(&self, bytes: &[u8]) -> Result<f64> {
        let (version, mut r) = StateReader::new(bytes)?;
        if version != 1 {
            return Err(format!("the state has layout {version}, this module reads 1"));
        }
        let sum = r.f64()?;
        r.finish()?;
        Ok(sum)
    }
}

export_aggregate!(Sum);
