//! Columns across the border: Arrow arrays going in (numbers are borrowed, never copied on this side), arrays made from
//! an answer coming out, after every promise of it was checked.

use crate::{
    CallError,
    wire::{BatchIn, BatchOut, ColumnIn, ColumnOut, DataIn, DataOut, Field, Kind, StringsIn, StringsOut},
};
use record::{
    Batch, Column, ColumnType, EventTime, StreamSchema,
    arrow::{
        array::{
            Array, ArrayRef, BinaryArray, BooleanArray, DictionaryArray, Float64Array, Int32Array,
            Int64Array, StringArray, TimestampNanosecondArray, types::Int32Type,
        },
        buffer::{BooleanBuffer, Buffer, NullBuffer, ScalarBuffer},
    },
    limits::{BATCH_ROWS_MAX, DEVICE_BYTES_MAX},
};
use std::{collections::HashMap, sync::Arc};

/// What a module wants to see of each batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    /// The event times.
    pub times: bool,
    /// The devices.
    pub devices: bool,
    /// Declared columns, by name.
    pub columns: Vec<String>,
}

/// One bit a row, least significant bit of the first word first; bits beyond the rows are zero.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bitmap(pub Vec<u64>);

impl Bitmap {
    /// Number of rows that are kept.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// Whether a row is kept.
    pub fn get(&self, row: usize) -> bool {
        self.0.get(row / 64).is_some_and(|w| w >> (row % 64) & 1 == 1)
    }

    /// From a module's answer for a batch of so many rows.
    pub(crate) fn answered(mut words: Vec<u64>, rows: usize) -> Result<Self, CallError> {
        let wanted = rows.div_ceil(64);
        if words.len() > wanted {
            return Err(CallError::Answer(format!("{} words of bits for {rows} rows", words.len())));
        }
        words.resize(wanted, 0);
        if let (Some(last), used @ 1..) = (words.last_mut(), rows % 64) {
            *last &= (1 << used) - 1;
        }
        Ok(Self(words))
    }
}

pub(crate) fn kind(ty: ColumnType) -> Kind {
    match ty {
        ColumnType::Bool => Kind::Boolean,
        ColumnType::Int64 => Kind::Integer,
        ColumnType::Float64 => Kind::Float,
        ColumnType::String => Kind::Text,
        ColumnType::Bytes => Kind::Blob,
    }
}

fn column_type(kind: Kind) -> ColumnType {
    match kind {
        Kind::Boolean => ColumnType::Bool,
        Kind::Integer => ColumnType::Int64,
        Kind::Float => ColumnType::Float64,
        Kind::Text => ColumnType::String,
        Kind::Blob => ColumnType::Bytes,
    }
}

/// A schema as a module sees it.
pub(crate) fn fields(schema: &StreamSchema) -> Vec<Field> {
    schema.columns().iter().map(|c| Field { name: c.name.clone(), kind: kind(c.ty) }).collect()
}

/// The schema that promised columns make; the text of an error says why they do not.
pub(crate) fn schema(outputs: Vec<Field>) -> Result<StreamSchema, String> {
    let columns = outputs.into_iter().map(|f| Column { name: f.name, ty: column_type(f.kind) }).collect();
    StreamSchema::new(columns).map_err(|e| format!("its output is no stream's: {e}"))
}

/// Which parts of a batch go in, resolved against the schema once.
#[derive(Debug)]
pub(crate) struct Picks {
    schema: Arc<StreamSchema>,
    times: bool,
    devices: bool,
    columns: Vec<usize>,
}

impl Picks {
    pub(crate) fn new(schema: &Arc<StreamSchema>, needs: &Needs) -> Result<Self, String> {
        if needs.columns.len() > crate::limits::MODULE_COLUMNS_MAX {
            return Err(format!("it asks for {} columns", needs.columns.len()));
        }
        let find = |name: &String| {
            let at = schema.columns().iter().position(|c| c.name == *name);
            at.ok_or_else(|| {
                let there: Vec<&str> = schema.columns().iter().map(|c| c.name.as_str()).collect();
                format!("it needs the column {name:?}, the stream has {there:?}")
            })
        };
        let columns = needs.columns.iter().map(find).collect::<Result<_, _>>()?;
        Ok(Self { schema: schema.clone(), times: needs.times, devices: needs.devices, columns })
    }

