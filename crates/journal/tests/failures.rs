//! A sync that fails, a write that fails, a disk that is full.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use journal::{
    FrameMeta, FrameSeq, Hub, HubOptions, JournalError, Log, LogOptions, PushError, RealDisk,
    disk::sim::SimDisk,
};
use std::{
    path::Path,
    process::Command,
    sync::mpsc,
    time::{Duration, Instant},
};

#[derive(Default)]
struct Nothing;

impl FrameMeta for Nothing {
    fn encode(&self, _: &mut Vec<u8>) {}
}

fn small() -> LogOptions {
    LogOptions { segment_bytes: 4096, salt: 1, quota: None }
}

fn sim() -> (SimDisk, Log<SimDisk>) {
    let disk = SimDisk::new(3, 1 << 20);
    let (mut log, _) = Log::open(disk.clone(), Path::new("/log"), small()).unwrap();
    log.append(1, &[], &[b"good"], &mut Vec::new).unwrap();
    log.sync().unwrap();
    (disk, log)
}

/// Waits for a condition, not for a time.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come true");
        std::thread::yield_now();
    }
}

#[test]
fn a_failed_sync_poisons_for_ever_and_shows_nothing() {
    let (disk, mut log) = sim();
    let watch = log.handle().watch();
    log.append(1, &[], &[b"lost?"], &mut Vec::new).unwrap();
    disk.fail_syncs(1);
    assert!(matches!(log.sync(), Err(JournalError::Poisoned { .. })));
    assert!(matches!(log.sync(), Err(JournalError::Poisoned { .. })), "asking again is known to lie");
    assert!(matches!(log.append(1, &[], &[], &mut Vec::new), Err(JournalError::Poisoned { .. })));
    assert!(matches!(log.roll(&mut Vec::new), Err(JournalError::Poisoned { .. })));
    assert_eq!(log.durable(), FrameSeq(2));
    assert!(watch.has_changed().is_err(), "who waits is told");
    assert_eq!(log.handle().wait_durable(FrameSeq(2), Duration::from_secs(60)), FrameSeq(2), "at once");
    let mut reader = log.reader(FrameSeq(3));
    assert!(reader.next().unwrap().is_none());
}

#[test]
fn a_failed_write_poisons_too() {
    let (disk, mut log) = sim();
    disk.fail_writes(1);
    assert!(matches!(log.append(1, &[], &[&[1; 99]], &mut Vec::new), Err(JournalError::Poisoned { .. })));
    assert!(log.handle().poisoned().unwrap().contains("writing"));
}

#[test]
fn the_hand_off_refuses_all_after_a_failed_sync() {
    let (disk, log) = sim();
    let hub = Hub::<Nothing, SimDisk>::start(log, HubOptions::default(), Box::new(Vec::new)).unwrap();
    disk.fail_syncs(1);
    let watch = hub.watch();
    let ticket = hub.push(b"event", 1, |_| {}).unwrap();
    until("poison", || hub.is_poisoned());
    assert_eq!(hub.push(b"event", 1, |_| {}), Err(PushError::Poisoned));
    assert!(!hub.is_durable(ticket));
    until("the end of the watch", || watch.has_changed().is_err());
    assert!(matches!(hub.close(), Err(JournalError::Poisoned { .. })));
}

#[test]
fn a_round_that_is_full_and_a_push_that_is_too_large() {
    let (_disk, log) = sim();
    let options = HubOptions {
        window: Duration::from_secs(3600),
        backlog_bytes: 1000,
        push_bytes: 3950,
        ..HubOptions::default()
    };
    // The first round needs a new segment, and its checkpoint keeps the writer busy until the holder is gone.
    let (entered, begun) = mpsc::channel();
    let (holder, held) = mpsc::channel::<()>();
    let checkpoint = Box::new(move || {
        entered.send(()).unwrap();
        assert!(held.recv().is_err());
        Vec::new()
    });
    let hub = Hub::<Nothing, SimDisk>::start(log, options, checkpoint).unwrap();
    assert_eq!(hub.push(&[0; 3951], 1, |_| {}), Err(PushError::TooLarge { bytes: 3951, max: 3950 }));
    hub.push(&[0; 3950], 1, |_| {}).unwrap();
    begun.recv().unwrap();
    hub.push(&[0; 900], 1, |_| {}).unwrap();
    // A large push finds room behind small ones.
    let ticket = hub.push(&[0; 1200], 1, |_| {}).unwrap();
    assert_eq!(hub.push(&[0; 1], 1, |_| panic!("nothing of it is kept")), Err(PushError::Full));
    assert_eq!(hub.backlog_bytes(), 2100);
    drop(holder);
    // What takes nothing more is written at once, however long the window and the round may be.
    until("the full round is durable", || hub.is_durable(ticket));
    let ticket = hub.push(&[0; 1], 1, |_| {}).unwrap();
    // A polite end makes durable what was taken.
    hub.close().unwrap();
    assert!(hub.is_durable(ticket));
}

