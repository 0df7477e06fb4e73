//! Reading the columns of a batch, making the columns of an answer.

use crate::{Batch, Column, Data, Field, Kind, Needs, Result, Strings};
use std::borrow::Cow;

/// One bit a row, least significant bit of the first word first.
pub type Bits = Vec<u64>;

/// The bits of `0..rows` for which `test` holds.
pub fn select(rows: usize, mut test: impl FnMut(usize) -> bool) -> Bits {
    let mut bits = vec![0; rows.div_ceil(64)];
    for row in 0..rows {
        bits[row / 64] |= u64::from(test(row)) << (row % 64);
    }
    bits
}

impl Needs {
    /// Some columns by name, neither times nor devices.
    pub fn of<S: AsRef<str>>(columns: impl IntoIterator<Item = S>) -> Self {
        let columns = columns.into_iter().map(|c| c.as_ref().to_string()).collect();
        Self { times: false, devices: false, columns }
    }

    /// The event times too.
    pub fn with_times(self) -> Self {
        Self { times: true, ..self }
    }

    /// The devices too.
    pub fn with_devices(self) -> Self {
        Self { devices: true, ..self }
    }
}

impl Batch {
    /// A column by name.
    pub fn column(&self, name: &str) -> Result<&Column> {
        self.columns.iter().find(|c| c.name == name).ok_or_else(|| format!("there is no column {name:?}"))
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows as usize
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }
}

impl Strings {
    /// The text of a row.
    pub fn get(&self, row: usize) -> &str {
        &self.values[self.indices[row] as usize]
    }
}

impl Column {
    /// A column of an answer in which every row has a value.
    pub fn new(name: &str, data: Data) -> Self {
        Self { name: name.to_string(), data, valid: None }
    }

    /// A column of an answer made from values that may be absent.
    pub fn floats(name: &str, values: impl IntoIterator<Item = Option<f64>>) -> Self {
        let values: Vec<Option<f64>> = values.into_iter().collect();
        let valid = select(values.len(), |row| values[row].is_some());
        let data = Data::Floats(values.iter().map(|v| v.unwrap_or(0.0)).collect());
        Self { name: name.to_string(), data, valid: Some(valid) }
    }

    /// A column of an answer made from integers that are all there.
    pub fn integers(name: &str, values: impl IntoIterator<Item = i64>) -> Self {
        Self::new(name, Data::Integers(values.into_iter().collect()))
    }

    /// Whether a row has a value.
    pub fn is_valid(&self, row: usize) -> bool {
        self.valid.as_ref().is_none_or(|bits| bits[row / 64] >> (row % 64) & 1 == 1)
    }

    /// The values as floating point numbers, whether the column holds those or integers.
    pub fn numbers(&self) -> Result<Cow<'_, [f64]>> {
        match &self.data {
            Data::Floats(v) => Ok(Cow::Borrowed(v)),
            Data::Integers(v) => Ok(Cow::Owned(v.iter().map(|v| *v as f64).collect())),
            _ => Err(format!("column {:?} does not hold numbers", self.name)),
        }
    }

    /// The texts, dictionary-coded.
    pub fn texts(&self) -> Result<&Strings> {
        match &self.data {
            Data::Texts(v) => Ok(v),
            _ => Err(format!("column {:?} does not hold text", self.name)),
        }
    }

    /// The rows whose number passes the test; rows without a value do not.
    pub fn select(&self, test: impl Fn(f64) -> bool) -> Result<Bits> {
        let numbers = self.numbers()?;
        let mut bits: Bits = Vec::with_capacity(numbers.len().div_ceil(64));
        for chunk in numbers.chunks(64) {
            let mut word = 0;
            for (i, v) in chunk.iter().enumerate() {
                word |= u64::from(test(*v)) << i;
            }
            bits.push(word);
        }
        if let Some(valid) = &self.valid {
            for (word, valid) in bits.iter_mut().zip(valid) {
                *word &= valid;
            }
        }
        Ok(bits)
    }
}

impl Field {
    /// A promised column.
    pub fn new(name: &str, kind: Kind) -> Self {
        Self { name: name.to_string(), kind }
    }

    /// Whether the column holds numbers.
    pub fn is_number(&self) -> bool {
        matches!(self.kind, Kind::Integer | Kind::Float)
    }

    /// Refuses, saying so, a column that is not in the input or does not hold numbers.
    pub fn expect_number(input: &[Field], name: &str) -> Result<()> {
        match input.iter().find(|f| f.name == name) {
            None => Err(format!("the stream has no column {name:?}")),
            Some(f) if !f.is_number() => Err(format!("column {name:?} does not hold numbers")),
            Some(_) => Ok(()),
        }
    }
}
