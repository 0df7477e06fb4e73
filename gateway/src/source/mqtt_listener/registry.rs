//! Who is connected: take-over of a client id waits for the older connection's end.

use mqtt::{Clients, ConnectRequest, ConnectionId};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};
use tokio_util::sync::CancellationToken;

/// Sessions of clients that are not connected, remembered while the process runs.
const SESSIONS_MAX: usize = 10_000;

/// The clients of a listener.
pub(super) struct Present(Mutex<State>);

struct State {
    clients: Clients,
    handles: HashMap<ConnectionId, Handle>,
}

/// Two signals between a connection and who takes its client id over.
#[derive(Clone)]
pub(super) struct Handle {
    /// The connection is to end.
    pub(super) taken_over: CancellationToken,
    /// It has ended, and nothing of it comes any more.
    pub(super) ended: CancellationToken,
}

impl Handle {
    pub(super) fn new() -> Self {
        Self { taken_over: CancellationToken::new(), ended: CancellationToken::new() }
    }
}

/// A client id that belongs to a connection.
pub(super) struct Attached {
    /// A session of the client is continued.
    pub(super) session_present: bool,
    /// The connection that had the client id: told to end, and to be waited for.
    pub(super) older: Option<CancellationToken>,
}

impl Present {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State { clients: Clients::new(SESSIONS_MAX), handles: HashMap::new() }))
    }

    /// `remembered`: an earlier run of the program knew a session of the client.
    pub(super) fn attach(
        &self,
        request: &ConnectRequest,
        client_id: &str,
        id: ConnectionId,
        handle: &Handle,
        remembered: bool,
        now_ns: u64,
    ) -> Attached {
        let mut state = self.lock();
        let attached =
            state.clients.attach(client_id, request.clean, request.session_expiry_s, id, now_ns, remembered);
        state.handles.insert(id, handle.clone());
        let older = attached.taken_over.and_then(|older| state.handles.get(&older)).map(|older| {
            older.taken_over.cancel();
            older.ended.clone()
        });
        Attached { session_present: attached.session_present, older }
    }

    /// The connection has ended.
    pub(super) fn detach(&self, client_id: &str, id: ConnectionId, expiry_s: u32, now_ns: u64) {
        let mut state = self.lock();
        state.clients.detach(client_id, id, expiry_s, now_ns);
        state.handles.remove(&id);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Every change leaves the state usable at each step, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
