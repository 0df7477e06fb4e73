//! MQTT devices that keep their word: QoS 1, a persistent session, packet ids that count up, and after a lost
//! connection every unacknowledged message again, with DUP, in its old order, as MQTT 3.1.1 section 4.4 asks.
//!
//! Frames are built by hand: what the broker does is judged against bytes that no library of ours has touched, and the
//! load costs little CPU.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::pace::Pace;

/// A lost connection is tried again after this long.
const RECONNECT: Duration = Duration::from_millis(100);
/// Most bytes waiting to be written.
const OUT_BYTES_MAX: usize = 64 * 1024;

/// What all devices of a run have done; shared, read by the progress line.
#[derive(Debug, Default)]
pub struct Progress {
    /// Messages sent, repeats not counted.
    pub sent: AtomicU64,
    /// Messages acknowledged.
    pub acknowledged: AtomicU64,
    /// Repeats with DUP.
    pub repeated: AtomicU64,
    /// Connections lost.
    pub lost: AtomicU64,
    samples: Mutex<Vec<Sample>>,
}

/// When one message left its device, for latency.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The device.
    pub device: String,
    /// Index of the message.
    pub index: usize,
    /// First sending.
    pub at: Instant,
}

impl Progress {
    /// Takes the samples collected since the last call.
    pub fn take_samples(&self) -> Vec<Sample> {
        std::mem::take(&mut self.samples.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Messages sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Messages acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }
}

/// One device and what it has to say.
#[derive(Clone)]
pub struct Device {
    /// MQTT client id, and the name in samples.
    pub name: String,
    /// Topic of all its messages.
    pub topic: String,
    /// Payloads, in order.
    pub payloads: Arc<[Vec<u8>]>,
    /// When each is due.
    pub pace: Pace,
    /// Most unacknowledged messages.
    pub in_flight_max: usize,
    /// Every how many messages a sample is taken; 0 for none.
    pub sample_every: usize,
    /// When cancelled, nothing new is sent; what is in flight is still brought to its end.
    pub finish: CancellationToken,
}

/// A device's session; survives its connections.
struct Session {
    next: usize,
    last_id: u16,
    in_flight: VecDeque<(u16, usize)>,
    acknowledged: Vec<bool>,
}

impl Device {
    /// Sends everything and returns once all of it is acknowledged, through as many connections as that takes; or
    /// when told to stop. Gives, per message that was sent, whether it was acknowledged.
    pub async fn run(
        self,
        broker: SocketAddr,
        progress: Arc<Progress>,
        stop: CancellationToken,
    ) -> Vec<bool> {
        let mut session =
            Session { next: 0, last_id: 0, in_flight: VecDeque::new(), acknowledged: Vec::new() };
        loop {
            if self.finish.is_cancelled() && session.in_flight.is_empty() {
                return session.acknowledged;
            }
            tokio::select! {
                () = stop.cancelled() => return session.acknowledged,
                ended = self.connection(broker, &progress, &mut session) => match ended {
                    Ok(()) => return session.acknowledged,
                    // The other end was killed, or is not back yet: that is what this device is for.
                    Err(_) => progress.lost.fetch_add(1, Ordering::Relaxed),
                },
            };
            tokio::time::sleep(RECONNECT).await;
        }
    }

    /// One connection, until all is acknowledged or the connection is lost.
    async fn connection(
        &self,
        broker: SocketAddr,
        progress: &Progress,
        session: &mut Session,
    ) -> anyhow::Result<()> {
        let mut stream = TcpStream::connect(broker).await?;
        stream.set_nodelay(true)?;
        let mut input = BytesMut::with_capacity(4096);
        greet(&mut stream, &self.name, &mut input).await?;
        let (mut reader, mut writer) = stream.split();
        let mut out = BytesMut::with_capacity(OUT_BYTES_MAX * 2);
        for (id, index) in &session.in_flight {
            publish(&mut out, &self.topic, *id, &self.payloads[*index], true);
            progress.repeated.fetch_add(1, Ordering::Relaxed);
        }
        loop {
            self.fill(&mut out, progress, session);
            let finishing = self.finish.is_cancelled();
            if session.in_flight.is_empty() && (finishing || session.next == self.payloads.len()) {
                writer.write_all(&[0xe0, 0]).await?;
                return Ok(());
            }
            let may_send = !finishing
                && session.next < self.payloads.len()
                && session.in_flight.len() < self.in_flight_max
                && out.len() < OUT_BYTES_MAX;
            input.reserve(4096);
            tokio::select! {
                read = reader.read_buf(&mut input) => {
                    ensure!(read? > 0, "the broker closed the connection");
                    acknowledge(&mut input, progress, session)?;
                }
                written = writer.write_buf(&mut out), if !out.is_empty() => { written?; }
                () = tokio::time::sleep_until(self.pace.due(session.next)), if may_send => {}
                () = self.finish.cancelled(), if !finishing => {}
            }
        }
    }

