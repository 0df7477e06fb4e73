//! Streams that the configuration no longer has, while events of theirs wait in the input log.
//!
//! An event that was acknowledged belongs to a root stream by name. When the next start knows no such stream, a slip in a
//! name could throw away what an outage has piled up. So the gateway does not start then, and says what waits; who means
//! it names the stream in `[buffer] discard`, and what waited is counted as dropped and declared in the loss ledger.

use crate::{
    StartError,
    config::Config,
    event::Events,
    ingest::{EVENTS, events_by_stream},
    output::{Loss, Output, PendingStep, Snapshot},
};
use journal::{Changes, FrameSeq, JournalError, LogHandle};
use record::{Counts, DEAD_LETTERS, StreamName, clock::Clock};
use std::collections::BTreeMap;

/// What waits of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Waiting {
    events: u64,
    /// When the first and the last of them were accepted.
    times_ns: (i64, i64),
}

/// Looks for events of streams that are known from earlier and are no root streams now. Call before lanes and sources
/// start: nobody else moves the position of such a stream.
pub(crate) fn settle(
    config: &Config,
    input: &LogHandle,
    output: &Output,
    clock: &dyn Clock,
) -> Result<(), StartError> {
    let now = output.snapshot().borrow().clone();
    // A lane may be held before its first step: it is known from its first start on all the same.
    for root in config.streams.iter().map(|s| &s.name).filter(|name| config.is_root(name)) {
        if !now.consumed.contains_key(root) {
            let _ = output.write(moved(root.clone(), FrameSeq::default(), None, clock.wall_ns()));
        }
    }
    let gone = gone(config, &now);
    let Some(from) = gone.values().min() else { return Ok(()) };
    let end = input.durable();
    let found = look(input, from.next(), &gone)?;
    let kept: Vec<String> = found
        .iter()
        .filter(|(stream, _)| !config.discard.contains(*stream))
        .map(|(stream, waiting)| format!("{} of `{stream}`", waiting.events))
        .collect();
    if !kept.is_empty() {
        return Err(StartError::LeftBehind { waiting: kept.join(", ") });
    }
    for stream in gone.into_keys() {
        let waiting = found.get(&stream).copied();
        if let Some(waiting) = waiting {
            tracing::warn!(%stream, events = waiting.events, "events of a stream that is no longer configured are given up");
        }
        // Only a writer that has already ended refuses, and its task tells why.
        let _ = output.write(moved(stream, end, waiting, clock.wall_ns()));
    }
    Ok(())
}

/// Known streams that have no lane now, and how far their input is consumed. A stream below another one never had one.
fn gone(config: &Config, now: &Snapshot) -> BTreeMap<StreamName, FrameSeq> {
    let removed = now.streams.keys().filter(|name| config.stream(name.as_str()).is_none());
    let known = now.consumed.keys().chain(removed);
    let gone = known.filter(|name| name.as_str() != DEAD_LETTERS && !config.is_root(name));
    gone.map(|name| (name.clone(), now.consumed.get(name).copied().unwrap_or_default())).collect()
}

/// Counts events by what frames say of themselves. Payloads are read only where something was found, for its times.
fn look(
    input: &LogHandle,
    from: FrameSeq,
    gone: &BTreeMap<StreamName, FrameSeq>,
) -> Result<BTreeMap<StreamName, Waiting>, JournalError> {
    let mut found = BTreeMap::new();
    let mut heads = input.reader(from);
    while let Some(head) = heads.next_meta()? {
        let counts = if head.kind == EVENTS { events_by_stream(&head.meta) } else { None };
        for (name, events) in counts.unwrap_or_default() {
            let Some((stream, consumed)) = gone.iter().find(|(stream, _)| stream.as_str() == name) else {
                continue;
            };
            if head.seq.0 <= consumed.0 || events == 0 {
                continue;
            }
            let (first, last) = times(input, head.seq)?;
            let waiting =
                found.entry(stream.clone()).or_insert(Waiting { events: 0, times_ns: (first, last) });
            waiting.events += u64::from(events);
            waiting.times_ns = (waiting.times_ns.0.min(first), waiting.times_ns.1.max(last));
        }
    }
    Ok(found)
}

/// When the first and the last event of a frame were accepted; now and then nothing is readable, and both are 0.
fn times(input: &LogHandle, seq: FrameSeq) -> Result<(i64, i64), JournalError> {
    let frame = input.reader(seq).next()?.filter(|frame| frame.seq == seq);
    let Some(frame) = frame else { return Ok((0, 0)) };
    let times = || Events::new(&frame.payload).flatten().map(|event| event.received_ns);
    Ok((times().min().unwrap_or(0), times().max().unwrap_or(0)))
}

fn moved(lane: StreamName, consumed: FrameSeq, waiting: Option<Waiting>, made_ns: i64) -> PendingStep {
    let (mut counts, mut losses) = (BTreeMap::new(), Vec::new());
    if let Some(Waiting { events, times_ns }) = waiting {
        counts.insert(lane.clone(), Counts { received: events, dropped: events, ..Counts::default() });
        losses.push(Loss {
            stream: lane.clone(),
            seqs: Default::default(),
            times_ns,
            rows: events,
            reason: "the stream is no longer configured".to_owned(),
        });
    }
    PendingStep { lane, consumed, made_ns, changes: Changes::default(), counts, blocks: Vec::new(), losses }
}
