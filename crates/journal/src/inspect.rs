//! Looking at a log without owning it: its folder may be closed or in use. Nothing is ever changed.
//!
//! In a folder in use, frames that are written and not yet synced are seen too, and segments may disappear
//! while they are read; a segment that disappeared is passed over.

use crate::{
    cursor::{Cursor, Stride},
    disk::{Disk, DiskFile, RealDisk},
    error::JournalError,
    frame::{CHECKPOINT, Frame, FrameSeq, Gap, GapCause, Header},
    log::{list_segments, segment_path},
};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A log at a glance; only headers of its newest segment were read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogStatus {
    /// Bytes of all segment files, preallocated space included.
    pub bytes: u64,
    /// Segment files.
    pub segments: usize,
    /// Frames from the first to the last.
    pub frames: u64,
    /// The oldest.
    pub first: Option<FrameSeq>,
    /// The newest.
    pub last: Option<FrameSeq>,
    /// The newest checkpoint.
    pub checkpoint: Option<FrameSeq>,
}

/// What [`check`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckReport {
    /// Segment files read.
    pub segments: usize,
    /// Whole frames.
    pub frames: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// Checkpoints among them.
    pub checkpoints: u64,
    /// What is not readable and should be.
    pub damage: Vec<Damage>,
    /// Bytes behind the newest whole frame: a torn tail, or a frame that is being written.
    pub unfinished_bytes: u64,
}

/// One damaged place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The segment file.
    pub path: PathBuf,
    /// Where in it the first missing frame should start.
    pub offset: u64,
    /// The frames that are missing.
    pub gap: Gap,
}

/// Sizes and ends of the log in `dir`.
pub fn status<D: Disk>(disk: &D, dir: &Path) -> Result<LogStatus, JournalError> {
    let firsts = list_segments(disk, dir).map_err(JournalError::io("list", dir))?;
    let mut status = LogStatus::default();
    for &first in &firsts {
        if let Some(size) =
            present(disk.open_read(&segment_path(dir, first)).and_then(|file| file.size()), dir)?
        {
            status.bytes += size;
            status.segments += 1;
        }
    }
    let Some((&first, &newest)) = firsts.first().zip(firsts.last()) else { return Ok(status) };
    let mut last = newest - 1;
    let mut walk = Walk::new(disk.clone(), dir, vec![newest]);
    while let Some(found) = walk.step()? {
        if let Found::Head { header, .. } = found {
            last = header.seq;
            if header.kind == CHECKPOINT {
                status.checkpoint = Some(FrameSeq(header.seq));
            }
        }
    }
    if last >= first {
        (status.first, status.last) = (Some(FrameSeq(first)), Some(FrameSeq(last)));
        status.frames = last - first + 1;
    }
    if status.checkpoint.is_none() {
        status.checkpoint = firsts.iter().rev().find(|&&f| f <= last).copied().map(FrameSeq);
    }
    Ok(status)
}

/// Reads everything and proves every checksum.
pub fn check<D: Disk>(disk: &D, dir: &Path) -> Result<CheckReport, JournalError> {
    let firsts = list_segments(disk, dir).map_err(JournalError::io("list", dir))?;
    let mut report = CheckReport::default();
    let mut walk = Walk::new(disk.clone(), dir, firsts);
    while let Some(found) = walk.step()? {
        match found {
            Found::Damage(damage) => report.damage.push(damage),
            Found::Head { at, header, .. } if walk.payload_holds(at, &header)? => {
                report.frames += 1;
                report.payload_bytes += u64::from(header.payload_bytes);
                report.checkpoints += u64::from(header.kind == CHECKPOINT);
            }
            Found::Head { at, header, .. } => report.damage.push(Damage {
                path: walk.path(),
                offset: at,
                gap: gap(header.seq, header.seq, GapCause::Damaged),
            }),
        }
    }
    report.segments = walk.segments_read;
    report.unfinished_bytes = walk.unfinished_bytes;
    Ok(report)
}

/// All readable frames from `from` on, payloads included; damage is passed over.
pub fn export<D: Disk>(disk: &D, dir: &Path, from: FrameSeq) -> Result<Export<D>, JournalError> {
    let mut firsts = list_segments(disk, dir).map_err(JournalError::io("list", dir))?;
    let skip = firsts.partition_point(|&first| first <= from.0).saturating_sub(1);
    firsts.drain(..skip);
    Ok(Export { walk: Walk::new(disk.clone(), dir, firsts), from: from.0, damage: Vec::new() })
}

/// The iterator of [`export`].
pub struct Export<D: Disk = RealDisk> {
    walk: Walk<D>,
    from: u64,
    damage: Vec<Damage>,
}

impl<D: Disk> Export<D> {
    /// What was passed over so far.
    pub fn damage(&self) -> &[Damage] {
        &self.damage
    }

