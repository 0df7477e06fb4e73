//! A log like Kafka's: partitions with transactions, progress, owners' epochs, a group's offsets.
//!
//! - A transaction is open, then decided; its markers are written to each partition it touched, one by one and maybe much
//!   later. Markers and aborted records take offsets, so that what a reader sees has gaps.
//! - A committed-only reader sees nothing behind the first transaction of the partition that has no marker yet.
//! - A producer's epoch fences the ones before. A new one waits until what the old one left is settled.
//! - Offsets are taken from a member of the present generation, whoever owns the partition.
//!
//! The broker itself does not fail: that is the affair of its replicas. Requests to it and answers get lost.

use crate::{
    event::{Answer, Asker, Event},
    mutant::Mutant,
    schedule::{MS, SECOND},
    seat::{Group, Kind},
    world::World,
};
use central::log::{
    CommitError, Committed, DataRecord, Offset, ProgressKey, ProgressRecord, StoredRecord, partition_of,
};
use std::collections::BTreeMap;

/// After this the broker ends a transaction that nobody goes on with.
const TRANSACTION: u64 = 10 * SECOND;

/// What a client asks of the broker.
#[derive(Debug)]
pub(crate) enum Request {
    /// A new producer of a shard, which fences all before it.
    Init(Asker),
    /// The same, asked again until the old transactions are settled.
    Settle(Asker, u64),
    Progress(Asker),
    /// The owner of a shard tells where it is.
    Publish(Asker, u64),
    /// Records and progress under an epoch; only the first of them arrive when `cut` is set.
    Produce {
        asker: Asker,
        epoch: u64,
        records: Vec<DataRecord>,
        progress: Vec<ProgressRecord>,
        cut: bool,
    },
    /// The end of the epoch's transaction.
    End(Asker, u64),
    /// A marker is written.
    Marker {
        transaction: usize,
        partition: Option<usize>,
    },
    /// The time of a transaction is over.
    Expire(usize),
    /// Records from an offset on.
    Read(Asker, Offset, usize),
    Offset(Asker),
    CommitOffset {
        asker: Asker,
        member: u64,
        generation: u64,
        committed: Committed,
    },
    /// A member is missed.
    Missed(Kind, u64, u32),
}

#[derive(Debug)]
struct Transaction {
    shard: u32,
    epoch: u64,
    committed: Option<bool>,
    /// Data partitions, and the shard's progress as `None`, that wait for their marker.
    unmarked: Vec<Option<usize>>,
}

#[derive(Debug)]
struct Slot {
    transaction: usize,
    /// None for a marker.
    record: Option<StoredRecord>,
}

#[derive(Debug, Default)]
pub(crate) struct Partition {
    slots: Vec<Slot>,
    /// Transactions without their marker here, and where they began.
    open: BTreeMap<usize, u64>,
}

#[derive(Debug, Default)]
pub(crate) struct Shard {
    epoch: u64,
    /// The open transaction of each epoch; more than one only where nobody is fenced.
    open: BTreeMap<u64, usize>,
    progress: Vec<(usize, ProgressRecord)>,
    /// The link process that told last that it is the owner.
    pub(crate) owner: Option<usize>,
}

#[derive(Debug)]
pub(crate) struct Broker {
    pub(crate) partitions: Vec<Partition>,
    pub(crate) shards: Vec<Shard>,
    transactions: Vec<Transaction>,
    pub(crate) link: Group,
    pub(crate) sink: Group,
    pub(crate) offsets: Vec<Option<Committed>>,
}

impl Broker {
    pub(crate) fn new(partitions: u32, shards: u32) -> Self {
        Self {
            partitions: (0..partitions).map(|_| Partition::default()).collect(),
            shards: (0..shards).map(|_| Shard::default()).collect(),
            transactions: Vec::new(),
            link: Group::new(shards),
            sink: Group::new(partitions),
            offsets: vec![None; partitions as usize],
        }
    }

    /// One past the last record that a committed-only reader may see.
    pub(crate) fn stable(&self, partition: u32) -> Offset {
        let p = &self.partitions[partition as usize];
        Offset(p.open.values().min().copied().unwrap_or(p.slots.len() as u64))
    }

    fn committed(&self, transaction: usize) -> bool {
        self.transactions[transaction].committed == Some(true)
    }

    /// Committed records from an offset on, in order.
    pub(crate) fn records(&self, partition: u32, from: Offset) -> impl Iterator<Item = &StoredRecord> {
        let slots = &self.partitions[partition as usize].slots;
        let (from, to) = (from.0 as usize, self.stable(partition).0 as usize);
        let visible = slots.get(from.min(to)..to).unwrap_or_default();
        visible.iter().filter(|s| self.committed(s.transaction)).filter_map(|s| s.record.as_ref())
    }

    /// Everything that stands in a partition from an offset on, committed or not.
    fn anything(&self, partition: u32, from: Offset) -> impl Iterator<Item = &StoredRecord> {
        let slots = &self.partitions[partition as usize].slots;
        slots.iter().skip(from.0 as usize).filter_map(|s| s.record.as_ref())
    }

