//! One shard's order without I/O: what is new goes into groups, a group is to be committed, its commit is acknowledged.
//!
//! It holds the [`Receiver`] of the shard's gateways from one claim to the first commit in doubt. What sessions say goes
//! in through [`Order::input`]; [`Order::step`] says whether a group is due; the driver commits it and tells the outcome
//! with [`Order::on_commit`], which gives the acknowledgements, or ends the claim.
//!
//! Invariants:
//! - a group is committed when its first part has waited for the interval, when it is full, or when one session has half of
//!   the blocks in it that it may send before they are acknowledged; once it is due nothing more is taken in;
//! - one group is under way at a time, and nothing of it is acknowledged before its commit is known to have succeeded;
//! - after a commit that failed or is in doubt it is of no use any more: only a new claim tells what is stored.
//!
//! It never talks to the log or to a gateway, and never asks a clock.

use crate::{
    limits::LOSS_ENTRIES_MAX,
    log::{
        CommitError, ContentType, Counted, DataRecord, LossEntry, Progress, ProgressRecord, Quarantined,
        RecordHeaders,
    },
};
use ::link::{
    message::{Hashed, Hello, Lost, Refuse, StreamLedger},
    receive::{Accepted, Group, Heard, Known, Output, Receiver, SessionId, Stranger},
};
use record::{Counts, GatewayId, StreamName};
use std::collections::BTreeMap;

/// What a session says.
#[derive(Debug)]
pub enum Said {
    /// It begins; `refused` are streams whose columns do not fit their tables.
    Hello(Hello, Vec<Refuse>),
    /// Rows.
    Batch(Hashed),
    /// Rows that will never come.
    Lost(Lost),
    /// What the gateway counted.
    Ledger(Vec<StreamLedger>),
    /// A stream is not taken any more in this session, for a reason that only its driver knows.
    Refuse(Refuse),
}

/// When groups are committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupPace {
    /// A group is committed when its first part has waited so long, in nanoseconds…
    pub interval_ns: u64,
    /// …or when its blocks have so many bytes…
    pub bytes_max: usize,
    /// …or when so many of them are of one session.
    pub blocks_of_one: usize,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Commit this; answered by [`Order::on_commit`]. Nothing may be put in before.
    Commit(Commit),
    /// Take what sessions say, until this moment.
    Take(Option<u64>),
}

/// A group as the log takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Blocks, in order.
    pub records: Vec<DataRecord>,
    /// How far they bring their streams, what was counted, what was refused.
    pub progress: Vec<ProgressRecord>,
    /// Bytes of the blocks.
    pub bytes: usize,
}

type Key = (GatewayId, StreamName);

/// The core; see the module.
#[derive(Debug)]
pub struct Order {
    pace: GroupPace,
    receiver: Receiver,
    counted: BTreeMap<Key, Counted>,
    quarantined: BTreeMap<Key, Quarantined>,
    /// When the waiting group is to be committed.
    due: Option<u64>,
    /// Blocks of each session since the last group, and whether those of one are enough.
    blocks: BTreeMap<SessionId, usize>,
    crowded: bool,
}

impl Order {
    /// Begins from what a claim of the shard has found.
    pub fn new(pace: GroupPace, stored: Vec<ProgressRecord>) -> Self {
        let mut known: BTreeMap<Key, Known> = BTreeMap::new();
        let (mut all_counted, mut quarantined) = (BTreeMap::new(), BTreeMap::new());
        for r in stored {
            let key = (r.gateway.clone(), r.stream.clone());
            let entry = known.entry(key.clone()).or_insert_with(|| Known {
                gateway: r.gateway,
                stream: r.stream,
                head: None,
                loss: None,
            });
            match r.value {
                Progress::Head(head) => entry.head = Some(head),
                Progress::Counted(c) => {
                    entry.loss = Some((c.incarnation, c.losses.last().map_or(0, |l| l.ordinal)));
                    all_counted.insert(key, c);
                }
                Progress::Quarantined(q) => drop(quarantined.insert(key, q)),
            }
        }
        let receiver = Receiver::new(known.into_values());
        let (counted, blocks) = (all_counted, BTreeMap::new());
        Self { pace, receiver, counted, quarantined, due: None, blocks, crowded: false }
    }

    /// A session says something, at `now_ns` on the monotonic clock and `wall_ns` on the other one.
    pub fn input(&mut self, session: SessionId, said: Said, now_ns: u64, wall_ns: i64) -> Vec<Output> {
        let outputs = match said {
            Said::Hello(hello, mut refused) => {
                for r in &mut refused {
                    r.expected = self.receiver.expected(&hello.gateway, &r.stream);
                }
                self.receiver.hello(session, &hello, refused, wall_ns)
            }
            Said::Batch(batch) => {
                let blocks = self.blocks.entry(session).or_default();
                *blocks += 1;
                self.crowded |= *blocks >= self.pace.blocks_of_one;
                self.receiver.batch(session, batch, wall_ns)
            }
            Said::Lost(lost) => self.receiver.lost(session, &lost),
            Said::Ledger(ledger) => {
                self.receiver.ledger(session, ledger, wall_ns);
                Vec::new()
            }
            Said::Refuse(mut refuse) => {
                if let Some(gateway) = self.receiver.gateway(session) {
                    refuse.expected = self.receiver.expected(gateway, &refuse.stream);
                }
                self.receiver.refuse_stream(session, refuse)
            }
        };
        if self.due.is_none() && !self.receiver.pending().is_empty() {
            self.due = Some(now_ns.saturating_add(self.pace.interval_ns));
        }
        outputs
    }

