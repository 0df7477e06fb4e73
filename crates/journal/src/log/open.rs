//! Opening: find the segments, walk the headers of the newest, cut a torn tail.
//!
//! All segments but the newest were synced before the next one was made, so they are not looked at: their last
//! number is one less than the next one's name. In the newest, frames up to the highest `durable` that any of its
//! frames tells are known to have been whole: a bad one among them is damage, stays, and is quarantined. The
//! first bad one above is where a crash stopped the writing: the log is cut there, zeros are put behind the cut
//! and synced, so that nothing of the old tail can ever be taken for a frame again.
//!
//! Good frames above it may stand in the page cache only: the process may have been killed before its sync, or
//! after a sync that failed, and then the kernel holds the pages for clean. They are written again and synced
//! before anybody may read them.

use super::{
    Log, LogOptions, Newest, Recovery,
    shared::{Segment, Shared, Tail, read_checkpoint},
};
use crate::{
    cursor::{Cursor, Stride},
    disk::{Disk, DiskFile},
    error::JournalError,
    frame::{CHECKPOINT, FrameSeq, Gap, GapCause, HEADER_BYTES},
    limits,
};
use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
};

const SUFFIX: &str = ".seg";

pub(crate) fn segment_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}{SUFFIX}"))
}

/// First numbers of all segments, in order.
pub(crate) fn list_segments<D: Disk>(disk: &D, dir: &Path) -> io::Result<Vec<u64>> {
    let mut found: Vec<u64> = disk
        .list(dir)?
        .iter()
        .filter_map(|name| name.strip_suffix(SUFFIX)?.parse().ok())
        .filter(|&first| first > 0)
        .collect();
    found.sort_unstable();
    Ok(found)
}

pub(super) fn open<D: Disk>(
    disk: D,
    dir: &Path,
    options: LogOptions,
) -> Result<(Log<D>, Recovery), JournalError> {
    let options =
        LogOptions { segment_bytes: options.segment_bytes.max(limits::SEGMENT_BYTES_MIN), ..options };
    disk.create_dir_all(dir).map_err(JournalError::io("make", dir))?;
    let mut firsts = list_segments(&disk, dir).map_err(JournalError::io("list", dir))?;
    let mut recovery = Recovery::default();
    let mut next = 1;
    let (mut newest, mut index) = (None, Vec::new());
    if let Some(&first) = firsts.last() {
        let path = segment_path(dir, first);
        let found = recover(&disk, &path, first, options.segment_bytes)
            .map_err(JournalError::io("recover", &path))?;
        recovery.torn_bytes = found.torn_bytes;
        recovery.quarantined = found.quarantined;
        next = found.next;
        (newest, index) = (found.newest, found.index);
        recovery.unreadable = found.unreadable;
        if newest.is_none() && !found.unreadable {
            // Not even its checkpoint became durable. The empty file stays for its name: numbers below it may
            // have been told to somebody, and must not be given to other frames. The next segment takes it over.
            let emptied = disk.open(&path).and_then(|file| file.set_len(0).and_then(|()| file.sync_data()));
            emptied.map_err(JournalError::io("empty the unfinished", &path))?;
            firsts.pop();
        }
        // The process may have been killed between making a segment and making its name durable.
        disk.sync_dir(dir).map_err(JournalError::io("sync", dir))?;
    }
    let mut segments = measure(&disk, dir, &firsts, newest.as_ref().map(|n| n.file_bytes))?;
    recovery.bytes = segments.iter().map(|s| s.file_bytes).sum();
    recovery.segments = segments.len();
    if let Some(quota) = &options.quota {
        quota.add(recovery.bytes);
    }
    let mut checkpoint = None;
    for &first in firsts.iter().rev() {
        if read_checkpoint(&disk, dir, first)?.is_some() {
            checkpoint = Some(first);
            break;
        }
    }
    recovery.checkpoint = checkpoint.map(FrameSeq);
    recovery.next = FrameSeq(next);
    recovery.first = firsts.first().copied().map(FrameSeq);
    recovery.last = recovery.first.map(|_| FrameSeq(next - 1));
    if let (Some(_), Some(last)) = (&newest, segments.back_mut()) {
        index.into_iter().for_each(|(seq, offset)| last.note(seq, offset));
    }
    let tail = Tail { seq: next - 1, offset: newest.as_ref().map_or(0, |n| n.tail) };
    let file = newest.as_ref().map(|n| n.file.clone());
    let shared = Arc::new(Shared::new(disk, dir, options, segments, file, tail, checkpoint));
    Ok((Log { shared, newest, next, lacks_checkpoint: checkpoint.is_none() }, recovery))
}

fn measure<D: Disk>(
    disk: &D,
    dir: &Path,
    firsts: &[u64],
    newest_bytes: Option<u64>,
) -> Result<VecDeque<Segment>, JournalError> {
    let mut segments = VecDeque::with_capacity(firsts.len());
    for (i, &first) in firsts.iter().enumerate() {
        let path = segment_path(dir, first);
        let bytes = match newest_bytes.filter(|_| i + 1 == firsts.len()) {
            Some(bytes) => bytes,
            None => {
                disk.open_read(&path).and_then(|f| f.size()).map_err(JournalError::io("measure", path))?
            }
        };
        segments.push_back(Segment::new(first, bytes));
    }
    Ok(segments)
}

struct Recovered<F> {
    /// `None` when nothing of the segment ever became durable, or it cannot be read.
    newest: Option<Newest<F>>,
    /// Places for its sparse index.
    index: Vec<(u64, u64)>,
    next: u64,
    torn_bytes: u64,
    quarantined: Vec<Gap>,
    unreadable: bool,
}

