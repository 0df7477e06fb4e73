//! One shard's order: what is new goes into groups, groups into the log, acknowledgements to the sessions.
//!
//! One task owns the [`Receiver`] of its gateways, from one claim of the shard until it is asked to let go or a commit
//! is in doubt. A group is committed when its first block has waited for the commit interval or the group is full; while
//! the log works, sessions wait in a bounded queue.

use super::{LinkConfig, LinkParts, gateways::Connection};
use crate::{
    limits::LOSS_ENTRIES_MAX,
    log::{
        CommitError, ContentType, Counted, DataRecord, LossEntry, Progress, ProgressRecord, Quarantined,
        RecordHeaders, Shard,
    },
};
use ::link::{
    message::{Batch, Hello, Lost, Refuse, StreamLedger, ToGateway},
    receive::{Accepted, Group, Heard, Known, Output, Receiver, SessionId, Stranger},
    server::{Goodbye, Outbound},
};
use record::{Counts, GatewayId, StreamName};
use std::{collections::BTreeMap, sync::atomic::Ordering::Relaxed, time::Duration};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

/// What sessions say.
pub(super) enum Input {
    Hello {
        session: SessionId,
        hello: Hello,
        refused: Vec<Refuse>,
        outbound: Outbound,
        closed: CancellationToken,
        connection: Connection,
    },
    Batch(SessionId, Batch),
    Lost(SessionId, Lost),
    Ledger(SessionId, Vec<StreamLedger>),
    Refuse(SessionId, Refuse),
    Gone(SessionId),
}

struct Session {
    gateway: GatewayId,
    outbound: Outbound,
    closed: CancellationToken,
}

type Key = (GatewayId, StreamName);

pub(super) struct Committer {
    shard: Shard,
    parts: LinkParts,
    interval: Duration,
    bytes_max: usize,
    inputs: mpsc::Receiver<Input>,
    receiver: Receiver,
    sessions: BTreeMap<SessionId, Session>,
    counted: BTreeMap<Key, Counted>,
    quarantined: BTreeMap<Key, Quarantined>,
    /// When the waiting group is to be committed.
    due: Option<Instant>,
}

/// Why a committer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ended {
    /// It was asked to.
    Asked,
    /// A group was not committed for certain: only a new claim tells what is stored.
    InDoubt(CommitError),
}

impl Committer {
    /// Begins from what a claim of the shard has found.
    pub(super) fn new(
        shard: Shard,
        parts: LinkParts,
        config: &LinkConfig,
        inputs: mpsc::Receiver<Input>,
        stored: Vec<ProgressRecord>,
    ) -> Self {
        parts.gateways.stored(&stored);
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
        Self {
            shard,
            interval: config.commit_interval,
            bytes_max: config.commit_bytes,
            inputs,
            receiver: Receiver::new(known.into_values()),
            sessions: BTreeMap::new(),
            counted: all_counted,
            quarantined,
            due: None,
            parts,
        }
    }

