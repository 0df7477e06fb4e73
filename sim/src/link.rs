//! The link role's processes: the real [`Order`], one for each shard that a process has claimed, and the sessions.

use crate::{
    broker::Request,
    event::{Answer, Asker, Call, Down, Process},
    fault::Fault,
    mutant::Mutant,
    schedule::{MS, SECOND},
    seat::{Kind, Seat},
    sink::ns,
    world::World,
};
use central::{
    limits::{CLAIM_BACKOFF_MAX, CLAIM_BACKOFF_MIN},
    link::core::{Commit, GroupPace, Order, Said, Step},
    log::{CommitError, DataRecord, Progress, ProgressRecord, shard_of},
};
use link::{
    message::{Batch, Hashed, ToCentral, ToGateway},
    receive::{Output, SessionId},
};
use record::{Digest, GatewayId, Seq, StreamName, chain_hash};
use std::collections::{BTreeMap, VecDeque};

/// What the client gives a step of a claim or a commit.
const TIMEOUT: u64 = 10 * SECOND;

#[derive(Debug, Default)]
pub(crate) struct Link {
    pub(crate) seat: Seat,
    shards: BTreeMap<u32, ShardTask>,
    /// Standing sessions: the connection, and the shard, of each.
    sessions: BTreeMap<SessionId, (usize, u32)>,
    by_connection: BTreeMap<usize, SessionId>,
    last_session: u64,
}

#[derive(Debug)]
struct ShardTask {
    lease: u64,
    /// The number of the question, or of the moment, that it waits for.
    question: u64,
    epoch: u64,
    /// What the claim has read.
    stored: Vec<ProgressRecord>,
    open: Option<OpenShard>,
    pause: u64,
    revoked: bool,
}

#[derive(Debug)]
struct OpenShard {
    order: Order,
    /// What sessions said while the log worked.
    inputs: VecDeque<(SessionId, Input)>,
    committing: bool,
    /// Transactions of the group that are still to come; one for all, unless a mutant splits it.
    parts: VecDeque<(Vec<DataRecord>, Vec<ProgressRecord>)>,
    /// The mutant has acknowledged the group already.
    acknowledged: bool,
    heads: Heads,
}

#[derive(Debug)]
enum Input {
    Said(Said),
    Gone,
}

impl World {
    /// A link process begins.
    pub(crate) fn link_starts(&mut self, n: usize) {
        let address = self.address(Process::Link(n));
        self.links[n] = Link::default();
        self.links[n].seat.member = self.join(address);
    }

    pub(crate) fn link_hears(&mut self, n: usize, call: Call) {
        match call {
            Call::Up(connection, message) => self.session_says(n, connection, message),
            Call::Gone(connection) => {
                if let Some(id) = self.links[n].by_connection.remove(&connection)
                    && let Some((_, shard)) = self.links[n].sessions.remove(&id)
                {
                    self.put(n, shard, id, Input::Gone);
                }
            }
            Call::Wake(shard, question) if self.asked(n, shard, question) => self.shard_works(n, shard),
            Call::Answer(shard, question, answer) if self.asked(n, shard, question) => {
                self.shard_hears(n, shard, answer);
            }
            _ => {}
        }
    }

    fn asked(&self, n: usize, shard: u32, question: u64) -> bool {
        self.links[n].shards.get(&shard).is_some_and(|t| t.question == question)
    }

    /// A shard is owned under a new lease: it is claimed when what an older one began is over.
    pub(crate) fn shard_begins(&mut self, n: usize, shard: u32, lease: u64) {
        if self.links[n].shards.contains_key(&shard) {
            return;
        }
        let task = ShardTask {
            lease,
            question: 0,
            epoch: 0,
            stored: Vec::new(),
            open: None,
            pause: ns(CLAIM_BACKOFF_MIN),
            revoked: false,
        };
        self.links[n].shards.insert(shard, task);
        self.claim(n, shard);
    }

    /// The shard is taken back: at once, unless a commit is under way.
    pub(crate) fn shard_revoked(&mut self, n: usize, shard: u32) {
        self.links[n].seat.owned.remove(&shard);
        let committing = |t: &&mut ShardTask| t.open.as_ref().is_some_and(|o| o.committing);
        match self.links[n].shards.get_mut(&shard).filter(committing) {
            Some(task) => task.revoked = true,
            None => self.shard_ends(n, shard),
        }
        // The committer ends behind it; the group does not wait for that.
        let member = self.links[n].seat.member;
        self.let_go(Kind::Link, member, shard);
    }

