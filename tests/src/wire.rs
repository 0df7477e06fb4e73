//! MQTT packets one at a time, right or wrong, and what the other side answers.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

const DEADLINE: Duration = Duration::from_secs(20);

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// PUBACK for this packet id.
    Acknowledged(u16),
    /// The connection was closed.
    Closed,
    /// Another packet.
    Other(Vec<u8>),
}

/// A connected client (MQTT 3.1.1).
pub struct Client {
    stream: TcpStream,
    next_id: u16,
}

impl Client {
    /// Connects with a clean session.
    pub async fn connect(broker: SocketAddr, name: &str) -> anyhow::Result<Self> {
        Ok(Self::greet(TcpStream::connect(broker).await?, name, true).await?.0)
    }

    /// Connects with a session that outlives its connections; gives back whether there was one. What it does not read
    /// stays with the other side, as far as the system allows.
    pub async fn persistent(broker: SocketAddr, name: &str) -> anyhow::Result<(Self, bool)> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(1)?;
        Self::greet(socket.connect(broker).await?, name, false).await
    }

    async fn greet(mut stream: TcpStream, name: &str, clean: bool) -> anyhow::Result<(Self, bool)> {
        stream.set_nodelay(true)?;
        let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 4, u8::from(clean) << 1, 0, 0];
        body.extend_from_slice(&u16::try_from(name.len())?.to_be_bytes());
        body.extend_from_slice(name.as_bytes());
        stream.write_all(&[0x10, u8::try_from(body.len())?]).await?;
        stream.write_all(&body).await?;
        let mut answer = [0; 4];
        tokio::time::timeout(DEADLINE, stream.read_exact(&mut answer)).await.context("no CONNACK")??;
        ensure!(answer[0] == 0x20 && answer[3] == 0, "refused: {answer:?}");
        Ok((Self { stream, next_id: 0 }, answer[2] == 1))
    }

    /// Publishes with QoS 1 and waits for the answer.
    pub async fn publish(&mut self, topic: &str, payload: &[u8]) -> anyhow::Result<Answer> {
        self.next_id += 1;
        let packet = publish_packet(topic, payload, self.next_id, false)?;
        self.exchange(&packet).await
    }

    /// Publishes with QoS 1 and reads nothing.
    pub async fn send(&mut self, topic: &str, payload: &[u8], id: u16, dup: bool) -> anyhow::Result<()> {
        let packet = publish_packet(topic, payload, id, dup)?;
        Ok(tokio::time::timeout(DEADLINE, self.stream.write_all(&packet)).await.context("not taken")??)
    }

    /// Waits for the next answer.
    pub async fn answer(&mut self) -> anyhow::Result<Answer> {
        self.exchange(&[]).await
    }

    /// Sends bytes and waits for the answer.
    pub async fn exchange(&mut self, packet: &[u8]) -> anyhow::Result<Answer> {
        let exchange = async {
            // A server may close in the middle of a packet that it refuses; what it said before is still to be read.
            let _ = self.stream.write_all(packet).await;
            let mut answer = vec![0; 2];
            if self.stream.read_exact(&mut answer).await.is_err() {
                return Ok(Answer::Closed);
            }
            let mut rest = vec![0; usize::from(answer[1])];
            if self.stream.read_exact(&mut rest).await.is_err() {
                return Ok(Answer::Closed);
            }
            answer.append(&mut rest);
            Ok(match answer[..] {
                [0x40, 2, high, low] => Answer::Acknowledged(u16::from_be_bytes([high, low])),
                _ => Answer::Other(answer),
            })
        };
        tokio::time::timeout(DEADLINE, exchange).await.context("no answer")?
    }
}

fn publish_packet(topic: &str, payload: &[u8], id: u16, dup: bool) -> anyhow::Result<Vec<u8>> {
    let mut packet = vec![if dup { 0x3a } else { 0x32 }];
    let mut length = 2 + topic.len() + 2 + payload.len();
    loop {
        let low = (length % 128) as u8;
        length /= 128;
        packet.push(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            break;
        }
    }
    packet.extend_from_slice(&u16::try_from(topic.len())?.to_be_bytes());
    packet.extend_from_slice(topic.as_bytes());
    packet.extend_from_slice(&id.to_be_bytes());
    packet.extend_from_slice(payload);
    Ok(packet)
}
