//! Devices connect here over MQTT; a publish of QoS 1 is acknowledged when its fdatasync is done.
//!
//! - one task per connection owns all that belongs to it; the protocol is [`mqtt::Session`]'s, the storing is the
//!   door's, and what is here moves bytes between them;
//! - a read is one push: all its publishes share a ticket, and their acknowledgements leave together, in order;
//! - when the buffer is full, nothing is read and nothing is acknowledged: the device waits, its events are its own;
//! - a client id has one connection: a newer one waits until the older has ended, so that no publish of the older can
//!   come in between;
//! - connections, bytes per connection and large packets under way are bounded.
//!
//! It never drops a publish that it has read, except those of a connection that ends before the buffer has room: these
//! were not acknowledged, and those of QoS 0 are counted.

mod connection;
mod metrics;
mod registry;

use crate::config::ListenerSource;
use crate::ingest::Door;
use crate::limits::{LARGE_PACKETS_MAX, REFUSED_AT_ONCE_MAX};
use connection::Connection;
use daemon::metrics::Registry;
use metrics::ListenerMetrics;
use mqtt::ConnectionId;
use record::{SourceName, clock::Clock};
use registry::Present;
use std::{sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// How long to wait after a failed accept: it fails when the process is out of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What the connections of a listener share.
struct Listener {
    name: SourceName,
    settings: ListenerSource,
    config: mqtt::Config,
    door: Arc<Door>,
    clock: Arc<dyn Clock>,
    metrics: ListenerMetrics,
    present: Present,
    /// Ids that the listener gives out differ from run to run by this.
    started_ns: i64,
    /// Connections that may hold a packet larger than a read.
    large_packets: Arc<Semaphore>,
    stop: CancellationToken,
}

/// Whether a connection is let in.
enum Admitted {
    /// With its place among the connections.
    Yes(OwnedSemaphorePermit),
    /// Over the bound: told so, then closed.
    No(OwnedSemaphorePermit),
}

/// Accepts connections until told to stop, then ends them and waits for them.
pub async fn serve(
    listener: TcpListener,
    name: SourceName,
    settings: ListenerSource,
    door: Arc<Door>,
    clock: Arc<dyn Clock>,
    registry: &Registry,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let places = Arc::new(Semaphore::new(settings.connections));
    let refusals = Arc::new(Semaphore::new(REFUSED_AT_ONCE_MAX));
    let shared = Arc::new(Listener {
        metrics: ListenerMetrics::new(registry, &name),
        present: Present::new(),
        config: mqtt::Config::default(),
        started_ns: clock.wall_ns(),
        large_packets: Arc::new(Semaphore::new(LARGE_PACKETS_MAX)),
        name,
        settings,
        door,
        clock,
        stop: stop.clone(),
    });
    let mut connections = JoinSet::new();
    let mut number = 0;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(ended) = connections.join_next() => {
                report_panic(&shared, ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                shared.metrics.once("accept", || {
                    tracing::warn!(source = %shared.name, %error, "cannot accept a connection, trying again");
                });
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Some(admitted) = admit(&places, &refusals) else {
            shared.metrics.refused("too_many_connections");
            continue;
        };
        number += 1;
        connections.spawn(handle(shared.clone(), stream, ConnectionId(number), admitted));
    }
    drop(listener);
    while let Some(ended) = connections.join_next().await {
        report_panic(&shared, ended);
    }
    Ok(())
}

fn admit(places: &Arc<Semaphore>, refusals: &Arc<Semaphore>) -> Option<Admitted> {
    match places.clone().try_acquire_owned() {
        Ok(place) => Some(Admitted::Yes(place)),
        Err(_) => refusals.clone().try_acquire_owned().ok().map(Admitted::No),
    }
}

async fn handle(shared: Arc<Listener>, stream: TcpStream, id: ConnectionId, admitted: Admitted) {
    let (let_in, _place) = match admitted {
        Admitted::Yes(place) => (true, place),
        Admitted::No(place) => (false, place),
    };
    shared.metrics.connections.inc();
    Connection::new(shared.clone(), stream, id, let_in).run().await;
    shared.metrics.connections.dec();
}

/// A panic ends one connection, whose publishes are not acknowledged; the others go on.
fn report_panic(shared: &Listener, ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        shared.metrics.connections.dec();
        tracing::error!(source = %shared.name, %error, "a connection's task failed");
    }
}
