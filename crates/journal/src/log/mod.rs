//! The segment log: one writer appends, anybody syncs, many read.
//!
//! Writing goes header, meta and payload in one positioned write to the newest segment. When a frame does not
//! fit, a new segment is made: first everything before it is synced, then the file is made, preallocated, given
//! its checkpoint, synced, and its name is synced; only then is it used. So everything but the newest segment is
//! durable and whole, and only the newest can have a torn tail.

mod open;
mod shared;

pub(crate) use open::{list_segments, segment_path};
pub use shared::LogHandle;
pub(crate) use shared::{Place, Shared};

use crate::{
    disk::{Disk, DiskFile, RealDisk},
    error::{JournalError, no_space},
    frame::{CHECKPOINT, Frame, FrameSeq, Gap, HEADER_BYTES, Header, frame_bytes, payload_crc},
    limits, lock,
    quota::Quota,
    reader::Reader,
};
use shared::{Segment, Tail};
use std::{
    io::{self, IoSlice},
    path::Path,
    sync::Arc,
};

/// How a log is opened.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// A segment's file; at least [`limits::SEGMENT_BYTES_MIN`].
    pub segment_bytes: u64,
    /// A random number, best drawn at each start: see the frame format.
    pub salt: u64,
    /// Where the bytes are counted and bounded.
    pub quota: Option<Quota>,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { segment_bytes: limits::SEGMENT_BYTES, salt: 0, quota: None }
    }
}

/// What opening found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovery {
    /// The oldest frame, if there is any.
    pub first: Option<FrameSeq>,
    /// The newest frame, if there is any.
    pub last: Option<FrameSeq>,
    /// The number that the next frame gets.
    pub next: FrameSeq,
    /// The newest checkpoint that can be read.
    pub checkpoint: Option<FrameSeq>,
    /// Bytes of a tail that was never synced whole and is cut off.
    pub torn_bytes: u64,
    /// Damage met in the newest segment. Readers report these ranges too, and those of older segments.
    pub quarantined: Vec<Gap>,
    /// The disk refused to read places of the newest segment. It was left as it is, and the log goes on in a new
    /// one; `last` counts numbers that were perhaps never used.
    pub unreadable: bool,
    /// Segment files.
    pub segments: usize,
    /// Bytes of all segment files.
    pub bytes: u64,
}

/// The one writer of a log.
pub struct Log<D: Disk = RealDisk> {
    shared: Arc<Shared<D>>,
    newest: Option<Newest<D::File>>,
    next: u64,
    /// Damage left no checkpoint that can be read: the next frame needs a new one before it.
    lacks_checkpoint: bool,
}

/// The segment that is written to.
struct Newest<F> {
    first: u64,
    file: Arc<F>,
    salt: u64,
    tail: u64,
    file_bytes: u64,
    /// Whether it holds more than its checkpoint.
    used: bool,
}

impl<D: Disk> Log<D> {
    /// Opens or makes the log in `dir`.
    pub fn open(disk: D, dir: &Path, options: LogOptions) -> Result<(Self, Recovery), JournalError> {
        open::open(disk, dir, options)
    }

    /// Appends a frame; it is durable after the next [`Log::sync`]. When a new segment is needed,
    /// `checkpoint` is asked for the bytes that it starts with, as of before this frame.
    pub fn append(
        &mut self,
        kind: u8,
        meta: &[u8],
        payload: &[&[u8]],
        checkpoint: &mut dyn FnMut() -> Vec<u8>,
    ) -> Result<FrameSeq, JournalError> {
        if kind == CHECKPOINT {
            return Err(JournalError::ReservedKind(kind));
        }
        bounded(meta.len(), limits::META_BYTES_MAX)?;
        let payload_bytes = payload.iter().map(|part| part.len()).sum();
        bounded(payload_bytes, limits::PAYLOAD_BYTES_MAX)?;
        self.shared.unpoisoned()?;
        let need = frame_bytes(meta.len(), payload_bytes);
        let fits = |newest: &Newest<D::File>| {
            !newest.used || newest.tail + need <= self.shared.options.segment_bytes
        };
        if self.lacks_checkpoint || !self.newest.as_ref().is_some_and(fits) {
            self.roll(checkpoint)?;
        }
        self.write(kind, meta, payload, payload_bytes)
    }

