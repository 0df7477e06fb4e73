use super::*;
use crate::event::Delivery;
use record::{Column, arrow::array::Array, arrow::array::cast::AsArray, arrow::array::types::Float64Type};

const NOW: i64 = 1_700_000_000 * SECOND_NS;

fn decoder(rules: DecodeRules) -> Decoder {
    let columns = [
        ("temperature", ColumnType::Float64),
        ("count", ColumnType::Int64),
        ("mode", ColumnType::String),
        ("on", ColumnType::Bool),
        ("raw", ColumnType::Bytes),
    ];
    let columns = columns.iter().map(|(n, ty)| Column { name: (*n).into(), ty: *ty }).collect();
    let schema = Arc::new(StreamSchema::new(columns).unwrap());
    Decoder::new(StreamName::new("machine").unwrap(), schema, rules)
}

fn by_topic() -> Decoder {
    decoder(DecodeRules { time: "ts".into(), device: DeviceRule::TopicLevel(2), ..DecodeRules::default() })
}

fn event(payload: &[u8]) -> Event<'_> {
    Event {
        received_ns: NOW,
        source: "floor",
        topic: "machines/m1/telemetry",
        client: "c1",
        payload,
        ..Event::default()
    }
}

fn decode(payload: &[u8]) -> Decoded {
    by_topic().decode([event(payload)].into_iter()).unwrap()
}

/// The one dead letter that a payload becomes.
fn dead(payload: &[u8]) -> DeadLetter {
    let mut decoded = decode(payload);
    assert!(decoded.chunks.is_empty(), "{payload:?} became a row");
    assert_eq!((decoded.elements, decoded.dead_letters.len()), (1, 1));
    decoded.dead_letters.remove(0)
}

