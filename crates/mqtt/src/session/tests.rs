use super::*;
use crate::packet::PacketId;

const SECOND_NS: u64 = 1_000_000_000;

#[derive(Default)]
struct Collected(Vec<(String, Vec<u8>, Option<u16>, bool)>);

impl PublishSink for Collected {
    fn publish(&mut self, publish: &Incoming<'_>) -> Admission {
        let id = publish.packet_id.map(PacketId::get);
        self.0.push((publish.topic.to_owned(), publish.payload.to_vec(), id, publish.dup));
        if publish.topic == "refused" {
            Admission::Refused(ReasonCode::NOT_AUTHORIZED)
        } else {
            Admission::Taken
        }
    }
}

/// A session with the buffers that its driver would hold.
struct Bench {
    session: Session,
    out: BytesMut,
    sink: Collected,
}

impl Bench {
    fn new() -> Self {
        Self { session: Session::new(Config::default(), 0), out: BytesMut::new(), sink: Collected::default() }
    }

    fn give(&mut self, bytes: &[u8]) -> Result<Progress, Ended> {
        self.session.drain(&mut BytesMut::from(bytes), 0, &mut self.sink, &mut self.out)
    }

    fn connected(packet: &[u8]) -> Self {
        let mut bench = Self::new();
        assert!(matches!(bench.give(packet), Ok(Progress::Connect(_))));
        bench.session.accept(&Accept::default(), 0, &mut bench.out);
        bench.out.clear();
        bench
    }

    fn v311() -> Self {
        Self::connected(&connect(b"MQTT", 4, 2, &[], b"dev"))
    }

    fn v5() -> Self {
        Self::connected(&connect(b"MQTT", 5, 2, &[0], b"dev"))
    }

    fn written(&mut self) -> Vec<u8> {
        self.out.split().to_vec()
    }
}

fn connect(name: &[u8], level: u8, flags: u8, properties: &[u8], id: &[u8]) -> Vec<u8> {
    let mut body = vec![0, name.len() as u8];
    body.extend_from_slice(name);
    body.extend_from_slice(&[level, flags, 0, 10]);
    body.extend_from_slice(properties);
    body.extend_from_slice(&[0, id.len() as u8]);
    body.extend_from_slice(id);
    let mut packet = vec![0x10, body.len() as u8];
    packet.extend(body);
    packet
}

fn publish_v3(first: u8, id: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![first, 5 + payload.len() as u8, 0, 1, b't', 0, id];
    packet.extend_from_slice(payload);
    packet
}

fn publish_v5(id: u8, topic: &[u8], properties: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x32, (5 + topic.len() + properties.len()) as u8, 0, topic.len() as u8];
    packet.extend_from_slice(topic);
    packet.extend_from_slice(&[0, id, properties.len() as u8]);
    packet.extend_from_slice(properties);
    packet
}

#[test]
fn acknowledgements_wait_for_their_ticket_and_keep_the_order() {
    let mut bench = Bench::v311();
    bench.give(&[publish_v3(0x32, 7, b"x"), publish_v3(0x32, 3, b"y")].concat()).unwrap();
    bench.session.assign(Ticket(5));
    bench.give(&publish_v3(0x32, 9, b"z")).unwrap();
    bench.session.assign(Ticket(6));
    assert_eq!(bench.session.pending(), 3);
    bench.session.durable(Ticket(4), &mut bench.out);
    assert!(bench.written().is_empty());
    bench.session.durable(Ticket(5), &mut bench.out);
    assert_eq!(bench.written(), [0x40, 2, 0, 7, 0x40, 2, 0, 3]);
    bench.session.durable(Ticket(9), &mut bench.out);
    assert_eq!(bench.written(), [0x40, 2, 0, 9]);
    assert_eq!(bench.session.pending(), 0);
}

#[test]
fn unassigned_publishes_are_never_acknowledged() {
    let mut bench = Bench::v311();
    bench.give(&publish_v3(0x32, 1, b"x")).unwrap();
    bench.session.durable(Ticket(u64::MAX), &mut bench.out);
    assert!(bench.written().is_empty());
}

#[test]
fn qos_0_is_taken_without_acknowledgement() {
    let mut bench = Bench::v311();
    bench.give(&[0x30, 4, 0, 1, b't', b'p']).unwrap();
    bench.session.assign(Ticket(1));
    bench.session.durable(Ticket(1), &mut bench.out);
    assert!(bench.written().is_empty());
    assert_eq!(bench.sink.0, [("t".into(), b"p".to_vec(), None, false)]);
}

