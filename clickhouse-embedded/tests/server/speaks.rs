//! What clients need: typed rows, Arrow, compression, parameters, formats, errors.

use crate::harness::{Server, data_dir, get, post};
use bytes::Bytes;
use clickhouse::{Compression, Row};
use record::{BatchBuilder, Column, ColumnType, EventTime, StreamSchema, Value};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

#[derive(Row, Serialize, Deserialize, Debug, PartialEq, Clone)]
struct Reading {
    id: u64,
    name: String,
    value: f64,
}

const TABLE: &str =
    "CREATE TABLE r (id UInt64, name LowCardinality(String), value Float64) ENGINE = MergeTree ORDER BY id";

fn readings(n: u64) -> Vec<Reading> {
    (0..n).map(|id| Reading { id, name: format!("n-{}", id % 7), value: id as f64 / 4.0 }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn typed_rows_go_in_and_come_back() {
    let (_dir, data) = data_dir();
    let server = Server::start(&data);
    server.client().query("CREATE DATABASE d ENGINE = Atomic").execute().await.expect("created");
    for compression in [Compression::None, Compression::Lz4] {
        let client = server.client().with_database("d").with_compression(compression);
        client.query("DROP TABLE IF EXISTS r").execute().await.expect("dropped");
        client.query(TABLE).execute().await.expect("created");
        assert_eq!(client.query("SELECT * FROM r").fetch_all::<Reading>().await.expect("empty"), []);
        let mut insert = client.insert::<Reading>("r").await.expect("described");
        // More than one piece of a result, so that headers repeat inside the engine.
        let rows = readings(200_000);
        for row in &rows {
            insert.write(row).await.expect("written");
        }
        insert.end().await.expect("inserted");
        let back = client.query("SELECT ?fields FROM r ORDER BY id").fetch_all::<Reading>().await;
        assert!(back.expect("read") == rows);
        let named =
            client.query("SELECT count() FROM r WHERE name = {n:String} AND id < ?").param("n", "n-3");
        assert_eq!(named.bind(70_u64).fetch_one::<u64>().await.expect("counted"), 10);
    }
    assert!(server.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_go_in_as_arrow() {
    let (_dir, data) = data_dir();
    let server = Server::start(&data);
    let client = server.client();
    let sql = "CREATE TABLE m (time DateTime64(9, 'UTC'), device LowCardinality(String), f Nullable(Float64), \
               s Nullable(String)) ENGINE = MergeTree ORDER BY (device, time)";
    client.query(sql).execute().await.expect("created");
    let columns = [("f", ColumnType::Float64), ("s", ColumnType::String)];
    let columns = columns.map(|(name, ty)| Column { name: name.into(), ty }).to_vec();
    let mut batch = BatchBuilder::new(Arc::new(StreamSchema::new(columns).expect("valid")));
    for i in 0..10_000_i64 {
        let value = if i % 2 == 0 { Value::Null } else { Value::Float(0.5) };
        let time = EventTime::from_ns(1_700_000_000_000_000_000 + i128::from(i)).expect("in range");
        batch.push(time, &format!("dev-{}", i % 3), &[value, Value::Str("é")]).expect("fits");
    }
    let block = record::block::encode(&batch.finish().expect("fits")).expect("encoded");
    let mut insert = client
        .insert_formatted_with("INSERT INTO m FORMAT ArrowStream")
        .with_setting("async_insert", "0")
        .with_setting("insert_deduplication_token", "t'1\\");
    insert.send(Bytes::from(block.clone())).await.expect("sent");
    insert.end().await.expect("inserted");
    let sql = "SELECT concat(toString(count()), ' ', toString(countIf(f = 0.5)), ' ', toString(max(time)), ' ', assumeNotNull(any(s))) FROM m";
    let all = client.query(sql).fetch_one::<String>().await.expect("counted");
    assert_eq!(all, "10000 5000 2023-11-14 22:13:20.000009999 é");
    // Half a stream commits nothing and says so.
    let mut half = client.insert_formatted_with("INSERT INTO m FORMAT ArrowStream");
    half.send(Bytes::from(block).slice(..1_000)).await.expect("sent");
    assert!(half.end().await.is_err());
    assert_eq!(client.query("SELECT count() FROM m").fetch_one::<u64>().await.expect("counted"), 10_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn formats_settings_and_errors() {
    let (_dir, data) = data_dir();
    let server = Server::start(&data);
    assert_eq!(get(&server, &[("query", "SELECT 1")]).await, (200, 0, "1\n".into()));
    assert_eq!(post(&server, &[], "SELECT 1 AS a FORMAT JSONEachRow;").await, (200, 0, "{\"a\":1}\n".into()));
    let (_, _, json) =
        post(&server, &[("default_format", "JSON")], "SELECT number FROM numbers(200000)").await;
    assert!(json.trim_start().starts_with('{') && json.contains("\"rows\": 200000"), "one whole document");
    let (_, _, csv) = post(&server, &[("default_format", "CSV")], "SELECT number FROM numbers(200000)").await;
    assert_eq!(csv.lines().count(), 200_000);
    let (_, _, named) =
        post(&server, &[], "SELECT number AS n FROM numbers(200000) FORMAT CSVWithNames").await;
    assert_eq!(named.lines().filter(|l| l.contains('n')).count(), 1);
    // A setting of one request is gone in the next, on every connection of the pool.
    let ask = "SELECT getSetting('max_block_size')";
    let plain = post(&server, &[], ask).await;
    assert_eq!(post(&server, &[("max_block_size", "77")], ask).await.2, "77\n");
    for _ in 0..20 {
        assert_eq!(post(&server, &[], ask).await, plain);
    }
    post(&server, &[], "SET max_block_size = 78").await;
    for _ in 0..20 {
        assert_eq!(post(&server, &[], ask).await, plain);
    }
    for (sql, status, code) in [
        ("SELECT nope", 404, 47),
        ("SELECT * FROM nope", 404, 60),
        ("SELEC 1", 400, 62),
        ("SELECT 1 FORMAT Nope", 404, 73),
    ] {
        let (_, got, text) = post(&server, &[], sql).await;
        assert_eq!(got, code, "{sql}: {text} ({status})");
        assert!(text.contains("DB::Exception") && text.contains("version"), "{text}");
    }
    assert_eq!(post(&server, &[("nope", "1")], "SELECT 1").await.1, 115);
    assert_eq!(post(&server, &[("a;b", "1")], "SELECT 1").await.1, 115);
    assert_eq!(post(&server, &[("database", "nope")], "SELECT 1").await.1, 81);
    assert_eq!(post(&server, &[("session_id", "x")], "SELECT 1").await.1, 48);
    // A failure in the middle of a long result is a failure for the client.
    let late = "SELECT throwIf(number = 3000000) FROM numbers(5000000) SETTINGS max_threads = 1";
    // (The client finds the reason only when it lies in one of its reads; that it fails is what counts.)
    assert!(server.client().query(late).fetch_all::<u8>().await.is_err());
    assert_eq!(post(&server, &[], "SELECT 1").await.2, "1\n");
}
