//! Central's end of the link as a state machine without I/O: which block is new, which is a repeat, which cannot be.
//!
//! One receiver serves the gateways of one partition of the log. Accepted blocks gather in a [`Group`]; the driver
//! commits it to the log together with the new heads of the chains and then says [`Receiver::committed`]: only then are
//! they acknowledged. When the outcome of a commit is unknown the receiver is thrown away and made anew from what is
//! stored.
//!
//! For a block whose stream is stored up to `last`:
//!
//! | the block | verdict |
//! | --- | --- |
//! | ends at or before `last`, same hash or too old to be remembered | acknowledged again |
//! | ends at or before `last` with another hash, or begins before and ends behind it | quarantined |
//! | begins behind `last + 1` | refused: gap, with the seq expected |
//! | follows, but names another hash before it, or its bytes are not those of its hash | quarantined: the chain breaks there |
//! | of an incarnation that was replaced, or of a folder older than what is stored | quarantined |
//! | follows | accepted |
//!
//! A gateway has one session; a newer one ends the older. A session is acknowledged only for what it sent itself: the one
//! before it may have been that of another folder, with other rows under the same seqs. It never decodes a block.

use crate::{
    limits::{RECENT_BLOCKS, RETIRED_MAX},
    message::{
        Ack, Batch, Hashed, Hello, Lost, Refuse, RefuseCode, StreamHello, StreamLedger, StreamWelcome,
        ToGateway,
    },
};
use record::{BlockHeader, Digest, GatewayId, Incarnation, Seq, StreamName};
use std::collections::{BTreeMap, HashMap, VecDeque};

/// A connection of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// How far a gateway's stream is stored; committed with the data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The life of the gateway's folder.
    pub incarnation: Incarnation,
    /// The last seq stored (or declared lost); 0 before the first.
    pub last: Seq,
    /// The hash of the block that ends there: the head of the chain.
    pub hash: Digest,
    /// Rows stored in this incarnation.
    pub rows: u64,
    /// Rows of this incarnation that the gateway declared lost after they had a seq.
    pub lost: u64,
    /// Rows stored in the incarnations before.
    pub rows_before: u64,
    /// The incarnations before, oldest first; a block of one of them is refused.
    pub retired: Vec<Incarnation>,
}

impl Head {
    fn new(incarnation: Incarnation) -> Self {
        let hash = Digest::default();
        Self { incarnation, last: Seq(0), hash, rows: 0, lost: 0, rows_before: 0, retired: Vec::new() }
    }

    /// The head of a new life of the same stream.
    fn reborn(&self, incarnation: Incarnation) -> Self {
        let mut next = Self::new(incarnation);
        next.rows_before = self.rows_before + self.rows;
        next.retired.clone_from(&self.retired);
        next.retired.push(self.incarnation);
        let too_many = next.retired.len().saturating_sub(RETIRED_MAX);
        next.retired.drain(..too_many);
        next
    }
}

/// What is stored of a stream when a receiver begins.
#[derive(Debug, Clone)]
pub struct Known {
    /// The gateway.
    pub gateway: GatewayId,
    /// Its stream.
    pub stream: StreamName,
    /// The stored head.
    pub head: Option<Head>,
    /// The newest stored loss entry, and the incarnation whose ledger it is in.
    pub loss: Option<(Incarnation, u64)>,
}

/// A block to be stored.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// The gateway.
    pub gateway: GatewayId,
    /// The block.
    pub batch: Batch,
    /// When it came, wall clock.
    pub at_ns: i64,
}

/// What a gateway said it counted.
#[derive(Debug, Clone)]
pub struct Heard {
    /// The gateway.
    pub gateway: GatewayId,
    /// The life of its folder.
    pub incarnation: Incarnation,
    /// What it counted; only losses that are new, and the newest one known, which may have grown.
    pub ledger: StreamLedger,
    /// When it came, wall clock.
    pub at_ns: i64,
}

