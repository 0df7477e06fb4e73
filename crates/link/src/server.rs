//! Central's end of the sockets: accepts TLS, learns who calls, and hands each session to a [`Handler`].
//!
//! The handshake is done here and not by the gRPC library, so that a refused caller leaves one clear line and one count
//! with the reason. Connections, handshakes and messages have bounds; a caller that is silent is dropped by HTTP/2 pings.

use crate::{
    limits::{HANDSHAKES_MAX, MESSAGE_BYTES_MAX, OUTBOUND_MESSAGES, STREAM_WINDOW_BYTES},
    message::{ToCentral, ToGateway},
    tls::{TlsError, TlsFiles, subject},
    wire::{WireError, proto},
};
use rustls::{CertificateError, Error as Rustls, ServerConfig};
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming, transport::server::Connected};

/// Who calls.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The common name of its certificate.
    pub name: String,
    /// The serial of its certificate, lower-case hexadecimal.
    pub serial: String,
    /// From where.
    pub address: SocketAddr,
}

/// Why a caller was turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// Its certificate is of another authority.
    UnknownCa,
    /// Its certificate has expired.
    Expired,
    /// Its certificate is not valid yet.
    NotYetValid,
    /// Its certificate was revoked.
    Revoked,
    /// It has none.
    NoCertificate,
    /// Its certificate is for something else, or broken.
    BadCertificate,
    /// It says it is another gateway than its certificate says.
    OtherName,
    /// It does not speak TLS, or not in time.
    NotTls,
    /// It does not believe central's certificate.
    CentralNotBelieved,
    /// It speaks another version of the protocol, or breaks its rules.
    Protocol,
    /// There are too many.
    TooMany,
}

impl Refusal {
    /// All of them, so that every counter exists from the start.
    pub const ALL: [Refusal; 11] = [
        Self::UnknownCa,
        Self::Expired,
        Self::NotYetValid,
        Self::Revoked,
        Self::NoCertificate,
        Self::BadCertificate,
        Self::OtherName,
        Self::NotTls,
        Self::CentralNotBelieved,
        Self::Protocol,
        Self::TooMany,
    ];

    /// The label of the counter.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnknownCa => "unknown_ca",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Revoked => "revoked",
            Self::NoCertificate => "no_certificate",
            Self::BadCertificate => "bad_certificate",
            Self::OtherName => "other_name",
            Self::NotTls => "not_tls",
            Self::CentralNotBelieved => "central_not_believed",
            Self::Protocol => "protocol",
            Self::TooMany => "too_many",
        }
    }

    /// The reason in a failed handshake; `None` when the caller just went away.
    fn of(error: &io::Error) -> Option<Self> {
        let Some(tls) = error.get_ref().and_then(|e| e.downcast_ref::<Rustls>()) else {
            return match error.kind() {
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                    None
                }
                _ => Some(Self::NotTls),
            };
        };
        use CertificateError as C;
        Some(match tls {
            Rustls::InvalidCertificate(C::UnknownIssuer | C::BadSignature) => Self::UnknownCa,
            Rustls::InvalidCertificate(C::Expired | C::ExpiredContext { .. }) => Self::Expired,
            Rustls::InvalidCertificate(C::NotValidYet | C::NotValidYetContext { .. }) => Self::NotYetValid,
            Rustls::InvalidCertificate(C::Revoked) => Self::Revoked,
            Rustls::InvalidCertificate(_) => Self::BadCertificate,
            Rustls::NoCertificatesPresented => Self::NoCertificate,
            Rustls::AlertReceived(_) => Self::CentralNotBelieved,
            _ => Self::NotTls,
        })
    }
}

/// What central does with sessions.
pub trait Handler: Send + Sync + 'static {
    /// Serves one session until it ends or `stop` is cancelled.
    fn session(
        self: Arc<Self>,
        peer: Peer,
        inbound: Inbound,
        outbound: Outbound,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send;

    /// A caller was turned away before it had a session; counts and logs it.
    fn refused(&self, address: SocketAddr, reason: Refusal, detail: &str);
}

