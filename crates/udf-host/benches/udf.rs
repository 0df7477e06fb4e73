//! `cargo xtask bench udf`: what one event costs in a module, over columns and over rows, in one run.
//!
//! Filter: `temperature > 50` by `threshold`. Aggregate: `stats` over `temperature` into 100 groups. The events have
//! three fields; the row-shaped twin (`bench-rows`) does the same work. Each figure is the best of several rounds,
//! taken in turns, so that a busy moment of the machine hits all alike.

use record::{Batch, BatchBuilder, Column, ColumnType, Digest, EventTime, StreamSchema, Value};
use std::{
    hint::black_box,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::Arc,
    time::Instant,
};
use udf_host::{
    AggregateInstance, Artifact, FilterInstance, Host, HostConfig, Limits,
    rows::{Cell, Event, RowsInstance, Value as RowValue},
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const ROUNDS: usize = 15;
/// Events that one figure of one round is taken over.
const EVENTS_PER_ROUND: usize = 2_000_000;
/// Rows are so slow that fewer do.
const ROW_EVENTS_PER_ROUND: usize = 200_000;
const GROUPS: u32 = 100;

fn main() -> ExitCode {
    let json = std::env::args().any(|a| a == "--json");
    match run(json) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::from(2)
        }
    }
}

/// The target folder: this program lies in the `deps` of one of its profiles.
fn target_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    Ok(exe.ancestors().nth(3).ok_or("this program lies in no target folder")?.to_path_buf())
}

/// A module's native code, by the compiler program as it was built for tests: the code does not depend on how its
/// compiler was built.
fn artifact(name: &str) -> Result<Artifact> {
    let target = target_dir()?;
    let modules =
        std::env::var_os("TIDEGATE_MODULES_DIR").map_or_else(|| target.join("modules"), PathBuf::from);
    let component = modules.join(format!("{name}.wasm"));
    let built = |path: &Path, how: &str| {
        let missing = || format!("{} is not built: run `{how}`", path.display());
        if path.is_file() { Ok(()) } else { Err(missing()) }
    };
    let compiler = target.join("debug/tidegate-module-compiler");
    built(&component, "cargo xtask modules")?;
    built(&compiler, "cargo build -p tidegate-module-compiler")?;
    let out = std::env::temp_dir().join(format!("bench-udf-{}-{name}.cwasm", std::process::id()));
    let mut compile = Command::new(&compiler);
    compile.arg("--any-world").arg("--in").arg(&component).arg("--out").arg(&out);
    let done = compile.output()?;
    let code = std::fs::read(&out);
    // It may not be there, and is of no use once read.
    let _ = std::fs::remove_file(&out);
    if !done.status.success() {
        return Err(String::from_utf8_lossy(&done.stderr).into());
    }
    Ok(Artifact::open(code?, Digest::of(&std::fs::read(&component)?))?)
}

fn schema() -> Result<Arc<StreamSchema>> {
    let column = |name: &str, ty| Column { name: name.into(), ty };
    Ok(Arc::new(StreamSchema::new(vec![
        column("temperature", ColumnType::Float64),
        column("humidity", ColumnType::Float64),
        column("status", ColumnType::Int64),
    ])?))
}

fn batch(rows: usize) -> Result<Batch> {
    let mut b = BatchBuilder::new(schema()?);
    for i in 0..rows {
        let values = [Value::Float((i % 100) as f64), Value::Float(1.0), Value::Int(1)];
        b.push(EventTime::from_ns(i as i128)?, &format!("dev-{}", i % 100), &values)?;
    }
    Ok(b.finish()?)
}

/// Nanoseconds per event of one round.
fn time<T>(rows: usize, events: usize, mut call: impl FnMut() -> Result<T>) -> Result<f64> {
    let calls = (events / rows).max(1);
    let began = Instant::now();
    for _ in 0..calls {
        black_box(call()?);
    }
    Ok(began.elapsed().as_secs_f64() * 1e9 / (calls * rows) as f64)
}

/// A figure: its name, and one round of it.
type Measure<'a> = (&'static str, Box<dyn FnMut() -> Result<f64> + 'a>);

