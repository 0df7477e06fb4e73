//! Events into rows: JSON payloads into the columns that the stream declares.
//!
//! Invariants:
//! - each element of a payload (one object, or every element of a list) becomes one row or one dead letter;
//! - a row is taken whole or not at all;
//! - columns that the stream does not declare are stepped over and counted, missing ones are null.
//!
//! It never builds a tree of a payload, never guesses a type (a number in quotes is no number, except for times), and
//! never asks a clock: what "the future" is follows from the time at which the event was accepted.

pub mod base64;
mod device;
mod json;
mod time;

pub use device::DeviceRule;
pub use json::split_body;
pub use time::{SECOND_NS, TimeError, TimeFormat};

use crate::{
    dead_letter::{DeadLetter, Reason},
    event::Event,
};
use json::{Cell, Fault, Fields, Row};
use record::{
    Batch, BatchBuilder, ColumnType, EventTime, RecordError, StreamName, StreamSchema, Value,
    limits::{BATCH_ROWS_MAX, DEVICE_BYTES_MAX},
};
use std::{borrow::Cow, sync::Arc};

/// What becomes of an event without a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MissingTime {
    /// A dead letter.
    #[default]
    DeadLetter,
    /// A row with the time at which the event was accepted.
    Receive,
}

/// How a root stream's payloads are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeRules {
    /// The field that holds the event time.
    pub time: String,
    /// How it is written.
    pub time_format: TimeFormat,
    /// What if it is missing.
    pub missing_time: MissingTime,
    /// How far ahead of the receive time an event may claim to be, nanoseconds.
    pub future_limit_ns: i64,
    /// Where the device stands.
    pub device: DeviceRule,
}

impl Default for DecodeRules {
    fn default() -> Self {
        Self {
            time: "time".to_owned(),
            time_format: TimeFormat::Auto,
            missing_time: MissingTime::DeadLetter,
            future_limit_ns: 3600 * SECOND_NS,
            device: DeviceRule::Field("device".to_owned()),
        }
    }
}

/// Rows, and where each came from.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// The rows, at most [`BATCH_ROWS_MAX`].
    pub batch: Batch,
    /// For each row the index of its event in the step.
    pub events: Vec<u32>,
}

/// What a step's events became.
#[derive(Debug, Default)]
pub struct Decoded {
    /// The rows, in order.
    pub chunks: Vec<Chunk>,
    /// The rest.
    pub dead_letters: Vec<DeadLetter>,
    /// Elements seen: rows and dead letters together.
    pub elements: u64,
    /// Values stepped over because no column is declared for them.
    pub undeclared: u64,
}

/// Turns the events of one stream into rows.
#[derive(Debug)]
pub struct Decoder {
    stream: StreamName,
    schema: Arc<StreamSchema>,
    rules: DecodeRules,
    fields: Fields,
}

impl Decoder {
    /// A decoder for the columns of `schema`.
    pub fn new(stream: StreamName, schema: Arc<StreamSchema>, rules: DecodeRules) -> Self {
        let fields = Fields::new(&schema, &rules);
        Self { stream, schema, rules, fields }
    }

    /// Decodes events in order; the index in `Chunk::events` counts them from 0.
    pub fn decode<'e>(&self, events: impl Iterator<Item = Event<'e>>) -> Result<Decoded, RecordError> {
        let mut pass = Pass::new(self);
        for (index, event) in events.enumerate() {
            pass.event(index as u32, &event)?;
        }
        pass.finish()
    }

    fn time(&self, row: &Row<'_>, event: &Event<'_>) -> Result<EventTime, Refusal> {
        let time = match row.time {
            Some(raw) => self.read_time(raw)?,
            None => match self.rules.missing_time {
                MissingTime::DeadLetter => {
                    return Err(Refusal::new(Reason::Time, format!("no field {:?}", self.rules.time)));
                }
                MissingTime::Receive => EventTime::from_ns(event.received_ns.into())
                    .map_err(|e| Refusal::new(Reason::TimeRange, e.to_string()))?,
            },
        };
        let ahead = i128::from(time.ns()) - i128::from(event.received_ns);
        if ahead > i128::from(self.rules.future_limit_ns) {
            let seconds = ahead / i128::from(SECOND_NS);
            return Err(Refusal::new(Reason::Future, format!("{seconds} s ahead of the gateway's clock")));
        }
        Ok(time)
    }

    fn read_time(&self, raw: &str) -> Result<EventTime, Refusal> {
        let text: Cow<'_, str> = match raw.strip_prefix('"').and_then(|t| t.strip_suffix('"')) {
            Some(inner) if inner.contains('\\') => serde_json::from_str(raw).unwrap_or_default(),
            Some(inner) => inner.into(),
            None => raw.into(),
        };
        let shown = || format!("field {:?} is {}", self.rules.time, crate::dead_letter::shortened(raw, 100));
        self.rules.time_format.parse(&text, raw.starts_with('"')).map_err(|e| match e {
            TimeError::Format => Refusal::new(Reason::Time, shown()),
            TimeError::Range => Refusal::new(Reason::TimeRange, shown()),
        })
    }

    fn refusal(&self, fault: &Fault) -> Refusal {
        match fault {
            Fault::Syntax(text) => Refusal::new(Reason::Json, text.clone()),
            Fault::Number(text) => Refusal::new(Reason::Number, text.clone()),
            Fault::Depth => {
                Refusal::new(Reason::Depth, format!("nested deeper than {}", crate::limits::JSON_DEPTH_MAX))
            }
            Fault::Shape(what) => {
                Refusal::new(Reason::Shape, format!("an object was expected, found {what}"))
            }
            Fault::Device => {
                Refusal::new(Reason::Device, "the device is neither text nor an integer".to_owned())
            }
            Fault::Column(index, found) => {
                let c = &self.schema.columns()[usize::from(*index)];
                Refusal::new(Reason::Column, format!("column {:?} is {}, found {found}", c.name, c.ty))
            }
        }
    }
}

