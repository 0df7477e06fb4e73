//! What the protocol is told, and what it says.

use super::Intent;
use crate::log::Offset;
use record::{Digest, Seq, StreamName};
use std::collections::BTreeMap;

/// A record of the log, as far as the protocol must know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Where it stands.
    pub offset: Offset,
    /// Its stream, hence its table.
    pub stream: StreamName,
    /// Its rows.
    pub rows: u32,
    /// Seq of its first row.
    pub first_seq: Seq,
    /// Seq of its last row.
    pub last_seq: Seq,
    /// Bytes of its block.
    pub bytes: usize,
    /// Hash of its block.
    pub hash: Digest,
}

/// What the tables hold of one record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// Rows in the stream's table.
    pub rows: u64,
    /// Smallest seq among them.
    pub first_seq: u64,
    /// Largest seq among them.
    pub last_seq: u64,
    /// How often it stands in the table of quarantined blocks.
    pub quarantined: u64,
}

/// What the tables hold of a range.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// Its records; those of which nothing is there may be left out.
    pub found: BTreeMap<Offset, Found>,
    /// Inserts that each table took since the range got its name, at most. A table that is left out took none.
    pub newer: BTreeMap<StreamName, u64>,
}

impl Tables {
    /// What is there of a record.
    pub(super) fn of(&self, offset: Offset) -> Found {
        self.found.get(&offset).copied().unwrap_or_default()
    }
}

/// How the inserts into one table ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The server said that everything is in.
    Done,
    /// It is not known whether it is in.
    Doubt {
        /// The server has answered: it is not at work on it any more.
        ended: bool,
        /// What happened.
        reason: String,
    },
}

/// When a range is large enough, and how long to wait; times in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Rows that trigger an insert, and its limit.
    pub rows_max: u64,
    /// Bytes of blocks that trigger an insert, and its limit.
    pub bytes_max: usize,
    /// Least time from one insert to the next while less than that is there.
    pub linger_ns: u64,
    /// See [`super::super::limits::QUIET`].
    pub quiet_ns: u64,
    /// See [`super::super::limits::SURE`].
    pub sure_ns: u64,
    /// A token is remembered for certain while the table took fewer inserts since.
    pub tokens: u64,
    /// First pause after a failure.
    pub backoff_min_ns: u64,
    /// Longest pause after a failure.
    pub backoff_max_ns: u64,
}

/// What to do next. Each step except the waits is answered by the method of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Read the committed offset, and the largest offset in the tables: [`super::Lane::on_start`].
    Start,
    /// Read records from here on: [`super::Lane::on_read`].
    Read(Offset),
    /// Read the records of an intent, `from ..to`: [`super::Lane::on_range`].
    ReadRange(Offset, Offset),
    /// Commit an offset and its metadata: [`super::Lane::on_commit`].
    Commit(Offset, String),
    /// Insert these records: [`super::Lane::on_insert`].
    Insert(Intent, Vec<Offset>),
    /// Look for the records of the intent in the tables: [`super::Lane::on_read_back`].
    ReadBack(Intent),
    /// Nothing, until the tail moves or this moment has come.
    Wait(Option<u64>),
    /// Nothing, until this moment.
    Sleep(u64),
}

/// What happened, for log and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Records up to this offset are in their tables.
    Stored(Offset),
    /// An insert's end is not known, or a step failed.
    Doubted(String),
    /// A range got a new generation.
    Renamed(Intent),
    /// A range is in its tables, but nobody can tell whether the views on them have it.
    ViewsUnsure(Intent),
    /// What is stored contradicts itself; the lane looks again, and needs a person.
    Halted(String),
}
