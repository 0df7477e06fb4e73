//! Every packet of the case collection is judged as the specification demands.

#![allow(clippy::unwrap_used, reason = "what fails in a helper of a test fails the test")]

use mqtt::{Version, decode};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    name: String,
    ver: u8,
    #[serde(default)]
    hex: String,
    /// Instead of `hex` where a packet is long and monotonous.
    #[serde(default)]
    parts: Vec<Part>,
    expect: String,
    why: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Part {
    Hex { hex: String },
    Repeat { byte: u8, times: usize },
}

impl Case {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = hex::decode(&self.hex).unwrap();
        for part in &self.parts {
            match part {
                Part::Hex { hex } => bytes.extend(hex::decode(hex).unwrap()),
                Part::Repeat { byte, times } => bytes.resize(bytes.len() + times, *byte),
            }
        }
        bytes
    }
}

fn cases() -> Vec<Case> {
    include_str!("data/cases.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn judge(version: Version, bytes: &[u8]) -> String {
    match decode::frame(bytes, version, 1 << 20) {
        Err(error) => format!("bad ({error})"),
        Ok(None) => "need".into(),
        Ok(Some(frame)) => match decode::packet(version, frame) {
            Ok(_) if frame.bytes == bytes.len() => "ok".into(),
            Ok(_) => "more (another packet follows)".into(),
            Err(error) => format!("bad ({error})"),
        },
    }
}

fn version(number: u8) -> Version {
    match number {
        3 => Version::V31,
        4 => Version::V311,
        _ => Version::V5,
    }
}

#[test]
fn all_cases_are_judged_right() {
    let cases = cases();
    assert_eq!(cases.len(), 226);
    let mut wrong = Vec::new();
    for case in &cases {
        let judged = judge(version(case.ver), &case.bytes());
        if judged.split(' ').next() != Some(&case.expect) {
            wrong.push(format!(
                "{} (v{}): {judged}, expected {} {}",
                case.name, case.ver, case.expect, case.why
            ));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Cut anywhere, a packet is waited for or refused early, never accepted, and never refused when it is valid.
#[test]
fn every_prefix_waits_or_is_refused() {
    for case in cases() {
        let bytes = case.bytes();
        for cut in 0..bytes.len().min(2_000) {
            let judged = judge(version(case.ver), &bytes[..cut]);
            assert!(!judged.starts_with("ok"), "{} cut at {cut}", case.name);
            if case.expect != "bad" {
                assert_eq!(judged, "need", "{} cut at {cut}", case.name);
            }
        }
    }
}
