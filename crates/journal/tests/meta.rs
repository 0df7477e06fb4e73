//! The index: what it holds, how it follows the log, and that no damage keeps anybody waiting.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use journal::{Changes, FrameSeq, Meta, MetaError, MetaOptions, MetaStart, RebuildCause, limits};
use record::clock::{Random, SeededRandom};
use std::{collections::BTreeMap, path::Path, time::Duration};

fn open(dir: &Path, oldest: u64, newest: u64) -> (Meta, MetaStart) {
    Meta::open(dir, FrameSeq(oldest), FrameSeq(newest), MetaOptions::default()).unwrap()
}

fn put(key: &[u8], value: &[u8]) -> Changes {
    Changes { puts: vec![(key.to_vec(), value.to_vec())], deletes: Vec::new() }
}

#[test]
fn holds_what_a_plain_map_holds_also_long_values_and_strange_keys() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.sled");
    let (meta, start) = open(&path, 1, 0);
    assert_eq!(start, MetaStart::Current);
    let (random, mut plain) = (SeededRandom::new(11), BTreeMap::new());
    let key = || -> Vec<u8> {
        (0..random.next_u64() % 4).map(|_| [0, 1, 255, b'a'][random.next_u64() as usize % 4]).collect()
    };
    for seq in 1..=150u64 {
        let mut changes = Changes::default();
        for _ in 0..random.next_u64() % 8 {
            let len = [0, 10, 4087, 4088, 4089, 9000, 20_000][random.next_u64() as usize % 7];
            let value: Vec<u8> = (0..len).map(|i| (i as u64 ^ seq) as u8).collect();
            changes.puts.push((key(), value));
        }
        // The same key twice in one step is the caller's business: the last put counts.
        changes.puts.sort_by(|a, b| a.0.cmp(&b.0));
        changes.puts.dedup_by(|a, b| a.0 == b.0);
        changes.deletes = (0..random.next_u64() % 3)
            .map(|_| key())
            .filter(|k| changes.puts.iter().all(|p| p.0 != *k))
            .collect();
        for key in &changes.deletes {
            plain.remove(key);
        }
        plain.extend(changes.puts.iter().cloned());
        meta.commit(FrameSeq(seq), changes).unwrap();
    }
    let all: Vec<_> = plain.clone().into_iter().collect();
    assert_eq!(meta.scan_prefix(&[], 1000).unwrap(), all);
    for (key, value) in &plain {
        assert_eq!(meta.get(key).unwrap().as_ref(), Some(value));
    }
    let with_prefix: Vec<_> = all.iter().filter(|(k, _)| k.starts_with(&[0])).cloned().collect();
    assert_eq!(meta.scan_prefix(&[0], 1000).unwrap(), with_prefix);
    let mut paged = meta.scan_prefix(&[0], 3).unwrap();
    while let Some(more) =
        paged.last().map(|(last, _)| meta.scan_after(&[0], last, 3).unwrap()).filter(|m| !m.is_empty())
    {
        paged.extend(more);
    }
    assert_eq!(paged, with_prefix);
    assert_eq!(meta.blobs(), 0);
    let too_large = meta.put(b"k", &vec![0; limits::META_VALUE_BYTES_MAX + 1]);
    assert!(matches!(too_large, Err(MetaError::TooLarge { .. })));
    meta.settle().unwrap();
    meta.close();
    drop(meta);
    let (meta, start) = open(&path, 1, 150);
    assert_eq!(start, MetaStart::Current);
    assert_eq!(meta.scan_prefix(&[], 1000).unwrap(), all);
}