    /// The newest committed progress of each key.
    pub(crate) fn progress(&self, shard: u32) -> BTreeMap<ProgressKey, ProgressRecord> {
        let all = &self.shards[shard as usize].progress;
        let visible = all.iter().filter(|(t, _)| {
            let transaction = &self.transactions[*t];
            transaction.committed == Some(true) && !transaction.unmarked.contains(&None)
        });
        visible.map(|(_, r)| (r.key(), r.clone())).collect()
    }

    fn settled(&self, shard: u32) -> bool {
        !self.transactions.iter().any(|t| t.shard == shard && t.committed.is_some() && !t.unmarked.is_empty())
    }

    /// Whether all is decided and marked.
    pub(crate) fn quiet(&self) -> bool {
        self.transactions.iter().all(|t| t.committed.is_some() && t.unmarked.is_empty())
    }

    fn begin(&mut self, shard: u32, epoch: u64) -> (usize, bool) {
        if let Some(open) = self.shards[shard as usize].open.get(&epoch) {
            return (*open, false);
        }
        self.transactions.push(Transaction { shard, epoch, committed: None, unmarked: Vec::new() });
        let transaction = self.transactions.len() - 1;
        self.shards[shard as usize].open.insert(epoch, transaction);
        (transaction, true)
    }

    fn append(&mut self, transaction: usize, partition: usize, record: DataRecord) {
        let p = &mut self.partitions[partition];
        let offset = p.slots.len() as u64;
        p.open.entry(transaction).or_insert(offset);
        let DataRecord { headers, bytes } = record;
        let record = Some(StoredRecord { offset: Offset(offset), headers, bytes });
        p.slots.push(Slot { transaction, record });
        self.touch(transaction, Some(partition));
    }

    fn touch(&mut self, transaction: usize, place: Option<usize>) {
        let unmarked = &mut self.transactions[transaction].unmarked;
        if !unmarked.contains(&place) {
            unmarked.push(place);
        }
    }
}

impl World {
    pub(crate) fn broker_does(&mut self, request: Request) {
        match request {
            Request::Init(asker) => self.init(asker),
            Request::Settle(asker, epoch) => self.settle(asker, epoch),
            Request::Progress(asker) => {
                let progress = self.read_progress(asker.place);
                self.answer(asker, Answer::Progress(progress));
            }
            Request::Publish(asker, epoch) => {
                let fresh = self.is_current(asker.place, epoch);
                if let (true, crate::event::Process::Link(n)) = (fresh, asker.address.process) {
                    self.broker.shards[asker.place as usize].owner = Some(n);
                }
                self.answer(asker, Answer::Published(fresh));
            }
            Request::Produce { .. } => self.produce(request),
            Request::End(asker, epoch) => self.end(asker, epoch),
            Request::Marker { transaction, partition } => self.mark(transaction, partition),
            Request::Expire(transaction) => {
                let t = &self.broker.transactions[transaction];
                let (shard, epoch, open) = (t.shard, t.epoch, t.committed.is_none());
                if open {
                    self.say(|_| format!("the broker aborts transaction {transaction} of shard {shard}"));
                    let s = &mut self.broker.shards[shard as usize];
                    s.epoch = s.epoch.max(epoch + 1);
                    self.decide(transaction, false);
                }
            }
            Request::Read(asker, from, records_max) => {
                let found: Vec<StoredRecord> = if self.mutant == Some(Mutant::SinkReadsUncommitted) {
                    self.broker.anything(asker.place, from).take(records_max).cloned().collect()
                } else {
                    self.broker.records(asker.place, from).take(records_max).cloned().collect()
                };
                self.answer(asker, Answer::Records(found));
            }
            Request::Offset(asker) => {
                let committed = self.broker.offsets[asker.place as usize].clone();
                self.answer(asker, Answer::Committed(committed));
            }
            Request::CommitOffset { asker, member, generation, committed } => {
                let unfenced = self.mutant == Some(Mutant::OffsetUnfenced);
                let admitted = unfenced || self.broker.sink.admits(member, generation);
                self.say(|_| {
                    let word = if admitted { "takes" } else { "refuses" };
                    format!(
                        "the broker {word} offset {} {:?} of partition {} from member {member}",
                        committed.offset, committed.metadata, asker.place
                    )
                });
                let before =
                    self.broker.offsets[asker.place as usize].as_ref().map_or(Offset(0), |c| c.offset);
                if admitted && committed.offset < before {
                    let text = format!("partition {}: from {before} to {}", asker.place, committed.offset);
                    self.fail("an offset goes back", text);
                }
                if admitted {
                    self.broker.offsets[asker.place as usize] = Some(committed);
                }
                let result = if admitted { Ok(()) } else { Err(CommitError::Fenced) };
                self.answer(asker, Answer::OffsetCommitted(result));
            }
            Request::Missed(kind, member, pause) => self.missed(kind, member, pause),
        }
    }

