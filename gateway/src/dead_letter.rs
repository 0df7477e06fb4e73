//! What could not become a row, kept with its reason: rows of the reserved stream `dead_letters`.

use crate::{
    decode::base64,
    limits::{DEAD_LETTER_PAYLOAD_BYTES_MAX, ERROR_BYTES_MAX, TOPIC_BYTES_MAX},
};
use record::{
    Batch, BatchBuilder, Column, ColumnType, EventTime, RecordError, StreamName, StreamSchema, Value,
    arrow::array::{Array, cast::AsArray, types},
};
use std::{fmt::Write, sync::Arc};

/// Why. The names are part of the product: dashboards and people filter by them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The payload is not UTF-8; it stands in the dead letter in base64.
    Utf8,
    /// The payload is not JSON.
    Json,
    /// JSON nested deeper than the limit.
    Depth,
    /// A number that no 64-bit float holds.
    Number,
    /// JSON, but not an object, nor a list of objects with something in it.
    Shape,
    /// No time, or not in the declared format.
    Time,
    /// A time before 1900 or after 2262.
    TimeRange,
    /// A time further ahead of the gateway's clock than the stream allows.
    Future,
    /// No device where the stream says it stands, or a name that is too long.
    Device,
    /// A declared column holds a value of another type.
    Column,
    /// The row came after its window had closed.
    Late,
    /// More keys or open windows than the limit.
    TooManyGroups,
    /// A row with the dedup key of another row but other content.
    KeyConflict,
    /// The stream's module failed on the row.
    Module,
    /// The row alone is larger than a block may be.
    TooLarge,
}

impl Reason {
    /// The reason's name in tables and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Utf8 => "utf8",
            Self::Json => "json",
            Self::Depth => "depth",
            Self::Number => "number",
            Self::Shape => "shape",
            Self::Time => "time",
            Self::TimeRange => "time-range",
            Self::Future => "future",
            Self::Device => "device",
            Self::Column => "column",
            Self::Late => "late",
            Self::TooManyGroups => "too-many-groups",
            Self::KeyConflict => "key-conflict",
            Self::Module => "module",
            Self::TooLarge => "too-large",
        }
    }
}

/// One dead letter.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    /// The stream that could not take the row.
    pub stream: StreamName,
    /// Why.
    pub reason: Reason,
    /// The module that failed, `name@version`; empty without.
    pub module: String,
    /// What exactly was wrong.
    pub error: String,
    /// The source that the event came from; empty for rows of streams below a root.
    pub source: String,
    /// Its topic; empty likewise.
    pub topic: String,
    /// What the device sent (base64 when it is not UTF-8), or the row as a JSON object; cut where it is longer than
    /// [`DEAD_LETTER_PAYLOAD_BYTES_MAX`].
    pub payload: String,
    /// The device, if it is known.
    pub device: String,
    /// When the event was accepted, nanoseconds since the epoch. For a row that no event can be named for (one of a
    /// stream below a root, one too large for a block), when the step was made in which it failed.
    pub received_ns: i64,
}

/// Added to the error of a dead letter whose payload is not whole.
const CUT: &str = "; the payload is cut";

impl DeadLetter {
    /// The dead letter of a row that has no event of its own any more.
    pub fn of_row(
        stream: &StreamName,
        reason: Reason,
        error: &str,
        batch: &Batch,
        row: usize,
        received_ns: i64,
    ) -> Self {
        let mut letter = Self {
            stream: stream.clone(),
            reason,
            module: String::new(),
            error: shortened(error, ERROR_BYTES_MAX).to_owned(),
            source: String::new(),
            topic: String::new(),
            payload: row_json(batch, row),
            device: batch.device(row).to_owned(),
            received_ns,
        };
        letter.cut(DEAD_LETTER_PAYLOAD_BYTES_MAX);
        letter
    }

    /// Keeps at most so many bytes of the payload, and says so if that is not all of it.
    pub fn cut(&mut self, bytes: usize) {
        if self.payload.len() <= bytes {
            return;
        }
        if !self.error.ends_with(CUT) {
            self.error = format!("{}{CUT}", shortened(&self.error, ERROR_BYTES_MAX - CUT.len()));
        }
        self.payload.truncate(self.payload.floor_char_boundary(bytes));
        self.payload.shrink_to_fit();
    }

    /// A payload as the dead letter carries it.
    pub fn payload_text(payload: &[u8]) -> String {
        match std::str::from_utf8(payload) {
            Ok(text) => text.to_owned(),
            Err(_) => base64::encode(payload),
        }
    }
}

