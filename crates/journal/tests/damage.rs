//! Bytes that change on the medium: what is lost is reported, everything else is read, and nothing loops.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use journal::{
    CHECKPOINT, Disk, DiskFile, Frame, FrameSeq, Log, LogOptions, Recovery, disk::sim::SimDisk, inspect,
};
use record::clock::{Random, SeededRandom};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::IoSlice,
    path::{Path, PathBuf},
};

const DIR: &str = "/log";
const HEADER: usize = 48;

fn options() -> LogOptions {
    LogOptions { segment_bytes: 2048, salt: 77, quota: None }
}

/// A log as it stands on disk after a clean end.
struct Sample {
    files: BTreeMap<PathBuf, Vec<u8>>,
    /// What each frame is, the file it stands in, and from where to where.
    frames: BTreeMap<u64, (Frame, PathBuf, usize, usize)>,
    /// Up to here some frame of the newest segment proves durability.
    proven: u64,
}

fn open(disk: &SimDisk) -> (Log<SimDisk>, Recovery) {
    Log::open(disk.clone(), Path::new(DIR), options()).unwrap()
}

fn sample(seed: u64) -> Sample {
    let (random, disk) = (SeededRandom::new(seed), SimDisk::new(seed, 1 << 20));
    let (mut log, _) = open(&disk);
    let mut places = BTreeMap::new();
    let mut proven = 0;
    for i in 0..30u64 {
        let payload: Vec<u8> = (0..random.next_u64() % 300).map(|_| random.next_u64() as u8).collect();
        let meta = i.to_le_bytes();
        proven = log.durable().0;
        log.append((i % 3) as u8, &meta, &[&payload], &mut || b"all there is to know".to_vec()).unwrap();
        if i % 3 == 0 {
            log.sync().unwrap();
        }
    }
    log.sync().unwrap();
    let names = disk.list(Path::new(DIR)).unwrap();
    let mut files = BTreeMap::new();
    for name in names {
        let path = Path::new(DIR).join(name);
        files.insert(path.clone(), disk.contents(&path).unwrap());
    }
    for path in files.keys() {
        let mut at = 0;
        let first: u64 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        let end = files.keys().filter(|p| *p > path).map(|p| p.file_stem().unwrap().to_str().unwrap()).next();
        let end = end.map_or(u64::MAX, |next| next.parse().unwrap());
        let mut reader = log.reader(FrameSeq(first));
        while reader.position().0 < end {
            let Some(frame) = reader.next().unwrap() else { break };
            let bytes = HEADER + frame.meta.len() + frame.payload.len();
            places.insert(frame.seq.0, (frame, path.clone(), at, at + bytes));
            at += bytes.next_multiple_of(8);
        }
    }
    assert!(files.len() >= 3 && places.len() == log.durable().0 as usize);
    Sample { files, frames: places, proven }
}

fn disk_of(files: &BTreeMap<PathBuf, Vec<u8>>) -> SimDisk {
    let disk = SimDisk::new(1, 8 << 20);
    disk.create_dir_all(Path::new(DIR)).unwrap();
    for (path, bytes) in files {
        let file = disk.create(path).unwrap();
        file.write_at(&[IoSlice::new(bytes)], 0).unwrap();
        file.sync_data().unwrap();
    }
    disk.sync_dir(Path::new(DIR)).unwrap();
    disk
}

/// Reads all; every frame read must be what was written, every one not read must be reported, once.
fn read_all(sample: &Sample, log: &Log<SimDisk>) -> BTreeSet<u64> {
    let mut reader = log.reader(FrameSeq(1));
    let (mut read, mut gaps) = (BTreeSet::new(), Vec::new());
    while let Some(frame) = reader.next().unwrap() {
        assert_eq!(Some(&frame), sample.frames.get(&frame.seq.0).map(|(frame, ..)| frame));
        assert!(read.insert(frame.seq.0));
        gaps.extend(reader.take_gaps());
    }
    gaps.extend(reader.take_gaps());
    for gap in gaps {
        for seq in gap.first.0..=gap.last.0 {
            assert!(!read.contains(&seq), "{seq} was read and reported missing");
        }
    }
    read
}

#[test]
fn one_flipped_byte_costs_one_frame_at_most() {
    let sample = sample(5);
    let all: BTreeSet<u64> = sample.frames.keys().copied().collect();
    let newest = sample.files.keys().next_back().unwrap();
    for path in sample.files.keys() {
        let end = sample.frames.values().filter(|(_, p, ..)| p == path).map(|&(.., end)| end).max().unwrap();
        for at in (0..end).step_by(3) {
            let hit =
                sample.frames.iter().find(|(_, (_, p, from, to))| p == path && (*from..*to).contains(&at));
            let mut files = sample.files.clone();
            files.get_mut(path).unwrap()[at] ^= 1 << (at % 8);
            let disk = disk_of(&files);
            let report = inspect::check(&disk, Path::new(DIR)).unwrap();
            let (log, recovery) = open(&disk);
            let read = read_all(&sample, &log);
            let Some((&lost, (frame, ..))) = hit else {
                assert_eq!(read, all, "padding at {at} of {path:?}");
                continue;
            };
            if path != newest || lost <= sample.proven {
                assert_eq!(
                    read,
                    all.iter().copied().filter(|&seq| seq != lost).collect(),
                    "{at} of {path:?}"
                );
                assert_eq!(report.damage.len(), 1);
                assert_eq!((report.damage[0].gap.first.0, report.damage[0].gap.last.0), (lost, lost));
                assert_eq!(report.frames, all.len() as u64 - 1);
            } else {
                // The last round cannot be told from one that was torn: it ends before the damage.
                assert_eq!(read, (1..lost).collect(), "{at} of {path:?}");
                assert!(recovery.torn_bytes > 0);
            }
            if frame.kind == CHECKPOINT && path == newest {
                let older = recovery.checkpoint.expect("an older one");
                assert!(older.0 < lost);
            }
        }
    }
}