    /// Takes the parts out of a batch, borrowing what can be borrowed.
    pub(crate) fn take<'b>(&'b self, batch: &'b Batch) -> Result<Taken<'b>, CallError> {
        if !Arc::ptr_eq(&self.schema, batch.schema()) && self.schema != *batch.schema() {
            let is = batch.schema().columns();
            return Err(CallError::Batch(format!(
                "its columns are {is:?}, expected {:?}",
                self.schema.columns()
            )));
        }
        let rows = u32::try_from(batch.rows()).map_err(|_| CallError::Batch("too many rows".into()))?;
        let columns = self.columns.iter().map(|i| {
            let column = batch.column_at(*i);
            let name = self.schema.columns()[*i].name.as_str();
            let valid = column.nulls().filter(|n| n.null_count() > 0).map(|n| words(n.inner()));
            Ok(TakenColumn { name, data: TakenData::of(column)?, valid })
        });
        Ok(Taken {
            rows,
            times: if self.times { batch.times() } else { &[] },
            devices: if self.devices { devices(batch) } else { TakenStrings::default() },
            columns: columns.collect::<Result<_, CallError>>()?,
        })
    }
}

/// The parts of a batch that go in.
pub(crate) struct Taken<'b> {
    rows: u32,
    times: &'b [i64],
    devices: TakenStrings<'b>,
    columns: Vec<TakenColumn<'b>>,
}

struct TakenColumn<'b> {
    name: &'b str,
    data: TakenData<'b>,
    valid: Option<Vec<u64>>,
}

#[derive(Default)]
struct TakenStrings<'b> {
    values: Vec<&'b str>,
    indices: Vec<u32>,
}

enum TakenData<'b> {
    Booleans(Vec<bool>),
    Integers(&'b [i64]),
    Floats(&'b [f64]),
    Texts(TakenStrings<'b>),
    Blobs(Vec<&'b [u8]>),
}

impl<'b> TakenData<'b> {
    fn of(array: &'b ArrayRef) -> Result<Self, CallError> {
        let any = array.as_any();
        if let Some(a) = any.downcast_ref::<Float64Array>() {
            Ok(Self::Floats(a.values()))
        } else if let Some(a) = any.downcast_ref::<Int64Array>() {
            Ok(Self::Integers(a.values()))
        } else if let Some(a) = any.downcast_ref::<BooleanArray>() {
            Ok(Self::Booleans(a.values().iter().collect()))
        } else if let Some(a) = any.downcast_ref::<StringArray>() {
            Ok(Self::Texts(dictionary(a)))
        } else if let Some(a) = any.downcast_ref::<BinaryArray>() {
            Ok(Self::Blobs((0..a.len()).map(|i| if a.is_null(i) { &[][..] } else { a.value(i) }).collect()))
        } else {
            Err(CallError::Batch(format!("a column of type {}", array.data_type())))
        }
    }
}

impl Taken<'_> {
    /// Shows the parts in the types of the border.
    pub(crate) fn with<R>(&self, call: impl FnOnce(BatchIn<'_>) -> R) -> R {
        let columns: Vec<ColumnIn<'_>> = self
            .columns
            .iter()
            .map(|c| ColumnIn { name: c.name, data: c.data.wire(), valid: c.valid.as_deref() })
            .collect();
        call(BatchIn { rows: self.rows, times: self.times, devices: self.devices.wire(), columns: &columns })
    }
}

impl TakenData<'_> {
    fn wire(&self) -> DataIn<'_> {
        match self {
            Self::Booleans(v) => DataIn::Booleans(v),
            Self::Integers(v) => DataIn::Integers(v),
            Self::Floats(v) => DataIn::Floats(v),
            Self::Texts(v) => DataIn::Texts(v.wire()),
            Self::Blobs(v) => DataIn::Blobs(v),
        }
    }
}

impl TakenStrings<'_> {
    fn wire(&self) -> StringsIn<'_> {
        StringsIn { values: &self.values, indices: &self.indices }
    }
}

/// The bits of a buffer, from its first, in words.
fn words(bits: &BooleanBuffer) -> Vec<u64> {
    let chunks = bits.bit_chunks();
    let mut words: Vec<u64> = chunks.iter().collect();
    if chunks.remainder_len() > 0 {
        words.push(chunks.remainder_bits());
    }
    words
}