    /// Adds the messages that are due and fit.
    fn fill(&self, out: &mut BytesMut, progress: &Progress, session: &mut Session) {
        let now = tokio::time::Instant::now();
        while !self.finish.is_cancelled()
            && session.next < self.payloads.len()
            && session.in_flight.len() < self.in_flight_max
            && out.len() < OUT_BYTES_MAX
            && self.pace.due(session.next) <= now
        {
            let index = session.next;
            let id = session.free_id();
            publish(out, &self.topic, id, &self.payloads[index], false);
            session.in_flight.push_back((id, index));
            session.acknowledged.push(false);
            session.next += 1;
            progress.sent.fetch_add(1, Ordering::Relaxed);
            if self.sample_every > 0 && index.is_multiple_of(self.sample_every) {
                let sample = Sample { device: self.name.clone(), index, at: Instant::now() };
                progress.samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
            }
        }
    }
}

impl Session {
    /// The next id that counts up and is not in flight.
    fn free_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !self.in_flight.iter().any(|(id, _)| *id == self.last_id) {
                return self.last_id;
            }
        }
    }
}

async fn greet(stream: &mut TcpStream, client: &str, input: &mut BytesMut) -> anyhow::Result<()> {
    let mut connect = vec![0, 4, b'M', b'Q', b'T', b'T', 4, 0, 0, 0];
    push_text(&mut connect, client);
    let mut packet = vec![0x10];
    push_length(&mut packet, connect.len());
    packet.extend_from_slice(&connect);
    stream.write_all(&packet).await?;
    while input.len() < 4 {
        ensure!(stream.read_buf(input).await? > 0, "closed before CONNACK");
    }
    let answer = input.split_to(4);
    ensure!(answer[0] == 0x20 && answer[3] == 0, "refused: {answer:?}");
    Ok(())
}

fn acknowledge(input: &mut BytesMut, progress: &Progress, session: &mut Session) -> anyhow::Result<()> {
    while input.len() >= 4 {
        match (input[0], input[1]) {
            (0x40, 2) => {
                let id = u16::from_be_bytes([input[2], input[3]]);
                input.advance(4);
                // An id that is not in flight is the second acknowledgement of a repeat.
                if let Some(at) = session.in_flight.iter().position(|(known, _)| *known == id)
                    && let Some((_, index)) = session.in_flight.remove(at)
                {
                    session.acknowledged[index] = true;
                    progress.acknowledged.fetch_add(1, Ordering::Relaxed);
                }
            }
            (0xd0, 0) => input.advance(2),
            other => bail!("unexpected packet {other:?}"),
        }
    }
    Ok(())
}

fn publish(out: &mut BytesMut, topic: &str, id: u16, payload: &[u8], dup: bool) {
    let mut head = vec![if dup { 0x3a } else { 0x32 }];
    push_length(&mut head, 2 + topic.len() + 2 + payload.len());
    push_text(&mut head, topic);
    head.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&head);
    out.extend_from_slice(payload);
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    let length = u16::try_from(text.len()).expect("names and topics of the tests are short");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn push_length(out: &mut Vec<u8>, mut length: usize) {
    loop {
        let low = (length % 128) as u8;
        length /= 128;
        out.push(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_as_the_standard_says() {
        let mut out = BytesMut::new();
        publish(&mut out, "a/b", 10, b"hi", true);
        assert_eq!(&out[..], [0x3a, 9, 0, 3, b'a', b'/', b'b', 0, 10, b'h', b'i']);
        let mut length = Vec::new();
        push_length(&mut length, 321);
        assert_eq!(length, [0xc1, 0x02]);
    }
}