/// A block that cannot belong to what is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranger {
    /// The gateway.
    pub gateway: GatewayId,
    /// The stream.
    pub stream: StreamName,
    /// The life that it claims.
    pub incarnation: Incarnation,
    /// Its first seq.
    pub first: Seq,
    /// Its last seq.
    pub last: Seq,
    /// Its hash.
    pub hash: Digest,
    /// What does not fit.
    pub reason: String,
    /// When it came, wall clock.
    pub at_ns: i64,
}

/// What is committed in one step.
#[derive(Debug, Default)]
pub struct Group {
    /// Blocks, in order.
    pub records: Vec<Accepted>,
    /// The heads that they make.
    pub heads: BTreeMap<(GatewayId, StreamName), Head>,
    /// The newest counts of each stream.
    pub ledgers: BTreeMap<(GatewayId, StreamName), Heard>,
    /// What was quarantined.
    pub strangers: Vec<Stranger>,
    /// Bytes of the blocks.
    pub bytes: usize,
}

impl Group {
    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.heads.is_empty() && self.ledgers.is_empty() && self.strangers.is_empty()
    }
}

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this to a session.
    Send(SessionId, ToGateway),
    /// End a session: a newer one of the same gateway came.
    Superseded(SessionId, GatewayId),
    /// For the log and the metrics: a stream was refused.
    Refused(GatewayId, Refuse),
    /// For the log and the metrics: the gateway began a new life.
    Reborn(GatewayId, StreamName, Incarnation),
}

#[derive(Debug)]
struct Session {
    id: SessionId,
    incarnation: Incarnation,
    refused: Vec<StreamName>,
    /// How far it has sent each stream, as far as it was the same as what is stored or will be.
    sent: BTreeMap<StreamName, Seq>,
}

impl Session {
    fn new(id: SessionId, incarnation: Incarnation) -> Self {
        Self { id, incarnation, refused: Vec::new(), sent: BTreeMap::new() }
    }

    fn sends(&mut self, stream: &StreamName, last: Seq) {
        let sent = self.sent.entry(stream.clone()).or_default();
        *sent = last.max(*sent);
    }

    /// What it may hear of a stream that is stored up to here.
    fn ack(&self, stream: &StreamName, stored: &Head) -> Option<Ack> {
        let sent = self.sent.get(stream).filter(|_| stored.incarnation == self.incarnation)?;
        Some(Ack { stream: stream.clone(), last: stored.last.min(*sent) })
    }
}

#[derive(Debug, Default)]
struct Gateway {
    session: Option<Session>,
    streams: BTreeMap<StreamName, Stream>,
}

#[derive(Debug, Default)]
struct Stream {
    /// What is stored.
    committed: Option<Head>,
    /// What will be stored when the pending groups are.
    accepted: Option<Head>,
    /// First, last and hash of the newest accepted blocks, oldest first.
    recent: VecDeque<(Seq, Seq, Digest)>,
    loss_committed: Option<(Incarnation, u64)>,
    loss_accepted: Option<(Incarnation, u64)>,
}

enum Verdict {
    Accept(Head),
    Again,
    Gap(Seq),
    Strange(String),
}

/// The core; see the module.
#[derive(Debug, Default)]
pub struct Receiver {
    gateways: BTreeMap<GatewayId, Gateway>,
    sessions: HashMap<SessionId, GatewayId>,
    pending: Group,
    committing: Vec<(GatewayId, StreamName, Head)>,
    committing_losses: Vec<(GatewayId, StreamName, (Incarnation, u64))>,
}

impl Receiver {
    /// A receiver that goes on from what is stored.
    pub fn new(known: impl IntoIterator<Item = Known>) -> Self {
        let mut me = Self::default();
        for k in known {
            let stream = me.gateways.entry(k.gateway).or_default().streams.entry(k.stream).or_default();
            if k.head.is_some() {
                (stream.committed, stream.accepted) = (k.head.clone(), k.head);
            }
            if k.loss.is_some() {
                (stream.loss_committed, stream.loss_accepted) = (k.loss, k.loss);
            }
        }
        me
    }

