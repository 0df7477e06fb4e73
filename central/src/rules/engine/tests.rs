//! The core under scripted answers: no socket, no clock, no sleep.

use super::*;
use crate::rules::{file, source::ResultColumn};
use record::clock::{Random as _, SeededRandom};
use serde_json::json;
use std::path::Path;

const SECOND: i64 = 1_000_000_000;

fn rules(text: &str) -> RuleSet {
    file::parse(Path::new("test.yaml"), text).expect("valid rules")
}

fn table(devices: &[(&str, f64)]) -> Table {
    let column = |name: &str, ty: &str| ResultColumn { name: name.into(), ty: ty.into() };
    Table {
        columns: vec![column("device", "String"), column("value", "Float64")],
        rows: devices.iter().map(|(d, v)| vec![json!(d), json!(v)]).collect(),
        truncated: false,
    }
}

const WINDOW: &str = "
groups:
  - name: g
    rules:
      - alert: Hot
        sql: select device, value from m where time > {since}
        for: 10s
";

fn step(e: &mut Engine, at_s: i64, answer: Result<Table, QueryError>) -> Vec<(NotificationKind, String)> {
    let wall_ns = at_s * SECOND;
    let evaluation = e.plan(0, &Positions::new(), wall_ns).remove(0);
    let notes = e.apply(&evaluation, answer, wall_ns);
    notes.into_iter().map(|n| (n.kind, n.labels["device"].clone())).collect()
}

#[test]
fn pending_then_firing_then_resolved() {
    let (mut e, _) = Engine::start(rules(WINDOW), State::default(), &Positions::new(), 0);
    let hot = || Ok(table(&[("a", 96.0)]));
    assert!(step(&mut e, 100, hot()).is_empty());
    assert!(step(&mut e, 109, hot()).is_empty());
    let refused = Err(QueryError::Refused("no".into()));
    assert!(step(&mut e, 110, refused).is_empty(), "a failure changes nothing");
    assert_eq!(step(&mut e, 111, hot()), [(NotificationKind::Firing, "a".into())]);
    assert!(step(&mut e, 112, hot()).is_empty(), "it fires once");
    assert_eq!(e.firing().len(), 1);
    assert_eq!(step(&mut e, 113, Ok(table(&[]))), [(NotificationKind::Resolved, "a".into())]);
    assert!(e.firing().is_empty());
    assert!(step(&mut e, 114, hot()).is_empty(), "from the beginning");
    assert!(step(&mut e, 115, Ok(table(&[]))).is_empty(), "what only pended ends silently");
    let health = &e.health()["g/Hot"];
    assert_eq!((health.evaluations, health.failures), (8, 1));
}

#[test]
fn since_is_the_last_evaluation_that_succeeded() {
    let (mut e, _) = Engine::start(rules(WINDOW), State::default(), &Positions::new(), 0);
    let asked =
        |e: &Engine, at: i64| e.plan(0, &Positions::new(), at * SECOND)[0].sql.clone().expect("a statement");
    assert!(asked(&e, 100).contains("toInt64(99000000000)"), "one interval back at first");
    step(&mut e, 100, Ok(table(&[])));
    step(&mut e, 101, Err(QueryError::Timeout(limits::QUERY_TIMEOUT)));
    assert!(asked(&e, 102).contains("toInt64(100000000000)"));
}

