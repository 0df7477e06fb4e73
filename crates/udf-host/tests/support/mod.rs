//! What the tests share: the built modules, the compiler program, batches.
#![allow(dead_code, reason = "each test file uses its part")]

use record::{Batch, BatchBuilder, Column, ColumnType, EventTime, StreamSchema, Value};
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, OnceLock},
};
use udf_host::{Artifact, CompilerProgram, Host, HostConfig, Limits, Module};

/// The folder that cargo builds into: test programs lie in its `deps`.
fn profile_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("the test program has a path");
    exe.ancestors().nth(2).expect("target/debug/deps/test").to_path_buf()
}

pub(crate) fn compiler() -> CompilerProgram {
    let program = profile_dir().join("tidegate-module-compiler");
    assert!(
        program.is_file(),
        "{} is not built: run `cargo build -p tidegate-module-compiler` (`cargo xtask test` does)",
        program.display()
    );
    CompilerProgram::at(program)
}

/// A built component of `wasm-udfs/`.
pub(crate) fn component(name: &str) -> Vec<u8> {
    let dir = std::env::var_os("TIDEGATE_MODULES_DIR").map(PathBuf::from);
    let target = || profile_dir().parent().expect("target/debug").to_path_buf();
    let path = dir.unwrap_or_else(|| target().join("modules")).join(format!("{name}.wasm"));
    match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) => panic!("{}: {e}: run `cargo xtask modules` (or set TIDEGATE_MODULES_DIR)", path.display()),
    }
}

/// Runs the compiler by hand; its words when it does not end well.
pub(crate) fn run_compiler(
    component: &Path,
    artifact: &Path,
    more: &[&str],
) -> Result<(), (Option<i32>, String)> {
    let mut command = Command::new(compiler().program);
    command.arg("--in").arg(component).arg("--out").arg(artifact).args(more);
    let out = command.output().expect("the compiler runs");
    if out.status.success() {
        return Ok(());
    }
    Err((out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned()))
}

pub(crate) fn compile(bytes: &[u8]) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("temporary folder");
    let (component, artifact) = (dir.path().join("x.wasm"), dir.path().join("x.cwasm"));
    std::fs::write(&component, bytes).expect("written");
    run_compiler(&component, &artifact, &[]).expect("it compiles");
    std::fs::read(&artifact).expect("written by the compiler")
}

pub(crate) fn host() -> &'static Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(|| Host::new(HostConfig::default()).expect("the engine starts"))
}

/// A module of `wasm-udfs/`, compiled and loaded once for each test program.
pub(crate) fn module(name: &str) -> Module {
    static LOADED: OnceLock<std::sync::Mutex<std::collections::HashMap<String, Module>>> = OnceLock::new();
    let mut loaded = LOADED.get_or_init(Default::default).lock().expect("no test panics here");
    if let Some(module) = loaded.get(name) {
        return module.clone();
    }
    let bytes = component(name);
    let artifact = Artifact::open(compile(&bytes), record::Digest::of(&bytes)).expect("fresh");
    let module = host().load(name, &artifact).expect("of the contract");
    loaded.insert(name.into(), module.clone());
    module
}

pub(crate) fn limits() -> Limits {
    Limits::default()
}

pub(crate) fn schema() -> Arc<StreamSchema> {
    let column = |name: &str, ty| Column { name: name.into(), ty };
    let columns = vec![
        column("temperature", ColumnType::Float64),
        column("level", ColumnType::Int64),
        column("mode", ColumnType::String),
        column("on", ColumnType::Bool),
        column("raw", ColumnType::Bytes),
    ];
    Arc::new(StreamSchema::new(columns).expect("valid"))
}

/// One row: time, temperature, level.
pub(crate) type Row = (i64, Option<f64>, Option<i64>);

pub(crate) fn batch(rows: &[Row]) -> Batch {
    let mut b = BatchBuilder::new(schema());
    for (i, (time, temperature, level)) in rows.iter().enumerate() {
        let values = [
            temperature.map_or(Value::Null, Value::Float),
            level.map_or(Value::Null, Value::Int),
            if i % 3 == 0 { Value::Null } else { Value::Str("auto") },
            Value::Bool(i % 2 == 0),
            Value::Bytes(b"xy"),
        ];
        let time = EventTime::from_ns(i128::from(*time)).expect("in range");
        b.push(time, &format!("dev-{}", i % 7), &values).expect("fits");
    }
    b.finish().expect("fits")
}

pub(crate) fn temperatures(values: impl IntoIterator<Item = f64>) -> Batch {
    let rows: Vec<Row> =
        values.into_iter().enumerate().map(|(i, v)| (i as i64, Some(v), Some(i as i64))).collect();
    batch(&rows)
}
