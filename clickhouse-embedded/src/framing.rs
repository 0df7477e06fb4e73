//! Bodies sent with `decompress=1`: ClickHouse's own framing, a row of blocks.
//!
//! A block is a 16-byte CityHash (version 1.0.2, low half first) of what follows, a method byte (0x82 LZ4, 0x90 ZSTD, 0x02
//! none), the compressed length including these nine bytes (u32, little-endian), the length of the content (u32), the
//! content.

use crate::{
    error::{Failure, code},
    limits::FRAME_BYTES_MAX,
};

const HASH: usize = 16;
const HEAD: usize = 9;

/// Takes a framed body in pieces and gives its content block by block; a body that is not framed passes through.
#[derive(Debug)]
pub(crate) struct Unframe {
    framed: bool,
    pending: Vec<u8>,
}

impl Unframe {
    pub(crate) fn new(framed: bool) -> Self {
        Self { framed, pending: Vec::new() }
    }

    /// Takes the next piece; calls `out` for every block that is complete.
    pub(crate) fn push(
        &mut self,
        piece: &[u8],
        mut out: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if !self.framed {
            return out(piece);
        }
        self.pending.extend_from_slice(piece);
        let mut at = 0;
        while let Some((content, used)) = decode_block(&self.pending[at..])? {
            out(&content)?;
            at += used;
        }
        self.pending.drain(..at);
        Ok(())
    }

    /// An error when the body ended inside a block.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        if self.pending.is_empty() {
            return Ok(());
        }
        Err(Failure::new(code::CANNOT_READ_ALL_DATA, "the compressed body ends inside a block"))
    }
}

fn decode_block(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, Failure> {
    let Some(head) = bytes.get(HASH..HASH + HEAD) else { return Ok(None) };
    let word = |b: &[u8]| b.try_into().map(u32::from_le_bytes).unwrap_or_default() as usize;
    let (method, packed, content) = (head[0], word(&head[1..5]), word(&head[5..9]));
    if !(HEAD..=FRAME_BYTES_MAX).contains(&packed) || content > FRAME_BYTES_MAX {
        return Err(Failure::new(
            code::TOO_LARGE,
            format!("a compressed block claims {packed} and {content} bytes, the limit is {FRAME_BYTES_MAX}"),
        ));
    }
    let Some(hashed) = bytes.get(HASH..HASH + packed) else { return Ok(None) };
    let hash = cityhash_rs::cityhash_102_128(hashed).rotate_right(64).to_le_bytes();
    if bytes[..HASH] != hash {
        return Err(Failure::new(
            code::CHECKSUM_DOESNT_MATCH,
            "checksum of a compressed block does not match",
        ));
    }
    let payload = &hashed[HEAD..];
    let broken =
        |e: String| Failure::new(code::CANNOT_READ_ALL_DATA, format!("a compressed block is broken: {e}"));
    let data = match method {
        0x82 => lz4_flex::block::decompress(payload, content).map_err(|e| broken(e.to_string()))?,
        0x90 => zstd::bulk::decompress(payload, content).map_err(|e| broken(e.to_string()))?,
        0x02 => payload.to_vec(),
        other => {
            return Err(Failure::new(
                code::UNKNOWN_COMPRESSION,
                format!("unknown compression method {other:#x}"),
            ));
        }
    };
    if data.len() != content {
        return Err(broken(format!("{} bytes instead of {content}", data.len())));
    }
    Ok(Some((data, HASH + packed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(method: u8, content: &[u8]) -> Vec<u8> {
        let packed = match method {
            0x82 => lz4_flex::block::compress(content),
            0x90 => zstd::bulk::compress(content, 1).expect("compresses"),
            _ => content.to_vec(),
        };
        let mut body = vec![method];
        body.extend((packed.len() as u32 + 9).to_le_bytes());
        body.extend((content.len() as u32).to_le_bytes());
        body.extend(packed);
        let mut out = cityhash_rs::cityhash_102_128(&body).rotate_right(64).to_le_bytes().to_vec();
        out.extend(body);
        out
    }

    #[test]
    fn blocks_come_out_whatever_the_pieces() {
        let wire = [block(0x82, b"one "), block(0x90, b"two "), block(0x02, b"three")].concat();
        for size in [1, 7, wire.len()] {
            let (mut u, mut got) = (Unframe::new(true), Vec::new());
            for piece in wire.chunks(size) {
                u.push(piece, |b| {
                    got.extend_from_slice(b);
                    Ok(())
                })
                .expect("valid");
            }
            u.finish().expect("whole");
            assert_eq!(got, b"one two three");
        }
    }

    #[test]
    fn damage_is_refused() {
        let mut wire = block(0x82, b"hello hello hello");
        let mut cut = Unframe::new(true);
        cut.push(&wire[..wire.len() - 1], |_| Ok(())).expect("incomplete");
        assert_eq!(cut.finish().expect_err("cut").code, code::CANNOT_READ_ALL_DATA);
        *wire.last_mut().expect("not empty") ^= 1;
        let e = Unframe::new(true).push(&wire, |_| Ok(())).expect_err("flipped");
        assert_eq!(e.code, code::CHECKSUM_DOESNT_MATCH);
        let mut huge = block(0x02, b"x");
        huge[21..25].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Unframe::new(true).push(&huge, |_| Ok(())).expect_err("huge").code, code::TOO_LARGE);
    }
}
