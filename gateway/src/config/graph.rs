//! The graph of streams: parents before children, no circles, keys that exist.

use super::stream::{From, OnModuleFailure, Stream};
use daemon::config::Section;
use record::{StreamName, StreamSchema};
use std::collections::HashSet;

/// Puts parents before children and reports circles and window keys that no column has.
pub(super) fn order(mut waiting: Vec<(Stream, Section<'_>)>) -> Vec<Stream> {
    let mut out: Vec<Stream> = Vec::with_capacity(waiting.len());
    let mut placed = HashSet::new();
    loop {
        let before = waiting.len();
        let mut rest = Vec::new();
        for (stream, section) in waiting {
            let ready = match &stream.from {
                From::Sources { .. } => true,
                From::Stream(parent) => placed.contains(parent.as_str()),
            };
            if ready {
                placed.insert(stream.name.as_str().to_owned());
                check_keys(&stream, &section, &out);
                out.push(stream);
            } else {
                rest.push((stream, section));
            }
        }
        if rest.is_empty() {
            return out;
        }
        if rest.len() == before {
            report(&rest);
            return out;
        }
        waiting = rest;
    }
}

/// What is left either stands in a circle or hangs on a stream that was refused; only circles are worth a line.
fn report(rest: &[(Stream, Section<'_>)]) {
    let parent = |name: &str| {
        let (stream, _) = rest.iter().find(|(s, _)| s.name.as_str() == name)?;
        match &stream.from {
            From::Stream(parent) => Some(parent.as_str()),
            From::Sources { .. } => None,
        }
    };
    for (stream, section) in rest {
        let mut at = stream.name.as_str();
        for _ in 0..rest.len() {
            match parent(at) {
                Some(next) if next == stream.name.as_str() => {
                    section.error("from", "the stream feeds itself in a circle");
                    break;
                }
                Some(next) => at = next,
                None => break,
            }
        }
    }
}

/// A stream and its columns, where the configuration alone tells them: those of a root, and of whatever is sure to be a
/// filter below one. What other modules make of rows is known when they start; until the key fits, the lane waits.
fn columns_of<'s>(name: &StreamName, placed: &'s [Stream]) -> Option<(&'s Stream, &'s StreamSchema)> {
    let stream = placed.iter().find(|s| s.name == *name)?;
    match (&stream.from, &stream.module) {
        (From::Sources { schema, .. }, _) => Some((stream, schema)),
        (From::Stream(parent), Some(m)) if m.on_failure == OnModuleFailure::Pass => {
            columns_of(parent, placed).map(|(_, schema)| (stream, schema))
        }
        (From::Stream(_), _) => None,
    }
}

/// Window keys must be columns of the parent.
fn check_keys(stream: &Stream, section: &Section<'_>, placed: &[Stream]) {
    let Some(window) = stream.module.as_ref().and_then(|m| m.window.as_ref()) else { return };
    let From::Stream(parent) = &stream.from else { return };
    let Some((parent, schema)) = columns_of(parent, placed) else { return };
    for key in &window.key {
        if key != "device" && !schema.columns().iter().any(|c| c.name == *key) {
            section.error("window", format!("key `{key}` is no column of stream `{}`", parent.name));
        }
    }
}
