//! The whole way over the real disk: hand-off, log, reader, restart, trim.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use journal::{
    CHECKPOINT, FrameMeta, FrameSeq, Hub, HubOptions, JournalError, Log, LogOptions, PushError, Quota,
    RealDisk,
};
use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
    time::Duration,
};

#[derive(Default)]
struct Count(u32);

impl FrameMeta for Count {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0.to_le_bytes());
    }
}

fn options(segment_bytes: u64) -> LogOptions {
    LogOptions { segment_bytes, salt: 7, quota: None }
}

fn open(dir: &Path, options: LogOptions) -> Log {
    Log::open(RealDisk, dir, options).unwrap().0
}

fn wait(hub: &Hub<Count>, ticket: journal::Ticket) {
    let mut watch = hub.watch();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { watch.wait_for(|&round| round >= ticket.0).await.map(|_| ()).unwrap() });
}

/// Events of all frames in order, and how many checkpoints stood between them.
fn events(log: &Log) -> (Vec<u32>, usize) {
    let (mut reader, mut events, mut checkpoints) = (log.reader(FrameSeq(1)), Vec::new(), 0);
    while let Some(frame) = reader.next().unwrap() {
        if frame.kind == CHECKPOINT {
            checkpoints += 1;
            continue;
        }
        let count = u32::from_le_bytes(frame.meta.as_slice().try_into().unwrap());
        assert_eq!(frame.payload.len(), 4 * count as usize);
        events.extend(frame.payload.chunks(4).map(|e| u32::from_le_bytes(e.try_into().unwrap())));
    }
    assert!(reader.take_gaps().is_empty());
    (events, checkpoints)
}

#[test]
fn events_of_many_connections_come_back_in_each_ones_order() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), options(4096));
    let hub_options = HubOptions { window: Duration::from_millis(1), ..HubOptions::default() };
    let hub = Hub::<Count>::start(log, hub_options, Box::new(|| b"state".to_vec())).unwrap();
    thread::scope(|scope| {
        for connection in 0..4u32 {
            let hub = &hub;
            scope.spawn(move || {
                let mut last = None;
                for i in 0..500u32 {
                    let event = (connection << 16 | i).to_le_bytes();
                    last = Some(hub.push(&event, 1, |meta| meta.0 += 1).unwrap());
                    if i % 50 == 0 {
                        wait(hub, last.unwrap());
                    }
                }
                wait(hub, last.unwrap());
            });
        }
    });
    assert_eq!(hub.stats().events, 2000);
    hub.close().unwrap();
    assert_eq!(hub.push(b"late", 1, |_| {}), Err(PushError::Closed));
    drop(hub);
    let (log, recovery) = Log::open(RealDisk, dir.path(), options(4096)).unwrap();
    assert_eq!((recovery.torn_bytes, recovery.first), (0, Some(FrameSeq(1))));
    let (events, checkpoints) = events(&log);
    assert!(checkpoints >= 2, "2,000 events do not fit one segment");
    for connection in 0..4u32 {
        let own: Vec<u32> = events.iter().filter(|&&e| e >> 16 == connection).map(|e| e & 0xffff).collect();
        assert_eq!(own, (0..500).collect::<Vec<_>>());
    }
}

#[test]
fn trim_frees_all_but_the_newest_segment_and_keeps_its_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path(), options(4096));
    let mut checkpoint = || vec![9; 100];
    for i in 0..100u32 {
        log.append(1, &i.to_le_bytes(), &[&[1; 300], &[2; 10]], &mut checkpoint).unwrap();
    }
    let durable = log.sync().unwrap();
    assert!(log.handle().segments() > 5);
    let mut behind = log.reader(FrameSeq(1));
    assert_eq!(behind.next().unwrap().unwrap().kind, CHECKPOINT);
    log.trim(FrameSeq(u64::MAX)).unwrap();
    assert_eq!(log.handle().segments(), 1);
    assert_eq!(log.handle().bytes(), 4096);
    assert_eq!(log.newest_checkpoint().unwrap().unwrap().payload, vec![9; 100]);
    let mut last = FrameSeq(0);
    while let Some(frame) = behind.next().unwrap() {
        assert!(frame.seq > last);
        last = frame.seq;
    }
    assert_eq!(last, durable);
    assert_eq!(behind.take_gaps().len(), 1);
    let mut hop = log.reader(log.handle().first());
    let mut heads = 0;
    while let Some(head) = hop.next_meta().unwrap() {
        heads += 1;
        assert!(head.kind == CHECKPOINT || head.payload_bytes == 310);
    }
    assert_eq!(heads, durable.0 - log.handle().first().0 + 1);
}

/// Bytes of the files in a folder.
fn bytes_in(dir: &Path) -> u64 {
    std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn the_quota_is_exact_also_after_a_restart_and_tells_intake_first() {
    let (dir, files) = (tempfile::tempdir().unwrap(), |dir: &Path| bytes_in(&dir.join("log")));
    let with_quota = || {
        let quota = Quota::new(&RealDisk, dir.path(), 5 * 4096, 0).unwrap();
        (quota.clone(), LogOptions { quota: Some(quota), ..options(4096) })
    };
    let (quota, opening) = with_quota();
    let mut log = open(&dir.path().join("log"), opening);
    let mut checkpoint = Vec::new;
    let full = loop {
        if let Err(e) = log.append(1, &[], &[&[5; 700]], &mut checkpoint) {
            break e;
        }
    };
    assert!(matches!(full, JournalError::OverQuota { .. }), "{full}");
    assert!(!quota.admits(4096));
    assert_eq!(quota.used(), files(dir.path()));
    let durable = log.sync().unwrap();
    drop(log);
    let (quota, opening) = with_quota();
    let log = open(&dir.path().join("log"), opening);
    assert_eq!(log.durable(), durable);
    assert_eq!(quota.used(), files(dir.path()));
    let options = HubOptions { quota: Some(quota.clone()), reserve_bytes: 4096, ..HubOptions::default() };
    let hub = Hub::<Count>::start(log, options, Box::new(Vec::new)).unwrap();
    assert_eq!(hub.push(b"more", 1, |_| {}), Err(PushError::OverQuota));
    hub.log().trim(durable.next()).unwrap();
    assert_eq!(quota.used(), files(dir.path()));
    let ticket = hub.push(b"more", 1, |_| {}).unwrap();
    wait(&hub, ticket);
    hub.close().unwrap();
}

/// A finished segment gives back what it did not need while somebody else may be deleting it.
#[test]
fn the_quota_is_exact_when_segments_are_trimmed_as_they_are_finished() {
    let dir = tempfile::tempdir().unwrap();
    let quota = Quota::new(&RealDisk, dir.path(), 1 << 20, 0).unwrap();
    let opening = LogOptions { quota: Some(quota.clone()), ..options(4096) };
    let (mut log, _) = Log::open(RealDisk, &dir.path().join("log"), opening).unwrap();
    let (handle, done) = (log.handle(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(SeqCst) {
                handle.trim(FrameSeq(handle.durable().0 + 1)).unwrap();
            }
        });
        let appended =
            (0..2_000).try_for_each(|_| log.append(1, &[], &[&[7; 2100]], &mut Vec::new).map(drop));
        done.store(true, SeqCst);
        appended.unwrap();
    });
    assert_eq!(quota.used(), handle.bytes());
    assert_eq!(quota.used(), bytes_in(&dir.path().join("log")));
}
