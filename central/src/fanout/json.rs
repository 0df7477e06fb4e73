//! Rows of a block as JSON objects, one a row.
//!
//! `time` (RFC 3339 in UTC, always nine digits of the second), `device`, the declared columns in their order, `gateway`,
//! `seq`, and `incarnation` (16 hexadecimal digits as text: not every reader of JSON keeps 64 bits of a number). The last
//! three together name the row: no two rows have the same. A column that is null is left out. Bytes are base64; numbers
//! that JSON has not are the texts `NaN`, `Infinity` and `-Infinity`. Where a stream declares a column `incarnation`, ours
//! has an underscore before it, or as many as it takes.

use record::{
    Batch, ColumnType, GatewayId, Incarnation, Seq,
    arrow::array::{
        Array as _, ArrayRef,
        cast::AsArray as _,
        types::{Float64Type, Int64Type},
    },
};
use std::{fmt::Write as _, io::Write as _};

/// Writes rows of one block.
pub struct Rows<'a> {
    batch: &'a Batch,
    /// `,"name":` of each declared column, with the column.
    columns: Vec<(Vec<u8>, ColumnType, &'a ArrayRef)>,
    first: Seq,
    /// Everything behind the seq.
    end: Vec<u8>,
    gateway: Vec<u8>,
}

impl<'a> Rows<'a> {
    /// The rows of a block of this gateway, the first of which has this seq.
    pub fn new(batch: &'a Batch, gateway: &GatewayId, incarnation: Incarnation, first: Seq) -> Self {
        let declared = batch.schema().columns();
        let columns = declared.iter().enumerate();
        let columns = columns.map(|(i, c)| (member(&c.name), c.ty, batch.column_at(i))).collect();
        let mut name = "incarnation".to_owned();
        while declared.iter().any(|c| c.name == name) {
            name.insert(0, '_');
        }
        let mut end = member(&name);
        text(&mut end, &incarnation.to_string());
        end.push(b'}');
        let mut before = member("gateway");
        text(&mut before, gateway.as_str());
        before.extend(member("seq"));
        Self { batch, columns, first, end, gateway: before }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.batch.rows()
    }

    /// The device of a row.
    pub fn device(&self, row: usize) -> &str {
        self.batch.device(row)
    }

    /// A row as JSON.
    pub fn value(&self, row: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(128 + 24 * self.columns.len());
        out.extend_from_slice(b"{\"time\":\"");
        time(&mut out, self.batch.times()[row]);
        out.extend_from_slice(b"\",\"device\":");
        text(&mut out, self.batch.device(row));
        for (name, ty, column) in &self.columns {
            if column.is_null(row) {
                continue;
            }
            out.extend_from_slice(name);
            cell(&mut out, *ty, column, row);
        }
        out.extend_from_slice(&self.gateway);
        number(&mut out, self.first.0 + row as u64);
        out.extend_from_slice(&self.end);
        out
    }
}

/// `,"name":`
fn member(name: &str) -> Vec<u8> {
    let mut out = vec![b','];
    text(&mut out, name);
    out.push(b':');
    out
}

fn cell(out: &mut Vec<u8>, ty: ColumnType, column: &ArrayRef, row: usize) {
    match ty {
        ColumnType::Bool => {
            out.extend_from_slice(if column.as_boolean().value(row) { b"true" } else { b"false" });
        }
        ColumnType::Int64 => number(out, column.as_primitive::<Int64Type>().value(row)),
        ColumnType::Float64 => float(out, column.as_primitive::<Float64Type>().value(row)),
        ColumnType::String => text(out, column.as_string::<i32>().value(row)),
        ColumnType::Bytes => {
            out.push(b'"');
            base64(out, column.as_binary::<i32>().value(row));
            out.push(b'"');
        }
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    json(out, &text);
}

fn json(out: &mut Vec<u8>, value: &impl serde::Serialize) {
    // Neither memory nor what is written here can fail: texts, integers, finite floats.
    let _ = serde_json::to_writer(out, value);
}

fn number(out: &mut Vec<u8>, value: impl std::fmt::Display) {
    // Memory takes every byte.
    let _ = write!(out, "{value}");
}

fn float(out: &mut Vec<u8>, value: f64) {
    match value {
        v if v.is_finite() => json(out, &v),
        v if v.is_nan() => text(out, "NaN"),
        v => text(out, if v > 0.0 { "Infinity" } else { "-Infinity" }),
    }
}

fn time(out: &mut Vec<u8>, ns: i64) {
    let mut text = String::with_capacity(30);
    match time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(ns)) {
        Ok(t) => {
            let (date, clock) = (t.date(), t.time());
            let (month, day) = (u8::from(date.month()), date.day());
            let (hour, minute, second) = clock.as_hms();
            // Memory takes every byte.
            let _ = write!(
                text,
                "{:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z",
                date.year(),
                clock.nanosecond()
            );
        }
        // An i64 of nanoseconds is always within the years that are told here.
        Err(_) => text.push_str(&ns.to_string()),
    }
    out.extend_from_slice(text.as_bytes());
}

