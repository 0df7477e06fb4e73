//! Cells of a batch as bytes: for keys of windows, dedup keys and content hashes. The bytes are part of the durable
//! state, so they are explicit: a tag, then eight bytes or a length and text.

use record::{
    Batch, ColumnType, Value,
    arrow::array::{
        Array, BinaryArray, BooleanArray, Float64Array, Int64Array, StringArray, cast::AsArray, types,
    },
    schema::{DEVICE, TIME},
};

const NULL: u8 = 0;
const BOOL: u8 = 1;
const INT: u8 = 2;
const FLOAT: u8 = 3;
const TEXT: u8 = 4;
const BYTES: u8 = 5;

/// Which columns of a stream's batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pick {
    Time,
    Device,
    Column(usize, ColumnType),
}

impl Pick {
    /// A column by name.
    pub(super) fn named(schema: &record::StreamSchema, name: &str) -> Option<Self> {
        match name {
            TIME => Some(Self::Time),
            DEVICE => Some(Self::Device),
            _ => {
                let i = schema.columns().iter().position(|c| c.name == name)?;
                Some(Self::Column(i, schema.columns()[i].ty))
            }
        }
    }

    /// Time, device and every declared column.
    pub(super) fn all(schema: &record::StreamSchema) -> Vec<Self> {
        let columns = schema.columns().iter().enumerate().map(|(i, c)| Self::Column(i, c.ty));
        [Self::Time, Self::Device].into_iter().chain(columns).collect()
    }
}

/// The picked columns of one batch, ready to be read row by row.
pub(super) struct Cells<'b> {
    batch: &'b Batch,
    columns: Vec<Picked<'b>>,
}

enum Picked<'b> {
    Time(&'b [i64]),
    Device,
    Bool(&'b BooleanArray),
    Int(&'b Int64Array),
    Float(&'b Float64Array),
    Text(&'b StringArray),
    Bytes(&'b BinaryArray),
}

impl<'b> Cells<'b> {
    pub(super) fn new(batch: &'b Batch, picks: &[Pick]) -> Self {
        let columns = picks.iter().map(|pick| match *pick {
            Pick::Time => Picked::Time(batch.times()),
            Pick::Device => Picked::Device,
            Pick::Column(i, ty) => {
                let array = batch.column_at(i);
                match ty {
                    ColumnType::Bool => Picked::Bool(array.as_boolean()),
                    ColumnType::Int64 => Picked::Int(array.as_primitive::<types::Int64Type>()),
                    ColumnType::Float64 => Picked::Float(array.as_primitive::<types::Float64Type>()),
                    ColumnType::String => Picked::Text(array.as_string()),
                    ColumnType::Bytes => Picked::Bytes(array.as_binary()),
                }
            }
        });
        Self { batch, columns: columns.collect() }
    }

    /// Appends a row's cells.
    pub(super) fn append(&self, row: usize, out: &mut Vec<u8>) {
        for column in &self.columns {
            match column {
                Picked::Time(times) => fixed(out, INT, times[row].to_le_bytes()),
                Picked::Device => sized(out, TEXT, self.batch.device(row).as_bytes()),
                Picked::Bool(a) if a.is_valid(row) => out.extend_from_slice(&[BOOL, u8::from(a.value(row))]),
                Picked::Int(a) if a.is_valid(row) => fixed(out, INT, a.value(row).to_le_bytes()),
                Picked::Float(a) if a.is_valid(row) => fixed(out, FLOAT, a.value(row).to_le_bytes()),
                Picked::Text(a) if a.is_valid(row) => sized(out, TEXT, a.value(row).as_bytes()),
                Picked::Bytes(a) if a.is_valid(row) => sized(out, BYTES, a.value(row)),
                _ => out.push(NULL),
            }
        }
    }
}

fn fixed(out: &mut Vec<u8>, tag: u8, bytes: [u8; 8]) {
    out.push(tag);
    out.extend_from_slice(&bytes);
}

fn sized(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// The device alone as key bytes: what [`Cells::append`] gives for it.
pub(super) fn device_key(device: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(5 + device.len());
    sized(&mut out, TEXT, device.as_bytes());
    out
}

/// The cells behind bytes that [`Cells::append`] wrote; `None` when they are not that.
pub(super) fn read(mut bytes: &[u8]) -> Option<Vec<Value<'_>>> {
    let mut out = Vec::new();
    while let Some((tag, rest)) = bytes.split_first() {
        let (value, rest) = match *tag {
            NULL => (Value::Null, rest),
            BOOL => {
                let (v, rest) = rest.split_first()?;
                (Value::Bool(*v != 0), rest)
            }
            INT => {
                let (v, rest) = rest.split_first_chunk::<8>()?;
                (Value::Int(i64::from_le_bytes(*v)), rest)
            }
            FLOAT => {
                let (v, rest) = rest.split_first_chunk::<8>()?;
                (Value::Float(f64::from_le_bytes(*v)), rest)
            }
            TEXT | BYTES => {
                let (len, rest) = rest.split_first_chunk::<4>()?;
                let (v, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
                let value =
                    if *tag == TEXT { Value::Str(std::str::from_utf8(v).ok()?) } else { Value::Bytes(v) };
                (value, rest)
            }
            _ => return None,
        };
        out.push(value);
        bytes = rest;
    }
    Some(out)
}
