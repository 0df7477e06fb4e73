//! Between the protocol's messages and [`crate::message`]: every field that comes from the other end is checked here.

use crate::{
    limits::{LOSSES_PER_MESSAGE_MAX, STREAMS_MAX, TEXT_BYTES_MAX},
    message::{
        Ack, Batch, Hello, Loss, Lost, Refuse, RefuseCode, StreamHello, StreamLedger, StreamWelcome,
        ToCentral, ToGateway,
    },
};
use record::{
    BlockHeader, Column, Counts, Digest, GatewayId, Incarnation, RecordError, Seq, StreamName, StreamSchema,
    limits::{BATCH_ROWS_MAX, BLOCK_BYTES_MAX},
};
use thiserror::Error;

#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated from the .proto file")]
pub(crate) mod proto {
    tonic::include_proto!("tidegate.link.v1");
}

/// What is wrong with a message from the other end.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum WireError {
    /// No known message inside, e.g. from a newer version.
    #[error("a message of an unknown kind")]
    UnknownKind,
    /// A name, schema or number breaks the rules.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A field holds what it may not.
    #[error("{field}: {why}")]
    Field {
        /// Which.
        field: &'static str,
        /// What is wrong.
        why: String,
    },
}

fn bad(field: &'static str, why: impl Into<String>) -> WireError {
    WireError::Field { field, why: why.into() }
}

fn text(mut s: String) -> String {
    if s.len() > TEXT_BYTES_MAX {
        let mut end = TEXT_BYTES_MAX;
        while !s.is_char_boundary(end) {
            end -= 1;
        }
        s.truncate(end);
    }
    // One line in a log stays one line.
    if s.contains(|c: char| c.is_control()) { s.replace(|c: char| c.is_control(), " ") } else { s }
}

fn digest(field: &'static str, b: &[u8]) -> Result<Digest, WireError> {
    b.try_into().map(Digest).map_err(|_| bad(field, format!("{} bytes, a digest has 32", b.len())))
}

/// A digest that is absent before the first block of a stream.
fn head(field: &'static str, last: u64, b: &[u8]) -> Result<Digest, WireError> {
    if last == 0 && b.is_empty() { Ok(Digest::default()) } else { digest(field, b) }
}

fn head_bytes(last: Seq, d: Digest) -> bytes::Bytes {
    if last.0 == 0 { bytes::Bytes::new() } else { d.0.to_vec().into() }
}

fn range(first: u64, last: u64) -> Result<(Seq, Seq), WireError> {
    if first == 0 || last < first || last == u64::MAX {
        return Err(bad("first_seq", format!("{first} to {last} is no range of rows")));
    }
    Ok((Seq(first), Seq(last)))
}

