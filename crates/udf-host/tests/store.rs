//! The store of modules: what is refused and what it leaves behind, what survives, what is compiled again.

mod support;

use record::{Digest, ModuleRef};
use std::path::Path;
use support::{compile, compiler, component, host, limits, run_compiler, schema, temperatures};
use udf_host::{
    Artifact, ArtifactError, CompilerProgram, FilterInstance, ModuleStore, StoreError, Trial, World,
};

const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";
const CORE_MODULE: &[u8] = b"\0asm\x01\0\0\0";

fn section(id: u8, body: &[u8]) -> Vec<u8> {
    assert!(body.len() < 128, "one byte of length");
    let mut s = vec![id, body.len() as u8];
    s.extend(body);
    s
}

/// A component that imports an (empty) instance by name.
fn importing(name: &str) -> Vec<u8> {
    let mut c = COMPONENT.to_vec();
    c.extend(section(7, &[1, 0x42, 0]));
    let mut import = vec![1, 0, name.len() as u8];
    import.extend(name.bytes());
    import.extend([5, 0]);
    c.extend(section(10, &import));
    c
}

/// A component with a core module that declares a memory of 1 GiB.
fn hungry() -> Vec<u8> {
    let mut core = CORE_MODULE.to_vec();
    core.extend(section(5, &[1, 0, 0x80, 0x80, 1]));
    let mut c = COMPONENT.to_vec();
    c.extend(section(1, &core));
    c
}

fn module(text: &str) -> ModuleRef {
    text.parse().expect("valid")
}

fn open(dir: &Path) -> ModuleStore {
    ModuleStore::open(dir, host().clone(), compiler()).expect("opens")
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .expect("listed")
        .map(|e| e.expect("listed").file_name().into_string().expect("plain names"))
        .collect();
    names.sort();
    names
}

fn refusal(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().expect("temporary folder");
    let store = open(dir.path());
    match store.put(&module("bad@1"), bytes, &[]) {
        Err(StoreError::Refused(why)) => {
            assert_eq!(files(dir.path()), Vec::<String>::new(), "nothing is left behind");
            assert_eq!(store.list().expect("listed"), []);
            why
        }
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn foreign_imports_are_refused_by_name() {
    for name in ["wasi:cli/environment@0.2.0", "tidegate:udf/files@0.1.0", "tidegate:udf/log@9.9.9"] {
        let why = refusal(&importing(name));
        assert!(why.contains(name), "{why}");
    }
}

#[test]
fn what_is_no_module_of_the_contract_is_refused_saying_why() {
    let why = refusal(&importing("tidegate:udf/columns@0.1.0"));
    assert!(why.contains("none of the worlds filter, transform, aggregate"), "{why}");
    let why = refusal(&component("bench-rows"));
    assert!(why.contains("tidegate:bench-rows/rows-api@0.1.0"), "it names what is exported: {why}");
    assert!(refusal(CORE_MODULE).contains("core module"));
    assert!(refusal(b"").contains("not a valid WebAssembly component"));
    assert!(refusal(b"#!/bin/sh").contains("not a valid WebAssembly component"));
}

#[test]
fn a_truncated_module_is_refused() {
    let whole = component("threshold");
    for cut in [9, whole.len() / 2, whole.len() - 1] {
        let why = refusal(&whole[..cut]);
        assert!(
            why.contains("not a valid WebAssembly component") || why.contains("none of the worlds"),
            "{why}"
        );
    }
}

#[test]
fn a_memory_of_1_gb_is_refused() {
    let why = refusal(&hungry());
    assert!(why.contains("1073741824") && why.contains("memory"), "{why}");
}

#[test]
fn a_module_over_the_size_limit_is_refused_before_it_is_read() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let (path, out) = (dir.path().join("x.wasm"), dir.path().join("x.cwasm"));
    std::fs::write(&path, component("threshold")).expect("written");
    let (code, why) = run_compiler(&path, &out, &["--module-bytes-max", "1000"]).expect_err("refused");
    assert_eq!(code, Some(1));
    assert!(why.contains("the limit is 1000"), "{why}");
    assert!(!out.exists());
    let why = refusal(&vec![0; 33 << 20]);
    assert!(why.contains("the limit is"), "{why}");
}

#[test]
fn the_compiler_lives_within_its_means() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let (path, out) = (dir.path().join("x.wasm"), dir.path().join("x.cwasm"));
    std::fs::write(&path, component("threshold")).expect("written");
    let (code, _) =
        run_compiler(&path, &out, &["--memory-bytes", "20000000"]).expect_err("too little memory");
    assert_ne!(code, Some(1), "the module is not to blame");
    let (code, why) = run_compiler(&path, &out, &["--nonsense"]).expect_err("wrong use");
    assert_eq!(code, Some(2));
    assert!(why.contains("usage"), "{why}");

    let store_dir = tempfile::tempdir().expect("temporary folder");
    let starved = CompilerProgram { memory_bytes: 20_000_000, ..compiler() };
    let store = ModuleStore::open(store_dir.path(), host().clone(), starved).expect("opens");
    let e = store.put(&module("a@1"), &component("threshold"), &[]).expect_err("no compiler");
    assert!(matches!(e, StoreError::Compiler(_)), "{e}");
    assert_eq!(files(store_dir.path()), Vec::<String>::new());
}

