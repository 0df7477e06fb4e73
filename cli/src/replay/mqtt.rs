//! Over MQTT 3.1.1 at QoS 1, with a persistent session: every event is published until its PUBACK is there, across
//! reconnects. The client repeats without DUP, so a stream that must not see an event twice needs its dedup key.

use super::{Events, Pace, progress::Counters};
use anyhow::{Context as _, bail};
use reqwest::Url;
use rumqttc::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, Outgoing, Packet, QoS};
use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};
use tokio::{sync::mpsc, task::JoinHandle, time};

const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// First wait after a lost connection; doubles up to [`WAIT_MAX`].
const WAIT_MIN: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(2);
const PACKET_BYTES_MAX: usize = 16 << 20;

/// Where one connection's events go.
#[derive(Debug, Clone)]
pub(super) struct Target {
    host: String,
    port: u16,
    credentials: Option<(String, String)>,
    client_id: String,
    topic: String,
    window: u16,
}

impl Target {
    pub(super) fn new(url: &Url, client_id: String, topic: String, window: u16) -> anyhow::Result<Self> {
        let host = url.host_str().context("the address names no host")?.to_owned();
        let credentials = (!url.username().is_empty())
            .then(|| (url.username().to_owned(), url.password().unwrap_or("").to_owned()));
        Ok(Self { host, port: url.port().unwrap_or(1883), credentials, client_id, topic, window })
    }

    fn open(&self) -> (AsyncClient, EventLoop) {
        let mut options = MqttOptions::new(&self.client_id, &self.host, self.port);
        options.set_keep_alive(KEEP_ALIVE).set_clean_session(false).set_inflight(self.window);
        options.set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX);
        if let Some((user, password)) = &self.credentials {
            options.set_credentials(user, password);
        }
        AsyncClient::new(options, usize::from(self.window))
    }
}

/// What the connection tells the sender.
enum News {
    Connected,
    /// The packet went out under this id, not for the first time if the id is known.
    Out(u16),
    Acknowledged(u16),
    Lost(String),
    /// The other side has forgotten the session, and the client has thrown away what was not acknowledged.
    Forgotten,
    Refused(String),
}

/// Polls one client until its session is forgotten or refused. Nothing is sent after the news of it.
async fn poll(mut events: EventLoop, news: mpsc::Sender<News>) {
    let mut connected_before = false;
    let mut wait = WAIT_MIN;
    loop {
        let item = match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(ack))) => {
                wait = WAIT_MIN;
                if connected_before && !ack.session_present {
                    let _ = news.send(News::Forgotten).await;
                    return;
                }
                connected_before = true;
                News::Connected
            }
            Ok(Event::Incoming(Packet::PubAck(ack))) => News::Acknowledged(ack.pkid),
            Ok(Event::Outgoing(Outgoing::Publish(id))) => News::Out(id),
            Ok(Event::Outgoing(Outgoing::Disconnect)) => return,
            Ok(_) => continue,
            Err(ConnectionError::ConnectionRefused(code)) => News::Refused(format!("{code:?}")),
            Err(e) => News::Lost(e.to_string()),
        };
        let stop = matches!(item, News::Refused(_));
        let lost = matches!(item, News::Lost(_));
        if news.send(item).await.is_err() || stop {
            return;
        }
        if lost {
            time::sleep(wait).await;
            wait = (wait * 2).min(WAIT_MAX);
        }
    }
}

struct Connection {
    client: AsyncClient,
    news: mpsc::Receiver<News>,
    poll: JoinHandle<()>,
    /// Given to the client, in order, without a packet id yet.
    handed: VecDeque<u32>,
    /// Sent under a packet id, not acknowledged.
    unacknowledged: HashMap<u16, u32>,
}

impl Connection {
    fn open(target: &Target) -> Self {
        let (client, events) = target.open();
        let (send, news) = mpsc::channel(1_024);
        let poll = tokio::spawn(poll(events, send));
        Self { client, news, poll, handed: VecDeque::new(), unacknowledged: HashMap::new() }
    }

    fn open_count(&self) -> usize {
        self.handed.len() + self.unacknowledged.len()
    }

    /// Everything that is not acknowledged, in the order of the events.
    fn leftovers(&self) -> Vec<u32> {
        let mut left: Vec<u32> = self.unacknowledged.values().chain(&self.handed).copied().collect();
        left.sort_unstable();
        left
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.poll.abort();
    }
}

/// Sends the events with these numbers, in order.
pub(super) async fn send(
    target: Target,
    events: &Events,
    mine: Vec<u32>,
    pace: Pace,
    counters: &Counters,
) -> anyhow::Result<()> {
    let mut queue: VecDeque<u32> = mine.into();
    let mut again: usize = 0;
    let mut c = Connection::open(&target);
    while !queue.is_empty() || c.open_count() > 0 {
        let room = c.open_count() < usize::from(target.window);
        let due = queue.front().map(|i| pace.due(*i as usize).unwrap_or_else(Instant::now));
        tokio::select! {
            biased;
            news = c.news.recv() => match news {
                Some(News::Forgotten) => {
                    let left = c.leftovers();
                    again += left.len();
                    for i in left.into_iter().rev() {
                        queue.push_front(i);
                    }
                    c = Connection::open(&target);
                }
                Some(news) => take(&mut c, news, counters)?,
                None => bail!("the connection's task ended"),
            },
            () = sleep_until(due), if room && due.is_some() => {
                if let Some(i) = queue.pop_front() {
                    let topic = target.topic.replace("{device}", &events.device(i as usize));
                    let payload = events.json(i as usize);
                    c.client.publish(topic, QoS::AtLeastOnce, false, payload).await.context("publishing")?;
                    c.handed.push_back(i);
                    if again > 0 {
                        again -= 1;
                        counters.add_repeated(1);
                    } else {
                        counters.add_sent(1);
                    }
                }
            }
        }
    }
    c.client.disconnect().await.context("disconnecting")?;
    // The disconnect goes out with the next poll; whoever waits for more of it waits a moment at most.
    let _ = time::timeout(Duration::from_millis(200), async { while c.news.recv().await.is_some() {} }).await;
    Ok(())
}

async fn sleep_until(due: Option<Instant>) {
    if let Some(t) = due
        && t > Instant::now()
    {
        time::sleep_until(t.into()).await;
    }
}

fn take(c: &mut Connection, news: News, counters: &Counters) -> anyhow::Result<()> {
    match news {
        News::Connected | News::Forgotten => {}
        News::Out(id) if c.unacknowledged.contains_key(&id) => counters.add_repeated(1),
        News::Out(id) => {
            if let Some(i) = c.handed.pop_front() {
                c.unacknowledged.insert(id, i);
            }
        }
        News::Acknowledged(id) => {
            if c.unacknowledged.remove(&id).is_some() {
                counters.add_acknowledged(1);
            }
        }
        News::Lost(why) => {
            counters.add_reconnect();
            counters.trouble(why);
        }
        News::Refused(why) => bail!("the connection was refused: {why}"),
    }
    Ok(())
}
