//! Lanes between a real input log and a real output log, with steps that do not fit.

use super::*;
use crate::{
    config::Config,
    ingest::{Door, DoorParts},
    limits::STEP_INTERVAL,
    metrics::LanesMetrics,
    output::{Snapshot, Writer},
    step::tests::{SUMS, config, modules, row},
};
use daemon::{clock::SystemClock, metrics::Registry};
use journal::{HubOptions, Log, LogOptions, RealDisk, StateImage};
use record::{Counts, Incarnation, SourceName};
use std::thread::JoinHandle;
use tokio::runtime::Runtime;

const LONG: &str = "[stream.long]\nfrom = [\"m\"]\nmodule = \"long@1\"\n";
/// No test waits longer than this for anything.
const PATIENCE: Duration = Duration::from_secs(45);

/// A running lane.
struct Bench {
    runtime: Runtime,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    orders: mpsc::Sender<Command>,
    stop: CancellationToken,
    threads: Vec<JoinHandle<()>>,
    last: FrameSeq,
    _dir: tempfile::TempDir,
}

impl Bench {
    /// Puts the payloads into the input log, each as a frame, then starts the lane.
    fn new(streams: &str, payloads: &[String], step_bytes_max: usize) -> Self {
        Self::of(config(streams), payloads, step_bytes_max, false)
    }

    fn of(config: Config, payloads: &[String], step_bytes_max: usize, pressed: bool) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let log = |name: &str| {
            let options = LogOptions { segment_bytes: 4 << 20, ..LogOptions::default() };
            Log::open(RealDisk, &dir.path().join(name), options).expect("a log").0
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let (runtime, registry) = (runtime.expect("a runtime"), Registry::new());
        let (clock, routes) = (Arc::new(SystemClock::new()), Arc::new(Routes::new(&config)));
        let options = HubOptions { reserve_bytes: 0, ..HubOptions::default() };
        let parts = DoorParts { log: log("input"), options, routes: routes.clone(), clock: clock.clone() };
        let door = Door::open(parts, &registry).expect("a door");
        for payload in payloads {
            let mut intake = door.intake(&SourceName::new("api").expect("a name"));
            intake.post(0, "m", "", payload.as_bytes());
            let (ticket, mut durable) = (intake.push().expect("room"), door.watch());
            let written = durable.wait_for(|durable| *durable >= ticket.0);
            runtime.block_on(async { tokio::time::timeout(PATIENCE, written).await.is_ok() });
        }
        let (writer, output) =
            Writer::new(log("output"), Incarnation(7), StateImage::default(), Box::new(|| true));
        let (snapshot, stop) = (output.snapshot(), CancellationToken::new());
        let last = *door.hub().log().watch().borrow();
        let ((orders, commands), (_, modules_changed)) = (mpsc::channel(1), watch::channel(0));
        let parts = LaneParts {
            root: config.streams[0].clone(),
            streams: config.streams.clone(),
            index: 0,
            routes,
            input: door.hub().log().clone(),
            output,
            modules: Arc::new(modules),
            modules_changed,
            commands,
            clock,
            metrics: LanesMetrics::new(&registry).lane(&config.streams[0].name),
            pressed: Arc::new(move || pressed),
            step_interval: STEP_INTERVAL,
            step_bytes_max,
            give_up_bytes: 1,
            stop: stop.clone(),
            runtime: runtime.handle().clone(),
        };
        let threads = vec![
            std::thread::spawn(move || writer.run().expect("it writes")),
            std::thread::spawn(move || run(parts).expect("it ends when it is told to")),
        ];
        Self { runtime, snapshot, orders, stop, threads, last, _dir: dir }
    }

