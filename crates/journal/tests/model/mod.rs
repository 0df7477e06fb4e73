//! A plain model beside the real log: random actions over the simulated disk, with crashes, kills, failed syncs,
//! failed writes, a full disk and power cuts in the middle of things. One seed is one run.

use journal::{CHECKPOINT, Disk, FrameSeq, JournalError, Log, LogOptions, disk::sim::SimDisk};
use record::clock::{Random, SeededRandom};
use std::{collections::BTreeMap, path::Path};

const DIR: &str = "/log";
const CAPACITY: u64 = 256 << 10;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Written {
    kind: u8,
    meta: Vec<u8>,
    payload: Vec<u8>,
}

struct Run {
    random: SeededRandom,
    disk: SimDisk,
    options: LogOptions,
    log: Option<Log<SimDisk>>,
    /// Everything ever appended that a reader may see, also what was trimmed; by seq.
    frames: BTreeMap<u64, Written>,
    /// What the log said is durable.
    durable: u64,
    /// Below this frames may be gone.
    trimmed: u64,
    counts: Counts,
}

/// What a run met, so that a test can see that it met everything.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub appends: u64,
    pub crashes: u64,
    pub kills: u64,
    pub poisoned: u64,
    pub no_space: u64,
    pub torn_bytes: u64,
    pub trimmed_bytes: u64,
}

/// Runs `steps` random actions; panics where the log and the model differ.
pub(crate) fn run(seed: u64, steps: u32) -> Counts {
    let random = SeededRandom::new(seed);
    let segment_bytes = [512, 2048, 8192][(random.next_u64() % 3) as usize];
    let mut run = Run {
        disk: SimDisk::new(random.next_u64(), CAPACITY),
        options: LogOptions { segment_bytes, salt: random.next_u64(), quota: None },
        random,
        log: None,
        frames: BTreeMap::new(),
        durable: 0,
        trimmed: 0,
        counts: Counts::default(),
    };
    run.reopen();
    for _ in 0..steps {
        run.step();
    }
    run.crash();
    run.check_all();
    run.counts
}

impl Run {
    fn below(&self, n: u64) -> u64 {
        self.random.next_u64() % n
    }

    fn bytes(&self, max: u64) -> Vec<u8> {
        let len = self.below(max);
        // Zeros now and then: a frame may look like space that was never written.
        let fill = if self.below(4) == 0 { 0 } else { self.random.next_u64() };
        (0..len).map(|i| (fill >> (i % 8 * 8)) as u8).collect()
    }

    fn log(&mut self) -> &mut Log<SimDisk> {
        self.log.as_mut().expect("open between steps")
    }

    fn step(&mut self) {
        match self.below(100) {
            0..50 => self.append(),
            50..68 => self.sync(),
            68..74 => self.read_some(),
            74..78 => self.trim(),
            78..80 => self.roll(None),
            80..82 => {
                let past = self.log().next_seq().0 + self.below(5);
                self.roll(Some(past));
            }
            82..87 => self.crash(),
            87..90 => self.kill(),
            90..93 => self.disk.power_off_after(1 + self.below(12)),
            93..95 => self.disk.fail_syncs(1),
            95..97 => self.disk.fail_writes(1),
            97..99 => self.disk.set_capacity(self.disk.used() + self.below(3000)),
            _ => self.disk.set_capacity(CAPACITY),
        }
    }

    fn append(&mut self) {
        let frame = Written { kind: self.below(3) as u8, meta: self.bytes(80), payload: self.bytes(1500) };
        let split = self.below(frame.payload.len() as u64 + 1) as usize;
        let (a, b) = frame.payload.split_at(split);
        let image = self.bytes(400);
        let mut made = false;
        let before = self.log().next_seq().0;
        let done = self.log().append(frame.kind, &frame.meta, &[a, b], &mut || {
            made = true;
            image.clone()
        });
        let after = self.log().next_seq().0;
        self.counts.appends += 1;
        match done {
            Ok(seq) => {
                assert_eq!(after, seq.0 + 1);
                assert_eq!(seq.0, before + u64::from(made));
                if made {
                    self.checkpointed(before, image);
                }
                self.frames.insert(seq.0, frame);
            }
            Err(e) => {
                let rolled = after > before;
                if rolled {
                    self.checkpointed(before, image.clone());
                }
                if matches!(e, JournalError::Poisoned { .. }) {
                    // The write or the new segment may be whole on disk all the same.
                    let checkpoint = Written { kind: CHECKPOINT, meta: Vec::new(), payload: image };
                    let maybe = if made && !rolled { checkpoint } else { frame };
                    self.frames.insert(after, maybe);
                }
                self.failed(e);
            }
        }
    }

    fn checkpointed(&mut self, seq: u64, payload: Vec<u8>) {
        self.frames.insert(seq, Written { kind: CHECKPOINT, meta: Vec::new(), payload });
        self.durable = seq;
        assert_eq!(self.log().durable(), FrameSeq(seq));
    }

    /// After an error: a full disk gets room again, anything else needs a restart.
    fn failed(&mut self, e: JournalError) {
        // What came before was perhaps synced on the way to a new segment.
        let durable = self.log().durable().0;
        assert!(durable >= self.durable && durable < self.log().next_seq().0);
        self.durable = durable;
        match e {
            JournalError::NoSpace { .. } => {
                self.counts.no_space += 1;
                if self.below(2) == 0 {
                    self.disk.set_capacity(CAPACITY);
                }
            }
            JournalError::Poisoned { .. } => {
                self.counts.poisoned += 1;
                let again = self.log().append(1, &[], &[b"x"], &mut Vec::new);
                assert!(matches!(again, Err(JournalError::Poisoned { .. })), "poisoned for ever after");
                assert!(matches!(self.log().sync(), Err(JournalError::Poisoned { .. })));
                self.restart();
            }
            _ => self.restart(),
        }
    }

