//! Events as columns.

use crate::{
    ColumnType, EventTime, RecordError, StreamSchema,
    schema::{DEVICE, TIME},
};
use arrow_array::{
    Array, ArrayRef, BooleanArray, DictionaryArray, RecordBatch, StringArray, TimestampNanosecondArray,
    builder::{
        BinaryBuilder, BooleanBuilder, Float64Builder, Int64Builder, StringBuilder, StringDictionaryBuilder,
        TimestampNanosecondBuilder,
    },
    types::Int32Type,
};
use arrow_buffer::{BooleanBuffer, Buffer};
use std::sync::Arc;

/// Rows of one stream: `time`, `device`, then the declared columns. Cheap to clone.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    schema: Arc<StreamSchema>,
    inner: RecordBatch,
}

impl Batch {
    /// Wraps an Arrow batch after checking that its shape is a stream's.
    pub fn from_arrow(inner: RecordBatch) -> Result<Self, RecordError> {
        let schema = StreamSchema::from_arrow(&inner.schema())?;
        if inner.column(0).null_count() > 0 || inner.column(1).null_count() > 0 {
            return Err(RecordError::Shape("time and device may not be null".into()));
        }
        Ok(Self { schema: Arc::new(schema), inner })
    }

    /// Puts columns together: `columns` are those of `schema`, in its order.
    pub fn from_columns(
        schema: Arc<StreamSchema>,
        times: TimestampNanosecondArray,
        devices: DictionaryArray<Int32Type>,
        columns: Vec<ArrayRef>,
    ) -> Result<Self, RecordError> {
        let mut all: Vec<ArrayRef> = vec![Arc::new(times.with_timezone("UTC")), Arc::new(devices)];
        all.extend(columns);
        let inner =
            RecordBatch::try_new(schema.arrow(), all).map_err(|e| RecordError::Shape(e.to_string()))?;
        Ok(Self { schema, inner })
    }

    /// A batch without rows.
    pub fn empty(schema: Arc<StreamSchema>) -> Self {
        let inner = RecordBatch::new_empty(schema.arrow());
        Self { schema, inner }
    }

    /// The declared columns.
    pub fn schema(&self) -> &Arc<StreamSchema> {
        &self.schema
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.inner.num_rows()
    }

    /// The Arrow batch inside.
    pub fn arrow(&self) -> &RecordBatch {
        &self.inner
    }

    /// Event times, nanoseconds since the epoch, one a row.
    pub fn times(&self) -> &[i64] {
        let a = self.inner.column(0).as_any().downcast_ref::<TimestampNanosecondArray>();
        a.expect("the constructors check that column 0 is a nanosecond timestamp").values()
    }

    /// Devices, dictionary-coded, one a row.
    pub fn devices(&self) -> &DictionaryArray<Int32Type> {
        let a = self.inner.column(1).as_any().downcast_ref::<DictionaryArray<Int32Type>>();
        a.expect("the constructors check that column 1 is a dictionary")
    }

    /// The distinct device names that [`Batch::devices`] points into (may hold names no row uses).
    pub fn device_names(&self) -> &StringArray {
        let a = self.devices().values().as_any().downcast_ref::<StringArray>();
        a.expect("the constructors check that the dictionary holds text")
    }

    /// The device of a row.
    pub fn device(&self, row: usize) -> &str {
        let key = self.devices().keys().value(row);
        self.device_names().value(usize::try_from(key).unwrap_or_default())
    }

    /// A declared column, or `time` or `device`, by name.
    pub fn column(&self, name: &str) -> Option<&ArrayRef> {
        match name {
            TIME => Some(self.inner.column(0)),
            DEVICE => Some(self.inner.column(1)),
            _ => {
                let i = self.schema.columns().iter().position(|c| c.name == name)?;
                Some(self.inner.column(i + 2))
            }
        }
    }

    /// The declared column at an index.
    pub fn column_at(&self, index: usize) -> &ArrayRef {
        self.inner.column(index + 2)
    }

    /// Rows `offset .. offset + len`, without copying.
    pub fn slice(&self, offset: usize, len: usize) -> Self {
        Self { schema: self.schema.clone(), inner: self.inner.slice(offset, len) }
    }

