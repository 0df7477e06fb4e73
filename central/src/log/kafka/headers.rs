//! The headers of a record in the data topic: text, each under its own name, so that any consumer can read them.
//!
//! Written once per block and never trusted when read: whoever may write to the topic may write anything.

use crate::log::{ContentType, RecordHeaders, StoredRecord};
use bytes::Bytes;
use rdkafka::message::{Header, Headers, OwnedHeaders};
use record::{Digest, GatewayId, Incarnation, Seq, StreamName, chain_hash, limits::BLOCK_BYTES_MAX};
use std::{collections::BTreeMap, str::FromStr};

/// The version of this list of headers.
const VERSION: &str = "1";

/// The headers of a block.
pub(super) fn encode(h: &RecordHeaders) -> OwnedHeaders {
    let fields = [
        ("tidegate-version", VERSION.to_owned()),
        ("content-type", h.content_type.media_type().to_owned()),
        ("stream", h.stream.as_str().to_owned()),
        ("schema", format!("{:016x}", h.schema)),
        ("gateway", h.gateway.as_str().to_owned()),
        ("incarnation", h.incarnation.0.to_string()),
        ("first-seq", h.first_seq.0.to_string()),
        ("last-seq", h.last_seq.0.to_string()),
        ("rows", h.rows.to_string()),
        ("prev-hash", h.prev_hash.to_hex()),
        ("hash", h.hash.to_hex()),
        ("produced-at", h.produced_at_ns.to_string()),
    ];
    let empty = OwnedHeaders::new_with_capacity(fields.len());
    fields.iter().fold(empty, |all, (key, value)| all.insert(Header { key, value: Some(value) }))
}

/// Headers and block of a record, checked as far as possible without opening the block; else why they are none.
pub(super) fn decode(
    offset: crate::log::Offset,
    headers: Option<&impl Headers>,
    payload: Option<&[u8]>,
) -> Result<StoredRecord, String> {
    let headers = headers.ok_or("it has no headers")?;
    let payload = payload.ok_or("it has no value")?;
    let mut fields = BTreeMap::new();
    for header in headers.iter() {
        let value = header.value.and_then(|v| std::str::from_utf8(v).ok());
        fields.insert(header.key, value.ok_or_else(|| format!("header {:?} is not text", header.key))?);
    }
    let field = |name: &str| fields.get(name).copied().ok_or_else(|| format!("header {name} is missing"));
    if field("tidegate-version")? != VERSION {
        return Err(format!("its headers are of version {:?}", field("tidegate-version")?));
    }
    if field("content-type")? != ContentType::ArrowStream.media_type() {
        return Err(format!("its content type is {:?}", field("content-type")?));
    }
    let bad = |name: &str| format!("header {name} is {:?}", fields.get(name).unwrap_or(&""));
    let headers = RecordHeaders {
        content_type: ContentType::ArrowStream,
        stream: StreamName::from_str(field("stream")?).map_err(|_| bad("stream"))?,
        schema: u64::from_str_radix(field("schema")?, 16).map_err(|_| bad("schema"))?,
        gateway: GatewayId::from_str(field("gateway")?).map_err(|_| bad("gateway"))?,
        incarnation: Incarnation(number(field("incarnation")?).ok_or_else(|| bad("incarnation"))?),
        first_seq: Seq(number(field("first-seq")?).ok_or_else(|| bad("first-seq"))?),
        last_seq: Seq(number(field("last-seq")?).ok_or_else(|| bad("last-seq"))?),
        rows: number(field("rows")?).ok_or_else(|| bad("rows"))?,
        prev_hash: Digest::from_hex(field("prev-hash")?).map_err(|_| bad("prev-hash"))?,
        hash: Digest::from_hex(field("hash")?).map_err(|_| bad("hash"))?,
        produced_at_ns: number(field("produced-at")?).ok_or_else(|| bad("produced-at"))?,
    };
    let h = &headers;
    let rows = h.last_seq.0.checked_sub(h.first_seq.0).and_then(|n| n.checked_add(1));
    if h.first_seq.0 == 0 || rows != Some(u64::from(h.rows)) {
        return Err(format!("{} rows are not seqs {} to {}", h.rows, h.first_seq, h.last_seq));
    }
    if payload.len() > BLOCK_BYTES_MAX {
        return Err(format!("a block of {} bytes is larger than any gateway's", payload.len()));
    }
    let hash = chain_hash(&h.prev_hash, &h.stream, h.incarnation, h.first_seq, h.last_seq, h.schema, payload);
    if hash != h.hash {
        return Err("its hash is not that of its bytes".to_owned());
    }
    Ok(StoredRecord { offset, headers, bytes: Bytes::copy_from_slice(payload) })
}

fn number<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Offset;

    fn block() -> (RecordHeaders, Vec<u8>) {
        let bytes = b"a block".to_vec();
        let mut headers = RecordHeaders {
            content_type: ContentType::ArrowStream,
            stream: StreamName::new("machine").expect("valid"),
            schema: 0xabc,
            gateway: GatewayId::new("plant-7").expect("valid"),
            incarnation: Incarnation(u64::MAX),
            first_seq: Seq(10),
            last_seq: Seq(12),
            rows: 3,
            prev_hash: Digest::of(b"before"),
            hash: Digest::default(),
            produced_at_ns: -5,
        };
        let h = &headers;
        headers.hash =
            chain_hash(&h.prev_hash, &h.stream, h.incarnation, h.first_seq, h.last_seq, h.schema, &bytes);
        (headers, bytes)
    }

    #[test]
    fn headers_round_trip_and_anything_else_is_told() {
        let (headers, bytes) = block();
        let all = encode(&headers);
        let read = decode(Offset(4), Some(&all), Some(&bytes)).expect("fine");
        assert_eq!((read.offset, &read.headers, &read.bytes[..]), (Offset(4), &headers, &bytes[..]));
        assert!(decode(Offset(4), None::<&OwnedHeaders>, Some(&bytes)).is_err());
        assert!(decode(Offset(4), Some(&all), None).is_err());
        assert!(decode(Offset(4), Some(&all), Some(b"another")).unwrap_err().contains("hash"));
        for left_out in 0..all.count() {
            let rest = all.iter().enumerate().filter(|(i, _)| *i != left_out);
            let rest = rest.fold(OwnedHeaders::new(), |to, (_, h)| to.insert(h));
            let error = decode(Offset(4), Some(&rest), Some(&bytes)).expect_err("one is missing");
            assert!(error.contains("is missing"), "{error}");
        }
        for (name, value) in [("rows", "900000000"), ("first-seq", "0"), ("stream", "a b"), ("hash", "zz")] {
            let other = all.iter().fold(OwnedHeaders::new(), |to, h| {
                let value = if h.key == name { Some(value.as_bytes()) } else { h.value };
                to.insert(Header { key: h.key, value })
            });
            assert!(decode(Offset(4), Some(&other), Some(&bytes)).is_err(), "{name} = {value}");
        }
    }
}
