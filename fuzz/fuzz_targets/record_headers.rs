//! Any bytes, taken as the headers and the value of a record in the data topic: pairs of a length byte and so many bytes, name
//! and value by turns; the rest is the value.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_central::log::{
    Offset,
    kafka::headers::{Poison, decode},
};

/// Names that the parser looks for, so that the fuzzer need not find them.
const NAMES: [&str; 12] = [
    "tidegate-version",
    "content-type",
    "stream",
    "schema",
    "gateway",
    "incarnation",
    "first-seq",
    "last-seq",
    "rows",
    "prev-hash",
    "hash",
    "produced-at",
];

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    let mut headers = Vec::new();
    for name in NAMES {
        let Some((length, after)) = rest.split_first() else { break };
        let (value, after) = after.split_at(usize::from(*length).min(after.len()));
        headers.push((name, (*length != 255).then_some(value)));
        rest = after;
    }
    match decode(Offset(1), Some(headers.into_iter()), Some(rest)) {
        Ok(stored) => {
            let h = stored.headers;
            assert_eq!(u64::from(h.rows), h.last_seq.0 - h.first_seq.0 + 1);
            assert_eq!(stored.bytes, rest);
        }
        Err(poison) => assert!(Poison::KINDS.contains(&poison.kind) && poison.reason.len() <= 512),
    }
});
