//! What was acknowledged is there after SIGKILL; what is retried is there once.

use crate::harness::{Server, data_dir};
use bytes::Bytes;
use clickhouse::Client;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

const ROWS: u64 = 50;

async fn insert(client: &Client, table: &str, token: &str, body: String) -> clickhouse::error::Result<()> {
    let mut insert = client
        .insert_formatted_with(format!("INSERT INTO {table} FORMAT CSV"))
        .with_setting("async_insert", "0")
        .with_setting("deduplicate_insert", "enable")
        .with_setting("insert_deduplication_token", token)
        .with_setting("deduplicate_blocks_in_dependent_materialized_views", "1");
    insert.send(Bytes::from(body)).await?;
    insert.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_inserts_survive_sigkill() {
    let (_dir, data) = data_dir();
    let mut acknowledged: Vec<u64> = Vec::new();
    let next = Arc::new(AtomicU64::new(0));
    for round in 0..3_u64 {
        let server = Server::start(&data);
        let client = server.client();
        let sql = "CREATE TABLE IF NOT EXISTS k (batch UInt64, n UInt64) ENGINE = MergeTree ORDER BY (batch, n) \
                   SETTINGS fsync_after_insert = 1, fsync_part_directory = 1";
        client.query(sql).execute().await.expect("created");
        let stop = Arc::new(AtomicBool::new(false));
        let mut workers = Vec::new();
        for _ in 0..4 {
            let (client, next, stop) = (client.clone(), next.clone(), stop.clone());
            workers.push(tokio::spawn(async move {
                let mut done = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let batch = next.fetch_add(1, Ordering::Relaxed);
                    let body: String = (0..ROWS).map(|n| format!("{batch},{n}\n")).collect();
                    match insert(&client, "k", &format!("k-{batch}"), body).await {
                        Ok(()) => done.push(batch),
                        Err(_) => break,
                    }
                }
                done
            }));
        }
        // The moment of the kill is by count, so that some inserts are acknowledged and some are under way.
        let target = next.load(Ordering::Relaxed) + 40 + round * 17;
        while next.load(Ordering::Relaxed) < target {
            tokio::task::yield_now().await;
        }
        server.kill();
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            acknowledged.extend(worker.await.expect("joined"));
        }
    }
    let server = Server::start(&data);
    let rows: Vec<(u64, u64)> = server
        .client()
        .query("SELECT batch, count() FROM k GROUP BY batch ORDER BY batch")
        .fetch_all()
        .await
        .expect("readable");
    let partial: Vec<_> = rows.iter().filter(|(_, n)| *n != ROWS).collect();
    assert!(partial.is_empty(), "partial: {partial:?}");
    let there: std::collections::BTreeSet<u64> = rows.iter().map(|(b, _)| *b).collect();
    let missing: Vec<_> = acknowledged.iter().filter(|b| !there.contains(b)).collect();
    assert!(missing.is_empty(), "{} acknowledged, missing {missing:?}", acknowledged.len());
    assert!(acknowledged.len() > 60, "only {} acknowledged", acknowledged.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_taken_once_also_by_views_and_after_a_crash() {
    let (_dir, data) = data_dir();
    let server = Server::start(&data);
    let client = server.client();
    for sql in [
        "CREATE DATABASE t ENGINE = Atomic",
        "CREATE TABLE t.raw (d UInt8, v UInt64) ENGINE = MergeTree ORDER BY d SETTINGS non_replicated_deduplication_window = 1000",
        "CREATE TABLE t.agg (d UInt8, n UInt64) ENGINE = SummingMergeTree ORDER BY d SETTINGS non_replicated_deduplication_window = 1000",
        "CREATE MATERIALIZED VIEW t.mv TO t.agg AS SELECT d, count() AS n FROM t.raw GROUP BY d",
    ] {
        client.query(sql).execute().await.expect(sql);
    }
    let body = |from: u64| (from..from + 100).map(|v| format!("{},{v}\n", v % 3)).collect::<String>();
    let totals = |client: Client| async move {
        let sql =
            "SELECT assumeNotNull((SELECT count() FROM t.raw)), assumeNotNull((SELECT sum(n) FROM t.agg))";
        client.query(sql).fetch_one::<(u64, u64)>().await.expect("readable")
    };
    for _ in 0..3 {
        insert(&client, "t.raw", "a", body(0)).await.expect("inserted");
    }
    assert_eq!(totals(client.clone()).await, (100, 100));
    // The same rows under another token are another insert.
    insert(&client, "t.raw", "b", body(0)).await.expect("inserted");
    assert_eq!(totals(client.clone()).await, (200, 200));
    server.kill();
    let server = Server::start(&data);
    let client = server.client();
    insert(&client, "t.raw", "b", body(0)).await.expect("inserted");
    assert_eq!(totals(client).await, (200, 200));
    assert!(
        tokio::time::timeout(Duration::from_secs(30), async { server.terminate() })
            .await
            .expect("ends")
            .success()
    );
}