#[test]
fn a_full_row() {
    let d = decode(br#"{"ts":"2023-11-14T22:13:19.5Z","temperature":90,"count":3.0,"mode":"a\nb; drop table x","on":true,"raw":"Zg==","more":{"x":[1]}}"#);
    let batch = &d.chunks[0].batch;
    assert_eq!((d.elements, d.undeclared, batch.rows()), (1, 1, 1));
    assert_eq!((batch.times()[0], batch.device(0)), (NOW - SECOND_NS / 2, "m1"));
    assert_eq!(batch.column("temperature").unwrap().as_primitive::<Float64Type>().value(0), 90.0);
    assert_eq!(batch.column("mode").unwrap().as_string::<i32>().value(0), "a\nb; drop table x");
    assert_eq!(batch.column("raw").unwrap().as_binary::<i32>().value(0), b"f");
}

#[test]
fn a_field_named_device_is_like_any_other_where_the_device_stands_elsewhere() {
    let payload = br#"{"ts":1,"temperature":2,"device":{"id":5}}"#;
    let rules = |device| DecodeRules { time: "ts".into(), device, ..DecodeRules::default() };
    for (rule, device) in [(DeviceRule::TopicLevel(2), "m1"), (DeviceRule::ClientId, "c1")] {
        let d = decoder(rules(rule)).decode([event(payload)].into_iter()).unwrap();
        assert_eq!((d.dead_letters.len(), d.undeclared), (0, 1));
        assert_eq!(d.chunks[0].batch.device(0), device);
    }
    // Over HTTP it is what the request did not say.
    let http = Delivery { http: true, ..Delivery::default() };
    let posted = |client, payload| Event { delivery: http, topic: "", client, payload, ..event(b"") };
    let named = by_topic().decode([posted("web", &payload[..])].into_iter()).unwrap();
    assert_eq!((named.chunks[0].batch.device(0), named.undeclared), ("web", 1));
    let inside = by_topic().decode([posted("", &br#"{"ts":1,"device":"m9"}"#[..])].into_iter()).unwrap();
    assert_eq!((inside.chunks[0].batch.device(0), inside.undeclared), ("m9", 0));
    let none = by_topic().decode([posted("", &payload[..])].into_iter()).unwrap();
    assert_eq!(none.dead_letters[0].reason, Reason::Device);
}

#[test]
fn missing_and_null_are_null() {
    let d = decode(br#"{"ts":1700000000,"temperature":null}"#);
    let batch = &d.chunks[0].batch;
    assert!(batch.schema().columns().iter().all(|c| batch.column(&c.name).unwrap().is_null(0)));
}

#[test]
fn the_last_bit_of_a_number_is_kept() {
    for (text, value) in
        [("92.27798059999999", 92.27798059999999), ("63.441121100000004", 63.441121100000004)]
    {
        let d = decode(format!(r#"{{"ts":1,"temperature":{text}}}"#).as_bytes());
        assert_eq!(
            d.chunks[0].batch.column("temperature").unwrap().as_primitive::<Float64Type>().value(0),
            value
        );
    }
}

#[test]
fn a_list_is_one_element_each() {
    let d = decode(br#"[{"ts":1,"temperature":1.5},{"ts":2,"temperature":"x"},7,{"ts":3}]"#);
    assert_eq!((d.elements, d.chunks[0].batch.rows(), d.dead_letters.len()), (4, 2, 2));
    assert_eq!(d.chunks[0].batch.times(), &[SECOND_NS, 3 * SECOND_NS]);
    assert_eq!(d.dead_letters[0].payload, r#"{"ts":2,"temperature":"x"}"#);
    assert_eq!(d.dead_letters[1].reason, Reason::Shape);
}

#[test]
fn more_elements_than_a_batch_holds() {
    let payload = format!("[{}]", vec![r#"{"ts":1}"#; 20_000].join(","));
    let d = decode(payload.as_bytes());
    let rows: Vec<usize> = d.chunks.iter().map(|c| c.batch.rows()).collect();
    assert_eq!(rows, [BATCH_ROWS_MAX, 20_000 - BATCH_ROWS_MAX]);
}

#[test]
fn every_bad_payload_is_a_dead_letter_with_its_reason() {
    let deep = format!(r#"{{"ts":1,"x":{}1{}}}"#, "[".repeat(64), "]".repeat(64));
    let deeper = format!(r#"{{"ts":1,"x":{}1{}}}"#, "{\"a\":".repeat(100_000), "}".repeat(100_000));
    let list = format!("{}{}", "[".repeat(65), "]".repeat(65));
    let cases: [(&[u8], Reason); 26] = [
        (b"", Reason::Json),
        (b"not json", Reason::Json),
        (b"; drop table machine", Reason::Json),
        (b"\n\n", Reason::Json),
        (br#"{"ts":1"#, Reason::Json),
        (br#"{"ts":1} x"#, Reason::Json),
        (br#"{"ts":1,"temperature":NaN}"#, Reason::Json),
        (br#"{"ts":1,"temperature":1e400}"#, Reason::Number),
        (br#"{"ts":1,"other":1e400}"#, Reason::Number),
        (b"\xff\xfe", Reason::Utf8),
        (b"7", Reason::Shape),
        (b"null", Reason::Shape),
        (b"\"text\"", Reason::Shape),
        (b"[]", Reason::Shape),
        (deep.as_bytes(), Reason::Depth),
        (deeper.as_bytes(), Reason::Depth),
        (list.as_bytes(), Reason::Depth),
        (br#"{"temperature":1}"#, Reason::Time),
        (br#"{"ts":"yesterday"}"#, Reason::Time),
        (br#"{"ts":[1]}"#, Reason::Time),
        (br#"{"ts":"1899-12-31T23:59:59Z"}"#, Reason::TimeRange),
        (br#"{"ts":"2262-04-12T00:00:00Z"}"#, Reason::TimeRange),
        (br#"{"ts":1e400}"#, Reason::TimeRange),
        (br#"{"ts":1700003601}"#, Reason::Future),
        (br#"{"ts":1,"count":9223372036854775808}"#, Reason::Column),
        (br#"{"ts":1,"raw":"not base64"}"#, Reason::Column),
    ];
    for (payload, reason) in cases {
        let letter = dead(payload);
        assert_eq!(
            letter.reason,
            reason,
            "{} {}",
            String::from_utf8_lossy(&payload[..payload.len().min(60)]),
            letter.error
        );
        assert_eq!(
            (letter.source.as_str(), letter.topic.as_str(), letter.received_ns),
            ("floor", "machines/m1/telemetry", NOW)
        );
    }
    assert_eq!(dead(b"\xff\xfe").payload, "//4=");
}

#[test]
fn wrong_types_name_the_column() {
    for (field, value) in [
        ("temperature", r#""90""#),
        ("temperature", "true"),
        ("temperature", "[1]"),
        ("count", "1.5"),
        ("mode", "1"),
        ("mode", "{}"),
        ("on", "0"),
        ("raw", "5"),
    ] {
        let letter = dead(format!(r#"{{"ts":1,"{field}":{value}}}"#).as_bytes());
        assert_eq!(letter.reason, Reason::Column);
        assert!(letter.error.contains(&format!("column {field:?}")), "{}", letter.error);
    }
}

#[test]
fn the_limit_of_the_future_is_the_streams() {
    let rules = DecodeRules {
        time: "ts".into(),
        future_limit_ns: 0,
        device: DeviceRule::ClientId,
        ..DecodeRules::default()
    };
    let d = decoder(rules)
        .decode([event(br#"[{"ts":1700000000},{"ts":1700000000.000000001}]"#)].into_iter())
        .unwrap();
    assert_eq!((d.chunks[0].batch.rows(), d.dead_letters[0].reason), (1, Reason::Future));
    assert_eq!(d.chunks[0].batch.device(0), "c1");
}

#[test]
fn a_missing_time_may_be_the_receive_time() {
    let rules = DecodeRules {
        missing_time: MissingTime::Receive,
        device: DeviceRule::ClientId,
        ..DecodeRules::default()
    };
    let d = decoder(rules).decode([event(br#"{"temperature":1}"#)].into_iter()).unwrap();
    assert_eq!(d.chunks[0].batch.times(), &[NOW]);
}

#[test]
fn devices_from_fields_and_from_http() {
    let field = DecodeRules { device: DeviceRule::Field("id".into()), ..DecodeRules::default() };
    let read = |rules: &DecodeRules, event: Event<'_>| {
        let d = decoder(rules.clone()).decode([event].into_iter()).unwrap();
        d.chunks.first().map(|c| c.batch.device(0).to_owned()).ok_or(d.dead_letters)
    };
    assert_eq!(read(&field, event(br#"{"time":1,"id":"a"}"#)), Ok("a".into()));
    assert_eq!(read(&field, event(br#"{"time":1,"id":17}"#)), Ok("17".into()));
    for bad in [&br#"{"time":1}"#[..], br#"{"time":1,"id":""}"#, br#"{"time":1,"id":true}"#] {
        assert_eq!(read(&field, event(bad)).unwrap_err()[0].reason, Reason::Device);
    }
    let long = format!(r#"{{"time":1,"id":"{}"}}"#, "x".repeat(DEVICE_BYTES_MAX + 1));
    assert_eq!(read(&field, event(long.as_bytes())).unwrap_err()[0].reason, Reason::Device);

    let topic = DecodeRules { device: DeviceRule::TopicLevel(2), ..DecodeRules::default() };
    let http = Event {
        delivery: Delivery { http: true, ..Delivery::default() },
        topic: "",
        client: "",
        ..event(b"")
    };
    assert_eq!(read(&topic, Event { payload: br#"{"time":1,"device":"m9"}"#, ..http }), Ok("m9".into()));
    assert_eq!(read(&topic, Event { payload: br#"{"time":1}"#, client: "m8", ..http }), Ok("m8".into()));
    assert_eq!(read(&topic, Event { payload: br#"{"time":1}"#, topic: "a/m7/c", ..http }), Ok("m7".into()));
    assert_eq!(
        read(&topic, Event { payload: br#"{"time":1}"#, ..http }).unwrap_err()[0].reason,
        Reason::Device
    );
}

#[test]
fn a_column_may_be_the_time_or_the_device_too() {
    let columns = vec![
        Column { name: "ts".into(), ty: ColumnType::Int64 },
        Column { name: "id".into(), ty: ColumnType::Int64 },
    ];
    let schema = Arc::new(StreamSchema::new(columns).unwrap());
    let rules =
        DecodeRules { time: "ts".into(), device: DeviceRule::Field("id".into()), ..DecodeRules::default() };
    let decoder = Decoder::new(StreamName::new("m").unwrap(), schema, rules);
    let d = decoder.decode([event(br#"{"ts":5,"id":6}"#)].into_iter()).unwrap();
    let batch = &d.chunks[0].batch;
    assert_eq!((batch.times()[0], batch.device(0)), (5 * SECOND_NS, "6"));
    assert_eq!(batch.column("ts").unwrap().null_count(), 0);
}

#[test]
fn bodies_of_requests() {
    let texts =
        |body: &str| split_body(body).map(|v| v.iter().map(|r| r.get().to_owned()).collect::<Vec<_>>());
    assert_eq!(texts(" {\"a\": 1} ").unwrap(), ["{\"a\": 1}"]);
    assert_eq!(texts("{\"a\":1}\n\n{\"a\":2}\r\n").unwrap(), ["{\"a\":1}", "{\"a\":2}"]);
    assert_eq!(texts("[{\"a\":1}, 7]").unwrap(), ["{\"a\":1}", "7"]);
    assert_eq!(texts("{}\n{]\n").unwrap_err().line(), 2);
    for bad in ["", "\n", "not json", "[1", "[1] 2"] {
        assert!(texts(bad).is_err(), "{bad:?}");
    }
}
