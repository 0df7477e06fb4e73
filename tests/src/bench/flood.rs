//! A load program for MQTT brokers that costs next to nothing itself: QoS 1 publishes encoded beforehand, a window in
//! flight on each of a few connections, one thread.
//!
//! It is the same for every server that it is pointed at, so that only the servers differ. It never waits longer than
//! its deadline and never sends to another address than loopback.

use crate::simple;
use anyhow::{Context as _, Result, bail, ensure};
use std::{
    cell::Cell,
    io::{ErrorKind, Read as _, Write as _},
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::{io::Interest, net::TcpStream};

/// What to send.
#[derive(Debug, Clone)]
pub struct Flood {
    /// The server; must be a loopback address.
    pub server: SocketAddr,
    /// Connections, each with its own client id and topic.
    pub connections: usize,
    /// Publishes without acknowledgement that a connection may have at a time.
    pub in_flight: usize,
    /// Publishes in all; each is sent once.
    pub messages: u64,
    /// Bytes of each JSON payload, filled up with a text column.
    pub payload_bytes: usize,
    /// Whether that text has no pattern, so that no compression makes it much smaller.
    pub noise: bool,
    /// Publishes a second over all connections; `None` sends as fast as acknowledgements come.
    pub rate: Option<u64>,
    /// Topics are `<topic_root>/<connection>/telemetry`.
    pub topic_root: String,
    /// When to give up.
    pub deadline: Duration,
}

/// What came back.
#[derive(Debug, Clone, Copy)]
pub struct Flooded {
    /// Acknowledged publishes.
    pub acknowledged: u64,
    /// From the first publish to the last acknowledgement.
    pub seconds: f64,
}

impl Flooded {
    /// Acknowledged publishes a second.
    pub fn per_second(&self) -> f64 {
        self.acknowledged as f64 / self.seconds
    }
}

/// Encoded publishes of one connection: every packet id once, so that a run longer than 65,535 begins again.
struct Encoded {
    bytes: Vec<u8>,
    /// Offset of publish i; one more than there are publishes.
    at: Vec<usize>,
}

const IDS: usize = 65_535;

fn encode(flood: &Flood, connection: usize) -> Encoded {
    let count = IDS.min(usize::try_from(flood.messages).unwrap_or(IDS)).max(1);
    let topic = format!("{}/{connection}/telemetry", flood.topic_root);
    let mut out = Encoded { bytes: Vec::new(), at: vec![0] };
    for i in 0..count {
        let mut payload = format!(
            "{{\"ts\":{},\"temperature\":{}.5,\"mode\":\"",
            1_700_000_000_000_u64 + (i * flood.connections + connection) as u64,
            i % 100
        );
        let padding = flood.payload_bytes.saturating_sub(payload.len() + 2);
        match flood.noise {
            true => payload.push_str(&simple::noise((i * flood.connections + connection) as u64, padding)),
            false => payload.extend(std::iter::repeat_n('x', padding)),
        }
        payload.push_str("\"}");
        publish(&mut out.bytes, &topic, (i + 1) as u16, payload.as_bytes());
        out.at.push(out.bytes.len());
    }
    out
}

/// A QoS 1 PUBLISH of MQTT 3.1.1.
fn publish(out: &mut Vec<u8>, topic: &str, id: u16, payload: &[u8]) {
    out.push(0x32);
    remaining_length(out, 2 + topic.len() + 2 + payload.len());
    out.extend_from_slice(&(topic.len() as u16).to_be_bytes());
    out.extend_from_slice(topic.as_bytes());
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(payload);
}

fn remaining_length(out: &mut Vec<u8>, mut n: usize) {
    while n >= 128 {
        out.push((n % 128) as u8 | 0x80);
        n /= 128;
    }
    out.push(n as u8);
}

struct Connection {
    socket: TcpStream,
    encoded: Encoded,
    /// Publishes begun (the last may be written in part), acknowledged, and to send in all.
    sent: u64,
    acknowledged: u64,
    quota: u64,
    /// Bytes of the publish begun last that are still to be written.
    unsent: std::ops::Range<usize>,
    /// The odd bytes of an acknowledgement cut by a read.
    partial: Vec<u8>,
}

impl Connection {
    fn open(flood: &Flood, index: usize, quota: u64) -> Result<Self> {
        let mut socket = std::net::TcpStream::connect(flood.server)
            .with_context(|| format!("connect to {}", flood.server))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        let id = format!("flood-{index}");
        let mut connect = vec![0x10];
        remaining_length(&mut connect, 12 + id.len());
        connect.extend_from_slice(b"\x00\x04MQTT\x04\x02\x00\x00");
        connect.extend_from_slice(&(id.len() as u16).to_be_bytes());
        connect.extend_from_slice(id.as_bytes());
        socket.write_all(&connect)?;
        let mut ack = [0; 4];
        socket.read_exact(&mut ack).context("no CONNACK")?;
        ensure!(ack == [0x20, 2, 0, 0], "the server refused the connection: {ack:02x?}");
        socket.set_nonblocking(true)?;
        let socket = TcpStream::from_std(socket)?;
        let encoded = encode(flood, index);
        Ok(Self { socket, encoded, sent: 0, acknowledged: 0, quota, unsent: 0..0, partial: Vec::new() })
    }

    fn done(&self) -> bool {
        self.acknowledged == self.quota
    }

    fn may_send(&self, flood: &Flood, allowed: u64) -> u64 {
        let window = (flood.in_flight as u64).saturating_sub(self.sent - self.acknowledged);
        window.min(self.quota - self.sent).min(allowed)
    }

    /// Writes what the window and `allowed` let it; returns the number of publishes begun.
    fn write(&mut self, flood: &Flood, allowed: u64) -> Result<u64> {
        let mut begun = 0;
        loop {
            if self.unsent.is_empty() {
                let count = self.encoded.at.len() - 1;
                let first = (self.sent % count as u64) as usize;
                let n = self.may_send(flood, allowed - begun).min((count - first) as u64);
                if n == 0 {
                    return Ok(begun);
                }
                self.unsent = self.encoded.at[first]..self.encoded.at[first + n as usize];
                self.sent += n;
                begun += n;
            }
            match self.socket.try_write(&self.encoded.bytes[self.unsent.clone()]) {
                Ok(n) => self.unsent.start += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(begun),
                Err(e) => return Err(e).context("write"),
            }
        }
    }

    fn read(&mut self, scratch: &mut [u8]) -> Result<()> {
        loop {
            match self.socket.try_read(scratch) {
                Ok(0) => {
                    bail!("the server closed the connection after {} acknowledgements", self.acknowledged)
                }
                Ok(n) => self.take(&scratch[..n])?,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e).context("read"),
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.partial.extend_from_slice(bytes);
        let whole = self.partial.len() / 4 * 4;
        for ack in self.partial[..whole].chunks_exact(4) {
            ensure!(ack[0] == 0x40 && ack[1] == 2, "expected a PUBACK, got {ack:02x?}");
            self.acknowledged += 1;
        }
        self.partial.drain(..whole);
        Ok(())
    }
}

/// Runs the load until every publish is acknowledged. Blocks the calling thread.
pub fn run(flood: &Flood) -> Result<Flooded> {
    ensure!(flood.server.ip().is_loopback(), "load goes to loopback only, not to {}", flood.server);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run_all(flood))
}

async fn run_all(flood: &Flood) -> Result<Flooded> {
    let n = flood.connections as u64;
    let share = |i: u64| flood.messages / n + u64::from(i < flood.messages % n);
    let mut all =
        (0..n).map(|i| Connection::open(flood, i as usize, share(i))).collect::<Result<Vec<_>>>()?;
    let pace = Pace { start: Instant::now(), rate: flood.rate, begun: Cell::new(0) };
    let work = tokio::task::LocalSet::new();
    let flood = std::rc::Rc::new(flood.clone());
    let pace = std::rc::Rc::new(pace);
    let tasks: Vec<_> = all.drain(..).map(|c| work.spawn_local(c.run(flood.clone(), pace.clone()))).collect();
    let acknowledged = async {
        let mut sum = 0;
        for task in tasks {
            sum += task.await.context("a connection's task ended")??;
        }
        anyhow::Ok(sum)
    };
    let limited = tokio::time::timeout(flood.deadline, work.run_until(acknowledged)).await;
    let acknowledged = limited.map_err(|_| {
        anyhow::anyhow!("not all of {} acknowledged within {:?}", flood.messages, flood.deadline)
    })??;
    Ok(Flooded { acknowledged, seconds: pace.start.elapsed().as_secs_f64() })
}

/// How many publishes all connections together may have begun by now.
struct Pace {
    start: Instant,
    rate: Option<u64>,
    begun: Cell<u64>,
}

impl Pace {
    fn allowed(&self) -> u64 {
        match self.rate {
            None => u64::MAX,
            Some(rate) => {
                let due = (self.start.elapsed().as_secs_f64() * rate as f64) as u64;
                due.saturating_sub(self.begun.get())
            }
        }
    }
}

impl Connection {
    async fn run(mut self, flood: std::rc::Rc<Flood>, pace: std::rc::Rc<Pace>) -> Result<u64> {
        let mut scratch = vec![0; 64 << 10];
        while !self.done() {
            let begun = self.write(&flood, pace.allowed())?;
            pace.begun.set(pace.begun.get() + begun);
            let write = if self.unsent.is_empty() {
                Interest::READABLE
            } else {
                Interest::READABLE | Interest::WRITABLE
            };
            tokio::select! {
                ready = self.socket.ready(write) => { ready?; }
                () = tokio::time::sleep(Duration::from_millis(1)), if flood.rate.is_some() => {}
            }
            self.read(&mut scratch)?;
        }
        Ok(self.acknowledged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publish_is_what_the_standard_says() {
        let mut out = Vec::new();
        publish(&mut out, "a/b", 7, b"x");
        assert_eq!(out, b"\x32\x08\x00\x03a/b\x00\x07x");
    }

    #[test]
    fn only_loopback() {
        let flood = Flood {
            server: ([192, 0, 2, 1], 1883).into(),
            connections: 1,
            in_flight: 1,
            messages: 1,
            payload_bytes: 64,
            noise: false,
            rate: None,
            topic_root: "t".into(),
            deadline: Duration::from_secs(1),
        };
        assert!(run(&flood).is_err());
    }
}
