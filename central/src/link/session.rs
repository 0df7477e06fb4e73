//! One gateway's session: from Hello to the end of its connection. Looks at everything that does not need the order of
//! the stream, so that the committer has little to do.

use super::{
    LinkParts,
    committer::Input,
    gate::{SchemaGate, SchemaRefusal},
    gateways::Connection,
    owner::Routes,
};
use crate::{
    limits::{HELLO_TIMEOUT, REVOCATION_CHECK_INTERVAL, SCHEMAS_PER_SESSION_MAX, SHARD_LOOK, SHARD_WAIT},
    log::{Shard, shard_of},
};
use ::link::{
    limits::PROTOCOL,
    message::{Batch, Hashed, Hello, Refuse, RefuseCode, ToCentral, ToGateway},
    receive::SessionId,
    server::{Goodbye, Handler, Inbound, InboundError, Outbound, Peer, Refusal},
    tls::RevokedSerials,
};
use record::{GatewayId, Incarnation, Seq, StreamName, StreamSchema, block};
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// All sessions.
pub(super) struct Sessions {
    parts: LinkParts,
    routes: Routes,
    revoked: Option<RevokedSerials>,
    next: AtomicU64,
}

impl Sessions {
    pub(super) fn new(parts: LinkParts, routes: Routes, revoked: Option<RevokedSerials>) -> Self {
        Self { parts, routes, revoked, next: AtomicU64::new(1) }
    }

    /// The first message, checked: who is it, and is it who it says? None for a caller that left without a word, as a
    /// gateway does that connects anew because it has learned of another stream.
    async fn greet(&self, peer: &Peer, inbound: &mut Inbound) -> Result<Option<Hello>, Goodbye> {
        let first = tokio::time::timeout(HELLO_TIMEOUT, inbound.next()).await;
        let hello = match first {
            Ok(Ok(Some(ToCentral::Hello(hello)))) => hello,
            Ok(Ok(Some(_))) => return Err(Goodbye::Protocol("the first message must be Hello".into())),
            Ok(Ok(None)) => return Ok(None),
            Err(_) => return Err(Goodbye::Protocol("no Hello came".into())),
            Ok(Err(e)) => return Err(Goodbye::Protocol(format!("Hello: {e}"))),
        };
        if hello.gateway.as_str() != peer.name {
            return Err(Goodbye::OtherName(format!(
                "the certificate is that of {:?}, Hello says {:?}",
                peer.name, hello.gateway
            )));
        }
        if hello.protocol != PROTOCOL {
            return Err(Goodbye::Protocol(format!(
                "the gateway speaks protocol {}, central {PROTOCOL}",
                hello.protocol
            )));
        }
        Ok(Some(hello))
    }

    async fn serve(&self, peer: Peer, mut inbound: Inbound, outbound: Outbound, stop: CancellationToken) {
        let hello = match self.greet(&peer, &mut inbound).await {
            Ok(Some(hello)) => hello,
            Ok(None) => return,
            Err(goodbye) => {
                let (reason, detail) = match &goodbye {
                    Goodbye::OtherName(m) => (Refusal::OtherName, m.clone()),
                    Goodbye::Protocol(m) => (Refusal::Protocol, m.clone()),
                    other => (Refusal::Protocol, format!("{other:?}")),
                };
                self.refused(peer.address, reason, &detail);
                return outbound.goodbye(goodbye);
            }
        };
        let gateway = hello.gateway.clone();
        let shard = shard_of(&gateway, self.parts.log.shards());
        let routed = tokio::select! {
            () = stop.cancelled() => return outbound.goodbye(Goodbye::Stopping),
            routed = self.route(shard) => routed,
        };
        let Some(committer) = routed else {
            return self.elsewhere(&gateway, shard, &outbound);
        };
        let mut session = Session {
            id: SessionId(self.next.fetch_add(1, Relaxed)),
            incarnation: hello.incarnation,
            gate: self.parts.gate.clone(),
            known: BTreeSet::new(),
            committer: committer.clone(),
        };
        let mut refused = Vec::new();
        for s in &hello.streams {
            match session.admit(&s.stream, &s.schema).await {
                Ok(()) => {}
                Err(message) => refused.push(session.conflict(&s.stream, message)),
            }
        }
        let now = self.parts.clock.wall_ns();
        let connection = Connection {
            address: peer.address,
            since_ns: now,
            software: hello.software.clone(),
            serial: peer.serial.clone(),
            incarnation: hello.incarnation,
        };
        let closed = CancellationToken::new();
        let id = session.id;
        let input = Input::Hello {
            session: id,
            hello,
            refused,
            outbound: outbound.clone(),
            closed: closed.clone(),
            connection,
        };
        if session.committer.send(input).await.is_err() {
            return outbound.goodbye(Goodbye::Busy("the gateway's shard moves".into()));
        }
        tracing::info!(%gateway, address = %peer.address, "gateway connected");
        let why = tokio::select! {
            () = stop.cancelled() => {
                outbound.goodbye(Goodbye::Stopping);
                "central is stopping".to_owned()
            }
            () = closed.cancelled() => "central closed the session".to_owned(),
            // It ended with a Hello of ours unread.
            () = committer.closed() => {
                outbound.goodbye(Goodbye::Busy("the gateway's shard moves".into()));
                "its shard is not committed here any more".to_owned()
            }
            () = self.until_revoked(&peer) => {
                self.refused(peer.address, Refusal::Revoked, &format!("the certificate of {gateway} was revoked"));
                outbound.goodbye(Goodbye::Protocol("the certificate was revoked".into()));
                "its certificate was revoked".to_owned()
            }
            ended = session.take(&mut inbound) => match ended {
                Ok(()) => "the gateway ended it".to_owned(),
                Err(InboundError::Connection(e)) => e,
                Err(InboundError::Wire(e)) => {
                    self.refused(peer.address, Refusal::Protocol, &format!("{gateway} sent {e}"));
                    outbound.goodbye(Goodbye::Protocol(e.to_string()));
                    e.to_string()
                }
            },
        };
        tracing::info!(%gateway, address = %peer.address, reason = why, "gateway disconnected");
        // When the committer is gone, central is stopping and nobody asks for the state of the session.
        let _ = session.committer.send(Input::Gone(id)).await;
    }