/// The devices as they are coded in the batch; only when the dictionary is longer than the batch (a slice, a filtered
/// batch) is it made anew from the rows, because each text costs an allocation inside the module.
fn devices(batch: &Batch) -> TakenStrings<'_> {
    let (names, keys) = (batch.device_names(), batch.devices().keys().values());
    let index = |key: &i32| u32::try_from(*key).unwrap_or_default();
    if names.len() <= batch.rows() {
        let values = (0..names.len()).map(|i| names.value(i)).collect();
        return TakenStrings { values, indices: keys.iter().map(index).collect() };
    }
    let mut place: HashMap<i32, u32> = HashMap::with_capacity(batch.rows());
    let mut values = Vec::new();
    let indices = keys.iter().map(|key| {
        *place.entry(*key).or_insert_with(|| {
            values.push(names.value(index(key) as usize));
            (values.len() - 1) as u32
        })
    });
    let indices = indices.collect();
    TakenStrings { values, indices }
}

/// Text that repeats crosses once.
fn dictionary(array: &StringArray) -> TakenStrings<'_> {
    let mut place: HashMap<&str, u32> = HashMap::new();
    let mut values = Vec::new();
    let indices = (0..array.len()).map(|i| {
        let text = if array.is_null(i) { "" } else { array.value(i) };
        *place.entry(text).or_insert_with(|| {
            values.push(text);
            (values.len() - 1) as u32
        })
    });
    let indices = indices.collect();
    TakenStrings { values, indices }
}

fn wrong<T>(why: impl Into<String>) -> Result<T, CallError> {
    Err(CallError::Answer(why.into()))
}

/// Bytes of text and blobs that an answer may grow to on this side: texts may share their bytes inside the module.
#[derive(Debug)]
pub(crate) struct Allowance {
    left: usize,
    limit: usize,
}

impl Allowance {
    pub(crate) fn new(limit: usize) -> Self {
        Self { left: limit, limit }
    }

    fn spend(&mut self, bytes: usize) -> Result<(), CallError> {
        self.left = self.left.checked_sub(bytes).ok_or(CallError::Output { limit: self.limit })?;
        Ok(())
    }
}

/// The arrays of an answer: the promised columns, in order, of so many rows.
pub(crate) fn arrays(
    columns: Vec<ColumnOut>,
    promised: &StreamSchema,
    rows: usize,
    allowance: &mut Allowance,
) -> Result<Vec<ArrayRef>, CallError> {
    if columns.len() != promised.columns().len() {
        return wrong(format!("{} columns, {} were promised", columns.len(), promised.columns().len()));
    }
    let pairs = columns.into_iter().zip(promised.columns());
    pairs.map(|(column, promise)| array(column, promise, rows, allowance)).collect()
}

fn array(
    column: ColumnOut,
    promise: &Column,
    rows: usize,
    allowance: &mut Allowance,
) -> Result<ArrayRef, CallError> {
    let name = &promise.name;
    if column.name != *name {
        return wrong(format!("column {:?} where {name:?} was promised", column.name));
    }
    let nulls = nulls(column.valid, name, rows)?;
    let (array, is): (ArrayRef, ColumnType) = match column.data {
        DataOut::Booleans(v) => {
            check_rows(name, v.len(), rows)?;
            (Arc::new(BooleanArray::new(v.into(), nulls)), ColumnType::Bool)
        }
        DataOut::Integers(v) => {
            check_rows(name, v.len(), rows)?;
            (Arc::new(Int64Array::new(v.into(), nulls)), ColumnType::Int64)
        }
        DataOut::Floats(v) => {
            check_rows(name, v.len(), rows)?;
            (Arc::new(Float64Array::new(v.into(), nulls)), ColumnType::Float64)
        }
        DataOut::Texts(v) => {
            check_rows(name, v.indices.len(), rows)?;
            (Arc::new(texts(&v, nulls.as_ref(), name, allowance)?), ColumnType::String)
        }
        DataOut::Blobs(v) => {
            check_rows(name, v.len(), rows)?;
            allowance.spend(v.iter().map(Vec::len).sum())?;
            let valid = |i: usize| nulls.as_ref().is_none_or(|n| n.is_valid(i));
            let blobs = v.iter().enumerate().map(|(i, b)| valid(i).then_some(b.as_slice()));
            (Arc::new(BinaryArray::from_iter(blobs)), ColumnType::Bytes)
        }
    };
    if is != promise.ty {
        return wrong(format!("column {name:?} is {is}, {} was promised", promise.ty));
    }
    Ok(array)
}

