//! The lane against a plain model, cut into steps and made anew from its state at random places.

mod restore;

use super::*;
use crate::{
    config::{Config, Stream},
    dead_letter::{Reason, row_json},
    event::Event,
};
use journal::StateImage;
use proptest::prelude::*;
use record::{
    Batch, BatchBuilder, Column, ColumnType, Counts, DEAD_LETTERS, EventTime, StreamName, StreamSchema,
    Value,
    arrow::array::{ArrayRef, Float64Array, Int64Array, cast::AsArray, types::Float64Type},
    clock::{Random, SeededRandom},
};
use std::{collections::BTreeMap, path::Path, sync::Arc};
use udf_host::CallError;

const MINUTE: i64 = 60 * crate::decode::SECOND_NS;
pub(crate) const NOW: Now = Now { wall_ns: 1_000_000 * MINUTE, monotonic_ns: 0 };
/// A value on which every test module traps.
const POISON: f64 = 666.0;

/// Keeps what is above 50.
struct Above;

impl Filter for Above {
    fn keep(&mut self, rows: &Batch) -> Result<Vec<u64>, CallError> {
        let values = values(rows)?;
        let mut bits = vec![0; rows.rows().div_ceil(64)];
        for i in (0..values.len()).filter(|i| values[*i] > 50.0) {
            bits[i / 64] |= 1 << (i % 64);
        }
        Ok(bits)
    }
}

fn values(rows: &Batch) -> Result<Vec<f64>, CallError> {
    let column = rows.column("v").unwrap().as_primitive::<Float64Type>();
    if column.values().contains(&POISON) {
        return Err(CallError::Trap("poison".into()));
    }
    Ok(column.values().to_vec())
}

/// Count and sum per group.
#[derive(Default)]
struct Sums {
    groups: Vec<(i64, f64)>,
    refuse_load: bool,
    refuse_finish: bool,
    /// Out of time when given more states than this at once.
    slow_load: Option<usize>,
}

impl Aggregate for Sums {
    fn update(&mut self, rows: &Batch, groups: &[u32], group_count: u32) -> Result<(), CallError> {
        self.groups.resize(self.groups.len().max(group_count as usize), (0, 0.0));
        for (v, g) in values(rows)?.iter().zip(groups) {
            let group = &mut self.groups[*g as usize];
            (group.0, group.1) = (group.0 + 1, group.1 + v);
        }
        Ok(())
    }

    fn finish(&mut self, groups: &[u32]) -> Result<Vec<ArrayRef>, CallError> {
        if self.refuse_finish {
            return Err(CallError::Guest("no result".into()));
        }
        let counts = groups.iter().map(|g| self.groups[*g as usize].0);
        let sums = groups.iter().map(|g| self.groups[*g as usize].1);
        Ok(vec![Arc::new(counts.collect::<Int64Array>()), Arc::new(sums.collect::<Float64Array>())])
    }

    fn save(&mut self, groups: &[u32]) -> Result<Vec<Vec<u8>>, CallError> {
        let one = |g: &u32| {
            let (count, sum) = self.groups[*g as usize];
            [count.to_le_bytes(), sum.to_le_bytes()].concat()
        };
        Ok(groups.iter().map(one).collect())
    }

    fn load(&mut self, groups: &[u32], states: &[Vec<u8>]) -> Result<(), CallError> {
        let taken = states.iter().filter(|s| !s.is_empty()).count();
        if self.slow_load.is_some_and(|most| taken > most) {
            return Err(CallError::Timeout { limit: std::time::Duration::from_millis(100) });
        }
        for (g, state) in groups.iter().zip(states) {
            if self.refuse_load && !state.is_empty() {
                return Err(CallError::Guest("another layout".into()));
            }
            let index = *g as usize;
            self.groups.resize(self.groups.len().max(index + 1), (0, 0.0));
            self.groups[index] = match state.split_first_chunk::<8>() {
                Some((count, sum)) => {
                    (i64::from_le_bytes(*count), f64::from_le_bytes(sum.try_into().expect("eight bytes")))
                }
                None => (0, 0.0),
            };
        }
        Ok(())
    }

    fn output(&self) -> Arc<StreamSchema> {
        let columns = [("count", ColumnType::Int64), ("sum", ColumnType::Float64)];
        let columns = columns.iter().map(|(n, ty)| Column { name: (*n).into(), ty: *ty }).collect();
        Arc::new(StreamSchema::new(columns).unwrap())
    }
}