    /// Makes everything appended durable. A failure poisons the log.
    pub fn sync(&self) -> Result<FrameSeq, JournalError> {
        self.shared.sync()
    }

    /// Every frame up to this one is durable.
    pub fn durable(&self) -> FrameSeq {
        FrameSeq(self.shared.durable())
    }

    /// The number that the next frame gets, if it needs no new segment.
    pub fn next_seq(&self) -> FrameSeq {
        FrameSeq(self.next)
    }

    /// For readers, for syncing from another thread, for trimming.
    pub fn handle(&self) -> LogHandle<D> {
        LogHandle::new(self.shared.clone())
    }

    /// A reader from `from` on.
    pub fn reader(&self, from: FrameSeq) -> Reader<D> {
        Reader::new(self.shared.clone(), from)
    }

    /// The newest durable checkpoint, read from disk.
    pub fn newest_checkpoint(&self) -> Result<Option<Frame>, JournalError> {
        self.handle().newest_checkpoint()
    }

    /// Deletes whole segments all of whose frames are below `keep_from`; see [`LogHandle::trim`].
    pub fn trim(&self, keep_from: FrameSeq) -> Result<u64, JournalError> {
        self.shared.trim(keep_from.0)
    }

    /// Makes sure that no frame gets a number up to `seq`, for somebody remembers having used it. The numbers
    /// left out are a gap that readers report.
    pub fn skip_past(
        &mut self,
        seq: FrameSeq,
        checkpoint: &mut dyn FnMut() -> Vec<u8>,
    ) -> Result<(), JournalError> {
        if seq.0 < self.next {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.next, seq.0 + 1);
        let rolled = self.roll(checkpoint);
        if rolled.is_err() {
            // Inside a segment numbers are dense: without a new one nothing is skipped.
            self.next = before;
        }
        rolled
    }

    /// Starts a new segment with a checkpoint; everything before is durable afterwards, and the checkpoint too.
    pub fn roll(&mut self, checkpoint: &mut dyn FnMut() -> Vec<u8>) -> Result<(), JournalError> {
        self.shared.unpoisoned()?;
        let image = checkpoint();
        bounded(image.len(), limits::CHECKPOINT_BYTES_MAX)?;
        // No sync by another thread may publish a place in the old segment once the new one is in use.
        let shared = self.shared.clone();
        let serial = lock(&shared.syncing);
        shared.sync_serialised()?;
        let file_bytes = self.shared.options.segment_bytes.max(frame_bytes(0, image.len()));
        if let Some(quota) = &self.shared.options.quota {
            quota.take(file_bytes)?;
        }
        let made = self.make_segment(&image, file_bytes);
        if made.is_err()
            && let Some(quota) = &self.shared.options.quota
        {
            quota.release(file_bytes);
        }
        let newest = made?;
        let old = self.newest.replace(newest);
        self.next += 1;
        self.lacks_checkpoint = false;
        drop(serial);
        if let Some(old) = old {
            self.shared.seal(old.first, &*old.file, old.tail);
        }
        Ok(())
    }

