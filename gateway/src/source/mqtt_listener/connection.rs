//! One connection: reads, lets the session take the packets apart, pushes what it took, and writes answers.

use super::{
    Listener,
    metrics::reason,
    registry::{Attached, Handle},
};
use crate::config::Unmatched;
use crate::ingest::{Intake, Publish, Taken, session_hash};
use crate::limits::{
    CLIENT_ID_BYTES_MAX, LARGE_PACKET_BYTES, LAST_PUSH_WAIT, LISTENER_OUT_BYTES_MAX, LISTENER_READ_BYTES,
    LISTENER_SCRATCH_BYTES_MAX, OVER_QUOTA_RETRY, TAKE_OVER_WAIT,
};
use bytes::{Buf, BytesMut};
use journal::PushError;
use mqtt::{
    Accept, Admission, ConnectRequest, ConnectionId, Ended, Incoming, PacketId, Progress, PublishSink,
    ReasonCode, Session, Ticket, Version,
};
use std::{io, sync::Arc, time::Duration};
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, watch},
    time::{Instant, Sleep},
};

/// What an idle connection's buffer holds.
const IDLE_BYTES: usize = 2 << 10;
/// After so many small reads, one after the other, a connection is quiet, as it is at first.
const SMALL_READS: u32 = 32;
/// How often the deadline of a connection without a client is looked at: its CONNECT brings another one.
const TIMER_BEFORE_CONNECT: Duration = Duration::from_millis(500);
/// The session's deadline is looked at no more often than this.
const TIMER_MIN: Duration = Duration::from_millis(50);

/// Why a connection is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Paused {
    No,
    /// The round is full: until the next one.
    RoundFull,
    /// The buffer is full: tried again from time to time.
    OverQuota,
    /// Too many connections are in the middle of a large packet.
    LargePackets,
}

/// How a connection ended.
enum End {
    /// The client said goodbye.
    Left,
    /// The socket closed or failed.
    Lost,
    /// This side ended it.
    Ended(Ended),
}

/// The client behind the connection, once it is let in.
struct Client {
    id: String,
    session: u64,
    handle: Handle,
}

pub(super) struct Connection {
    shared: Arc<Listener>,
    stream: TcpStream,
    id: ConnectionId,
    let_in: bool,
    session: Session,
    intake: Intake,
    durable: watch::Receiver<u64>,
    input: BytesMut,
    out: BytesMut,
    paused: Paused,
    large_packet: Option<OwnedSemaphorePermit>,
    small_reads: u32,
    client: Option<Client>,
}

impl Connection {
    pub(super) fn new(shared: Arc<Listener>, stream: TcpStream, id: ConnectionId, let_in: bool) -> Self {
        Self {
            session: Session::new(shared.config, shared.clock.monotonic_ns()),
            intake: shared.door.intake(&shared.name),
            durable: shared.door.watch(),
            input: BytesMut::new(),
            out: BytesMut::new(),
            paused: Paused::No,
            large_packet: None,
            small_reads: SMALL_READS,
            client: None,
            stream,
            id,
            let_in,
            shared,
        }
    }

    pub(super) async fn run(mut self) {
        // A failure only costs latency.
        let _ = self.stream.set_nodelay(true);
        let end = self.serve().await;
        self.finish(end).await;
    }