/// Rows of one text each, which is as long as the value says.
struct Long;

impl Transform for Long {
    fn apply(&mut self, rows: &Batch) -> Result<Vec<Batch>, CallError> {
        let mut out = BatchBuilder::new(self.output());
        let random = SeededRandom::new(1);
        for (row, length) in values(rows)?.into_iter().enumerate() {
            let text: String = std::iter::repeat_with(|| random.next_u64())
                .flat_map(u64::to_le_bytes)
                .filter_map(|b| char::from_u32(u32::from(b) + 0x4e00))
                .take(length as usize)
                .collect();
            let time = EventTime::from_ns(rows.times()[row].into()).unwrap();
            out.push(time, rows.device(row), &[Value::Str(&text), Value::Float(length)]).unwrap();
        }
        Ok(vec![out.finish().unwrap()])
    }

    fn output(&self) -> Arc<StreamSchema> {
        let columns = [("text", ColumnType::String), ("v", ColumnType::Float64)];
        let columns = columns.iter().map(|(n, ty)| Column { name: (*n).into(), ty: *ty }).collect();
        Arc::new(StreamSchema::new(columns).unwrap())
    }
}

/// Fails on every row.
struct Never;

impl Filter for Never {
    fn keep(&mut self, _: &Batch) -> Result<Vec<u64>, CallError> {
        Err(CallError::Trap("never".into()))
    }
}

pub(crate) fn modules(stream: &Stream, _: &Arc<StreamSchema>) -> Result<Instances, String> {
    match stream.module.as_ref().unwrap().module.name.as_str() {
        "above" => Ok(Instances::Filter(Box::new(|| Ok(Box::new(Above))))),
        "sums" => Ok(Instances::Aggregate(Box::new(|| Ok(Box::<Sums>::default())))),
        "other-sums" => {
            Ok(Instances::Aggregate(Box::new(|| Ok(Box::new(Sums { refuse_load: true, ..Sums::default() })))))
        }
        "slow-sums" | "stuck-sums" => {
            let slow_load =
                Some(if stream.module.as_ref().unwrap().module.name == "slow-sums" { 50 } else { 0 });
            Ok(Instances::Aggregate(Box::new(move || Ok(Box::new(Sums { slow_load, ..Sums::default() })))))
        }
        "no-sums" => Ok(Instances::Aggregate(Box::new(|| {
            Ok(Box::new(Sums { refuse_finish: true, ..Sums::default() }))
        }))),
        "long" => Ok(Instances::Transform(Box::new(|| Ok(Box::new(Long))))),
        "never" => Ok(Instances::Filter(Box::new(|| Ok(Box::new(Never))))),
        other => Err(format!("there is no module {other:?}")),
    }
}

pub(crate) fn config(streams: &str) -> Config {
    let text = format!(
        r#"
[gateway]
id = "plant-7"
data-dir = "data"
[central]
url = "https://central.example:7443"
tls = {{ ca = "ca.pem", cert = "c.pem", key = "k.pem" }}
[source.api]
kind = "http"
bind = "127.0.0.1:8080"
[stream.m]
from = ["api"]
columns = {{ v = "float64" }}
decode = {{ time = "t", time-format = "s" }}
dedup = {{ key = ["device", "time"], window = "1 h" }}
{streams}"#
    );
    Config::parse(&text, Path::new("gateway.toml")).unwrap()
}

pub(crate) const HOT: &str = "[stream.hot]\nfrom = [\"m\"]\nmodule = \"above@1\"\n";
pub(crate) const SUMS: &str = "[stream.sums]\nfrom = [\"m\"]\nmodule = \"sums@1\"\nforward = true\n\
    window = { kind = \"tumbling\", every = \"1 min\", key = [\"device\"], lateness = \"30 s\" }\n";

/// A lane with its state, as the writer of the output log keeps it.
struct Bench {
    config: Config,
    image: StateImage,
    rows: BTreeMap<String, Vec<String>>,
    letters: Vec<(String, Reason, String)>,
    counts: BTreeMap<StreamName, Counts>,
    forgotten: BTreeMap<(StreamName, &'static str), u64>,
    troubles: Troubles,
    now: Now,
}

impl Bench {
    fn new(streams: &str) -> Self {
        let (image, rows, letters, counts, forgotten, troubles) = Default::default();
        Self { config: config(streams), image, rows, letters, counts, forgotten, troubles, now: NOW }
    }