    fn next_frame(&mut self) -> Result<Option<Frame>, JournalError> {
        while let Some(found) = self.walk.step()? {
            let (at, header, meta) = match found {
                Found::Head { at, header, meta } => (at, header, meta),
                Found::Damage(damage) => {
                    self.damage.push(damage);
                    continue;
                }
            };
            if header.seq < self.from {
                continue;
            }
            if let Some(payload) = self.walk.payload(at, &header)? {
                return Ok(Some(Frame { seq: FrameSeq(header.seq), kind: header.kind, meta, payload }));
            }
            let gap = gap(header.seq, header.seq, GapCause::Damaged);
            self.damage.push(Damage { path: self.walk.path(), offset: at, gap });
        }
        Ok(None)
    }
}

impl<D: Disk> Iterator for Export<D> {
    type Item = Result<Frame, JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_frame().transpose()
    }
}

enum Found {
    Head { at: u64, header: Header, meta: Vec<u8> },
    Damage(Damage),
}

/// Goes over frame heads of some segments.
struct Walk<D: Disk> {
    disk: D,
    dir: PathBuf,
    firsts: Vec<u64>,
    /// Index of the current segment.
    segment: usize,
    current: Option<(Cursor<D::File>, u64)>,
    at: u64,
    next: u64,
    /// A head that was found behind damage and comes next.
    held: Option<(u64, Header, Vec<u8>)>,
    segments_read: usize,
    unfinished_bytes: u64,
}

impl<D: Disk> Walk<D> {
    fn new(disk: D, dir: &Path, firsts: Vec<u64>) -> Self {
        let next = firsts.first().copied().unwrap_or(1);
        Self {
            disk,
            dir: dir.to_owned(),
            firsts,
            segment: 0,
            current: None,
            at: 0,
            next,
            held: None,
            segments_read: 0,
            unfinished_bytes: 0,
        }
    }

    fn path(&self) -> PathBuf {
        segment_path(&self.dir, self.firsts[self.segment])
    }

    fn step(&mut self) -> Result<Option<Found>, JournalError> {
        if let Some((at, header, meta)) = self.held.take() {
            return Ok(Some(Found::Head { at, header, meta }));
        }
        while self.segment < self.firsts.len() {
            if self.current.is_none() && !self.enter()? {
                self.segment += 1;
                continue;
            }
            let path = self.path();
            let end = self.firsts.get(self.segment + 1).copied().unwrap_or(u64::MAX);
            let Some((cursor, size)) = self.current.as_mut() else { continue };
            let mut meta = Vec::new();
            let found = cursor.find(self.at, *size, &(self.next..end), &mut meta);
            let expected = self.next;
            let offset = self.at;
            match found.map_err(JournalError::io("read", &path))? {
                Some((at, header)) => {
                    self.next = header.seq + 1;
                    self.at = at + header.frame_bytes();
                    if header.seq == expected {
                        return Ok(Some(Found::Head { at, header, meta }));
                    }
                    self.held = Some((at, header, meta));
                    let gap = gap(expected, header.seq - 1, GapCause::Damaged);
                    return Ok(Some(Found::Damage(Damage { path, offset, gap })));
                }
                None => {
                    let written =
                        cursor.last_written(self.at, *size).map_err(JournalError::io("read", &path))?;
                    let left = written - self.at;
                    self.current = None;
                    self.segment += 1;
                    if end == u64::MAX {
                        self.unfinished_bytes = left;
                    } else if expected < end {
                        let cause = if left > 0 { GapCause::Damaged } else { GapCause::Missing };
                        return Ok(Some(Found::Damage(Damage {
                            path,
                            offset,
                            gap: gap(expected, end - 1, cause),
                        })));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Opens the current segment; false when it is gone.
    fn enter(&mut self) -> Result<bool, JournalError> {
        let first = self.firsts[self.segment];
        let opened = self.disk.open_read(&self.path()).and_then(|file| Ok((file.size()?, file)));
        let Some((size, file)) = present(opened, &self.path())? else { return Ok(false) };
        self.current = Some((Cursor::new(Arc::new(file), Stride::Hop), size));
        self.at = 0;
        self.next = first;
        self.segments_read += 1;
        Ok(true)
    }

    fn payload_holds(&mut self, at: u64, header: &Header) -> Result<bool, JournalError> {
        let path = self.path();
        let Some((cursor, size)) = self.current.as_mut() else { return Ok(false) };
        cursor.payload_holds(at, header, *size).map_err(JournalError::io("read", path))
    }

    fn payload(&mut self, at: u64, header: &Header) -> Result<Option<Vec<u8>>, JournalError> {
        let path = self.path();
        let Some((cursor, size)) = self.current.as_mut() else { return Ok(None) };
        let mut out = Vec::new();
        let whole = cursor.payload(at, header, *size, &mut out).map_err(JournalError::io("read", path))?;
        Ok(whole.then_some(out))
    }
}

fn gap(first: u64, last: u64, cause: GapCause) -> Gap {
    Gap { first: FrameSeq(first), last: FrameSeq(last), cause }
}

/// A file that was deleted meanwhile is no error.
fn present<T>(result: io::Result<T>, path: &Path) -> Result<Option<T>, JournalError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(JournalError::io("open", path)(e)),
    }
}
