//! A load program for MQTT brokers that costs next to nothing itself: QoS 1 publishes encoded beforehand, a window in
//! flight on each of a few connections, one thread.
//!
//! It is the same for every server that it is pointed at, so that only the servers differ. It never waits longer than
//! its deadline and never sends to another address than loopback.

use anyhow::{Context as _, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

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
        while payload.len() + 2 < flood.payload_bytes {
            payload.push('x');
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
        let mut socket = TcpStream::connect(flood.server).with_context(|| format!("connect to {}", flood.server))?;
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
            match self.socket.write(&self.encoded.bytes[self.unsent.clone()]) {
                Ok(n) => self.unsent.start += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(begun),
                Err(e) => return Err(e).context("write"),
            }
        }
    }

    fn read(&mut self, scratch: &mut [u8]) -> Result<()> {
        loop {
            match self.socket.read(scratch) {
                Ok(0) => bail!("the server closed the connection after {} acknowledgements", self.acknowledged),
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

/// Runs the load until every publish is acknowledged.
pub fn run(flood: &Flood) -> Result<Flooded> {
    ensure!(flood.server.ip().is_loopback(), "load goes to loopback only, not to {}", flood.server);
    let share = |i: u64, n: u64| flood.messages / n + u64::from(i < flood.messages % n);
    let n = flood.connections as u64;
    let mut all =
        (0..flood.connections).map(|i| Connection::open(flood, i, share(i as u64, n))).collect::<Result<Vec<_>>>()?;
    let start = Instant::now();
    let mut scratch = vec![0; 64 << 10];
    let mut begun = 0;
    while !all.iter().all(Connection::done) {
        ensure!(
            start.elapsed() < flood.deadline,
            "only {} of {} acknowledged within {:?}",
            all.iter().map(|c| c.acknowledged).sum::<u64>(),
            flood.messages,
            flood.deadline
        );
        let budget = |begun: u64| match flood.rate {
            None => u64::MAX,
            Some(rate) => ((start.elapsed().as_secs_f64() * rate as f64) as u64).saturating_sub(begun),
        };
        for c in &mut all {
            begun += c.write(flood, budget(begun))?;
        }
        let wait = if flood.rate.is_some() { Duration::from_millis(1) } else { Duration::from_millis(100) };
        wait_ready(&all, wait)?;
        for c in &mut all {
            c.read(&mut scratch)?;
        }
    }
    Ok(Flooded {
        acknowledged: all.iter().map(|c| c.acknowledged).sum(),
        seconds: start.elapsed().as_secs_f64(),
    })
}

fn wait_ready(all: &[Connection], at_most: Duration) -> Result<()> {
    let mut fds: Vec<PollFd<'_>> = all
        .iter()
        .map(|c| {
            let write = if c.unsent.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            PollFd::new(&c.socket, PollFlags::IN | write)
        })
        .collect();
    let timeout = Timespec { tv_sec: 0, tv_nsec: at_most.subsec_nanos().into() };
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(e).context("poll"),
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
            rate: None,
            topic_root: "t".into(),
            deadline: Duration::from_secs(1),
        };
        assert!(run(&flood).is_err());
    }
}
