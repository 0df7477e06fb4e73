//! The example modules, called: right answers, and every way to end without one.

mod support;

use record::{
    Batch,
    arrow::array::{Array, Float64Array, Int64Array},
};
use std::time::{Duration, Instant};
use support::{batch, host, limits, module, schema, temperatures};
use udf_host::{
    AggregateInstance, Budget, CallError, FilterInstance, Limits, TransformInstance, UdfError, World, isolate,
};

fn filter(name: &str, config: &str, limits: &Limits) -> Result<FilterInstance, UdfError> {
    FilterInstance::new(&module(name), config, &schema(), limits)
}

fn misbehave(mode: &str) -> FilterInstance {
    filter("misbehave", &format!(r#"{{"mode":"{mode}"}}"#), &limits()).expect("configures")
}

#[test]
fn threshold_keeps_what_is_above() {
    let mut f =
        filter("threshold", r#"{"column":"temperature","above":90.0}"#, &limits()).expect("configures");
    assert_eq!(f.needs().columns, ["temperature"]);
    assert!(!f.needs().times && !f.needs().devices);
    for rows in [1usize, 63, 64, 65, 1_000, 16_384] {
        let b = temperatures((0..rows).map(|i| (i % 100) as f64));
        let kept = f.keep(&b).expect("answers");
        assert_eq!(kept.0.len(), rows.div_ceil(64));
        assert!((0..rows).all(|i| kept.get(i) == (i % 100 > 90)));
    }
    assert_eq!(f.keep(&temperatures([])).expect("answers").0, Vec::<u64>::new());
}

#[test]
fn threshold_leaves_out_rows_without_a_value_and_reads_integers() {
    let rows: Vec<support::Row> = (0..200).map(|i| (i, (i % 2 == 0).then_some(100.0), Some(i))).collect();
    let b = batch(&rows);
    let mut f = filter("threshold", r#"{"column":"temperature","above":90}"#, &limits()).expect("configures");
    assert_eq!(f.keep(&b).expect("answers").count(), 100);
    // A slice begins in the middle of a word of the validity bits.
    assert_eq!(f.keep(&b.slice(3, 101)).expect("answers").count(), 50);
    let mut f =
        filter("threshold", r#"{"column":"level","above":9,"below":20}"#, &limits()).expect("configures");
    assert_eq!(f.keep(&b).expect("answers").count(), 10);
}

#[test]
fn a_configuration_is_refused_with_the_modules_words() {
    for (config, words) in [
        (r#"{"column":"temperature"}"#, "say above, below or both"),
        (r#"{"column":"temperatur","above":1}"#, "no column \"temperatur\""),
        (r#"{"column":"mode","above":1}"#, "does not hold numbers"),
        (r#"{"columns":"x"}"#, "unknown field"),
        ("nonsense", "configuration"),
    ] {
        let e = filter("threshold", config, &limits()).err().expect("refused").to_string();
        assert!(e.contains(words), "{config}: {e}");
    }
}

#[test]
fn a_module_of_another_world_is_refused_naming_both() {
    let e = AggregateInstance::new(&module("threshold"), "{}", &schema(), &limits()).err().expect("refused");
    assert!(
        matches!(e, UdfError::WrongWorld { found: World::Filter, expected: World::Aggregate, .. }),
        "{e}"
    );
    assert!(e.to_string().contains("filter") && e.to_string().contains("aggregate"), "{e}");
}

#[test]
fn a_batch_of_another_schema_is_the_callers_mistake() {
    let mut f = filter("threshold", r#"{"column":"temperature","above":1}"#, &limits()).expect("configures");
    let other = Batch::empty(Default::default());
    assert!(matches!(f.keep(&other), Err(CallError::Batch(_))));
    assert!(f.keep(&temperatures([2.0])).is_ok(), "the instance is not used up");
}

#[test]
fn a_trap_uses_the_instance_up_and_a_fresh_one_works() {
    let mut f = misbehave("trap");
    assert!(matches!(f.keep(&temperatures([1.0])), Err(CallError::Trap(_))));
    assert!(matches!(f.keep(&temperatures([1.0])), Err(CallError::Trap(why)) if why.contains("used up")));
    assert!(misbehave("chatter").keep(&temperatures([1.0])).is_ok());
}

#[test]
fn a_panic_says_what_it_said() {
    let e = misbehave("panic").keep(&temperatures([1.0])).expect_err("traps");
    assert!(matches!(&e, CallError::Trap(why) if why.contains("misbehaving as configured")), "{e}");
}

#[test]
fn an_error_is_the_modules_own() {
    let e = misbehave("error").keep(&temperatures([1.0])).expect_err("says no");
    assert_eq!(e, CallError::Guest("misbehaving as configured".into()));
}

#[test]
fn an_endless_recursion_ends_at_the_stack() {
    let e = misbehave("recurse").keep(&temperatures([1.0])).expect_err("overflows");
    assert!(matches!(&e, CallError::Trap(why) if why.contains("stack")), "{e}");
}

#[test]
fn an_endless_loop_is_stopped_near_its_deadline() {
    let limit = Duration::from_millis(100);
    let tight = Limits { call_time: limit, ..limits() };
    let mut f = filter("misbehave", r#"{"mode":"spin"}"#, &tight).expect("configures");
    let began = Instant::now();
    assert_eq!(f.keep(&temperatures([1.0])), Err(CallError::Timeout { limit }));
    let took = began.elapsed();
    assert!(took >= limit && took < limit * 10, "{took:?}");
}

#[test]
fn an_endless_loop_in_the_start_is_stopped_too() {
    let tight = Limits { call_time: Duration::from_millis(50), ..limits() };
    let e = filter("misbehave", r#"{"mode":"start-spin"}"#, &tight).err().expect("stopped");
    assert!(matches!(e, UdfError::Start { error: CallError::Timeout { .. }, .. }), "{e}");
    let e = filter("misbehave", r#"{"mode":"start-trap"}"#, &tight).err().expect("stopped");
    assert!(matches!(e, UdfError::Start { error: CallError::Trap(_), .. }), "{e}");
}

#[test]
fn hoarding_is_stopped_at_the_limit() {
    let e = misbehave("hoard").keep(&temperatures([1.0])).expect_err("stopped");
    assert_eq!(e, CallError::Memory { limit: limits().memory_bytes });
    let tiny = Limits { memory_bytes: 64 << 10, ..limits() };
    let e = filter("threshold", r#"{"column":"temperature","above":1}"#, &tiny).err().expect("too little");
    assert!(matches!(e, UdfError::Start { error: CallError::Memory { .. }, .. }), "{e}");
}

#[test]
fn a_huge_answer_is_not_taken() {
    let e = misbehave("huge-output").keep(&temperatures([1.0])).expect_err("stopped");
    assert!(matches!(e, CallError::Output { .. }), "{e}");
}

#[test]
fn an_answer_of_the_wrong_length_is_refused() {
    let e = misbehave("wrong-length").keep(&temperatures([1.0])).expect_err("refused");
    assert!(matches!(e, CallError::Answer(_)), "{e}");
}

#[test]
fn the_number_of_instances_is_bounded() {
    let host = udf_host::Host::new(udf_host::HostConfig { instances: 1 }).expect("starts");
    let bytes = support::component("threshold");
    let artifact =
        udf_host::Artifact::open(support::compile(&bytes), record::Digest::of(&bytes)).expect("fresh");
    let module = host.load("threshold", &artifact).expect("loads");
    let make = || FilterInstance::new(&module, r#"{"column":"temperature","above":1}"#, &schema(), &limits());
    let one = make().expect("the first");
    assert!(matches!(make().err(), Some(UdfError::Instances { limit: 1, .. })));
    drop(one);
    assert!(make().is_ok());
    assert_eq!(host.instances(), 0);
}

#[test]
fn bisection_finds_exactly_the_poison_rows_of_a_real_module() {
    let bad = [3usize, 700, 701, 1_023];
    let rows = (0..1_024).map(|i| if bad.contains(&i) { 13.0 } else { i as f64 + 0.5 });
    let b = temperatures(rows);
    for mode in ["trap", "error", "hoard", "panic"] {
        let config = format!(r#"{{"mode":"{mode}","column":"temperature","equals":13.0}}"#);
        let make = || filter("misbehave", &config, &limits()).expect("configures");
        let mut instance = make();
        let done = isolate(&b, Budget::default(), |piece, _| {
            instance.keep(piece).inspect_err(|_| instance = make())
        });
        let done = done.expect("no mistake");
        assert_eq!(done.poison.iter().map(|p| p.row).collect::<Vec<_>>(), bad, "{mode}");
        assert!(done.poison.iter().all(|p| p.alone && p.error.reason() != "batch"));
        assert_eq!(done.passed.iter().map(|(_, kept)| kept.count()).sum::<u64>(), 1_020);
    }
    assert!(host().instances() < 20, "used up instances are gone");
}

/// A failing call of an aggregate has already changed some states. They are gone with the instance; the next attempt
/// starts from those saved after the last piece that passed, so that no row is added twice and none is lost.
#[test]
fn bisection_of_an_aggregate_restores_the_states_of_the_last_good_piece() {
    let bad = [5usize, 6, 250, 511];
    let b = temperatures((0..512).map(|i| if bad.contains(&i) { 13.0 } else { i as f64 + 0.5 }));
    let group: Vec<u32> = (0..512).map(|i| i % 3).collect();
    let groups = [0u32, 1, 2];
    for mode in ["trap", "error", "spin"] {
        let config = format!(r#"{{"column":"temperature","equals":13.0,"mode":"{mode}"}}"#);
        let tight = Limits { call_time: Duration::from_millis(20), ..limits() };
        let make = || {
            AggregateInstance::new(&module("misbehave-sum"), &config, &schema(), &tight).expect("configures")
        };
        let mut instance = make();
        instance.update(&temperatures([1_000.0]), &[0], 3).expect("what was there before");
        let mut saved = instance.save(&groups).expect("saves");
        let budget = Budget { timeouts: 100, ..Budget::default() };
        let done = isolate(&b, budget, |piece, at| {
            let done = instance.update(piece, &group[at], 3);
            match done {
                Ok(()) => saved = instance.save(&groups)?,
                Err(_) => {
                    instance = make();
                    instance.load(&groups, &saved)?;
                }
            }
            done
        });
        let poison: Vec<usize> = done.expect("no mistake").poison.iter().map(|p| p.row).collect();
        assert_eq!(poison, bad, "{mode}");
        let mut want = [1_000.0, 0.0, 0.0];
        (0..512).filter(|i| !bad.contains(i)).for_each(|i| want[i % 3] += i as f64 + 0.5);
        let sums = instance.finish(&groups).expect("answers").remove(0);
        let sums = sums.as_any().downcast_ref::<Float64Array>().expect("floats");
        assert_eq!(sums.values().to_vec(), want, "{mode}");
    }
}

#[test]
fn a_transform_converts_and_keeps_times_and_devices() {
    let rows: Vec<support::Row> =
        (0..100).map(|i| (i * 10, (i % 4 != 0).then_some(i as f64), None)).collect();
    let b = batch(&rows);
    let config = r#"{"column":"temperature","name":"kelvin","factor":1.0,"offset":273.15}"#;
    let mut t = TransformInstance::new(&module("scale"), config, &schema(), &limits()).expect("configures");
    assert_eq!(t.output().columns()[0].name, "kelvin");
    let out = t.apply(&b).expect("answers");
    assert_eq!((out.len(), out[0].rows(), out[0].times()), (1, 100, b.times()));
    assert_eq!(out[0].device(8), b.device(8));
    let kelvin = out[0].column("kelvin").expect("promised");
    assert_eq!(kelvin.null_count(), 25);
    let kelvin = kelvin.as_any().downcast_ref::<Float64Array>().expect("floats");
    assert_eq!(kelvin.value(1), 274.15);

    let config = r#"{"column":"temperature","name":"k","factor":1,"drop-missing":true}"#;
    let mut t = TransformInstance::new(&module("scale"), config, &schema(), &limits()).expect("configures");
    let out = t.apply(&b).expect("answers").remove(0);
    assert_eq!((out.rows(), out.times()[0], out.device(0)), (75, 10, "dev-1"));
    // A slice whose dictionary is longer than itself.
    let out = t.apply(&b.slice(9, 2)).expect("answers").remove(0);
    assert_eq!((out.device(0), out.device(1)), (b.device(9), b.device(10)));
}

mod stats {
    use super::*;
    use proptest::prelude::*;
    use std::cell::RefCell;

    const CONFIG: &str = r#"{"columns":["temperature","level"]}"#;

    fn stats() -> AggregateInstance {
        AggregateInstance::new(&module("stats"), CONFIG, &schema(), &limits()).expect("configures")
    }

    /// The plain model: one column of one group.
    #[derive(Clone, Debug, Default, PartialEq)]
    struct Plain {
        count: i64,
        sum: f64,
        min: Option<f64>,
        max: Option<f64>,
        last: Option<(i64, f64)>,
    }

    impl Plain {
        fn add(&mut self, time: i64, v: f64) {
            self.count += 1;
            self.sum += v;
            self.min = Some(self.min.map_or(v, |m| m.min(v)));
            self.max = Some(self.max.map_or(v, |m| m.max(v)));
            if self.last.is_none_or(|(t, _)| time >= t) {
                self.last = Some((time, v));
            }
        }

        fn row(&self) -> (i64, Vec<Option<f64>>) {
            let mean = (self.count > 0).then(|| self.sum / self.count as f64);
            (self.count, vec![self.min, self.max, mean, self.last.map(|l| l.1)])
        }
    }

    type Answer = Vec<(i64, [(i64, Vec<Option<f64>>); 2])>;

    fn answer(s: &mut AggregateInstance, groups: &[u32]) -> Answer {
        let columns = s.finish(groups).expect("answers");
        let names: Vec<&str> = s.output().columns().iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names[..3], ["count", "temperature_count", "temperature_min"]);
        assert_eq!(names[6..8], ["level_count", "level_min"]);
        assert_eq!((names.len(), columns.len()), (11, 11));
        let int =
            |c: usize, r: usize| columns[c].as_any().downcast_ref::<Int64Array>().expect("int").value(r);
        let float = |c: usize, r: usize| {
            let a = columns[c].as_any().downcast_ref::<Float64Array>().expect("float");
            a.is_valid(r).then(|| a.value(r))
        };
        let of = |from: usize, r: usize| (int(from, r), (from + 1..from + 5).map(|c| float(c, r)).collect());
        (0..groups.len()).map(|r| (int(0, r), [of(1, r), of(6, r)])).collect()
    }

    fn model(rows: &[support::Row], group: &[u32], groups: u32) -> Answer {
        let mut plain = vec![(0, [Plain::default(), Plain::default()]); groups as usize];
        for ((time, temperature, level), g) in rows.iter().zip(group) {
            let p = &mut plain[*g as usize];
            p.0 += 1;
            temperature.iter().for_each(|v| p.1[0].add(*time, *v));
            level.iter().for_each(|v| p.1[1].add(*time, *v as f64));
        }
        plain.iter().map(|(n, [a, b])| (*n, [a.row(), b.row()])).collect()
    }

    #[test]
    fn an_empty_group_has_no_values() {
        let got = answer(&mut stats(), &[5]);
        assert_eq!(got, [(0, [(0, vec![None; 4]), (0, vec![None; 4])])]);
    }

    #[test]
    fn a_foreign_state_is_refused() {
        let mut s = stats();
        s.update(&temperatures([1.0]), &[0], 1).expect("adds");
        let mut state = s.save(&[0]).expect("saves").remove(0);
        assert_eq!(state.len(), 1 + 8 + 8 + 2 * 48);
        state[0] = 9;
        assert!(matches!(s.load(&[0], &[state]), Err(CallError::Guest(why)) if why.contains("layout 9")));
        let short = vec![1u8; 20];
        assert!(matches!(stats().load(&[0], &[short]), Err(CallError::Guest(_))));
    }

    #[test]
    fn group_numbers_are_checked_before_the_module_sees_them() {
        let mut s = stats();
        assert!(matches!(s.update(&temperatures([1.0]), &[1], 1), Err(CallError::Batch(_))));
        assert!(matches!(s.update(&temperatures([1.0]), &[], 1), Err(CallError::Batch(_))));
        assert!(s.update(&temperatures([1.0]), &[0], 1).is_ok());
    }

    #[test]
    fn many_groups_fit() {
        let mut s = stats();
        let rows: Vec<support::Row> = (0..16_384).map(|i| (i, Some(i as f64), Some(i))).collect();
        let group: Vec<u32> = (0..16_384).collect();
        s.update(&batch(&rows), &group, 16_384).expect("adds");
        assert_eq!(answer(&mut s, &group), model(&rows, &group, 16_384));
        let states = s.save(&group).expect("saves");
        assert_eq!(states.len(), 16_384);
    }

    fn rows() -> impl Strategy<Value = Vec<(support::Row, u32)>> {
        let row = (
            -1_000i64..1_000,
            proptest::option::of(-1e9f64..1e9),
            proptest::option::of(-1_000_000i64..1_000_000),
        );
        proptest::collection::vec((row, 0u32..6), 0..200)
    }

    thread_local! {
        /// One instance for all cases: groups are cleared between them, which is part of the test.
        static SHARED: RefCell<Option<(AggregateInstance, AggregateInstance)>> = const { RefCell::new(None) };
    }

    proptest! {
        #[test]
        fn equal_to_plain_arithmetic_also_through_saving_and_loading(first in rows(), second in rows()) {
            let all: Vec<u32> = (0..6).collect();
            let split = |rows: &[(support::Row, u32)]| -> (Vec<support::Row>, Vec<u32>) { rows.iter().copied().unzip() };
            let ((a, ga), (b, gb)) = (split(&first), split(&second));
            let both: Vec<_> = first.iter().chain(&second).copied().collect();
            let (ab, gab) = split(&both);
            SHARED.with_borrow_mut(|shared| -> Result<(), TestCaseError> {
                let (one, other) = shared.get_or_insert_with(|| (stats(), stats()));
                one.clear(&all).expect("clears");
                one.update(&batch(&a), &ga, 6).expect("adds");
                prop_assert_eq!(answer(one, &all), model(&a, &ga, 6));

                // The rest is added by another instance, from the saved state.
                let states = one.save(&all).expect("saves");
                other.load(&all, &states).expect("loads");
                prop_assert_eq!(&other.save(&all).expect("saves"), &states);
                other.update(&batch(&b), &gb, 6).expect("adds");
                prop_assert_eq!(answer(other, &all), model(&ab, &gab, 6));
                one.update(&batch(&b), &gb, 6).expect("adds");
                prop_assert_eq!(answer(one, &all), answer(other, &all));
                Ok(())
            })?;
        }

        #[test]
        fn merging_is_adding_the_rows_of_both(first in rows(), second in rows()) {
            // Whole numbers, so that sums do not depend on the order; later rows have later times.
            let whole = |rows: &[(support::Row, u32)], at: i64| -> Vec<support::Row> {
                rows.iter().map(|((t, a, b), _)| (t + at, a.map(f64::round), *b)).collect()
            };
            let (a, b) = (whole(&first, 0), whole(&second, 10_000));
            let mut s = stats();
            s.update(&batch(&a), &vec![0; a.len()], 2).expect("adds");
            s.update(&batch(&b), &vec![1; b.len()], 2).expect("adds");
            s.merge(&[0], &[1]).expect("merges");
            let ab: Vec<_> = a.iter().chain(&b).copied().collect();
            let mut want = model(&ab, &vec![0; ab.len()], 2);
            prop_assert_eq!(answer(&mut s, &[0, 1]), std::mem::take(&mut want));
        }
    }
}
