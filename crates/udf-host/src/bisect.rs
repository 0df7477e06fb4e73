//! Finding the rows that make a module fail.
//!
//! A call that fails says nothing about which row it failed at. The batch is halved until the failing rows stand alone;
//! everything else passes, in order, as a few contiguous pieces. A half whose sibling passed is known to be bad and is
//! halved without another try, so that one bad row among n costs about log2(n) failing calls, not twice as many.
//!
//! Time is bounded by a [`Budget`]: when it is spent, what is still undecided is given up as a whole.

use crate::CallError;
use record::Batch;
use std::ops::Range;

/// How many failing calls one batch may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Failing calls of any kind.
    pub failures: u32,
    /// Of these, calls that ran into their time limit: they cost the most.
    pub timeouts: u32,
}

impl Default for Budget {
    /// Enough to find at least 150 bad rows that trap among 16,384, or two that spin.
    fn default() -> Self {
        Self { failures: 2_000, timeouts: 32 }
    }
}

impl Budget {
    fn spend(&mut self, error: &CallError) {
        self.failures = self.failures.saturating_sub(1);
        if matches!(error, CallError::Timeout { .. }) {
            self.timeouts = self.timeouts.saturating_sub(1);
        }
    }

    fn is_spent(&self) -> bool {
        self.failures == 0 || self.timeouts == 0
    }
}

/// A row that is set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoisonRow {
    /// Its place in the batch.
    pub row: usize,
    /// How a call with it ended.
    pub error: CallError,
    /// Whether it failed alone; not so for rows that were given up together when the budget was spent.
    pub alone: bool,
}

/// A batch after [`isolate`].
#[derive(Debug)]
pub struct Isolated<T> {
    /// Pieces that passed, in order, with what each gave.
    pub passed: Vec<(Range<usize>, T)>,
    /// Rows that did not, in order.
    pub poison: Vec<PoisonRow>,
}

/// Tries a batch, whole at first, and halves what fails.
///
/// `attempt` gets a piece and where it stands in the batch. It must start from the state after the last piece that
/// passed: with a fresh instance after a failure, and, for an aggregate, with the groups' states as they were saved
/// after that piece. `attempt` is called with pieces in order, from the first row to the last. An error of the kind
/// [`CallError::Batch`], the caller's own mistake, ends the search and is returned.
pub fn isolate<T>(
    batch: &Batch,
    budget: Budget,
    attempt: impl FnMut(&Batch, Range<usize>) -> Result<T, CallError>,
) -> Result<Isolated<T>, CallError> {
    let done = Isolated { passed: Vec::new(), poison: Vec::new() };
    let mut search = Search { batch, budget, attempt, done };
    if batch.rows() > 0 {
        search.judge(0..batch.rows(), None)?;
    }
    Ok(search.done)
}

struct Search<'b, T, F> {
    batch: &'b Batch,
    budget: Budget,
    attempt: F,
    done: Isolated<T>,
}

impl<T, F: FnMut(&Batch, Range<usize>) -> Result<T, CallError>> Search<'_, T, F> {
    /// Whether the piece passed whole. `known` is the error of a call that is known to fail because of this piece. The
    /// depth of the recursion is the logarithm of the rows.
    fn judge(&mut self, piece: Range<usize>, known: Option<&CallError>) -> Result<bool, CallError> {
        let error = match known {
            Some(error) if piece.len() > 1 || self.budget.is_spent() => error.clone(),
            _ => {
                let rows = self.batch.slice(piece.start, piece.len());
                match (self.attempt)(&rows, piece.clone()) {
                    Ok(value) => {
                        self.done.passed.push((piece, value));
                        return Ok(true);
                    }
                    Err(mistake @ CallError::Batch(_)) => return Err(mistake),
                    Err(error) => error,
                }
            }
        };
        if known.is_none() || piece.len() == 1 {
            self.budget.spend(&error);
        }
        if piece.len() == 1 || self.budget.is_spent() {
            let alone = piece.len() == 1;
            self.done.poison.extend(piece.map(|row| PoisonRow { row, error: error.clone(), alone }));
            return Ok(false);
        }
        let middle = piece.start + piece.len() / 2;
        let left_passed = self.judge(piece.start..middle, None)?;
        self.judge(middle..piece.end, left_passed.then_some(&error))?;
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::{BatchBuilder, EventTime, StreamSchema};
    use std::{collections::BTreeSet, sync::Arc, time::Duration};

    fn batch(rows: usize) -> Batch {
        let mut b = BatchBuilder::new(Arc::new(StreamSchema::default()));
        for i in 0..rows {
            b.push(EventTime::from_ns(i as i128).expect("in range"), "d", &[]).expect("fits");
        }
        b.finish().expect("fits")
    }

    /// Counts calls; fails when a piece holds a row of `bad`.
    fn run(
        rows: usize,
        bad: &BTreeSet<usize>,
        budget: Budget,
        error: &CallError,
    ) -> (Isolated<usize>, u32, u32) {
        let (mut calls, mut failures, mut next) = (0, 0, 0);
        let done = isolate(&batch(rows), budget, |b, at| {
            assert!(at.start >= next, "pieces come in order");
            assert_eq!(b.times().first().copied(), i64::try_from(at.start).ok());
            calls += 1;
            if bad.range(at.clone()).next().is_some() {
                failures += 1;
                return Err(error.clone());
            }
            next = at.end;
            Ok(b.rows())
        });
        (done.expect("no mistake"), calls, failures)
    }

    #[test]
    fn a_good_batch_costs_one_call() {
        let (done, calls, _) = run(100, &BTreeSet::new(), Budget::default(), &CallError::Trap("t".into()));
        assert_eq!((done.passed, done.poison.len(), calls), (vec![(0..100, 100)], 0, 1));
    }

    #[test]
    fn one_bad_row_costs_about_log_n_failures() {
        for row in [0, 1, 8_191, 8_192, 16_383] {
            let (done, calls, failures) =
                run(16_384, &[row].into(), Budget::default(), &CallError::Trap("t".into()));
            assert_eq!(done.poison.iter().map(|p| p.row).collect::<Vec<_>>(), [row]);
            assert_eq!(done.passed.iter().map(|p| p.1).sum::<usize>(), 16_383);
            assert!(failures <= 16 && calls <= 31, "{failures} failures, {calls} calls");
        }
    }

    #[test]
    fn a_spent_budget_gives_up_what_is_left() {
        let timeout = CallError::Timeout { limit: Duration::from_millis(1) };
        let bad: BTreeSet<usize> = (0..1_024).collect();
        let (done, _, failures) = run(1_024, &bad, Budget { failures: 100, timeouts: 5 }, &timeout);
        assert_eq!(done.poison.len(), 1_024);
        assert!(failures <= 20, "{failures}");
        assert!(done.poison.iter().any(|p| !p.alone));
    }

    proptest::proptest! {
        #[test]
        fn exactly_the_bad_rows_are_set_aside(rows in 1usize..600, bad in proptest::collection::btree_set(0usize..600, 0..20)) {
            let bad: BTreeSet<usize> = bad.into_iter().filter(|r| *r < rows).collect();
            let (done, _, _) = run(rows, &bad, Budget::default(), &CallError::Trap("t".into()));
            let found: BTreeSet<usize> = done.poison.iter().map(|p| p.row).collect();
            proptest::prop_assert_eq!(&found, &bad);
            let mut all: Vec<usize> = done.passed.into_iter().flat_map(|(at, _)| at).chain(found).collect();
            all.sort_unstable();
            proptest::prop_assert_eq!(all, (0..rows).collect::<Vec<_>>());
        }
    }
}
