//! From records to inserts: blocks are opened and checked, those of one table put together as one Arrow block.

use super::limits::{BLOCK_BYTES_MAX, BLOCK_ROWS_MAX};
use crate::log::{Partition, RecordHeaders, StoredRecord};
use bytes::Bytes;
use record::{
    Batch, Column, StreamSchema,
    arrow::{
        array::{
            Array as _, ArrayRef, DictionaryArray, RecordBatch, StringArray, UInt32Array, UInt64Array,
            new_null_array, types::Int32Type,
        },
        ipc::writer::StreamWriter,
        schema::{ArrowError, Field, Schema},
        select::concat::concat,
    },
    block, chain_hash,
    schema::DEVICE,
};
use std::{collections::HashMap, sync::Arc};

/// What a body holds beside its columns, about.
const BODY_REST_BYTES: usize = 64 << 10;

/// A record whose block was opened and found right.
#[derive(Debug, Clone)]
pub struct Opened {
    /// Where it stands.
    pub offset: u64,
    /// What it is.
    pub headers: RecordHeaders,
    /// Its rows.
    pub batch: Batch,
}

/// One insert: a body of one block, and the columns it has.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Names of the columns, in the body's order.
    pub columns: Vec<String>,
    /// An Arrow stream with one batch.
    pub body: Bytes,
    /// Its rows.
    pub rows: usize,
}

/// Opens a record's block. The error says why it cannot be what its headers claim.
pub fn open(record: &StoredRecord) -> Result<Opened, String> {
    let h = &record.headers;
    let hash =
        chain_hash(&h.prev_hash, &h.stream, h.incarnation, h.first_seq, h.last_seq, h.schema, &record.bytes);
    if hash != h.hash {
        return Err(format!("the block's hash is {hash}, its header says {}", h.hash));
    }
    let batch = block::decode(&record.bytes).map_err(|e| e.to_string())?;
    let claimed = (h.last_seq.0 + 1).saturating_sub(h.first_seq.0);
    if batch.rows() as u64 != claimed || u64::from(h.rows) != claimed {
        return Err(format!("the block has {} rows, its headers say {} and {claimed}", batch.rows(), h.rows));
    }
    let schema = batch.schema().fingerprint();
    if schema != h.schema {
        return Err(format!("the block's schema is {schema:016x}, its header says {:016x}", h.schema));
    }
    Ok(Opened { offset: record.offset.0, headers: h.clone(), batch })
}

/// The columns of all records, each once, in the order of their first appearance.
pub fn columns(records: &[Opened]) -> Vec<Column> {
    let mut all: Vec<Column> = Vec::new();
    for column in records.iter().flat_map(|r| r.batch.schema().columns()) {
        if !all.iter().any(|c| c.name == column.name) {
            all.push(column.clone());
        }
    }
    all
}

/// Puts the records of one table together, in as few inserts as the engine takes as single blocks. The same records
/// always give the same pieces: a token names one.
pub fn assemble(partition: Partition, records: &[Opened]) -> Result<Vec<Piece>, ArrowError> {
    let mut pieces = Vec::new();
    let (mut from, mut rows, mut bytes) = (0, 0, 0);
    for (i, record) in records.iter().enumerate() {
        let size = decoded_bytes(&record.batch);
        if i > from && (rows + record.batch.rows() > BLOCK_ROWS_MAX || bytes + size > BLOCK_BYTES_MAX) {
            pieces.push(piece(partition, &records[from..i])?);
            (from, rows, bytes) = (i, 0, 0);
        }
        rows += record.batch.rows();
        bytes += size;
    }
    if from < records.len() {
        pieces.push(piece(partition, &records[from..])?);
    }
    Ok(pieces)
}

fn decoded_bytes(batch: &Batch) -> usize {
    let columns = batch.arrow().columns().iter();
    columns.map(|c| c.to_data().get_slice_memory_size().unwrap_or(BLOCK_BYTES_MAX)).sum()
}