    fn shard_ends(&mut self, n: usize, shard: u32) {
        self.say(|_| format!("link {n} ends shard {shard}"));
        self.end_sessions(n, shard);
        self.links[n].shards.remove(&shard);
        if let Some(lease) = self.links[n].seat.owned.get(&shard).copied() {
            self.shard_begins(n, shard, lease);
        }
    }

    /// Everything that the process had is gone.
    pub(crate) fn link_loses_all(&mut self, n: usize) {
        let all: Vec<u32> = self.links[n].shards.keys().copied().collect();
        self.links[n].seat.owned.clear();
        for shard in all {
            self.shard_revoked(n, shard);
        }
    }

    fn end_sessions(&mut self, n: usize, shard: u32) {
        let ids: Vec<SessionId> =
            self.links[n].sessions.iter().filter(|(_, (_, s))| *s == shard).map(|(id, _)| *id).collect();
        for id in ids {
            self.end_session(n, id, true);
        }
    }

    fn end_session(&mut self, n: usize, id: SessionId, busy: bool) {
        if let Some((connection, _)) = self.links[n].sessions.remove(&id) {
            self.links[n].by_connection.remove(&connection);
            self.send_down(connection, Down::Goodbye(busy));
        }
    }

    fn claim(&mut self, n: usize, shard: u32) {
        self.ask(n, shard, Request::Init);
    }

    /// Asks the broker something for a shard; the answer may not come.
    fn ask(&mut self, n: usize, shard: u32, request: impl FnOnce(Asker) -> Request) {
        let mut asker = self.asker(n, shard);
        let question = asker.question;
        if self.chance.strikes(Fault::ClaimUnanswered) {
            asker.heard = false;
            self.call(TIMEOUT, asker.address, Call::Answer(shard, question, Answer::TimedOut));
        }
        let within = self.chance.between(MS, 10 * MS);
        self.broker_later(within, request(asker));
    }

    fn asker(&mut self, n: usize, shard: u32) -> Asker {
        let question = self.number();
        let address = self.address(Process::Link(n));
        if let Some(task) = self.links[n].shards.get_mut(&shard) {
            task.question = question;
        }
        self.stepped(address);
        Asker { address, place: shard, question, heard: true }
    }

    fn shard_hears(&mut self, n: usize, shard: u32, answer: Answer) {
        let Some(task) = self.links[n].shards.get_mut(&shard) else { return };
        match answer {
            Answer::Initialised(epoch) => {
                task.epoch = epoch;
                self.ask(n, shard, Request::Progress);
            }
            Answer::Progress(stored) => {
                task.stored = stored;
                let epoch = task.epoch;
                self.ask(n, shard, |asker| Request::Publish(asker, epoch));
            }
            Answer::Published(current) => self.claimed(n, shard, current),
            Answer::Produced(result) => self.produced(n, shard, result),
            Answer::Ended(result) => self.ended(n, shard, result),
            Answer::TimedOut if task.open.is_some() => {
                let believes = self.mutant == Some(Mutant::AckInDoubt);
                let doubt = Err(CommitError::Unknown("no answer".into()));
                self.committed(n, shard, if believes { Ok(()) } else { doubt });
            }
            _ => {
                task.pause = (task.pause * 2).min(ns(CLAIM_BACKOFF_MAX));
                self.rest(n, shard);
            }
        }
    }

    fn rest(&mut self, n: usize, shard: u32) {
        let asker = self.asker(n, shard);
        let Some(task) = self.links[n].shards.get_mut(&shard) else { return };
        task.open = None;
        let (pause, revoked) = (task.pause, task.revoked);
        if revoked {
            return self.shard_ends(n, shard);
        }
        self.call(pause, asker.address, Call::Wake(shard, asker.question));
    }

    fn claimed(&mut self, n: usize, shard: u32, current: bool) {
        let pace = GroupPace { interval_ns: self.interval, bytes_max: 300, blocks_of_one: 3 };
        let (wrong, mutant) = (!current, self.mutant);
        let Link { seat, shards, .. } = &mut self.links[n];
        let Some(task) = shards.get_mut(&shard) else { return };
        let ours = seat.holds(shard, task.lease);
        if wrong && mutant != Some(Mutant::ClaimWithoutInit) || !ours {
            task.pause = ns(CLAIM_BACKOFF_MAX);
            return self.rest(n, shard);
        }
        task.pause = ns(CLAIM_BACKOFF_MIN);
        let stored = std::mem::take(&mut task.stored);
        task.open = Some(OpenShard {
            heads: if mutant.is_some() { heads(&stored) } else { Heads::new() },
            order: Order::new(pace, stored),
            inputs: VecDeque::new(),
            committing: false,
            parts: VecDeque::new(),
            acknowledged: false,
        });
        let epoch = task.epoch;
        self.say(|_| format!("link {n} has claimed shard {shard} under epoch {epoch}"));
    }

