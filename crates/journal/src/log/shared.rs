//! What the writer, the syncers and the readers of one log know together.

use super::{LogOptions, segment_path};
use crate::{
    cursor::{Cursor, Stride},
    disk::{Disk, DiskFile, RealDisk},
    error::JournalError,
    frame::{Frame, FrameSeq},
    limits, lock,
    reader::Reader,
};
use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// A frame and the place where it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tail {
    pub seq: u64,
    /// In the newest segment.
    pub offset: u64,
}

/// A segment file as known to readers.
#[derive(Debug)]
pub(crate) struct Segment {
    pub first: u64,
    pub file_bytes: u64,
    /// Some (seq, offset) of it, about one in [`limits::INDEX_EVERY_BYTES`], in order.
    index: Vec<(u64, u64)>,
}

impl Segment {
    pub(crate) fn new(first: u64, file_bytes: u64) -> Self {
        Self { first, file_bytes, index: Vec::new() }
    }

    pub(crate) fn note(&mut self, seq: u64, offset: u64) {
        let last = self.index.last().map_or(0, |&(_, at)| at);
        if offset >= last + limits::INDEX_EVERY_BYTES {
            self.index.push((seq, offset));
        }
    }

    /// The noted place nearest before `seq`.
    fn near(&self, seq: u64) -> (u64, u64) {
        match self.index.partition_point(|&(noted, _)| noted <= seq) {
            0 => (self.first, 0),
            n => self.index[n - 1],
        }
    }
}

pub(crate) struct State<F> {
    pub segments: VecDeque<Segment>,
    pub newest: Option<Arc<F>>,
    pub appended: Tail,
    pub durable: Tail,
    /// Bytes of frames and checkpoints written since the log was opened.
    pub written: u64,
    /// Seq of the newest durable checkpoint; it is the first frame of its segment.
    pub checkpoint: Option<u64>,
    poisoned: Option<String>,
    /// Gone when the log is poisoned or closed, so that whoever waits is told.
    moved: Option<watch::Sender<FrameSeq>>,
}

/// Where a reader finds a frame.
pub(crate) enum Place {
    /// Nothing durable there yet.
    Tail,
    /// It was trimmed; the oldest frame is this one.
    Gone { first: u64 },
    /// In the segment that starts with `first`.
    In {
        first: u64,
        /// One after the last seq that may be read in this segment.
        end: u64,
        /// Bytes of the segment that may be read.
        limit: u64,
        /// A frame's start at or before the one that is sought.
        near: (u64, u64),
    },
}

pub(crate) struct Shared<D: Disk> {
    pub disk: D,
    pub dir: PathBuf,
    pub options: LogOptions,
    /// Held while a sync or a change of the newest segment is under way.
    pub syncing: Mutex<()>,
    state: Mutex<State<D::File>>,
    changed: Condvar,
    durable: AtomicU64,
    tail: watch::Receiver<FrameSeq>,
}

