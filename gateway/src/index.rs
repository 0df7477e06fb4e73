//! The index of dead letters: which ones lie in the output log, and where, kept in sled.
//!
//! It follows the durable frames of the output log, one behind the other, and remembers for each dead letter the frame
//! it is in with its stream, reason, device and error. So a person sees at the gateway what went wrong, also while
//! central is away. The newest [`INDEXED_DEAD_LETTERS_MAX`] are remembered.
//!
//! Everything here can be made anew from the log, and is, when sled's folder is missing, damaged, slow or does not fit
//! the log: the gateway never waits for it and never depends on it.

use crate::{
    limits::{INDEXED_AT_ONCE_MAX, INDEXED_DEAD_LETTERS_MAX},
    output::frame::{STEP, Step},
};
use daemon::metrics::{Gauge, Registry};
use journal::{
    Changes, FrameSeq, JournalError, LogHandle, Meta, MetaError, MetaOptions, MetaStart, RebuildCause,
};
use record::{
    Batch, DEAD_LETTERS, Incarnation,
    arrow::array::{Array, cast::AsArray},
    block,
};
use serde_json::{Value, json};
use std::{path::Path, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Key: this, then the seq in big-endian; value: a JSON object.
const LETTER: u8 = b'x';
/// Frames followed before their changes are handed over together.
const FRAMES_PER_COMMIT: usize = 64;
/// Longest error kept in an entry: values stay far below sled's safe size.
const ERROR_BYTES: usize = 300;

/// The index.
#[derive(Clone)]
pub struct Index {
    meta: Arc<Meta>,
    failed: Gauge,
}

impl Index {
    /// Opens the folder; says from which frame on it has to be filled.
    pub fn open(dir: &Path, log: &LogHandle, registry: &Registry) -> Result<(Self, FrameSeq), JournalError> {
        let (meta, start) = Meta::open(dir, log.first(), log.durable(), MetaOptions::default())?;
        let rebuilt = registry
            .counter("tidegate_index_rebuilt_total", "Times that the index of dead letters was made anew.");
        let failed = registry.gauge(
            "tidegate_index_failed",
            "1 when the index of dead letters has failed; the next start makes it anew.",
        );
        let from = match start {
            MetaStart::Current => log.durable().next(),
            MetaStart::Behind(seq) => seq.next(),
            MetaStart::Rebuild(cause) => {
                if cause != RebuildCause::Missing {
                    tracing::warn!(?cause, "the index of dead letters is made anew from the log");
                    rebuilt.inc();
                }
                log.first()
            }
        };
        Ok((Self { meta: Arc::new(meta), failed }, from))
    }

    /// Follows the log until the process stops; blocks. A failing index is given up, not the gateway.
    pub fn follow(
        &self,
        log: &LogHandle,
        mut next: FrameSeq,
        incarnation: Incarnation,
        stop: &CancellationToken,
    ) -> Result<(), JournalError> {
        let mut reader = log.reader(next);
        let mut known = self.count();
        while !stop.is_cancelled() {
            let (mut changes, mut through) = (Changes::default(), None);
            for _ in 0..FRAMES_PER_COMMIT {
                let Some(frame) = reader.next()? else { break };
                through = Some(frame.seq);
                if frame.kind == STEP
                    && let Ok(step) = Step::read(&frame, incarnation)
                {
                    letters(frame.seq, &step, &mut changes);
                }
            }
            let Some(seq) = through else {
                log.wait_durable(FrameSeq(next.0.saturating_sub(1)), Duration::from_millis(500));
                next = log.durable().next();
                continue;
            };
            next = seq.next();
            let passed_over = changes.puts.len().saturating_sub(INDEXED_AT_ONCE_MAX);
            changes.puts.drain(..passed_over);
            known += changes.puts.len();
            let handed = self.forget(&mut known, &mut changes).and_then(|()| self.meta.commit(seq, changes));
            if let Err(error) = handed {
                tracing::error!(%error, "the index of dead letters has failed; the next start makes it anew");
                self.failed.set(1.0);
                break;
            }
        }
        self.meta.close();
        Ok(())
    }

    fn count(&self) -> usize {
        self.meta.scan_prefix(&[LETTER], INDEXED_DEAD_LETTERS_MAX).map_or(0, |all| all.len())
    }

    /// Takes the oldest entries away when there are too many.
    fn forget(&self, known: &mut usize, changes: &mut Changes) -> Result<(), MetaError> {
        let over = known.saturating_sub(INDEXED_DEAD_LETTERS_MAX);
        if over == 0 {
            return Ok(());
        }
        let oldest = self.meta.scan_prefix(&[LETTER], over.min(INDEXED_DEAD_LETTERS_MAX))?;
        *known -= oldest.len();
        changes.deletes.extend(oldest.into_iter().map(|(key, _)| key));
        Ok(())
    }

    /// The newest dead letters, newest first.
    pub fn newest(&self, limit: usize) -> Result<Vec<Value>, MetaError> {
        let all = self.meta.scan_prefix(&[LETTER], INDEXED_DEAD_LETTERS_MAX + INDEXED_AT_ONCE_MAX)?;
        let newest = all.iter().rev().take(limit);
        Ok(newest.filter_map(|(_, value)| serde_json::from_slice(value).ok()).collect())
    }
}

/// The entries of a step's dead letters.
fn letters(frame: FrameSeq, step: &Step<'_>, changes: &mut Changes) {
    let blocks = step.blocks().filter(|(header, _)| header.stream.as_str() == DEAD_LETTERS);
    for (header, bytes) in blocks {
        let Ok(batch) = block::decode(bytes) else { continue };
        for row in 0..batch.rows() {
            let seq = header.first.0 + row as u64;
            let mut key = vec![LETTER];
            key.extend_from_slice(&seq.to_be_bytes());
            let value = json!({
                "seq": seq,
                "frame": frame.0,
                "received_ns": batch.times()[row],
                "device": crate::dead_letter::shortened(batch.device(row), ERROR_BYTES),
                "stream": text(&batch, "stream", row),
                "reason": text(&batch, "reason", row),
                "module": text(&batch, "module", row),
                "error": text(&batch, "error", row),
                "topic": text(&batch, "topic", row),
            });
            changes.puts.push((key, value.to_string().into_bytes()));
        }
    }
}

fn text(batch: &Batch, column: &str, row: usize) -> String {
    let Some(array) = batch.column(column).and_then(|c| c.as_string_opt::<i32>()) else {
        return String::new();
    };
    if array.is_null(row) {
        return String::new();
    }
    crate::dead_letter::shortened(array.value(row), ERROR_BYTES).to_owned()
}
