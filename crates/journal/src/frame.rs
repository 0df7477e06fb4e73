//! One frame on disk.
//!
//! ```text
//! offset  bytes  all little-endian
//!      0      4  magic "TGJ1"
//!      4      1  version, 1
//!      5      1  kind; 255 is a checkpoint
//!      6      2  zero
//!      8      8  seq
//!     16      8  durable: every seq up to this one was synced when this frame was appended
//!     24      8  salt of the segment
//!     32      4  meta length
//!     36      4  payload length
//!     40      4  crc32 of the payload
//!     44      4  crc32 of bytes 0..44 and the meta
//!     48         meta, payload, zeros up to a multiple of 8
//! ```
//!
//! `durable` tells a torn tail from damage: a bad frame at or below it was whole once and is quarantined, a bad
//! frame above it may never have been whole, so the log is cut there. `salt` keeps bytes that merely look like
//! a frame, inside a payload somebody sent, from being taken for one when the place of the next frame is searched.

use crate::limits::{CHECKPOINT_BYTES_MAX, FRAME_ALIGN, META_BYTES_MAX, PAYLOAD_BYTES_MAX};
use std::fmt;

/// The kind of the frames that the log makes itself at the start of each segment.
pub const CHECKPOINT: u8 = 255;
pub(crate) const HEADER_BYTES: usize = 48;
pub(crate) const MAGIC: [u8; 4] = *b"TGJ1";
const VERSION: u8 = 1;
const CRC_AT: usize = 44;

/// A frame's place in its log: dense, from 1, the only position that anybody stores. 0 is "before the first".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FrameSeq(pub u64);

impl FrameSeq {
    /// The one after this.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for FrameSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A frame as read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frame {
    /// Its place.
    pub seq: FrameSeq,
    /// What the writer called it; [`CHECKPOINT`] for the log's own.
    pub kind: u8,
    /// Small and always read.
    pub meta: Vec<u8>,
    /// Read only when asked for.
    pub payload: Vec<u8>,
}

/// A frame without its payload.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FrameHead {
    /// Its place.
    pub seq: FrameSeq,
    /// What the writer called it.
    pub kind: u8,
    /// Small and always read.
    pub meta: Vec<u8>,
    /// Bytes that were passed over.
    pub payload_bytes: u32,
}

/// Frames that should be there and are not readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The first one missing.
    pub first: FrameSeq,
    /// The last one missing.
    pub last: FrameSeq,
    /// Why.
    pub cause: GapCause,
}

impl Gap {
    /// How many frames are missing.
    pub fn frames(&self) -> u64 {
        self.last.0 - self.first.0 + 1
    }
}

/// Why frames are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapCause {
    /// Their bytes are there and wrong.
    Damaged,
    /// Their segment is shorter than it was, or was never written because the place was skipped.
    Missing,
    /// They were deleted by [`crate::LogHandle::trim`] before this reader came to them.
    Trimmed,
}

/// What stands before meta and payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub kind: u8,
    pub seq: u64,
    pub durable: u64,
    pub salt: u64,
    pub meta_bytes: u32,
    pub payload_bytes: u32,
    pub payload_crc: u32,
}

impl Header {
    /// Bytes on disk, with padding.
    pub(crate) fn frame_bytes(&self) -> u64 {
        frame_bytes(self.meta_bytes as usize, self.payload_bytes as usize)
    }

    /// Where the payload starts, counted from the header.
    pub(crate) fn payload_at(&self) -> u64 {
        (HEADER_BYTES + self.meta_bytes as usize) as u64
    }

    pub(crate) fn encode(&self, meta: &[u8]) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = VERSION;
        out[5] = self.kind;
        out[8..16].copy_from_slice(&self.seq.to_le_bytes());
        out[16..24].copy_from_slice(&self.durable.to_le_bytes());
        out[24..32].copy_from_slice(&self.salt.to_le_bytes());
        out[32..36].copy_from_slice(&self.meta_bytes.to_le_bytes());
        out[36..40].copy_from_slice(&self.payload_bytes.to_le_bytes());
        out[40..44].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = head_crc(&out, meta);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The header, if these bytes can be one; the checksum is for [`Header::proves`], once the meta is read.
    pub(crate) fn parse(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        if bytes[..4] != MAGIC || bytes[4] != VERSION || bytes[6..8] != [0, 0] {
            return None;
        }
        let header = Self {
            kind: bytes[5],
            seq: u64_at(bytes, 8),
            durable: u64_at(bytes, 16),
            salt: u64_at(bytes, 24),
            meta_bytes: u32_at(bytes, 32),
            payload_bytes: u32_at(bytes, 36),
            payload_crc: u32_at(bytes, 40),
        };
        let payload_max = if header.kind == CHECKPOINT { CHECKPOINT_BYTES_MAX } else { PAYLOAD_BYTES_MAX };
        let plausible = header.seq > 0
            && header.durable < header.seq
            && header.meta_bytes as usize <= META_BYTES_MAX
            && header.payload_bytes as usize <= payload_max;
        plausible.then_some(header)
    }

    /// Whether header and meta are what was written.
    pub(crate) fn proves(bytes: &[u8; HEADER_BYTES], meta: &[u8]) -> bool {
        head_crc(bytes, meta) == u32_at(bytes, CRC_AT)
    }
}

pub(crate) fn frame_bytes(meta: usize, payload: usize) -> u64 {
    ((HEADER_BYTES + meta + payload) as u64).next_multiple_of(FRAME_ALIGN)
}

pub(crate) fn payload_crc(parts: &[&[u8]]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    for part in parts {
        crc.update(part);
    }
    crc.finalize()
}

fn head_crc(bytes: &[u8; HEADER_BYTES], meta: &[u8]) -> u32 {
    payload_crc(&[&bytes[..CRC_AT], meta])
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(out)
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(kind: u8, seq: u64, salt: u64, meta: &[u8], payload: &[u8]) -> Header {
        Header {
            kind,
            seq,
            durable: seq - 1,
            salt,
            meta_bytes: meta.len() as u32,
            payload_bytes: payload.len() as u32,
            payload_crc: payload_crc(&[payload]),
        }
    }

    proptest! {
        #[test]
        fn decodes_what_was_encoded(kind: u8, seq in 1..u64::MAX, salt: u64,
                meta in proptest::collection::vec(any::<u8>(), 0..200),
                payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let header = header(kind, seq, salt, &meta, &payload);
            let bytes = header.encode(&meta);
            prop_assert_eq!(Header::parse(&bytes), Some(header));
            prop_assert!(Header::proves(&bytes, &meta));
            prop_assert_eq!(header.frame_bytes() % FRAME_ALIGN, 0);
        }

        #[test]
        fn one_changed_byte_is_seen(seq in 1..u64::MAX, at in 0usize..100, flip in 1u8..,
                meta in proptest::collection::vec(any::<u8>(), 52..53)) {
            let mut all = header(3, seq, 9, &meta, b"x").encode(&meta).to_vec();
            all.extend_from_slice(&meta);
            all[at] ^= flip;
            let (head, meta) = all.split_at(HEADER_BYTES);
            let head: &[u8; HEADER_BYTES] = head.try_into().unwrap();
            prop_assert!(Header::parse(head).is_none() || !Header::proves(head, meta));
        }

        #[test]
        fn any_bytes_are_refused_without_a_panic(bytes in proptest::array::uniform32(any::<u8>())) {
            let mut head = [0; HEADER_BYTES];
            head[..32].copy_from_slice(&bytes);
            head[..4].copy_from_slice(&MAGIC);
            let _ = Header::parse(&head);
        }
    }
}
