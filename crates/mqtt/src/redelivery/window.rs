//! The window itself; what it promises stands in the module above.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::hash::xxh64;
use crate::limits;
use crate::packet::PacketId;
use crate::session::Ticket;

/// A client id, hashed to 128 bits: stands in logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ClientKey(pub u128);

impl ClientKey {
    /// The key of a client id of a source; equal client ids of two sources are two clients.
    pub fn of(source: &str, client_id: &str) -> Self {
        let half = |seed| u128::from(xxh64(client_id.as_bytes(), xxh64(source.as_bytes(), seed)));
        Self(half(1) << 64 | half(2))
    }
}

/// The QoS 1 publishes of one client in one read that are about to be stored, in order.
///
/// Publishes that match no stream belong into it too, with [`NO_CONTENT`](super::NO_CONTENT) for their hash: they use
/// packet ids like all others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Run {
    pub(super) client: ClientKey,
    pub(super) opens: bool,
    pub(super) persistent: bool,
    pub(super) in_flight: u16,
    pub(super) records: Vec<(PacketId, u64)>,
}

impl Run {
    /// An empty run of a client that continues its session. `in_flight`: see
    /// [`Session::in_flight_bound`](crate::Session::in_flight_bound).
    pub fn continued(client: ClientKey, persistent: bool, in_flight: u16) -> Self {
        Self { client, opens: false, persistent, in_flight, records: Vec::new() }
    }

    /// An empty run of a client whose session begins: clean start, or nothing was known of it. What the window knew
    /// of the client is forgotten when the run is recorded.
    pub fn opened(client: ClientKey, persistent: bool, in_flight: u16) -> Self {
        Self { opens: true, ..Self::continued(client, persistent, in_flight) }
    }

    /// Adds a publish that will be stored; `hash` is its [`content_hash`](super::content_hash).
    #[inline]
    pub fn push(&mut self, id: PacketId, hash: u64) {
        self.records.push((id, hash));
    }

    /// The client.
    pub fn client(&self) -> ClientKey {
        self.client
    }

    /// Publishes in the run.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// True when it holds no publish.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// True when recording it changes anything.
    pub fn matters(&self) -> bool {
        self.opens || !self.records.is_empty()
    }

    /// Ready for the next read of the same connection, keeping its memory.
    pub fn reset(&mut self, in_flight: u16) {
        self.opens = false;
        self.in_flight = in_flight;
        self.records.clear();
    }
}

/// What a publish with DUP is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// To be stored: new, or not certain to be a repeat.
    Store,
    /// Already in the journal under this ticket: to be acknowledged once that is durable, and not to be stored.
    Repeat(Ticket),
}

/// Bounds of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Records per client; at least the receive maximum of the listeners.
    pub records_per_client: usize,
    /// Records over all clients.
    pub records_total: usize,
    /// Clients.
    pub clients: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            records_per_client: limits::WINDOW_RECORDS_PER_CLIENT,
            records_total: limits::WINDOW_RECORDS_TOTAL,
            clients: limits::WINDOW_CLIENTS,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) hash: u64,
    pub(super) ticket: Ticket,
    pub(super) id: PacketId,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Client {
    pub(super) persistent: bool,
    pub(super) opened: Ticket,
    /// Largest in-flight bound that any connection of the session had.
    pub(super) in_flight: u16,
    /// Publishes stored since the ids began to count up without interruption.
    pub(super) issued: u64,
    /// The newest of them; their ids count up from front to back.
    pub(super) records: VecDeque<Record>,
    /// Place in the order of use.
    pub(super) used: u64,
}

/// Recent QoS 1 publishes of all clients.
#[derive(Debug, Default)]
pub struct Window {
    pub(super) limits: Limits,
    pub(super) clients: HashMap<ClientKey, Client>,
    /// Clients by last use, the longest silent first.
    pub(super) by_use: BTreeMap<u64, ClientKey>,
    uses: u64,
    records: usize,
}

/// Forward distance between two ids on the circle of 1 to 65,535.
fn distance(from: PacketId, to: PacketId) -> u16 {
    let (from, to) = (from.get(), to.get());
    if to >= from { to - from } else { u16::MAX - from + to }
}

impl Client {
    /// Adds a stored publish; returns by how much the number of records changed.
    fn add(&mut self, record: Record, records_max: usize) -> isize {
        let before = self.records.len();
        let counts_up = self
            .records
            .back()
            .is_some_and(|newest| (1..=limits::PACKET_ID_STEP_MAX).contains(&distance(newest.id, record.id)));
        if !counts_up {
            self.records.clear();
            self.issued = 0;
        }
        if self.records.len() >= records_max {
            self.records.pop_front();
        }
        self.records.push_back(record);
        self.issued += 1;
        self.records.len().cast_signed() - before.cast_signed()
    }

    /// The record with this id, and its number since the ids began to count up.
    fn find(&self, id: PacketId) -> Option<(u64, Record)> {
        let newest = self.records.back()?;
        let back = distance(id, newest.id);
        let at = self.records.partition_point(|record| distance(record.id, newest.id) > back);
        let record = self.records.get(at).filter(|record| record.id == id)?;
        let newer = (self.records.len() - 1 - at) as u64;
        Some((self.issued - newer, *record))
    }
}

