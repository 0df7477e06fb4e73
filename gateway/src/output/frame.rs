//! A step as a frame of the output log.
//!
//! Meta, little-endian:
//!
//! ```text
//! u8   version, 1
//! u64  input frame that the lane has consumed through
//! i64  when the step was made, nanoseconds since the epoch
//! u8   length of the lane's name   name
//! u32  bytes of the changes of state, which begin the payload
//! u16  number of blocks, then for each, in the order of their bytes in the payload:
//!      u8 length of the stream's name   name   u64 first   u64 last   u64 schema   32 prev hash   32 hash   u32 bytes
//! ```
//!
//! Payload: the changes ([`journal::Changes`]), then the blocks' bytes. Positions, chains and counts are part of the
//! changes, so that recovery applies changes and nothing else.

use journal::{Changes, Frame, FrameSeq};
use record::{BlockHeader, Digest, Incarnation, Seq, StreamName};

/// The kind of a step's frame.
pub const STEP: u8 = 2;
const VERSION: u8 = 1;

/// A frame of the output log that is no step of this program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("frame {frame} of the output log is no step: {why}")]
pub struct BadStep {
    /// Which frame.
    pub frame: FrameSeq,
    /// What is wrong with it.
    pub why: &'static str,
}

/// What the meta says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepMeta {
    /// The lane.
    pub lane: StreamName,
    /// Input frames up to this one are consumed by the lane.
    pub consumed: FrameSeq,
    /// When the step was made.
    pub made_ns: i64,
    /// Bytes of the changes.
    pub changes_bytes: u32,
    /// The blocks, and their lengths.
    pub blocks: Vec<(BlockHeader, u32)>,
}

impl StepMeta {
    /// Appends the meta's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        out.extend_from_slice(&self.consumed.0.to_le_bytes());
        out.extend_from_slice(&self.made_ns.to_le_bytes());
        put_name(out, &self.lane);
        out.extend_from_slice(&self.changes_bytes.to_le_bytes());
        out.extend_from_slice(&(self.blocks.len() as u16).to_le_bytes());
        for (header, bytes) in &self.blocks {
            put_name(out, &header.stream);
            for n in [header.first.0, header.last.0, header.schema] {
                out.extend_from_slice(&n.to_le_bytes());
            }
            out.extend_from_slice(&header.prev_hash.0);
            out.extend_from_slice(&header.hash.0);
            out.extend_from_slice(&bytes.to_le_bytes());
        }
    }

    /// Reads a meta; blocks get the incarnation of the folder they are in.
    pub fn decode(mut input: &[u8], incarnation: Incarnation) -> Option<Self> {
        let input = &mut input;
        if take::<1>(input)? != [VERSION] {
            return None;
        }
        let consumed = FrameSeq(u64::from_le_bytes(take(input)?));
        let made_ns = i64::from_le_bytes(take(input)?);
        let lane = take_name(input)?;
        let changes_bytes = u32::from_le_bytes(take(input)?);
        let count = u16::from_le_bytes(take(input)?);
        let mut blocks = Vec::new();
        for _ in 0..count {
            let header = BlockHeader {
                stream: take_name(input)?,
                incarnation,
                first: Seq(u64::from_le_bytes(take(input)?)),
                last: Seq(u64::from_le_bytes(take(input)?)),
                schema: u64::from_le_bytes(take(input)?),
                prev_hash: Digest(take(input)?),
                hash: Digest(take(input)?),
            };
            blocks.push((header, u32::from_le_bytes(take(input)?)));
        }
        input.is_empty().then_some(Self { lane, consumed, made_ns, changes_bytes, blocks })
    }
}

fn put_name(out: &mut Vec<u8>, name: &StreamName) {
    // Names have at most 64 bytes.
    out.push(name.as_str().len() as u8);
    out.extend_from_slice(name.as_str().as_bytes());
}

fn take<const N: usize>(input: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = input.split_first_chunk::<N>()?;
    *input = rest;
    Some(*head)
}

fn take_name(input: &mut &[u8]) -> Option<StreamName> {
    let [len] = take(input)?;
    let (name, rest) = input.split_at_checked(usize::from(len))?;
    *input = rest;
    StreamName::new(std::str::from_utf8(name).ok()?).ok()
}

/// A step's meta, changes and blocks, borrowed from its frame.
#[derive(Debug)]
pub struct Step<'f> {
    /// What the meta says.
    pub meta: StepMeta,
    changes: &'f [u8],
    blocks: &'f [u8],
}

impl<'f> Step<'f> {
    /// Reads a frame of the kind [`STEP`].
    pub fn read(frame: &'f Frame, incarnation: Incarnation) -> Result<Self, BadStep> {
        let bad = |why| BadStep { frame: frame.seq, why };
        let meta =
            StepMeta::decode(&frame.meta, incarnation).ok_or_else(|| bad("its head is not readable"))?;
        let split = frame.payload.split_at_checked(meta.changes_bytes as usize);
        let (changes, blocks) = split.ok_or_else(|| bad("it is too short"))?;
        let claimed: u64 = meta.blocks.iter().map(|(_, bytes)| u64::from(*bytes)).sum();
        if claimed != blocks.len() as u64 {
            return Err(bad("its blocks have another length than its head says"));
        }
        Ok(Self { meta, changes, blocks })
    }

    /// The changes of state.
    pub fn changes(&self) -> Option<Changes> {
        Changes::decode(self.changes).ok()
    }

    /// Headers and bytes of the blocks.
    pub fn blocks(&self) -> impl Iterator<Item = (&BlockHeader, &'f [u8])> {
        let mut rest = self.blocks;
        self.meta.blocks.iter().map(move |(header, bytes)| {
            // `read` checked the sum of the lengths.
            let (block, after) = rest.split_at(*bytes as usize);
            rest = after;
            (header, block)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block() -> impl Strategy<Value = (BlockHeader, u32)> {
        (
            "[a-z]{1,9}",
            any::<u64>(),
            any::<u64>(),
            any::<u64>(),
            any::<[u8; 32]>(),
            any::<[u8; 32]>(),
            any::<u32>(),
        )
            .prop_map(|(name, first, last, schema, prev, hash, bytes)| {
                let header = BlockHeader {
                    stream: StreamName::new(&name).unwrap(),
                    incarnation: Incarnation(9),
                    first: Seq(first),
                    last: Seq(last),
                    schema,
                    prev_hash: Digest(prev),
                    hash: Digest(hash),
                };
                (header, bytes)
            })
    }

    proptest! {
        #[test]
        fn metas_round_trip(consumed: u64, made_ns: i64, changes_bytes: u32,
                blocks in proptest::collection::vec(block(), 0..5)) {
            let lane = StreamName::new("machine").unwrap();
            let meta = StepMeta { lane, consumed: FrameSeq(consumed), made_ns, changes_bytes, blocks };
            let mut bytes = Vec::new();
            meta.encode(&mut bytes);
            prop_assert_eq!(StepMeta::decode(&bytes, Incarnation(9)), Some(meta));
            for cut in 0..bytes.len() {
                prop_assert_eq!(StepMeta::decode(&bytes[..cut], Incarnation(9)), None);
            }
        }

        #[test]
        fn any_bytes_give_an_answer(meta in proptest::collection::vec(any::<u8>(), 0..90)) {
            let _ = StepMeta::decode(&meta, Incarnation(1));
        }
    }
}
