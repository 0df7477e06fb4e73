//! The protocol of one partition, without I/O: what to do next, and what each answer means.
//!
//! Claim the partition and read where it stands; read records from there; publish a portion of their rows together with
//! the position behind it; again. Any doubt leads back to the claim, and what is stored is the truth.
//!
//! Invariants:
//! - a portion begins exactly where the stored position says, and the position moves only with it;
//! - a position is a record and a row in it, so that a transaction is bounded however large a block is.
//!
//! It never sees a row: which rows a portion has is the driver's work.

use crate::log::{Committed, Offset};

/// Everything before this row of this record is published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The record.
    pub offset: Offset,
    /// Rows of it that are published.
    pub row: u32,
}

impl Position {
    /// At the beginning of a record.
    pub const fn at(offset: Offset) -> Self {
        Self { offset, row: 0 }
    }

    /// What stands beside the committed offset: nothing at the beginning of a record, else `1 ROW`, where 1 is the
    /// version.
    pub fn metadata(&self) -> String {
        if self.row == 0 { String::new() } else { format!("1 {}", self.row) }
    }

    /// A committed position; else what is wrong with it.
    pub fn decode(committed: &Committed) -> Result<Self, String> {
        let offset = committed.offset;
        if committed.metadata.is_empty() {
            return Ok(Self::at(offset));
        }
        let row = committed.metadata.strip_prefix("1 ").and_then(|row| row.parse().ok());
        let row = row.filter(|row| *row > 0).ok_or_else(|| {
            format!("the stored position {:?} at {offset} is none of this program", committed.metadata)
        })?;
        Ok(Self { offset, row })
    }
}

/// Times in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Least time from one portion to the next while little is there.
    pub linger_ns: u64,
    /// First pause after a failure.
    pub backoff_min_ns: u64,
    /// Longest pause after a failure.
    pub backoff_max_ns: u64,
}

/// What to do next. Each step except the waits is answered by the method of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Claim the partition: [`Lane::on_claim`].
    Claim,
    /// Read records from here on: [`Lane::on_read`].
    Read(Offset),
    /// Publish a portion of what was read, from here on: [`Lane::on_publish`].
    Publish(Position),
    /// Nothing, until the tail moves or this moment has come.
    Wait(Option<u64>),
    /// Nothing, until this moment.
    Sleep(u64),
}

/// What a read gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// Records; whether they are as many as a read takes.
    Some {
        /// There may be more at once.
        full: bool,
    },
    /// Nothing up to the end that was known.
    Nothing,
    /// The records asked for are no longer kept; the oldest is this one.
    Trimmed(Offset),
}

/// What a portion came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Portion {
    /// Where it leaves the partition.
    pub next: Position,
    /// Whether records that were read are left.
    pub left: bool,
}

/// What happened, for log and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A portion is published.
    Published,
    /// Something failed; the partition is claimed again.
    Doubted(String),
    /// Records from the first to the second offset were removed before they were published.
    Missed(Offset, Offset),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Claim,
    Idle,
    /// Records are in hand; they wait for more company or not.
    Held {
        full: bool,
    },
    Pause(u64),
}

/// The protocol of one partition.
#[derive(Debug)]
pub struct Lane {
    pace: Pace,
    state: State,
    position: Position,
    /// The end of the log at the last read that gave nothing: a log may end in a gap.
    asked_at: Offset,
    dry_at: Option<Offset>,
    published_at: Option<u64>,
    failures: u32,
    events: Vec<Event>,
}

impl Lane {
    /// One that begins.
    pub fn new(pace: Pace) -> Self {
        Self {
            pace,
            state: State::Claim,
            position: Position::default(),
            asked_at: Offset(0),
            dry_at: None,
            published_at: None,
            failures: 0,
            events: Vec::new(),
        }
    }

    /// What happened since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Where it stands.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The next step, at `now`, with records up to `high` in the log.
    pub fn step(&mut self, now: u64, high: Offset) -> Step {
        match self.state {
            State::Pause(until) if now < until => Step::Sleep(until),
            State::Pause(_) | State::Claim => {
                self.state = State::Claim;
                Step::Claim
            }
            State::Idle if self.position.offset < high && self.dry_at != Some(high) => {
                self.asked_at = high;
                Step::Read(self.position.offset)
            }
            State::Idle => Step::Wait(None),
            State::Held { full } => {
                let due = self.published_at.map_or(0, |at| at + self.pace.linger_ns);
                if full || now >= due { Step::Publish(self.position) } else { Step::Sleep(due) }
            }
        }
    }

    /// Answers [`Step::Claim`]: where the partition stands, and the oldest record for one that was never published.
    pub fn on_claim(&mut self, now: u64, answer: Result<Position, String>) {
        match answer {
            Ok(position) => {
                self.position = position;
                self.dry_at = None;
                self.state = State::Idle;
            }
            Err(reason) => self.failed(now, reason),
        }
    }

    /// Answers [`Step::Read`].
    pub fn on_read(&mut self, now: u64, answer: Result<Read, String>) {
        match answer {
            Ok(Read::Some { full }) => self.state = State::Held { full },
            Ok(Read::Nothing) => self.dry_at = Some(self.asked_at),
            Ok(Read::Trimmed(first)) => {
                self.events.push(Event::Missed(self.position.offset, first));
                self.position = Position::at(first);
            }
            Err(reason) => self.failed(now, reason),
        }
    }

    /// Answers [`Step::Publish`].
    pub fn on_publish(&mut self, now: u64, answer: Result<Portion, String>) {
        match answer {
            Ok(portion) => {
                self.position = portion.next;
                self.published_at = Some(now);
                self.failures = 0;
                self.events.push(Event::Published);
                // What is left is more than one transaction took.
                self.state = if portion.left { State::Held { full: true } } else { State::Idle };
            }
            Err(reason) => self.failed(now, reason),
        }
    }

    fn failed(&mut self, now: u64, reason: String) {
        let pause = self.pace.backoff_min_ns.saturating_mul(1 << self.failures.min(20));
        self.failures += 1;
        self.events.push(Event::Doubted(reason));
        self.state = State::Pause(now + pause.min(self.pace.backoff_max_ns));
    }
}

#[cfg(test)]
mod tests;
