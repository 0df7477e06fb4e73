//! The gateway's end of the sockets: drives a [`Forwarder`] over gRPC with mutual TLS, for as long as the gateway runs.
//!
//! The gateway gives an [`Outbox`]: its output log, what it says about itself, and where acknowledgements go. A half-open
//! connection is noticed by HTTP/2 pings. Certificates are read again for every connection, so that they can be renewed.

use crate::{
    forward::{Config, Entry, Forwarder, Halt, Item, Output, Position},
    limits::MESSAGE_BYTES_MAX,
    message::{Hello, StreamLedger, ToCentral, ToGateway},
    tls::TlsFiles,
    wire::proto::{self, link_client::LinkClient},
};
use record::{
    Seq, StreamName,
    clock::{Clock, Random},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Streaming,
    transport::{Certificate, ClientTlsConfig, Endpoint, Identity},
};

/// The output log's reading end failed; the gateway cannot go on.
pub type OutboxError = Box<dyn std::error::Error + Send + Sync>;

/// What the link needs of a gateway. Calls may read a frame from disk; they are made from the link's own task.
pub trait Outbox: Send {
    /// What the gateway says about itself at the beginning of a session.
    fn hello(&mut self) -> Hello;

    /// The next entry is to be the first behind this position.
    fn seek(&mut self, after: Position) -> Result<(), OutboxError>;

    /// The next durable entry; `None` at the tail.
    fn try_next(&mut self) -> Result<Option<Entry>, OutboxError>;

    /// Returns when there may be more than `try_next` last saw. Cancelling it loses nothing.
    fn moved(&mut self) -> impl Future<Output = ()> + Send;

    /// What the streams have counted by now, with the losses numbered above `known`.
    fn ledger(&mut self, known: &BTreeMap<StreamName, u64>) -> Vec<StreamLedger>;

    /// Something happened; acknowledgements come this way.
    fn event(&mut self, event: Event) -> Result<(), OutboxError>;
}

/// What happens on the link.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A session stands.
    Connected,
    /// It failed or ended.
    Disconnected {
        /// Why.
        reason: String,
        /// The next attempt comes after this.
        retry_in: Duration,
    },
    /// Everything of the stream up to this seq is stored by central.
    Acked(StreamName, Seq),
    /// Everything up to this position is stored by central: it may be trimmed.
    Through(Position),
    /// The stream is not forwarded for now; its data stays.
    Halted(StreamName, Halt),
    /// Blocks and bytes sent and not yet acknowledged.
    InFlight(usize, usize),
}

/// Where central is and how to speak with it.
#[derive(Debug, Clone)]
pub struct Central {
    /// `https://host:port` of each of its processes, one at least; a failure leads to the next.
    pub urls: Vec<String>,
    /// The gateway's identity and the authority.
    pub tls: TlsFiles,
    /// Windows and waits.
    pub forward: Config,
    /// How long a connection may take to stand.
    pub connect_timeout: Duration,
    /// A ping goes out after so long of silence…
    pub keepalive_interval: Duration,
    /// …and the connection is given up when no answer came within this.
    pub keepalive_timeout: Duration,
    /// How often the ledger is sent when it changed.
    pub ledger_interval: Duration,
}

impl Central {
    /// With the usual windows and waits.
    pub fn new(urls: Vec<String>, tls: TlsFiles) -> Self {
        Self {
            urls,
            tls,
            forward: Config::default(),
            connect_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(10),
            ledger_interval: Duration::from_secs(1),
        }
    }

    /// Checks the addresses and reads the certificates, without connecting.
    pub fn check(&self) -> Result<(), ClientError> {
        if self.urls.is_empty() {
            return Err(ClientError::Config("no address is given".to_owned()));
        }
        self.urls.iter().try_for_each(|url| self.endpoint(url).map(drop)).map_err(ClientError::Config)
    }

    fn endpoint(&self, url: &str) -> Result<Endpoint, String> {
        if !url.starts_with("https://") {
            return Err(format!("{url:?} does not begin with https://"));
        }
        let pems = self.tls.load().map_err(|e| e.to_string())?;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(pems.ca))
            .identity(Identity::from_pem(pems.cert, pems.key));
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|e| crate::chain(&e))?;
        let endpoint = endpoint.tls_config(tls).map_err(|e| crate::chain(&e))?;
        Ok(endpoint
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(self.keepalive_interval)
            .keep_alive_timeout(self.keepalive_timeout)
            .keep_alive_while_idle(true))
    }
}