#[test]
fn packets_behind_the_connect_wait_for_the_decision() {
    let mut bench = Bench::new();
    let mut input = BytesMut::from(&connect(b"MQTT", 4, 2, &[], b"dev")[..]);
    input.extend_from_slice(&publish_v3(0x32, 1, b"x"));
    let Ok(Progress::Connect(request)) = bench.session.drain(&mut input, 0, &mut bench.sink, &mut bench.out)
    else {
        panic!("no connect")
    };
    assert_eq!((request.client_id.as_str(), request.clean, request.persistent()), ("dev", true, false));
    assert_eq!(bench.session.drain(&mut input, 0, &mut bench.sink, &mut bench.out), Ok(Progress::NeedMore));
    assert!(bench.sink.0.is_empty());
    bench.session.accept(&Accept { session_present: true, assigned_client_id: None }, 0, &mut bench.out);
    assert_eq!(bench.written(), [0x20, 2, 1, 0]);
    bench.session.drain(&mut input, 0, &mut bench.sink, &mut bench.out).unwrap();
    assert_eq!(bench.sink.0.len(), 1);
}

#[test]
fn connack_of_mqtt_5_tells_the_limits() {
    let mut bench = Bench::new();
    bench.give(&connect(b"MQTT", 5, 2, &[0], b"")).unwrap();
    let accept = Accept { session_present: false, assigned_client_id: Some("auto-1") };
    bench.session.accept(&accept, 0, &mut bench.out);
    let written = bench.written();
    let tail: &[u8] = &written[5..];
    let wanted: [&[u8]; 6] = [
        &[0x21, 1, 0],
        &[0x24, 1],
        &[0x27, 0, 16, 0, 4],
        b"\x12\x00\x06auto-1",
        &[0x22, 0, 16],
        &[0x28, 0, 0x29, 0, 0x2a, 0],
    ];
    assert_eq!(&written[..4], &[0x20, written.len() as u8 - 2, 0, 0]);
    assert_eq!(tail, wanted.concat());
}

#[test]
fn first_packet_must_be_a_connect_and_only_one_may_come() {
    assert_eq!(Bench::new().give(&[0xc0, 0]), Err(Ended::ConnectExpected));
    assert_eq!(Bench::new().give(b"GET / HTTP/1.1"), Err(Ended::ConnectExpected));
    let again = connect(b"MQTT", 4, 2, &[], b"dev");
    let mut bench = Bench::v311();
    assert_eq!(bench.give(&again), Err(Ended::SecondConnect));
    assert!(bench.written().is_empty() && bench.session.is_ended());
    let mut bench = Bench::v5();
    assert_eq!(bench.give(&again), Err(Ended::SecondConnect));
    assert_eq!(bench.written()[2], 0x82);
}

#[test]
fn unknown_level_is_told_and_unknown_protocol_is_not() {
    let mut bench = Bench::new();
    bench.give(&connect(b"MQTT", 9, 2, &[], b"dev")).unwrap_err();
    assert_eq!(bench.written(), [0x20, 2, 0, 1]);
    let mut bench = Bench::new();
    bench.give(&connect(b"MQXX", 4, 2, &[], b"dev")).unwrap_err();
    assert!(bench.written().is_empty());
}

#[test]
fn client_ids_are_demanded_where_the_version_demands_them() {
    let mut bench = Bench::new();
    bench.give(&connect(b"MQTT", 4, 0, &[], b"")).unwrap_err();
    assert_eq!(bench.written(), [0x20, 2, 0, 2]);
    Bench::new().give(&connect(b"MQTT", 4, 2, &[], b"")).unwrap();
    Bench::new().give(&connect(b"MQIsdp", 3, 2, &[], b"")).unwrap_err();
    Bench::new().give(&connect(b"MQTT", 5, 0, &[0], b"")).unwrap();
}

#[test]
fn qos_2_is_refused() {
    let mut bench = Bench::v5();
    let packet = [0x34, 6, 0, 1, b't', 0, 1, 0];
    assert_eq!(bench.give(&packet), Err(Ended::QosNotSupported));
    let written = bench.written();
    assert_eq!((written[0], written[2]), (0xe0, 0x9b));
    let mut bench = Bench::v311();
    assert_eq!(bench.give(&publish_v3(0x34, 1, b"")), Err(Ended::QosNotSupported));
    assert!(bench.written().is_empty());
}

