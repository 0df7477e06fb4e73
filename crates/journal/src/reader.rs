//! Going through the durable frames of a log from some place on, across segments, past damage.
//!
//! What cannot be read is stepped over and kept as a [`Gap`] until somebody takes it: the caller writes it into
//! its ledger. A reader holds no lock while it reads, so it neither waits for the writer nor delays it.

use crate::{
    cursor::{Cursor, Stride},
    disk::{Disk, RealDisk},
    error::JournalError,
    frame::{Frame, FrameHead, FrameSeq, Gap, GapCause, Header},
    limits,
    log::{Place, Shared, segment_path},
};
use std::{io, sync::Arc};

/// A place in a log that moves forward.
pub struct Reader<D: Disk = RealDisk> {
    shared: Arc<Shared<D>>,
    next: u64,
    current: Option<Current<D::File>>,
    gaps: Vec<Gap>,
}

/// The segment that is being read.
struct Current<F> {
    first: u64,
    /// One after the last seq that may be read here, as far as was known when it was asked.
    end: u64,
    limit: u64,
    cursor: Cursor<F>,
    /// Where the frame after the last one read should start, and its seq.
    at: u64,
    seq: u64,
    noted: u64,
}

impl<D: Disk> Reader<D> {
    pub(crate) fn new(shared: Arc<Shared<D>>, from: FrameSeq) -> Self {
        Self { shared, next: from.0.max(1), current: None, gaps: Vec::new() }
    }

    /// The frame that comes next, read or not yet written.
    pub fn position(&self) -> FrameSeq {
        FrameSeq(self.next)
    }

    /// Goes somewhere else.
    pub fn seek(&mut self, to: FrameSeq) {
        self.next = to.0.max(1);
        if self.current.as_ref().is_some_and(|c| self.next < c.seq || self.next >= c.end) {
            self.current = None;
        }
    }

    /// The next durable frame; `None` at the tail. Checkpoints come too, by their kind.
    #[expect(clippy::should_implement_trait, reason = "`None` is the tail, which moves: this is no iterator")]
    pub fn next(&mut self) -> Result<Option<Frame>, JournalError> {
        let mut frame = Frame::default();
        Ok(self.next_into(&mut frame)?.then_some(frame))
    }

    /// As [`Reader::next`], into buffers that are used again; whether there was one.
    pub fn next_into(&mut self, frame: &mut Frame) -> Result<bool, JournalError> {
        loop {
            let Some((at, header)) = self.head(Stride::Read, &mut frame.meta)? else { return Ok(false) };
            frame.payload.clear();
            let current = self.current.as_mut().expect("a head was read from it");
            let whole = current.cursor.payload(at, &header, current.limit, &mut frame.payload);
            let path = segment_path(&self.shared.dir, current.first);
            if whole.map_err(JournalError::io("read", path))? {
                frame.seq = FrameSeq(header.seq);
                frame.kind = header.kind;
                return Ok(true);
            }
            self.gap(header.seq, header.seq, GapCause::Damaged);
        }
    }

    /// The next durable frame without its payload, which is neither read nor checked.
    pub fn next_meta(&mut self) -> Result<Option<FrameHead>, JournalError> {
        let mut meta = Vec::new();
        let found = self.head(Stride::Hop, &mut meta)?;
        Ok(found.map(|(_, header)| FrameHead {
            seq: FrameSeq(header.seq),
            kind: header.kind,
            meta,
            payload_bytes: header.payload_bytes,
        }))
    }

    /// What was stepped over since the last time. Beyond [`limits::GAPS_MAX`] ranges not taken the last one is
    /// widened, and may then cover good frames.
    pub fn take_gaps(&mut self) -> Vec<Gap> {
        std::mem::take(&mut self.gaps)
    }

    /// The head of the frame `self.next` or, past damage, a later one; moves behind it.
    fn head(&mut self, stride: Stride, meta: &mut Vec<u8>) -> Result<Option<(u64, Header)>, JournalError> {
        loop {
            if !self.locate(stride)? {
                return Ok(None);
            }
            let current = self.current.as_mut().expect("located above");
            current.cursor.set_stride(stride);
            let found = current.cursor.find(current.at, current.limit, &(current.seq..current.end), meta);
            let found =
                found.map_err(JournalError::io("read", segment_path(&self.shared.dir, current.first)))?;
            let Some((at, header)) = found else {
                let cause = if current.at < current.limit { GapCause::Damaged } else { GapCause::Missing };
                let end = current.end;
                (current.seq, current.at) = (end, current.limit);
                self.gap(self.next, end - 1, cause);
                self.next = end;
                continue;
            };
            current.seq = header.seq + 1;
            current.at = at + header.frame_bytes();
            if at >= current.noted + limits::INDEX_EVERY_BYTES {
                current.noted = at;
                self.shared.note(current.first, header.seq, at);
            }
            if header.seq < self.next {
                continue;
            }
            if header.seq > self.next {
                self.gap(self.next, header.seq - 1, GapCause::Damaged);
            }
            self.next = header.seq + 1;
            return Ok(Some((at, header)));
        }
    }

    /// Makes `self.current` the segment of `self.next`; false at the tail.
    fn locate(&mut self, stride: Stride) -> Result<bool, JournalError> {
        while self.current.as_ref().is_none_or(|c| self.next >= c.end) {
            let (first, end, limit, near) = match self.shared.place(self.next) {
                Place::Tail => return Ok(false),
                Place::Gone { first } => {
                    self.gap(self.next, first - 1, GapCause::Trimmed);
                    self.next = first;
                    continue;
                }
                Place::In { first, end, limit, near } => (first, end, limit, near),
            };
            if self.next >= end {
                return Ok(false);
            }
            if let Some(current) = self.current.as_mut().filter(|c| c.first == first) {
                (current.end, current.limit) = (end, limit);
                continue;
            }
            match self.shared.disk.open_read(&segment_path(&self.shared.dir, first)) {
                Ok(file) => {
                    let cursor = Cursor::new(Arc::new(file), stride);
                    let (seq, at) = near;
                    self.current = Some(Current { first, end, limit, cursor, at, seq, noted: at });
                }
                // Trimmed between the look and the opening, or taken away behind our back.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    self.gap(self.next, end - 1, GapCause::Missing);
                    self.next = end;
                }
                Err(e) => return Err(JournalError::io("open", segment_path(&self.shared.dir, first))(e)),
            }
        }
        Ok(true)
    }

    fn gap(&mut self, first: u64, last: u64, cause: GapCause) {
        let full = self.gaps.len() >= limits::GAPS_MAX;
        match self.gaps.last_mut() {
            Some(gap) if full || (gap.cause == cause && gap.last.0 + 1 == first) => gap.last = FrameSeq(last),
            _ => self.gaps.push(Gap { first: FrameSeq(first), last: FrameSeq(last), cause }),
        }
    }
}