/// Why nothing more comes from a gateway.
#[derive(Debug, Error)]
pub enum InboundError {
    /// It sent something that may not be.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The connection ended with an error.
    #[error("{0}")]
    Connection(String),
}

/// What a gateway says.
#[derive(Debug)]
pub struct Inbound(Streaming<proto::ToCentral>);

impl Inbound {
    /// The next message; `None` when the gateway ended the session.
    pub async fn next(&mut self) -> Result<Option<ToCentral>, InboundError> {
        match self.0.message().await {
            Ok(Some(m)) => Ok(Some(ToCentral::take(m)?)),
            Ok(None) => Ok(None),
            Err(status) => Err(InboundError::Connection(status.message().to_owned())),
        }
    }
}

/// Why a session is ended by central; becomes the gRPC status that the gateway logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goodbye {
    /// Certificate and Hello name different gateways.
    OtherName(String),
    /// The protocol's version or rules.
    Protocol(String),
    /// Nothing can be stored now; come back.
    Busy(String),
    /// A newer session of the same gateway came.
    Superseded,
    /// Central stops.
    Stopping,
}

impl Goodbye {
    fn status(self) -> Status {
        match self {
            Self::OtherName(m) => Status::permission_denied(m),
            Self::Protocol(m) => Status::failed_precondition(m),
            Self::Busy(m) => Status::unavailable(m),
            Self::Superseded => Status::aborted("a newer session of this gateway has begun"),
            Self::Stopping => Status::unavailable("central is stopping"),
        }
    }
}

/// The gateway does not read what it is sent, or is gone.
#[derive(Debug, Clone, Copy, Error, PartialEq, Eq)]
#[error("the gateway does not read what it is sent")]
pub struct Unread;

/// Where to say something to a gateway.
#[derive(Debug, Clone)]
pub struct Outbound(mpsc::Sender<Result<proto::ToGateway, Status>>);

impl Outbound {
    /// Queues a message; an error when the gateway has not read the last [`OUTBOUND_MESSAGES`].
    pub fn send(&self, message: ToGateway) -> Result<(), Unread> {
        self.0.try_send(Ok(message.put())).map_err(|_| Unread)
    }

    /// Ends the session with a reason; what was queued before is still sent.
    pub fn goodbye(self, why: Goodbye) {
        // When the queue is full the session ends all the same, without the reason.
        let _ = self.0.try_send(Err(why.status()));
    }
}

/// Bounds of the server.
#[derive(Debug, Clone)]
pub struct ServerConfigLimits {
    /// Most connections at once.
    pub connections: usize,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
    /// A ping goes out after so long of silence…
    pub keepalive_interval: Duration,
    /// …and the connection is dropped when no answer came within this.
    pub keepalive_timeout: Duration,
}

impl Default for ServerConfigLimits {
    fn default() -> Self {
        Self {
            connections: 4_096,
            handshake_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(10),
        }
    }
}

/// Why the server could not run.
#[derive(Debug, Error)]
pub enum ServerError {
    /// Its certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Its sockets.
    #[error("the link's server failed: {0}")]
    Transport(String),
}