#[test]
fn publishes_before_an_error_in_the_same_read_are_taken() {
    let mut bench = Bench::v311();
    bench.give(&[publish_v3(0x32, 1, b"x"), vec![0xf0, 0]].concat()).unwrap_err();
    assert_eq!(bench.sink.0.len(), 1);
}

#[test]
fn receive_maximum_is_enforced_on_mqtt_5() {
    let config = Config { receive_maximum: 2, ..Config::default() };
    let mut bench = Bench { session: Session::new(config, 0), ..Bench::new() };
    bench.give(&connect(b"MQTT", 5, 2, &[0], b"dev")).unwrap();
    bench.session.accept(&Accept::default(), 0, &mut bench.out);
    bench.give(&[publish_v5(1, b"t", &[]), publish_v5(2, b"t", &[])].concat()).unwrap();
    bench.session.assign(Ticket(1));
    bench.session.durable(Ticket(1), &mut bench.out);
    bench.give(&[publish_v5(3, b"t", &[]), publish_v5(4, b"t", &[])].concat()).unwrap();
    assert_eq!(bench.give(&publish_v5(5, b"t", &[])), Err(Ended::ReceiveMaximumExceeded));
}

#[test]
fn topic_aliases() {
    let mut bench = Bench::v5();
    assert_eq!(bench.give(&publish_v5(1, b"", &[0x23, 0, 1])), Err(Ended::AliasUnknown(1)));
    let mut bench = Bench::v5();
    assert_eq!(bench.give(&publish_v5(1, b"t", &[0x23, 0, 17])), Err(Ended::AliasAboveMaximum(17)));
    let mut bench = Bench::v5();
    bench.give(&publish_v5(1, b"a/b", &[0x23, 0, 16])).unwrap();
    bench.give(&publish_v5(2, b"", &[0x23, 0, 16])).unwrap();
    bench.give(&publish_v5(3, b"c", &[0x23, 0, 16])).unwrap();
    bench.give(&publish_v5(4, b"", &[0x23, 0, 16])).unwrap();
    let topics: Vec<&str> = bench.sink.0.iter().map(|publish| publish.0.as_str()).collect();
    assert_eq!(topics, ["a/b", "a/b", "c", "c"]);
}

#[test]
fn refused_publish_gets_its_reason_in_turn() {
    let mut bench = Bench::v5();
    bench.give(&[publish_v5(1, b"t", &[]), publish_v5(2, b"refused", &[])].concat()).unwrap();
    bench.session.assign(Ticket(1));
    bench.session.durable(Ticket(1), &mut bench.out);
    assert_eq!(bench.written(), [0x40, 2, 0, 1, 0x40, 4, 0, 2, 0x87, 0]);
}

#[test]
fn subscriptions_are_refused_one_by_one() {
    let mut bench = Bench::v311();
    bench.give(&[0x82, 12, 0, 1, 0, 1, b'a', 0, 0, 3, b'b', b'/', b'+', 1]).unwrap();
    assert_eq!(bench.written(), [0x90, 4, 0, 1, 0x80, 0x80]);
    let mut bench = Bench::v5();
    bench.give(&[0x82, 7, 0, 1, 0, 0, 1, b'a', 0]).unwrap();
    let written = bench.written();
    assert_eq!((written[0], written.last()), (0x90, Some(&0x87)));
    bench.give(&[0xa2, 6, 0, 2, 0, 0, 1, b'a']).unwrap();
    assert_eq!(bench.written(), [0xb0, 4, 0, 2, 0, 0x11]);
}

#[test]
fn ping_release_and_goodbye() {
    let mut bench = Bench::v5();
    bench.give(&[0xc0, 0]).unwrap();
    assert_eq!(bench.written(), [0xd0, 0]);
    bench.give(&[0x62, 2, 0, 9]).unwrap();
    assert_eq!(bench.written(), [0x70, 4, 0, 9, 0x92, 0]);
    assert_eq!(bench.give(&[0xe0, 0]), Ok(Progress::Left));
    assert!(bench.session.is_ended());
}