/// The columns of the stream `dead_letters`.
pub fn schema() -> Arc<StreamSchema> {
    let text = ["stream", "reason", "module", "error", "source", "topic", "payload"];
    let mut columns: Vec<Column> =
        text.iter().map(|name| Column { name: (*name).to_owned(), ty: ColumnType::String }).collect();
    columns.push(Column { name: "received_at".to_owned(), ty: ColumnType::Int64 });
    Arc::new(StreamSchema::new(columns).expect("the names are distinct and allowed"))
}

/// Dead letters as a batch; its time is the receive time. Each of them alone fits a block, whatever it says.
pub fn batch(letters: &[DeadLetter]) -> Result<Batch, RecordError> {
    let mut builder = BatchBuilder::new(schema());
    for l in letters {
        let error = shortened(&l.error, ERROR_BYTES_MAX);
        let values = [
            Value::Str(l.stream.as_str()),
            Value::Str(l.reason.name()),
            Value::Str(&l.module),
            Value::Str(error),
            Value::Str(&l.source),
            Value::Str(shortened(&l.topic, TOPIC_BYTES_MAX)),
            Value::Str(shortened(&l.payload, DEAD_LETTER_PAYLOAD_BYTES_MAX)),
            Value::Int(l.received_ns),
        ];
        let time = EventTime::from_ns(l.received_ns.into()).unwrap_or(EventTime::MIN);
        builder.push(time, shortened(&l.device, record::limits::DEVICE_BYTES_MAX), &values)?;
    }
    builder.finish()
}

/// At most `max` bytes of a text, cut between characters.
pub fn shortened(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

/// A row as a JSON object: the payload of a dead letter that has no event of its own.
pub fn row_json(batch: &Batch, row: usize) -> String {
    let mut out = String::with_capacity(128);
    let _ = write!(out, "{{\"time\":{},\"device\":{}", batch.times()[row], quoted(batch.device(row)));
    for (i, column) in batch.schema().columns().iter().enumerate() {
        let array = batch.column_at(i);
        if array.is_null(row) {
            continue;
        }
        let _ = write!(out, ",\"{}\":", column.name);
        let _ = match column.ty {
            ColumnType::Bool => write!(out, "{}", array.as_boolean().value(row)),
            ColumnType::Int64 => write!(out, "{}", array.as_primitive::<types::Int64Type>().value(row)),
            ColumnType::Float64 => {
                let v = array.as_primitive::<types::Float64Type>().value(row);
                if v.is_finite() { write!(out, "{v:?}") } else { write!(out, "\"{v}\"") }
            }
            ColumnType::String => write!(out, "{}", quoted(array.as_string::<i32>().value(row))),
            ColumnType::Bytes => write!(out, "\"{}\"", base64::encode(array.as_binary::<i32>().value(row))),
        };
    }
    out.push('}');
    out
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_become_rows() {
        let letter = DeadLetter {
            stream: StreamName::new("machine").unwrap(),
            reason: Reason::Column,
            module: String::new(),
            error: "ä".repeat(ERROR_BYTES_MAX),
            source: "floor".into(),
            topic: "a/b".into(),
            payload: DeadLetter::payload_text(b"\xff\x00"),
            device: "m1".into(),
            received_ns: 7,
        };
        let batch = batch(&[letter.clone(), letter]).unwrap();
        assert_eq!((batch.rows(), batch.device(1), batch.times()[0]), (2, "m1", 7));
        let payload = batch.column("payload").unwrap().as_string::<i32>().value(0).to_owned();
        assert_eq!(payload, "/wA=");
        assert_eq!(batch.column("error").unwrap().as_string::<i32>().value(0).len(), ERROR_BYTES_MAX);
    }

    #[test]
    fn rows_as_json() {
        let columns = [
            ("n", ColumnType::Int64),
            ("f", ColumnType::Float64),
            ("s", ColumnType::String),
            ("x", ColumnType::Bytes),
        ];
        let columns = columns.iter().map(|(n, ty)| Column { name: (*n).into(), ty: *ty }).collect();
        let mut b = BatchBuilder::new(Arc::new(StreamSchema::new(columns).unwrap()));
        let at = EventTime::from_ns(5).unwrap();
        b.push(
            at,
            "d\"1",
            &[Value::Int(-1), Value::Float(1e300), Value::Str("; drop table"), Value::Bytes(b"f")],
        )
        .unwrap();
        b.push(at, "d", &[Value::Null, Value::Null, Value::Null, Value::Null]).unwrap();
        let batch = b.finish().unwrap();
        assert_eq!(
            row_json(&batch, 0),
            r#"{"time":5,"device":"d\"1","n":-1,"f":1e300,"s":"; drop table","x":"Zg=="}"#
        );
        assert_eq!(row_json(&batch, 1), r#"{"time":5,"device":"d"}"#);
    }
}