    fn session_says(&mut self, n: usize, connection: usize, message: ToCentral) {
        let known = self.links[n].by_connection.get(&connection).copied();
        let said = match message {
            ToCentral::Hello(hello) => {
                let shard = shard_of(&hello.gateway, self.broker.shards.len() as u32).0;
                let here = self.links[n].shards.get(&shard).is_some_and(|t| t.open.is_some());
                if known.is_some() || !here {
                    let owner = self.broker.shards[shard as usize].owner.filter(|o| *o != n);
                    let down = match owner {
                        Some(owner) => Down::Message(ToGateway::WrongNode { owner: owner.to_string() }),
                        None => Down::Goodbye(true),
                    };
                    return self.send_down(connection, down);
                }
                let me = &mut self.links[n];
                me.last_session += 1;
                let id = SessionId(me.last_session);
                me.sessions.insert(id, (connection, shard));
                me.by_connection.insert(connection, id);
                return self.put(n, shard, id, Input::Said(Said::Hello(hello, Vec::new())));
            }
            ToCentral::Batch(batch) => Said::Batch(Hashed::of(batch)),
            ToCentral::Lost(lost) => Said::Lost(lost),
            ToCentral::Ledger(ledger) => Said::Ledger(ledger),
        };
        if let Some(id) = known
            && let Some((_, shard)) = self.links[n].sessions.get(&id).copied()
        {
            self.put(n, shard, id, Input::Said(said));
        }
    }

    fn put(&mut self, n: usize, shard: u32, id: SessionId, input: Input) {
        if let Some(open) = self.links[n].shards.get_mut(&shard).and_then(|t| t.open.as_mut()) {
            open.inputs.push_back((id, input));
            if !open.committing {
                self.shard_works(n, shard);
            }
        }
    }

    /// Goes on with a shard: takes what was said, until a group is due.
    fn shard_works(&mut self, n: usize, shard: u32) {
        let now = self.schedule.now();
        loop {
            let Some(task) = self.links[n].shards.get_mut(&shard) else { return };
            let Some(open) = &mut task.open else { return self.claim(n, shard) };
            if open.committing {
                return;
            }
            match open.order.step(now) {
                Step::Commit(commit) => return self.commits(n, shard, commit),
                Step::Take(until) => {
                    let Some((id, input)) = open.inputs.pop_front() else {
                        let Some(until) = until else { return };
                        let asker = self.asker(n, shard);
                        return self.call_at(until, asker.address, Call::Wake(shard, asker.question));
                    };
                    let outputs = match input {
                        Input::Said(mut said) => {
                            if let (Some(mutant), Said::Batch(hashed)) = (self.mutant, &mut said) {
                                let mut batch = hashed.clone().into_batch();
                                let connection = self.links[n].sessions.get(&id).map_or(0, |(c, _)| *c);
                                let gateway = self.gateway_of(connection);
                                let Some(open) = self.open(n, shard) else { return };
                                believe(mutant, &mut batch, &gateway, &mut open.heads);
                                *hashed = Hashed::of(batch);
                            }
                            let Some(open) = self.open(n, shard) else { return };
                            open.order.input(id, said, now, now as i64)
                        }
                        Input::Gone => {
                            open.order.gone(id);
                            Vec::new()
                        }
                    };
                    self.link_outputs(n, outputs);
                }
            }
        }
    }

    fn open(&mut self, n: usize, shard: u32) -> Option<&mut OpenShard> {
        self.links[n].shards.get_mut(&shard)?.open.as_mut()
    }