    fn lane(&self) -> Result<Lane, StepError> {
        let streams = &self.config.streams;
        Lane::new(&streams[0], streams, &modules, &self.image, self.now, &self.troubles)
    }

    fn take(&mut self, mut fx: Effects) {
        for (stream, batch) in &fx.rows {
            let rows = self.rows.entry(stream.to_string()).or_default();
            rows.extend((0..batch.rows()).map(|row| row_json(batch, row)));
        }
        let letters = fx.dead_letters.iter().map(|l| (l.stream.to_string(), l.reason, l.payload.clone()));
        self.letters.extend(letters);
        for (stream, delta) in &fx.counts {
            self.counts.entry(stream.clone()).or_default().add(delta);
        }
        for (of, n) in &fx.forgotten {
            *self.forgotten.entry(of.clone()).or_default() += n;
        }
        self.image.apply(fx.take_changes());
        self.letters.sort_by(|a, b| (&a.0, a.1.name(), &a.2).cmp(&(&b.0, b.1.name(), &b.2)));
    }

    fn step(&mut self, lane: &mut Lane, payloads: &[String]) {
        while let Some(fx) = lane.settle(NOW, usize::MAX).unwrap() {
            self.take(fx);
        }
        let fx = lane.step(&events(payloads), NOW).unwrap();
        self.take(fx);
    }

    fn run(streams: &str, payloads: &[String]) -> Self {
        let mut bench = Self::new(streams);
        let mut lane = bench.lane().unwrap();
        bench.step(&mut lane, payloads);
        bench
    }

    fn count(&self, stream: &str) -> Counts {
        self.counts.get(&StreamName::new(stream).unwrap()).copied().unwrap_or_default()
    }
}

pub(crate) fn events(payloads: &[String]) -> Vec<Event<'_>> {
    let event =
        |p| Event { received_ns: NOW.wall_ns, source: "api", stream: "m", payload: p, ..Event::default() };
    payloads.iter().map(|p| event(p.as_bytes())).collect()
}

