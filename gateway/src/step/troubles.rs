//! What the modules of a lane did wrong, remembered beyond the life of the lane's core, which an error ends.

use super::Now;
use crate::limits::{LOAD_PATIENCE, LOAD_TRIES_MAX};
use record::StreamName;
use std::{cell::RefCell, collections::BTreeMap, rc::Rc};
use udf_host::CallError;

/// Shared by a lane's cores, one after the other, and by whoever drives them.
#[derive(Debug, Clone, Default)]
pub struct Troubles(Rc<RefCell<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    failures: BTreeMap<(StreamName, &'static str), u64>,
    unloaded: BTreeMap<StreamName, Unloaded>,
}

/// How long a module has not taken the states of its open windows.
#[derive(Debug, Clone, Copy)]
struct Unloaded {
    times: u32,
    since_ns: u64,
}

impl Troubles {
    /// A call failed.
    pub(super) fn failed(&self, stream: &StreamName, error: &CallError) {
        *self.0.borrow_mut().failures.entry((stream.clone(), error.reason())).or_default() += 1;
    }

    /// The module could not take the states of its open windows, several times at once; whether that has been so for
    /// so long that nobody needs to wait for it any more.
    pub(super) fn not_loaded(&self, stream: &StreamName, now: Now) -> bool {
        let mut inner = self.0.borrow_mut();
        let first = Unloaded { times: 0, since_ns: now.monotonic_ns };
        let unloaded = inner.unloaded.entry(stream.clone()).or_insert(first);
        unloaded.times = unloaded.times.saturating_add(1);
        let waited_ns = now.monotonic_ns.saturating_sub(unloaded.since_ns);
        unloaded.times > LOAD_TRIES_MAX && u128::from(waited_ns) >= LOAD_PATIENCE.as_nanos()
    }

    /// The module went through a step with its states.
    pub(super) fn loaded(&self, stream: &StreamName) {
        self.0.borrow_mut().unloaded.remove(stream);
    }

    /// Calls that failed since they were last taken, by stream and [`CallError::reason`].
    pub fn take_failures(&self) -> BTreeMap<(StreamName, &'static str), u64> {
        std::mem::take(&mut self.0.borrow_mut().failures)
    }
}
