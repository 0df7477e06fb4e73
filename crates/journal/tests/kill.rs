//! A real process, really killed: what it said is durable is there afterwards, once, in order.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use journal::{CHECKPOINT, FrameMeta, FrameSeq, Hub, HubOptions, Log, LogOptions, RealDisk};
use record::clock::{Random, SeededRandom};
use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const CHILD: &str = "JOURNAL_KILL_TEST_DIR";
const ROUNDS: u64 = 12;

#[derive(Default)]
struct Nothing;

impl FrameMeta for Nothing {
    fn encode(&self, _: &mut Vec<u8>) {}
}

fn open(dir: &Path) -> Log {
    Log::open(RealDisk, dir, LogOptions { segment_bytes: 128 << 10, salt: 3, quota: None }).unwrap().0
}

/// An event: its number and as many filler bytes as it has, up to 200.
fn event(number: u64) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend(vec![number as u8; (number % 200) as usize]);
    bytes
}

/// The last number in the log; numbers must be 1, 2, 3, …
fn last_event(log: &Log) -> u64 {
    let (mut reader, mut last) = (log.reader(FrameSeq(1)), 0);
    while let Some(frame) = reader.next().unwrap() {
        if frame.kind == CHECKPOINT {
            continue;
        }
        let mut rest = frame.payload.as_slice();
        while !rest.is_empty() {
            let expected = event(last + 1);
            assert_eq!(rest.get(..expected.len()), Some(expected.as_slice()), "event {}", last + 1);
            rest = &rest[expected.len()..];
            last += 1;
        }
    }
    assert!(reader.take_gaps().is_empty());
    last
}

/// The program that is killed: it runs only when started by the test below.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let log = open(Path::new(&dir));
    let mut next = last_event(&log) + 1;
    let options = HubOptions { window: Duration::from_micros(300), ..HubOptions::default() };
    let hub = Hub::<Nothing>::start(log, options, Box::new(|| vec![1; 1000])).unwrap();
    let mut out = std::io::stdout();
    let mut waiting = std::collections::VecDeque::new();
    loop {
        while waiting.len() < 64 {
            let ticket = hub.push(&event(next), 1, |_| {}).unwrap();
            waiting.push_back((ticket, next));
            next += 1;
        }
        let mut acknowledged = None;
        while let Some(&(_, number)) = waiting.front().filter(|(ticket, _)| hub.is_durable(*ticket)) {
            acknowledged = Some(number);
            waiting.pop_front();
        }
        match acknowledged {
            Some(number) => writeln!(out, "durable {number}").and_then(|()| out.flush()).unwrap(),
            None => std::thread::yield_now(),
        }
    }
}

#[test]
fn what_was_acknowledged_survives_every_kill_exactly_once() {
    let dir = tempfile::tempdir().unwrap();
    let seed = Instant::now().elapsed().as_nanos() as u64 ^ u64::from(std::process::id());
    eprintln!("seed {seed}");
    let random = SeededRandom::new(seed);
    let mut acknowledged = 0u64;
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let lines_before_the_kill = 1 + random.next_u64() % 120;
        let durable = |line: String| line.split("durable ").nth(1).and_then(|n| n.parse::<u64>().ok());
        for number in lines.by_ref().filter_map(durable).take(lines_before_the_kill as usize) {
            acknowledged = acknowledged.max(number);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it managed to say until it died counts too; a last line may be cut short.
        let said: Vec<u64> = lines.filter_map(durable).collect();
        let whole = said.len().saturating_sub(1);
        acknowledged = said[..whole].iter().copied().fold(acknowledged, u64::max);
        let last = last_event(&open(dir.path()));
        assert!(
            last >= acknowledged,
            "round {round}: {acknowledged} was acknowledged, the log ends at {last}"
        );
    }
    assert!(acknowledged > 100, "the writer got somewhere: {acknowledged}");
}