    fn restart(&mut self) {
        if self.below(2) == 0 { self.crash() } else { self.kill() }
    }

    fn sync(&mut self) {
        let last = self.log().next_seq().0 - 1;
        match self.log().sync() {
            Ok(seq) => {
                assert_eq!(seq.0, last);
                self.durable = last;
            }
            Err(e) => self.failed(e),
        }
    }

    fn roll(&mut self, past: Option<u64>) {
        let image = self.bytes(3000);
        let (before, last) = (self.log().next_seq().0, past.unwrap_or(0));
        let mut checkpoint = || image.clone();
        let done = match past {
            Some(seq) => self.log().skip_past(FrameSeq(seq), &mut checkpoint),
            None => self.log().roll(&mut checkpoint),
        };
        let seq = before.max(last + 1);
        match done {
            Ok(()) => self.checkpointed(seq, image),
            Err(e) => {
                assert_eq!(self.log().next_seq().0, before);
                if matches!(e, JournalError::Poisoned { .. }) {
                    self.frames.insert(seq, Written { kind: CHECKPOINT, meta: Vec::new(), payload: image });
                }
                self.failed(e);
            }
        }
    }

    fn trim(&mut self) {
        let keep = self.below(self.durable + 3);
        let newest = self.newest_checkpoint();
        self.trimmed = self.trimmed.max(keep.min(newest));
        match self.log().trim(FrameSeq(keep)) {
            Ok(freed) => self.counts.trimmed_bytes += freed,
            Err(e) => return self.failed(e),
        }
        let first = self.log().handle().first().0;
        let lost = self.frames.range(self.trimmed..first.max(self.trimmed)).next();
        assert_eq!(lost, None, "{first} is the first now, {keep} was asked, {newest} is the checkpoint");
    }

    fn newest_checkpoint(&self) -> u64 {
        let durable = self.frames.range(..=self.durable).rev();
        durable.filter(|(_, frame)| frame.kind == CHECKPOINT).map(|(&seq, _)| seq).next().unwrap_or(0)
    }

    /// Power goes, power comes.
    fn crash(&mut self) {
        self.counts.crashes += 1;
        self.log = None;
        self.disk.crash();
        self.reopen();
    }

    /// The process is killed; what it wrote is still in the page cache, unless there is no power anyway.
    fn kill(&mut self) {
        if self.disk.list(Path::new(DIR)).is_err() {
            return self.crash();
        }
        self.counts.kills += 1;
        self.log = None;
        self.disk.fail_syncs(0);
        self.disk.fail_writes(0);
        self.reopen();
    }

    fn reopen(&mut self) {
        let mut tries = 0;
        let recovery = loop {
            match Log::open(self.disk.clone(), Path::new(DIR), self.options.clone()) {
                Ok((log, recovery)) => {
                    self.log = Some(log);
                    break recovery;
                }
                // The power may go while a start is under way, but not for ever.
                Err(error) => {
                    tries += 1;
                    assert!(tries < 1_000, "it never opens: {error}");
                    self.disk.crash();
                }
            }
        };
        self.counts.torn_bytes += recovery.torn_bytes;
        assert_eq!(recovery.quarantined, [], "nothing was damaged");
        let last = recovery.next.0 - 1;
        assert!(last >= self.durable, "{} was durable, the log ends at {last}", self.durable);
        let newest = self.frames.keys().next_back().copied().unwrap_or(0).max(self.durable);
        assert!(last <= newest, "{newest} was the last ever written, the log ends at {last}");
        self.frames.split_off(&(last + 1));
        self.durable = last;
        assert_eq!(self.log().durable().0, last);
        self.check_all();
    }

    /// Everything that must be there is there, once, in order, as it was written.
    fn check_all(&mut self) {
        let newest = self.newest_checkpoint();
        let found = self.log().newest_checkpoint();
        if let Ok(found) = found {
            assert_eq!(found.as_ref().map_or(0, |f| f.seq.0), newest);
            let payload = found.map(|f| f.payload);
            assert_eq!(payload.as_ref(), self.frames.get(&newest).map(|f| &f.payload));
        }
        self.check_from(1);
    }

    fn read_some(&mut self) {
        let from = 1 + self.below(self.durable + 2);
        self.check_from(from);
    }

    fn check_from(&mut self, from: u64) {
        let mut reader = self.log().reader(FrameSeq(from));
        let (mut read, mut missing) = (Vec::new(), Vec::new());
        loop {
            match reader.next() {
                Ok(Some(frame)) => {
                    let written = Written { kind: frame.kind, meta: frame.meta, payload: frame.payload };
                    assert_eq!(self.frames.get(&frame.seq.0), Some(&written), "frame {}", frame.seq);
                    read.push(frame.seq.0);
                }
                Ok(None) => break,
                // No power.
                Err(_) => return,
            }
            missing.extend(reader.take_gaps());
        }
        missing.extend(reader.take_gaps());
        assert!(read.is_sorted_by(|a, b| a < b));
        let expected =
            self.frames.range(from.max(self.trimmed)..=self.durable.max(from)).map(|(&seq, _)| seq);
        let expected: Vec<u64> = expected.filter(|&seq| seq <= self.durable).collect();
        let read_kept: Vec<u64> = read.iter().copied().filter(|&seq| seq >= self.trimmed).collect();
        assert_eq!(read_kept, expected);
        let mut covered: Vec<u64> = read;
        covered.extend(missing.iter().flat_map(|gap| gap.first.0..=gap.last.0));
        covered.sort_unstable();
        assert_eq!(covered, (from..=self.durable).collect::<Vec<_>>(), "read or reported, each once");
    }
}