#[test]
fn a_restart_fires_nothing_again_and_keeps_the_start() {
    let (mut e, _) = Engine::start(rules(WINDOW), State::default(), &Positions::new(), 0);
    step(&mut e, 100, Ok(table(&[("a", 96.0)])));
    step(&mut e, 110, Ok(table(&[("a", 96.0)])));
    let before = e.firing();
    let stored = State::decode(&e.state.encode()).expect("reads back");
    let (mut e, gone) = Engine::start(rules(WINDOW), stored, &Positions::new(), 120 * SECOND);
    assert!(gone.is_empty());
    assert_eq!(e.firing(), before, "same id, labels and start");
    assert!(step(&mut e, 121, Ok(table(&[("a", 99.0)]))).is_empty());
    let (e, gone) = Engine::start(RuleSet::default(), e.state, &Positions::new(), 130 * SECOND);
    assert_eq!(gone.len(), 1, "a rule that is no more resolves what it fired");
    assert_eq!((gone[0].kind, gone[0].fired_wall_ns), (NotificationKind::Resolved, 110 * SECOND));
    assert!(e.state.rules.is_empty());
}

const NEW: &str = "
groups:
  - name: g
    clock: event
    stream: m
    rules:
      - alert: Hot
        sql: select device, value from m where {new} and value > 95
        for: 1m
        keep-firing-for: 5m
";

fn clock_answer(ns: i64) -> Result<Table, QueryError> {
    let column = |name: &str, ty: &str| ResultColumn { name: name.into(), ty: ty.into() };
    let columns = vec![column("newest", "String"), column("rows", "UInt64")];
    Ok(Table { columns, rows: vec![vec![json!(ns.to_string()), json!("3")]], truncated: false })
}

#[test]
fn rows_are_judged_in_event_time() {
    let (mut e, _) = Engine::start(rules(NEW), State::default(), &Positions::new(), 0);
    assert!(e.plan(0, &Positions::new(), 5).is_empty(), "no event, no time");
    let turn = |e: &mut Engine, to: u64, at_s: i64, hot: &[(&str, f64)]| {
        let frontier = Positions::from([(0, to)]);
        let (sql, range) = e.clock_query(0, &frontier, i64::MAX / 2).expect("something new");
        assert!(sql.contains("from `m`"), "{sql}");
        e.advance_clock(0, &range, &clock_answer(at_s * SECOND));
        let evaluation = e.plan(0, &frontier, 0).remove(0);
        let notes = e.apply(&evaluation, Ok(table(hot)), 7);
        notes.into_iter().map(|n| n.kind).collect::<Vec<_>>()
    };
    assert!(turn(&mut e, 1, 1_000, &[("a", 96.0)]).is_empty());
    assert!(turn(&mut e, 2, 1_059, &[("b", 96.0)]).is_empty(), "a is neither confirmed nor gone");
    assert_eq!(turn(&mut e, 3, 1_061, &[("a", 97.0)]), [NotificationKind::Firing]);
    assert!(turn(&mut e, 4, 1_030, &[]).is_empty(), "the clock never goes back");
    assert_eq!(e.now(0, 0), Some(1_061 * SECOND));
    assert!(turn(&mut e, 5, 1_359, &[]).is_empty(), "b ends silently");
    assert_eq!(turn(&mut e, 6, 1_361, &[]), [NotificationKind::Resolved]);
    // Nothing new: no question, and no verdict changes.
    let same = Positions::from([(0, 6)]);
    assert!(e.clock_query(0, &same, 0).is_none());
    assert_eq!(e.plan(0, &same, 0)[0].sql, None);
    assert!(!e.behind(0, &same));
}

#[test]
fn a_rule_added_later_judges_from_then_on_and_bounds_hold() {
    let text = NEW.replace("    clock: event\n    stream: m\n", "");
    let frontier = Positions::from([(0, 50)]);
    let (mut e, _) = Engine::start(rules(&text), State::default(), &frontier, 0);
    assert_eq!(e.plan(0, &frontier, 0)[0].sql, None);
    let far = Positions::from([(0, 50 + limits::NEW_OFFSETS_MAX + 1)]);
    assert!(e.behind(0, &far));
    let evaluation = e.plan(0, &far, 0).remove(0);
    let many: Vec<(String, f64)> = (0..limits::INSTANCES_MAX + 7).map(|i| (format!("d{i}"), 99.0)).collect();
    let many: Vec<(&str, f64)> = many.iter().map(|(d, v)| (d.as_str(), *v)).collect();
    e.apply(&evaluation, Ok(table(&many)), 0);
    assert_eq!(e.instances().count(), limits::INSTANCES_MAX);
    assert_eq!(e.health()["g/Hot"].suppressed, 7);
    assert_eq!(e.state.rules["g/Hot"].positions, Positions::from([(0, 50 + limits::NEW_OFFSETS_MAX)]));
    assert!(e.behind(0, &far), "one offset is left");
}

