//! Carries out what a shard's [`Order`] decides: takes what sessions say, commits groups, sends what there is to say.
//!
//! One task owns the order of its shard, from one claim until it is asked to let go or a commit is in doubt. While the
//! log works, sessions wait in a bounded queue.

use super::{
    LinkConfig, LinkParts,
    core::{Commit, GroupPace, Order, Said, Step},
    gateways::Connection,
};
use crate::{
    limits::BLOCKS_OF_ONE,
    log::{CommitError, Progress, ProgressRecord, Shard},
};
use ::link::{
    message::{Hashed, Hello, Lost, Refuse, StreamLedger, ToGateway},
    receive::{Output, SessionId},
    server::{Goodbye, Outbound},
};
use record::{GatewayId, StreamName};
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
    Batch(SessionId, Hashed),
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
    inputs: mpsc::Receiver<Input>,
    order: Order,
    sessions: BTreeMap<SessionId, Session>,
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
        let interval_ns = u64::try_from(config.commit_interval.as_nanos()).unwrap_or(u64::MAX);
        let pace = GroupPace { interval_ns, bytes_max: config.commit_bytes, blocks_of_one: BLOCKS_OF_ONE };
        let order = Order::new(pace, stored);
        Self { shard, parts, inputs, order, sessions: BTreeMap::new() }
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
        while !stop.is_cancelled() {
            let until = match self.order.step(self.parts.clock.monotonic_ns()) {
                Step::Take(until) => until,
                Step::Commit(commit) => match self.commit(commit).await {
                    Ok(()) => continue,
                    // The log has let go of the shard already.
                    Err(_) if stop.is_cancelled() => return Ended::Asked,
                    Err(error) => return self.failed(error),
                },
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ended::Asked,
                () = self.at(until) => {}
                input = self.inputs.recv() => match input {
                    Some(input) => self.input(input),
                    // No session can reach it any more.
                    None => return Ended::Asked,
                },
            }
        }
        Ended::Asked
    }

    fn at(&self, until: Option<u64>) -> impl Future<Output = ()> + use<> {
        let left = until.map(|at| at.saturating_sub(self.parts.clock.monotonic_ns()));
        async move {
            match left {
                Some(left) => tokio::time::sleep(Duration::from_nanos(left)).await,
                None => std::future::pending().await,
            }
        }
    }

    fn input(&mut self, input: Input) {
        let (now, wall) = (self.parts.clock.monotonic_ns(), self.parts.clock.wall_ns());
        let (session, said) = match input {
            Input::Hello { session, hello, refused, outbound, closed, connection } => {
                let gateway = hello.gateway.clone();
                self.parts.gateways.with(&gateway, |g| {
                    g.connected = Some(connection);
                    g.streams.values_mut().for_each(|s| s.refused = None);
                });
                self.sessions.insert(session, Session { gateway, outbound, closed });
                (session, Said::Hello(hello, refused))
            }
            Input::Batch(session, batch) => {
                self.seen(session, wall);
                let outputs = self.order.input(session, Said::Batch(batch), now, wall);
                if matches!(outputs[..], [Output::Send(_, ToGateway::Acks(_))]) {
                    self.parts.metrics.repeats.inc();
                }
                return self.outputs(outputs);
            }
            Input::Lost(session, lost) => {
                if let Some(s) = self.sessions.get(&session) {
                    let (first, last) = (lost.first, lost.last);
                    tracing::error!(gateway = %s.gateway, stream = %lost.stream, %first, %last, reason = lost.reason, "a gateway declares rows lost");
                }
                (session, Said::Lost(lost))
            }
            Input::Ledger(session, ledger) => {
                self.seen(session, wall);
                (session, Said::Ledger(ledger))
            }
            Input::Refuse(session, refuse) => (session, Said::Refuse(refuse)),
            Input::Gone(session) => {
                self.order.gone(session);
                self.forget(session);
                return;
            }
        };
        let outputs = self.order.input(session, said, now, wall);
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
                        self.order.gone(id);
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

    /// Commits a group, then acknowledges it.
    async fn commit(&mut self, commit: Commit) -> Result<(), CommitError> {
        let Commit { records, progress, bytes } = commit;
        let batches = records.len() as u64;
        let rows: u64 = records.iter().map(|r| u64::from(r.headers.rows)).sum();
        let heads = progress.iter().filter(|r| matches!(r.value, Progress::Head(_)));
        let heads: Vec<Key> = heads.map(|r| (r.gateway.clone(), r.stream.clone())).collect();
        let lost_before = self.lost_rows(&heads);
        let started = Instant::now();
        let outcome = self.parts.log.commit_group(self.shard, records, progress.clone()).await;
        self.parts.metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
        let outputs = self.order.on_commit(outcome)?;
        let metrics = &self.parts.metrics;
        metrics.commits.inc();
        metrics.batches.inc_by(batches);
        metrics.rows.inc_by(rows);
        metrics.bytes.inc_by(bytes as u64);
        if batches > 0 {
            metrics.last_batch_ns.store(self.parts.clock.wall_ns(), Relaxed);
        }
        self.parts.gateways.stored(&progress);
        metrics.lost_rows.inc_by(self.lost_rows(&heads).saturating_sub(lost_before));
        self.outputs(outputs);
        Ok(())
    }

    fn lost_rows(&self, keys: &[Key]) -> u64 {
        let of = |(g, s): &Key| {
            let head = |g: &mut super::GatewayState| Some(g.streams.get(s)?.head.as_ref()?.lost);
            self.parts.gateways.with(g, head).unwrap_or(0)
        };
        keys.iter().map(of).sum()
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
}