/// Why the link ended for good.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The address or the certificates.
    #[error("central: {0}")]
    Config(String),
    /// The gateway's log.
    #[error("the output log cannot be read for forwarding: {0}")]
    Outbox(OutboxError),
}

/// Forwards until `stop` is cancelled. Everything up to `through` is known to be stored.
pub async fn run<O: Outbox>(
    central: Central,
    outbox: &mut O,
    through: Position,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    stop: CancellationToken,
) -> Result<(), ClientError> {
    central.check()?;
    let core = Forwarder::new(central.forward.clone(), random, through);
    let driver = Driver {
        central,
        clock,
        core,
        outbox,
        connection: None,
        turn: 0,
        owner: None,
        at: String::new(),
        known_losses: BTreeMap::new(),
        last_ledger: Vec::new(),
        idle: false,
        in_flight: (0, 0),
    };
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        ended = driver.run() => ended.map_err(ClientError::Outbox),
    }
}

struct Connection {
    tx: mpsc::Sender<proto::ToCentral>,
    rx: Streaming<proto::ToGateway>,
}

struct Driver<'a, O> {
    central: Central,
    clock: Arc<dyn Clock>,
    core: Forwarder,
    outbox: &'a mut O,
    connection: Option<Connection>,
    /// Which of central's addresses has its turn.
    turn: usize,
    /// Where central sent us to; holds for one attempt.
    owner: Option<String>,
    /// Where the last attempt went.
    at: String,
    known_losses: BTreeMap<StreamName, u64>,
    last_ledger: Vec<StreamLedger>,
    /// The outbox had nothing more.
    idle: bool,
    in_flight: (usize, usize),
}

/// What woke the driver.
enum Woken {
    Message(Result<Option<proto::ToGateway>, tonic::Status>),
    Time,
    Ledger,
    Entry,
    Moved,
}