    /// The rows whose bit is set; bit i of the bitmap (least significant first) is row i, missing words are zero.
    pub fn filter(&self, bitmap: &[u64]) -> Result<Self, RecordError> {
        let mut words = bitmap.to_vec();
        words.resize(self.rows().div_ceil(64), 0);
        let bits = BooleanBuffer::new(Buffer::from_vec(words), 0, self.rows());
        let mask = BooleanArray::new(bits, None);
        let inner = arrow_select::filter::filter_record_batch(&self.inner, &mask)
            .map_err(|e| RecordError::Shape(e.to_string()))?;
        Ok(Self { schema: self.schema.clone(), inner })
    }

    /// The named rows, in the given order.
    pub fn take(&self, rows: &[u32]) -> Result<Self, RecordError> {
        let indices = arrow_array::UInt32Array::from(rows.to_vec());
        let inner = arrow_select::take::take_record_batch(&self.inner, &indices)
            .map_err(|e| RecordError::Shape(e.to_string()))?;
        Ok(Self { schema: self.schema.clone(), inner })
    }

    /// One batch after the other; all of the same schema.
    pub fn concat(batches: &[Batch]) -> Result<Self, RecordError> {
        let first = batches.first().ok_or_else(|| RecordError::Shape("nothing to put together".into()))?;
        if let Some(other) = batches.iter().find(|b| b.schema != first.schema) {
            return Err(RecordError::Shape(format!(
                "batches of two schemas: {:?} and {:?}",
                first.schema.columns(),
                other.schema.columns()
            )));
        }
        let inner =
            arrow_select::concat::concat_batches(&first.inner.schema(), batches.iter().map(|b| &b.inner))
                .map_err(|e| RecordError::Shape(e.to_string()))?;
        Ok(Self { schema: first.schema.clone(), inner })
    }
}

/// One cell given to a [`BatchBuilder`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// Absent, or of no usable type.
    Null,
    /// For a `bool` column.
    Bool(bool),
    /// For an `int64` column.
    Int(i64),
    /// For a `float64` column.
    Float(f64),
    /// For a `string` column.
    Str(&'a str),
    /// For a `bytes` column.
    Bytes(&'a [u8]),
}

#[derive(Debug)]
enum Cells {
    Bool(BooleanBuilder),
    Int(Int64Builder),
    Float(Float64Builder),
    Str(StringBuilder),
    Bytes(BinaryBuilder),
}

impl Cells {
    fn new(ty: ColumnType) -> Self {
        match ty {
            ColumnType::Bool => Self::Bool(BooleanBuilder::new()),
            ColumnType::Int64 => Self::Int(Int64Builder::new()),
            ColumnType::Float64 => Self::Float(Float64Builder::new()),
            ColumnType::String => Self::Str(StringBuilder::new()),
            ColumnType::Bytes => Self::Bytes(BinaryBuilder::new()),
        }
    }

    fn accepts(&self, v: &Value<'_>) -> bool {
        matches!(
            (self, v),
            (_, Value::Null)
                | (Self::Bool(_), Value::Bool(_))
                | (Self::Int(_), Value::Int(_))
                | (Self::Float(_), Value::Float(_))
                | (Self::Str(_), Value::Str(_))
                | (Self::Bytes(_), Value::Bytes(_))
        )
    }

    fn push(&mut self, v: Value<'_>) {
        match (self, v) {
            (Self::Bool(b), Value::Bool(v)) => b.append_value(v),
            (Self::Int(b), Value::Int(v)) => b.append_value(v),
            (Self::Float(b), Value::Float(v)) => b.append_value(v),
            (Self::Str(b), Value::Str(v)) => b.append_value(v),
            (Self::Bytes(b), Value::Bytes(v)) => b.append_value(v),
            (Self::Bool(b), _) => b.append_null(),
            (Self::Int(b), _) => b.append_null(),
            (Self::Float(b), _) => b.append_null(),
            (Self::Str(b), _) => b.append_null(),
            (Self::Bytes(b), _) => b.append_null(),
        }
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Bool(b) => Arc::new(b.finish()),
            Self::Int(b) => Arc::new(b.finish()),
            Self::Float(b) => Arc::new(b.finish()),
            Self::Str(b) => Arc::new(b.finish()),
            Self::Bytes(b) => Arc::new(b.finish()),
        }
    }
}

/// Builds a [`Batch`] row by row.
pub struct BatchBuilder {
    schema: Arc<StreamSchema>,
    times: TimestampNanosecondBuilder,
    devices: StringDictionaryBuilder<Int32Type>,
    cells: Vec<Cells>,
    rows: usize,
}