fn piece(partition: Partition, records: &[Opened]) -> Result<Piece, ArrowError> {
    let declared = StreamSchema::new(columns(records)).map_err(|e| ArrowError::SchemaError(e.to_string()))?;
    let base = declared.arrow();
    let mut fields: Vec<Field> = base.fields().iter().map(|f| f.as_ref().clone()).collect();
    let mut arrays: Vec<ArrayRef> = Vec::with_capacity(fields.len() + 4);
    for field in base.fields() {
        if field.name() == DEVICE {
            arrays.push(devices(records)?);
            continue;
        }
        let parts: Vec<ArrayRef> = records.iter().map(|r| part(&r.batch, field)).collect();
        let parts: Vec<&dyn record::arrow::array::Array> = parts.iter().map(|p| p.as_ref()).collect();
        arrays.push(concat(&parts)?);
    }
    let rows: usize = records.iter().map(|r| r.batch.rows()).sum();
    for (name, array) in [
        ("gateway", gateways(records)?),
        (
            "seq",
            Arc::new(UInt64Array::from_iter_values(
                records.iter().flat_map(|r| r.headers.first_seq.0..=r.headers.last_seq.0),
            )) as ArrayRef,
        ),
        ("_partition", Arc::new(UInt32Array::from_value(partition.0, rows))),
        (
            "_offset",
            Arc::new(UInt64Array::from_iter_values(
                records.iter().flat_map(|r| std::iter::repeat_n(r.offset, r.batch.rows())),
            )),
        ),
    ] {
        fields.push(Field::new(name, array.data_type().clone(), false));
        arrays.push(array);
    }
    let columns = fields.iter().map(|f| f.name().clone()).collect();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?;
    // Made once in its full size: growing would copy tens of megabytes again and again.
    let body = Vec::with_capacity(batch.get_array_memory_size() + BODY_REST_BYTES);
    let mut writer = StreamWriter::try_new(body, &batch.schema())?;
    writer.write(&batch)?;
    writer.finish()?;
    Ok(Piece { columns, body: writer.into_inner()?.into(), rows })
}

/// A column of a batch, or as many nulls.
fn part(batch: &Batch, field: &Field) -> ArrayRef {
    let column = batch.column(field.name()).filter(|c| c.data_type() == field.data_type());
    column.cloned().unwrap_or_else(|| new_null_array(field.data_type(), batch.rows()))
}

/// The device column of all records over one dictionary in which each name stands once: ClickHouse refuses others, and
/// those of several blocks put one behind the other repeat their names.
fn devices(records: &[Opened]) -> Result<ArrayRef, ArrowError> {
    let mut names = Names::default();
    for record in records {
        let own = record.batch.device_names();
        let mut new_keys = Vec::with_capacity(own.len());
        for i in 0..own.len() {
            new_keys.push(names.key(if own.is_null(i) { "" } else { own.value(i) })?);
        }
        let outside = || ArrowError::InvalidArgumentError("a key outside its dictionary".into());
        for key in record.batch.devices().keys().values() {
            let key = usize::try_from(*key).ok().and_then(|k| new_keys.get(k)).ok_or_else(outside)?;
            names.keys.push(*key);
        }
    }
    names.column()
}

fn gateways(records: &[Opened]) -> Result<ArrayRef, ArrowError> {
    let mut names = Names::default();
    for record in records {
        let key = names.key(record.headers.gateway.as_str())?;
        names.keys.extend(std::iter::repeat_n(key, record.batch.rows()));
    }
    names.column()
}

/// A dictionary column under construction.
#[derive(Default)]
struct Names<'a> {
    known: HashMap<&'a str, i32>,
    values: Vec<&'a str>,
    keys: Vec<i32>,
}

impl<'a> Names<'a> {
    fn key(&mut self, name: &'a str) -> Result<i32, ArrowError> {
        if let Some(key) = self.known.get(name) {
            return Ok(*key);
        }
        let key = i32::try_from(self.values.len()).map_err(|_| ArrowError::DictionaryKeyOverflowError)?;
        self.known.insert(name, key);
        self.values.push(name);
        Ok(key)
    }

