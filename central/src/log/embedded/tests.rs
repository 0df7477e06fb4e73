use super::{super::*, *};
use link::receive::Head;
use record::{Digest, GatewayId, Incarnation, Seq, StreamName, clock::SeededRandom};

pub(super) fn options(segment_bytes: u64) -> EmbeddedOptions {
    EmbeddedOptions { segment_bytes, keep_bytes: 0, ..EmbeddedOptions::default() }
}

fn names() -> (GatewayId, StreamName) {
    (GatewayId::new("plant-7").expect("valid"), StreamName::new("machine").expect("valid"))
}

pub(super) fn data(n: u64, bytes: usize) -> DataRecord {
    let (gateway, stream) = names();
    let headers = RecordHeaders {
        content_type: ContentType::ArrowStream,
        stream,
        schema: 1,
        gateway,
        incarnation: Incarnation(1),
        first_seq: Seq(n),
        last_seq: Seq(n),
        rows: 1,
        prev_hash: Digest::default(),
        hash: Digest::of(&n.to_le_bytes()),
        produced_at_ns: 0,
    };
    DataRecord { headers, bytes: Bytes::from(vec![n as u8; bytes]) }
}

pub(super) fn head(last: u64) -> ProgressRecord {
    let (gateway, stream) = names();
    let value = Progress::Head(Head {
        incarnation: Incarnation(1),
        last: Seq(last),
        hash: Digest::of(&last.to_le_bytes()),
        rows: last,
        lost: 0,
        rows_before: 0,
        retired: Vec::new(),
    });
    ProgressRecord { gateway, stream, value }
}

const P: Partition = Partition(0);
const S: Shard = Shard(0);

async fn high<D: Disk>(log: &Embedded<D>) -> Offset {
    log.status(P).await.expect("there").high
}

async fn read_all<D: Disk>(log: &Embedded<D>, mut from: Offset, max: usize) -> Vec<u64> {
    let mut out = Vec::new();
    loop {
        let records = log.read("t", P, from, max).await.expect("readable");
        let Some(last) = records.last() else { return out };
        from = last.offset.next();
        out.extend(records.iter().map(|r| {
            assert_eq!(r.bytes.first(), Some(&(r.headers.first_seq.0 as u8)));
            r.headers.first_seq.0
        }));
    }
}

#[tokio::test]
async fn groups_come_back_after_a_restart() {
    let dir = tempfile::tempdir().expect("temp dir");
    let random = SeededRandom::new(1);
    let id = {
        let log = Embedded::open(RealDisk, dir.path(), &options(4096), &random).expect("opens");
        for n in 0..50 {
            let records = vec![data(2 * n + 1, 100), data(2 * n + 2, 100)];
            log.commit_group(S, records, vec![head(2 * n + 2)]).await.expect("commits");
            assert_eq!(high(&log).await, Offset(2 * n + 2));
        }
        log.commit_group(S, vec![], vec![head(100)]).await.expect("progress alone");
        log.commit_offset("audit", P, LEASE, Offset(3), "x").await.expect("commits");
        assert_eq!(read_all(&log, Offset(0), 1).await, (1..=100).collect::<Vec<_>>());
        log.id().to_owned()
    };
    let log = Embedded::open(RealDisk, dir.path(), &options(4096), &random).expect("opens");
    assert_eq!(log.id(), id);
    assert_eq!(high(&log).await, Offset(100));
    assert_eq!(log.progress(S).await.expect("there"), vec![head(100)]);
    assert_eq!(read_all(&log, Offset(0), 1 << 20).await, (1..=100).collect::<Vec<_>>());
    assert_eq!(read_all(&log, Offset(77), 150).await, (78..=100).collect::<Vec<_>>());
    let kept = log.committed("audit", P).await.expect("there");
    assert_eq!(kept, Some(Committed { offset: Offset(3), metadata: "x".into() }));
    assert_eq!(log.committed("audit", Partition(1)).await, Ok(None));
    assert!(matches!(log.read("t", Partition(9), Offset(0), 1).await, Err(ReadError::NoPartition(_))));
}