/// Serves gateways on a bound listener until `stop` is cancelled; then sessions are told so and end.
pub async fn serve<H: Handler>(
    listener: TcpListener,
    files: &TlsFiles,
    limits: ServerConfigLimits,
    handler: Arc<H>,
    stop: CancellationToken,
) -> Result<(), ServerError> {
    let tls = files.server_config()?;
    let tracker = TaskTracker::new();
    let incoming = Incoming {
        listener,
        tls,
        permits: Arc::new(Semaphore::new(limits.connections)),
        handshake_timeout: limits.handshake_timeout,
        handshakes: JoinSet::new(),
        handler: handler.clone(),
    };
    let service = Service { handler, tracker: tracker.clone(), stop: stop.clone() };
    let service = proto::link_server::LinkServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let served = tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(STREAM_WINDOW_BYTES)
        .max_concurrent_streams(4)
        .http2_keepalive_interval(Some(limits.keepalive_interval))
        .http2_keepalive_timeout(Some(limits.keepalive_timeout))
        .add_service(service)
        .serve_with_incoming_shutdown(incoming.into_stream(), stop.clone().cancelled_owned())
        .await
        .map_err(|e| ServerError::Transport(crate::chain(&e)));
    stop.cancel();
    tracker.close();
    tracker.wait().await;
    served
}

struct Service<H> {
    handler: Arc<H>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

#[tonic::async_trait]
impl<H: Handler> proto::link_server::Link for Service<H> {
    type SessionStream = ReceiverStream<Result<proto::ToGateway, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<proto::ToCentral>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::internal("a connection without an identity"))?;
        let (tx, rx) = mpsc::channel(OUTBOUND_MESSAGES);
        let inbound = Inbound(request.into_inner());
        let session = self.handler.clone().session(peer, inbound, Outbound(tx), self.stop.clone());
        self.tracker.spawn(session);
        Ok(Response::new(ReceiverStream::new(rx)))
    }
}

struct Incoming<H> {
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    permits: Arc<Semaphore>,
    handshake_timeout: Duration,
    handshakes: JoinSet<Option<PeerStream>>,
    handler: Arc<H>,
}

impl<H: Handler> Incoming<H> {
    fn into_stream(self) -> impl futures_util::Stream<Item = io::Result<PeerStream>> {
        futures_util::stream::unfold(self, |mut me| async move { me.next().await.map(|s| (Ok(s), me)) })
    }

    async fn next(&mut self) -> Option<PeerStream> {
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if self.handshakes.len() < HANDSHAKES_MAX => match accepted {
                    Ok((tcp, address)) => self.shake(tcp, address),
                    Err(error) => {
                        // Out of file descriptors, most likely: some will be closed.
                        tracing::error!(%error, "a connection could not be accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(done) = self.handshakes.join_next() => {
                    if let Ok(Some(stream)) = done {
                        return Some(stream);
                    }
                }
            }
        }
    }

    fn shake(&mut self, tcp: TcpStream, address: SocketAddr) {
        let Ok(permit) = self.permits.clone().try_acquire_owned() else {
            return self.handler.refused(address, Refusal::TooMany, "every connection is in use");
        };
        let acceptor = TlsAcceptor::from(self.tls.clone());
        let (handler, limit) = (self.handler.clone(), self.handshake_timeout);
        self.handshakes.spawn(async move {
            // Without it small acknowledgements wait for the other end's delayed ones.
            let _ = tcp.set_nodelay(true);
            match timeout(limit, acceptor.accept(tcp)).await {
                Err(_) => handler.refused(address, Refusal::NotTls, "no handshake in time"),
                Ok(Err(error)) => match Refusal::of(&error) {
                    Some(reason) => handler.refused(address, reason, &error.to_string()),
                    None => tracing::debug!(%address, %error, "a caller went away during the handshake"),
                },
                Ok(Ok(stream)) => {
                    let leaf = stream.get_ref().1.peer_certificates().and_then(|c| c.first());
                    match leaf.and_then(subject) {
                        Some(s) => {
                            let peer = Peer { name: s.name, serial: s.serial, address };
                            return Some(PeerStream { stream, peer, _permit: permit });
                        }
                        None => {
                            handler.refused(
                                address,
                                Refusal::BadCertificate,
                                "the certificate has no common name",
                            );
                        }
                    }
                }
            }
            None
        });
    }
}

/// A TLS connection whose caller is known; holds its place among the connections.
struct PeerStream {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    _permit: OwnedSemaphorePermit,
}

impl Connected for PeerStream {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