    /// Works until `stop`, or until a commit is in doubt; then every session of the shard has been ended.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Ended {
        let ended = self.work(&stop).await;
        let why = match &ended {
            Ended::Asked => "another process of central takes over".to_owned(),
            Ended::InDoubt(error) => error.to_string(),
        };
        let ids: Vec<SessionId> = self.sessions.keys().copied().collect();
        for id in ids {
            self.end(id, Goodbye::Busy(why.clone()));
        }
        ended
    }

    async fn work(&mut self, stop: &CancellationToken) -> Ended {
        loop {
            let full = self.receiver.pending().bytes >= self.bytes_max;
            let done = tokio::select! {
                biased;
                () = stop.cancelled() => return Ended::Asked,
                () = at(self.due) => self.commit().await,
                input = self.inputs.recv(), if !full => match input {
                    Some(input) => {
                        self.input(input);
                        Ok(())
                    }
                    // No session can reach it any more.
                    None => return Ended::Asked,
                },
            };
            if let Err(error) = done {
                return self.failed(error);
            }
            let pending = self.receiver.pending();
            if pending.bytes >= self.bytes_max {
                self.due = Some(Instant::now());
            } else if self.due.is_none() && !pending.is_empty() {
                self.due = Some(Instant::now() + self.interval);
            }
        }
    }

    fn input(&mut self, input: Input) {
        let now = self.parts.clock.wall_ns();
        let outputs = match input {
            Input::Hello { session, hello, mut refused, outbound, closed, connection } => {
                let gateway = hello.gateway.clone();
                self.parts.gateways.with(&gateway, |g| {
                    g.connected = Some(connection);
                    g.streams.values_mut().for_each(|s| s.refused = None);
                });
                self.sessions.insert(session, Session { gateway: gateway.clone(), outbound, closed });
                for r in &mut refused {
                    r.expected = self.receiver.expected(&gateway, &r.stream);
                }
                self.receiver.hello(session, &hello, refused, now)
            }
            Input::Batch(session, batch) => {
                self.seen(session, now);
                let repeated = self.receiver.batch(session, batch, now);
                if matches!(repeated[..], [Output::Send(_, ToGateway::Acks(_))]) {
                    self.parts.metrics.repeats.inc();
                }
                repeated
            }
            Input::Lost(session, lost) => {
                if let Some(s) = self.sessions.get(&session) {
                    let (first, last) = (lost.first, lost.last);
                    tracing::error!(gateway = %s.gateway, stream = %lost.stream, %first, %last, reason = lost.reason, "a gateway declares rows lost");
                }
                self.receiver.lost(session, &lost)
            }
            Input::Ledger(session, ledger) => {
                self.seen(session, now);
                self.receiver.ledger(session, ledger, now);
                Vec::new()
            }
            Input::Refuse(session, mut refuse) => {
                if let Some(s) = self.sessions.get(&session) {
                    refuse.expected = self.receiver.expected(&s.gateway, &refuse.stream);
                }
                self.receiver.refuse_stream(session, refuse)
            }
            Input::Gone(session) => {
                self.receiver.disconnected(session);
                self.forget(session);
                Vec::new()
            }
        };
        self.outputs(outputs);
    }

    fn seen(&self, session: SessionId, now: i64) {
        if let Some(s) = self.sessions.get(&session) {
            self.parts.gateways.with(&s.gateway, |g| g.last_seen_ns = Some(now));
        }
    }

    /// Takes a session off the list; the gateway is shown as gone unless a newer session stands.
    fn forget(&mut self, id: SessionId) -> Option<Session> {
        let session = self.sessions.remove(&id)?;
        if !self.sessions.values().any(|s| s.gateway == session.gateway) {
            self.parts.gateways.with(&session.gateway, |g| g.connected = None);
        }
        Some(session)
    }

    fn end(&mut self, id: SessionId, why: Goodbye) {
        if let Some(session) = self.forget(id) {
            session.outbound.goodbye(why);
            session.closed.cancel();
        }
    }

    fn outputs(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Send(id, message) => {
                    let unread = self.sessions.get(&id).is_some_and(|s| s.outbound.send(message).is_err());
                    if unread {
                        self.receiver.disconnected(id);
                        self.end(id, Goodbye::Protocol("the gateway does not read what it is sent".into()));
                    }
                }
                Output::Superseded(id, gateway) => {
                    tracing::info!(%gateway, "a newer session takes over");
                    self.end(id, Goodbye::Superseded);
                }
                Output::Refused(gateway, refuse) => {
                    self.parts.metrics.refused.with(&[refuse.code.name()]).inc();
                    tracing::error!(%gateway, stream = %refuse.stream, reason = refuse.code.name(), expected = %refuse.expected, detail = refuse.message, "a stream is refused");
                    let stream = refuse.stream.clone();
                    self.parts.gateways.with(&gateway, |g| {
                        g.streams.entry(stream).or_default().refused = Some(refuse);
                    });
                }
                Output::Reborn(gateway, stream, incarnation) => {
                    tracing::warn!(%gateway, %stream, %incarnation, "a gateway begins anew: its folder was made again");
                }
            }
        }
    }

    /// Commits what waits, then acknowledges it.
    async fn commit(&mut self) -> Result<(), CommitError> {
        self.due = None;
        if self.receiver.pending().is_empty() {
            return Ok(());
        }
        let group = self.receiver.take_group();
        let (batches, bytes) = (group.records.len() as u64, group.bytes as u64);
        let rows: u64 = group.records.iter().map(|r| r.batch.header.rows()).sum();
        let lost_before = self.lost_rows(group.heads.keys());
        let (records, progress) = self.records(group);
        let started = Instant::now();
        let done = self.parts.log.commit_group(self.shard, records, progress.clone()).await;
        let metrics = &self.parts.metrics;
        metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
        done?;
        metrics.commits.inc();
        metrics.batches.inc_by(batches);
        metrics.rows.inc_by(rows);
        metrics.bytes.inc_by(bytes);
        if batches > 0 {
            metrics.last_batch_ns.store(self.parts.clock.wall_ns(), Relaxed);
        }
        self.parts.gateways.stored(&progress);
        let keys = progress.iter().filter(|r| matches!(r.value, Progress::Head(_)));
        let keys: Vec<Key> = keys.map(|r| (r.gateway.clone(), r.stream.clone())).collect();
        let lost = self.lost_rows(keys.iter()).saturating_sub(lost_before);
        self.parts.metrics.lost_rows.inc_by(lost);
        let outputs = self.receiver.committed();
        self.outputs(outputs);
        Ok(())
    }

    fn lost_rows<'a>(&self, keys: impl Iterator<Item = &'a Key>) -> u64 {
        let of = |(g, s): &Key| {
            let head = |g: &mut super::GatewayState| Some(g.streams.get(s)?.head.as_ref()?.lost);
            self.parts.gateways.with(g, head).unwrap_or(0)
        };
        keys.map(of).sum()
    }

    /// Nothing is acknowledged; every gateway of the shard comes back and sends again what the log does not have.
    fn failed(&self, error: CommitError) -> Ended {
        let reason = match &error {
            CommitError::Full { .. } => "full",
            CommitError::Fenced => "fenced",
            CommitError::Unknown(_) => "unknown",
            CommitError::Refused(_) => "refused",
        };
        self.parts.metrics.commit_failures.with(&[reason]).inc();
        tracing::error!(shard = %self.shard, %error, "a group was not committed; its gateways will send it again");
        Ended::InDoubt(error)
    }

    /// A group as the log takes it.
    fn records(&mut self, group: Group) -> (Vec<DataRecord>, Vec<ProgressRecord>) {
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
        (records, progress)
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
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
