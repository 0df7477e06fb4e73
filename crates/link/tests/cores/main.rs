//! The two state machines without sockets: each row of the table of verdicts, each way a session can go wrong.

mod forward;
mod receive;

use bytes::Bytes;
use link::{
    message::{Batch, Hashed, Hello, StreamHello},
    receive::{Output, Receiver, SessionId},
};
use record::{BlockHeader, Digest, GatewayId, Incarnation, Seq, StreamName, StreamSchema, chain_hash};

pub(crate) const LIFE: Incarnation = Incarnation(7);
pub(crate) const S1: SessionId = SessionId(1);
pub(crate) const S2: SessionId = SessionId(2);

pub(crate) fn gateway() -> GatewayId {
    GatewayId::new("plant-7").expect("valid")
}

pub(crate) fn stream(name: &str) -> StreamName {
    StreamName::new(name).expect("valid")
}

/// A gateway's output: blocks of one stream, chained.
pub(crate) struct Chain {
    stream: StreamName,
    life: Incarnation,
    last: Seq,
    hash: Digest,
}

pub(crate) fn batch(r: &mut Receiver, id: SessionId, batch: Batch, at_ns: i64) -> Vec<Output> {
    r.batch(id, Hashed::of(batch), at_ns)
}

impl Chain {
    pub(crate) fn new(name: &str, life: Incarnation) -> Self {
        Self { stream: stream(name), life, last: Seq(0), hash: Digest::default() }
    }

    pub(crate) fn block(&mut self, rows: u64, fill: u8) -> Batch {
        let (first, last) = (self.last.next(), Seq(self.last.0 + rows));
        let bytes = Bytes::from(vec![fill; 10]);
        let hash = chain_hash(&self.hash, &self.stream, self.life, first, last, 1, &bytes);
        let header = BlockHeader {
            stream: self.stream.clone(),
            incarnation: self.life,
            first,
            last,
            schema: 1,
            prev_hash: self.hash,
            hash,
        };
        (self.last, self.hash) = (last, hash);
        Batch { header, bytes }
    }

    pub(crate) fn hello(&self) -> Hello {
        Hello {
            gateway: gateway(),
            incarnation: self.life,
            protocol: 1,
            software: "test".into(),
            streams: vec![StreamHello {
                stream: self.stream.clone(),
                schema: StreamSchema::default(),
                last: self.last,
                hash: self.hash,
            }],
        }
    }
}
