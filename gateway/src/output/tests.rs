//! A lane over the real output log on a simulated disk: wherever the power goes, the rows that leave are the same.

use super::{
    Loss, PendingStep, Writer,
    frame::{STEP, Step},
    recover,
};
use crate::{
    config::{Config, From},
    dead_letter::row_json,
    lanes::blocks,
    step::{
        Lane, StepError, Troubles, keys,
        tests::{HOT, NOW, SUMS, config, events, modules, readings, row},
    },
};
use journal::{FrameSeq, JournalError, Log, LogOptions, disk::sim::SimDisk};
use proptest::prelude::*;
use record::{Digest, Incarnation, Seq, StreamName, block, chain_hash};
use std::{collections::BTreeMap, path::Path};

const DIR: &str = "/output";
const LIFE: Incarnation = Incarnation(7);

/// What central would have got: rows and blocks of every stream.
#[derive(Debug, Default, PartialEq)]
struct Sent {
    rows: BTreeMap<StreamName, Vec<String>>,
    blocks: BTreeMap<(StreamName, Seq), (Seq, Digest)>,
}

/// A step as one input frame's events: the input log of this test is a list.
type Input = [Vec<String>];

fn open(disk: &SimDisk) -> Result<Log<SimDisk>, JournalError> {
    let options = LogOptions { segment_bytes: 4_096, salt: 3, quota: None };
    Log::open(disk.clone(), Path::new(DIR), options).map(|(log, _)| log)
}

/// Opens the log, goes on where it ends, and works through the input until the end or the first failure. What is
/// durable at each sync is what may have left.
fn work(
    disk: &SimDisk,
    config: &Config,
    input: &Input,
    frames_a_step: &[usize],
    left: &mut Sent,
) -> Result<(), JournalError> {
    let log = open(disk)?;
    let recovered = recover(&log, LIFE).map_err(|e| match e {
        super::RecoveryError::Journal(e) => e,
        other => panic!("{other}"),
    })?;
    let root = &config.streams[0];
    assert!(matches!(root.from, From::Sources { .. }));
    let image = &recovered.image;
    let consumed = image.get(&keys::consumed(&root.name)).and_then(keys::read_u64).unwrap_or(0);
    let lane = Lane::new(root, &config.streams, &modules, image, NOW, &Troubles::default());
    let mut lane = lane.map_err(|e: StepError| panic!("{e}"))?;
    let (mut writer, output) = Writer::new(log, LIFE, recovered.image, Box::new(|| true));
    sent(&writer.log(), left);
    let mut at = consumed as usize;
    let mut sizes = frames_a_step.iter().cycle();
    while at < input.len() {
        let next = (at + sizes.next().copied().unwrap_or(1)).min(input.len());
        let payloads: Vec<String> = input[at..next].concat();
        let mut fx = lane.step(&events(&payloads), NOW).unwrap_or_else(|e| panic!("{e}"));
        let blocks = blocks(&mut fx, NOW.wall_ns, false).expect("rows fit");
        at = next;
        let step = PendingStep {
            lane: root.name.clone(),
            consumed: FrameSeq(at as u64),
            made_ns: NOW.wall_ns,
            changes: fx.take_changes(),
            counts: std::mem::take(&mut fx.counts),
            blocks,
            losses: Vec::new(),
        };
        output.write(step).expect("the writer is here");
        writer.take_waiting()?;
        sent(&writer.log(), left);
    }
    for (stream, state) in &output.snapshot().borrow().streams {
        assert_eq!(state.counts.missing(), 0, "{stream}");
        assert_eq!(state.counts.produced, state.last.0, "{stream}");
    }
    Ok(())
}