impl Hello {
    fn take(h: proto::Hello) -> Result<Self, WireError> {
        if h.streams.len() > STREAMS_MAX {
            return Err(bad("streams", format!("{} streams, the limit is {STREAMS_MAX}", h.streams.len())));
        }
        let mut streams: Vec<StreamHello> = Vec::with_capacity(h.streams.len());
        for s in h.streams {
            let stream = StreamName::new(&s.name)?;
            if streams.iter().any(|o| o.stream == stream) {
                return Err(bad("streams", format!("stream {stream} stands there twice")));
            }
            let columns = s.columns.into_iter().map(|c| Ok(Column { ty: c.r#type.parse()?, name: c.name }));
            let schema = StreamSchema::new(columns.collect::<Result<_, RecordError>>()?)?;
            let hash = head("last_hash", s.last_seq, &s.last_hash)?;
            streams.push(StreamHello { stream, schema, last: Seq(s.last_seq), hash });
        }
        Ok(Self {
            gateway: GatewayId::new(&h.gateway)?,
            incarnation: Incarnation(h.incarnation),
            protocol: h.protocol,
            software: text(h.software),
            streams,
        })
    }

    fn put(self) -> proto::Hello {
        let stream = |s: StreamHello| proto::StreamHello {
            name: s.stream.into(),
            columns: s
                .schema
                .columns()
                .iter()
                .map(|c| proto::Column { name: c.name.clone(), r#type: c.ty.name().into() })
                .collect(),
            last_seq: s.last.0,
            last_hash: head_bytes(s.last, s.hash),
        };
        proto::Hello {
            gateway: self.gateway.into(),
            incarnation: self.incarnation.0,
            protocol: self.protocol,
            software: self.software,
            streams: self.streams.into_iter().map(stream).collect(),
        }
    }
}

impl Batch {
    /// The incarnation is the session's.
    fn take(b: proto::Batch) -> Result<Self, WireError> {
        let (first, last) = range(b.first_seq, b.last_seq)?;
        let header = BlockHeader {
            stream: StreamName::new(&b.stream)?,
            incarnation: Incarnation(0),
            first,
            last,
            schema: b.schema,
            prev_hash: digest("prev_hash", &b.prev_hash)?,
            hash: digest("hash", &b.hash)?,
        };
        if header.rows() > BATCH_ROWS_MAX as u64 {
            return Err(bad("last_seq", format!("{} rows, the limit is {BATCH_ROWS_MAX}", header.rows())));
        }
        if b.block.is_empty() || b.block.len() > BLOCK_BYTES_MAX {
            return Err(bad("block", format!("{} bytes, allowed are 1 to {BLOCK_BYTES_MAX}", b.block.len())));
        }
        Ok(Self { header, bytes: b.block })
    }

    fn put(self) -> proto::Batch {
        proto::Batch {
            stream: self.header.stream.into(),
            first_seq: self.header.first.0,
            last_seq: self.header.last.0,
            schema: self.header.schema,
            prev_hash: self.header.prev_hash.0.to_vec().into(),
            hash: self.header.hash.0.to_vec().into(),
            block: self.bytes,
        }
    }
}

impl Lost {
    fn take(l: proto::Lost) -> Result<Self, WireError> {
        let (first, last) = range(l.first_seq, l.last_seq)?;
        let hash = digest("hash", &l.hash)?;
        Ok(Self { stream: StreamName::new(&l.stream)?, first, last, hash, reason: text(l.reason) })
    }

    fn put(self) -> proto::Lost {
        proto::Lost {
            stream: self.stream.into(),
            first_seq: self.first.0,
            last_seq: self.last.0,
            hash: self.hash.0.to_vec().into(),
            reason: self.reason,
        }
    }
}

impl StreamLedger {
    fn take(l: proto::StreamLedger) -> Result<Self, WireError> {
        if l.losses.len() > LOSSES_PER_MESSAGE_MAX {
            return Err(bad("losses", format!("{} entries", l.losses.len())));
        }
        let loss = |e: proto::Loss| Loss {
            ordinal: e.ordinal,
            first: Seq(e.first_seq),
            last: Seq(e.last_seq),
            first_time_ns: e.first_time_ns,
            last_time_ns: e.last_time_ns,
            rows: e.rows,
            reason: text(e.reason),
        };
        Ok(Self {
            stream: StreamName::new(&l.stream)?,
            counts: Counts {
                received: l.received,
                repeats: l.repeats,
                kept: l.kept,
                filtered: l.filtered,
                aggregated: l.aggregated,
                dead_lettered: l.dead_lettered,
                dropped: l.dropped,
                produced: l.produced,
            },
            as_of: Seq(l.as_of_seq),
            losses: l.losses.into_iter().map(loss).collect(),
        })
    }

    fn put(self) -> proto::StreamLedger {
        let c = self.counts;
        let loss = |e: Loss| proto::Loss {
            ordinal: e.ordinal,
            first_seq: e.first.0,
            last_seq: e.last.0,
            first_time_ns: e.first_time_ns,
            last_time_ns: e.last_time_ns,
            rows: e.rows,
            reason: e.reason,
        };
        proto::StreamLedger {
            stream: self.stream.into(),
            received: c.received,
            repeats: c.repeats,
            kept: c.kept,
            filtered: c.filtered,
            aggregated: c.aggregated,
            dead_lettered: c.dead_lettered,
            dropped: c.dropped,
            produced: c.produced,
            as_of_seq: self.as_of.0,
            losses: self.losses.into_iter().take(LOSSES_PER_MESSAGE_MAX).map(loss).collect(),
        }
    }
}

impl ToCentral {
    /// Checks a message from a gateway. A batch's incarnation is left zero: it is the session's.
    pub(crate) fn take(m: proto::ToCentral) -> Result<Self, WireError> {
        use proto::to_central::Message;
        Ok(match m.message.ok_or(WireError::UnknownKind)? {
            Message::Hello(h) => Self::Hello(Hello::take(h)?),
            Message::Batch(b) => Self::Batch(Batch::take(b)?),
            Message::Lost(l) => Self::Lost(Lost::take(l)?),
            Message::Ledger(l) if l.streams.len() > STREAMS_MAX => {
                return Err(bad(
                    "streams",
                    format!("{} streams, the limit is {STREAMS_MAX}", l.streams.len()),
                ));
            }
            Message::Ledger(l) => {
                Self::Ledger(l.streams.into_iter().map(StreamLedger::take).collect::<Result<_, _>>()?)
            }
        })
    }

    pub(crate) fn put(self) -> proto::ToCentral {
        use proto::to_central::Message;
        let message = match self {
            Self::Hello(h) => Message::Hello(h.put()),
            Self::Batch(b) => Message::Batch(b.put()),
            Self::Lost(l) => Message::Lost(l.put()),
            Self::Ledger(l) => {
                Message::Ledger(proto::Ledger { streams: l.into_iter().map(StreamLedger::put).collect() })
            }
        };
        proto::ToCentral { message: Some(message) }
    }
}

impl Refuse {
    fn take(r: proto::Refuse) -> Result<Self, WireError> {
        use proto::refuse::Code;
        let code = match r.code() {
            Code::Gap => RefuseCode::Gap,
            // A reason that this version does not know holds the stream back all the same.
            Code::Quarantined | Code::Unspecified => RefuseCode::Quarantined,
            Code::TypeConflict => RefuseCode::TypeConflict,
        };
        let stream = StreamName::new(&r.stream)?;
        Ok(Self { stream, code, expected: Seq(r.expected_seq), message: text(r.message) })
    }

    fn put(self) -> proto::Refuse {
        use proto::refuse::Code;
        let code = match self.code {
            RefuseCode::Gap => Code::Gap,
            RefuseCode::Quarantined => Code::Quarantined,
            RefuseCode::TypeConflict => Code::TypeConflict,
        };
        proto::Refuse {
            stream: self.stream.into(),
            code: code.into(),
            expected_seq: self.expected.0,
            message: text(self.message),
        }
    }
}

impl StreamWelcome {
    fn take(s: proto::StreamWelcome) -> Result<Self, WireError> {
        Ok(Self {
            stream: StreamName::new(&s.name)?,
            last: Seq(s.last_seq),
            hash: head("last_hash", s.last_seq, &s.last_hash)?,
            loss_ordinal: s.loss_ordinal,
        })
    }

    fn put(self) -> proto::StreamWelcome {
        proto::StreamWelcome {
            name: self.stream.into(),
            last_seq: self.last.0,
            last_hash: head_bytes(self.last, self.hash),
            loss_ordinal: self.loss_ordinal,
        }
    }
}

impl ToGateway {
    /// Checks a message from central.
    pub(crate) fn take(m: proto::ToGateway) -> Result<Self, WireError> {
        use proto::to_gateway::Message;
        Ok(match m.message.ok_or(WireError::UnknownKind)? {
            Message::Welcome(w) => {
                Self::Welcome(w.streams.into_iter().map(StreamWelcome::take).collect::<Result<_, _>>()?)
            }
            Message::Acks(a) => {
                let ack = |a: proto::Ack| {
                    Ok::<_, WireError>(Ack { stream: StreamName::new(&a.stream)?, last: Seq(a.last_seq) })
                };
                Self::Acks(a.acks.into_iter().map(ack).collect::<Result<_, _>>()?)
            }
            Message::Refuse(r) => Self::Refuse(Refuse::take(r)?),
            Message::WrongNode(w) => Self::WrongNode { owner: text(w.owner) },
        })
    }

    pub(crate) fn put(self) -> proto::ToGateway {
        use proto::to_gateway::Message;
        let message = match self {
            Self::Welcome(w) => {
                Message::Welcome(proto::Welcome { streams: w.into_iter().map(StreamWelcome::put).collect() })
            }
            Self::Acks(a) => {
                let ack = |a: Ack| proto::Ack { stream: a.stream.into(), last_seq: a.last.0 };
                Message::Acks(proto::Acks { acks: a.into_iter().map(ack).collect() })
            }
            Self::Refuse(r) => Message::Refuse(r.put()),
            Self::WrongNode { owner } => Message::WrongNode(proto::WrongNode { owner }),
        };
        proto::ToGateway { message: Some(message) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::ColumnType;

    fn stream() -> StreamName {
        StreamName::new("machine").expect("valid")
    }

    fn batch() -> proto::Batch {
        proto::Batch {
            stream: "machine".into(),
            first_seq: 1,
            last_seq: 2,
            schema: 7,
            prev_hash: vec![0; 32].into(),
            hash: vec![1; 32].into(),
            block: vec![1].into(),
        }
    }

    #[test]
    fn messages_round_trip() {
        let schema =
            StreamSchema::new(vec![Column { name: "t".into(), ty: ColumnType::Float64 }]).expect("valid");
        let streams = vec![
            StreamHello { stream: stream(), schema: schema.clone(), last: Seq(0), hash: Digest::default() },
            StreamHello {
                stream: StreamName::new("b").expect("valid"),
                schema,
                last: Seq(9),
                hash: Digest::of(b"x"),
            },
        ];
        let hello = ToCentral::Hello(Hello {
            gateway: GatewayId::new("plant-7").expect("valid"),
            incarnation: Incarnation(u64::MAX),
            protocol: 1,
            software: "tidegate 1".into(),
            streams,
        });
        let ledger = ToCentral::Ledger(vec![StreamLedger {
            stream: stream(),
            counts: Counts { received: 3, kept: 3, ..Counts::default() },
            as_of: Seq(3),
            losses: vec![Loss {
                ordinal: 1,
                first: Seq(0),
                last: Seq(0),
                first_time_ns: -5,
                last_time_ns: 5,
                rows: 2,
                reason: "full".into(),
            }],
        }]);
        for m in [hello, ledger] {
            assert_eq!(ToCentral::take(m.clone().put()), Ok(m));
        }
        let refuse = ToGateway::Refuse(Refuse {
            stream: stream(),
            code: RefuseCode::Gap,
            expected: Seq(4),
            message: "m".into(),
        });
        let acks = ToGateway::Acks(vec![Ack { stream: stream(), last: Seq(8) }]);
        for m in [refuse, acks] {
            assert_eq!(ToGateway::take(m.clone().put()), Ok(m));
        }
    }

    #[test]
    fn every_foreign_field_is_checked() {
        assert!(Batch::take(batch()).is_ok());
        let broken: [fn(&mut proto::Batch); 9] = [
            |b| b.stream = "; drop table".into(),
            |b| b.first_seq = 0,
            |b| b.last_seq = 0,
            |b| b.last_seq = u64::MAX,
            |b| b.last_seq = 20_000,
            |b| b.prev_hash = vec![0; 31].into(),
            |b| b.hash = vec![].into(),
            |b| b.block = vec![].into(),
            |b| b.block = vec![0; BLOCK_BYTES_MAX + 1].into(),
        ];
        for (i, f) in broken.iter().enumerate() {
            let mut b = batch();
            f(&mut b);
            assert!(Batch::take(b).is_err(), "case {i}");
        }
        assert_eq!(ToCentral::take(proto::ToCentral { message: None }), Err(WireError::UnknownKind));
        let twice = proto::StreamHello { name: "a".into(), ..Default::default() };
        let hello =
            proto::Hello { gateway: "g".into(), streams: vec![twice.clone(), twice], ..Default::default() };
        assert!(Hello::take(hello).is_err());
    }

    #[test]
    fn free_text_is_cut_and_stays_one_line() {
        assert_eq!(text("a\nb".into()), "a b");
        assert_eq!(text("ä".repeat(1_000)).len(), TEXT_BYTES_MAX);
    }
}