/// RFC 4648, with padding.
fn base64(out: &mut Vec<u8>, bytes: &[u8]) {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for chunk in bytes.chunks(3) {
        let at = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for i in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= chunk.len() { letter } else { b'=' });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::{BatchBuilder, Column, EventTime, StreamSchema, Value};
    use std::sync::Arc;

    fn one(columns: &[(&str, ColumnType)], time: i128, device: &str, values: &[Value<'_>]) -> String {
        let columns = columns.iter().map(|(name, ty)| Column { name: (*name).into(), ty: *ty }).collect();
        let schema = StreamSchema::new(columns).expect("valid");
        let mut builder = BatchBuilder::new(Arc::new(schema));
        builder.push(EventTime::from_ns(time).expect("in range"), device, values).expect("fits");
        let batch = builder.finish().expect("fits");
        let gateway = GatewayId::new("plant-1").expect("valid");
        let rows = Rows::new(&batch, &gateway, Incarnation(0xab), Seq(u64::MAX - 1));
        assert_eq!((rows.count(), rows.device(0)), (1, device));
        String::from_utf8(rows.value(0)).expect("UTF-8")
    }

    #[test]
    fn a_row_is_an_object() {
        let columns = [
            ("on", ColumnType::Bool),
            ("count", ColumnType::Int64),
            ("value", ColumnType::Float64),
            ("note", ColumnType::String),
            ("raw", ColumnType::Bytes),
            ("none", ColumnType::Float64),
        ];
        let values = [
            Value::Bool(true),
            Value::Int(i64::MIN),
            Value::Float(0.1),
            Value::Str("a \"b\"\n\u{1}ü"),
            Value::Bytes(&[0, 255, 16, 7]),
            Value::Null,
        ];
        let row = one(&columns, 1_735_689_600_000_000_007, "machine \"7\"", &values);
        assert_eq!(
            row,
            "{\"time\":\"2025-01-01T00:00:00.000000007Z\",\"device\":\"machine \\\"7\\\"\",\"on\":true,\
             \"count\":-9223372036854775808,\"value\":0.1,\"note\":\"a \\\"b\\\"\\n\\u0001ü\",\"raw\":\"AP8QBw==\",\
             \"gateway\":\"plant-1\",\"seq\":18446744073709551614,\"incarnation\":\"00000000000000ab\"}"
        );
        serde_json::from_str::<serde_json::Value>(&row).expect("JSON");
    }

    #[test]
    fn odd_values_have_their_place() {
        let float =
            |v| one(&[("v", ColumnType::Float64)], -2_208_988_800_000_000_000, "d", &[Value::Float(v)]);
        assert!(
            float(f64::NAN)
                .starts_with("{\"time\":\"1900-01-01T00:00:00.000000000Z\",\"device\":\"d\",\"v\":\"NaN\"")
        );
        assert!(float(f64::NEG_INFINITY).contains("\"v\":\"-Infinity\""));
        assert!(float(-0.0).contains("\"v\":-0.0"));
        let own = one(&[("incarnation", ColumnType::Int64)], 0, "d", &[Value::Int(5)]);
        assert!(
            own.contains("\"incarnation\":5,") && own.ends_with("\"_incarnation\":\"00000000000000ab\"}"),
            "{own}"
        );
    }

    #[test]
    fn base64_is_that_of_the_standard() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            let mut out = Vec::new();
            base64(&mut out, bytes.as_bytes());
            assert_eq!(out, text.as_bytes());
        }
    }
}