    /// A gateway says Hello; `refused` are streams that the schema check refuses.
    pub fn hello(&mut self, id: SessionId, hello: &Hello, refused: Vec<Refuse>, at_ns: i64) -> Vec<Output> {
        let mut out = Vec::new();
        let name = &hello.gateway;
        let gateway = self.gateways.entry(name.clone()).or_default();
        if let Some(old) = gateway.session.take() {
            self.sessions.remove(&old.id);
            out.push(Output::Superseded(old.id, name.clone()));
        }
        self.sessions.insert(id, name.clone());
        for s in &hello.streams {
            gateway.streams.entry(s.stream.clone()).or_default();
        }
        out.push(Output::Send(id, ToGateway::Welcome(gateway.welcome(hello.incarnation))));
        gateway.session = Some(Session::new(id, hello.incarnation));

        let strange = hello.streams.iter().filter_map(|s| {
            let stored = gateway.streams.get(&s.stream)?.accepted.as_ref()?;
            Some((s.clone(), stored.next_seq(), foreign_folder(stored, hello.incarnation, s)?))
        });
        let strange: Vec<_> = strange.collect();
        for r in refused {
            self.refuse(id, name, r, &mut out);
        }
        for (s, expected, reason) in strange {
            self.pending.strangers.push(Stranger {
                gateway: name.clone(),
                stream: s.stream.clone(),
                incarnation: hello.incarnation,
                first: s.last,
                last: s.last,
                hash: s.hash,
                reason: reason.clone(),
                at_ns,
            });
            let code = RefuseCode::Quarantined;
            self.refuse(id, name, Refuse { stream: s.stream, code, expected, message: reason }, &mut out);
        }
        out
    }

    /// A session ended.
    pub fn disconnected(&mut self, id: SessionId) {
        if let Some(name) = self.sessions.remove(&id)
            && let Some(gateway) = self.gateways.get_mut(&name)
        {
            gateway.session.take_if(|s| s.id == id);
        }
    }

    /// A block came.
    pub fn batch(&mut self, id: SessionId, batch: Hashed, at_ns: i64) -> Vec<Output> {
        let mut out = Vec::new();
        let Some((name, _)) = self.taker(id, &batch.header().stream) else { return out };
        let key = batch.header().stream.clone();
        let stream = self.stream(&name, &key);
        let verdict = stream.judge(&batch);
        let batch = batch.into_batch();
        match verdict {
            Verdict::Accept(head) => {
                if stream.accepted.as_ref().is_some_and(|a| a.incarnation != head.incarnation) {
                    stream.recent.clear();
                    out.push(Output::Reborn(name.clone(), key.clone(), head.incarnation));
                }
                stream.remember(batch.header.first, &head);
                self.sends(&name, &key, head.last);
                self.pending.heads.insert((name.clone(), key), head);
                self.pending.bytes += batch.bytes.len();
                self.pending.records.push(Accepted { gateway: name, batch, at_ns });
            }
            Verdict::Again => out.extend(self.again(id, &name, &key, batch.header.last)),
            Verdict::Gap(expected) => {
                let message = format!("the block begins at seq {}", batch.header.first);
                self.refuse(
                    id,
                    &name,
                    Refuse { stream: key, code: RefuseCode::Gap, expected, message },
                    &mut out,
                );
            }
            Verdict::Strange(reason) => {
                let expected = stream.accepted.as_ref().map_or(Seq(1), Head::next_seq);
                self.pending.strangers.push(Stranger {
                    gateway: name.clone(),
                    stream: key.clone(),
                    incarnation: batch.header.incarnation,
                    first: batch.header.first,
                    last: batch.header.last,
                    hash: batch.header.hash,
                    reason: reason.clone(),
                    at_ns,
                });
                let code = RefuseCode::Quarantined;
                self.refuse(id, &name, Refuse { stream: key, code, expected, message: reason }, &mut out);
            }
        }
        out
    }

