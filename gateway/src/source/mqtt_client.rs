//! Subscribes to a broker that exists, and acknowledges to it only what is durable.
//!
//! - the session is persistent and acknowledgements are manual: what the gateway did not acknowledge comes again,
//!   marked DUP, and is recognised at the door;
//! - acknowledgements go out in the order of receipt;
//! - a full buffer withholds acknowledgements, so that the broker keeps what it has; the connection stays up;
//! - retained messages that a renewed subscription brings of topics that the session had before are copies of what was
//!   delivered then, and are counted and left out; those of a new filter are taken;
//! - a filter that the configuration no longer has is given back to the broker.
//!
//! Two tasks: one polls the connection, one waits for durability and acknowledges. The first never waits for the
//! second, so that they cannot wait for each other.

mod subscribed;

use crate::config::MqttSource;
use crate::ingest::{Door, Intake, Publish, session_hash};
use crate::limits::{BROKER_BACKOFF, BROKER_PACKET_BYTES_MAX, BROKER_UNPUSHED_BYTES_MAX};
use daemon::metrics::{Counter, Gauge, Registry};
use journal::PushError;
use record::{GatewayId, SourceName, clock::Random};
use rumqttc::{
    AsyncClient, ConnectReturnCode, Event, EventLoop, Incoming, MqttOptions, QoS, SubscribeFilter,
    SubscribeReasonCode, TlsConfiguration, Transport,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use subscribed::Subscribed;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Packet ids that a session can have open; also the bound of the queue of acknowledgements.
const OPEN_MAX: usize = 65_535;

/// Why a source cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file of its settings.
    #[error("source {source_name}: {path}: {why}")]
    File {
        /// The source.
        source_name: SourceName,
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
}

/// What the source needs.
pub struct Parts {
    /// Its name.
    pub name: SourceName,
    /// The gateway it belongs to.
    pub gateway: GatewayId,
    /// Its settings.
    pub settings: MqttSource,
    /// The gateway's data folder.
    pub folder: PathBuf,
    /// Where its events go.
    pub door: Arc<Door>,
    /// Jitter of reconnects.
    pub random: Arc<dyn Random>,
}

struct Metrics {
    connected: Gauge,
    connects: Counter,
    retained: Counter,
    refused: Gauge,
}

/// Something to acknowledge once its ticket is durable.
struct Ack {
    ticket: u64,
    generation: u64,
    publish: rumqttc::Publish,
}

/// Runs until told to stop. Connection failures are logged once per outage and retried with backoff.
pub async fn run(parts: Parts, registry: &Registry, stop: CancellationToken) -> Result<(), StartError> {
    let options = options(&parts)?;
    let file = parts.folder.join(format!("broker-{}.json", parts.name));
    let (host, port) = options.broker_address();
    let subscribed = Subscribed::open(file, format!("{host}:{port}"), options.client_id());
    let label = [parts.name.as_str()];
    let metrics = Metrics {
        connected: registry
            .gauge_vec("tidegate_broker_connected", "Whether the broker is connected.", &["source"])
            .with(&label),
        connects: registry
            .counter_vec("tidegate_broker_connects_total", "Connections made to the broker.", &["source"])
            .with(&label),
        retained: registry
            .counter_vec("tidegate_broker_retained_total", "Retained copies left out.", &["source"])
            .with(&label),
        refused: registry
            .gauge_vec(
                "tidegate_broker_subscriptions_refused",
                "Topics of the configuration that the broker does not let the gateway subscribe to.",
                &["source"],
            )
            .with(&label),
    };
    let (client, events) = AsyncClient::new(options, OPEN_MAX);
    let (acks, queue) = mpsc::channel(OPEN_MAX);
    let (generation, current) = watch::channel(0_u64);
    let session = session_hash(&parts.name, "broker");
    let mut intake = parts.door.intake(&parts.name);
    intake.begin_session(session, false, true, mqtt::limits::IN_FLIGHT_ASSUMED);
    let reader = Reader {
        intake,
        session,
        parts,
        client: client.clone(),
        metrics,
        acks,
        generation,
        unpushed: Vec::new(),
        subscribed,
        failures: 0,
    };
    let durable = reader.parts.door.watch();
    tokio::select! {
        () = reader.run(events) => {}
        () = acknowledge(client, queue, durable, current) => {}
        () = stop.cancelled() => {}
    }
    Ok(())
}

fn options(parts: &Parts) -> Result<MqttOptions, StartError> {
    let s = &parts.settings;
    let id = s.client_id.clone().unwrap_or_else(|| format!("tidegate-{}-{}", parts.gateway, parts.name));
    let mut options = MqttOptions::new(id, s.host.clone(), s.port);
    options.set_clean_session(false).set_manual_acks(true).set_keep_alive(Duration::from_secs(30));
    options.set_max_packet_size(BROKER_PACKET_BYTES_MAX, 1 << 16);
    let broken = |path: &Path, why: String| StartError::File {
        source_name: parts.name.clone(),
        path: path.display().to_string(),
        why,
    };
    if let Some(user) = &s.user {
        let password = match &s.password_file {
            Some(path) => std::fs::read_to_string(path).map_err(|e| broken(path, e.to_string()))?,
            None => String::new(),
        };
        options.set_credentials(user, password.trim_end());
    }
    if let (true, Some(ca)) = (s.tls, &s.ca) {
        let mut roots = rustls::RootCertStore::empty();
        let certificates = CertificateDer::pem_file_iter(ca).map_err(|e| broken(ca, e.to_string()))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|e| broken(ca, e.to_string()))?;
            roots.add(certificate).map_err(|e| broken(ca, e.to_string()))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| broken(ca, e.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        options.set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::new(tls))));
    }
    Ok(options)
}

