//! Simulated time: what will happen, and when.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

/// A millisecond, in the nanoseconds of simulated time.
pub(crate) const MS: u64 = 1_000_000;
/// A second.
pub(crate) const SECOND: u64 = 1_000 * MS;

struct Planned<E> {
    at: u64,
    /// Of two that happen at one moment, the one that was planned first comes first.
    number: u64,
    event: E,
}

impl<E> PartialEq for Planned<E> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl<E> Eq for Planned<E> {}

impl<E> PartialOrd for Planned<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Planned<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// Events in the order of their time.
pub(crate) struct Schedule<E> {
    now: u64,
    planned: u64,
    heap: BinaryHeap<Reverse<Planned<E>>>,
}

impl<E> Schedule<E> {
    pub(crate) fn new() -> Self {
        Self { now: 0, planned: 0, heap: BinaryHeap::with_capacity(256) }
    }

    /// Nanoseconds since the run began.
    pub(crate) fn now(&self) -> u64 {
        self.now
    }

    /// Lets something happen at a moment, or now when that has gone by.
    pub(crate) fn at(&mut self, at: u64, event: E) {
        self.planned += 1;
        self.heap.push(Reverse(Planned { at: at.max(self.now), number: self.planned, event }));
    }

    /// The next event; time is its time then.
    pub(crate) fn next(&mut self) -> Option<E> {
        let Reverse(next) = self.heap.pop()?;
        self.now = next.at;
        Some(next.event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_the_order_of_time_and_then_of_planning() {
        let mut schedule = Schedule::new();
        for (at, name) in [(5, "c"), (1, "a"), (5, "d"), (2, "b")] {
            schedule.at(at, name);
        }
        let order: Vec<&str> = std::iter::from_fn(|| schedule.next()).collect();
        assert_eq!((order.concat().as_str(), schedule.now()), ("abcd", 5));
    }
}
