//! The house keeps its rooms: who may name whom, where foreign crates live, how long a file may be.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Members and the members that they may name (not counting tests).
const ROOMS: &[(&str, &[&str])] = &[
    ("record", &[]),
    ("mqtt", &[]),
    ("module-build", &[]),
    ("journal", &["record"]),
    ("udf-host", &["record"]),
    ("link", &["record"]),
    ("daemon", &["record"]),
    ("tidegate-gateway", &["record", "journal", "mqtt", "udf-host", "link", "daemon"]),
    ("tidegate-central", &["record", "journal", "link", "daemon", "udf-host"]),
    ("tidegate-clickhouse", &["daemon"]),
    ("tidegate-module-compiler", &["udf-host"]),
    ("tidegate", &["record", "journal", "link", "module-build"]),
    ("tidegate-sim", &["record", "link", "tidegate-central"]),
    ("tidegate-tests", &["record", "link"]),
    ("xtask", &[]),
];

/// Foreign crates that only these members may name (not counting tests), because exchanging them shall touch one room.
const HOMES: &[(&str, &[&str])] = &[
    ("sled", &["journal"]),
    ("wasmtime", &["udf-host"]),
    ("wasmparser", &["udf-host"]),
    ("wit-component", &["module-build"]),
    ("tonic", &["link"]),
    ("tonic-prost", &["link"]),
    ("prost", &["link"]),
    ("protox", &["link"]),
    ("rcgen", &["link"]),
    ("x509-parser", &["link"]),
    ("prometheus", &["daemon"]),
    ("tracing-subscriber", &["daemon"]),
    ("clickhouse", &["tidegate-central"]),
    ("rdkafka", &["tidegate-central"]),
    ("libloading", &["tidegate-clickhouse"]),
    ("rumqttc", &["tidegate-gateway", "tidegate"]),
    ("rmqtt-codec", &[]),
    ("proptest", &[]),
    ("clap", &["tidegate", "tidegate-tests"]),
];

/// What the program on the device must not carry, by crate name.
const NOT_ON_THE_DEVICE: &[&str] = &[
    "cranelift-codegen",
    "wasmtime-cranelift",
    "rdkafka",
    "rdkafka-sys",
    "clickhouse",
    "libloading",
    "openssl-sys",
    "aws-lc-rs",
];

/// Lines of a source file.
const LINES_MAX: usize = 650;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn cargo(args: &[&str]) -> String {
    let out = Command::new(env!("CARGO")).args(args).current_dir(root()).output().expect("cargo runs");
    assert!(out.status.success(), "cargo {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("cargo writes UTF-8")
}

/// Per member: what it names outside of tests.
fn named() -> BTreeMap<String, BTreeSet<String>> {
    let metadata: Value =
        serde_json::from_str(&cargo(&["metadata", "--no-deps", "--format-version", "1"])).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let name = |value: &Value| value["name"].as_str().expect("a name").to_owned();
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().expect("dependencies");
            let outside_tests = dependencies.iter().filter(|d| d["kind"] != "dev");
            (name(package), outside_tests.map(name).collect())
        })
        .collect()
}

#[test]
fn rooms_name_only_whom_they_may() {
    let named = named();
    let members: BTreeSet<&str> = named.keys().map(String::as_str).collect();
    let listed: BTreeSet<&str> = ROOMS.iter().map(|(room, _)| *room).collect();
    assert_eq!(members, listed, "a member that the table does not know, or the other way round");
    for (room, may) in ROOMS {
        let wrong: Vec<&String> = named[*room]
            .iter()
            .filter(|other| members.contains(other.as_str()) && !may.contains(&other.as_str()))
            .collect();
        assert!(wrong.is_empty(), "{room} names {wrong:?}; it may name {may:?}");
    }
}

#[test]
fn foreign_crates_stay_at_home() {
    for (room, dependencies) in named() {
        for (foreign, homes) in HOMES {
            assert!(
                !dependencies.contains(*foreign) || homes.contains(&room.as_str()),
                "{room} names {foreign}, whose home is {homes:?}"
            );
        }
    }
}

#[test]
fn the_gateway_carries_no_compiler_and_no_database() {
    let tree = cargo(&["tree", "--package", "tidegate-gateway", "--edges", "normal", "--prefix", "none"]);
    let carried: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(carried.contains("wasmtime"), "the tree is not the gateway's: {tree}");
    let wrong: Vec<_> = NOT_ON_THE_DEVICE.iter().filter(|name| carried.contains(**name)).collect();
    assert!(wrong.is_empty(), "the gateway carries {wrong:?}");
}

#[test]
fn files_stay_readable() {
    let mut too_long = Vec::new();
    let mut folders = vec![root().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("the repository can be listed") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if name.ends_with(".rs") {
                let lines = std::fs::read_to_string(&path).expect("a source file").lines().count();
                if lines > LINES_MAX {
                    too_long.push(format!("{}: {lines}", path.display()));
                }
            }
        }
    }
    assert!(too_long.is_empty(), "longer than {LINES_MAX} lines: {too_long:#?}");
}
