//! A line: a TCP proxy between one program and a server, which can be cut, reset, held up, half-opened or closed to
//! newcomers, and which tells when a write of some size goes by, and waits there.
//!
//! Invariants:
//! - nothing is changed or reordered; what is swallowed makes a hole in the connection, so such a connection ends with a
//!   reset;
//! - without a fault it passes everything on at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::ports;

/// Longest time that a write waits where a trap has caught it.
const CAUGHT_MAX: Duration = Duration::from_secs(2);
/// Most bytes that are passed on at once; requests of the tests are smaller.
const CHUNK: usize = 64 * 1024;

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the program that has connected.
    ToServer,
    /// Back to it.
    ToClient,
}

/// How connections end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Both sides are closed.
    Cut,
    /// Both sides get a reset, whatever was on its way.
    Reset,
}

/// Which connections of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// All that there are, and those that come while it lasts.
    All,
    /// One.
    One(u64),
}

/// Where in a write a trap stops it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The server has nothing of it.
    Before,
    /// The server has one half.
    Within,
    /// The server has all of it; the answer is still to come.
    Behind,
}

/// Waits for a write to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trap {
    /// Least size of the write.
    pub bytes_min: usize,
    /// So many writes of any size on the same connection go by after it; the next one is caught.
    pub skip: u32,
    /// Where the write is stopped.
    pub place: Place,
}

/// A write that was caught. It goes on when this is dropped.
#[derive(Debug)]
pub struct Caught {
    /// Its connection.
    pub connection: u64,
    _release: oneshot::Sender<()>,
}

/// What a connection suffers.
#[derive(Debug, Clone, Copy, Default)]
struct Weather {
    held: bool,
    swallowed: Option<Way>,
    end: Option<End>,
}

struct Set {
    trap: Trap,
    /// The connection on which the first write went by, and how many more may pass.
    seen: Option<(u64, u32)>,
    caught: oneshot::Sender<Caught>,
}

#[derive(Default)]
struct State {
    connections: BTreeMap<u64, watch::Sender<Weather>>,
    next: u64,
    /// What a new connection begins with.
    begin: Weather,
    refusing: bool,
    trap: Option<Set>,
}

type Shared = Arc<Mutex<State>>;

fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A line. Dropping it ends all its connections.
pub struct Line {
    address: SocketAddr,
    shared: Shared,
    serving: JoinHandle<()>,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.serving.abort();
        self.end(Which::All, End::Cut);
    }
}

impl Line {
    /// A line to a server that need not be there yet.
    pub async fn to(server: SocketAddr) -> anyhow::Result<Self> {
        let address = ports::free();
        let listener = TcpListener::bind(address).await?;
        let shared = Shared::default();
        let serving = tokio::spawn(serve(listener, server, shared.clone()));
        Ok(Self { address, shared, serving })
    }

    /// Where the program connects to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The connections that stand.
    pub fn connections(&self) -> Vec<u64> {
        lock(&self.shared).connections.keys().copied().collect()
    }

    /// Nothing gets through, nothing is lost.
    pub fn hold(&self, which: Which) {
        self.change(which, |weather| weather.held = true);
    }

    /// What goes this way vanishes; both ends believe that they are connected.
    pub fn swallow(&self, which: Which, way: Way) {
        self.change(which, |weather| weather.swallowed = Some(way));
    }

    /// Ends connections; new ones may come.
    pub fn end(&self, which: Which, end: End) {
        let state = lock(&self.shared);
        for (id, weather) in &state.connections {
            if which == Which::All || which == Which::One(*id) {
                weather.send_modify(|weather| weather.end = Some(end));
            }
        }
    }

    /// New connections are reset at once.
    pub fn refuse(&self) {
        lock(&self.shared).refusing = true;
    }

    /// Ends every fault. What was held goes on; what has a hole is reset.
    pub fn clear(&self) {
        let mut state = lock(&self.shared);
        (state.refusing, state.begin, state.trap) = (false, Weather::default(), None);
        for weather in state.connections.values() {
            weather.send_modify(|weather| {
                weather.held = false;
                if weather.swallowed.is_some() {
                    weather.end = Some(End::Reset);
                }
            });
        }
    }

