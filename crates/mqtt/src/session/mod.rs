//! One connection of a device, without its socket.
//!
//! The driver reads bytes, calls [`Session::drain`], hands what its sink collected to the journal under one ticket,
//! tells it to [`Session::assign`], and calls [`Session::durable`] whenever the journal has synced further. `out` is
//! written to the socket after each call.
//!
//! Invariants:
//! - CONNECT comes first and once; nothing of a client is handed on before the driver has accepted it;
//! - PUBACKs are written only by [`Session::durable`], in the order in which the publishes came;
//! - after [`Ended`] nothing is read any more; what the sink got before it in the same read was accepted and must
//!   still be stored.
//!
//! QoS 2 is refused: MQTT 5 clients learn it from CONNACK and, if they use it all the same, from DISCONNECT; MQTT 3
//! has no words for it, so the connection is closed. Subscriptions are refused with a reason code each.

mod alias;
mod ended;
mod pending;
mod types;

use bytes::{Buf, BytesMut};

use crate::decode::{self, Frame, kind};
use crate::encode::{self, ConnAckProperties};
use crate::error::DecodeError;
use crate::limits;
use crate::packet::{Connect, Delivery, Packet, Publish, ReasonCode, Subscribe, Unsubscribe, Version};
use crate::property::Property;

use alias::Aliases;
pub use ended::Ended;
use pending::Pending;
pub use types::{
    Accept, Admission, Config, ConnectRequest, Incoming, Progress, PublishSink, Ticket, WillMessage,
};

const NO_SUBSCRIPTIONS: &str = "this listener takes publishes only";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing but a CONNECT may come.
    Fresh,
    /// The CONNECT is with the driver, who will accept or reject it.
    Deciding,
    Open,
    Ended,
}

/// The protocol state of one connection.
#[derive(Debug)]
pub struct Session {
    config: Config,
    phase: Phase,
    version: Version,
    /// Time of the last whole packet, or of the connection.
    heard_ns: u64,
    keep_alive_s: u16,
    session_expiry_s: u32,
    problem_information: bool,
    /// Largest packet that the client takes, in bytes.
    client_packet_bytes_max: usize,
    aliases: Aliases,
    pending: Pending,
    pending_peak: usize,
    will: Option<WillMessage>,
}

impl Session {
    /// A connection that was accepted at `now_ns` (any clock that never goes back).
    pub fn new(config: Config, now_ns: u64) -> Self {
        Self {
            phase: Phase::Fresh,
            version: Version::V311,
            heard_ns: now_ns,
            keep_alive_s: 0,
            session_expiry_s: 0,
            problem_information: true,
            client_packet_bytes_max: usize::MAX,
            aliases: Aliases::new(config.topic_aliases),
            pending: Pending::default(),
            pending_peak: 0,
            will: None,
            config,
        }
    }

    /// Handles all whole packets at the head of `input` and removes them. Publishes go to `sink` in place; answers go
    /// to `out`. Stops early when a CONNECT needs the driver's decision.
    pub fn drain<S: PublishSink>(
        &mut self,
        input: &mut BytesMut,
        now_ns: u64,
        sink: &mut S,
        out: &mut BytesMut,
    ) -> Result<Progress, Ended> {
        let mut used = 0;
        let result = self.drain_bytes(input, &mut used, now_ns, sink, out);
        if used > 0 {
            self.heard_ns = now_ns;
        }
        match result {
            Ok(progress) => {
                input.advance(used);
                Ok(progress)
            }
            Err(ended) => {
                input.clear();
                self.end(ended, out);
                Err(ended)
            }
        }
    }

    fn drain_bytes<S: PublishSink>(
        &mut self,
        input: &[u8],
        used: &mut usize,
        now_ns: u64,
        sink: &mut S,
        out: &mut BytesMut,
    ) -> Result<Progress, Ended> {
        loop {
            let bytes = &input[*used..];
            match self.phase {
                Phase::Open => {}
                Phase::Fresh if bytes.first().is_some_and(|first| first >> 4 != kind::CONNECT) => {
                    return Err(Ended::ConnectExpected);
                }
                Phase::Fresh => {}
                Phase::Deciding | Phase::Ended => return Ok(Progress::NeedMore),
            }
            let Some(frame) = decode::frame(bytes, self.version, self.config.packet_bytes_max)? else {
                return Ok(Progress::NeedMore);
            };
            let is_publish = frame.first >> 4 == kind::PUBLISH;
            if is_publish && sink.is_full() {
                return Ok(Progress::SinkFull);
            }
            *used += frame.bytes;
            if self.phase == Phase::Fresh {
                return self.connect(frame, now_ns).map(Progress::Connect);
            }
            if is_publish {
                self.publish(decode::publish(self.version, frame.first, frame.body)?, sink)?;
            } else if self.other(decode::packet(self.version, frame)?, out)? {
                return Ok(Progress::Left);
            }
        }
    }

