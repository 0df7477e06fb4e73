//! The headers of a record in the data topic: text, each under its own name, so that any consumer can read them.
//!
//! Written once per block and never trusted when read: whoever may write to the topic may write anything. What is read
//! takes no more memory than the record itself, and what is said of it is short, however long its parts are.

use super::limits::QUOTED_BYTES_MAX;
use crate::log::{ContentType, Offset, RecordHeaders, StoredRecord};
use bytes::Bytes;
use rdkafka::message::{Header, OwnedHeaders};
use record::{Digest, GatewayId, Incarnation, Seq, StreamName, chain_hash, limits::BLOCK_BYTES_MAX};
use std::{collections::BTreeMap, str::FromStr};

/// The version of this list of headers.
const VERSION: &str = "1";

/// Why a record is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Poison {
    /// One of [`Poison::KINDS`].
    pub kind: &'static str,
    /// What exactly; at most a few hundred bytes.
    pub reason: String,
}

impl Poison {
    /// Every kind.
    pub const KINDS: [&'static str; 7] =
        ["no-headers", "no-value", "headers", "seqs", "too-large", "hash", "block"];

    fn new(kind: &'static str, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into() }
    }

    /// One that the sink found when it opened the block.
    pub(super) fn block(reason: &str) -> Self {
        Self::new("block", short(reason, crate::limits::REASON_BYTES_MAX))
    }
}

/// The headers of a block.
pub fn encode(h: &RecordHeaders) -> OwnedHeaders {
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

/// What a record says that it is when it is there only to be passed over.
const FILLER: (&str, &str) = ("content-type", "application/vnd.tidegate.filler");

/// The headers of a record that holds nothing: it carries the end of a transaction to a partition.
pub(super) fn filler() -> OwnedHeaders {
    let (key, value) = FILLER;
    OwnedHeaders::new_with_capacity(1).insert(Header { key, value: Some(value) })
}

/// Whether a record holds nothing, by its headers, and says so.
pub fn is_filler<'a>(mut headers: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>) -> bool {
    let (key, value) = FILLER;
    headers.next() == Some((key, Some(value.as_bytes()))) && headers.next().is_none()
}

/// Headers and block of a record, checked as far as possible without opening the block; else why they are none. A header
/// that stands there twice counts as the last one says.
pub fn decode<'a>(
    offset: Offset,
    headers: Option<impl Iterator<Item = (&'a str, Option<&'a [u8]>)>>,
    payload: Option<&[u8]>,
) -> Result<StoredRecord, Poison> {
    let headers = headers.ok_or_else(|| Poison::new("no-headers", "it has no headers"))?;
    let payload = payload.ok_or_else(|| Poison::new("no-value", "it has no value"))?;
    let headers = Fields::of(headers)?.headers()?;
    let h = &headers;
    let rows = h.last_seq.0.checked_sub(h.first_seq.0).and_then(|n| n.checked_add(1));
    if h.first_seq.0 == 0 || rows != Some(u64::from(h.rows)) {
        let reason = format!("{} rows are not seqs {} to {}", h.rows, h.first_seq, h.last_seq);
        return Err(Poison::new("seqs", reason));
    }
    if payload.len() > BLOCK_BYTES_MAX {
        let reason = format!("a block of {} bytes is larger than any gateway's", payload.len());
        return Err(Poison::new("too-large", reason));
    }
    let hash = chain_hash(&h.prev_hash, &h.stream, h.incarnation, h.first_seq, h.last_seq, h.schema, payload);
    if hash != h.hash {
        return Err(Poison::new("hash", "its hash is not that of its bytes"));
    }
    Ok(StoredRecord { offset, headers, bytes: Bytes::copy_from_slice(payload) })
}

/// Headers by name.
struct Fields<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Fields<'a> {
    fn of(headers: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>) -> Result<Self, Poison> {
        let mut fields = BTreeMap::new();
        for (name, value) in headers {
            let text = value.and_then(|v| std::str::from_utf8(v).ok());
            let bad =
                || Poison::new("headers", format!("header {:?} is not text", short(name, QUOTED_BYTES_MAX)));
            fields.insert(name, text.ok_or_else(bad)?);
        }
        Ok(Self(fields))
    }

    fn get(&self, name: &str) -> Result<&'a str, Poison> {
        let missing = || Poison::new("headers", format!("header {name} is missing"));
        self.0.get(name).copied().ok_or_else(missing)
    }

    fn read<T>(&self, name: &str, read: impl FnOnce(&str) -> Option<T>) -> Result<T, Poison> {
        let text = self.get(name)?;
        let bad = || Poison::new("headers", format!("header {name} is {:?}", short(text, QUOTED_BYTES_MAX)));
        read(text).ok_or_else(bad)
    }

    fn number<T: FromStr>(&self, name: &str) -> Result<T, Poison> {
        self.read(name, |text| text.parse().ok())
    }

    fn headers(&self) -> Result<RecordHeaders, Poison> {
        self.read("tidegate-version", |v| (v == VERSION).then_some(()))?;
        let content_type = ContentType::ArrowStream;
        self.read("content-type", |v| (v == content_type.media_type()).then_some(()))?;
        Ok(RecordHeaders {
            content_type,
            stream: self.read("stream", |v| StreamName::from_str(v).ok())?,
            schema: self.read("schema", |v| u64::from_str_radix(v, 16).ok())?,
            gateway: self.read("gateway", |v| GatewayId::from_str(v).ok())?,
            incarnation: Incarnation(self.number("incarnation")?),
            first_seq: Seq(self.number("first-seq")?),
            last_seq: Seq(self.number("last-seq")?),
            rows: self.number("rows")?,
            prev_hash: self.read("prev-hash", |v| Digest::from_hex(v).ok())?,
            hash: self.read("hash", |v| Digest::from_hex(v).ok())?,
            produced_at_ns: self.number("produced-at")?,
        })
    }
}

