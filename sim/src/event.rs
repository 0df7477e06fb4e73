//! What may happen: everything that is on its way between a gateway, a process of central, the broker and the server.

use crate::{broker::Request, clickhouse::Statement, fault::Fault, seat::News, sink::Tables};
use central::log::{CommitError, Committed, Offset, ProgressRecord, StoredRecord};
use link::message::{ToCentral, ToGateway};
use record::StreamName;

/// A process that can die or stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Process {
    /// A gateway's folder and the program on it.
    Gateway(usize),
    /// A process of central with the link role.
    Link(usize),
    /// A process of central with the sink role.
    Sink(usize),
}

/// One life of a process: what was meant for an earlier one does not reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) process: Process,
    pub(crate) life: u32,
}

/// Who asks for what, and the number of the question: an answer to an older one is of no interest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker {
    pub(crate) address: Address,
    /// The shard or partition on whose behalf.
    pub(crate) place: u32,
    pub(crate) question: u64,
    /// Whether an answer will arrive.
    pub(crate) heard: bool,
}

#[derive(Debug)]
pub(crate) enum Event {
    Call(Address, Call),
    Broker(Request),
    Server(Statement),
    Trouble(Trouble),
}

/// What reaches a process.
#[derive(Debug)]
pub(crate) enum Call {
    /// A gateway makes entries of its log.
    Produce,
    /// Entries up to here are durable.
    Synced(usize),
    /// Entries up to here are gone from the disk.
    Trimmed(usize),
    /// A moment that the gateway waits for.
    Tick,
    /// The gateway reads the next entry of its log.
    ReadEntry,
    /// A connection stands, or could not be made.
    Connected(usize, bool),
    /// Central says something.
    Down(usize, Down),
    /// The connection is gone, as the gateway's end sees it.
    Lost(usize),
    /// A gateway says something.
    Up(usize, ToCentral),
    /// The connection is gone, as central's end sees it.
    Gone(usize),
    /// A moment that a shard or a lane waits for.
    Wake(u32, u64),
    /// Its place in a group.
    Seat(u64, News),
    /// It leaves its group and joins again.
    Rejoin,
    /// An answer: to the question of a shard or partition.
    Answer(u32, u64, Answer),
}

#[derive(Debug)]
pub(crate) enum Down {
    Message(ToGateway),
    /// Central ends the session; whether it says that it is there and only busy.
    Goodbye(bool),
}

#[derive(Debug)]
pub(crate) enum Answer {
    /// The epoch of a new producer.
    Initialised(u64),
    Progress(Vec<ProgressRecord>),
    Published(bool),
    Produced(Result<(), CommitError>),
    Ended(Result<(), CommitError>),
    /// The question was not answered in time.
    TimedOut,
    MaxOffset(Option<Offset>),
    Committed(Option<Committed>),
    Records(Vec<StoredRecord>),
    OffsetCommitted(Result<(), CommitError>),
    /// How an insert into a table ended: done, or in doubt, and whether the server said so.
    Inserted(StreamName, Result<(), bool>),
    Found(Tables),
    Unreadable,
}

/// What the troublemaker does.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Something happens to one of the processes or connections.
    Strike,
    /// A process is hit, in the middle of what it does.
    Hit(Address, Fault),
    /// A process begins again.
    Start(Process),
    /// One that stood still goes on.
    GoOn(Address),
    /// A copy of a gateway's folder is put aside.
    Backup(usize),
    /// Nothing goes wrong any more.
    Calm,
    /// Whether everything has arrived.
    Look,
}