    fn connect(&mut self, frame: Frame<'_>, now_ns: u64) -> Result<Box<ConnectRequest>, Ended> {
        let Packet::Connect(connect) = decode::packet(self.version, frame)? else {
            return Err(Ended::ConnectExpected);
        };
        self.version = connect.version;
        let shortest = 1 + encode::variable_bytes(frame.body.len()) + frame.body.len();
        if connect.version == Version::V5 && frame.bytes != shortest {
            return Err(DecodeError::IntegerOverlong.into());
        }
        self.phase = Phase::Deciding;
        self.heard_ns = now_ns;
        self.keep_alive_s = connect.keep_alive_s;
        let authentication = self.read_connect_properties(&connect);
        self.check_connect(&connect, authentication)?;
        self.will = connect.will.map(|will| WillMessage {
            topic: will.topic.to_owned(),
            payload: will.payload.to_vec(),
            retain: will.retain,
        });
        Ok(Box::new(ConnectRequest {
            version: connect.version,
            client_id: connect.client_id.to_owned(),
            clean: connect.clean,
            session_expiry_s: self.session_expiry_s,
            user: connect.user.map(str::to_owned),
            password: connect.password.map(<[u8]>::to_vec),
        }))
    }

    /// True when the client wants extended authentication.
    fn read_connect_properties(&mut self, connect: &Connect<'_>) -> bool {
        let mut authentication = false;
        // An MQTT 3 session that is not clean never expires.
        self.session_expiry_s = if connect.version != Version::V5 && !connect.clean { u32::MAX } else { 0 };
        for property in connect.properties.iter() {
            match property {
                Property::SessionExpiryIntervalS(seconds) => self.session_expiry_s = seconds,
                Property::RequestProblemInformation(wanted) => self.problem_information = wanted,
                Property::MaximumPacketSize(bytes) => {
                    self.client_packet_bytes_max = usize::try_from(bytes).unwrap_or(usize::MAX);
                }
                Property::AuthenticationMethod(_) => authentication = true,
                _ => {}
            }
        }
        authentication
    }

    fn check_connect(&self, connect: &Connect<'_>, authentication: bool) -> Result<(), Ended> {
        if authentication {
            return Err(Ended::Rejected(ReasonCode::BAD_AUTHENTICATION_METHOD));
        }
        // MQTT 3.1 wants an id always, MQTT 3.1.1 for sessions that are kept (MQTT-3.1.3-8).
        let id_needed = match connect.version {
            Version::V31 => true,
            Version::V311 => !connect.clean,
            Version::V5 => false,
        };
        if connect.client_id.is_empty() && id_needed {
            return Err(Ended::Rejected(ReasonCode::CLIENT_ID_NOT_VALID));
        }
        if connect.version == Version::V5 && connect.will.is_some_and(|will| will.qos > 1) {
            return Err(Ended::Rejected(ReasonCode::QOS_NOT_SUPPORTED));
        }
        Ok(())
    }

    /// The driver takes the client: writes CONNACK. Call [`Session::drain`] again afterwards: packets may wait behind
    /// the CONNECT.
    pub fn accept(&mut self, accept: &Accept<'_>, now_ns: u64, out: &mut BytesMut) {
        debug_assert_eq!(self.phase, Phase::Deciding, "a CONNECT is accepted once, after it came");
        self.phase = Phase::Open;
        self.heard_ns = now_ns;
        if self.version != Version::V5 {
            return encode::connack_v3(out, self.version, accept.session_present, 0);
        }
        let keep_alive =
            self.config.keep_alive_s_max.filter(|max| self.keep_alive_s == 0 || self.keep_alive_s > *max);
        if let Some(seconds) = keep_alive {
            self.keep_alive_s = seconds;
        }
        let properties = ConnAckProperties {
            receive_maximum: Some(self.config.receive_maximum),
            maximum_qos: Some(1),
            maximum_packet_size: self.announced_packet_bytes_max(),
            assigned_client_id: accept.assigned_client_id,
            topic_alias_maximum: Some(self.config.topic_aliases),
            server_keep_alive_s: keep_alive,
            no_subscriptions: true,
            ..ConnAckProperties::default()
        };
        encode::connack_v5(out, accept.session_present, ReasonCode::SUCCESS, &properties);
    }