/// Acknowledges in the order of receipt what became durable, as long as the connection it came over lives.
async fn acknowledge(
    client: AsyncClient,
    mut queue: mpsc::Receiver<Ack>,
    mut durable: watch::Receiver<u64>,
    current: watch::Receiver<u64>,
) {
    while let Some(ack) = queue.recv().await {
        if durable.wait_for(|round| *round >= ack.ticket).await.is_err() {
            return;
        }
        // After a reconnect the broker delivers anew whatever was open: the old acknowledgement has no one to go to.
        if *current.borrow() == ack.generation && client.ack(&ack.publish).await.is_err() {
            return;
        }
    }
}

struct Reader {
    parts: Parts,
    client: AsyncClient,
    intake: Intake,
    session: u64,
    metrics: Metrics,
    acks: mpsc::Sender<Ack>,
    generation: watch::Sender<u64>,
    /// Taken into the scratch but not pushed yet, because the buffer is full.
    unpushed: Vec<rumqttc::Publish>,
    subscribed: Subscribed,
    failures: u32,
}

impl Reader {
    async fn run(mut self, mut events: EventLoop) {
        let mut retry = tokio::time::interval(Duration::from_millis(20));
        retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // Polling is not safe to cancel: the same future is waited for until it is done.
            let mut poll = Box::pin(events.poll());
            let polled = loop {
                tokio::select! {
                    polled = &mut poll, if self.has_room() => break polled,
                    _ = retry.tick(), if !self.unpushed.is_empty() => if !self.push() { return },
                }
            };
            drop(poll);
            let goes_on = match polled {
                Ok(Event::Incoming(Incoming::ConnAck(ack))) => self.connected(ack).await,
                Ok(Event::Incoming(Incoming::Publish(publish))) => self.publish(publish),
                Ok(Event::Incoming(Incoming::SubAck(ack))) => self.answered(&ack),
                Ok(_) => true,
                Err(e) => self.disconnected(&e).await,
            };
            if !goes_on {
                return;
            }
        }
    }

    fn has_room(&self) -> bool {
        self.intake.bytes() < BROKER_UNPUSHED_BYTES_MAX
    }

    async fn connected(&mut self, ack: rumqttc::ConnAck) -> bool {
        if ack.code != ConnectReturnCode::Success {
            return true;
        }
        let first = *self.generation.borrow() == 0;
        self.forget_open();
        self.failures = 0;
        self.metrics.connected.set(1.0);
        self.metrics.connects.inc();
        let source = self.parts.name.as_str();
        tracing::info!(source, session_present = ack.session_present, "connected to the broker");
        if !ack.session_present {
            self.subscribed.lost();
            // Its packet ids begin anew and have nothing to do with those of the session before.
            self.intake.begin_session(self.session, true, true, mqtt::limits::IN_FLIGHT_ASSUMED);
        }
        if first || !ack.session_present {
            self.subscribe();
        }
        true
    }

    /// Asks for what is configured, all of it in one packet, and gives back what no longer is.
    fn subscribe(&mut self) {
        let (source, wanted) = (self.parts.name.as_str(), &self.parts.settings.subscribe);
        for topic in self.subscribed.ask(wanted) {
            tracing::info!(source, topic, "no longer subscribed to");
            if let Err(e) = self.client.try_unsubscribe(topic.as_str()) {
                tracing::error!(source, topic, error = %e, "cannot unsubscribe");
            }
        }
        let qos = |qos| if qos == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        let filters = wanted.iter().map(|s| SubscribeFilter::new(s.topic.clone(), qos(s.qos)));
        if let Err(e) = self.client.try_subscribe_many(filters) {
            tracing::error!(source, error = %e, "cannot subscribe");
        }
    }

    fn answered(&mut self, ack: &rumqttc::SubAck) -> bool {
        let wanted = &self.parts.settings.subscribe;
        let answers = wanted.iter().zip(&ack.return_codes);
        let refused: Vec<String> = answers
            .filter(|(_, code)| **code == SubscribeReasonCode::Failure)
            .map(|(s, _)| s.topic.clone())
            .collect();
        for topic in &refused {
            tracing::error!(source = %self.parts.name, topic, "the broker refuses the subscription");
        }
        self.metrics.refused.set(refused.len() as f64);
        tokio::task::block_in_place(|| self.subscribed.answered(&refused));
        true
    }

    /// What was open on the old connection comes again; what is in the scratch is kept without an acknowledgement.
    fn forget_open(&mut self) {
        self.generation.send_modify(|g| *g += 1);
        for publish in &mut self.unpushed {
            publish.qos = QoS::AtMostOnce;
        }
    }

    async fn disconnected(&mut self, error: &rumqttc::ConnectionError) -> bool {
        self.metrics.connected.set(0.0);
        if self.failures == 0 {
            tracing::warn!(source = %self.parts.name, error = %error, "no connection to the broker, trying again");
        }
        let (first, longest) = BROKER_BACKOFF;
        let wait = first.saturating_mul(1 << self.failures.min(10)).min(longest);
        self.failures += 1;
        // Between half and the whole of the wait, so that many gateways do not come at once.
        let part = 0.5 + (self.parts.random.next_u64() >> 11) as f64 / (1_u64 << 54) as f64;
        tokio::time::sleep(wait.mul_f64(part)).await;
        true
    }

    fn publish(&mut self, publish: rumqttc::Publish) -> bool {
        let mut publish = publish;
        let taken = Publish {
            client: "",
            session: self.session,
            topic: &publish.topic,
            payload: &publish.payload,
            qos: publish.qos as u8,
            dup: publish.dup,
            packet_id: publish.pkid,
        };
        if publish.retain {
            // It may come before the answer to the subscription.
            tokio::task::block_in_place(|| self.subscribed.answered(&[]));
        }
        // One with DUP was not acknowledged: it is no copy, and whether it is a repeat the door knows.
        if publish.retain && !publish.dup && self.subscribed.is_copy(&publish.topic) {
            self.metrics.retained.inc();
            self.intake.note_unmatched(&taken);
        } else {
            self.intake.publish(&taken);
        }
        publish.payload.clear();
        self.unpushed.push(publish);
        self.push()
    }

    /// Pushes the scratch and queues its acknowledgements. False when the input log is gone.
    fn push(&mut self) -> bool {
        let ticket = match self.intake.push() {
            Ok(ticket) => ticket.0,
            Err(PushError::Full | PushError::OverQuota) => return true,
            Err(_) => return false,
        };
        let generation = *self.generation.borrow();
        for publish in self.unpushed.drain(..) {
            if publish.qos == QoS::AtMostOnce {
                continue;
            }
            if self.acks.try_send(Ack { ticket, generation, publish }).is_err() {
                tracing::error!(source = %self.parts.name, "the broker has more than 65,535 messages open");
                return false;
            }
        }
        true
    }
}
