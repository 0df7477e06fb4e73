//! Looking at a log that is in use, and at one that is closed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use journal::{CHECKPOINT, FrameSeq, Log, LogOptions, RealDisk, inspect};

#[test]
fn sizes_checks_and_exports_agree_with_the_log_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions { segment_bytes: 8192, salt: 5, quota: None };
    let empty = inspect::status(&RealDisk, dir.path()).unwrap();
    assert_eq!(empty, inspect::LogStatus::default());
    let (mut log, _) = Log::open(RealDisk, dir.path(), options).unwrap();
    for i in 0..100u32 {
        log.append(2, &i.to_le_bytes(), &[&[1; 500]], &mut || vec![3; 50]).unwrap();
    }
    let last = log.sync().unwrap();
    let before: Vec<_> = names(dir.path());
    for _ in 0..2 {
        let status = inspect::status(&RealDisk, dir.path()).unwrap();
        assert_eq!((status.first, status.last, status.frames), (Some(FrameSeq(1)), Some(last), last.0));
        assert_eq!((status.bytes, status.segments), (log.handle().bytes(), log.handle().segments()));
        assert_eq!(status.checkpoint, log.newest_checkpoint().unwrap().map(|frame| frame.seq));
        let report = inspect::check(&RealDisk, dir.path()).unwrap();
        assert_eq!((report.frames, report.damage.len(), report.unfinished_bytes), (last.0, 0, 0));
        assert_eq!(report.payload_bytes, 100 * 500 + report.checkpoints * 50);
        let from = FrameSeq(last.0 / 2);
        let frames: Vec<_> =
            inspect::export(&RealDisk, dir.path(), from).unwrap().map(|f| f.unwrap()).collect();
        assert_eq!(frames.first().map(|f| f.seq), Some(from));
        assert_eq!(frames.last().map(|f| f.seq), Some(last));
        assert!(frames.iter().all(|f| f.kind == CHECKPOINT || f.payload == [1; 500]));
        assert_eq!(names(dir.path()), before);
    }
    drop(log);
    assert_eq!(inspect::status(&RealDisk, dir.path()).unwrap().last, Some(last));
}

fn names(dir: &std::path::Path) -> Vec<(std::ffi::OsString, u64, std::time::SystemTime)> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            (entry.file_name(), meta.len(), meta.modified().unwrap())
        })
        .collect();
    names.sort();
    names
}