impl Window {
    /// An empty window.
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Judges a publish that carries DUP; for one without, the answer is always to store it, so do not ask.
    ///
    /// `in_flight` is the bound of the connection, `durable` the newest durable ticket. Publishes of the same client
    /// that wait in a [`Run`] are unknown here: record that run first.
    pub fn judge(
        &self,
        client: ClientKey,
        id: PacketId,
        hash: u64,
        in_flight: u16,
        durable: Ticket,
    ) -> Verdict {
        let Some(known) = self.clients.get(&client) else { return Verdict::Store };
        let Some((number, record)) = known.find(id).filter(|(_, record)| record.hash == hash) else {
            return Verdict::Store;
        };
        let in_flight = known.in_flight.max(in_flight);
        let bound = u64::from(in_flight) + u64::from(limits::OTHER_IDS_IN_FLIGHT);
        let certain = in_flight <= limits::IN_FLIGHT_JUDGED_MAX && number > bound;
        if certain || record.ticket > durable { Verdict::Repeat(record.ticket) } else { Verdict::Store }
    }

    /// Whether a stored publish of the client has this packet id and hash, certain or not. With DUP that is a repeat
    /// where an equal hash can only mean an equal event: where payloads carry the time of their reading.
    pub fn resembles(&self, client: ClientKey, id: PacketId, hash: u64) -> bool {
        let known = self.clients.get(&client);
        known.and_then(|known| known.find(id)).is_some_and(|(_, record)| record.hash == hash)
    }

    /// Remembers a run that the journal has taken under `ticket`. At start: runs of the log's frames, with ticket 0.
    pub fn record(&mut self, run: &Run, ticket: Ticket) {
        if !run.matters() {
            return;
        }
        self.begin(run, ticket);
        for &(id, hash) in &run.records {
            self.store(run.client, id, hash, ticket);
        }
    }

    /// Remembers what a run says of its session, without its publishes.
    pub fn begin(&mut self, run: &Run, ticket: Ticket) {
        if run.opens {
            self.forget(run.client);
        }
        let client = self.touch(run.client, ticket);
        client.persistent = run.persistent;
        client.in_flight = client.in_flight.max(run.in_flight);
        self.evict(run.client);
    }

    /// Remembers one publish that the journal has taken under `ticket`.
    pub fn store(&mut self, key: ClientKey, id: PacketId, hash: u64, ticket: Ticket) {
        let records_max = self.limits.records_per_client;
        let change = self.touch(key, ticket).add(Record { hash, ticket, id }, records_max);
        self.records = self.records.saturating_add_signed(change);
        self.evict(key);
    }

    /// The client, made if it is not there, as the one used last.
    fn touch(&mut self, key: ClientKey, ticket: Ticket) -> &mut Client {
        let newest = self.uses;
        let client = self.clients.entry(key).or_insert_with(|| Client {
            opened: ticket,
            used: 0,
            ..Client::default()
        });
        // Publishes come in runs of one client, which is then the newest already.
        if client.used == 0 || client.used != newest {
            self.by_use.remove(&client.used);
            self.uses += 1;
            client.used = self.uses;
            self.by_use.insert(self.uses, key);
        }
        client
    }

    /// Everything about the client is forgotten, as when its session ends.
    pub fn forget(&mut self, client: ClientKey) {
        if let Some(gone) = self.clients.remove(&client) {
            self.by_use.remove(&gone.used);
            self.records -= gone.records.len();
        }
    }

    /// True when publishes of the client are remembered: from then on, all that it sends must be.
    pub fn follows(&self, client: ClientKey) -> bool {
        self.clients.get(&client).is_some_and(|known| !known.records.is_empty())
    }

    /// True when the client has a session that outlives its connections.
    pub fn knows(&self, client: ClientKey) -> bool {
        self.clients.get(&client).is_some_and(|known| known.persistent)
    }

    /// Clients in the window.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Records over all clients.
    pub fn records(&self) -> usize {
        self.records
    }

    fn evict(&mut self, keep: ClientKey) {
        while self.clients.len() > self.limits.clients || self.records > self.limits.records_total {
            match self.by_use.values().next() {
                Some(&oldest) if oldest != keep => self.forget(oldest),
                _ => return,
            }
        }
    }

    /// Puts a decoded client in, as the most recently used.
    pub(super) fn restore(&mut self, key: ClientKey, mut client: Client) {
        self.forget(key);
        self.uses += 1;
        client.used = self.uses;
        while client.records.len() > self.limits.records_per_client {
            client.records.pop_front();
        }
        self.records += client.records.len();
        self.by_use.insert(self.uses, key);
        self.clients.insert(key, client);
        self.evict(key);
    }

    /// True when the ids of decoded records count up.
    pub(super) fn counts_up(records: &VecDeque<Record>) -> bool {
        records
            .iter()
            .zip(records.iter().skip(1))
            .all(|(older, newer)| (1..=limits::PACKET_ID_STEP_MAX).contains(&distance(older.id, newer.id)))
    }
}