    /// Resolves when the next such write is caught; fails when the line was cleared, or another trap was set, before.
    pub fn trap(&self, trap: Trap) -> oneshot::Receiver<Caught> {
        let (caught, told) = oneshot::channel();
        lock(&self.shared).trap = Some(Set { trap, seen: None, caught });
        told
    }

    fn change(&self, which: Which, change: impl Fn(&mut Weather)) {
        let mut state = lock(&self.shared);
        if which == Which::All {
            change(&mut state.begin);
        }
        for (id, weather) in &state.connections {
            if which == Which::All || which == Which::One(*id) {
                weather.send_modify(&change);
            }
        }
    }
}

async fn serve(listener: TcpListener, server: SocketAddr, shared: Shared) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            // Out of files for a moment; whoever connects tries again.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let begun = {
            let mut state = lock(&shared);
            let id = state.next;
            state.next += 1;
            let (told, weather) = watch::channel(state.begin);
            (!state.refusing).then(|| {
                state.connections.insert(id, told);
                (id, weather)
            })
        };
        let Some((id, weather)) = begun else {
            // It is refused with a reset; a failure means that it is gone already.
            let _ = client.set_zero_linger();
            continue;
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            connection(client, server, id, weather, &shared).await;
            lock(&shared).connections.remove(&id);
        });
    }
}

/// One connection until either side or a fault ends it.
async fn connection(
    mut client: TcpStream,
    server: SocketAddr,
    id: u64,
    weather: watch::Receiver<Weather>,
    shared: &Shared,
) {
    let Ok(mut server) = TcpStream::connect(server).await else {
        // The server is not there: who connects to it directly would hear the same.
        let _ = client.set_zero_linger();
        return;
    };
    for side in [&client, &server] {
        let _ = side.set_nodelay(true);
    }
    let ended = {
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        let there = Pump { id, way: Way::ToServer, weather: weather.clone(), shared };
        let back = Pump { id, way: Way::ToClient, weather: weather.clone(), shared };
        tokio::select! {
            _ = async { tokio::try_join!(there.run(from_client, to_server), back.run(from_server, to_client)) } => None,
            end = ended(weather) => Some(end),
        }
    };
    if ended == Some(End::Reset) {
        for side in [&client, &server] {
            let _ = side.set_zero_linger();
        }
    }
}

async fn ended(mut weather: watch::Receiver<Weather>) -> End {
    match weather.wait_for(|weather| weather.end.is_some()).await.map(|weather| weather.end) {
        Ok(Some(end)) => end,
        // The line is gone.
        _ => End::Cut,
    }
}

struct Pump<'a> {
    id: u64,
    way: Way,
    weather: watch::Receiver<Weather>,
    shared: &'a Shared,
}