    /// The file of a new segment, durable with its checkpoint, and known to readers.
    fn make_segment(&self, image: &[u8], file_bytes: u64) -> Result<Newest<D::File>, JournalError> {
        let (first, shared) = (self.next, &self.shared);
        let path = segment_path(&shared.dir, first);
        // A good mixer is not needed: only that payloads do not know it.
        let salt = shared.options.salt.wrapping_add(first).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let header = Header {
            kind: CHECKPOINT,
            seq: first,
            durable: first - 1,
            salt,
            meta_bytes: 0,
            payload_bytes: image.len() as u32,
            payload_crc: payload_crc(&[image]),
        };
        // A start may have left an unfinished one, emptied, to be taken over.
        let (opened, taken_over) = match shared.disk.create(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => (shared.disk.open(&path), true),
            made => (made, false),
        };
        let made = opened.and_then(|file| {
            file.allocate(file_bytes)?;
            file.write_at(&[IoSlice::new(&header.encode(&[])), IoSlice::new(image)], 0)?;
            Ok(file)
        });
        let file = match made {
            Ok(file) => Arc::new(file),
            Err(e) => {
                // It must be gone for good before the old segment takes a frame of this number.
                let gone = if taken_over {
                    shared.disk.open(&path).and_then(|file| file.set_len(0).and_then(|()| file.sync_data()))
                } else {
                    shared.disk.remove(&path).and_then(|()| shared.disk.sync_dir(&shared.dir))
                };
                if no_space(&e) && gone.is_ok() {
                    return Err(JournalError::NoSpace { path });
                }
                return Err(shared.poison(format!("making {}: {e}", path.display())));
            }
        };
        if let Err(e) = file.sync_data().and_then(|()| shared.disk.sync_dir(&shared.dir)) {
            return Err(shared.poison(format!("syncing {}: {e}", path.display())));
        }
        let tail = header.frame_bytes();
        shared.begin_segment(
            Segment::new(first, file_bytes),
            file.clone(),
            Tail { seq: first, offset: tail },
        );
        Ok(Newest { first, file, salt, tail, file_bytes, used: false })
    }

    fn write(
        &mut self,
        kind: u8,
        meta: &[u8],
        payload: &[&[u8]],
        payload_bytes: usize,
    ) -> Result<FrameSeq, JournalError> {
        let newest = self.newest.as_mut().expect("a segment was made above");
        let header = Header {
            kind,
            seq: self.next,
            durable: self.shared.durable(),
            salt: newest.salt,
            meta_bytes: meta.len() as u32,
            payload_bytes: payload_bytes as u32,
            payload_crc: payload_crc(payload),
        };
        let head = header.encode(meta);
        let padding = [0u8; 8];
        let need = header.frame_bytes();
        let unpadded = HEADER_BYTES + meta.len() + payload_bytes;
        let mut parts = Vec::with_capacity(payload.len() + 3);
        parts.extend([IoSlice::new(&head), IoSlice::new(meta)]);
        parts.extend(payload.iter().map(|part| IoSlice::new(part)));
        parts.push(IoSlice::new(&padding[..need as usize - unpadded]));
        // A frame that is larger than what a segment holds makes its file longer.
        let growth = (newest.tail + need).saturating_sub(newest.file_bytes);
        let quota = self.shared.options.quota.as_ref().filter(|_| growth > 0);
        if let Some(quota) = quota {
            quota.take(growth)?;
        }
        if let Err(e) = newest.file.write_at(&parts, newest.tail) {
            if let Some(quota) = quota {
                quota.release(growth);
            }
            let path = segment_path(&self.shared.dir, newest.first);
            // Cutting takes the partial frame away, durably: only its padding may be missing, and then a start after a
            // crash would find a frame that was refused. What was preallocated behind it is given up.
            let cut = || newest.file.set_len(newest.tail).and_then(|()| newest.file.sync_data());
            if no_space(&e) && cut().is_ok() {
                self.shared.shortened(newest.first, newest.tail);
                newest.file_bytes = newest.tail;
                return Err(JournalError::NoSpace { path });
            }
            return Err(self.shared.poison(format!("writing {}: {e}", path.display())));
        }
        let (seq, at) = (self.next, newest.tail);
        newest.tail += need;
        newest.used = true;
        if growth > 0 {
            self.shared.grown(newest.first, newest.tail);
            newest.file_bytes = newest.tail;
        }
        self.next += 1;
        self.shared.appended(at, Tail { seq, offset: newest.tail });
        Ok(FrameSeq(seq))
    }
}

impl<D: Disk> Drop for Log<D> {
    fn drop(&mut self) {
        self.shared.close();
    }
}

fn bounded(bytes: usize, max: usize) -> Result<(), JournalError> {
    if bytes > max { Err(JournalError::FrameTooLarge { bytes, max }) } else { Ok(()) }
}