    /// A session is over.
    pub fn gone(&mut self, session: SessionId) {
        self.blocks.remove(&session);
        self.receiver.disconnected(session);
    }

    /// What to do at `now_ns`.
    pub fn step(&mut self, now_ns: u64) -> Step {
        let pending = self.receiver.pending();
        let full = pending.bytes >= self.pace.bytes_max || self.crowded && !pending.is_empty();
        if !full && self.due.is_none_or(|due| now_ns < due) {
            return Step::Take(self.due);
        }
        self.due = None;
        self.blocks.clear();
        self.crowded = false;
        let group = self.receiver.take_group();
        Step::Commit(self.commit(group))
    }

    /// The outcome of [`Step::Commit`]: what to send now, or why this claim is over.
    pub fn on_commit(&mut self, outcome: Result<(), CommitError>) -> Result<Vec<Output>, CommitError> {
        outcome.map(|()| self.receiver.committed())
    }

    fn commit(&mut self, group: Group) -> Commit {
        let bytes = group.bytes;
        let records = group.records.into_iter().map(data_record).collect();
        let mut progress = Vec::new();
        for ((gateway, stream), head) in group.heads {
            progress.push(ProgressRecord { gateway, stream, value: Progress::Head(head) });
        }
        for (key, heard) in group.ledgers {
            let counted = counted(self.counted.get(&key), heard);
            self.counted.insert(key.clone(), counted.clone());
            let (gateway, stream) = key;
            progress.push(ProgressRecord { gateway, stream, value: Progress::Counted(counted) });
        }
        for stranger in group.strangers {
            let key = (stranger.gateway.clone(), stranger.stream.clone());
            let times = self.quarantined.get(&key).map_or(0, |q| q.times) + 1;
            self.quarantined.insert(key.clone(), quarantined(stranger, times));
            let (gateway, stream) = key.clone();
            progress.retain(|r| {
                !(matches!(r.value, Progress::Quarantined(_))
                    && (&r.gateway, &r.stream) == (&gateway, &stream))
            });
            let value = Progress::Quarantined(self.quarantined[&key].clone());
            progress.push(ProgressRecord { gateway, stream, value });
        }
        Commit { records, progress, bytes }
    }
}

fn data_record(a: Accepted) -> DataRecord {
    let h = a.batch.header;
    let headers = RecordHeaders {
        content_type: ContentType::ArrowStream,
        schema: h.schema,
        gateway: a.gateway,
        incarnation: h.incarnation,
        first_seq: h.first,
        last_seq: h.last,
        rows: u32::try_from(h.rows()).unwrap_or(u32::MAX),
        prev_hash: h.prev_hash,
        hash: h.hash,
        produced_at_ns: a.at_ns,
        stream: h.stream,
    };
    DataRecord { headers, bytes: a.batch.bytes }
}

/// The newest counts, with the newest losses, of which the last one known may have grown; what an earlier life of the folder counted is added up beside them.
fn counted(before: Option<&Counted>, heard: Heard) -> Counted {
    let same = before.filter(|b| b.incarnation == heard.incarnation);
    let mut losses = same.map(|b| b.losses.clone()).unwrap_or_default();
    let first = heard.ledger.losses.first().map_or(u64::MAX, |l| l.ordinal);
    losses.retain(|l| l.ordinal < first);
    losses.extend(heard.ledger.losses.into_iter().map(|l| LossEntry {
        ordinal: l.ordinal,
        first_seq: l.first,
        last_seq: l.last,
        first_time_ns: l.first_time_ns,
        last_time_ns: l.last_time_ns,
        rows: l.rows,
        reason: l.reason,
    }));
    let too_many = losses.len().saturating_sub(LOSS_ENTRIES_MAX);
    losses.drain(..too_many);
    let mut earlier = before.map_or(Counts::default(), |b| b.earlier);
    if let Some(other) = before.filter(|b| b.incarnation != heard.incarnation) {
        earlier.add(&other.counts);
    }
    Counted {
        incarnation: heard.incarnation,
        counts: heard.ledger.counts,
        earlier,
        as_of: heard.ledger.as_of,
        heard_at_ns: heard.at_ns,
        losses,
    }
}