    /// Maximum Packet Size counts the fixed header as well.
    fn announced_packet_bytes_max(&self) -> Option<u32> {
        let limit = self.config.packet_bytes_max;
        let header = 1 + encode::variable_bytes(usize::try_from(limit).unwrap_or(usize::MAX));
        Some(limit.saturating_add(u32::try_from(header).unwrap_or(5)))
    }

    /// The driver refuses the client: writes CONNACK with the reason. The connection is to be closed.
    pub fn reject(&mut self, reason: ReasonCode, out: &mut BytesMut) {
        self.end(Ended::Rejected(reason), out);
    }

    #[inline]
    fn publish<S: PublishSink>(&mut self, publish: Publish<'_>, sink: &mut S) -> Result<(), Ended> {
        let id = match publish.delivery {
            Delivery::AtMostOnce => None,
            Delivery::AtLeastOnce(id) => Some(id),
            Delivery::ExactlyOnce(_) => return Err(Ended::QosNotSupported),
        };
        if id.is_some() && self.version == Version::V5 && self.pending.len() >= self.receive_maximum() {
            return Err(Ended::ReceiveMaximumExceeded);
        }
        let topic = match publish.alias {
            None => publish.topic,
            Some(alias) => self.aliases.resolve(alias, publish.topic)?,
        };
        let admission = sink.publish(&Incoming {
            topic,
            payload: publish.payload,
            packet_id: id,
            dup: publish.dup,
            retain: publish.retain,
            properties: publish.properties,
        });
        if let Some(id) = id {
            self.pending.push(id, admission);
        }
        Ok(())
    }

    /// Everything but PUBLISH; true when the client has said goodbye.
    fn other(&mut self, packet: Packet<'_>, out: &mut BytesMut) -> Result<bool, Ended> {
        match packet {
            Packet::PingReq => encode::pingresp(out),
            Packet::Subscribe(subscribe) => self.subscribe(subscribe, out),
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(unsubscribe, out),
            // No publish of QoS 2 is ever taken and none is ever sent, so these ids are unknown.
            Packet::PubRel(ack) => {
                encode::pubcomp_with(out, self.version, ack.packet_id, ReasonCode::PACKET_ID_NOT_FOUND);
            }
            Packet::PubRec(ack) if self.version == Version::V5 => {
                encode::pubrel_with(out, self.version, ack.packet_id, ReasonCode::PACKET_ID_NOT_FOUND);
            }
            Packet::PubAck(_) | Packet::PubRec(_) | Packet::PubComp(_) => {}
            Packet::Disconnect { reason, properties } => {
                for property in properties.iter() {
                    if let Property::SessionExpiryIntervalS(seconds) = property {
                        // MQTT 5, 3.14.2.2.2: zero at CONNECT cannot be raised at DISCONNECT.
                        if self.session_expiry_s == 0 && seconds > 0 {
                            return Err(Ended::Protocol);
                        }
                        self.session_expiry_s = seconds;
                    }
                }
                if reason == ReasonCode::SUCCESS {
                    self.will = None;
                }
                self.phase = Phase::Ended;
                return Ok(true);
            }
            Packet::Connect(_) => return Err(Ended::SecondConnect),
            Packet::Auth { .. } => return Err(Ended::Protocol),
            Packet::Publish(_) => {}
        }
        Ok(false)
    }

    fn subscribe(&mut self, subscribe: Subscribe<'_>, out: &mut BytesMut) {
        let code =
            if self.version == Version::V5 { ReasonCode::NOT_AUTHORIZED } else { ReasonCode::UNSPECIFIED };
        let codes = vec![code; subscribe.filters().count()];
        let text = self.problem_information.then_some(NO_SUBSCRIPTIONS);
        let at = out.len();
        encode::suback(out, self.version, subscribe.packet_id, &codes, text);
        self.withhold_oversized(at, out);
    }

    fn unsubscribe(&mut self, unsubscribe: Unsubscribe<'_>, out: &mut BytesMut) {
        const NO_SUBSCRIPTION_EXISTED: ReasonCode = ReasonCode(0x11);
        let codes = vec![NO_SUBSCRIPTION_EXISTED; unsubscribe.filters().count()];
        let at = out.len();
        encode::unsuback(out, self.version, unsubscribe.packet_id, &codes);
        self.withhold_oversized(at, out);
    }

    /// A packet larger than the client takes is not sent, and all goes on as if it had been (MQTT-3.1.2-25).
    fn withhold_oversized(&self, at: usize, out: &mut BytesMut) {
        if out.len() - at > self.client_packet_bytes_max {
            out.truncate(at);
        }
    }

    /// All publishes since the last call are covered by this ticket of the journal. Tickets never go down.
    #[inline]
    pub fn assign(&mut self, ticket: Ticket) {
        self.pending.assign(ticket);
        self.pending_peak = self.pending_peak.max(self.pending.len());
    }