#[test]
fn keep_alive_and_connect_have_deadlines() {
    let mut bench = Bench::new();
    assert_eq!(bench.session.deadline_ns(), Some(10 * SECOND_NS));
    assert_eq!(bench.session.time_out(10 * SECOND_NS, &mut bench.out), Some(Ended::ConnectTimeout));
    let mut bench = Bench::v5();
    assert_eq!(bench.session.deadline_ns(), Some(15 * SECOND_NS));
    let mut ping = BytesMut::from(&[0xc0, 0][..]);
    bench.session.drain(&mut ping, 5 * SECOND_NS, &mut bench.sink, &mut bench.out).unwrap();
    assert_eq!(bench.session.time_out(19 * SECOND_NS, &mut bench.out), None);
    bench.out.clear();
    assert_eq!(bench.session.time_out(20 * SECOND_NS, &mut bench.out), Some(Ended::KeepAliveTimeout));
    assert_eq!(bench.written()[2], 0x8d);
}

#[test]
fn will_survives_everything_but_a_goodbye() {
    let mut packet = connect(b"MQTT", 4, 6, &[], b"dev");
    packet.extend_from_slice(&[0, 1, b'w', 0, 2, b'm', b'm']);
    packet[1] += 7;
    let mut bench = Bench::connected(&packet);
    bench.give(&[0xf0, 0]).unwrap_err();
    let will = WillMessage { topic: "w".into(), payload: b"mm".to_vec(), retain: false };
    assert_eq!(bench.session.take_will(), Some(will));
    let mut bench = Bench::connected(&packet);
    bench.give(&[0xe0, 0]).unwrap();
    assert_eq!(bench.session.take_will(), None);
}

#[test]
fn enhanced_authentication_is_refused_with_its_code() {
    let mut bench = Bench::new();
    bench.give(&connect(b"MQTT", 5, 2, b"\x04\x15\x00\x01M", b"dev")).unwrap_err();
    assert_eq!(bench.written(), [0x20, 3, 0, 0x8c, 0]);
}

#[test]
fn driver_may_reject_and_close() {
    let mut bench = Bench::new();
    bench.give(&connect(b"MQTT", 4, 2, &[], b"dev")).unwrap();
    bench.session.reject(ReasonCode::NOT_AUTHORIZED, &mut bench.out);
    assert_eq!(bench.written(), [0x20, 2, 0, 5]);
    let mut bench = Bench::v5();
    bench.session.close(ReasonCode::SESSION_TAKEN_OVER, &mut bench.out);
    assert_eq!(bench.written()[2], 0x8e);
    bench.session.close(ReasonCode::SERVER_SHUTTING_DOWN, &mut bench.out);
    assert!(bench.written().is_empty());
}

#[test]
fn oversized_answers_are_withheld() {
    let mut bench = Bench::connected(&connect(b"MQTT", 5, 2, b"\x05\x27\x00\x00\x00\x08", b"dev"));
    bench.give(&[0x82, 7, 0, 1, 0, 0, 1, b'a', 0]).unwrap();
    assert!(bench.written().is_empty());
}

#[test]
fn in_flight_bound_grows_with_what_is_seen() {
    let mut bench = Bench::v311();
    assert_eq!(bench.session.in_flight_bound(), limits::IN_FLIGHT_ASSUMED);
    for id in 1..=200 {
        bench.give(&publish_v3(0x32, id, b"x")).unwrap();
    }
    bench.session.assign(Ticket(1));
    bench.session.durable(Ticket(1), &mut bench.out);
    assert_eq!(bench.session.in_flight_bound(), 400);
    assert_eq!(Bench::v5().session.in_flight_bound(), limits::RECEIVE_MAXIMUM_DEFAULT);
}

#[test]
fn a_full_sink_leaves_the_rest_in_the_input() {
    struct OneAtATime(usize);
    impl PublishSink for OneAtATime {
        fn publish(&mut self, _: &Incoming<'_>) -> Admission {
            self.0 += 1;
            Admission::Taken
        }
        fn is_full(&self) -> bool {
            self.0 > 0
        }
    }
    let mut bench = Bench::v311();
    let mut input = BytesMut::from(&[publish_v3(0x32, 1, b"x"), publish_v3(0x32, 2, b"y")].concat()[..]);
    let mut sink = OneAtATime(0);
    assert_eq!(bench.session.drain(&mut input, 0, &mut sink, &mut bench.out), Ok(Progress::SinkFull));
    assert_eq!(&input[..], publish_v3(0x32, 2, b"y"));
    sink.0 = 0;
    assert_eq!(bench.session.drain(&mut input, 0, &mut sink, &mut bench.out), Ok(Progress::NeedMore));
    assert_eq!(bench.session.pending(), 2);
}