fn run(json: bool) -> Result<bool> {
    let host = Host::new(HostConfig::default())?;
    let threshold = host.load("threshold", &artifact("threshold")?)?;
    let stats = host.load("stats", &artifact("stats")?)?;
    let (input, limits) = (schema()?, Limits::default());
    let filter_config = r#"{"column":"temperature","above":50.0}"#;
    let stats_config = r#"{"columns":["temperature"]}"#;
    let filter = || FilterInstance::new(&threshold, filter_config, &input, &limits);
    let aggregate = || AggregateInstance::new(&stats, stats_config, &input, &limits);
    let (small, large) = (batch(1_024)?, batch(16_384)?);
    let group: Vec<u32> = (0..16_384).map(|i| i % GROUPS).collect();
    let rows = artifact("bench-rows")?;

    let cells: Vec<[Cell<'_>; 3]> = (0..16_384)
        .map(|i| {
            [
                Cell { name: "temperature", value: RowValue::Float((i % 100) as f64) },
                Cell { name: "humidity", value: RowValue::Float(1.0) },
                Cell { name: "status", value: RowValue::Integer(1) },
            ]
        })
        .collect();
    let event = |i: usize| Event { device: large.device(i), time: i as i64, cells: &cells[i] };
    let events: Vec<Event<'_>> = (0..16_384).map(event).collect();

    let (mut f1, mut f2) = (filter()?, filter()?);
    let (mut a1, mut a2) = (aggregate()?, aggregate()?);
    let (mut r1, mut r2) = (RowsInstance::new(&host, &rows)?, RowsInstance::new(&host, &rows)?);
    check(&mut f1, &mut r1, &large, &events)?;
    let (small, large, events, group) = (&small, &large, &events, &group);

    let mut measures: Vec<Measure<'_>> = vec![
        ("filter_ns_at_1024", Box::new(|| time(1_024, EVENTS_PER_ROUND, || Ok(f1.keep(small)?)))),
        ("filter_ns_at_16384", Box::new(|| time(16_384, EVENTS_PER_ROUND, || Ok(f2.keep(large)?)))),
        (
            "aggregate_ns_at_1024",
            Box::new(|| time(1_024, EVENTS_PER_ROUND, || Ok(a1.update(small, &group[..1_024], GROUPS)?))),
        ),
        (
            "aggregate_ns_at_16384",
            Box::new(|| time(16_384, EVENTS_PER_ROUND, || Ok(a2.update(large, group, GROUPS)?))),
        ),
        ("rows_filter_ns_at_16384", Box::new(|| time(16_384, ROW_EVENTS_PER_ROUND, || Ok(r1.keep(events)?)))),
        (
            "rows_aggregate_ns_at_16384",
            Box::new(|| time(16_384, ROW_EVENTS_PER_ROUND, || Ok(r2.update(events, group, GROUPS)?))),
        ),
        ("native_filter_ns_at_16384", Box::new(|| time(16_384, EVENTS_PER_ROUND, || Ok(native(large))))),
    ];
    let mut figures = serde_json::Map::new();
    let mut best = vec![f64::INFINITY; measures.len()];
    for _ in 0..ROUNDS {
        for ((_, measure), best) in measures.iter_mut().zip(&mut best) {
            *best = best.min(measure()?);
        }
    }
    for ((name, _), best) in measures.iter().zip(best) {
        figures.insert((*name).into(), round(best).into());
    }
    drop(measures);
    let figure = |name: &str| figures[name].as_f64().unwrap_or(f64::NAN);
    let filter_ratio = round(figure("rows_filter_ns_at_16384") / figure("filter_ns_at_16384"));
    let aggregate_ratio = round(figure("rows_aggregate_ns_at_16384") / figure("aggregate_ns_at_16384"));
    figures.insert("rows_over_columns_filter".into(), filter_ratio.into());
    figures.insert("rows_over_columns_aggregate".into(), aggregate_ratio.into());
    Ok(report(figures, json))
}

fn round(v: f64) -> f64 {
    (v * 100.0).round() / 100.0
}

/// Both ways give the same answer.
fn check(
    columns: &mut FilterInstance,
    rows: &mut RowsInstance,
    batch: &Batch,
    events: &[Event<'_>],
) -> Result<()> {
    let (a, b) = (columns.keep(batch)?, rows.keep(events)?);
    if !b.iter().enumerate().all(|(i, keep)| a.get(i) == *keep) {
        return Err("columns and rows differ".into());
    }
    if native(batch) != a.0 {
        return Err("module and native code differ".into());
    }
    Ok(())
}

/// The same filter without any module.
fn native(batch: &Batch) -> Vec<u64> {
    use record::arrow::array::Float64Array;
    let column = batch.column_at(0).as_any().downcast_ref::<Float64Array>();
    let values = column.map_or(&[][..], |c| c.values());
    let word = |chunk: &[f64]| chunk.iter().enumerate().fold(0, |w, (i, v)| w | u64::from(*v > 50.0) << i);
    values.chunks(64).map(word).collect()
}

/// Prints, and says whether every bar holds.
fn report(figures: serde_json::Map<String, serde_json::Value>, json: bool) -> bool {
    let bars = [
        ("filter_ns_at_1024", "<=", 3.0),
        ("filter_ns_at_16384", "<=", 3.0),
        ("aggregate_ns_at_16384", "<=", 15.0),
        ("rows_over_columns_filter", ">=", 100.0),
    ];
    let judged = bars.map(|(figure, operator, bar)| {
        let value = figures[figure].as_f64().unwrap_or(f64::NAN);
        let holds = if operator == "<=" { value <= bar } else { value >= bar };
        (figure, operator, bar, value, holds)
    });
    for (name, value) in &figures {
        eprintln!("{name:32} {value:>10}");
    }
    for (figure, operator, bar, value, holds) in judged {
        eprintln!("{} {figure} {value} {operator} {bar}", if holds { "holds" } else { "FAILS" });
    }
    if json {
        let bars: Vec<_> = judged
            .iter()
            .map(|(figure, operator, bar, value, holds)| {
                serde_json::json!({"figure": figure, "operator": operator, "bar": bar, "value": value, "holds": holds})
            })
            .collect();
        println!("{}", serde_json::json!({"name": "udf", "figures": figures, "bars": bars}));
    }
    judged.iter().all(|j| j.4)
}
