//! What the columns of a stream are.

use crate::{Digest, RecordError, ids::check_column_name, limits::COLUMNS_MAX};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, sync::Arc};

/// Name of the event-time column, first in every batch.
pub const TIME: &str = "time";
/// Name of the device column, second in every batch.
pub const DEVICE: &str = "device";
/// Names that a stream may not declare: they belong to the batch or to the table.
pub const RESERVED: [&str; 6] = [TIME, DEVICE, "gateway", "seq", "_partition", "_offset"];

/// The type of a declared column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ColumnType {
    /// `bool`
    Bool,
    /// `int64`
    Int64,
    /// `float64`
    Float64,
    /// `string`, UTF-8
    String,
    /// `bytes`
    Bytes,
}

impl ColumnType {
    /// All of them, for messages and tests.
    pub const ALL: [ColumnType; 5] = [Self::Bool, Self::Int64, Self::Float64, Self::String, Self::Bytes];

    /// The name used in configuration files, messages and the link.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Int64 => "int64",
            Self::Float64 => "float64",
            Self::String => "string",
            Self::Bytes => "bytes",
        }
    }

    /// The Arrow type of such a column.
    pub const fn arrow(self) -> DataType {
        match self {
            Self::Bool => DataType::Boolean,
            Self::Int64 => DataType::Int64,
            Self::Float64 => DataType::Float64,
            Self::String => DataType::Utf8,
            Self::Bytes => DataType::Binary,
        }
    }

    /// The column type that an Arrow type stands for.
    pub fn from_arrow(ty: &DataType) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.arrow() == *ty)
    }
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ColumnType {
    type Err = RecordError;
    fn from_str(s: &str) -> Result<Self, RecordError> {
        Self::ALL.into_iter().find(|t| t.name() == s).ok_or_else(|| {
            RecordError::Schema(format!("unknown type {s:?}: use bool, int64, float64, string or bytes"))
        })
    }
}

/// A declared column; always nullable.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Column {
    /// Its name, under the rules of [`check_column_name`].
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub ty: ColumnType,
}

/// The declared columns of a stream, in order; `time` and `device` come before them in every batch.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StreamSchema {
    columns: Vec<Column>,
}

impl StreamSchema {
    /// Checks names, reserved names, repeats and the number of columns.
    pub fn new(columns: Vec<Column>) -> Result<Self, RecordError> {
        if columns.len() > COLUMNS_MAX {
            return Err(RecordError::Schema(format!(
                "{} columns, the limit is {COLUMNS_MAX}",
                columns.len()
            )));
        }
        for (i, c) in columns.iter().enumerate() {
            check_column_name(&c.name)?;
            if RESERVED.contains(&c.name.as_str()) {
                return Err(RecordError::Schema(format!("column name {:?} is reserved", c.name)));
            }
            if columns[..i].iter().any(|o| o.name == c.name) {
                return Err(RecordError::Schema(format!("column {:?} is declared twice", c.name)));
            }
        }
        Ok(Self { columns })
    }

    /// The declared columns.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// The Arrow schema of a batch of this stream: `time`, `device`, then the declared columns.
    pub fn arrow(&self) -> SchemaRef {
        let mut fields = vec![Field::new(TIME, time_type(), false), Field::new(DEVICE, device_type(), false)];
        fields.extend(self.columns.iter().map(|c| Field::new(&c.name, c.ty.arrow(), true)));
        Arc::new(Schema::new(fields))
    }

    /// The declared columns behind an Arrow schema made by [`StreamSchema::arrow`].
    pub fn from_arrow(schema: &Schema) -> Result<Self, RecordError> {
        let fields = schema.fields();
        let bad = |why: String| Err(RecordError::Schema(why));
        if fields.len() < 2 || fields[0].name() != TIME || fields[1].name() != DEVICE {
            return bad("a batch begins with the columns time and device".into());
        }
        if *fields[0].data_type() != time_type() || *fields[1].data_type() != device_type() {
            return bad(format!("time is {} and device is {}", fields[0].data_type(), fields[1].data_type()));
        }
        let mut columns = Vec::with_capacity(fields.len() - 2);
        for f in &fields[2..] {
            match ColumnType::from_arrow(f.data_type()) {
                Some(ty) => columns.push(Column { name: f.name().clone(), ty }),
                None => {
                    return bad(format!("column {:?} has the unsupported type {}", f.name(), f.data_type()));
                }
            }
        }
        Self::new(columns)
    }

    /// The first eight bytes of the SHA-256 of `name:type,` of every column, in order.
    pub fn fingerprint(&self) -> u64 {
        let text: String = self.columns.iter().map(|c| format!("{}:{},", c.name, c.ty)).collect();
        let mut first = [0; 8];
        first.copy_from_slice(&Digest::of(text.as_bytes()).0[..8]);
        u64::from_be_bytes(first)
    }
}

/// Arrow type of the time column: nanoseconds since the epoch, UTC.
pub fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()))
}

/// Arrow type of the device column: dictionary-coded text.
pub fn device_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn col(name: &str, ty: ColumnType) -> Column {
        Column { name: name.into(), ty }
    }

    #[test]
    fn arrow_round_trip() {
        let s =
            StreamSchema::new(ColumnType::ALL.iter().map(|t| col(t.name(), *t)).collect()).expect("valid");
        assert_eq!(StreamSchema::from_arrow(&s.arrow()), Ok(s));
    }

    #[test]
    fn bad_schemas_are_refused() {
        for bad in [
            vec![col("time", ColumnType::Bool)],
            vec![col("a", ColumnType::Bool), col("a", ColumnType::Int64)],
        ] {
            assert!(StreamSchema::new(bad).is_err());
        }
        assert!("float32".parse::<ColumnType>().is_err());
    }

    #[test]
    fn fingerprint_depends_on_order_and_type() {
        let a =
            StreamSchema::new(vec![col("a", ColumnType::Bool), col("b", ColumnType::Int64)]).expect("valid");
        let b =
            StreamSchema::new(vec![col("b", ColumnType::Int64), col("a", ColumnType::Bool)]).expect("valid");
        assert_ne!(a.fingerprint(), b.fingerprint());
    }
}