#[test]
fn says_what_must_be_done_beside_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.sled");
    let reopen = |oldest, newest| {
        let (meta, start) = open(&path, oldest, newest);
        (meta, start)
    };
    let (meta, _) = reopen(1, 0);
    meta.commit(FrameSeq(40), put(b"a", b"1")).unwrap();
    meta.close();
    assert_eq!(reopen(1, 40).1, MetaStart::Current);
    assert_eq!(reopen(30, 45).1, MetaStart::Behind(FrameSeq(40)));
    assert_eq!(reopen(41, 45).1, MetaStart::Behind(FrameSeq(40)));
    let (meta, start) = reopen(42, 45);
    assert_eq!(start, MetaStart::Rebuild(RebuildCause::TooFarBehind(FrameSeq(40))));
    assert_eq!(meta.get(b"a").unwrap(), None, "rebuilding starts from nothing");
    meta.apply(put(b"a", b"2")).unwrap();
    meta.close();
    // The filling was not committed: it does not count.
    let (meta, start) = reopen(42, 45);
    assert_eq!(start, MetaStart::Rebuild(RebuildCause::Missing));
    assert_eq!(meta.get(b"a").unwrap(), None);
    meta.commit(FrameSeq(46), put(b"a", b"3")).unwrap();
    meta.close();
    assert_eq!(reopen(42, 45).1, MetaStart::Rebuild(RebuildCause::Ahead(FrameSeq(46))));
    std::fs::remove_dir_all(&path).unwrap();
    let (meta, start) = reopen(42, 45);
    assert_eq!(start, MetaStart::Rebuild(RebuildCause::Missing));
    meta.commit(FrameSeq(45), Changes::default()).unwrap();
    meta.close();
    drop(meta);
    let newest = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).max().unwrap();
    std::fs::write(newest.join("blobs").join("17"), b"x").unwrap();
    assert_eq!(reopen(42, 45).1, MetaStart::Rebuild(RebuildCause::Blobs));
}

#[test]
fn a_slow_store_is_moved_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.sled");
    let (meta, _) = open(&path, 1, 0);
    meta.commit(FrameSeq(3), put(b"a", b"1")).unwrap();
    meta.close();
    drop(meta);
    let hasty = MetaOptions { open_deadline: Duration::ZERO, ..MetaOptions::default() };
    let (meta, start) = Meta::open(&path, FrameSeq(1), FrameSeq(3), hasty).unwrap();
    assert_eq!(start, MetaStart::Rebuild(RebuildCause::Slow));
    meta.commit(FrameSeq(3), put(b"a", b"1")).unwrap();
    assert_eq!(meta.get(b"a").unwrap(), Some(b"1".to_vec()));
    assert!(path.join("store-1").exists() && path.join("store-2").exists());
}

#[test]
fn damage_of_any_file_ends_in_an_answer() {
    let master = tempfile::tempdir().unwrap();
    let path = master.path().join("meta.sled");
    let (meta, _) = open(&path, 1, 0);
    for seq in 1..=200u64 {
        meta.commit(FrameSeq(seq), put(format!("key {seq}").as_bytes(), &[seq as u8; 700])).unwrap();
    }
    meta.settle().unwrap();
    meta.close();
    drop(meta);
    for seed in 0..24u64 {
        let (random, dir) = (SeededRandom::new(seed), tempfile::tempdir().unwrap());
        let root = dir.path().join("meta.sled");
        let copy = root.join("store-1");
        std::fs::create_dir_all(copy.join("blobs")).unwrap();
        for name in ["db", "conf"] {
            std::fs::copy(path.join("store-1").join(name), copy.join(name)).unwrap();
        }
        let name = if seed % 6 == 0 { "conf" } else { "db" };
        let mut bytes = std::fs::read(copy.join(name)).unwrap();
        let at = random.next_u64() as usize % bytes.len();
        let end = bytes.len().min(at + 4096);
        match seed % 3 {
            0 => bytes[at..end].iter_mut().for_each(|b| *b = random.next_u64() as u8),
            1 => bytes[at..end].fill(0),
            _ => bytes.truncate(at),
        }
        std::fs::write(copy.join(name), bytes).unwrap();
        let (meta, start) = open(&root, 1, 200);
        // Behind or rebuilt or, when the damage hit nothing that matters, current: then values are right.
        for seq in 1..=200u64 {
            match meta.get(format!("key {seq}").as_bytes()) {
                Ok(Some(value)) => assert_eq!(value, vec![seq as u8; 700], "seed {seed}"),
                Ok(None) => {
                    assert_ne!(start, MetaStart::Current, "seed {seed}: {seq} is lost without a word")
                }
                Err(_) => break,
            }
        }
        let failed = meta.failed().is_some();
        meta.close();
        drop(meta);
        if failed {
            let (_, start) = open(&root, 1, 200);
            assert!(matches!(start, MetaStart::Rebuild(RebuildCause::Damaged(_))), "seed {seed}: {start:?}");
        }
    }
}
