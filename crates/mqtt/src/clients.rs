//! Which connection a client id belongs to.
//!
//! A client id has one connection: a newer one takes it over (MQTT-3.1.4-2). Sessions outlive connections when the
//! client asks for it; which sessions exist is remembered here and bounded, the oldest disconnected one goes first.

use std::collections::HashMap;

/// Number of a connection, unique within a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// What [`Clients::attach`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attached {
    /// The connection that had the client id and is to be closed with reason 0x8E.
    pub taken_over: Option<ConnectionId>,
    /// A session of the client was known and is continued.
    pub session_present: bool,
}

#[derive(Debug)]
struct Entry {
    connection: Option<ConnectionId>,
    persistent: bool,
    /// Moment of the last detach, for eviction and expiry.
    left_ns: u64,
    expiry_s: u32,
}

/// All client ids that are connected or have a session.
#[derive(Debug)]
pub struct Clients {
    entries: HashMap<String, Entry>,
    sessions_max: usize,
}

impl Clients {
    /// Remembers at most `sessions_max` sessions of clients that are not connected.
    pub fn new(sessions_max: usize) -> Self {
        Self { entries: HashMap::new(), sessions_max }
    }

    /// A client connects. `clean` discards its session; `expiry_s` above zero makes the session outlive the connection.
    /// `remembered`: the log of an earlier run of the program tells of a session that this directory does not know.
    pub fn attach(
        &mut self,
        client_id: &str,
        clean: bool,
        expiry_s: u32,
        connection: ConnectionId,
        now_ns: u64,
        remembered: bool,
    ) -> Attached {
        let known = self.entries.get(client_id);
        let taken_over = known.and_then(|entry| entry.connection);
        let session_present = !clean && known.map_or(remembered, |entry| entry.is_alive(now_ns));
        let entry =
            Entry { connection: Some(connection), persistent: expiry_s > 0, left_ns: now_ns, expiry_s };
        self.entries.insert(client_id.to_owned(), entry);
        Attached { taken_over, session_present }
    }

    /// A connection ended. Nothing happens when another one has taken the client id over.
    pub fn detach(&mut self, client_id: &str, connection: ConnectionId, expiry_s: u32, now_ns: u64) {
        let Some(entry) = self.entries.get_mut(client_id) else { return };
        if entry.connection != Some(connection) {
            return;
        }
        if expiry_s == 0 {
            self.entries.remove(client_id);
            return;
        }
        *entry = Entry { connection: None, persistent: true, left_ns: now_ns, expiry_s };
        self.evict();
    }

    /// Connected clients.
    pub fn connected(&self) -> usize {
        self.entries.values().filter(|entry| entry.connection.is_some()).count()
    }

    /// Clients that are connected or have a session.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when nobody is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn evict(&mut self) {
        // The bound is passed rarely, and a sixteenth goes at once, so that scans stay rare.
        let idle = |entry: &Entry| entry.connection.is_none();
        if self.entries.len() <= self.sessions_max {
            return;
        }
        if self.entries.values().filter(|entry| idle(entry)).count() <= self.sessions_max {
            return;
        }
        let mut left: Vec<u64> =
            self.entries.values().filter(|entry| idle(entry)).map(|e| e.left_ns).collect();
        left.sort_unstable();
        let cut = left[left.len() / 16];
        self.entries.retain(|_, entry| !idle(entry) || entry.left_ns > cut);
    }
}

impl Entry {
    fn is_alive(&self, now_ns: u64) -> bool {
        const SECOND_NS: u64 = 1_000_000_000;
        let lasts_ns = u64::from(self.expiry_s).saturating_mul(SECOND_NS);
        self.persistent
            && (self.connection.is_some()
                || self.expiry_s == u32::MAX
                || now_ns.saturating_sub(self.left_ns) < lasts_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ConnectionId = ConnectionId(1);
    const B: ConnectionId = ConnectionId(2);

    #[test]
    fn newer_connection_takes_over_and_older_cannot_detach_it() {
        let mut clients = Clients::new(10);
        assert_eq!(
            clients.attach("d", true, 0, A, 0, false),
            Attached { taken_over: None, session_present: false }
        );
        assert_eq!(clients.attach("d", true, 0, B, 1, false).taken_over, Some(A));
        clients.detach("d", A, 0, 2);
        assert_eq!(clients.connected(), 1);
        clients.detach("d", B, 0, 3);
        assert!(clients.is_empty());
    }

    #[test]
    fn session_is_present_until_cleaned_or_expired() {
        let mut clients = Clients::new(10);
        clients.attach("d", false, 10, A, 0, false);
        clients.detach("d", A, 10, 0);
        assert!(clients.attach("d", false, 10, B, 9_999_999_999, false).session_present);
        clients.detach("d", B, 10, 10_000_000_000);
        assert!(!clients.attach("d", false, 10, A, 20_000_000_000, false).session_present);
        clients.detach("d", A, u32::MAX, 0);
        assert!(!clients.attach("d", true, u32::MAX, B, u64::MAX, false).session_present);
        assert!(clients.attach("d", false, u32::MAX, A, u64::MAX, false).session_present);
    }

    #[test]
    fn idle_sessions_are_bounded_oldest_first() {
        let mut clients = Clients::new(32);
        for n in 0..200u64 {
            let id = format!("d{n}");
            clients.attach(&id, false, u32::MAX, A, n, false);
            clients.detach(&id, A, u32::MAX, n);
        }
        assert!(clients.len() <= 32);
        assert!(clients.attach("d199", false, 1, A, 200, false).session_present);
        assert!(!clients.attach("d0", false, 1, A, 200, false).session_present);
    }

    #[test]
    fn remembered_session_is_present_unless_cleaned() {
        let mut clients = Clients::new(2);
        assert!(!clients.attach("c", true, 5, A, 1, true).session_present);
        assert!(clients.attach("d", false, 5, A, 1, true).session_present);
    }
}
