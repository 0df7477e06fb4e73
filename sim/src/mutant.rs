//! Deliberate mistakes. Each is one that somebody could make in a driver, in the choice of a broker's or a server's
//! setting, or by leaving out a check; the simulation has to find all of them, or it proves nothing.
//!
//! The cores stay as they are: a mutant carries out their decisions wrongly, or believes too much on their behalf.

macro_rules! mutants {
    ($($name:ident $kebab:literal $text:literal,)*) => {
        /// A deliberate mistake.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mutant { $(#[doc = $text] $name,)* }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Mutant] = &[$(Mutant::$name,)*];

            /// For the command line.
            pub const fn name(self) -> &'static str {
                match self { $(Mutant::$name => $kebab,)* }
            }

            /// What is wrong.
            pub const fn text(self) -> &'static str {
                match self { $(Mutant::$name => $text,)* }
            }

            /// The one of this name.
            pub fn named(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|m| m.name() == name)
            }
        }
    };
}

mutants! {
    ForwardBeforeDurable "forward-before-durable" "the gateway sends what it has not synced, so a seq is used again after a crash",
    TrimAtSend "trim-at-send" "the gateway lets go of blocks when they are sent",
    AckBeforeCommit "ack-before-commit" "link acknowledges before the commit is done",
    AckInDoubt "ack-in-doubt" "link takes a commit that is not answered for one that succeeded",
    ProgressFirst "progress-first" "progress is committed in a transaction of its own before the data",
    ProgressLast "progress-last" "progress is committed in a transaction of its own after the data",
    NoFencing "no-fencing" "the broker lets an older owner's transactions through",
    ClaimWithoutInit "claim-without-init" "a new owner reads progress without fencing the one before",
    ClaimUncommitted "claim-read-uncommitted" "a new owner reads progress that is not committed",
    ClaimShort "claim-short-of-watermark" "a new owner does not read progress to its end",
    GapTaken "gap-taken" "link takes a block that does not follow the last one",
    HashUnchecked "hash-unchecked" "link takes a block whose hash does not fit",
    NoIntent "no-intent" "the sink stores no intent beside its offset",
    InsertBeforeIntent "insert-before-intent" "the sink inserts before its intent is acknowledged",
    NoReadBack "no-read-back" "the sink believes that all is there instead of looking",
    DoubtIsDone "doubt-is-done" "the sink takes an insert in doubt for one that is done",
    TokenPerTry "token-per-try" "each try of an insert has a token of its own",
    TokenWithoutGeneration "token-without-generation" "a range that is sent in part keeps the token of the whole",
    NoQuiet "no-quiet" "a range gets a new token while an older insert may still be at work",
    OffsetPastRange "offset-past-range" "the sink commits an offset behind the next record",
    NoRejoin "no-rejoin" "the sink stays in its group after a commit in doubt, so that a late one still counts",
    OffsetUnfenced "offset-unfenced" "the broker takes offsets of members that are gone",
    SinkReadsUncommitted "sink-reads-uncommitted" "the sink reads records of transactions that are open or aborted",
    OldCertainty "old-certainty" "a sink that stood still inserts what it was sure of before",
    ViewWithoutWindow "view-without-window" "the target of a view has no deduplication window",
    NoRetryForViews "no-retry-for-views" "rows that are in their table are not sent again for its views",
}