/// The walk over the newest segment.
struct Walk {
    /// Where the good prefix ends and the number that follows it.
    tail: u64,
    next: u64,
    /// The highest `durable` that any frame tells.
    durable: u64,
    /// Numbers that are missing between good frames, first and last.
    holes: Vec<(u64, u64)>,
    index: Vec<(u64, u64)>,
    /// Where the first frame starts that nothing proves to have been synced.
    unproven: Option<u64>,
    used: bool,
}

fn recover<D: Disk>(disk: &D, path: &Path, first: u64, segment_bytes: u64) -> io::Result<Recovered<D::File>> {
    let file = Arc::new(disk.open(path)?);
    let size = file.size()?;
    let mut cursor = Cursor::new(file.clone(), Stride::Hop);
    // What the name tells: everything before was durable when the file was made.
    let durable = walk_durable(&mut cursor, first, size)?;
    let walk = walk_frames(&mut cursor, first, size, durable)?;
    let written = cursor.last_written(walk.tail, size)?;
    if cursor.met_unreadable() {
        // Nothing is changed where the disk does not say what is there: readers take what they can, now or after
        // a repair, and the log goes on in a new segment with numbers that cannot have been used here.
        let possible = (size - walk.tail) / HEADER_BYTES as u64;
        let next = walk.next + possible + 1;
        return Ok(Recovered {
            newest: None,
            index: Vec::new(),
            next,
            torn_bytes: 0,
            quarantined: Vec::new(),
            unreadable: true,
        });
    }
    let torn_bytes = written - walk.tail;
    let quarantined = walk
        .holes
        .iter()
        .map(|&(first, last)| Gap { first: FrameSeq(first), last: FrameSeq(last), cause: GapCause::Damaged })
        .collect();
    if walk.tail == 0 && walk.durable < first {
        return Ok(Recovered {
            newest: None,
            index: Vec::new(),
            next: first,
            torn_bytes,
            quarantined: Vec::new(),
            unreadable: false,
        });
    }
    let mut file_bytes = size;
    // A frame that is longer than its segment makes the file grow as it is written: what fills it up to the next place
    // may be missing, and is made good here.
    if torn_bytes > 0 || size < segment_bytes.max(walk.tail) {
        file.set_len(walk.tail)?;
        file_bytes = walk.tail;
        // Without room to preallocate the log opens all the same; an append will say what is wrong.
        if walk.tail < segment_bytes && file.allocate(segment_bytes).is_ok() {
            file_bytes = file.size()?;
        }
    }
    if let Some(from) = walk.unproven {
        write_again(&*file, from, walk.tail)?;
    }
    file.sync_data()?;
    let salt = cursor.salt().unwrap_or(0);
    let newest = Newest { first, file, salt, tail: walk.tail, file_bytes, used: walk.used };
    Ok(Recovered {
        newest: Some(newest),
        index: walk.index,
        next: walk.next,
        torn_bytes,
        quarantined,
        unreadable: false,
    })
}

/// Makes pages dirty again whose sync may have failed.
fn write_again<F: DiskFile>(file: &F, mut from: u64, to: u64) -> io::Result<()> {
    let mut buf = vec![0; limits::READ_CHUNK_BYTES];
    while from < to {
        let want = buf.len().min((to - from) as usize);
        let got = file.read_at(&mut buf[..want], from)?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        file.write_at(&[IoSlice::new(&buf[..got])], from)?;
        from += got as u64;
    }
    Ok(())
}

/// The highest number that some frame of the segment proves to have been durable.
fn walk_durable<F: DiskFile>(cursor: &mut Cursor<F>, first: u64, size: u64) -> io::Result<u64> {
    let (mut at, mut expected, mut durable) = (0, first, first - 1);
    let mut meta = Vec::new();
    while let Some((place, header)) = cursor.find(at, size, &(expected..u64::MAX), &mut meta)? {
        durable = durable.max(header.durable);
        expected = header.seq + 1;
        at = place + header.frame_bytes();
    }
    Ok(durable)
}

/// The frames that stay.
fn walk_frames<F: DiskFile>(cursor: &mut Cursor<F>, first: u64, size: u64, durable: u64) -> io::Result<Walk> {
    let mut walk = Walk {
        tail: 0,
        next: first,
        durable,
        holes: Vec::new(),
        index: Vec::new(),
        unproven: None,
        used: false,
    };
    let mut meta = Vec::new();
    loop {
        let seqs = walk.next..u64::MAX;
        let found = cursor.find(walk.tail, size, &seqs, &mut meta)?;
        let Some((at, header)) = found.filter(|(_, h)| h.seq == walk.next || h.seq <= durable + 1) else {
            break;
        };
        // A frame that was perhaps never synced counts only if it stands exactly behind the last good one, or
        // behind damage that was durable, and is whole.
        let stands = at == walk.tail || walk.next <= durable;
        if header.seq > durable && !(stands && cursor.payload_holds(at, &header, size)?) {
            break;
        }
        if header.seq > walk.next {
            walk.holes.push((walk.next, header.seq - 1));
        }
        if at >= walk.index.last().map_or(0, |&(_, noted)| noted) + limits::INDEX_EVERY_BYTES {
            walk.index.push((header.seq, at));
        }
        if header.seq > durable {
            walk.unproven.get_or_insert(at);
        }
        walk.used |= header.kind != CHECKPOINT;
        walk.next = header.seq + 1;
        walk.tail = at + header.frame_bytes();
    }
    if walk.next <= durable {
        // Frames that were durable are damaged and none follows them: their numbers stay taken.
        walk.holes.push((walk.next, durable));
        walk.next = durable + 1;
        walk.used = true;
    }
    Ok(walk)
}
