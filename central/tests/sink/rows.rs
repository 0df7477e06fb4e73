//! Rows arrive once, tables widen, bad blocks are kept aside.

use crate::bed::{F, Gateway, Life, kill_server, open_log, put};
use record::{Column, ColumnType, StreamName, StreamSchema};
use std::time::Duration;
use tidegate_central::{
    clickhouse::Reader,
    link::{SchemaGate, SchemaRefusal},
    rules::{Frontier, QueryError, QueryLimits, QuerySource},
    sink::LogFrontier,
};

#[tokio::test(flavor = "multi_thread")]
async fn rows_arrive_tables_widen_and_bad_blocks_are_kept_aside() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open_log(dir.path());
    let life = Life::begin(dir.path(), &log);
    let mut narrow = Gateway::new("g1", "machine", &[F]);
    put(&log, 0, vec![narrow.record(100), narrow.record(50)]).await;
    life.settled(&log).await;
    let mut wide = Gateway::new(
        "g2",
        "machine",
        &[("mode", ColumnType::String), F, ("raw", ColumnType::Bytes), ("on", ColumnType::Bool)],
    );
    let mut conflict = Gateway::new("g3", "machine", &[("temperature", ColumnType::String)]);
    let mut flipped = narrow.record(10);
    let mut bytes = flipped.bytes.to_vec();
    bytes[100] ^= 1;
    flipped.bytes = bytes.into();
    put(&log, 1, vec![wide.record(30), conflict.record(7), wide.record(5)]).await;
    put(&log, 0, vec![flipped, narrow.record(20)]).await;
    life.settled(&log).await;

    let sql = "SELECT toString(gateway), count(), uniqExact(seq), sum(temperature), countIf(mode IS NOT NULL) FROM \
               tidegate.machine GROUP BY gateway ORDER BY gateway";
    let rows: Vec<(String, u64, u64, Option<f64>, u64)> = life.rows(sql).await;
    let sum = |r: std::ops::RangeInclusive<u64>| r.sum::<u64>() as f64;
    assert_eq!(
        rows,
        [
            ("g1".into(), 170, 170, Some(sum(1..=150) + sum(161..=180)), 0),
            ("g2".into(), 35, 35, Some(sum(1..=35)), 35),
        ]
    );
    let sql = "SELECT toString(gateway), first_seq, last_seq, reason, length(block) FROM tidegate.quarantined_blocks ORDER BY gateway";
    let aside: Vec<(String, u64, u64, String, u64)> = life.rows(sql).await;
    assert_eq!(aside.len(), 2, "{aside:?}");
    assert!((aside[0].1, aside[0].2) == (151, 160) && aside[0].3.contains("hash") && aside[0].4 > 100);
    let reason = "column \"temperature\" of table \"machine\" is float64, the stream declares it as string";
    assert_eq!((aside[1].0.as_str(), aside[1].3.as_str()), ("g3", reason));

    let text = StreamSchema::new(vec![Column { name: "temperature".into(), ty: ColumnType::String }]);
    let machine = StreamName::new("machine").expect("valid");
    let refused = SchemaGate::check(&*life.tables, &machine, &text.expect("valid")).await;
    assert_eq!(refused, Err(SchemaRefusal::Conflict(reason.into())));
    let reader = Reader::new(life.clickhouse.clone());
    let limits = QueryLimits { rows_max: 2, timeout: Duration::from_secs(10) };
    let table = reader.query("SELECT device, count() AS n FROM machine GROUP BY device", limits).await;
    let table = table.expect("an answer");
    assert_eq!((table.columns[1].name.as_str(), table.rows.len(), table.truncated), ("n", 2, true));
    for sql in ["DROP TABLE machine", "SELECT * FROM file('/etc/passwd', LineAsString)", "SELECT 1; SELECT 2"]
    {
        assert!(matches!(reader.query(sql, limits).await, Err(QueryError::Refused(_))), "{sql}");
    }
    assert!(matches!(reader.query("SELECT * FROM nope", limits).await, Err(QueryError::UnknownTable(_))));
    let frontier = LogFrontier(log.clone()).committed().await.expect("known");
    assert_eq!(frontier.values().copied().sum::<u64>(), 7);
    let metrics = life.registry.render();
    assert!(metrics.contains("tidegate_sink_rows_total{table=\"machine\"}"), "{metrics}");
    life.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_row_is_there_once_whatever_is_killed() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open_log(dir.path());
    let mut life = Life::begin(dir.path(), &log);
    let mut gateways: Vec<(u32, Gateway)> = (0..4)
        .map(|n| {
            let stream = if n % 2 == 0 { "machine" } else { "machine-hot" };
            (n % 2, Gateway::new(&format!("g{n}"), stream, &[F]))
        })
        .collect();
    // The third stream is in both partitions.
    gateways.push((0, Gateway::new("g8", "sums", &[("n", ColumnType::Int64)])));
    gateways.push((1, Gateway::new("g9", "sums", &[("n", ColumnType::Int64)])));
    for round in 0..12_u32 {
        for step in 0..15 {
            for (partition, gateway) in &mut gateways {
                let record = gateway.record(1 + u64::from((round * 7 + step * 3) % 40));
                put(&log, *partition, vec![record]).await;
            }
            // Somewhere in the middle of the round's inserts.
            if step == 7 + round % 5 && round % 3 != 2 {
                kill_server(dir.path(), &life);
            }
        }
        if round % 3 == 2 {
            // The sink goes away in the middle of whatever it does; what it stored is all that is left.
            life.end().await;
            life = Life::begin(dir.path(), &log);
        } else {
            life.settled(&log).await;
        }
    }
    life.settled(&log).await;
    for (_, gateway) in &gateways {
        let sql = format!(
            "SELECT count(), uniqExact(seq), max(seq) FROM tidegate.`{}` WHERE gateway = '{}'",
            gateway.stream, gateway.id
        );
        let sent = gateway.next - 1;
        assert_eq!(life.rows::<(u64, u64, u64)>(&sql).await, [(sent, sent, sent)], "{}", gateway.id);
    }
    life.end().await;
}