    /// Everything up to `ticket` is durable: writes the acknowledgements that have waited for it.
    #[inline]
    pub fn durable(&mut self, ticket: Ticket, out: &mut BytesMut) {
        self.pending.release(ticket, self.version, out);
    }

    /// Acknowledgements that wait for the disk.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// False while so many acknowledgements wait that the driver should not read.
    pub fn wants_read(&self) -> bool {
        self.phase != Phase::Ended && self.pending.len() < limits::PENDING_ACKS_MAX
    }

    /// True once the connection is to be closed.
    pub fn is_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// Protocol version of the client; 3.1.1 before its CONNECT.
    pub fn version(&self) -> Version {
        self.version
    }

    /// How long the client wants its session kept after the connection, in seconds; `u32::MAX`: for ever.
    pub fn session_expiry_s(&self) -> u32 {
        self.session_expiry_s
    }

    /// Most publishes that the client can have had in flight, as far as this connection shows: what MQTT 5 was told,
    /// and for MQTT 3 an assumption that grows with what is seen. The redelivery window judges by it.
    pub fn in_flight_bound(&self) -> u16 {
        if self.version == Version::V5 {
            return self.config.receive_maximum;
        }
        let seen =
            u16::try_from(self.pending_peak.max(self.pending.len()).saturating_mul(2)).unwrap_or(u16::MAX);
        seen.max(limits::IN_FLIGHT_ASSUMED)
    }

    /// When [`Session::time_out`] is due, on the clock of `now_ns`; `None`: never. One and a half times the keep alive
    /// (MQTT-3.1.2-22), or the time allowed for CONNECT.
    pub fn deadline_ns(&self) -> Option<u64> {
        const HALF_S_NS: u64 = 500_000_000;
        match self.phase {
            Phase::Fresh => Some(self.heard_ns.saturating_add(self.config.connect_timeout_ns)),
            Phase::Open if self.keep_alive_s > 0 => {
                Some(self.heard_ns.saturating_add(u64::from(self.keep_alive_s) * 3 * HALF_S_NS))
            }
            Phase::Open | Phase::Deciding | Phase::Ended => None,
        }
    }

    /// The driver stopped reading on purpose until now: the silence is not the client's.
    pub fn excuse_silence(&mut self, now_ns: u64) {
        self.heard_ns = self.heard_ns.max(now_ns);
    }

    /// Ends the connection when its deadline has passed.
    pub fn time_out(&mut self, now_ns: u64, out: &mut BytesMut) -> Option<Ended> {
        if self.deadline_ns()? > now_ns {
            return None;
        }
        let ended = if self.phase == Phase::Fresh { Ended::ConnectTimeout } else { Ended::KeepAliveTimeout };
        self.end(ended, out);
        Some(ended)
    }

    /// The driver ends the connection: take-over, shutdown, quota.
    pub fn close(&mut self, reason: ReasonCode, out: &mut BytesMut) {
        self.end(Ended::Closed(reason), out);
    }

    /// The will, once, when the connection ended without a goodbye. To be asked after the end.
    pub fn take_will(&mut self) -> Option<WillMessage> {
        self.will.take()
    }

    /// Writes the last words that the version has for this end.
    fn end(&mut self, ended: Ended, out: &mut BytesMut) {
        let phase = std::mem::replace(&mut self.phase, Phase::Ended);
        match phase {
            Phase::Fresh | Phase::Deciding => {
                self.will = None;
                self.refuse_connect(ended, out);
            }
            Phase::Open if self.version == Version::V5 => {
                let at = out.len();
                let text = ended.to_string();
                encode::disconnect(out, ended.reason(), self.problem_information.then_some(text.as_str()));
                self.withhold_oversized(at, out);
            }
            Phase::Open | Phase::Ended => {}
        }
    }

    /// What was not recognisable as MQTT gets no answer.
    fn refuse_connect(&self, ended: Ended, out: &mut BytesMut) {
        match ended {
            Ended::Decode(DecodeError::ProtocolLevel(_)) => {
                encode::connack_v3(out, Version::V311, false, encode::connack_code_v3(ended.reason()));
            }
            Ended::Rejected(reason) | Ended::Closed(reason) => {
                if self.version == Version::V5 {
                    encode::connack_v5(out, false, reason, &ConnAckProperties::default());
                } else {
                    encode::connack_v3(out, self.version, false, encode::connack_code_v3(reason));
                }
            }
            _ => {}
        }
    }

    fn receive_maximum(&self) -> usize {
        usize::from(self.config.receive_maximum)
    }
}

#[cfg(test)]
mod tests;