fn quarantined(s: Stranger, times: u64) -> Quarantined {
    Quarantined {
        incarnation: s.incarnation,
        first: s.first,
        last: s.last,
        hash: s.hash,
        reason: s.reason,
        at_ns: s.at_ns,
        times,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::link::{
        limits::PROTOCOL,
        message::{Batch, ToGateway},
    };
    use bytes::Bytes;
    use record::{BlockHeader, Digest, Incarnation, Seq, chain_hash};

    const PACE: GroupPace = GroupPace { interval_ns: 100, bytes_max: 20, blocks_of_one: 100 };
    const SESSION: SessionId = SessionId(1);

    fn stream() -> StreamName {
        StreamName::new("raw").expect("valid")
    }

    fn hello() -> Hello {
        Hello {
            gateway: GatewayId::new("plant-7").expect("valid"),
            incarnation: Incarnation(1),
            protocol: PROTOCOL,
            software: String::new(),
            streams: Vec::new(),
        }
    }

    /// An order with a session, and the head of the chain that the test goes on from.
    fn begun() -> (Order, (Seq, Digest)) {
        let mut order = Order::new(PACE, Vec::new());
        let outputs = order.input(SESSION, Said::Hello(hello(), Vec::new()), 0, 0);
        assert!(matches!(outputs[..], [Output::Send(SESSION, ToGateway::Welcome(_))]));
        (order, Default::default())
    }

    fn block(head: &mut (Seq, Digest)) -> Said {
        let (first, bytes) = (head.0.next(), Bytes::from_static(b"8 bytes."));
        let hash = chain_hash(&head.1, &stream(), Incarnation(1), first, first, 1, &bytes);
        let header = BlockHeader {
            stream: stream(),
            incarnation: Incarnation(1),
            first,
            last: first,
            schema: 1,
            prev_hash: head.1,
            hash,
        };
        *head = (first, hash);
        Said::Batch(Hashed::of(Batch { header, bytes }))
    }

    #[test]
    fn a_group_waits_for_its_interval_and_is_acknowledged_after_its_commit() {
        let (mut order, mut head) = begun();
        assert_eq!(order.step(5), Step::Take(None), "nothing waits");
        assert_eq!(order.input(SESSION, block(&mut head), 10, 0), []);
        order.input(SESSION, block(&mut head), 60, 0);
        assert_eq!(order.step(109), Step::Take(Some(110)), "the first part began to wait at 10");
        let Step::Commit(commit) = order.step(110) else { panic!("a group is due") };
        assert_eq!((commit.records.len(), commit.progress.len(), commit.bytes), (2, 1, 16));
        let outputs = order.on_commit(Ok(())).expect("committed");
        assert!(
            matches!(&outputs[..], [Output::Send(SESSION, ToGateway::Acks(acks))] if acks[0].last == Seq(2))
        );
        assert_eq!(order.step(1_000), Step::Take(None));
    }

    #[test]
    fn a_full_group_does_not_wait() {
        let (mut order, mut head) = begun();
        for _ in 0..3 {
            assert_eq!(order.step(10), Step::Take((head.0.0 > 0).then_some(110)));
            order.input(SESSION, block(&mut head), 10, 0);
        }
        assert!(matches!(order.step(10), Step::Commit(_)));
        assert_eq!(order.step(10), Step::Take(None), "what was taken is under way");
    }

    #[test]
    fn a_session_that_waits_for_its_acknowledgements_does_not_wait_for_others() {
        let pace = GroupPace { bytes_max: 1_000, blocks_of_one: 2, ..PACE };
        let mut order = Order::new(pace, Vec::new());
        let mut head = Default::default();
        for (session, name) in [(SESSION, "plant-7"), (SessionId(2), "plant-8")] {
            let hello = Hello { gateway: GatewayId::new(name).expect("valid"), ..hello() };
            order.input(session, Said::Hello(hello, Vec::new()), 0, 0);
        }
        order.input(SESSION, block(&mut head), 10, 0);
        order.input(SessionId(2), block(&mut Default::default()), 10, 0);
        assert_eq!(order.step(10), Step::Take(Some(110)), "one block of each");
        order.input(SESSION, block(&mut head), 10, 0);
        let Step::Commit(commit) = order.step(10) else { panic!("two blocks of one") };
        assert_eq!(commit.records.len(), 3);
        order.on_commit(Ok(())).expect("committed");
        order.input(SESSION, block(&mut head), 10, 0);
        assert_eq!(order.step(10), Step::Take(Some(110)), "they are counted anew");
    }

    #[test]
    fn a_commit_in_doubt_acknowledges_nothing_and_the_next_claim_tells_what_is_stored() {
        let (mut order, mut head) = begun();
        order.input(SESSION, block(&mut head), 10, 0);
        let Step::Commit(commit) = order.step(110) else { panic!("a group is due") };
        assert_eq!(order.on_commit(Err(CommitError::Fenced)), Err(CommitError::Fenced));
        // It was stored all the same: the block is a repeat for the next order.
        let mut next = Order::new(PACE, commit.progress);
        let mut again = begun().1;
        next.input(SESSION, Said::Hello(hello(), Vec::new()), 0, 0);
        let outputs = next.input(SESSION, block(&mut again), 10, 0);
        assert!(
            matches!(&outputs[..], [Output::Send(SESSION, ToGateway::Acks(acks))] if acks[0].last == Seq(1))
        );
        assert_eq!(next.step(1_000), Step::Take(None));
    }
}