#[tokio::test]
async fn only_what_every_group_has_is_deleted() {
    let dir = tempfile::tempdir().expect("temp dir");
    let random = SeededRandom::new(2);
    let groups = vec!["sink".to_owned(), "copy".to_owned()];
    let opts = EmbeddedOptions { groups, ..options(4096) };
    let log = Embedded::open(RealDisk, dir.path(), &opts, &random).expect("opens");
    for n in 1..=200 {
        log.commit_group(S, vec![data(n, 200)], vec![head(n)]).await.expect("commits");
    }
    let full = log.status(P).await.expect("there");
    assert_eq!(full.low, Offset(0));
    log.commit_offset("sink", P, LEASE, Offset(200), "").await.expect("commits");
    assert_eq!(log.status(P).await.expect("there").low, Offset(0), "the other group has not begun");
    log.commit_offset("copy", P, LEASE, Offset(100), "").await.expect("commits");
    let some = log.status(P).await.expect("there");
    assert!(some.low > Offset(80) && some.low <= Offset(100), "{some:?}");
    assert!(some.bytes < full.bytes);
    assert!(matches!(log.read("t", P, Offset(0), 1).await, Err(ReadError::Trimmed { .. })));
    assert_eq!(read_all(&log, some.low, 500).await.last(), Some(&200));
    // After a restart the progress and the offsets of what was deleted are still known.
    drop(log);
    let log = Embedded::open(RealDisk, dir.path(), &opts, &random).expect("opens");
    assert_eq!(log.progress(S).await.expect("there"), vec![head(200)]);
    log.commit_offset("copy", P, LEASE, Offset(200), "").await.expect("commits");
    assert!(log.status(P).await.expect("there").bytes <= 2 * 4096);
}

#[tokio::test]
async fn over_the_quota_nothing_is_written_and_later_it_goes_on() {
    let dir = tempfile::tempdir().expect("temp dir");
    let random = SeededRandom::new(3);
    let opts = EmbeddedOptions { quota_bytes: 64 << 10, partitions: 1, ..options(4096) };
    let log = Embedded::open(RealDisk, dir.path(), &opts, &random).expect("opens");
    let mut n = 0;
    let refused = loop {
        match log.commit_group(S, vec![data(n + 1, 1000)], vec![head(n + 1)]).await {
            Ok(_) => n += 1,
            Err(e) => break e,
        }
    };
    assert!(matches!(refused, CommitError::Full { .. }), "{refused}");
    assert_eq!(high(&log).await, Offset(n));
    assert_eq!(log.progress(S).await.expect("there"), vec![head(n)]);
    log.commit_offset("sink", P, LEASE, Offset(n), "").await.expect("commits");
    log.commit_group(S, vec![data(n + 1, 1000)], vec![head(n + 1)]).await.expect("there is room again");
}

/// The smallest quota that the configuration takes, with what is kept by default: more than the quota.
#[tokio::test]
async fn what_is_kept_never_keeps_the_log_full() {
    let dir = tempfile::tempdir().expect("temp dir");
    let defaults = EmbeddedOptions { segment_bytes: 1 << 20, partitions: 1, ..EmbeddedOptions::default() };
    let opts = EmbeddedOptions { quota_bytes: defaults.quota_bytes_min(), ..defaults };
    assert!(opts.keep_bytes > opts.quota_bytes);
    let log = Embedded::open(RealDisk, dir.path(), &opts, &SeededRandom::new(5)).expect("opens");
    for n in 1..=3 * opts.quota_bytes / (512 << 10) {
        log.commit_group(S, vec![data(n, 512 << 10)], vec![head(n)]).await.expect("there is room");
        log.commit_offset("sink", P, LEASE, Offset(n), "").await.expect("commits");
    }
    let ample = EmbeddedOptions::default();
    assert_eq!(ample.kept_bytes(), ample.keep_bytes, "an ample quota keeps what is asked for");
}

#[tokio::test]
async fn another_shape_is_refused() {
    let dir = tempfile::tempdir().expect("temp dir");
    let random = SeededRandom::new(4);
    let log = Embedded::open(RealDisk, dir.path(), &options(4096), &random).expect("opens");
    assert!(matches!(
        log.commit_offset("sink", P, LEASE, Offset(1), "").await,
        Err(CommitError::Refused { .. })
    ));
    assert!(matches!(
        log.commit_offset("sink", P, LEASE, Offset(0), &"x".repeat(5000)).await,
        Err(CommitError::Refused { .. })
    ));
    drop(log);
    let other = EmbeddedOptions { partitions: 3, ..options(4096) };
    let error = Embedded::open(RealDisk, dir.path(), &other, &random).expect_err("refused");
    assert!(error.to_string().contains("has 2 partitions and the configuration says 3"), "{error}");
}