    /// Whether transactions of the epoch may go on.
    fn is_current(&self, shard: u32, epoch: u64) -> bool {
        self.mutant == Some(Mutant::NoFencing) || self.broker.shards[shard as usize].epoch == epoch
    }

    fn init(&mut self, asker: Asker) {
        let s = &mut self.broker.shards[asker.place as usize];
        if self.mutant == Some(Mutant::ClaimWithoutInit) && s.epoch > 0 {
            let epoch = s.epoch;
            return self.answer(asker, Answer::Initialised(epoch));
        }
        s.epoch += 1;
        let epoch = s.epoch;
        if self.mutant != Some(Mutant::NoFencing) {
            for transaction in std::mem::take(&mut s.open).into_values() {
                self.decide(transaction, false);
            }
        }
        self.settle(asker, epoch);
    }

    fn settle(&mut self, asker: Asker, epoch: u64) {
        if self.broker.settled(asker.place) {
            self.answer(asker, Answer::Initialised(epoch));
        } else {
            self.broker_later(20 * MS, Request::Settle(asker, epoch));
        }
    }

    fn read_progress(&mut self, shard: u32) -> Vec<ProgressRecord> {
        let newest = |all: &mut dyn Iterator<Item = &(usize, ProgressRecord)>| {
            let newest: BTreeMap<ProgressKey, ProgressRecord> =
                all.map(|(_, r)| (r.key(), r.clone())).collect();
            newest.into_values().collect()
        };
        let all = &self.broker.shards[shard as usize].progress;
        match self.mutant {
            Some(Mutant::ClaimUncommitted) => newest(&mut all.iter()),
            Some(Mutant::ClaimShort) => {
                let read = all.len().saturating_sub(self.chance.below(4) as usize);
                newest(&mut all[..read].iter().filter(|(t, _)| self.broker.committed(*t)))
            }
            _ => self.broker.progress(shard).into_values().collect(),
        }
    }

    fn produce(&mut self, request: Request) {
        let Request::Produce { asker, epoch, mut records, mut progress, cut } = request else { return };
        let shard = asker.place;
        if !self.is_current(shard, epoch) {
            return self.answer(asker, Answer::Produced(Err(CommitError::Fenced)));
        }
        if !self.broker.settled(shard) {
            let again = Request::Produce { asker, epoch, records, progress, cut };
            return self.broker_later(10 * MS, again);
        }
        if cut {
            let arrive = self.chance.below(records.len() as u64 + 1) as usize;
            records.truncate(arrive);
            progress.clear();
        }
        let (transaction, new) = self.broker.begin(shard, epoch);
        if new {
            self.broker_later(TRANSACTION, Request::Expire(transaction));
        }
        self.say(|_| {
            format!(
                "transaction {transaction} of shard {shard} epoch {epoch}: {} records, {} progress",
                records.len(),
                progress.len()
            )
        });
        for record in records {
            let partition = partition_of(&record.headers.gateway, self.broker.partitions.len() as u32);
            self.broker.append(transaction, partition.0 as usize, record);
        }
        if !progress.is_empty() {
            self.broker.touch(transaction, None);
            let all = &mut self.broker.shards[shard as usize].progress;
            all.extend(progress.into_iter().map(|p| (transaction, p)));
        }
        if !cut {
            self.answer(asker, Answer::Produced(Ok(())));
        }
    }

    fn end(&mut self, asker: Asker, epoch: u64) {
        let open = self.broker.shards[asker.place as usize].open.get(&epoch).copied();
        let result = match open {
            Some(transaction) if self.is_current(asker.place, epoch) => {
                self.decide(transaction, true);
                Ok(())
            }
            _ => Err(CommitError::Fenced),
        };
        self.answer(asker, Answer::Ended(result));
    }

    fn decide(&mut self, transaction: usize, commit: bool) {
        let t = &mut self.broker.transactions[transaction];
        if t.committed.is_some() {
            return;
        }
        t.committed = Some(commit);
        let (shard, epoch, places) = (t.shard, t.epoch, t.unmarked.clone());
        self.broker.shards[shard as usize].open.remove(&epoch);
        self.say(|_| format!("transaction {transaction} of shard {shard} is decided: commit {commit}"));
        for partition in places {
            let late = self.chance.strikes(crate::fault::Fault::MarkerLate);
            let within = if late {
                self.chance.between(100 * MS, 5 * SECOND)
            } else {
                self.chance.between(MS, 5 * MS)
            };
            self.broker_later(within, Request::Marker { transaction, partition });
        }
    }

    fn mark(&mut self, transaction: usize, partition: Option<usize>) {
        self.broker.transactions[transaction].unmarked.retain(|p| *p != partition);
        if let Some(partition) = partition {
            let p = &mut self.broker.partitions[partition];
            p.open.remove(&transaction);
            p.slots.push(Slot { transaction, record: None });
            self.tail_moved(partition as u32);
        }
    }

    pub(crate) fn broker_later(&mut self, within: u64, request: Request) {
        let at = self.schedule.now() + within;
        self.schedule.at(at, Event::Broker(request));
    }
}
