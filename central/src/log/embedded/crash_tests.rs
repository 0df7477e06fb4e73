//! The log against a plain model under random actions, restarts and power cuts; each seed is one run.

use super::{
    super::*,
    tests::{data, head, options},
    *,
};
use journal::disk::sim::SimDisk;
use record::clock::{Random, SeededRandom};

const P: [Partition; 2] = [Partition(0), Partition(1)];
const S: [Shard; 2] = [Shard(0), Shard(1)];
const DIR: &str = "/central/log";

/// What one partition holds for certain, and the one action whose outcome is open.
#[derive(Default, Clone)]
struct Model {
    records: u64,
    progress: Option<u64>,
    offset: Option<(u64, String)>,
    open_group: Option<(u64, u64)>,
    open_offset: Option<(u64, String)>,
}

struct Run {
    seed: u64,
    random: SeededRandom,
    disk: SimDisk,
    log: Option<Embedded<SimDisk>>,
    models: [Model; 2],
    options: EmbeddedOptions,
    /// The power may go, or may have gone, without an action having failed.
    armed: bool,
    power_cuts: u32,
    unknown_kept: u32,
}

impl Run {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            random: SeededRandom::new(seed),
            disk: SimDisk::new(seed ^ 0xabcd, 512 << 20),
            log: None,
            models: Default::default(),
            options: options(8 << 10),
            armed: false,
            power_cuts: 0,
            unknown_kept: 0,
        }
    }

    fn roll(&self, sides: u64) -> u64 {
        self.random.next_u64() % sides
    }

    fn power_cut(&mut self) {
        self.log = None;
        self.disk.crash();
        self.power_cuts += 1;
    }

    fn try_open(&self) -> Result<Embedded<SimDisk>, OpenError> {
        Embedded::open(self.disk.clone(), Path::new(DIR), &self.options, &self.random)
    }

    /// Opens; the power may go meanwhile too.
    async fn open(&mut self) {
        if self.roll(3) == 0 {
            self.disk.power_off_after(1 + self.roll(30));
        }
        // A fault that was set before may strike now; after a power cut there is none left.
        self.log = self.try_open().ok();
        if self.log.is_none() {
            self.power_cut();
            self.disk.fail_syncs(0);
            let seed = self.seed;
            self.log = Some(self.try_open().unwrap_or_else(|e| panic!("seed {seed}: {e}")));
        }
        self.disk.power_off_after(u64::MAX);
        self.armed = false;
        for i in 0..2 {
            self.settle(i).await;
        }
    }

    fn log(&self) -> &Embedded<SimDisk> {
        self.log.as_ref().expect("opened before every use")
    }

    /// What is there must be what was committed, and of an open action all or nothing.
    async fn settle(&mut self, i: usize) {
        let seed = self.seed;
        let progress = self.log().progress(S[i]).await.expect("readable");
        let high = self.log().status(P[i]).await.expect("readable").high.0;
        let mut model = self.models[i].clone();
        if let Some((records, to)) = model.open_group.take()
            && high == model.records + records
            && progress == vec![head(to)]
        {
            (model.records, model.progress) = (high, Some(to));
            self.unknown_kept += 1;
        }
        assert_eq!(high, model.records, "seed {seed}");
        assert_eq!(progress, model.progress.map(head).into_iter().collect::<Vec<_>>(), "seed {seed}");
        let offset = self.log().committed("sink", P[i]).await.expect("readable");
        let offset = offset.map(|c| (c.offset.0, c.metadata));
        if offset == model.open_offset && model.open_offset.is_some() {
            model.offset = model.open_offset.take();
        }
        model.open_offset = None;
        assert_eq!(offset, model.offset, "seed {seed}");
        self.models[i] = model;
        self.check_records(i).await;
    }

    async fn check_records(&self, i: usize) {
        let low = self.log().status(P[i]).await.expect("readable").low.0;
        let committed = self.models[i].offset.as_ref().map_or(0, |(o, _)| *o);
        assert!(low <= committed, "seed {}: {low} deleted, {committed} committed", self.seed);
        let (mut at, max) = (low, 1 + self.roll(3_000) as usize);
        loop {
            let records = self.log().read("t", P[i], Offset(at), max).await.expect("readable");
            if records.is_empty() {
                break;
            }
            for r in records {
                assert_eq!((r.offset.0, r.headers.first_seq.0), (at, at + 1), "seed {}", self.seed);
                assert!(r.bytes.iter().all(|b| *b == (at + 1) as u8), "seed {}", self.seed);
                at += 1;
            }
        }
        assert_eq!(at, self.models[i].records, "seed {}: records are missing", self.seed);
    }

    async fn group(&mut self, i: usize) {
        let from = self.models[i].records;
        let count = self.roll(5);
        let records = (0..count).map(|n| data(from + n + 1, 1 + self.roll(900) as usize)).collect();
        let to = self.models[i].progress.unwrap_or(0) + count + 1;
        match self.log().commit_group(S[i], records, vec![head(to)]).await {
            Ok(()) => {
                let high = self.log().status(P[i]).await.expect("readable").high.0;
                assert_eq!(high, from + count, "seed {}", self.seed);
                (self.models[i].records, self.models[i].progress) = (high, Some(to));
            }
            Err(_) => {
                self.models[i].open_group = Some((count, to));
                self.power_cut();
            }
        }
    }

    async fn offset(&mut self, i: usize) {
        let from = self.models[i].offset.as_ref().map_or(0, |(o, _)| *o);
        let to = from + self.roll(self.models[i].records - from + 1);
        let metadata = format!("v1 {to}");
        match self.log().commit_offset("sink", P[i], LEASE, Offset(to), &metadata).await {
            Ok(()) => self.models[i].offset = Some((to, metadata)),
            Err(_) => {
                self.models[i].open_offset = Some((to, metadata));
                self.power_cut();
            }
        }
    }

    async fn step(&mut self) {
        if self.log.is_none() {
            self.open().await;
        }
        let i = self.roll(2) as usize;
        match self.roll(20) {
            0..10 => self.group(i).await,
            10..15 => self.offset(i).await,
            15 if !self.armed => self.check_records(i).await,
            16 => {
                self.armed = true;
                self.disk.power_off_after(1 + self.roll(12));
            }
            17 if self.roll(4) == 0 => self.disk.fail_syncs(1),
            18 if self.roll(3) == 0 => self.power_cut(),
            19 if self.roll(3) == 0 => self.log = None,
            _ => {}
        }
    }
}

#[tokio::test]
async fn what_was_committed_is_there_whatever_the_disk_does() {
    let (mut cuts, mut kept) = (0, 0);
    for seed in 0..150 {
        let mut run = Run::new(seed);
        for _ in 0..120 {
            run.step().await;
        }
        run.power_cut();
        run.open().await;
        cuts += run.power_cuts;
        kept += run.unknown_kept;
    }
    // A simulation that met nothing proves nothing.
    assert!(cuts > 500 && kept > 5, "{cuts} power cuts, {kept} open groups kept");
}
