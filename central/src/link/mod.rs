//! The link role: gateways knock here, their blocks go into the log, and they are acknowledged when they stand there.
//!
//! In data order: [`session`] (one per gateway: who is it, may its schemas be, is a block what it says) → [`committer`]
//! (one per shard that this process owns, started by [`owner`]: order, repeats, gaps; groups; commit; acknowledge). What
//! a committer does is decided by [`core`], which does no I/O. [`gateways`] is what both let the API see.
//!
//! Invariants:
//! - a block is acknowledged only after the log has it durably, together with the head of its chain;
//! - after a commit whose outcome is unknown everything is forgotten and the shard is claimed again;
//! - a gateway whose shard another process owns is sent there, or asked to come back when that is not known;
//! - a gateway speaks only for itself: its certificate's name is its id;
//! - what waits to be committed is bounded; a full log makes gateways wait, it loses nothing.

mod committer;
pub mod core;
pub mod gate;
pub mod gateways;
mod metrics;
mod owner;
mod session;

pub use gate::{SchemaGate, SchemaRefusal, Unchecked};
pub use gateways::{Connection, GatewayState, Gateways, StreamState};
pub use metrics::{LinkMetrics, log_size_metrics, watch_log};

use crate::log::{ClaimError, Log, Panicked};
use ::link::{
    server::{ServerConfigLimits, ServerError, serve},
    tls::{RevokedSerials, TlsError, TlsFiles},
};
use record::clock::Clock;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How the link role runs.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// Where gateways connect.
    pub bind: SocketAddr,
    /// Central's certificate, the authority of the gateways', the list of revoked ones.
    pub tls: TlsFiles,
    /// A group is committed when its first block has waited so long…
    pub commit_interval: Duration,
    /// …or when it holds so many bytes.
    pub commit_bytes: usize,
    /// Bounds of the sockets.
    pub limits: ServerConfigLimits,
}

/// What the link role stands on.
#[derive(Clone)]
pub struct LinkParts {
    /// Where blocks go.
    pub log: Arc<dyn Log>,
    /// Who decides whether a stream's columns fit its table.
    pub gate: Arc<dyn SchemaGate>,
    /// What the API sees.
    pub gateways: Arc<Gateways>,
    /// What is counted.
    pub metrics: LinkMetrics,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// Why the link role ended.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The address cannot be bound.
    #[error("the link cannot listen on {address}: {source}")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The list of revoked certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The sockets.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The log can no longer be used; a restart recovers it.
    #[error(transparent)]
    Log(#[from] ClaimError),
    /// A part of the role ended although nobody asked it to.
    #[error("the link's {0} ended")]
    Ended(&'static str),
}

impl From<Panicked> for LinkError {
    fn from(_: Panicked) -> Self {
        Self::Ended("committer")
    }
}

/// Binds the address, so that a caller knows it before gateways come.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, LinkError> {
    TcpListener::bind(address).await.map_err(|source| LinkError::Bind { address, source })
}

/// Serves gateways until `stop` is cancelled.
pub async fn run(
    config: LinkConfig,
    listener: TcpListener,
    parts: LinkParts,
    stop: CancellationToken,
) -> Result<(), LinkError> {
    // Committers outlive the sessions that feed them.
    let committing = CancellationToken::new();
    let _ends_with_this = committing.clone().drop_guard();
    let routes = owner::Routes::default();
    let owning = owner::own_shards(parts.clone(), config.clone(), routes.clone(), committing.clone());
    let revoked = config.tls.revoked.as_deref().map(RevokedSerials::load).transpose()?;
    let handler = Arc::new(session::Sessions::new(parts, routes, revoked));
    let serving = stop.child_token();
    let server = serve(listener, &config.tls, config.limits.clone(), handler, serving.clone());
    tokio::pin!(server);
    let ended = tokio::select! {
        served = &mut server => return served.map_err(LinkError::from),
        ended = owning => ended.err().unwrap_or(LinkError::Ended("owner of shards")),
    };
    // Nothing can be stored any more: end the sessions and let the process be started again.
    serving.cancel();
    server.await?;
    Err(ended)
}
