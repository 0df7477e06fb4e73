//! Explicit little-endian bytes for what the embedded log stores in a frame's meta. Written once, read after every
//! restart, so every field is checked when it is read back.

use super::{ContentType, RecordHeaders};
use record::{Digest, GatewayId, Incarnation, Seq, StreamName};

/// Why stored bytes could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stored bytes are not what this version writes: {0}")]
pub struct CodecError(pub(super) String);

/// Appends fields to a buffer.
#[derive(Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn u8(&mut self, v: u8) {
        self.0.push(v);
    }
    pub(super) fn u32(&mut self, v: u32) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }
    pub(super) fn u64(&mut self, v: u64) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }
    pub(super) fn i64(&mut self, v: i64) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }
    pub(super) fn digest(&mut self, d: &Digest) {
        self.0.extend_from_slice(&d.0);
    }
    /// Length-prefixed bytes.
    pub(super) fn bytes(&mut self, b: &[u8]) {
        let len = u32::try_from(b.len()).expect("every field that is stored has a limit far below 4 GiB");
        self.u32(len);
        self.0.extend_from_slice(b);
    }
    pub(super) fn text(&mut self, s: &str) {
        self.bytes(s.as_bytes());
    }
}

/// Takes fields off a buffer.
#[derive(Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
    pub(super) fn take(&mut self, n: usize) -> Result<&'a [u8], CodecError> {
        if n > self.0.len() {
            return Err(CodecError(format!("{n} bytes wanted, {} left", self.0.len())));
        }
        let (head, rest) = self.0.split_at(n);
        self.0 = rest;
        Ok(head)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }
    pub(super) fn u8(&mut self) -> Result<u8, CodecError> {
        Ok(self.array::<1>()?[0])
    }
    pub(super) fn u32(&mut self) -> Result<u32, CodecError> {
        self.array().map(u32::from_le_bytes)
    }
    pub(super) fn u64(&mut self) -> Result<u64, CodecError> {
        self.array().map(u64::from_le_bytes)
    }
    pub(super) fn i64(&mut self) -> Result<i64, CodecError> {
        self.array().map(i64::from_le_bytes)
    }
    pub(super) fn digest(&mut self) -> Result<Digest, CodecError> {
        self.array().map(Digest)
    }
    pub(super) fn bytes(&mut self) -> Result<&'a [u8], CodecError> {
        let n = self.u32()? as usize;
        self.take(n)
    }
    pub(super) fn text(&mut self) -> Result<&'a str, CodecError> {
        std::str::from_utf8(self.bytes()?).map_err(|e| CodecError(e.to_string()))
    }
    pub(super) fn gateway(&mut self) -> Result<GatewayId, CodecError> {
        GatewayId::new(self.text()?).map_err(|e| CodecError(e.to_string()))
    }
    pub(super) fn stream(&mut self) -> Result<StreamName, CodecError> {
        StreamName::new(self.text()?).map_err(|e| CodecError(e.to_string()))
    }
    /// Refuses bytes left over.
    pub(super) fn end(self) -> Result<(), CodecError> {
        if self.0.is_empty() { Ok(()) } else { Err(CodecError(format!("{} bytes too many", self.0.len()))) }
    }
}

/// Writes the headers of a record.
pub(super) fn put_headers(w: &mut Writer, h: &RecordHeaders) {
    w.u8(match h.content_type {
        ContentType::ArrowStream => 1,
    });
    w.text(h.stream.as_str());
    w.u64(h.schema);
    w.text(h.gateway.as_str());
    w.u64(h.incarnation.0);
    w.u64(h.first_seq.0);
    w.u64(h.last_seq.0);
    w.u32(h.rows);
    w.digest(&h.prev_hash);
    w.digest(&h.hash);
    w.i64(h.produced_at_ns);
}

/// Reads the headers of a record.
pub(super) fn take_headers(r: &mut Reader<'_>) -> Result<RecordHeaders, CodecError> {
    let content_type = match r.u8()? {
        1 => ContentType::ArrowStream,
        n => return Err(CodecError(format!("content type {n}"))),
    };
    Ok(RecordHeaders {
        content_type,
        stream: r.stream()?,
        schema: r.u64()?,
        gateway: r.gateway()?,
        incarnation: Incarnation(r.u64()?),
        first_seq: Seq(r.u64()?),
        last_seq: Seq(r.u64()?),
        rows: r.u32()?,
        prev_hash: r.digest()?,
        hash: r.digest()?,
        produced_at_ns: r.i64()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers() -> RecordHeaders {
        RecordHeaders {
            content_type: ContentType::ArrowStream,
            stream: StreamName::new("machine-1m").expect("valid"),
            schema: 77,
            gateway: GatewayId::new("plant-7").expect("valid"),
            incarnation: Incarnation(5),
            first_seq: Seq(10),
            last_seq: Seq(12),
            rows: 3,
            prev_hash: Digest::of(b"a"),
            hash: Digest::of(b"b"),
            produced_at_ns: -1,
        }
    }

    #[test]
    fn headers_round_trip_and_every_cut_is_noticed() {
        let mut w = Writer::default();
        put_headers(&mut w, &headers());
        let mut r = Reader::new(&w.0);
        assert_eq!(take_headers(&mut r), Ok(headers()));
        assert_eq!(r.end(), Ok(()));
        for cut in 0..w.0.len() {
            assert!(take_headers(&mut Reader::new(&w.0[..cut])).is_err(), "cut at {cut}");
        }
    }
}