pub(crate) fn row(device: &str, second: i64, v: f64) -> String {
    format!(r#"{{"device":"{device}","t":{second},"v":{v}}}"#)
}

#[test]
fn windows_close_by_each_devices_own_watermark() {
    let bench = Bench::run(
        SUMS,
        &[
            row("a", 0, 1.0),
            row("b", 10, 5.0),
            row("a", 59, 2.0),
            row("a", 89, 4.0),  // watermark 59: the first minute of a stays open
            row("a", 30, 8.0),  // not late
            row("a", 90, 16.0), // watermark 60: it closes
            row("a", 31, 32.0), // late
            row("b", 20, 6.0),  // b is not late because a went on
        ],
    );
    assert_eq!(bench.rows["sums"], [r#"{"time":0,"device":"a","count":3,"sum":11.0}"#]);
    assert_eq!(bench.letters, [("sums".to_owned(), Reason::Late, row_json_of("a", 31, 32.0))]);
    let c = bench.count("sums");
    assert_eq!((c.received, c.aggregated, c.dead_lettered, c.produced, c.missing()), (8, 7, 1, 1, 0));
}

fn row_json_of(device: &str, second: i64, v: f64) -> String {
    format!(r#"{{"time":{},"device":"{device}","v":{v:?}}}"#, second * crate::decode::SECOND_NS)
}

#[test]
fn repeats_are_counted_and_conflicts_kept_as_dead_letters() {
    let payloads = [row("a", 1, 1.0), row("a", 1, 1.0), row("a", 1, 2.0), row("a", 2, 1.0), row("b", 1, 1.0)];
    let mut bench = Bench::new("");
    let mut lane = bench.lane().unwrap();
    bench.step(&mut lane, &payloads);
    // The same once more, after the lane was made anew.
    let mut lane = bench.lane().unwrap();
    bench.step(&mut lane, &payloads);
    let c = bench.count("m");
    assert_eq!((c.received, c.repeats, c.kept, c.dead_lettered, c.missing()), (10, 5, 3, 2, 0));
    assert!(bench.letters.iter().all(|l| l.1 == Reason::KeyConflict));
}

#[test]
fn dedup_keys_are_bounded_by_number_and_by_age() {
    let mut bench = Bench::new("");
    let mut lane = bench.lane().unwrap();
    let payloads = [row("a", 1, 1.0)];
    let at = |hours: i64, payload: &String| {
        let received_ns = NOW.wall_ns + hours * 60 * MINUTE;
        let payload = payload.clone();
        move |lane: &mut Lane| {
            let event = Event {
                received_ns,
                source: "api",
                stream: "m",
                payload: payload.as_bytes(),
                ..Event::default()
            };
            lane.step(&[event], NOW).unwrap()
        }
    };
    bench.take(at(0, &payloads[0])(&mut lane));
    bench.take(at(2, &row("b", 1, 1.0))(&mut lane));
    assert_eq!(bench.image.scan_prefix(b"dm\0").count(), 1, "the first key is out of the window");
    bench.take(at(2, &payloads[0])(&mut lane));
    assert_eq!(bench.count("m").kept, 3, "what cannot be judged is kept");
}

#[test]
fn poison_rows_stand_alone() {
    let mut payloads: Vec<String> = (0..200).map(|i| row("a", i, 60.0)).collect();
    payloads[77] = row("a", 77, POISON);
    payloads[150] = row("a", 150, POISON);
    let bench = Bench::run(&format!("{HOT}{SUMS}"), &payloads);
    for stream in ["hot", "sums"] {
        let c = bench.count(stream);
        assert_eq!((c.received, c.dead_lettered, c.missing()), (200, 2, 0), "{stream}");
        assert!(bench.letters.iter().filter(|l| l.0 == stream).all(|l| l.1 == Reason::Module));
    }
    assert_eq!(bench.rows["hot"].len(), 198);
    assert_eq!(bench.rows["sums"][0], r#"{"time":0,"device":"a","count":60,"sum":3600.0}"#);
}

#[test]
fn the_policies_of_a_failing_module() {
    let payloads = [row("a", 1, 60.0), row("a", 2, POISON), row("a", 3, 1.0)];
    let pass = Bench::run(&format!("{HOT}on-module-failure = \"pass\"\n"), &payloads);
    assert_eq!(pass.rows["hot"].len(), 2);
    let hold = Bench::new(&format!("{HOT}on-module-failure = \"hold\"\n"));
    let held = hold.lane().unwrap().step(&events(&payloads), NOW).unwrap_err();
    assert!(matches!(held, StepError::Held { .. }), "{held}");
    let no_filter = HOT.replace("above", "long") + "on-module-failure = \"pass\"\n";
    let Err(StepError::Held { why, .. }) = Bench::new(&no_filter).lane() else { panic!("rows cannot pass") };
    assert!(why.contains("no filter"), "{why}");
    let missing = Bench::new(&HOT.replace("above", "nowhere"));
    assert!(matches!(missing.lane(), Err(StepError::Held { .. })));
}

#[test]
fn a_module_that_always_fails_is_suspended_and_tried_again() {
    let mut bench = Bench::new(HOT);
    let mut lane = bench.lane().unwrap();
    bench.step(&mut lane, &(0..40).map(|i| row("a", i, POISON)).collect::<Vec<_>>());
    assert!(lane.health()[0].suspended);
    bench.step(&mut lane, &[row("a", 50, 60.0)]);
    assert_eq!(bench.count("hot").dead_lettered, 41, "a suspended module is not tried");
    let later = Now { monotonic_ns: 120_000_000_000, ..NOW };
    let payloads = [row("a", 51, 60.0)];
    let fx = lane.step(&events(&payloads), later).unwrap();
    bench.take(fx);
    assert_eq!((bench.count("hot").kept, lane.health()[0].suspended), (1, false));
}

#[test]
fn silent_windows_close_when_asked_or_after_the_idle_time() {
    let with_idle = SUMS.replace("lateness = \"30 s\"", "lateness = \"30 s\", idle = \"10 s\"");
    let mut bench = Bench::new(&with_idle);
    let mut lane = bench.lane().unwrap();
    bench.step(&mut lane, &[row("a", 1, 1.0), row("a", 70, 2.0)]);
    assert!(lane.idle(Now { monotonic_ns: 9_000_000_000, ..NOW }, usize::MAX).unwrap().is_empty());
    let fx = lane.idle(Now { monotonic_ns: 10_000_000_000, ..NOW }, usize::MAX).unwrap();
    bench.take(fx);
    assert_eq!(bench.rows["sums"].len(), 2);
    bench.step(&mut lane, &[row("a", 71, 1.0), row("b", 71, 1.0)]);
    assert_eq!(bench.letters[0].1, Reason::Late, "the window of a was closed");
    let fx = lane.flush(&StreamName::new("sums").unwrap(), NOW, usize::MAX).unwrap();
    bench.take(fx);
    assert_eq!(bench.rows["sums"].len(), 3);
    assert_eq!(bench.image.scan_prefix(b"gsums\0").count(), 0, "no state is left behind");
}

#[test]
fn a_result_that_is_never_given_is_received_and_buried() {
    let bench = Bench::run(&SUMS.replace("sums@1", "no-sums@1"), &[row("a", 0, 1.0), row("a", 90, 1.0)]);
    let c = bench.count("sums");
    assert_eq!((c.received, c.aggregated, c.dead_lettered, c.produced, c.missing()), (3, 2, 1, 0, 0));
    assert_eq!(bench.letters.len(), 1);
}

#[test]
fn a_large_row_and_its_dead_letters_fit_blocks_and_are_counted() {
    let streams = "[stream.long]\nfrom = [\"m\"]\nmodule = \"long@1\"\n\
        [stream.never]\nfrom = [\"long\"]\nmodule = \"never@1\"\n";
    let bench = Bench::new(streams);
    let mut lane = bench.lane().unwrap();
    // As text these are 30 bytes, 900 kB and 3 MB that hardly compress: the last is no row.
    let payloads = [row("a", 1, 10.0), row("a", 2, 300_000.0), row("a", 3, 1_000_000.0)];
    let mut fx = lane.step(&events(&payloads), NOW).unwrap();
    let blocks = crate::lanes::blocks(&mut fx, NOW.wall_ns + 1, false).expect("everything fits a block");
    let rows =
        |stream: &str| blocks.iter().filter(|b| b.stream.as_str() == stream).map(|b| b.rows).sum::<u64>();
    assert_eq!((rows("m"), rows("long"), rows("never"), rows(DEAD_LETTERS)), (3, 2, 0, 4));
    for (stream, counts) in &fx.counts {
        assert_eq!(counts.missing(), 0, "{stream}");
        assert_eq!(counts.produced, rows(stream.as_str()), "{stream}");
    }
    let buried: u64 =
        fx.counts.iter().filter(|(s, _)| s.as_str() != DEAD_LETTERS).map(|(_, c)| c.dead_lettered).sum();
    assert_eq!(buried, rows(DEAD_LETTERS));
    let long = fx.counts[&StreamName::new("long").unwrap()];
    assert_eq!((long.received, long.aggregated, long.dead_lettered), (4, 3, 1));
    let large = fx.dead_letters.iter().find(|l| l.reason == Reason::TooLarge).expect("one");
    assert!(large.error.contains("the payload is cut"), "{}", large.error);
    assert_eq!(large.received_ns, NOW.wall_ns + 1, "no event time stands where a receive time belongs");
}

/// With as many keys as there may be.
fn full_of_keys(newest_s: i64) -> Bench {
    let mut bench = Bench::new(SUMS);
    let (stream, newest) = (StreamName::new("sums").unwrap(), newest_s * crate::decode::SECOND_NS);
    let value = [newest.to_le_bytes(), i64::MIN.to_le_bytes()].concat();
    let puts = (0..crate::limits::WINDOW_KEYS_MAX)
        .map(|i| (keys::window_key(&stream, &cells::device_key(&format!("old-{i:06}"))), value.clone()));
    let changes = journal::Changes { puts: puts.collect(), ..journal::Changes::default() };
    bench.image.apply(changes);
    bench
}

#[test]
fn silent_keys_make_room_for_new_ones() {
    let mut bench = full_of_keys(1_000);
    let mut lane = bench.lane().unwrap();
    bench.step(&mut lane, &[row("new", 1_009, 1.0)]);
    assert_eq!(bench.letters.pop().unwrap().1, Reason::TooManyGroups, "nobody is silent yet");
    bench.step(
        &mut lane,
        &[row("old-000000", 1_010, 1.0), row("new", 2_000, 2.0), row("old-000001", 1_019, 4.0)],
    );
    assert_eq!(bench.letters.pop().unwrap().1, Reason::Late, "its window had closed when it was forgotten");
    let left = bench.image.scan_prefix(b"ksums\0").count();
    assert!(left < crate::limits::WINDOW_KEYS_MAX * 15 / 16 + 2, "{left} keys");
    // The same after a restart.
    let mut lane = bench.lane().unwrap();
    bench.step(
        &mut lane,
        &[row("newer", 1_019, 1.0), row("newer", 1_020, 8.0), row("old-000001", 1_020, 16.0)],
    );
    assert_eq!(bench.letters.len(), 1, "{:?}", bench.letters);
    assert_eq!(bench.letters[0].1, Reason::Late);
    let fx = lane.flush(&StreamName::new("sums").unwrap(), NOW, usize::MAX).unwrap();
    bench.take(fx);
    let devices = ["old-000000", "newer", "old-000001", "new"];
    let found = bench.rows["sums"].iter();
    let found = found.filter(|r| devices.iter().any(|d| r.contains(&format!("\"{d}\"")))).count();
    assert_eq!(found, 4, "{:?}", bench.rows["sums"]);
    assert_eq!(bench.count("sums").missing(), 0);
}

/// What the windows should hold, worked out without any of the machinery.
fn model(payloads: &[(u8, i64, f64)]) -> Vec<(i64, String, i64, f64)> {
    let mut seen = BTreeMap::new();
    let mut newest: BTreeMap<u8, i64> = BTreeMap::new();
    let mut open: BTreeMap<(u8, i64), (i64, f64)> = BTreeMap::new();
    let mut out = Vec::new();
    for (device, second, v) in payloads {
        if seen.insert((*device, *second), ()).is_some() {
            continue;
        }
        let start = second.div_euclid(60) * 60;
        if start + 60 <= newest.get(device).copied().unwrap_or(i64::MIN / 2) - 30 {
            continue;
        }
        if *v != POISON {
            let group = open.entry((*device, start)).or_default();
            (group.0, group.1) = (group.0 + 1, group.1 + v);
        }
        let n = newest.entry(*device).or_insert(i64::MIN / 2);
        *n = (*n).max(*second);
        let through = *n - 30;
        let closed: Vec<_> = open.keys().filter(|(d, s)| d == device && s + 60 <= through).copied().collect();
        for key in closed {
            let (count, sum) = open.remove(&key).unwrap();
            out.push((key.1, format!("d{}", key.0), count, sum));
        }
    }
    out
}

pub(crate) fn readings() -> impl Strategy<Value = Vec<(u8, i64, f64)>> {
    let one = (0u8..3, 0i64..400, prop_oneof![8 => (0i32..100).prop_map(f64::from), 1 => Just(POISON)]);
    proptest::collection::vec(one, 1..120).prop_map(|mut all| {
        // Times go forward with some disorder, so that windows close and some rows are late.
        all.sort_by_key(|(_, t, v)| t / 90 * 90 + (*v as i64) % 90);
        all
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn cuts_and_restarts_change_nothing(readings in readings(), cuts in proptest::collection::vec((1usize..30, any::<bool>()), 1..20)) {
        let payloads: Vec<String> = readings.iter().map(|(d, t, v)| row(&format!("d{d}"), *t, *v)).collect();
        let streams = format!("{HOT}{SUMS}");
        let whole = Bench::run(&streams, &payloads);

        let mut cut = Bench::new(&streams);
        let mut lane = cut.lane().unwrap();
        let (mut rest, mut cuts) = (&payloads[..], cuts.iter().cycle());
        while !rest.is_empty() {
            let (n, restart) = cuts.next().unwrap();
            let (now, after) = rest.split_at((*n).min(rest.len()));
            cut.step(&mut lane, now);
            if *restart {
                lane = cut.lane().unwrap();
            }
            rest = after;
        }
        prop_assert_eq!(&cut.rows, &whole.rows);
        prop_assert_eq!(&cut.letters, &whole.letters);
        prop_assert_eq!(&cut.counts, &whole.counts);
        for (stream, counts) in &whole.counts {
            prop_assert_eq!(counts.missing(), 0, "{}", stream);
        }

        let expected: Vec<String> = model(&readings).into_iter()
            .map(|(start, device, count, sum)| format!(
                r#"{{"time":{},"device":"{device}","count":{count},"sum":{sum:?}}}"#, start * crate::decode::SECOND_NS))
            .collect();
        prop_assert_eq!(whole.rows.get("sums").cloned().unwrap_or_default(), expected);
    }
}
