//! The state image after a start: the newest checkpoint, then the changes of every frame after it.

use super::frame::{STEP, Step};
use journal::{Disk, FrameSeq, Gap, JournalError, Log, StateImage};
use record::Incarnation;

/// What a start finds.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The state.
    pub image: StateImage,
    /// Steps that were replayed on the checkpoint.
    pub steps: u64,
    /// Frames that should have been replayed and are not readable. Input that they had consumed is consumed again, and
    /// rows that they had produced get new seqs: central sees another hash and halts the stream, nobody guesses.
    pub damaged: Vec<Gap>,
}

/// Why the state cannot be rebuilt.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The log.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A checkpoint that is whole and still not understood: made by another version.
    #[error("the checkpoint in frame {frame} of the output log is not readable: {why}")]
    Checkpoint {
        /// Which frame.
        frame: FrameSeq,
        /// What is wrong with it.
        why: String,
    },
    /// A step that is whole and still not understood.
    #[error(transparent)]
    Step(#[from] super::frame::BadStep),
}

/// Rebuilds the state.
pub fn recover<D: Disk>(log: &Log<D>, incarnation: Incarnation) -> Result<Recovered, RecoveryError> {
    let mut out = Recovered::default();
    let mut from = FrameSeq(1);
    if let Some(checkpoint) = log.newest_checkpoint()? {
        let why =
            |e: journal::ImageError| RecoveryError::Checkpoint { frame: checkpoint.seq, why: e.to_string() };
        out.image = StateImage::decode(&checkpoint.payload).map_err(why)?;
        from = checkpoint.seq.next();
    }
    let mut reader = log.reader(from);
    while let Some(frame) = reader.next()? {
        if frame.kind != STEP {
            continue;
        }
        let step = Step::read(&frame, incarnation)?;
        let why = super::frame::BadStep { frame: frame.seq, why: "its changes are not readable" };
        out.image.apply(step.changes().ok_or(why)?);
        out.steps += 1;
    }
    out.damaged = reader.take_gaps();
    Ok(out)
}