/// A file system of its own, gone with the value. `None` where mounting is not allowed.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={size}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "journal-test"]).arg(dir.path()).output();
        let mounted = mounted.is_ok_and(|done| done.status.success());
        assert!(mounted || std::env::var_os("CI").is_none(), "a tmpfs cannot be mounted");
        mounted.then_some(Self(dir))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_file_system_is_told_clearly_and_works_again_after_a_trim() {
    let Some(tmpfs) = Tmpfs::mount("2m") else {
        eprintln!("mounting is not allowed here: the simulated disk runs full in tests/crashes.rs");
        return;
    };
    let dir = tmpfs.0.path().join("log");
    let options = LogOptions { segment_bytes: 256 << 10, salt: 1, quota: None };
    let (mut log, _) = Log::open(RealDisk, &dir, options.clone()).unwrap();
    let mut appended = FrameSeq(0);
    let full = loop {
        match log.append(1, &[], &[&[7; 10_000]], &mut || vec![1; 100]) {
            Ok(seq) => appended = seq,
            Err(e) => break e,
        }
    };
    assert!(matches!(full, JournalError::NoSpace { .. }), "{full}");
    assert_eq!(log.sync().unwrap(), appended);
    // A start on the full disk finds all of it.
    drop(log);
    let (mut log, recovery) = Log::open(RealDisk, &dir, options).unwrap();
    assert_eq!((recovery.last, recovery.torn_bytes), (Some(appended), 0));
    let mut reader = log.reader(FrameSeq(1));
    while reader.next().unwrap().is_some() {}
    assert_eq!((reader.position(), reader.take_gaps()), (appended.next(), Vec::new()));
    assert!(log.append(1, &[], &[&[7; 10_000]], &mut Vec::new).unwrap_err().is_full());
    assert!(log.trim(appended).unwrap() > 0);
    log.append(1, &[], &[&[7; 10_000]], &mut Vec::new).unwrap();
    log.sync().unwrap();
}

#[test]
fn the_hand_off_waits_for_room_and_goes_on() {
    let Some(tmpfs) = Tmpfs::mount("2m") else { return };
    let options = LogOptions { segment_bytes: 256 << 10, salt: 1, quota: None };
    let (log, _) = Log::open(RealDisk, &tmpfs.0.path().join("log"), options).unwrap();
    // However long the writer waits for its turn, a round fits what trimming gives back.
    let (round_bytes, backlog_bytes) = (100 << 10, 200 << 10);
    let window = Duration::from_micros(100);
    let options = HubOptions { window, round_bytes, backlog_bytes, ..HubOptions::default() };
    let hub = Hub::<Nothing>::start(log, options, Box::new(Vec::new)).unwrap();
    let mut last = None;
    until("a full disk", || match hub.push(&[1; 20_000], 1, |_| {}) {
        Ok(ticket) => {
            last = Some(ticket);
            false
        }
        Err(PushError::Full) => false,
        Err(e) => {
            assert_eq!(e, PushError::OverQuota);
            true
        }
    });
    let last = last.unwrap();
    assert!(!hub.is_durable(last), "the round that met the full disk waits");
    hub.log().trim(hub.log().durable()).unwrap();
    until("the waiting round", || hub.is_durable(last));
    assert!(hub.stats().stalls > 0);
    assert_eq!(hub.push(b"more", 1, |_| {}).map(|_| ()), Ok(()));
    hub.close().unwrap();
}
