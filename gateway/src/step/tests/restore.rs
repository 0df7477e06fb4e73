//! Lanes made anew from a state that their module or their configuration no longer takes as it is.

use super::*;

#[test]
fn a_module_that_refuses_old_states_begins_its_windows_anew() {
    let mut bench = Bench::new(SUMS);
    let mut lane = bench.lane().unwrap();
    bench.step(&mut lane, &[row("a", 1, 1.0), row("a", 20, 2.0)]);
    bench.config = config(&SUMS.replace("sums@1", "other-sums@1"));
    let mut lane = bench.lane().unwrap();
    bench.step(&mut lane, &[row("a", 30, 4.0), row("a", 100, 0.0)]);
    assert_eq!(bench.rows["sums"], [r#"{"time":0,"device":"a","count":1,"sum":4.0}"#]);
    assert_eq!(bench.forgotten, BTreeMap::from([((StreamName::new("sums").unwrap(), "refused"), 1)]));
}

/// Rows of two devices under a key, then the lane again under another configuration.
fn reconfigured(before: &str, after: &str) -> (Bench, Result<Lane, StepError>) {
    let mut bench = Bench::new(before);
    let mut lane = bench.lane().unwrap();
    bench.step(&mut lane, &[row("a", 1, 1.0), row("b", 20, 2.0)]);
    bench.config = config(after);
    let lane = bench.lane();
    (bench, lane)
}

#[test]
fn saved_windows_of_another_key_are_given_up_and_counted() {
    let by_value = SUMS.replace("[\"device\"]", "[\"device\", \"v\"]");
    for (before, after) in [(SUMS, &*by_value), (&*by_value, SUMS)] {
        let (mut bench, lane) = reconfigured(before, after);
        let mut lane = lane.unwrap();
        bench.step(&mut lane, &[row("a", 30, 4.0), row("a", 31, 4.0)]);
        assert_eq!(bench.forgotten, BTreeMap::from([((StreamName::new("sums").unwrap(), "key-changed"), 2)]));
        // Once more from the state: nothing more is given up.
        let mut lane = bench.lane().unwrap();
        assert_eq!(lane.settle(NOW, usize::MAX).unwrap().map(|_| ()), None);
        let fx = lane.flush(&StreamName::new("sums").unwrap(), NOW, usize::MAX).unwrap();
        bench.take(fx);
        assert_eq!(bench.rows["sums"].len(), 1, "{:?}", bench.rows["sums"]);
        assert!(bench.rows["sums"][0].contains(r#""count":2,"sum":8.0"#));
    }
    // A folder that says nothing of the shape: the bytes of the keys tell.
    let (mut bench, _) = reconfigured(SUMS, &by_value);
    let deletes = vec![b"wsums".to_vec()];
    bench.image.apply(journal::Changes { deletes, ..journal::Changes::default() });
    let mut lane = bench.lane().unwrap();
    bench.step(&mut lane, &[row("a", 30, 4.0)]);
    assert_eq!(bench.forgotten.values().sum::<u64>(), 2);
}

#[test]
fn windows_close_when_their_length_changes() {
    let (mut bench, lane) = reconfigured(SUMS, &SUMS.replace("1 min", "5 min"));
    let mut lane = lane.unwrap();
    bench.step(&mut lane, &[row("a", 40, 4.0), row("a", 70, 8.0), row("a", 400, 0.0)]);
    let expected = [
        r#"{"time":0,"device":"a","count":1,"sum":1.0}"#,
        r#"{"time":0,"device":"b","count":1,"sum":2.0}"#,
        r#"{"time":0,"device":"a","count":2,"sum":12.0}"#,
    ];
    assert_eq!(bench.rows["sums"], expected);
    assert!(bench.forgotten.is_empty());
    assert_eq!(bench.count("sums").missing(), 0);
}

#[test]
fn a_key_that_no_column_has_makes_the_lane_wait() {
    let below = SUMS.replace("[\"m\"]", "[\"hot\"]").replace("[\"device\"]", "[\"device\", \"line\"]");
    let Err(StepError::Held { why, .. }) = Bench::new(&format!("{HOT}{below}")).lane() else {
        panic!("it cannot start")
    };
    assert!(why.contains("line"), "{why}");
}

#[test]
fn a_module_too_slow_for_all_states_at_once_gets_them_in_smaller_parts() {
    let mut bench = Bench::new(SUMS);
    let mut lane = bench.lane().unwrap();
    bench.step(&mut lane, &(0..300).map(|i| row(&format!("d{i}"), 1, 1.0)).collect::<Vec<_>>());
    bench.config = config(&SUMS.replace("sums@1", "slow-sums@1"));
    let mut lane = bench.lane().unwrap();
    bench.step(&mut lane, &[row("d7", 2, 2.0), row("d7", 100, 0.0)]);
    assert_eq!(bench.rows["sums"], [r#"{"time":0,"device":"d7","count":2,"sum":3.0}"#]);
    assert!(bench.forgotten.is_empty());
}

#[test]
fn a_module_that_cannot_load_is_waited_for_and_not_for_ever() {
    let mut bench = Bench::new(SUMS);
    let mut lane = bench.lane().unwrap();
    bench.step(&mut lane, &[row("a", 1, 1.0), row("a", 20, 2.0)]);
    let stuck = SUMS.replace("sums@1", "stuck-sums@1");
    bench.config = config(&stuck);
    for _ in 0..50 {
        let Err(held @ StepError::Held { .. }) = bench.lane() else { panic!("nothing is forgotten at once") };
        assert!(held.to_string().contains("cannot take the states"), "{held}");
    }
    // It works again: nothing is missing.
    let before = (bench.image.clone(), bench.troubles.clone());
    bench.config = config(SUMS);
    let mut lane = bench.lane().unwrap();
    bench.step(&mut lane, &[row("a", 100, 0.0)]);
    assert_eq!(bench.rows["sums"], [r#"{"time":0,"device":"a","count":2,"sum":3.0}"#]);
    // It never does: in the end the windows begin anew, unless its policy is to wait.
    bench.image = before.0;
    let sums = StreamName::new("sums").unwrap();
    assert!(bench.troubles.take_failures()[&(sums.clone(), "timeout")] >= 50);
    for policy in ["on-module-failure = \"hold\"\n", ""] {
        bench.config = config(&format!("{stuck}{policy}"));
        bench.now = NOW;
        assert!((0..20).all(|_| bench.lane().is_err()), "{policy}");
        bench.now.monotonic_ns += 121_000_000_000;
        assert_eq!(bench.lane().is_err(), !policy.is_empty(), "{policy}");
    }
    let mut lane = bench.lane().unwrap();
    bench.step(&mut lane, &[row("a", 3, 4.0), row("a", 100, 0.0)]);
    assert_eq!(bench.rows["sums"].last().unwrap(), r#"{"time":0,"device":"a","count":1,"sum":4.0}"#);
    assert_eq!(bench.forgotten, BTreeMap::from([((sums, "not-loaded"), 1)]));
}