fn unknown() -> Result<Table, QueryError> {
    Err(QueryError::UnknownTable("Table tidegate.m does not exist".into()))
}

#[test]
fn a_table_that_is_not_there_moves_no_position_and_resolves_nothing() {
    let text = NEW
        .replace("    clock: event\n    stream: m\n", "")
        .replace("for: 1m\n        keep-firing-for: 5m", "for: 0s\n        keep-firing-for: 0s");
    let (mut e, _) = Engine::start(rules(&text), State::default(), &Positions::new(), 0);
    let turn = |e: &mut Engine, to: u64, answer: Result<Table, QueryError>| {
        let evaluation = e.plan(0, &Positions::from([(0, to)]), to as i64).remove(0);
        let notes = e.apply(&evaluation, answer, to as i64);
        (evaluation.sql.unwrap_or_default(), notes.into_iter().map(|n| n.kind).collect::<Vec<_>>())
    };
    assert_eq!(turn(&mut e, 5, Ok(table(&[("a", 96.0)]))).1, [NotificationKind::Firing]);
    let before = e.state.clone();
    for to in [7, 9] {
        assert_eq!(turn(&mut e, to, unknown()).1, [], "no verdict");
        assert_eq!(e.state, before, "neither positions nor instances nor {{since}}");
    }
    let health = &e.health()["g/Hot"];
    assert_eq!((health.failures, &health.last_error), (0, &None), "not a failure");
    assert_eq!(health.unknown_table.as_deref(), Some("Table tidegate.m does not exist"));
    assert!(!e.behind(0, &Positions::from([(0, 9)])), "asked again after the interval, not at once");
    let (sql, notes) = turn(&mut e, 12, Ok(table(&[])));
    assert!(sql.contains("_offset >= 5 and _offset < 12"), "all that came meanwhile: {sql}");
    assert_eq!(notes, [NotificationKind::Resolved]);
    assert_eq!(e.health()["g/Hot"].unknown_table, None);
}

#[test]
fn a_clock_without_its_table_stands_still_and_is_not_asked_without_a_pause() {
    let (mut e, _) = Engine::start(rules(NEW), State::default(), &Positions::new(), 0);
    let frontier = Positions::from([(0, 9)]);
    for (answer, waits) in [(unknown(), true), (Err(QueryError::Unreachable("gone".into())), true)] {
        let (_, range) = e.clock_query(0, &frontier, 0).expect("still something new");
        e.advance_clock(0, &range, &answer);
        assert_eq!(e.health()["g/Hot"].unknown_table.is_some(), waits);
        assert!(!e.behind(0, &frontier));
    }
    let (sql, range) = e.clock_query(0, &frontier, i64::MAX / 2).expect("still something new");
    assert!(sql.contains("_offset >= 0 and _offset < 9"), "{sql}");
    e.advance_clock(0, &range, &clock_answer(50 * SECOND));
    assert_eq!(e.health()["g/Hot"].unknown_table, None);
    assert!(e.behind(0, &frontier), "the rule has not judged what its clock has seen");
    let evaluation = e.plan(0, &frontier, 0).remove(0);
    e.apply(&evaluation, Ok(table(&[])), 0);
    assert!(!e.behind(0, &frontier));
}

/// Rows as the sink stores them: each has a partition and an offset; some stand in the table before the sink has
/// committed them.
struct World {
    random: SeededRandom,
    rows: Vec<(u32, u64)>,
    frontier: Positions,
}

