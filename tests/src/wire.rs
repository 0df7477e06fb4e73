//! MQTT packets one at a time, right or wrong, and what the other side answers.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

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

/// A connected client (MQTT 3.1.1, clean session).
pub struct Client {
    stream: TcpStream,
    next_id: u16,
}

impl Client {
    /// Connects.
    pub async fn connect(broker: SocketAddr, name: &str) -> anyhow::Result<Self> {
        let mut stream = TcpStream::connect(broker).await?;
        let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0];
        body.extend_from_slice(&u16::try_from(name.len())?.to_be_bytes());
        body.extend_from_slice(name.as_bytes());
        stream.write_all(&[0x10, u8::try_from(body.len())?]).await?;
        stream.write_all(&body).await?;
        let mut answer = [0; 4];
        tokio::time::timeout(DEADLINE, stream.read_exact(&mut answer)).await.context("no CONNACK")??;
        ensure!(answer[0] == 0x20 && answer[3] == 0, "refused: {answer:?}");
        Ok(Self { stream, next_id: 0 })
    }

    /// Publishes with QoS 1 and waits for the answer.
    pub async fn publish(&mut self, topic: &str, payload: &[u8]) -> anyhow::Result<Answer> {
        self.next_id += 1;
        let mut packet = vec![0x32];
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
        packet.extend_from_slice(&self.next_id.to_be_bytes());
        packet.extend_from_slice(payload);
        self.exchange(&packet).await
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