impl std::fmt::Debug for BatchBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BatchBuilder")
            .field("schema", &self.schema)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

impl BatchBuilder {
    /// A builder for rows of this schema.
    pub fn new(schema: Arc<StreamSchema>) -> Self {
        let cells = schema.columns().iter().map(|c| Cells::new(c.ty)).collect();
        Self {
            schema,
            times: TimestampNanosecondBuilder::new(),
            devices: StringDictionaryBuilder::new(),
            cells,
            rows: 0,
        }
    }

    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Adds a row; `values` are the declared columns in order. Refused, adding nothing, when their number or types differ.
    pub fn push(&mut self, time: EventTime, device: &str, values: &[Value<'_>]) -> Result<(), RecordError> {
        if values.len() != self.cells.len() {
            return Err(RecordError::Shape(format!(
                "{} values for {} columns",
                values.len(),
                self.cells.len()
            )));
        }
        if let Some(i) = (0..values.len()).find(|i| !self.cells[*i].accepts(&values[*i])) {
            let c = &self.schema.columns()[i];
            return Err(RecordError::Shape(format!(
                "column {:?} is {}, the value is {:?}",
                c.name, c.ty, values[i]
            )));
        }
        self.devices.append(device).map_err(|e| RecordError::Shape(e.to_string()))?;
        self.times.append_value(time.ns());
        for (cell, value) in self.cells.iter_mut().zip(values) {
            cell.push(*value);
        }
        self.rows += 1;
        Ok(())
    }

    /// The batch so far; the builder begins anew.
    pub fn finish(&mut self) -> Result<Batch, RecordError> {
        self.rows = 0;
        let columns = self.cells.iter_mut().map(Cells::finish).collect();
        Batch::from_columns(self.schema.clone(), self.times.finish(), self.devices.finish(), columns)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Column;

    pub(crate) fn sample(rows: usize) -> Batch {
        let types = [
            ("b", ColumnType::Bool),
            ("i", ColumnType::Int64),
            ("f", ColumnType::Float64),
            ("s", ColumnType::String),
        ];
        let cols = types.iter().map(|(n, t)| Column { name: (*n).into(), ty: *t }).collect();
        let schema = Arc::new(StreamSchema::new(cols).expect("valid"));
        let mut b = BatchBuilder::new(schema);
        for i in 0..rows {
            let n = i as i64;
            let f = if i % 3 == 0 { Value::Null } else { Value::Float(n as f64 / 2.0) };
            let t = EventTime::from_ns(i128::from(n) * 1_000).expect("in range");
            b.push(
                t,
                &format!("dev-{}", i % 5),
                &[Value::Bool(i % 2 == 0), Value::Int(n), f, Value::Str("x")],
            )
            .expect("fits");
        }
        b.finish().expect("fits")
    }

    #[test]
    fn rows_come_back_as_columns() {
        let b = sample(10);
        assert_eq!(b.rows(), 10);
        assert_eq!(b.times()[3], 3_000);
        assert_eq!(b.device(7), "dev-2");
        assert_eq!(b.column("f").expect("declared").null_count(), 4);
        assert!(b.column("nope").is_none());
    }

    #[test]
    fn filter_take_and_concat() {
        let b = sample(100);
        let odd = b.filter(&[0xaaaa_aaaa_aaaa_aaaa, 0xaaaa_aaaa_aaaa_aaaa]).expect("fits");
        assert_eq!(odd.rows(), 50);
        assert_eq!(odd.times()[0], 1_000);
        assert_eq!(b.filter(&[]).expect("fits").rows(), 0);
        assert_eq!(b.take(&[9, 1]).expect("fits").times(), &[9_000, 1_000]);
        let two = Batch::concat(&[odd, b.slice(0, 2)]).expect("same schema");
        assert_eq!((two.rows(), two.device(51)), (52, "dev-1"));
    }

    #[test]
    fn a_value_of_another_type_adds_nothing() {
        let b = sample(1);
        let mut builder = BatchBuilder::new(b.schema().clone());
        let t = EventTime::from_ns(0).expect("in range");
        assert!(builder.push(t, "d", &[Value::Int(1), Value::Null, Value::Null, Value::Null]).is_err());
        assert!(builder.push(t, "d", &[]).is_err());
        assert_eq!(builder.rows(), 0);
    }
}