#[test]
fn any_mutation_is_survived_and_the_log_goes_on() {
    let seeds = std::env::var("JOURNAL_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1500u64);
    let sample = sample(6);
    for seed in 0..seeds {
        let random = SeededRandom::new(seed);
        let below = |n: usize| (random.next_u64() % n.max(1) as u64) as usize;
        let mut files = sample.files.clone();
        for _ in 0..=below(4) {
            let path = files.keys().nth(below(files.len())).unwrap().clone();
            let other = files.values().nth(below(files.len())).unwrap().clone();
            let bytes = files.get_mut(&path).unwrap();
            let (at, len) = (below(bytes.len()), below(600));
            let end = (at + len).min(bytes.len());
            match below(8) {
                0 => bytes[at..end].fill(0),
                1 => bytes[at..end].iter_mut().for_each(|b| *b = random.next_u64() as u8),
                2 => bytes.truncate(at),
                3 => drop(bytes.drain(at..end)),
                4 => {
                    let from = below(other.len()).min(other.len().saturating_sub(end - at));
                    let copy = &other[from..(from + end - at).min(other.len())];
                    bytes[at..at + copy.len()].copy_from_slice(copy);
                }
                5 => {
                    let copy = bytes[at..end].to_vec();
                    bytes.splice(at..at, copy);
                }
                6 => drop(files.remove(&path)),
                _ => bytes[at] ^= 1 << below(8),
            }
            if files.is_empty() {
                break;
            }
        }
        let disk = disk_of(&files);
        inspect::status(&disk, Path::new(DIR)).unwrap();
        inspect::check(&disk, Path::new(DIR)).unwrap();
        inspect::export(&disk, Path::new(DIR), FrameSeq(1)).unwrap().for_each(|frame| drop(frame.unwrap()));
        let (mut log, recovery) = open(&disk);
        read_all(&sample, &log);
        let next = recovery.next;
        let seq = log.append(1, b"after", &[b"all"], &mut || b"state".to_vec()).unwrap();
        assert!(seq >= next, "seed {seed}");
        log.sync().unwrap();
        drop(log);
        let (log, again) = open(&disk);
        assert_eq!(again.last, Some(seq), "seed {seed}");
        let mut reader = log.reader(seq);
        assert_eq!(reader.next().unwrap().unwrap().payload, b"all", "seed {seed}");
        assert!(log.newest_checkpoint().unwrap().is_some(), "seed {seed}");
    }
}

#[test]
fn a_disk_that_cannot_be_read_costs_nothing_once_it_can() {
    let sample = sample(7);
    let disk = disk_of(&sample.files);
    disk.set_unreadable(true);
    let (mut log, recovery) = open(&disk);
    assert!(recovery.unreadable);
    let seq = log.append(1, &[], &[b"written blindly"], &mut Vec::new).unwrap();
    assert!(seq.0 > *sample.frames.keys().next_back().unwrap());
    log.sync().unwrap();
    drop(log);
    disk.set_unreadable(false);
    let (log, recovery) = open(&disk);
    assert_eq!((recovery.unreadable, recovery.last), (false, Some(seq)));
    let mut reader = log.reader(FrameSeq(1));
    for (frame, ..) in sample.frames.values() {
        assert_eq!(reader.next().unwrap().as_ref(), Some(frame));
    }
    assert_eq!(reader.next().unwrap().map(|frame| frame.kind), Some(CHECKPOINT));
    assert_eq!(reader.next().unwrap().map(|frame| frame.payload), Some(b"written blindly".to_vec()));
}

#[test]
fn a_frame_inside_a_payload_is_never_taken_for_one() {
    // What a sender would need to know is the salt of the segment.
    let foreign = SimDisk::new(1, 1 << 20);
    let strange = LogOptions { salt: 78, ..options() };
    let (mut log, _) = Log::open(foreign.clone(), Path::new(DIR), strange).unwrap();
    log.append(9, b"forged", &[b"forged"], &mut Vec::new).unwrap();
    let name = foreign.list(Path::new(DIR)).unwrap().remove(0);
    let forged = foreign.contents(&Path::new(DIR).join(&name)).unwrap()[48..160].to_vec();
    let disk = SimDisk::new(1, 1 << 20);
    let (mut log, _) = open(&disk);
    log.append(1, &[], &[&forged], &mut Vec::new).unwrap();
    for i in 0..5u8 {
        log.append(1, &[i], &[&[i; 9]], &mut Vec::new).unwrap();
        log.sync().unwrap();
    }
    drop(log);
    // The head of the frame that carries it is damaged, so the next whole frame is searched through its payload.
    disk.corrupt(&Path::new(DIR).join(&name), |bytes| bytes[48 + 9] ^= 1);
    let (log, recovery) = open(&disk);
    assert_eq!(recovery.quarantined.len(), 1);
    let mut reader = log.reader(FrameSeq(1));
    while let Some(frame) = reader.next().unwrap() {
        assert_ne!(frame.kind, 9);
    }
    assert_eq!(reader.take_gaps(), recovery.quarantined);
}
