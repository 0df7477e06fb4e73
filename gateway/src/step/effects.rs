//! What a step brings about.

use crate::dead_letter::DeadLetter;
use journal::Changes;
use record::{Batch, Counts, StreamName};
use std::collections::BTreeMap;

/// What a step brings about; see the module above.
#[derive(Debug, Default)]
pub struct Effects {
    /// Rows of streams that are forwarded, in the order of each stream's seqs.
    pub rows: Vec<(StreamName, Batch)>,
    /// What could not become rows.
    pub dead_letters: Vec<DeadLetter>,
    /// What each stream counted in this step.
    pub counts: BTreeMap<StreamName, Counts>,
    /// Values stepped over because no column is declared for them.
    pub undeclared: u64,
    /// Open windows that were given up without a result, by stream and cause.
    pub forgotten: BTreeMap<(StreamName, &'static str), u64>,
    /// Windows that were closed, or given up, without input having closed them.
    pub closed: usize,
    state: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl Effects {
    /// A stream's counts in this step.
    pub fn count(&mut self, stream: &StreamName) -> &mut Counts {
        if !self.counts.contains_key(stream) {
            self.counts.insert(stream.clone(), Counts::default());
        }
        self.counts.get_mut(stream).expect("put in above")
    }

    /// Counts results of an aggregate or a transform that became dead letters instead of rows; see [`Counts`].
    pub fn unmade(&mut self, stream: &StreamName, results: usize) {
        let count = self.count(stream);
        count.received += results as u64;
        count.dead_lettered += results as u64;
    }

    /// Sets a key of the state; the last word on a key counts.
    pub(super) fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.state.insert(key, Some(value));
    }

    /// Takes a key of the state away.
    pub(super) fn delete(&mut self, key: Vec<u8>) {
        self.state.insert(key, None);
    }

    /// Whether nothing happened.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
            && self.dead_letters.is_empty()
            && self.counts.is_empty()
            && self.state.is_empty()
    }

    /// The changes of state, once.
    pub fn take_changes(&mut self) -> Changes {
        let mut changes = Changes::default();
        for (key, value) in std::mem::take(&mut self.state) {
            match value {
                Some(value) => changes.puts.push((key, value)),
                None => changes.deletes.push(key),
            }
        }
        changes
    }
}