    /// The gateway declares rows lost that it had given seqs.
    pub fn lost(&mut self, id: SessionId, lost: &Lost) -> Vec<Output> {
        let mut out = Vec::new();
        let Some((name, incarnation)) = self.taker(id, &lost.stream) else { return out };
        let stream = self.stream(&name, &lost.stream);
        let mut head = match &stream.accepted {
            Some(a) if a.incarnation == incarnation => a.clone(),
            Some(a) if a.last.0 > 0 => a.reborn(incarnation),
            _ => Head::new(incarnation),
        };
        if lost.last <= head.last {
            out.extend(self.again(id, &name, &lost.stream, lost.last));
        } else if lost.first > head.next_seq() {
            let message = format!("the lost rows begin at seq {}", lost.first);
            let (code, expected) = (RefuseCode::Gap, head.next_seq());
            self.refuse(id, &name, Refuse { stream: lost.stream.clone(), code, expected, message }, &mut out);
        } else {
            head.lost += lost.last.0 - head.last.0;
            (head.last, head.hash) = (lost.last, lost.hash);
            stream.remember(lost.first, &head);
            self.sends(&name, &lost.stream, head.last);
            self.pending.heads.insert((name, lost.stream.clone()), head);
        }
        out
    }

    /// The gateway says what it counted.
    pub fn ledger(&mut self, id: SessionId, ledgers: Vec<StreamLedger>, at_ns: i64) {
        let Some(name) = self.sessions.get(&id).cloned() else { return };
        let Some(gateway) = self.gateways.get_mut(&name) else { return };
        let Some(incarnation) = gateway.session.as_ref().map(|s| s.incarnation) else { return };
        for mut ledger in ledgers {
            let stream = gateway.streams.entry(ledger.stream.clone()).or_default();
            let mut known = stream.loss_accepted.filter(|(i, _)| *i == incarnation).map_or(0, |(_, n)| n);
            ledger.losses.retain(|l| {
                // The newest entry may have grown since it was told.
                let new = l.ordinal >= known;
                known = known.max(l.ordinal);
                new
            });
            stream.loss_accepted = Some((incarnation, known));
            let key = (name.clone(), ledger.stream.clone());
            let mut heard = Heard { gateway: name.clone(), incarnation, ledger, at_ns };
            if let Some(before) = self.pending.ledgers.remove(&key)
                && before.incarnation == incarnation
            {
                let mut losses = before.ledger.losses;
                let first = heard.ledger.losses.first().map_or(u64::MAX, |l| l.ordinal);
                losses.retain(|l| l.ordinal < first);
                losses.append(&mut heard.ledger.losses);
                heard.ledger.losses = losses;
            }
            self.pending.ledgers.insert(key, heard);
        }
    }

    /// The driver found a reason to take no more of a stream in this session.
    pub fn refuse_stream(&mut self, id: SessionId, refuse: Refuse) -> Vec<Output> {
        let mut out = Vec::new();
        if let Some((name, _)) = self.taker(id, &refuse.stream) {
            self.refuse(id, &name, refuse, &mut out);
        }
        out
    }

    /// Whose session it is, while it stands.
    pub fn gateway(&self, id: SessionId) -> Option<&GatewayId> {
        self.sessions.get(&id)
    }

    /// The seq that a stream waits for.
    pub fn expected(&self, gateway: &GatewayId, stream: &StreamName) -> Seq {
        let known = self.gateways.get(gateway).and_then(|g| g.streams.get(stream));
        known.and_then(|s| s.accepted.as_ref()).map_or(Seq(1), Head::next_seq)
    }

    /// What waits to be committed.
    pub fn pending(&self) -> &Group {
        &self.pending
    }

