//! What is known of every gateway, for the API, the auditor and people.
//!
//! Written by the link role, read by others; a copy in memory of what the log holds, plus who is connected.

use crate::log::{Counted, Head, Progress, ProgressRecord, Quarantined};
use ::link::message::Refuse;
use record::{GatewayId, Incarnation, StreamName};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// A session that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// From where.
    pub address: SocketAddr,
    /// Since when, nanoseconds since the epoch.
    pub since_ns: i64,
    /// Name and version of the gateway's program.
    pub software: String,
    /// The serial of its certificate.
    pub serial: String,
    /// The life of its folder.
    pub incarnation: Incarnation,
}

/// A stream of a gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamState {
    /// How far it is stored.
    pub head: Option<Head>,
    /// What the gateway said it counted.
    pub counted: Option<Counted>,
    /// The newest block that could not be.
    pub quarantined: Option<Quarantined>,
    /// Why it is refused in the present session.
    pub refused: Option<Refuse>,
}

/// A gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GatewayState {
    /// The session, when one stands.
    pub connected: Option<Connection>,
    /// When it last said something since central started, nanoseconds since the epoch.
    pub last_seen_ns: Option<i64>,
    /// Its streams.
    pub streams: BTreeMap<StreamName, StreamState>,
}

/// All gateways ever heard of.
#[derive(Debug, Default)]
pub struct Gateways(Mutex<BTreeMap<GatewayId, GatewayState>>);

impl Gateways {
    /// Nobody yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<GatewayId, GatewayState>> {
        // Entries are replaced field by field; a panic leaves at worst one that is a little old.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of everything.
    pub fn snapshot(&self) -> BTreeMap<GatewayId, GatewayState> {
        self.lock().clone()
    }

    /// How many are connected.
    pub fn connected(&self) -> usize {
        self.lock().values().filter(|g| g.connected.is_some()).count()
    }

    pub(super) fn with<T>(&self, gateway: &GatewayId, f: impl FnOnce(&mut GatewayState) -> T) -> T {
        f(self.lock().entry(gateway.clone()).or_default())
    }

    /// Takes over what is stored.
    pub fn stored(&self, records: &[ProgressRecord]) {
        let mut all = self.lock();
        for r in records {
            let gateway = all.entry(r.gateway.clone()).or_default();
            let stream = gateway.streams.entry(r.stream.clone()).or_default();
            match &r.value {
                Progress::Head(h) => stream.head = Some(h.clone()),
                Progress::Counted(c) => stream.counted = Some(c.clone()),
                Progress::Quarantined(q) => stream.quarantined = Some(q.clone()),
            }
        }
    }
}