impl World {
    fn store_some(&mut self) {
        for p in 0..3 {
            let end = self.frontier.get(&p).copied().unwrap_or(0);
            // Offsets have gaps, records hold several rows, and the tail of the table is not committed yet.
            let mut tail = self.rows.iter().filter(|r| r.0 == p).map(|r| r.1 + 1).max().unwrap_or(0).max(end);
            for _ in 0..self.random.next_u64() % 3 {
                tail += self.random.next_u64() % 2;
                for _ in 0..=self.random.next_u64() % 3 {
                    self.rows.push((p, tail));
                }
                tail += 1;
            }
            if self.random.next_u64().is_multiple_of(2) {
                self.frontier.insert(p, tail);
            }
        }
    }

    /// What ClickHouse would answer: the statement's condition is read back from its text.
    fn answer(&self, sql: &str) -> Vec<usize> {
        let number = |text: &str, after: &str| -> u64 {
            let from = text.find(after).expect("the condition names it") + after.len();
            text[from..]
                .chars()
                .take_while(char::is_ascii_digit)
                .collect::<String>()
                .parse()
                .expect("a number")
        };
        let mut out = Vec::new();
        for span in sql.split("(_partition").skip(1) {
            let span = format!("(_partition{span}");
            let p = number(&span, "(_partition = ");
            let (from, to) = (number(&span, "_offset >= "), number(&span, "_offset < "));
            let inside = |(i, r): (usize, &(u32, u64))| {
                (u64::from(r.0) == p && (from..to).contains(&r.1)).then_some(i)
            };
            out.extend(self.rows.iter().enumerate().filter_map(inside));
        }
        out
    }
}

#[test]
fn every_row_is_judged_once_across_failures_and_crashes() {
    let text = NEW.replace("    clock: event\n    stream: m\n", "").replace("for: 1m", "for: 0s");
    for seed in 0..200 {
        let mut w = World { random: SeededRandom::new(seed), rows: Vec::new(), frontier: Positions::new() };
        let (mut e, _) = Engine::start(rules(&text), State::default(), &Positions::new(), 0);
        // What is durable: the state, and which rows were judged by the time it was stored.
        let mut stored = (e.state.encode(), Vec::<usize>::new());
        let mut judged: Vec<usize> = Vec::new();
        for turn in 0..60 {
            if turn < 50 {
                w.store_some();
            }
            let evaluation = e.plan(0, &w.frontier, turn).remove(0);
            let rows = evaluation.sql.as_ref().map(|s| w.answer(s)).unwrap_or_default();
            // The last turn always succeeds.
            let dice = if turn == 59 { 9 } else { w.random.next_u64() % 10 };
            if dice == 0 {
                e.apply(&evaluation, Err(QueryError::Unreachable("gone".into())), turn);
                continue;
            }
            judged.extend(&rows);
            e.apply(&evaluation, Ok(Table::default()), turn);
            if dice == 1 {
                // A crash before the state is stored: nothing was sent for this verdict, which is made again.
                judged.clone_from(&stored.1);
                let state = State::decode(&stored.0).expect("reads back");
                e = Engine::start(rules(&text), state, &w.frontier, turn).0;
                continue;
            }
            stored = (e.state.encode(), judged.clone());
        }
        // The last word: everything that the sink has committed, once.
        let evaluation = e.plan(0, &w.frontier, 60).remove(0);
        judged.extend(evaluation.sql.as_ref().map(|s| w.answer(s)).unwrap_or_default());
        judged.sort_unstable();
        let expected: Vec<usize> = (0..w.rows.len())
            .filter(|i| w.rows[*i].1 < w.frontier.get(&w.rows[*i].0).copied().unwrap_or(0))
            .collect();
        assert_eq!(judged, expected, "seed {seed}");
    }
}
