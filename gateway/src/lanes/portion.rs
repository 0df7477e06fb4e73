//! How much one step takes on, and what happens when what came of it does not fit a frame of the output log.
//!
//! Then nothing happened: the lane is made anew and takes fewer input frames, or closes fewer windows, at a time. When a
//! single one is still too much, the module of the stream that brought most of it is refused that step: its rows become
//! dead letters, or the lane waits where that is the stream's policy. So no answer of a module ends the process, and a
//! module whose answers fit is not touched by it.

use crate::{
    config::Stream,
    output::PendingBlock,
    step::{StepError, keys},
};
use journal::Changes;
use record::StreamName;
use std::collections::{BTreeMap, BTreeSet};

/// Most windows that one step closes where nobody waits for them.
const WINDOWS_PER_STEP: usize = 20_000;

/// What a step was made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// Input frames.
    Frames(usize),
    /// Windows closed for another reason than input.
    Windows(usize),
}

/// Bounds of the next step.
#[derive(Debug)]
pub(super) struct Portion {
    pub(super) frames: usize,
    pub(super) windows: usize,
    /// Streams whose modules are not called in the next step, and why.
    pub(super) refused: BTreeMap<StreamName, String>,
    /// Only the beginnings of dead letters' payloads are kept.
    pub(super) short: bool,
}

impl Default for Portion {
    fn default() -> Self {
        Self { frames: usize::MAX, windows: WINDOWS_PER_STEP, refused: BTreeMap::new(), short: false }
    }
}

impl Portion {
    /// A step of this was too large: makes the next one smaller; false when it cannot be.
    pub(super) fn shrink(
        &mut self,
        taken: Taken,
        (bytes, limit): (usize, usize),
        by_stream: &BTreeMap<StreamName, usize>,
        streams: &[Stream],
    ) -> bool {
        let (bound, taken) = match taken {
            Taken::Frames(n) => (&mut self.frames, n),
            Taken::Windows(n) => (&mut self.windows, n),
        };
        if taken.min(*bound) > 1 {
            *bound = taken.min(*bound) / 2;
            return true;
        }
        let of_module = |s: &StreamName| {
            !self.refused.contains_key(s) && streams.iter().any(|c| c.name == *s && c.module.is_some())
        };
        let largest = by_stream.iter().filter(|(s, _)| of_module(s)).max_by_key(|(_, bytes)| **bytes);
        let Some((stream, share)) = largest else {
            return !std::mem::replace(&mut self.short, true);
        };
        tracing::error!(%stream, bytes, limit, share, "what came of one step is too large: the module is not called for it");
        let why = format!(
            "one step came to {bytes} bytes of rows and states, {share} of them by this stream; the limit is {limit}"
        );
        self.refused.insert(stream.clone(), why);
        true
    }

    /// A step was handed over; whether modules may be called again that were not.
    pub(super) fn fitted(&mut self) -> bool {
        self.frames = self.frames.saturating_add((self.frames / 8).max(1));
        self.windows = (self.windows + (self.windows / 8).max(1)).min(WINDOWS_PER_STEP);
        self.short = false;
        !std::mem::take(&mut self.refused).is_empty()
    }

    /// Whether a step fits; if not, the error says who brought how much.
    pub(super) fn check(blocks: &[PendingBlock], changes: &Changes, limit: usize) -> Result<(), StepError> {
        let puts = changes.puts.iter().map(|(k, v)| (k, k.len() + v.len() + ENTRY_BYTES));
        let deletes = changes.deletes.iter().map(|k| (k, k.len() + ENTRY_BYTES));
        let states = puts.clone().chain(deletes.clone());
        let bytes = blocks.iter().map(|b| b.bytes.len() + ENTRY_BYTES).sum::<usize>()
            + states.clone().map(|(_, n)| n).sum::<usize>();
        if bytes <= limit && blocks.len() <= usize::from(u16::MAX) {
            return Ok(());
        }
        let mut by_stream: BTreeMap<StreamName, usize> = BTreeMap::new();
        let names: BTreeSet<&StreamName> = blocks.iter().map(|b| &b.stream).collect();
        for name in names {
            let of = blocks.iter().filter(|b| b.stream == *name).map(|b| b.bytes.len() + ENTRY_BYTES);
            by_stream.insert(name.clone(), of.sum());
        }
        for (key, n) in states {
            if let Some(stream) = keys::stream_of(key) {
                *by_stream.entry(stream).or_default() += n;
            }
        }
        Err(StepError::TooLarge { bytes, limit, by_stream })
    }
}

/// What an entry takes beside its bytes.
const ENTRY_BYTES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smaller_and_smaller_then_the_largest_of_the_modules_is_refused() {
        let config =
            crate::step::tests::config(&format!("{}{}", crate::step::tests::HOT, crate::step::tests::SUMS));
        let name = |s: &str| StreamName::new(s).expect("a name");
        let by_stream = [("m", 90), ("hot", 20), ("sums", 30)].map(|(s, n)| (name(s), n));
        let mut portion = Portion::default();
        let shrink = |portion: &mut Portion, taken| {
            portion.shrink(taken, (140, 100), &by_stream.clone().into(), &config.streams)
        };
        assert!(shrink(&mut portion, Taken::Frames(9)));
        assert_eq!((portion.frames, portion.refused.len()), (4, 0));
        for refused in ["sums", "hot"] {
            assert!(shrink(&mut portion, Taken::Frames(1)));
            assert!(portion.refused.contains_key(&name(refused)) && !portion.short, "{refused}");
        }
        assert!(shrink(&mut portion, Taken::Frames(1)) && portion.short, "there is no module left to refuse");
        assert!(!shrink(&mut portion, Taken::Frames(1)), "and nothing else left to do");
        assert!(portion.fitted() && !portion.short && portion.refused.is_empty());
        assert_eq!((portion.frames, portion.fitted()), (5, false));
    }

    #[test]
    fn all_that_a_frame_holds_counts() {
        let changes = Changes {
            puts: vec![(b"gsums\0key".to_vec(), vec![0; 100])],
            deletes: vec![b"ksums\0key".to_vec(), b"dm\0key".to_vec()],
        };
        let name = |s: &str| StreamName::new(s).expect("a name");
        let block = || PendingBlock { stream: name("m"), schema: 0, rows: 1, bytes: vec![0; 50] };
        let Err(StepError::TooLarge { bytes, by_stream, .. }) =
            Portion::check(&[block(), block()], &changes, 200)
        else {
            panic!("it does not fit")
        };
        assert_eq!(by_stream.values().sum::<usize>(), bytes);
        assert_eq!(by_stream[&name("sums")], 9 + 100 + 9 + 2 * ENTRY_BYTES);
        assert_eq!(Portion::check(&[block(), block()], &changes, bytes), Ok(()));
    }
}
