//! What the two ends say to each other, with every name and number already checked.

use bytes::Bytes;
use record::{
    BlockHeader, Counts, Digest, GatewayId, Incarnation, Seq, StreamName, StreamSchema, chain_hash,
};

/// From a gateway to central.
#[derive(Debug, Clone, PartialEq)]
pub enum ToCentral {
    /// The first message of a session.
    Hello(Hello),
    /// Rows.
    Batch(Batch),
    /// Rows that will never come.
    Lost(Lost),
    /// What the gateway counted.
    Ledger(Vec<StreamLedger>),
}

/// From central to a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToGateway {
    /// The answer to Hello.
    Welcome(Vec<StreamWelcome>),
    /// What is stored now.
    Acks(Vec<Ack>),
    /// A stream that is not taken any more in this session.
    Refuse(Refuse),
    /// Another node serves this gateway.
    WrongNode {
        /// Its address.
        owner: String,
    },
}

/// Who is calling and what it is going to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The gateway; must equal the certificate's common name.
    pub gateway: GatewayId,
    /// The life of its data folder.
    pub incarnation: Incarnation,
    /// The protocol that it speaks.
    pub protocol: u32,
    /// Name and version of the program.
    pub software: String,
    /// Its streams, each with its columns and its newest durable block.
    pub streams: Vec<StreamHello>,
}

/// A stream in [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamHello {
    /// The stream.
    pub stream: StreamName,
    /// Its declared columns.
    pub schema: StreamSchema,
    /// The newest row that is durable on the gateway; 0 before the first.
    pub last: Seq,
    /// The hash of the block that ends there.
    pub hash: Digest,
}

/// A block of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// What it is.
    pub header: BlockHeader,
    /// The encoded rows.
    pub bytes: Bytes,
}

/// A block beside the hash that it has: worked out by each session for itself, since the order of a shard is one for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hashed {
    batch: Batch,
    hash: Digest,
}

impl Hashed {
    /// Hashes a block; its incarnation is known by now.
    pub fn of(batch: Batch) -> Self {
        let h = &batch.header;
        let hash =
            chain_hash(&h.prev_hash, &h.stream, h.incarnation, h.first, h.last, h.schema, &batch.bytes);
        Self { batch, hash }
    }

    /// What it says it is.
    pub fn header(&self) -> &BlockHeader {
        &self.batch.header
    }

    /// The hash that its header has to name.
    pub fn hash(&self) -> Digest {
        self.hash
    }

    /// The block alone.
    pub fn into_batch(self) -> Batch {
        self.batch
    }
}

/// Rows that the gateway had given seqs and cannot send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The stream.
    pub stream: StreamName,
    /// First seq lost.
    pub first: Seq,
    /// Last seq lost.
    pub last: Seq,
    /// Hash of the block that ended at `last`.
    pub hash: Digest,
    /// Why they are lost.
    pub reason: String,
}

/// The terms of the conservation equation of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamLedger {
    /// The stream.
    pub stream: StreamName,
    /// The terms, since the incarnation began.
    pub counts: Counts,
    /// The stream's last seq when they were taken.
    pub as_of: Seq,
    /// New losses, oldest first.
    pub losses: Vec<Loss>,
}

/// An entry of the loss ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// Its number in the stream's ledger, from 1.
    pub ordinal: u64,
    /// First seq lost; 0 when the rows had none yet.
    pub first: Seq,
    /// Last seq lost; 0 when the rows had none yet.
    pub last: Seq,
    /// The gateway's time of the first row lost, nanoseconds since the epoch: when its event was accepted, or, if it had
    /// a seq, when it was written. 0 when unknown.
    pub first_time_ns: i64,
    /// The same of the last row lost.
    pub last_time_ns: i64,
    /// Rows lost.
    pub rows: u64,
    /// Why.
    pub reason: String,
}

/// What central has of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamWelcome {
    /// The stream.
    pub stream: StreamName,
    /// The last seq stored of this incarnation; 0 when none.
    pub last: Seq,
    /// The hash of the block that ends there.
    pub hash: Digest,
    /// The newest loss entry that central knows; 0 when none.
    pub loss_ordinal: u64,
}

/// Everything up to `last` is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// The stream.
    pub stream: StreamName,
    /// The last seq stored.
    pub last: Seq,
}

/// Why a stream is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefuseCode {
    /// A block does not follow the last one stored.
    Gap,
    /// A block cannot belong to what is stored.
    Quarantined,
    /// A column has another type in the table.
    TypeConflict,
}

impl RefuseCode {
    /// For metrics and log lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gap => "gap",
            Self::Quarantined => "quarantined",
            Self::TypeConflict => "type_conflict",
        }
    }
}

/// A stream is not taken any more in this session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refuse {
    /// The stream.
    pub stream: StreamName,
    /// Why.
    pub code: RefuseCode,
    /// The seq that central waits for.
    pub expected: Seq,
    /// For people.
    pub message: String,
}