    /// Takes what waits; the driver commits it and then calls [`Receiver::committed`]. One group at a time.
    pub fn take_group(&mut self) -> Group {
        debug_assert!(self.committing.is_empty(), "one group is committed at a time");
        let group = std::mem::take(&mut self.pending);
        self.committing = group.heads.iter().map(|((g, s), h)| (g.clone(), s.clone(), h.clone())).collect();
        let losses = group.ledgers.keys().filter_map(|(g, s)| {
            Some((g.clone(), s.clone(), self.gateways.get(g)?.streams.get(s)?.loss_accepted?))
        });
        self.committing_losses = losses.collect();
        group
    }

    /// The group is stored: acknowledges it.
    pub fn committed(&mut self) -> Vec<Output> {
        for (name, key, loss) in std::mem::take(&mut self.committing_losses) {
            self.stream(&name, &key).loss_committed = Some(loss);
        }
        let mut acks: BTreeMap<SessionId, Vec<Ack>> = BTreeMap::new();
        for (name, key, head) in std::mem::take(&mut self.committing) {
            let Some(gateway) = self.gateways.get_mut(&name) else { continue };
            let ack = gateway.session.as_ref().and_then(|s| Some((s.id, s.ack(&key, &head)?)));
            if let Some((id, ack)) = ack {
                acks.entry(id).or_default().push(ack);
            }
            gateway.streams.entry(key).or_default().committed = Some(head);
        }
        acks.into_iter().map(|(id, acks)| Output::Send(id, ToGateway::Acks(acks))).collect()
    }

    /// The gateway's session has sent a stream up to here.
    fn sends(&mut self, gateway: &GatewayId, stream: &StreamName, last: Seq) {
        if let Some(session) = self.gateways.get_mut(gateway).and_then(|g| g.session.as_mut()) {
            session.sends(stream, last);
        }
    }

    /// The gateway's session has sent again what is known up to here: acknowledged, or, when it is not yet committed, with
    /// its commit.
    fn again(
        &mut self,
        id: SessionId,
        gateway: &GatewayId,
        stream: &StreamName,
        last: Seq,
    ) -> Option<Output> {
        self.sends(gateway, stream, last);
        let gateway = self.gateways.get(gateway)?;
        let stored = gateway.streams.get(stream)?.committed.as_ref().filter(|c| c.last >= last)?;
        let ack = gateway.session.as_ref()?.ack(stream, stored)?;
        Some(Output::Send(id, ToGateway::Acks(vec![ack])))
    }

    /// The gateway and incarnation of a session, when the stream is taken from it.
    fn taker(&self, id: SessionId, stream: &StreamName) -> Option<(GatewayId, Incarnation)> {
        let name = self.sessions.get(&id)?;
        let session = self.gateways.get(name)?.session.as_ref()?;
        (!session.refused.contains(stream)).then(|| (name.clone(), session.incarnation))
    }

    fn stream(&mut self, gateway: &GatewayId, stream: &StreamName) -> &mut Stream {
        self.gateways.entry(gateway.clone()).or_default().streams.entry(stream.clone()).or_default()
    }

    fn refuse(&mut self, id: SessionId, gateway: &GatewayId, refuse: Refuse, out: &mut Vec<Output>) {
        if let Some(session) = self.gateways.get_mut(gateway).and_then(|g| g.session.as_mut()) {
            if session.refused.contains(&refuse.stream) {
                return;
            }
            session.refused.push(refuse.stream.clone());
        }
        out.push(Output::Send(id, ToGateway::Refuse(refuse.clone())));
        out.push(Output::Refused(gateway.clone(), refuse));
    }
}

impl Head {
    fn next_seq(&self) -> Seq {
        self.last.next()
    }
}