#[test]
fn modules_and_activations_survive_a_restart() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let (threshold, stats) = (component("threshold"), component("stats"));
    {
        let store = open(dir.path());
        let trial = Trial {
            config: r#"{"column":"temperature","above":90}"#.into(),
            input: schema(),
            limits: limits(),
        };
        let stored =
            store.put(&module("threshold@0.1.0"), &threshold, std::slice::from_ref(&trial)).expect("stored");
        assert_eq!((stored.world, stored.digest), (World::Filter, Digest::of(&threshold)));
        store.put(&module("stats@0.1.0"), &stats, &[]).expect("stored");
        store.put(&module("threshold@0.1.0"), &threshold, &[]).expect("the same again is no error");
        let e = store.put(&module("threshold@0.1.0"), &stats, &[]).expect_err("a version never changes");
        assert!(matches!(e, StoreError::Exists { .. }), "{e}");
        store.activate(&module("threshold@0.1.0")).expect("activated");
        assert!(matches!(store.activate(&module("threshold@9")), Err(StoreError::Unknown(_))));
        assert!(matches!(store.rollback("threshold"), Err(StoreError::NoPrevious(_))));
    }
    let store = open(dir.path());
    let names: Vec<String> = store.list().expect("listed").iter().map(|m| m.module.to_string()).collect();
    assert_eq!(names, ["stats@0.1.0", "threshold@0.1.0"]);
    assert_eq!(store.active("threshold").expect("read"), Some(module("threshold@0.1.0")));
    assert_eq!(store.active("stats").expect("read"), None);
    let loaded = store.load(&module("threshold@0.1.0")).expect("loaded");
    let config = r#"{"column":"temperature","above":1}"#;
    let mut f = FilterInstance::new(&loaded, config, &schema(), &limits()).expect("configures");
    assert_eq!(f.keep(&temperatures([1.0, 2.0])).expect("answers").0, [0b10]);
    assert!(matches!(store.load(&module("nope@1")), Err(StoreError::Unknown(_))));
}

#[test]
fn rollback_goes_one_version_back() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let store = open(dir.path());
    let bytes = component("threshold");
    for version in ["m@1", "m@2"] {
        store.put(&module(version), &bytes, &[]).expect("stored");
        store.activate(&module(version)).expect("activated");
        store.activate(&module(version)).expect("again is no change");
    }
    assert_eq!(store.rollback("m").expect("back").version, "1");
    assert_eq!(open(dir.path()).active("m").expect("read"), Some(module("m@1")));
}

#[test]
fn a_trial_that_fails_refuses_the_module() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let store = open(dir.path());
    let trial = Trial { config: r#"{"mode":"start-trap"}"#.into(), input: schema(), limits: limits() };
    let e =
        store.put(&module("m@1"), &component("misbehave"), std::slice::from_ref(&trial)).expect_err("traps");
    assert!(matches!(&e, StoreError::Refused(why) if why.contains("trap")), "{e}");
    assert_eq!(files(dir.path()), Vec::<String>::new());
}

#[test]
fn one_trial_of_several_that_fails_refuses_the_module() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let store = open(dir.path());
    let trial = |config: &str| Trial { config: config.into(), input: schema(), limits: limits() };
    let good = trial(r#"{"column":"temperature","above":1}"#);
    let trials = [good.clone(), trial(r#"{"column":"not-there","above":1}"#)];
    let bytes = component("threshold");
    let e = store.put(&module("m@1"), &bytes, &trials).expect_err("the second stream cannot use it");
    assert!(matches!(&e, StoreError::Refused(_)), "{e}");
    assert_eq!(files(dir.path()), Vec::<String>::new(), "the first trial has stored nothing");
    assert_eq!(store.list().expect("listed"), []);
    store.put(&module("m@1"), &bytes, &[good.clone(), good]).expect("every stream can use it");
}

#[test]
fn a_flipped_bit_is_found_before_the_code_is_loaded() {
    let bytes = component("threshold");
    let digest = Digest::of(&bytes);
    let artifact = compile(&bytes);
    assert!(Artifact::open(artifact.clone(), digest).is_ok());
    assert!(matches!(
        Artifact::open(artifact.clone(), Digest::of(b"other")),
        Err(ArtifactError::OtherModule { .. })
    ));
    for at in (0..artifact.len()).step_by(97) {
        let mut flipped = artifact.clone();
        flipped[at] ^= 1 << (at % 8);
        assert!(Artifact::open(flipped, digest).is_err(), "byte {at}");
    }
    for cut in [0, 7, 50, 111, 112, artifact.len() - 1] {
        assert!(Artifact::open(artifact[..cut].to_vec(), digest).is_err(), "cut at {cut}");
    }
}

#[test]
fn damaged_native_code_is_compiled_again_and_a_damaged_component_is_named() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let bytes = component("threshold");
    open(dir.path()).put(&module("m@1"), &bytes, &[]).expect("stored");
    let native = files(dir.path()).into_iter().find(|n| n.ends_with(".cwasm")).expect("compiled");
    let native = dir.path().join(native);
    let good = std::fs::read(&native).expect("read");
    let mut bad = good.clone();
    *bad.last_mut().expect("not empty") ^= 1;
    std::fs::write(&native, &bad).expect("written");
    open(dir.path()).load(&module("m@1")).expect("compiled again");
    assert_eq!(std::fs::read(&native).expect("read"), good);

    std::fs::remove_file(&native).expect("removed");
    let wasm = dir.path().join(format!("{}.wasm", Digest::of(&bytes)));
    std::fs::write(&wasm, b"something else").expect("written");
    assert!(matches!(open(dir.path()).load(&module("m@1")), Err(StoreError::Damaged(_))));
}

#[test]
fn what_no_name_points_at_is_removed() {
    let dir = tempfile::tempdir().expect("temporary folder");
    open(dir.path()).put(&module("m@1"), &component("threshold"), &[]).expect("stored");
    let kept = files(dir.path());
    assert_eq!(kept.len(), 3);
    for stray in ["00.wasm", "00.cwasm", "x.json.unfinished"] {
        std::fs::write(dir.path().join(stray), b"x").expect("written");
    }
    open(dir.path());
    assert_eq!(files(dir.path()), kept);
}
