//! Converts the unit of one column: `value * factor + offset`, under a new name.
//!
//! `with = { column = "fahrenheit", name = "celsius", factor = 0.5555555555555556, offset = -17.77777777777778 }`. The
//! other columns do not come along; times and devices do. Events without a value in the column do not come along
//! either when `drop-missing = true`.

use tidegate_udf::{
    Batch, Column, Data, Field, Kind, Needs, Result, Strings, Transform, export_transform, settings,
};

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Scale {
    column: String,
    name: String,
    factor: f64,
    #[serde(default)]
    offset: f64,
    #[serde(default)]
    drop_missing: bool,
}

impl Transform for Scale {
    fn configure(config: &str, input: &[Field]) -> Result<(Self, Needs, Vec<Field>)> {
        let scale: Scale = settings(config)?;
        Field::expect_number(input, &scale.column)?;
        let needs =
            Needs { times: scale.drop_missing, devices: scale.drop_missing, ..Needs::of([&scale.column]) };
        let outputs = vec![Field::new(&scale.name, Kind::Float)];
        Ok((scale, needs, outputs))
    }

    fn apply(&mut self, rows: &Batch) -> Result<Vec<Batch>> {
        let column = rows.column(&self.column)?;
        let numbers = column.numbers()?;
        let scaled = |v: &f64| v * self.factor + self.offset;
        if !self.drop_missing {
            let data = Data::Floats(numbers.iter().map(scaled).collect());
            let column = Column { name: self.name.clone(), data, valid: column.valid.clone() };
            // Times and devices that are left empty are those of the input.
            let devices = Strings { values: Vec::new(), indices: Vec::new() };
            return Ok(vec![Batch { rows: rows.rows, times: Vec::new(), devices, columns: vec![column] }]);
        }
        let stay: Vec<usize> = (0..rows.len()).filter(|row| column.is_valid(*row)).collect();
        let pick = |row: &usize| rows.devices.indices[*row];
        Ok(vec![Batch {
            rows: stay.len() as u32,
            times: stay.iter().map(|row| rows.times[*row]).collect(),
            devices: Strings {
                values: rows.devices.values.clone(),
                indices: stay.iter().map(pick).collect(),
            },
            columns: vec![Column::new(
                &self.name,
                Data::Floats(stay.iter().map(|row| scaled(&numbers[*row])).collect()),
            )],
        }])
    }
}

export_transform!(Scale);