    fn link_outputs(&mut self, n: usize, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Send(id, message) => {
                    if let Some((connection, _)) = self.links[n].sessions.get(&id).copied() {
                        self.send_down(connection, Down::Message(message));
                    }
                }
                Output::Superseded(id, _) => self.end_session(n, id, false),
                Output::Refused(gateway, refuse) => {
                    self.say(|_| format!("link {n} refuses {gateway}/{}: {}", refuse.stream, refuse.message));
                }
                Output::Reborn(..) => {}
            }
        }
    }

    fn commits(&mut self, n: usize, shard: u32, commit: Commit) {
        let mutant = self.mutant;
        let Some(open) = self.open(n, shard) else { return };
        open.committing = true;
        let Commit { records, progress, .. } = commit;
        open.parts = match mutant {
            Some(Mutant::ProgressFirst) => [(Vec::new(), progress), (records, Vec::new())].into(),
            Some(Mutant::ProgressLast) => [(records, Vec::new()), (Vec::new(), progress)].into(),
            _ => [(records, progress)].into(),
        };
        open.acknowledged = mutant == Some(Mutant::AckBeforeCommit);
        if open.acknowledged
            && let Ok(outputs) = open.order.on_commit(Ok(()))
        {
            self.link_outputs(n, outputs);
        }
        self.produces(n, shard);
    }

    /// The next transaction of the group.
    fn produces(&mut self, n: usize, shard: u32) {
        let mut asker = self.asker(n, shard);
        let Some(task) = self.links[n].shards.get_mut(&shard) else { return };
        let epoch = task.epoch;
        let Some((records, progress)) = task.open.as_mut().and_then(|o| o.parts.pop_front()) else {
            return self.committed(n, shard, Ok(()));
        };
        if records.is_empty() && progress.is_empty() {
            return self.produces(n, shard);
        }
        let cut = self.chance.strikes(Fault::ProduceLost);
        if cut {
            asker.heard = false;
            self.call(TIMEOUT, asker.address, Call::Answer(shard, asker.question, Answer::TimedOut));
        }
        let within = self.chance.between(MS, 10 * MS);
        self.broker_later(within, Request::Produce { asker, epoch, records, progress, cut });
    }

    fn produced(&mut self, n: usize, shard: u32, result: Result<(), CommitError>) {
        if result.is_err() {
            return self.committed(n, shard, result);
        }
        let mut asker = self.asker(n, shard);
        let Some(epoch) = self.links[n].shards.get(&shard).map(|t| t.epoch) else { return };
        let lost = self.chance.strikes(Fault::EndLost);
        let late = self.chance.strikes(Fault::EndLate);
        if lost || late || self.chance.strikes(Fault::EndUnanswered) {
            asker.heard = false;
            self.call(TIMEOUT, asker.address, Call::Answer(shard, asker.question, Answer::TimedOut));
        }
        let within = if late {
            self.chance.between(TIMEOUT / 2, 2 * TIMEOUT)
        } else {
            self.chance.between(MS, 20 * MS)
        };
        if !lost {
            self.broker_later(within, Request::End(asker, epoch));
        }
    }

    fn ended(&mut self, n: usize, shard: u32, result: Result<(), CommitError>) {
        let more = self.open(n, shard).is_some_and(|o| !o.parts.is_empty());
        if result.is_ok() && more { self.produces(n, shard) } else { self.committed(n, shard, result) }
    }

    /// The outcome of a group.
    fn committed(&mut self, n: usize, shard: u32, result: Result<(), CommitError>) {
        let Some(task) = self.links[n].shards.get_mut(&shard) else { return };
        let revoked = task.revoked;
        let Some(open) = &mut task.open else { return };
        open.committing = false;
        let told = if open.acknowledged { result.map(|()| Vec::new()) } else { open.order.on_commit(result) };
        match told {
            Ok(outputs) => {
                self.link_outputs(n, outputs);
                if revoked { self.shard_ends(n, shard) } else { self.shard_works(n, shard) }
            }
            Err(error) => {
                self.say(|_| format!("link {n} shard {shard}: a group is not committed: {error}"));
                let fenced = error == CommitError::Fenced;
                if let Some(task) = self.links[n].shards.get_mut(&shard) {
                    task.pause = ns(if fenced { CLAIM_BACKOFF_MAX } else { CLAIM_BACKOFF_MIN });
                }
                self.end_sessions(n, shard);
                self.rest(n, shard);
            }
        }
    }
}

/// Where each stream of a shard stands, for the mutant that takes what does not follow.
type Heads = BTreeMap<(GatewayId, StreamName), (Seq, Digest)>;

/// What the mutants make of a block before the core sees it.
fn believe(mutant: Mutant, batch: &mut Batch, gateway: &GatewayId, heads: &mut Heads) {
    let h = &mut batch.header;
    let key = (gateway.clone(), h.stream.clone());
    let (last, head) = heads.get(&key).copied().filter(|_| h.first.0 > 1).unwrap_or_default();
    let gap = mutant == Mutant::GapTaken && h.first > last.next();
    if gap {
        (h.first, h.prev_hash) = (last.next(), head);
    }
    if gap || mutant == Mutant::HashUnchecked {
        h.hash = chain_hash(&h.prev_hash, &h.stream, h.incarnation, h.first, h.last, h.schema, &batch.bytes);
    }
    if h.first == last.next() {
        heads.insert(key, (h.last, h.hash));
    }
}

fn heads(stored: &[ProgressRecord]) -> Heads {
    let head = |r: &ProgressRecord| match &r.value {
        Progress::Head(h) => Some(((r.gateway.clone(), r.stream.clone()), (h.last, h.hash))),
        _ => None,
    };
    stored.iter().filter_map(head).collect()
}