impl Pump<'_> {
    async fn run(
        mut self,
        mut from: impl AsyncReadExt + Unpin,
        mut to: impl AsyncWriteExt + Unpin,
    ) -> std::io::Result<()> {
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = from.read(&mut chunk).await?;
            let mut bytes = &chunk[..read];
            if read > 0
                && let Some(set) = self.sprung(read)
            {
                let (before, rest) = bytes.split_at(match set.trap.place {
                    Place::Before => 0,
                    Place::Within => read / 2,
                    Place::Behind => read,
                });
                to.write_all(before).await?;
                bytes = rest;
                let (release, released) = oneshot::channel();
                if set.caught.send(Caught { connection: self.id, _release: release }).is_ok() {
                    // Dropping the other end releases it, too.
                    let _ = timeout(CAUGHT_MAX, released).await;
                }
            }
            let way = self.way;
            // An error says that the line is gone; then the connection ends all the same.
            let _ = self.weather.wait_for(|weather| !weather.held).await;
            if self.weather.borrow().swallowed == Some(way) {
                if read == 0 {
                    return std::future::pending().await;
                }
                continue;
            }
            if read == 0 {
                return to.shutdown().await;
            }
            to.write_all(bytes).await?;
        }
    }

    /// The trap, when this write springs it.
    fn sprung(&self, bytes: usize) -> Option<Set> {
        if self.way == Way::ToClient {
            return None;
        }
        let mut state = lock(self.shared);
        let set = state.trap.as_mut()?;
        match &mut set.seen {
            Some((id, _)) if *id != self.id => return None,
            Some((_, left)) => *left -= 1,
            None if bytes < set.trap.bytes_min => return None,
            seen @ None => *seen = Some((self.id, set.trap.skip)),
        }
        let now = set.seen.is_some_and(|(_, left)| left == 0);
        if now { state.trap.take() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that gives back what it gets, in capitals.
    async fn server() -> anyhow::Result<SocketAddr> {
        let listener = TcpListener::bind(ports::free()).await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut chunk = [0; 1024];
                    while let Ok(read @ 1..) = client.read(&mut chunk).await {
                        chunk.make_ascii_uppercase();
                        if client.write_all(&chunk[..read]).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Ok(address)
    }

    async fn answer(client: &mut TcpStream, text: &str) -> anyhow::Result<String> {
        client.write_all(text.as_bytes()).await?;
        heard(client, text.len()).await
    }

    async fn heard(client: &mut TcpStream, length: usize) -> anyhow::Result<String> {
        let mut got = vec![0; length];
        timeout(Duration::from_secs(5), client.read_exact(&mut got)).await??;
        Ok(String::from_utf8(got)?)
    }

    async fn says_nothing(client: &mut TcpStream) -> bool {
        timeout(Duration::from_millis(60), client.read_u8()).await.is_err()
    }

    #[tokio::test]
    async fn what_is_held_arrives_what_is_swallowed_does_not() -> anyhow::Result<()> {
        let line = Line::to(server().await?).await?;
        let (mut one, mut other) =
            (TcpStream::connect(line.address()).await?, TcpStream::connect(line.address()).await?);
        assert_eq!(answer(&mut one, "a").await?, "A");
        assert_eq!(answer(&mut other, "b").await?, "B");
        line.hold(Which::All);
        one.write_all(b"cd").await?;
        assert!(says_nothing(&mut one).await);
        line.clear();
        assert_eq!(heard(&mut one, 2).await?, "CD");
        let first = line.connections()[0];
        line.swallow(Which::One(first), Way::ToClient);
        one.write_all(b"e").await?;
        assert!(says_nothing(&mut one).await);
        assert_eq!(answer(&mut other, "f").await?, "F");
        line.clear();
        let error = timeout(Duration::from_secs(5), one.read_u8()).await?.expect_err("a reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(answer(&mut other, "g").await?, "G");
        Ok(())
    }

    #[tokio::test]
    async fn connections_end_and_newcomers_are_refused() -> anyhow::Result<()> {
        let line = Line::to(server().await?).await?;
        let mut client = TcpStream::connect(line.address()).await?;
        assert_eq!(answer(&mut client, "a").await?, "A");
        line.refuse();
        line.end(Which::All, End::Cut);
        assert_eq!(client.read(&mut [0]).await?, 0);
        let mut client = TcpStream::connect(line.address()).await?;
        assert!(client.read_u8().await.is_err());
        line.clear();
        let mut client = TcpStream::connect(line.address()).await?;
        assert_eq!(answer(&mut client, "b").await?, "B");
        Ok(())
    }

    #[tokio::test]
    async fn a_trap_stops_the_write_that_it_waits_for_where_it_is_asked_to() -> anyhow::Result<()> {
        let line = Line::to(server().await?).await?;
        let mut client = TcpStream::connect(line.address()).await?;
        for (place, heard_first) in [(Place::Before, ""), (Place::Within, "LO"), (Place::Behind, "LONG")] {
            let caught = line.trap(Trap { bytes_min: 3, skip: 1, place });
            assert_eq!(answer(&mut client, "ab").await?, "AB");
            assert_eq!(answer(&mut client, "long").await?, "LONG");
            client.write_all(b"long").await?;
            let caught = timeout(Duration::from_secs(5), caught).await??;
            assert_eq!(caught.connection, line.connections()[0]);
            assert_eq!(heard(&mut client, heard_first.len()).await?, heard_first);
            assert!(says_nothing(&mut client).await);
            drop(caught);
            assert_eq!(heard(&mut client, 4 - heard_first.len()).await?, &"LONG"[heard_first.len()..]);
        }
        Ok(())
    }
}
