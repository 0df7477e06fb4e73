//! Count, smallest, largest, mean and last value of number columns, per group.
//!
//! `with = { columns = ["temperature"] }` gives `count` (all rows of the group), `temperature_count` (rows with a
//! value), `temperature_min`, `temperature_max`, `temperature_mean` and `temperature_last`. The last value is that of
//! the latest event time; of two with the same time, the one that came later. A value that is not a number (NaN)
//! counts as absent. Without any value, the four are absent.

use tidegate_udf::{
    Aggregate, Batch, Column, Field, Kind, Needs, Result, StateReader, StateWriter, export_aggregate,
    settings,
};

/// Layout of a saved state: version, rows, number of columns, then for each column the six numbers of [`Seen`].
const STATE_VERSION: u8 = 1;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Stats {
    columns: Vec<String>,
}

/// What one column of one group has seen.
#[derive(Clone)]
struct Seen {
    count: u64,
    sum: f64,
    min: f64,
    max: f64,
    last: f64,
    last_time: i64,
}

impl Seen {
    const NOTHING: Seen = Seen {
        count: 0,
        sum: 0.0,
        min: f64::INFINITY,
        max: f64::NEG_INFINITY,
        last: 0.0,
        last_time: i64::MIN,
    };

    fn add(&mut self, v: f64, time: i64) {
        if v.is_nan() {
            return;
        }
        self.count += 1;
        self.sum += v;
        if v < self.min {
            self.min = v;
        }
        if v > self.max {
            self.max = v;
        }
        if time >= self.last_time {
            (self.last, self.last_time) = (v, time);
        }
    }

    fn merge(&mut self, other: &Seen) {
        if other.count == 0 {
            return;
        }
        self.count += other.count;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        if other.last_time >= self.last_time {
            (self.last, self.last_time) = (other.last, other.last_time);
        }
    }

    fn value(&self, of: impl Fn(&Seen) -> f64) -> Option<f64> {
        (self.count > 0).then(|| of(self))
    }
}

struct Group {
    rows: u64,
    columns: Box<[Seen]>,
}

impl Aggregate for Stats {
    type State = Group;

    fn configure(config: &str, input: &[Field]) -> Result<(Self, Needs, Vec<Field>)> {
        let stats: Stats = settings(config)?;
        let mut outputs = vec![Field::new("count", Kind::Integer)];
        for (i, name) in stats.columns.iter().enumerate() {
            if stats.columns[..i].contains(name) {
                return Err(format!("configuration: column {name:?} stands twice"));
            }
            Field::expect_number(input, name)?;
            outputs.push(Field::new(&format!("{name}_count"), Kind::Integer));
            for what in ["min", "max", "mean", "last"] {
                outputs.push(Field::new(&format!("{name}_{what}"), Kind::Float));
            }
        }
        let needs = Needs::of(&stats.columns).with_times();
        Ok((stats, needs, outputs))
    }

    fn empty(&self) -> Group {
        Group { rows: 0, columns: vec![Seen::NOTHING; self.columns.len()].into() }
    }

    fn update(&self, states: &mut [Group], group: &[u32], rows: &Batch) -> Result<()> {
        for g in group {
            states[*g as usize].rows += 1;
        }
        for (i, name) in self.columns.iter().enumerate() {
            let column = rows.column(name)?;
            let numbers = column.numbers()?;
            for (row, ((v, time), g)) in numbers.iter().zip(&rows.times).zip(group).enumerate() {
                if column.is_valid(row) {
                    states[*g as usize].columns[i].add(*v, *time);
                }
            }
        }
        Ok(())
    }

    fn merge(&self, target: &mut Group, source: &Group) {
        target.rows += source.rows;
        for (target, source) in target.columns.iter_mut().zip(&source.columns) {
            target.merge(source);
        }
    }

    fn finish(&self, states: &[&Group]) -> Result<Vec<Column>> {
        let integer = |v: u64| i64::try_from(v).unwrap_or(i64::MAX);
        let mut columns = vec![Column::integers("count", states.iter().map(|s| integer(s.rows)))];
        for (i, name) in self.columns.iter().enumerate() {
            let seen = || states.iter().map(|s| &s.columns[i]);
            columns.push(Column::integers(&format!("{name}_count"), seen().map(|s| integer(s.count))));
            let mut float = |what: &str, of: &dyn Fn(&Seen) -> f64| {
                columns.push(Column::floats(&format!("{name}_{what}"), seen().map(|s| s.value(of))));
            };
            float("min", &|s| s.min);
            float("max", &|s| s.max);
            float("mean", &|s| s.sum / s.count as f64);
            float("last", &|s| s.last);
        }
        Ok(columns)
    }

    fn save(&self, state: &Group) -> Vec<u8> {
        let mut w = StateWriter::new(STATE_VERSION);
        w.u64(state.rows);
        w.u64(state.columns.len() as u64);
        for seen in &state.columns {
            w.u64(seen.count);
            w.f64(seen.sum);
            w.f64(seen.min);
            w.f64(seen.max);
            w.f64(seen.last);
            w.i64(seen.last_time);
        }
        w.finish()
    }

    fn load(&self, bytes: &[u8]) -> Result<Group> {
        let (version, mut r) = StateReader::new(bytes)?;
        if version != STATE_VERSION {
            return Err(format!("the state has layout {version}, this module reads {STATE_VERSION}"));
        }
        let rows = r.u64()?;
        let columns = r.u64()?;
        if columns != self.columns.len() as u64 {
            return Err(format!("the state has {columns} columns, this module {}", self.columns.len()));
        }
        let mut seen = Vec::with_capacity(self.columns.len());
        for _ in &self.columns {
            seen.push(Seen {
                count: r.u64()?,
                sum: r.f64()?,
                min: r.f64()?,
                max: r.f64()?,
                last: r.f64()?,
                last_time: r.i64()?,
            });
        }
        r.finish()?;
        Ok(Group { rows, columns: seen.into() })
    }
}

export_aggregate!(Stats);
