//! The same filter and aggregate as `threshold` and `stats`, over rows instead of columns, for `bench_udf` only.
#![allow(missing_docs, reason = "generated bindings")]

use std::cell::RefCell;

wit_bindgen::generate!({ path: "wit", world: "rows" });
use exports::tidegate::bench_rows::rows_api::{Event, Guest, Value};

struct Rows;

#[derive(Clone)]
struct State {
    count: u64,
    sum: f64,
    min: f64,
    max: f64,
}

thread_local! {
    static STATES: RefCell<Vec<State>> = const { RefCell::new(Vec::new()) };
}

fn temperature(event: &Event) -> Option<f64> {
    event.cells.iter().find(|c| c.name == "temperature").and_then(|c| match c.value {
        Value::Float(v) => Some(v),
        _ => None,
    })
}

impl Guest for Rows {
    fn keep(events: Vec<Event>) -> Vec<bool> {
        events.iter().map(|e| temperature(e).is_some_and(|v| v > 50.0)).collect()
    }

    fn update(events: Vec<Event>, group: Vec<u32>, group_count: u32) {
        STATES.with_borrow_mut(|states| {
            let empty = State { count: 0, sum: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY };
            states.resize(group_count as usize, empty);
            for (event, group) in events.iter().zip(group) {
                if let Some(v) = temperature(event) {
                    let s = &mut states[group as usize];
                    s.count += 1;
                    s.sum += v;
                    s.min = s.min.min(v);
                    s.max = s.max.max(v);
                }
            }
        });
    }
}

export!(Rows);