impl<D: Disk> Shared<D> {
    pub(crate) fn new(
        disk: D,
        dir: &Path,
        options: LogOptions,
        segments: VecDeque<Segment>,
        newest: Option<Arc<D::File>>,
        tail: Tail,
        checkpoint: Option<u64>,
    ) -> Self {
        let (moved, receiver) = watch::channel(FrameSeq(tail.seq));
        let state = State {
            segments,
            newest,
            appended: tail,
            durable: tail,
            written: 0,
            checkpoint,
            poisoned: None,
            moved: Some(moved),
        };
        Self {
            disk,
            dir: dir.to_owned(),
            options,
            syncing: Mutex::new(()),
            state: Mutex::new(state),
            changed: Condvar::new(),
            durable: AtomicU64::new(tail.seq),
            tail: receiver,
        }
    }

    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(SeqCst)
    }

    pub(crate) fn unpoisoned(&self) -> Result<(), JournalError> {
        match &lock(&self.state).poisoned {
            Some(reason) => Err(JournalError::Poisoned { dir: self.dir.clone(), reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// Ends the log's usefulness for this process; the first reason stays.
    pub(crate) fn poison(&self, reason: String) -> JournalError {
        let mut state = lock(&self.state);
        let reason = state.poisoned.get_or_insert(reason).clone();
        state.moved = None;
        self.changed.notify_all();
        JournalError::Poisoned { dir: self.dir.clone(), reason }
    }

    /// The writer is gone: whoever waits for more is told.
    pub(crate) fn close(&self) {
        lock(&self.state).moved = None;
        self.changed.notify_all();
    }

    pub(crate) fn sync(&self) -> Result<FrameSeq, JournalError> {
        let _serial = lock(&self.syncing);
        self.sync_serialised()
    }

    /// Appending goes on meanwhile: what is durable afterwards is what was appended before.
    pub(crate) fn sync_serialised(&self) -> Result<FrameSeq, JournalError> {
        self.unpoisoned()?;
        let (file, target) = {
            let state = lock(&self.state);
            (state.newest.clone(), state.appended)
        };
        if target.seq > self.durable()
            && let Some(file) = file
        {
            if let Err(e) = file.sync_data() {
                return Err(self.poison(format!("syncing the newest segment: {e}")));
            }
            self.publish(&mut lock(&self.state), target);
        }
        Ok(FrameSeq(target.seq))
    }

    fn publish(&self, state: &mut State<D::File>, tail: Tail) {
        state.durable = tail;
        self.durable.store(tail.seq, SeqCst);
        if let Some(moved) = &state.moved {
            moved.send_replace(FrameSeq(tail.seq));
        }
        self.changed.notify_all();
    }

    pub(crate) fn appended(&self, at: u64, tail: Tail) {
        let mut state = lock(&self.state);
        state.appended = tail;
        state.written += tail.offset - at;
        if let Some(segment) = state.segments.back_mut() {
            segment.note(tail.seq, at);
        }
    }

    /// A new segment is durable with its checkpoint, which ends at `tail`.
    pub(crate) fn begin_segment(&self, segment: Segment, file: Arc<D::File>, tail: Tail) {
        let mut state = lock(&self.state);
        state.checkpoint = Some(segment.first);
        state.segments.push_back(segment);
        state.newest = Some(file);
        state.appended = tail;
        state.written += tail.offset;
        self.publish(&mut state, tail);
    }

    /// A file is longer, by what was taken from the quota for it.
    pub(crate) fn grown(&self, first: u64, to: u64) {
        let mut state = lock(&self.state);
        if let Some(segment) = state.segments.iter_mut().find(|s| s.first == first) {
            segment.file_bytes = to;
        }
    }

    /// A file is shorter. When it was trimmed meanwhile, all that was counted for it has been given back already.
    pub(crate) fn shortened(&self, first: u64, to: u64) {
        let mut state = lock(&self.state);
        let Some(segment) = state.segments.iter_mut().find(|s| s.first == first) else { return };
        let spare = segment.file_bytes.saturating_sub(to);
        segment.file_bytes -= spare;
        if let Some(quota) = &self.options.quota {
            quota.release(spare);
        }
    }

    /// Gives back what a finished segment did not need. Without it nothing is wrong, so a failure is no matter.
    pub(crate) fn seal(&self, first: u64, file: &D::File, tail: u64) {
        let longer = lock(&self.state).segments.iter().any(|s| s.first == first && s.file_bytes > tail);
        if longer && file.set_len(tail).is_ok() {
            self.shortened(first, tail);
        }
    }

    pub(crate) fn place(&self, seq: u64) -> Place {
        if seq > self.durable() {
            return Place::Tail;
        }
        let state = lock(&self.state);
        let durable = state.durable;
        let after = state.segments.partition_point(|s| s.first <= seq);
        let Some(segment) = after.checked_sub(1).and_then(|i| state.segments.get(i)) else {
            return Place::Gone { first: state.segments.front().map_or(durable.seq + 1, |s| s.first) };
        };
        // The newest segment may be missing: then the log goes on in a new one, and every file is read whole.
        let (end, limit) = match state.segments.get(after) {
            Some(next) => (next.first, segment.file_bytes),
            None if state.newest.is_some() => (durable.seq + 1, durable.offset),
            None => (durable.seq + 1, segment.file_bytes),
        };
        Place::In { first: segment.first, end, limit, near: segment.near(seq) }
    }

    /// Readers tell where frames of segments stand that this process did not write.
    pub(crate) fn note(&self, first: u64, seq: u64, offset: u64) {
        let mut state = lock(&self.state);
        let at = state.segments.partition_point(|s| s.first < first);
        if let Some(segment) = state.segments.get_mut(at).filter(|s| s.first == first) {
            segment.note(seq, offset);
        }
    }

    pub(crate) fn trim(&self, keep_from: u64) -> Result<u64, JournalError> {
        let mut victims = Vec::new();
        {
            let mut state = lock(&self.state);
            let keep = keep_from.min(state.durable.seq + 1).min(state.checkpoint.unwrap_or(u64::MAX));
            while state.segments.get(1).is_some_and(|next| next.first <= keep) {
                victims.extend(state.segments.pop_front());
            }
        }
        let mut freed = 0;
        for victim in &victims {
            let path = segment_path(&self.dir, victim.first);
            match self.disk.remove(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(JournalError::io("delete", path)(e));
                }
                _ => freed += victim.file_bytes,
            }
            if let Some(quota) = &self.options.quota {
                quota.release(victim.file_bytes);
            }
        }
        if freed > 0 {
            self.disk.sync_dir(&self.dir).map_err(JournalError::io("sync", &self.dir))?;
        }
        Ok(freed)
    }
}

/// The side of a log that many may hold.
pub struct LogHandle<D: Disk = RealDisk> {
    shared: Arc<Shared<D>>,
}

impl<D: Disk> Clone for LogHandle<D> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<D: Disk> LogHandle<D> {
    pub(crate) fn new(shared: Arc<Shared<D>>) -> Self {
        Self { shared }
    }

    /// Every frame up to this one is durable.
    pub fn durable(&self) -> FrameSeq {
        FrameSeq(self.shared.durable())
    }

    /// The newest frame written, durable or not.
    pub fn appended(&self) -> FrameSeq {
        FrameSeq(lock(&self.shared.state).appended.seq)
    }

    /// The oldest frame that is still there; one after the newest when there is none.
    pub fn first(&self) -> FrameSeq {
        let state = lock(&self.shared.state);
        FrameSeq(state.segments.front().map_or(state.appended.seq + 1, |s| s.first))
    }

    /// Makes everything appended so far durable, from any thread; appending goes on meanwhile.
    pub fn sync(&self) -> Result<FrameSeq, JournalError> {
        self.shared.sync()
    }

    /// A reader of durable frames from `from` on.
    pub fn reader(&self, from: FrameSeq) -> Reader<D> {
        Reader::new(self.shared.clone(), from)
    }

    /// Changes to what [`LogHandle::durable`] says. Closed when the log is poisoned or its writer is gone.
    pub fn watch(&self) -> watch::Receiver<FrameSeq> {
        self.shared.tail.clone()
    }

    /// Blocks until a frame after `after` is durable, the log is poisoned or closed, or the time is over;
    /// returns what is durable then.
    pub fn wait_durable(&self, after: FrameSeq, time_out: Duration) -> FrameSeq {
        let deadline = Instant::now() + time_out;
        let mut state = lock(&self.shared.state);
        while state.durable.seq <= after.0 && state.moved.is_some() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        FrameSeq(state.durable.seq)
    }

    /// Why the log is poisoned, if it is.
    pub fn poisoned(&self) -> Option<String> {
        lock(&self.shared.state).poisoned.clone()
    }

    /// Bytes of frames and checkpoints written since the log was opened: what the disk had to take.
    pub fn written_bytes(&self) -> u64 {
        lock(&self.shared.state).written
    }

    /// Bytes of all segment files.
    pub fn bytes(&self) -> u64 {
        lock(&self.shared.state).segments.iter().map(|s| s.file_bytes).sum()
    }

    /// How many segment files.
    pub fn segments(&self) -> usize {
        lock(&self.shared.state).segments.len()
    }

    /// The newest durable checkpoint, read from disk.
    pub fn newest_checkpoint(&self) -> Result<Option<Frame>, JournalError> {
        let Some(first) = lock(&self.shared.state).checkpoint else { return Ok(None) };
        read_checkpoint(&self.shared.disk, &self.shared.dir, first)
    }

    /// Deletes whole segments all of whose frames are below `keep_from`, and returns the bytes freed. The
    /// segment of the newest checkpoint stays, whatever was asked. Call it only once that which makes the
    /// frames unnecessary is durable.
    pub fn trim(&self, keep_from: FrameSeq) -> Result<u64, JournalError> {
        self.shared.trim(keep_from.0)
    }
}

/// The checkpoint at the start of a segment, if it is whole.
pub(super) fn read_checkpoint<D: Disk>(
    disk: &D,
    dir: &Path,
    first: u64,
) -> Result<Option<Frame>, JournalError> {
    let path = segment_path(dir, first);
    let read = || -> io::Result<Option<Frame>> {
        let file = disk.open_read(&path)?;
        let limit = file.size()?;
        let mut cursor = Cursor::new(Arc::new(file), Stride::Hop);
        let (mut meta, mut payload) = (Vec::new(), Vec::new());
        let Some(header) = cursor.head_at(0, limit, &(first..first + 1), &mut meta)? else { return Ok(None) };
        if header.kind != crate::frame::CHECKPOINT || !cursor.payload(0, &header, limit, &mut payload)? {
            return Ok(None);
        }
        Ok(Some(Frame { seq: FrameSeq(first), kind: header.kind, meta, payload }))
    };
    match read() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map_err(JournalError::io("read", &path)),
    }
}