/// Reads every durable frame and checks that what left before is still the same, dense and chained.
fn sent(log: &journal::LogHandle<SimDisk>, left: &mut Sent) {
    let mut now = Sent::default();
    let mut chains: BTreeMap<StreamName, (Seq, Digest)> = BTreeMap::new();
    let mut reader = log.reader(FrameSeq(1));
    while let Ok(Some(frame)) = reader.next() {
        if frame.kind != STEP {
            continue;
        }
        let step = Step::read(&frame, LIFE).expect("a whole step");
        for (header, bytes) in step.blocks() {
            let (last, hash) = chains.get(&header.stream).copied().unwrap_or_default();
            assert_eq!((header.first, header.prev_hash), (last.next(), hash), "{}", header.stream);
            let expected =
                chain_hash(&hash, &header.stream, LIFE, header.first, header.last, header.schema, bytes);
            assert_eq!(header.hash, expected);
            let batch = block::decode(bytes).expect("decodes");
            assert_eq!(batch.rows() as u64, header.rows());
            let rows = now.rows.entry(header.stream.clone()).or_default();
            rows.extend((0..batch.rows()).map(|r| row_json(&batch, r)));
            now.blocks.insert((header.stream.clone(), header.first), (header.last, header.hash));
            chains.insert(header.stream.clone(), (header.last, header.hash));
        }
    }
    for (key, block) in &left.blocks {
        assert_eq!(now.blocks.get(key), Some(block), "a block that left has changed: {key:?}");
    }
    *left = now;
}

/// Dead letters may change places among themselves.
fn settled(mut sent: Sent) -> BTreeMap<StreamName, Vec<String>> {
    if let Some(letters) = sent.rows.get_mut(&StreamName::new(record::DEAD_LETTERS).expect("valid")) {
        letters.sort();
    }
    sent.rows
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn wherever_the_power_goes_the_same_rows_leave(
        readings in readings(),
        frame_sizes in proptest::collection::vec(1usize..6, 1..8),
        frames_a_step in proptest::collection::vec(1usize..5, 1..6),
        power in proptest::collection::vec(1u64..60, 0..12),
        seed: u64,
    ) {
        let config = config(&format!("{HOT}{SUMS}"));
        let payloads: Vec<String> = readings.iter().map(|(d, t, v)| row(&format!("d{d}"), *t, *v)).collect();
        let (mut rest, mut input, mut sizes) = (&payloads[..], Vec::new(), frame_sizes.iter().cycle());
        while !rest.is_empty() {
            let (frame, after) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
            input.push(frame.to_vec());
            rest = after;
        }

        let (calm, mut whole) = (SimDisk::new(seed, 1 << 26), Sent::default());
        work(&calm, &config, &input, &[1], &mut whole).expect("nothing fails on a calm disk");

        let (disk, mut left) = (SimDisk::new(seed, 1 << 26), Sent::default());
        for n in power {
            disk.power_off_after(n);
            let ended = work(&disk, &config, &input, &frames_a_step, &mut left);
            disk.crash();
            if ended.is_ok() {
                break;
            }
        }
        work(&disk, &config, &input, &frames_a_step, &mut left).expect("the power stays");
        prop_assert_eq!(settled(left), settled(whole));
    }
}

#[test]
fn an_outage_is_one_entry_of_the_ledger() {
    let loss = |first, last, from_s: i64, to_s: i64| Loss {
        stream: StreamName::new("m").expect("a name"),
        seqs: (Seq(first), Seq(last)),
        times_ns: (from_s * 1_000_000_000, to_s * 1_000_000_000),
        rows: 5,
        reason: "full".to_owned(),
    };
    let grown = loss(1, 5, 0, 9).grown_by(&loss(6, 10, 500, 501)).expect("its seqs go on");
    assert_eq!((grown.seqs, grown.rows, grown.times_ns.1), ((Seq(1), Seq(10)), 10, 501_000_000_000));
    assert!(loss(1, 5, 0, 9).grown_by(&loss(7, 10, 10, 11)).is_none(), "rows between them were stored");
    assert!(loss(0, 0, 0, 9).grown_by(&loss(0, 0, 69, 70)).is_some());
    assert!(loss(0, 0, 0, 9).grown_by(&loss(0, 0, 70, 71)).is_none(), "another outage");
    assert!(loss(0, 0, 0, 9).grown_by(&loss(1, 5, 10, 11)).is_none());
    let other = Loss { reason: "other".to_owned(), ..loss(6, 10, 9, 10) };
    assert!(loss(1, 5, 0, 9).grown_by(&other).is_none());
}