/// Why an element is no row.
struct Refusal {
    reason: Reason,
    error: String,
}

impl Refusal {
    fn new(reason: Reason, error: String) -> Self {
        Self { reason, error }
    }
}

/// One go over a step's events.
struct Pass<'d> {
    decoder: &'d Decoder,
    builder: BatchBuilder,
    events: Vec<u32>,
    out: Decoded,
}

impl<'d> Pass<'d> {
    fn new(decoder: &'d Decoder) -> Self {
        let builder = BatchBuilder::new(decoder.schema.clone());
        Self { decoder, builder, events: Vec::new(), out: Decoded::default() }
    }

    fn event(&mut self, index: u32, event: &Event<'_>) -> Result<(), RecordError> {
        if event.delivery.cut {
            let max = crate::limits::EVENT_PAYLOAD_BYTES_MAX;
            let error = format!("the payload was larger than {max} bytes; this is its beginning");
            let (_, beginning) = crate::event::of_cut_payload(event.payload);
            self.bury(event, beginning, String::new(), Refusal::new(Reason::TooLarge, error));
            return Ok(());
        }
        let Ok(text) = std::str::from_utf8(event.payload) else {
            let error = "the payload is not UTF-8".to_owned();
            self.bury(event, event.payload, String::new(), Refusal::new(Reason::Utf8, error));
            return Ok(());
        };
        if text.trim_ascii_start().starts_with('[') {
            match json::elements(text) {
                Ok(elements) => {
                    for element in elements {
                        self.element(index, event, element.get(), 2)?;
                    }
                }
                Err(fault) => self.bury(event, event.payload, String::new(), self.decoder.refusal(&fault)),
            }
            return Ok(());
        }
        self.element(index, event, text, 1)
    }

    fn element(
        &mut self,
        index: u32,
        event: &Event<'_>,
        text: &str,
        depth: usize,
    ) -> Result<(), RecordError> {
        let decoder = self.decoder;
        let mut row = Row::default();
        let read = decoder.fields.read(text, depth, decoder.rules.device.reads_field(event), &mut row);
        self.out.undeclared += u64::from(row.undeclared);
        let device = decoder.rules.device.of(row.device.as_deref(), event);
        let known = device.as_deref().unwrap_or_default().to_owned();
        let refused = match (read, device) {
            (Err(fault), _) => decoder.refusal(&fault),
            (Ok(()), None) => Refusal::new(Reason::Device, decoder.rules.device.missing()),
            (Ok(()), Some(device)) if device.len() > DEVICE_BYTES_MAX => {
                let error = format!(
                    "the device's name is {} bytes long, the limit is {DEVICE_BYTES_MAX}",
                    device.len()
                );
                Refusal::new(Reason::Device, error)
            }
            (Ok(()), Some(device)) => match decoder.time(&row, event) {
                Ok(time) => return self.row(index, time, &device, &row),
                Err(refusal) => refusal,
            },
        };
        self.bury(event, text.as_bytes(), known, refused);
        Ok(())
    }

    fn row(&mut self, index: u32, time: EventTime, device: &str, row: &Row<'_>) -> Result<(), RecordError> {
        let values: Vec<Value<'_>> = row.cells.iter().map(Cell::value).collect();
        self.builder.push(time, device, &values)?;
        self.events.push(index);
        self.out.elements += 1;
        if self.builder.rows() == BATCH_ROWS_MAX {
            self.close_chunk()?;
        }
        Ok(())
    }

    fn bury(&mut self, event: &Event<'_>, payload: &[u8], device: String, refusal: Refusal) {
        self.out.elements += 1;
        self.out.dead_letters.push(DeadLetter {
            stream: self.decoder.stream.clone(),
            reason: refusal.reason,
            module: String::new(),
            error: refusal.error,
            source: event.source.to_owned(),
            topic: event.topic.to_owned(),
            payload: DeadLetter::payload_text(payload),
            device,
            received_ns: event.received_ns,
        });
    }

    fn close_chunk(&mut self) -> Result<(), RecordError> {
        if self.builder.rows() > 0 {
            let events = std::mem::take(&mut self.events);
            self.out.chunks.push(Chunk { batch: self.builder.finish()?, events });
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Decoded, RecordError> {
        self.close_chunk()?;
        Ok(self.out)
    }
}

/// The type that a JSON value was refused for, for messages.
fn describe(ty: ColumnType) -> &'static str {
    match ty {
        ColumnType::Bool => "a boolean",
        ColumnType::Int64 => "an integer",
        ColumnType::Float64 => "a number",
        ColumnType::String => "a text",
        ColumnType::Bytes => "bytes in base64",
    }
}

#[cfg(test)]
mod tests;