fn check_rows(name: &str, is: usize, rows: usize) -> Result<(), CallError> {
    if is == rows { Ok(()) } else { wrong(format!("column {name:?} has {is} rows, not {rows}")) }
}

fn nulls(valid: Option<Vec<u64>>, name: &str, rows: usize) -> Result<Option<NullBuffer>, CallError> {
    let Some(valid) = valid else { return Ok(None) };
    if valid.len() != rows.div_ceil(64) {
        return wrong(format!("column {name:?} has {} words of validity for {rows} rows", valid.len()));
    }
    Ok(Some(NullBuffer::new(BooleanBuffer::new(Buffer::from_vec(valid), 0, rows))))
}

fn texts(
    strings: &StringsOut,
    nulls: Option<&NullBuffer>,
    name: &str,
    allowance: &mut Allowance,
) -> Result<StringArray, CallError> {
    let mut rows: Vec<Option<&str>> = Vec::with_capacity(strings.indices.len());
    for (i, index) in strings.indices.iter().enumerate() {
        if nulls.is_some_and(|n| n.is_null(i)) {
            rows.push(None);
            continue;
        }
        let Some(text) = strings.values.get(*index as usize) else {
            return wrong(format!("column {name:?} points at text {index} of {}", strings.values.len()));
        };
        allowance.spend(text.len())?;
        rows.push(Some(text));
    }
    Ok(StringArray::from(rows))
}

/// A batch of an answer; times and devices that are left out are those of the input.
pub(crate) fn batch(
    answer: BatchOut,
    promised: &Arc<StreamSchema>,
    input: &Batch,
    allowance: &mut Allowance,
) -> Result<Batch, CallError> {
    let rows = answer.rows as usize;
    if rows > BATCH_ROWS_MAX {
        return wrong(format!("a batch of {rows} rows, the limit is {BATCH_ROWS_MAX}"));
    }
    let same = rows == input.rows();
    let times = match answer.times.len() {
        0 if rows > 0 && same => {
            TimestampNanosecondArray::new(ScalarBuffer::from(input.times().to_vec()), None)
        }
        n if n == rows => checked_times(answer.times)?,
        n => return wrong(format!("{n} times for {rows} rows")),
    };
    let devices = match answer.devices.indices.len() {
        0 if rows > 0 && same => input.devices().clone(),
        n if n == rows => checked_devices(answer.devices)?,
        n => return wrong(format!("{n} devices for {rows} rows")),
    };
    let columns = arrays(answer.columns, promised, rows, allowance)?;
    Batch::from_columns(promised.clone(), times, devices, columns)
        .map_err(|e| CallError::Answer(e.to_string()))
}

fn checked_times(times: Vec<i64>) -> Result<TimestampNanosecondArray, CallError> {
    match times.iter().find(|t| EventTime::from_ns(i128::from(**t)).is_err()) {
        Some(t) => wrong(format!("the time {t} is before 1900")),
        None => Ok(TimestampNanosecondArray::new(times.into(), None)),
    }
}

fn checked_devices(devices: StringsOut) -> Result<DictionaryArray<Int32Type>, CallError> {
    if let Some(long) = devices.values.iter().find(|v| v.len() > DEVICE_BYTES_MAX) {
        return wrong(format!("a device name of {} bytes, the limit is {DEVICE_BYTES_MAX}", long.len()));
    }
    let key = |i: &u32| i32::try_from(*i).ok().filter(|i| (*i as usize) < devices.values.len());
    let Some(keys) = devices.indices.iter().map(key).collect::<Option<Vec<i32>>>() else {
        return wrong("a device that is not in the list of devices");
    };
    let values = Arc::new(StringArray::from_iter_values(&devices.values));
    DictionaryArray::try_new(Int32Array::from(keys), values).map_err(|e| CallError::Answer(e.to_string()))
}