impl<O: Outbox> Driver<'_, O> {
    async fn run(mut self) -> Result<(), OutboxError> {
        let mut ledger = tokio::time::interval(self.central.ledger_interval);
        ledger.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.outputs().await?;
            let wants = self.core.wants_entry();
            let deadline = self.core.next_deadline_ns();
            let now = self.clock.monotonic_ns();
            let wait = deadline.map(|d| Duration::from_nanos(d.saturating_sub(now)));
            let woken = tokio::select! {
                biased;
                m = receive(&mut self.connection) => Woken::Message(m),
                () = sleep(wait) => Woken::Time,
                _ = ledger.tick(), if self.core.is_open() => Woken::Ledger,
                () = std::future::ready(()), if wants && !self.idle => Woken::Entry,
                () = self.outbox.moved(), if wants && self.idle => Woken::Moved,
            };
            let now = self.clock.monotonic_ns();
            match woken {
                Woken::Message(m) => self.message(now, m)?,
                Woken::Time => self.core.tick(now),
                Woken::Ledger => self.ledger(),
                Woken::Moved => self.idle = false,
                Woken::Entry => match self.outbox.try_next()? {
                    Some(entry) => self.core.entry(now, entry),
                    None => self.idle = true,
                },
            }
        }
    }

    async fn outputs(&mut self) -> Result<(), OutboxError> {
        while let Some(output) = self.core.next_output() {
            match output {
                Output::Connect => {
                    if let Err(reason) = self.connect().await {
                        self.disconnected(&reason)?;
                    }
                }
                Output::SayHello => {
                    let hello = ToCentral::Hello(self.outbox.hello());
                    self.send(hello)?;
                }
                Output::Seek(position) => {
                    self.outbox.seek(position)?;
                    self.idle = false;
                    tracing::info!(central = self.at, "connected to central");
                    self.outbox.event(Event::Connected)?;
                    self.ledger();
                }
                Output::Send(Item::Block(b)) => self.send(ToCentral::Batch(b))?,
                Output::Send(Item::Lost(l)) => self.send(ToCentral::Lost(l))?,
                Output::Close(reason) => self.report(&reason)?,
                Output::Acked(stream, seq) => self.outbox.event(Event::Acked(stream, seq))?,
                Output::Through(position) => self.outbox.event(Event::Through(position))?,
                Output::Halted(stream, halt) => {
                    tracing::error!(%stream, reason = %halt, "the stream is not forwarded; its data is kept");
                    self.outbox.event(Event::Halted(stream, halt))?;
                }
            }
        }
        if self.in_flight != self.core.in_flight() {
            self.in_flight = self.core.in_flight();
            self.outbox.event(Event::InFlight(self.in_flight.0, self.in_flight.1))?;
        }
        Ok(())
    }

    async fn connect(&mut self) -> Result<(), String> {
        let urls = &self.central.urls;
        self.at = self.owner.take().unwrap_or_else(|| urls[self.turn % urls.len()].clone());
        let endpoint = self.central.endpoint(&self.at)?;
        let opened = tokio::time::timeout(self.central.connect_timeout, async {
            let channel = endpoint.connect().await.map_err(|e| crate::chain(&e))?;
            // As many as the window allows, and a ledger: sending never waits.
            let (tx, rx) = mpsc::channel(self.central.forward.in_flight_batches + 8);
            let mut client = LinkClient::new(channel)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX);
            let answer = client.session(ReceiverStream::new(rx)).await.map_err(|s| status_text(&s))?;
            Ok::<_, String>(Connection { tx, rx: answer.into_inner() })
        });
        self.connection = Some(opened.await.map_err(|_| "no connection in time".to_owned())??);
        self.core.connected(self.clock.monotonic_ns());
        Ok(())
    }

    fn send(&mut self, message: ToCentral) -> Result<(), OutboxError> {
        let sent = match &self.connection {
            Some(c) => c.tx.try_send(message.put()).is_ok(),
            None => true,
        };
        if sent { Ok(()) } else { self.disconnected("the connection takes nothing more") }
    }

    /// Sends what was counted, when it changed; skipped while the connection is busy with blocks.
    fn ledger(&mut self) {
        let Some(connection) = &self.connection else { return };
        let ledger = self.outbox.ledger(&self.known_losses);
        if ledger.is_empty() || ledger == self.last_ledger {
            return;
        }
        if connection.tx.try_send(ToCentral::Ledger(ledger.clone()).put()).is_ok() {
            for s in &ledger {
                if let Some(newest) = s.losses.iter().map(|l| l.ordinal).max() {
                    self.known_losses.insert(s.stream.clone(), newest);
                }
            }
            self.last_ledger = ledger;
        }
    }

    fn message(
        &mut self,
        now: u64,
        message: Result<Option<proto::ToGateway>, tonic::Status>,
    ) -> Result<(), OutboxError> {
        let busy = matches!(&message, Err(status) if says_busy(status));
        let message = match message {
            Ok(Some(m)) => ToGateway::take(m).map_err(|e| format!("central sent {e}")),
            Ok(None) => Err("central ended the session".to_owned()),
            Err(status) => Err(status_text(&status)),
        };
        match message {
            Ok(ToGateway::Welcome(streams)) => {
                self.known_losses = streams.iter().map(|s| (s.stream.clone(), s.loss_ordinal)).collect();
                self.last_ledger.clear();
                self.core.welcome(now, streams);
            }
            Ok(ToGateway::Acks(acks)) => self.core.acks(now, acks),
            Ok(ToGateway::Refuse(refuse)) => self.core.refuse(now, refuse),
            Ok(ToGateway::WrongNode { owner }) => {
                let reason = format!("this gateway is served by {owner}");
                self.owner = Some(owner);
                self.core.elsewhere(now, true);
                self.report(&reason)?;
            }
            Err(reason) if busy => {
                self.turn = self.turn.wrapping_add(1);
                self.core.elsewhere(now, false);
                self.report(&reason)?;
            }
            Err(reason) => self.disconnected(&reason)?,
        }
        Ok(())
    }

    fn disconnected(&mut self, reason: &str) -> Result<(), OutboxError> {
        self.turn = self.turn.wrapping_add(1);
        self.core.disconnected(self.clock.monotonic_ns());
        self.report(reason)
    }

    fn report(&mut self, reason: &str) -> Result<(), OutboxError> {
        self.connection = None;
        let wait = self.core.next_deadline_ns().unwrap_or_default();
        let retry_in = Duration::from_nanos(wait.saturating_sub(self.clock.monotonic_ns()));
        self.outbox.event(Event::Disconnected { reason: reason.to_owned(), retry_in })
    }
}

/// Central itself says so, not the connection.
fn says_busy(status: &tonic::Status) -> bool {
    status.code() == tonic::Code::Unavailable && std::error::Error::source(status).is_none()
}

fn status_text(status: &tonic::Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => format!("{}: {}", status.message(), crate::chain(source)),
        None => status.message().to_owned(),
    }
}

async fn receive(connection: &mut Option<Connection>) -> Result<Option<proto::ToGateway>, tonic::Status> {
    match connection {
        Some(c) => c.rx.message().await,
        None => std::future::pending().await,
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(d) => tokio::time::sleep(d).await,
        None => std::future::pending().await,
    }
}
