//! What can go wrong, and how often it does in one run.
//!
//! Each seed draws its own mix: some kinds do not happen at all in it, some often. A run in which everything goes wrong all
//! the time would hide what takes a quiet neighbour to show.

use record::clock::{Random, SeededRandom};
use std::sync::Arc;

macro_rules! faults {
    ($($name:ident $per_million:literal $text:literal,)*) => {
        /// Something that goes wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Fault { $(#[doc = $text] $name,)* }

        impl Fault {
            /// All kinds.
            pub const ALL: &[Fault] = &[$(Fault::$name,)*];

            /// What happens.
            pub const fn text(self) -> &'static str {
                match self { $(Fault::$name => $text,)* }
            }

            /// For JSON.
            pub const fn name(self) -> &'static str {
                match self { $(Fault::$name => stringify!($name),)* }
            }

            /// How often, of a million occasions, in a run where it is common.
            const fn per_million(self) -> u64 {
                match self { $(Fault::$name => $per_million,)* }
            }
        }
    };
}

faults! {
    GatewayCrash 600_000 "a gateway dies between two steps",
    LinkCrash 500_000 "a link process dies between two steps",
    SinkCrash 700_000 "a sink process dies between two steps",
    LinkPause 600_000 "a link process stands still and goes on with what it believed",
    SinkPause 800_000 "a sink process stands still and goes on with what it believed",
    GatewayDies 3_000 "a gateway dies right after a step of its core",
    LinkDies 10_000 "a link process dies right after a step of its core",
    SinkDies 10_000 "a sink process dies right after a step of its core",
    LinkStops 10_000 "a link process stands still right after a step of its core",
    SinkStops 30_000 "a sink process stands still right after a step of its core",
    LinkMoves 300_000 "a link process leaves its group and joins again",
    SinkMoves 300_000 "a sink process leaves its group and joins again",
    Cut 800_000 "a connection is cut; what is on the way may still arrive",
    ConnectLost 100_000 "a connection stands at one end only",
    Swallowed 8_000 "a block is swallowed in the middle of a session",
    Altered 5_000 "a block is altered on the way",
    SyncLost 200_000 "a crash takes what the gateway had not synced",
    Damaged 400_000 "a block cannot be read any more and is declared lost",
    Restored 500_000 "a gateway comes back from a backup",
    Cloned 500_000 "two gateways run with one identity",
    Reborn 400_000 "a gateway's folder is made anew",
    ProduceLost 30_000 "a part of a transaction does not arrive",
    EndLost 30_000 "the end of a transaction does not arrive",
    EndUnanswered 40_000 "a transaction ends and nobody hears of it",
    EndLate 40_000 "the end of a transaction arrives after its client has given up",
    MarkerLate 80_000 "the markers of a decided transaction are written seconds later",
    ClaimUnanswered 50_000 "a step of a claim is not answered",
    OffsetLost 25_000 "a commit of an offset does not arrive",
    OffsetUnanswered 25_000 "a commit of an offset is done and not answered",
    OffsetLate 40_000 "a commit of an offset arrives after its client has given up",
    ReadFailed 15_000 "a read of log or tables fails",
    InsertLost 25_000 "an insert does not arrive",
    InsertUnanswered 30_000 "an insert is done and not answered",
    InsertLate 60_000 "an insert is carried out after its client has given up",
    InsertRefused 30_000 "the server answers an insert with an error and has done nothing",
    InsertThenError 30_000 "the server answers an insert with an error and has done it",
    ViewFailed 50_000 "the view fails after the table took the rows",
    PartLost 25_000 "the server keeps the token of an insert and loses its part",
    ServerCrash 600_000 "the server dies in the middle of inserts",
    TokenGone 0 "a token is pushed out of the deduplication window",
}

/// How often each kind happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults([u64; Fault::ALL.len()]);

impl Default for Faults {
    fn default() -> Self {
        Self([0; Fault::ALL.len()])
    }
}

impl Faults {
    /// How often this one did.
    pub fn of(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }

    /// One more.
    pub(crate) fn count(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }

    /// Those of another run besides.
    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(mine, theirs)| *mine += theirs);
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// The chance of one run.
#[derive(Debug)]
pub(crate) struct Chance {
    random: Arc<SeededRandom>,
    /// Of a million occasions, by kind.
    mix: [u64; Fault::ALL.len()],
    /// Nothing goes wrong any more.
    pub(crate) calm: bool,
    pub(crate) happened: Faults,
}

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        let random = Arc::new(SeededRandom::new(seed));
        let mut mix = [0; Fault::ALL.len()];
        for fault in Fault::ALL {
            mix[*fault as usize] = match random.next_u64() % 4 {
                0 | 1 => 0,
                2 => fault.per_million() / 4,
                _ => fault.per_million(),
            };
        }
        Self { random, mix, calm: false, happened: Faults::default() }
    }

    /// A generator of its own for a part that draws by itself.
    pub(crate) fn split(&self) -> Arc<SeededRandom> {
        Arc::new(SeededRandom::new(self.random.next_u64()))
    }

    /// 0 up to `n`, without it.
    pub(crate) fn below(&self, n: u64) -> u64 {
        self.random.next_u64() % n.max(1)
    }

    pub(crate) fn between(&self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    pub(crate) fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Whether it goes wrong in this way now.
    pub(crate) fn strikes(&mut self, fault: Fault) -> bool {
        let strikes = !self.calm && self.below(1_000_000) < self.mix[fault as usize];
        if strikes {
            self.happened.count(fault);
        }
        strikes
    }
}