impl Gateway {
    /// What is stored of every stream, as seen from one life of the gateway's folder.
    fn welcome(&self, incarnation: Incarnation) -> Vec<StreamWelcome> {
        let welcome = |(name, s): (&StreamName, &Stream)| {
            let head = s.committed.as_ref().filter(|h| h.incarnation == incarnation);
            StreamWelcome {
                stream: name.clone(),
                last: head.map_or(Seq(0), |h| h.last),
                hash: head.map_or(Digest::default(), |h| h.hash),
                loss_ordinal: s.loss_committed.filter(|(i, _)| *i == incarnation).map_or(0, |(_, n)| n),
            }
        };
        self.streams.iter().map(welcome).collect()
    }
}

/// Why a folder that says this about itself cannot be the one whose rows are stored.
fn foreign_folder(stored: &Head, incarnation: Incarnation, said: &StreamHello) -> Option<String> {
    if stored.incarnation != incarnation {
        return stored.retired.contains(&incarnation).then(|| retired(stored, incarnation));
    }
    if said.last < stored.last {
        return Some(format!(
            "the gateway's newest row is seq {}, central already has up to {}: its folder was restored from a backup",
            said.last, stored.last
        ));
    }
    (said.last == stored.last && said.last.0 > 0 && said.hash != stored.hash).then(|| {
        format!(
            "seq {} ends a block of hash {} at the gateway and {} at central: its folder was cloned",
            said.last, said.hash, stored.hash
        )
    })
}

fn retired(stored: &Head, incarnation: Incarnation) -> String {
    format!(
        "incarnation {incarnation} was replaced by {}: two folders of one gateway, or one restored from a backup",
        stored.incarnation
    )
}

impl Stream {
    fn judge(&self, batch: &Hashed) -> Verdict {
        let (h, hash) = (batch.header(), batch.hash());
        let base = match &self.accepted {
            Some(a) if a.incarnation == h.incarnation => a.clone(),
            Some(a) if a.retired.contains(&h.incarnation) => {
                return Verdict::Strange(retired(a, h.incarnation));
            }
            Some(a) if a.last.0 > 0 => a.reborn(h.incarnation),
            _ => Head::new(h.incarnation),
        };
        if h.last <= base.last {
            return self.judge_repeat(&base, h);
        }
        if h.first <= base.last {
            return Verdict::Strange(format!(
                "the block holds seq {} to {}, stored is a block that ends at {}",
                h.first, h.last, base.last
            ));
        }
        if h.first > base.next_seq() {
            return Verdict::Gap(base.next_seq());
        }
        if h.prev_hash != base.hash {
            return Verdict::Strange(format!(
                "the chain breaks at seq {}: the block names {} as the one before it, stored is {}",
                h.first, h.prev_hash, base.hash
            ));
        }
        if hash != h.hash {
            return Verdict::Strange(format!(
                "the bytes of seq {} to {} have the hash {hash}, the block says {}",
                h.first, h.last, h.hash
            ));
        }
        Verdict::Accept(Head { last: h.last, hash, rows: base.rows + h.rows(), ..base })
    }

    /// The block ends where rows are stored already: the same block again, or another one?
    fn judge_repeat(&self, base: &Head, h: &BlockHeader) -> Verdict {
        let known = if h.last == base.last {
            Some(base.hash)
        } else {
            self.recent.iter().rev().find(|(_, last, _)| *last == h.last).map(|(.., hash)| *hash)
        };
        let remembered = self.recent.front().is_some_and(|(first, ..)| *first <= h.last);
        match known {
            Some(hash) if hash == h.hash => Verdict::Again,
            Some(hash) => Verdict::Strange(format!(
                "seq {} to {} came again with the hash {}, stored is {hash}",
                h.first, h.last, h.hash
            )),
            None if remembered => Verdict::Strange(format!(
                "seq {} to {} came again cut at other rows than before",
                h.first, h.last
            )),
            None => Verdict::Again,
        }
    }

    fn remember(&mut self, first: Seq, head: &Head) {
        if self.recent.len() == RECENT_BLOCKS {
            self.recent.pop_front();
        }
        self.recent.push_back((first, head.last, head.hash));
        self.accepted = Some(head.clone());
    }
}