    /// The way to a shard's committer. A shard that nobody is known to own is about to be somebody's: it is waited for,
    /// which is shorter than a gateway that comes back.
    async fn route(&self, shard: Shard) -> Option<mpsc::Sender<Input>> {
        let deadline = tokio::time::Instant::now() + SHARD_WAIT;
        loop {
            if let Some(committer) = self.routes.to(shard) {
                return Some(committer);
            }
            if self.parts.log.owner(shard).is_some() || tokio::time::Instant::now() > deadline {
                return None;
            }
            if let Ok(committer) = tokio::time::timeout(SHARD_LOOK, self.routes.wait(shard)).await {
                return committer;
            }
        }
    }

    /// The gateway's shard is not committed here: says where it is, when that is known.
    fn elsewhere(&self, gateway: &GatewayId, shard: Shard, outbound: &Outbound) {
        match self.parts.log.owner(shard) {
            Some(owner) => {
                self.parts.metrics.redirected.inc();
                tracing::debug!(%gateway, owner, "a gateway is sent to the owner of its shard");
                // A gateway that does not read even this comes back.
                let _ = outbound.send(ToGateway::WrongNode { owner });
            }
            None => outbound.clone().goodbye(Goodbye::Busy("the gateway's shard has no owner yet".into())),
        }
    }

    async fn until_revoked(&self, peer: &Peer) {
        let Some(revoked) = &self.revoked else { return std::future::pending().await };
        loop {
            tokio::time::sleep(REVOCATION_CHECK_INTERVAL).await;
            if revoked.contains(&peer.serial) {
                return;
            }
        }
    }
}

impl Handler for Sessions {
    async fn session(
        self: Arc<Self>,
        peer: Peer,
        inbound: Inbound,
        outbound: Outbound,
        stop: CancellationToken,
    ) {
        self.parts.metrics.sessions.inc();
        self.serve(peer, inbound, outbound, stop).await;
        self.parts.metrics.sessions.dec();
    }

    fn refused(&self, address: SocketAddr, reason: Refusal, detail: &str) {
        self.parts.metrics.turned_away.with(&[reason.name()]).inc();
        tracing::warn!(%address, reason = reason.name(), detail, "a caller was refused");
    }
}

struct Session {
    id: SessionId,
    incarnation: Incarnation,
    gate: Arc<dyn SchemaGate>,
    /// Schemas that were let in, by stream and fingerprint.
    known: BTreeSet<(StreamName, u64)>,
    committer: mpsc::Sender<Input>,
}

impl Session {
    /// Asks once per stream and schema.
    async fn admit(&mut self, stream: &StreamName, schema: &StreamSchema) -> Result<(), String> {
        let key = (stream.clone(), schema.fingerprint());
        if self.known.contains(&key) {
            return Ok(());
        }
        match self.gate.check(stream, schema).await {
            Ok(()) => {}
            Err(SchemaRefusal::Conflict(message)) => return Err(message),
            Err(SchemaRefusal::Unavailable(reason)) => {
                tracing::debug!(%stream, reason, "a schema is taken without asking the tables");
            }
        }
        if self.known.len() < SCHEMAS_PER_SESSION_MAX {
            self.known.insert(key);
        }
        Ok(())
    }

    /// The committer fills in the seq that it waits for.
    fn conflict(&self, stream: &StreamName, message: String) -> Refuse {
        Refuse { stream: stream.clone(), code: RefuseCode::TypeConflict, expected: Seq(0), message }
    }

    async fn take(&mut self, inbound: &mut Inbound) -> Result<(), InboundError> {
        while let Some(message) = inbound.next().await? {
            let id = self.id;
            let input = match message {
                ToCentral::Hello(_) => {
                    return Err(InboundError::Connection("Hello was said twice".into()));
                }
                ToCentral::Batch(mut batch) => match self.look_inside(&batch).await {
                    Ok(()) => {
                        batch.header.incarnation = self.incarnation;
                        Input::Batch(id, Hashed::of(batch))
                    }
                    Err(message) => Input::Refuse(id, self.conflict(&batch.header.stream, message)),
                },
                ToCentral::Lost(lost) => Input::Lost(id, lost),
                ToCentral::Ledger(ledger) => Input::Ledger(id, ledger),
            };
            if self.committer.send(input).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Opens the first block of each schema: it must be what its header says, and its columns must fit the table. (Blocks
    /// written before a change of configuration have another schema than Hello.)
    async fn look_inside(&mut self, batch: &Batch) -> Result<(), String> {
        let header = &batch.header;
        if self.known.contains(&(header.stream.clone(), header.schema)) {
            return Ok(());
        }
        let bytes = batch.bytes.clone();
        let opened = tokio::task::spawn_blocking(move || block::decode(&bytes)).await;
        let rows = opened.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        if rows.schema().fingerprint() != header.schema || rows.rows() as u64 != header.rows() {
            return Err("the block is not what its header says".into());
        }
        let schema = rows.schema().clone();
        self.admit(&header.stream, &schema).await
    }
}
