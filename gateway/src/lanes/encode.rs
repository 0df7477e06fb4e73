//! A step's rows as blocks. A row that is too large for a block alone becomes a dead letter.

use crate::{
    dead_letter::{self, DeadLetter, Reason},
    output::PendingBlock,
    step::Effects,
};
use record::{Batch, DEAD_LETTERS, RecordError, StreamName, block, limits::BATCH_ROWS_MAX};

/// What a dead letter keeps of its payload where all of them together would be too much.
const SHORT_PAYLOAD_BYTES: usize = 256;

/// The blocks of a step made at `made_ns`, in the order of each stream's rows; dead letters last, with `short` only the
/// beginnings of their payloads.
pub(crate) fn blocks(fx: &mut Effects, made_ns: i64, short: bool) -> Result<Vec<PendingBlock>, RecordError> {
    let mut out = Vec::new();
    for (stream, batch) in std::mem::take(&mut fx.rows) {
        for row in encode(&stream, &batch, &mut out)? {
            // It was counted as a row of the stream.
            let count = fx.count(&stream);
            count.produced -= 1;
            if count.kept > 0 {
                count.kept -= 1;
                count.dead_lettered += 1;
            } else {
                // A result of a window or a transform: what it was made from is counted already.
                fx.unmade(&stream, 1);
            }
            let error = "the row alone is larger than a block may be";
            fx.dead_letters.push(DeadLetter::of_row(&stream, Reason::TooLarge, error, &batch, row, made_ns));
        }
    }
    let mut letters = std::mem::take(&mut fx.dead_letters);
    if short {
        letters.iter_mut().for_each(|letter| letter.cut(SHORT_PAYLOAD_BYTES));
    }
    if letters.is_empty() {
        return Ok(out);
    }
    let stream = StreamName::new(DEAD_LETTERS)?;
    let count = fx.count(&stream);
    for n in [&mut count.received, &mut count.kept, &mut count.produced] {
        *n += letters.len() as u64;
    }
    for part in letters.chunks(BATCH_ROWS_MAX) {
        let batch = dead_letter::batch(part)?;
        if let Some(row) = encode(&stream, &batch, &mut out)?.first() {
            // The limits exclude it: `dead_letter::batch` cuts what each may say.
            return Err(RecordError::Block(format!("dead letter {row} of a step is larger than a block")));
        }
    }
    fx.dead_letters = letters;
    Ok(out)
}

/// Encodes a batch, halved as often as needed; gives the rows that are too large alone.
fn encode(
    stream: &StreamName,
    batch: &Batch,
    out: &mut Vec<PendingBlock>,
) -> Result<Vec<usize>, RecordError> {
    let schema = batch.schema().fingerprint();
    let (mut rest, mut too_large) = (vec![(0, batch.rows())], Vec::new());
    while let Some((from, rows)) = rest.pop() {
        if rows == 0 {
            continue;
        }
        match block::encode(&compact(&batch.slice(from, rows))?) {
            Ok(bytes) => out.push(PendingBlock { stream: stream.clone(), schema, rows: rows as u64, bytes }),
            Err(_) if rows == 1 => too_large.push(from),
            Err(_) => {
                let half = rows / 2;
                rest.push((from + half, rows - half));
                rest.push((from, half));
            }
        }
    }
    Ok(too_large)
}

/// A filtered batch still carries the names of devices whose rows are gone; few rows with many names are rewritten.
fn compact(batch: &Batch) -> Result<Batch, RecordError> {
    if batch.device_names().len() <= 2 * batch.rows() + 16 {
        return Ok(batch.clone());
    }
    use record::arrow::array::{Array, DictionaryArray, cast::AsArray, types};
    let names: DictionaryArray<types::Int32Type> =
        (0..batch.rows()).map(|row| Some(batch.device(row))).collect();
    let times = batch.arrow().column(0).as_primitive::<types::TimestampNanosecondType>().clone();
    let columns = (0..batch.schema().columns().len()).map(|i| batch.column_at(i).slice(0, batch.rows()));
    Batch::from_columns(batch.schema().clone(), times, names, columns.collect())
}