    /// Waits until the output log says so.
    fn until(&mut self, mut done: impl FnMut(&Snapshot) -> bool) {
        let found = self.snapshot.wait_for(|s| done(s));
        let found = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, found).await.is_ok() });
        assert!(found, "{:?}", self.snapshot.borrow());
    }

    /// Waits until all input is worked through.
    fn worked_through(&mut self) {
        let (lane, last) = (StreamName::new("m").expect("a name"), self.last);
        self.until(|s| s.consumed.get(&lane).is_some_and(|through| *through >= last));
    }

    fn counts(&self, stream: &str) -> Counts {
        let name = StreamName::new(stream).expect("a name");
        let counts = self.snapshot.borrow().streams.get(&name).map(|s| s.counts).unwrap_or_default();
        assert_eq!(counts.missing(), 0, "{stream}: {counts:?}");
        counts
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.cancel();
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

#[test]
fn a_step_that_is_too_large_is_made_again_in_smaller_ones() {
    // Nine kilobytes each that hardly compress.
    let payloads: Vec<String> = (0..12).map(|i| row("a", i, 3_000.0)).collect();
    let mut bench = Bench::new(LONG, &payloads, 40 << 10);
    bench.worked_through();
    let counts = bench.counts("long");
    assert_eq!((counts.aggregated, counts.produced, counts.dead_lettered), (12, 12, 0));
    assert_eq!(bench.counts("m").kept, 12);
}

#[test]
fn an_answer_that_no_step_holds_costs_the_rows_of_its_frame() {
    let mut payloads: Vec<String> = (0..12).map(|i| row("a", i, 10.0)).collect();
    payloads[5] = row("a", 5, 30_000.0);
    let mut bench = Bench::new(LONG, &payloads, 40 << 10);
    bench.worked_through();
    let counts = bench.counts("long");
    assert_eq!((counts.produced, counts.dead_lettered), (11, 1));
    assert_eq!(bench.counts("m").produced, 12, "the parent's rows are all there");
    assert_eq!(bench.counts(record::DEAD_LETTERS).produced, 1);
}

#[test]
fn many_windows_close_in_several_steps() {
    let rows: Vec<String> = (0..500).map(|i| row(&format!("device-{i:04}"), 1, 1.0)).collect();
    let payloads: Vec<String> = rows.chunks(20).map(|part| format!("[{}]", part.join(","))).collect();
    let mut bench = Bench::new(SUMS, &payloads, 8 << 10);
    bench.worked_through();
    assert_eq!(bench.counts("sums").aggregated, 500);
    let (done, answer) = oneshot::channel();
    bench
        .orders
        .blocking_send(Command::Flush(StreamName::new("sums").expect("a name"), done))
        .expect("a lane");
    let answered = bench.runtime.block_on(async { tokio::time::timeout(PATIENCE, answer).await });
    assert!(matches!(answered, Ok(Ok(()))), "the order outlives the lane's core");
    let sums = StreamName::new("sums").expect("a name");
    bench.until(|s| s.streams.get(&sums).is_some_and(|s| s.counts.produced == 500));
    assert_eq!(bench.counts("sums").dead_lettered, 0);
}

#[test]
fn a_held_lane_that_may_drop_holds_up_no_source() {
    for policy in [OnFull::DropOldest, OnFull::DropNewest] {
        let mut config =
            config("[stream.held]\nfrom = [\"m\"]\nmodule = \"nowhere@1\"\non-module-failure = \"hold\"\n");
        config.streams[0].on_full = policy;
        let payloads: Vec<String> = (0..3).map(|i| row("a", i, 1.0)).collect();
        let mut bench = Bench::of(config, &payloads, usize::MAX, true);
        bench.worked_through();
        let counts = bench.counts("m");
        assert_eq!((counts.received, counts.dropped, counts.kept), (3, 3, 0), "{policy:?}");
        let losses = bench.snapshot.borrow().streams[&StreamName::new("m").expect("a name")].losses.clone();
        assert_eq!(losses.values().map(|l| l.rows).sum::<u64>(), 3, "{policy:?}: {losses:?}");
    }
}
