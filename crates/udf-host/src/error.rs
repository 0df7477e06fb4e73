//! What can go wrong, by what a caller does about it.

use crate::World;
use record::Digest;
use std::time::Duration;

/// Why bytes are not a module of the contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Over the limit before anything was read.
    #[error("the module has {bytes} bytes, the limit is {limit}")]
    Size {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A core module.
    #[error("this is a WebAssembly core module, not a component: `tidegate module build` makes components")]
    CoreModule,
    /// Truncated, damaged, or using something that is not allowed.
    #[error("not a valid WebAssembly component: {why}")]
    Invalid {
        /// What the validator says.
        why: String,
    },
    /// It wants something that modules do not get.
    #[error(
        "the module imports {name}: a module may import nothing but tidegate:udf/log and tidegate:udf/columns, \
         no WASI either"
    )]
    Import {
        /// The import.
        name: String,
    },
    /// It does not export one of the worlds.
    #[error(
        "the module's exports make none of the worlds filter, transform, aggregate of tidegate:udf 0.1.0, or more \
         than one: it exports {exports:?}"
    )]
    World {
        /// Names of the exports.
        exports: Vec<String>,
    },
    /// It wants more memory from the start than any module gets.
    #[error("the module declares a memory of {bytes} bytes, the limit is {limit}")]
    Memory {
        /// What it declares.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
}

/// Why an artifact is not loaded. Its module can be compiled again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArtifactError {
    /// Not an artifact, or cut off.
    #[error("not an artifact of this program: {0}")]
    Form(&'static str),
    /// Made for another version, target or configuration.
    #[error("the artifact was made for another host")]
    OtherHost,
    /// Made from another module.
    #[error("the artifact was made from module {found}, not {expected}")]
    OtherModule {
        /// The module it was made from.
        found: Digest,
        /// The module that was asked for.
        expected: Digest,
    },
    /// Its bytes are not those that the compiler wrote.
    #[error("the artifact is damaged: its digest does not fit")]
    Damaged,
    /// The engine will not have it.
    #[error("the engine refuses the artifact: {0}")]
    Engine(String),
}

/// Why a module gives no instance.
#[derive(Debug, thiserror::Error)]
pub enum UdfError {
    /// The engine cannot be set up here.
    #[error("the module engine cannot start: {0}")]
    Engine(String),
    /// Not a module of the contract.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The artifact is not loaded.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// Another world is needed here.
    #[error("module {module} is of the world {found}, here one of the world {expected} is needed")]
    WrongWorld {
        /// The module.
        module: String,
        /// What it is.
        found: World,
        /// What was needed.
        expected: World,
    },
    /// The module will not work with this configuration or this input.
    #[error("module {module}: {why}")]
    Configuration {
        /// The module.
        module: String,
        /// What it says, or which promise it breaks.
        why: String,
    },
    /// It failed in being set up.
    #[error("module {module} fails in its start: {error}")]
    Start {
        /// The module.
        module: String,
        /// How.
        error: CallError,
    },
    /// Too many at a time.
    #[error("module {module}: there are already {limit} instances, which is the limit")]
    Instances {
        /// The module.
        module: String,
        /// The limit.
        limit: usize,
    },
}

/// How a call ended that gave no answer. The instance is used up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The module stopped itself: a panic, a bad access, a division by zero, the stack's end.
    #[error("trap: {0}")]
    Trap(String),
    /// It took too long.
    #[error("stopped after {} ms", limit.as_millis())]
    Timeout {
        /// The time it had.
        limit: Duration,
    },
    /// It wanted too much memory.
    #[error("it wanted more than {limit} bytes of memory")]
    Memory {
        /// What it may have.
        limit: usize,
    },
    /// Its answer is too large.
    #[error("its answer has more than {limit} bytes")]
    Output {
        /// What it may have.
        limit: usize,
    },
    /// It says no.
    #[error("{0}")]
    Guest(String),
    /// Its answer is not what it promised, or not what was asked for.
    #[error("wrong answer: {0}")]
    Answer(String),
    /// The batch is not of the schema that the instance was made for: the caller's mistake, not the module's.
    #[error("wrong batch: {0}")]
    Batch(String),
}

impl CallError {
    /// A short word for counters.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Trap(_) => "trap",
            Self::Timeout { .. } => "timeout",
            Self::Memory { .. } => "memory",
            Self::Output { .. } => "output",
            Self::Guest(_) => "error",
            Self::Answer(_) => "answer",
            Self::Batch(_) => "batch",
        }
    }
}

/// The beginning of a text that someone else wrote: at most `max` bytes, whole characters, no control characters.
pub(crate) fn bounded(text: &str, max: usize) -> String {
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut out = String::with_capacity(text.len().min(max));
    for c in clean {
        if out.len() + c.len_utf8() > max {
            break;
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_texts_are_bounded() {
        assert_eq!(bounded("a\nb", 10), "a b");
        assert_eq!(bounded("ééé", 3), "é");
    }
}