    async fn serve(&mut self) -> End {
        let mut timer = Box::pin(tokio::time::sleep(TIMER_MIN));
        let mut retry = tokio::time::interval(OVER_QUOTA_RETRY);
        retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let stop = self.shared.stop.clone();
        let taken_over = Handle::new();
        loop {
            let taken_over =
                self.client.as_ref().map_or(&taken_over, |client| &client.handle).taken_over.clone();
            if let Err(end) = self.write() {
                return end;
            }
            let step = tokio::select! {
                biased;
                () = stop.cancelled() => Err(self.close(ReasonCode::SERVER_SHUTTING_DOWN)),
                () = taken_over.cancelled() => Err(self.close(ReasonCode::SESSION_TAKEN_OVER)),
                moved = self.durable.changed(), if self.waits_for_disk() => self.durable_moved(moved.is_ok()).await,
                _ = retry.tick(), if matches!(self.paused, Paused::OverQuota | Paused::LargePackets) => self.resume().await,
                ready = self.stream.readable(), if self.reads() => match ready {
                    Ok(()) => self.read().await,
                    Err(_) => Err(End::Lost),
                },
                ready = self.stream.writable(), if !self.out.is_empty() => ready.map_err(|_| End::Lost),
                () = timer.as_mut() => self.check_deadline(timer.as_mut()),
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    fn waits_for_disk(&self) -> bool {
        self.session.pending() > 0 || self.paused == Paused::RoundFull
    }

    fn reads(&self) -> bool {
        self.paused == Paused::No && self.session.wants_read() && self.out.len() < LISTENER_OUT_BYTES_MAX
    }

    async fn read(&mut self) -> Result<(), End> {
        if !self.reserve() {
            self.paused = Paused::LargePackets;
            return Ok(());
        }
        let room = self.input.capacity() - self.input.len();
        match self.stream.try_read_buf(&mut self.input) {
            Ok(0) => Err(End::Lost),
            Ok(bytes) => {
                self.small_reads =
                    if bytes == room || bytes > IDLE_BYTES { 0 } else { self.small_reads.saturating_add(1) };
                self.drain().await
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(_) => Err(End::Lost),
        }
    }

    /// Makes room for the next read: little for a quiet connection, more for a busy one, and for a large packet only
    /// while few others are at one. False when there is none now.
    fn reserve(&mut self) -> bool {
        if self.input.len() >= LARGE_PACKET_BYTES && self.large_packet.is_none() {
            self.large_packet = self.shared.large_packets.clone().try_acquire_owned().ok();
            if self.large_packet.is_none() {
                return false;
            }
        }
        if self.input.is_empty() {
            self.large_packet = None;
            if self.is_quiet() && self.input.capacity() > 2 * IDLE_BYTES {
                self.input = BytesMut::new();
            }
        }
        if self.input.capacity() - self.input.len() < IDLE_BYTES / 2 {
            self.input.reserve(if self.is_quiet() { IDLE_BYTES } else { LISTENER_READ_BYTES });
        }
        true
    }

    fn is_quiet(&self) -> bool {
        self.small_reads >= SMALL_READS
    }

    /// Takes the packets in the input apart and pushes their publishes, until the input needs more bytes or there is no
    /// room for what was taken.
    async fn drain(&mut self) -> Result<(), End> {
        loop {
            let now_ns = self.shared.clock.monotonic_ns();
            let mut sink = Sink {
                intake: &mut self.intake,
                client: self.client.as_ref(),
                unmatched: self.shared.settings.unmatched,
                version: self.session.version(),
                unwanted: false,
            };
            let progress = self.session.drain(&mut self.input, now_ns, &mut sink, &mut self.out);
            let unwanted = sink.unwanted;
            if unwanted {
                // Closed first, so that nothing of this read is acknowledged; what came before is stored at the end.
                return Err(self.close(ReasonCode::TOPIC_NAME_INVALID));
            }
            // What came before a mistake in the same read was accepted, and is stored like everything else.
            self.push();
            match progress {
                Err(ended) => return Err(End::Ended(ended)),
                Ok(Progress::Left) => return Err(End::Left),
                Ok(Progress::Connect(request)) => self.connect(&request).await?,
                Ok(Progress::SinkFull) if self.paused == Paused::No => {}
                Ok(Progress::SinkFull | Progress::NeedMore) => return Ok(()),
            }
        }
    }

    /// Pushes what was taken. Without room it stays in the intake, and the connection is not read until it is gone.
    fn push(&mut self) {
        self.paused = match self.intake.push() {
            Ok(ticket) => {
                self.session.assign(Ticket(ticket.0));
                // The ticket of repeats and of what no stream wants may be durable long since, and the watch may never
                // move again.
                self.session.durable(Ticket(*self.durable.borrow()), &mut self.out);
                if let Some(client) = &self.client {
                    self.intake.raise_in_flight(client.session, self.session.in_flight_bound());
                }
                Paused::No
            }
            Err(PushError::OverQuota) => Paused::OverQuota,
            // A failed or closed log closes the watch, which ends the connection; a push is never too large for a
            // round, since the sink says that it is full long before.
            Err(PushError::Full | PushError::TooLarge { .. } | PushError::Poisoned | PushError::Closed) => {
                Paused::RoundFull
            }
        };
    }

    async fn durable_moved(&mut self, alive: bool) -> Result<(), End> {
        let durable = *self.durable.borrow_and_update();
        self.session.durable(Ticket(durable), &mut self.out);
        if !alive {
            return Err(self.close(ReasonCode::SERVER_UNAVAILABLE));
        }
        if self.paused == Paused::RoundFull { self.resume().await } else { Ok(()) }
    }

    /// Tries again what had no room, and goes on with the input that is there.
    async fn resume(&mut self) -> Result<(), End> {
        self.session.excuse_silence(self.shared.clock.monotonic_ns());
        if self.paused == Paused::LargePackets {
            self.paused = Paused::No;
            return Ok(());
        }
        self.push();
        if self.paused == Paused::No { self.drain().await } else { Ok(()) }
    }

    async fn connect(&mut self, request: &ConnectRequest) -> Result<(), End> {
        if !self.let_in {
            return Err(self.reject(ReasonCode::QUOTA_EXCEEDED));
        }
        if request.client_id.len() > CLIENT_ID_BYTES_MAX {
            return Err(self.reject(ReasonCode::CLIENT_ID_NOT_VALID));
        }
        let assigned = format!("auto-{:x}-{}", self.shared.started_ns, self.id.0);
        let assign = request.client_id.is_empty();
        let client_id = if assign { assigned.as_str() } else { request.client_id.as_str() };
        let session = session_hash(&self.shared.name, client_id);
        let handle = Handle::new();
        let remembered = self.shared.door.knows_session(session);
        let now_ns = self.shared.clock.monotonic_ns();
        let Attached { session_present, older } =
            self.shared.present.attach(request, client_id, self.id, &handle, remembered, now_ns);
        let taken_over = handle.taken_over.clone();
        self.client = Some(Client { id: client_id.to_owned(), session, handle });
        if let Some(older) = older {
            // Waited for also when a newer connection takes over meanwhile: that one waits for this one's end only.
            let ended = tokio::time::timeout(TAKE_OVER_WAIT, older.cancelled()).await;
            if ended.is_err() || taken_over.is_cancelled() {
                return Err(self.reject(ReasonCode::SERVER_BUSY));
            }
        }
        let persistent = request.persistent();
        self.intake.begin_session(session, !session_present, persistent, self.session.in_flight_bound());
        let accept = Accept { session_present, assigned_client_id: assign.then_some(client_id) };
        self.session.accept(&accept, self.shared.clock.monotonic_ns(), &mut self.out);
        self.shared.metrics.connects.inc();
        Ok(())
    }

    fn reject(&mut self, code: ReasonCode) -> End {
        self.session.reject(code, &mut self.out);
        End::Ended(Ended::Rejected(code))
    }

    fn close(&mut self, code: ReasonCode) -> End {
        self.session.close(code, &mut self.out);
        End::Ended(Ended::Closed(code))
    }

    fn check_deadline(&mut self, timer: std::pin::Pin<&mut Sleep>) -> Result<(), End> {
        let now_ns = self.shared.clock.monotonic_ns();
        if self.paused != Paused::No || !self.session.wants_read() {
            self.session.excuse_silence(now_ns);
        }
        if let Some(ended) = self.session.time_out(now_ns, &mut self.out) {
            return Err(End::Ended(ended));
        }
        let wait = self.session.deadline_ns().map_or(Duration::from_secs(3600), |deadline_ns| {
            Duration::from_nanos(deadline_ns.saturating_sub(now_ns)).max(TIMER_MIN)
        });
        let wait = if self.client.is_some() { wait } else { wait.min(TIMER_BEFORE_CONNECT) };
        timer.reset(Instant::now() + wait);
        Ok(())
    }

    /// Writes as much as the socket takes now.
    fn write(&mut self) -> Result<(), End> {
        while !self.out.is_empty() {
            match self.stream.try_write(&self.out) {
                Ok(0) => return Err(End::Lost),
                Ok(bytes) => self.out.advance(bytes),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Err(End::Lost),
            }
        }
        Ok(())
    }

    async fn finish(mut self, end: End) {
        // The last words, if the socket takes them at once: no connection is waited for at its end.
        let _ = self.write();
        self.report(&end);
        let stopping = matches!(end, End::Ended(Ended::Closed(ReasonCode::SERVER_SHUTTING_DOWN)));
        if stopping {
            self.intake.discard();
        } else {
            self.push_last().await;
        }
        if let Some(client) = self.client.take() {
            let now_ns = self.shared.clock.monotonic_ns();
            self.shared.present.detach(&client.id, self.id, self.session.session_expiry_s(), now_ns);
            client.handle.ended.cancel();
        }
    }

    /// What was read before the end, and the will, are events like any other: stored if there is room within a bounded
    /// time.
    async fn push_last(&mut self) {
        let Some(client) = &self.client else { return };
        if let Some(will) = self.session.take_will() {
            self.intake.publish(&Publish {
                client: &client.id,
                session: client.session,
                topic: &will.topic,
                payload: &will.payload,
                qos: 0,
                dup: false,
                packet_id: 0,
            });
        }
        let until = Instant::now() + LAST_PUSH_WAIT;
        loop {
            match self.intake.push() {
                Ok(_) => return,
                Err(PushError::Full | PushError::OverQuota) if Instant::now() < until => {
                    tokio::time::sleep(OVER_QUOTA_RETRY).await;
                }
                Err(_) => {
                    self.shared.metrics.qos_0_lost.inc_by(self.intake.events_of_qos_0().into());
                    return self.intake.discard();
                }
            }
        }
    }

    fn report(&self, end: &End) {
        let metrics = &self.shared.metrics;
        let client = self.client.as_ref().map_or("", |client| client.id.as_str());
        let source = self.shared.name.as_str();
        match end {
            End::Left => metrics.disconnected("goodbye"),
            End::Lost if self.client.is_some() => metrics.disconnected("lost"),
            End::Lost => metrics.refused("lost"),
            End::Ended(ended) => {
                let reason = reason(*ended);
                if self.client.is_some() {
                    metrics.disconnected(reason)
                } else {
                    metrics.refused(reason)
                }
                if reason != "shutdown" {
                    metrics.once(reason, || {
                        tracing::info!(source, client, error = %ended, "a connection was ended; more of this kind are only counted for a minute");
                    });
                }
            }
        }
    }
}

/// Hands publishes from the session to the intake.
struct Sink<'a> {
    intake: &'a mut Intake,
    client: Option<&'a Client>,
    unmatched: Unmatched,
    version: Version,
    /// A publish that ends the connection came by.
    unwanted: bool,
}

impl PublishSink for Sink<'_> {
    fn publish(&mut self, publish: &Incoming<'_>) -> Admission {
        let Some(client) = self.client else { return Admission::Refused(ReasonCode::NOT_AUTHORIZED) };
        let taken = self.intake.publish(&Publish {
            client: &client.id,
            session: client.session,
            topic: publish.topic,
            payload: publish.payload,
            qos: publish.qos(),
            dup: publish.dup,
            packet_id: publish.packet_id.map_or(0, PacketId::get),
        });
        if taken != Taken::Unmatched || self.unmatched == Unmatched::Acknowledge {
            return Admission::Taken;
        }
        // MQTT 5 can say no to one publish of QoS 1; for the others the end of the connection is the only word.
        self.unwanted |= self.version != Version::V5 || publish.packet_id.is_none();
        Admission::Refused(ReasonCode::TOPIC_NAME_INVALID)
    }

    fn is_full(&self) -> bool {
        self.unwanted || self.intake.bytes() >= LISTENER_SCRATCH_BYTES_MAX
    }
}