/// The beginning of a text, at most so many bytes.
pub(super) fn short(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::message::Headers as _;
    use record::clock::{Random as _, SeededRandom};

    type Pairs = Vec<(String, Option<Vec<u8>>)>;

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

    fn pairs(headers: &RecordHeaders) -> Pairs {
        let all = encode(headers);
        all.iter().map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec))).collect()
    }

    fn read(pairs: &Pairs, payload: Option<&[u8]>) -> Result<StoredRecord, Poison> {
        decode(Offset(4), Some(pairs.iter().map(|(k, v)| (k.as_str(), v.as_deref()))), payload)
    }

    #[test]
    fn headers_round_trip_and_anything_else_is_told() {
        let (headers, bytes) = block();
        let all = pairs(&headers);
        let stored = read(&all, Some(&bytes)).expect("fine");
        assert_eq!((stored.offset, &stored.headers, &stored.bytes[..]), (Offset(4), &headers, &bytes[..]));
        let none = None::<std::iter::Empty<(&str, Option<&[u8]>)>>;
        assert_eq!(decode(Offset(4), none, Some(&bytes)).expect_err("none").kind, "no-headers");
        assert_eq!(read(&all, None).expect_err("none").kind, "no-value");
        assert_eq!(read(&all, Some(b"another")).expect_err("another").kind, "hash");
        assert_eq!(read(&all, Some(&[7; BLOCK_BYTES_MAX + 1])).expect_err("long").kind, "too-large");
        for left_out in 0..all.len() {
            let mut rest = all.clone();
            rest.remove(left_out);
            let error = read(&rest, Some(&bytes)).expect_err("one is missing");
            assert!(error.kind == "headers" && error.reason.contains("is missing"), "{error:?}");
        }
        for (name, value, kind) in [
            ("rows", "900000000", "seqs"),
            ("first-seq", "0", "seqs"),
            ("stream", "a b", "headers"),
            ("hash", "zz", "headers"),
            ("tidegate-version", "2", "headers"),
            ("content-type", "text/plain", "headers"),
        ] {
            let mut other = all.clone();
            for (key, old) in &mut other {
                if key == name {
                    *old = Some(value.as_bytes().to_vec());
                }
            }
            assert_eq!(read(&other, Some(&bytes)).expect_err(name).kind, kind, "{name} = {value}");
        }
    }

    #[test]
    fn a_filler_is_known_by_all_of_its_headers() {
        let of = |headers: &OwnedHeaders| {
            is_filler(headers.iter().map(|h| (h.key, h.value))).then(|| headers.count())
        };
        assert_eq!(of(&filler()), Some(1));
        assert_eq!(of(&filler().insert(Header { key: "more", value: Some("x") })), None);
        assert_eq!(of(&encode(&block().0)), None);
        assert_eq!(of(&OwnedHeaders::new()), None);
    }

    /// The short form of the fuzz target `record_headers`.
    #[test]
    fn foreign_headers_never_panic_and_what_is_said_of_them_is_short() {
        let (headers, bytes) = block();
        for seed in 0..20_000 {
            let random = SeededRandom::new(seed);
            let below = |n: usize| (random.next_u64() as usize) % n;
            let mut all = pairs(&headers);
            for _ in 0..1 + below(3) {
                let at = below(all.len());
                let (name, value) = &mut all[at];
                match below(5) {
                    0 => *value = None,
                    1 => *value = Some((0..below(40)).map(|_| random.next_u64() as u8).collect()),
                    2 => *value = Some(vec![b'9'; below(1 << 16)]),
                    3 => *name = "x".repeat(below(2_000)),
                    _ => {
                        let value = value.get_or_insert_default();
                        if !value.is_empty() {
                            let at = below(value.len());
                            value[at] = random.next_u64() as u8;
                        }
                    }
                }
            }
            match read(&all, Some(&bytes)) {
                // Then what was changed makes no difference: the hash covers what matters.
                Ok(stored) => assert_eq!(stored.bytes, bytes, "seed {seed}"),
                Err(poison) => {
                    assert!(Poison::KINDS.contains(&poison.kind), "seed {seed}");
                    assert!(
                        poison.reason.len() <= crate::limits::REASON_BYTES_MAX,
                        "seed {seed}: {poison:?}"
                    );
                }
            }
        }
    }
}