    fn column(self) -> Result<ArrayRef, ArrowError> {
        let values = Arc::new(StringArray::from(self.values));
        Ok(Arc::new(DictionaryArray::<Int32Type>::try_new(self.keys.into(), values)?))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::log::{ContentType, Offset};
    use record::{
        BatchBuilder, ColumnType, Digest, EventTime, GatewayId, Incarnation, Seq, StreamName, Value,
        arrow::{array::cast::AsArray as _, ipc::reader::StreamReader},
    };

    /// A record with `rows` rows of one float column, or of another column.
    pub(crate) fn stored(
        offset: u64,
        gateway: &str,
        column: (&str, ColumnType),
        first: u64,
        rows: u64,
    ) -> StoredRecord {
        let schema = StreamSchema::new(vec![Column { name: column.0.into(), ty: column.1 }]).expect("valid");
        let mut builder = BatchBuilder::new(Arc::new(schema));
        for i in 0..rows {
            let value = match column.1 {
                ColumnType::Float64 => Value::Float(i as f64),
                ColumnType::String => Value::Str("text"),
                _ => Value::Null,
            };
            let time =
                EventTime::from_ns(1_700_000_000_000_000_000 + i128::from(first + i)).expect("in range");
            builder.push(time, &format!("{gateway}-{}", i % 3), &[value]).expect("fits");
        }
        let batch = builder.finish().expect("fits");
        let bytes = block::encode(&batch).expect("encodes");
        let stream = StreamName::new("machine").expect("valid");
        let (incarnation, first, last) = (Incarnation(1), Seq(first), Seq(first + rows - 1));
        let schema = batch.schema().fingerprint();
        let prev_hash = Digest::default();
        let headers = RecordHeaders {
            content_type: ContentType::ArrowStream,
            schema,
            gateway: GatewayId::new(gateway).expect("valid"),
            incarnation,
            first_seq: first,
            last_seq: last,
            rows: rows as u32,
            prev_hash,
            hash: chain_hash(&prev_hash, &stream, incarnation, first, last, schema, &bytes),
            produced_at_ns: 1_700_000_000_000_000_000,
            stream,
        };
        StoredRecord { offset: Offset(offset), headers, bytes: bytes.into() }
    }

    #[test]
    fn records_of_two_schemas_become_one_block() {
        let a = open(&stored(4, "g1", ("t", ColumnType::Float64), 1, 10)).expect("right");
        let b = open(&stored(9, "g2", ("s", ColumnType::String), 100, 5)).expect("right");
        let pieces = assemble(Partition(3), &[a, b]).expect("fits");
        assert_eq!(pieces.len(), 1);
        assert_eq!(
            pieces[0].columns,
            ["time", "device", "t", "s", "gateway", "seq", "_partition", "_offset"]
        );
        let batches: Vec<RecordBatch> = StreamReader::try_new(pieces[0].body.as_ref(), None)
            .expect("a stream")
            .collect::<Result<_, _>>()
            .expect("batches");
        let [batch] = &batches[..] else { panic!("one block") };
        assert_eq!((batch.num_rows(), pieces[0].rows), (15, 15));
        assert_eq!((batch.column(2).null_count(), batch.column(3).null_count()), (5, 10));
        assert_eq!(*batch.column(4).data_type(), record::schema::device_type());
        let names = batch.column(1).as_dictionary::<Int32Type>().values().as_string::<i32>();
        let names: Vec<&str> = names.iter().flatten().collect();
        assert_eq!(names, ["g1-0", "g1-1", "g1-2", "g2-0", "g2-1", "g2-2"]);
        let seqs = batch.column(5).as_primitive::<record::arrow::array::types::UInt64Type>();
        assert_eq!((seqs.value(9), seqs.value(10)), (10, 100));
        let offsets = batch.column(7).as_primitive::<record::arrow::array::types::UInt64Type>();
        assert_eq!((offsets.value(9), offsets.value(10)), (4, 9));
    }

    /// The most memory that this process has had, in bytes.
    #[cfg(target_os = "linux")]
    fn peak() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells it");
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("a line");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_length_that_claims_900_mb_takes_no_such_memory() {
        const CLAIM: u64 = 900_000_000;
        let good = stored(1, "g", ("t", ColumnType::Float64), 1, 200).bytes;
        let before = peak();
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        for at in (0..good.len() - 8).step_by(4) {
            for width in [4, 8] {
                let mut bytes = good.to_vec();
                bytes[at..at + width].copy_from_slice(&CLAIM.to_le_bytes()[..width]);
                // What comes of most of them is an error, of some a batch: the claim fell on a value.
                let _ = block::decode(&bytes);
            }
        }
        std::panic::set_hook(hook);
        let grown = peak().saturating_sub(before);
        assert!(grown < CLAIM / 3, "{grown} bytes more");
    }

    #[test]
    fn a_block_that_is_not_what_it_claims_is_refused() {
        let good = stored(1, "g", ("t", ColumnType::Float64), 1, 10);
        let mut flipped = good.bytes.to_vec();
        flipped[40] ^= 1;
        let flipped = StoredRecord { bytes: flipped.into(), ..good.clone() };
        assert!(open(&flipped).expect_err("flipped").contains("hash"));
        let mut fewer = good.clone();
        fewer.headers.rows = 9;
        assert!(open(&fewer).expect_err("rows").contains("rows"));
        let mut nonsense = good;
        nonsense.bytes = Bytes::from_static(b"nonsense");
        let h = &mut nonsense.headers;
        h.hash = chain_hash(
            &h.prev_hash,
            &h.stream,
            h.incarnation,
            h.first_seq,
            h.last_seq,
            h.schema,
            b"nonsense",
        );
        assert!(open(&nonsense).is_err());
    }
}
