//! Whether a table's values are those of the records' blocks: sums over a function of each value, by column and record.
//!
//! The sums are made twice, here from the block and by ClickHouse from the rows, and do not depend on the order of rows. A
//! number counts by its bits, a text by the first eight bytes of its SHA-256, no value as 1; all of it wraps at 64 bits.
//! Two changes that outweigh each other would not be seen; nobody makes them by accident.

use super::{
    auditor::{ask, number},
    tally::TallyKey,
};
use crate::{
    log::{Partition, StoredRecord},
    rules::{Positions, QuerySource},
    sink::block,
};
use record::{
    Batch, ColumnType, Digest,
    arrow::array::{
        Array, ArrayRef, BinaryArray, BooleanArray, Float64Array, Int64Array, StringArray, cast::AsArray as _,
    },
};
use std::collections::BTreeMap;

/// Records that one question is about.
const RECORDS_AT_ONCE: usize = 200;

/// A record whose rows have other values in their table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Altered {
    /// Whose it is.
    pub key: TallyKey,
    /// The first column that differs, and seqs and place of the record.
    pub place: String,
}

/// Compares the rows of records that the sink has committed. What cannot be compared, since rows are missing or the block
/// cannot be opened, is judged elsewhere.
pub(super) async fn compare(
    source: &dyn QuerySource,
    partition: Partition,
    records: &[StoredRecord],
    committed: &Positions,
) -> Result<Vec<Altered>, String> {
    let end = committed.get(&partition.0).copied().unwrap_or(0);
    // Blocks of one schema have the same columns, and so one question.
    let mut alike: BTreeMap<(String, u64), Vec<&StoredRecord>> = BTreeMap::new();
    for record in records.iter().filter(|r| r.offset.0 < end) {
        alike.entry((record.headers.stream.to_string(), record.headers.schema)).or_default().push(record);
    }
    let mut altered = Vec::new();
    for records in alike.values() {
        for some in records.chunks(RECORDS_AT_ONCE) {
            altered.extend(compare_alike(source, partition, some).await?);
        }
    }
    Ok(altered)
}

async fn compare_alike(
    source: &dyn QuerySource,
    partition: Partition,
    records: &[&StoredRecord],
) -> Result<Vec<Altered>, String> {
    let opened: Vec<(&StoredRecord, Batch)> = tokio::task::block_in_place(|| {
        records.iter().filter_map(|r| Some((*r, block::open(r).ok()?.batch))).collect()
    });
    let Some((first, batch)) = opened.first() else { return Ok(Vec::new()) };
    let stream = &first.headers.stream;
    let columns: Vec<(String, String)> = sql_sums(batch);
    let asked: String = columns.iter().map(|(_, sum)| format!(", sumWithOverflow({sum})")).collect();
    let offsets: Vec<String> = opened.iter().map(|(r, _)| r.offset.to_string()).collect();
    let sql = format!(
        "select _offset, count(){asked} from `{stream}` where _partition = {partition} and _offset in ({}) group by _offset",
        offsets.join(", ")
    );
    let table = ask(source, stream, &sql).await.map_err(|e| e.to_string())?;
    let found: BTreeMap<u64, Vec<u64>> = table
        .rows
        .iter()
        .filter_map(|row| Some((number(row.first()?), row.iter().skip(1).map(number).collect())))
        .collect();
    let mut altered = Vec::new();
    for (record, batch) in &opened {
        let h = &record.headers;
        let Some([rows, sums @ ..]) = found.get(&record.offset.0).map(Vec::as_slice) else { continue };
        if *rows != u64::from(h.rows) {
            continue;
        }
        let ours = tokio::task::block_in_place(|| own_sums(batch));
        let other = columns.iter().zip(sums.iter().zip(&ours)).find(|(_, (there, here))| there != here);
        if let Some(((column, _), _)) = other {
            let key =
                TallyKey { gateway: h.gateway.clone(), stream: h.stream.clone(), incarnation: h.incarnation };
            let place = format!(
                "column {column:?} of seqs {} to {} at offset {} of partition {partition}",
                h.first_seq, h.last_seq, record.offset
            );
            altered.push(Altered { key, place });
        }
    }
    Ok(altered)
}

/// Each column and what of its values is summed, in the order of [`own_sums`].
fn sql_sums(batch: &Batch) -> Vec<(String, String)> {
    let text =
        |value: &str| format!("reinterpretAsUInt64(substring(toString(SHA256(toString({value}))), 1, 8))");
    let mut out = vec![
        ("time".to_owned(), "reinterpretAsUInt64(toUnixTimestamp64Nano(time))".to_owned()),
        ("device".to_owned(), text("device")),
    ];
    for column in batch.schema().columns() {
        let name = crate::clickhouse::quoted(&column.name);
        let value = format!("assumeNotNull({name})");
        let of = match column.ty {
            ColumnType::Bool => format!("toUInt64({value})"),
            ColumnType::Int64 | ColumnType::Float64 => format!("reinterpretAsUInt64({value})"),
            ColumnType::String | ColumnType::Bytes => text(&value),
        };
        out.push((column.name.clone(), format!("if(isNull({name}), toUInt64(1), {of})")));
    }
    out
}

/// The same sums from a block.
fn own_sums(batch: &Batch) -> Vec<u64> {
    let add = |a: u64, b: u64| a.wrapping_add(b);
    let mut out = vec![
        batch.times().iter().map(|t| t.cast_unsigned()).fold(0, add),
        (0..batch.rows()).map(|row| text(batch.device(row).as_bytes())).fold(0, add),
    ];
    for (i, column) in batch.schema().columns().iter().enumerate() {
        let array = batch.column_at(i);
        let of: Box<dyn Fn(usize) -> u64> = match column.ty {
            ColumnType::Bool => of_bool(array),
            ColumnType::Int64 => of_int(array),
            ColumnType::Float64 => of_float(array),
            ColumnType::String => of_text(array),
            ColumnType::Bytes => of_bytes(array),
        };
        let value = |row| if array.is_null(row) { 1 } else { of(row) };
        out.push((0..batch.rows()).map(value).fold(0, add));
    }
    out
}

fn text(bytes: &[u8]) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&Digest::of(bytes).0[..8]);
    u64::from_le_bytes(first)
}

fn of_bool(array: &ArrayRef) -> Box<dyn Fn(usize) -> u64 + '_> {
    let values: &BooleanArray = array.as_boolean();
    Box::new(|row| u64::from(values.value(row)))
}

fn of_int(array: &ArrayRef) -> Box<dyn Fn(usize) -> u64 + '_> {
    let values: &Int64Array = array.as_primitive();
    Box::new(|row| values.value(row).cast_unsigned())
}

fn of_float(array: &ArrayRef) -> Box<dyn Fn(usize) -> u64 + '_> {
    let values: &Float64Array = array.as_primitive();
    Box::new(|row| values.value(row).to_bits())
}

fn of_text(array: &ArrayRef) -> Box<dyn Fn(usize) -> u64 + '_> {
    let values: &StringArray = array.as_string();
    Box::new(|row| text(values.value(row).as_bytes()))
}

fn of_bytes(array: &ArrayRef) -> Box<dyn Fn(usize) -> u64 + '_> {
    let values: &BinaryArray = array.as_binary();
    Box::new(|row| text(values.value(row)))
}
