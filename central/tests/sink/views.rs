//! Views that somebody made on a stream's table have each row once, whatever is repeated.

use crate::bed::{F, Gateway, Life, PATIENCE, kill_server, open_log, put};
use daemon::metrics::Registry;
use record::ColumnType;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tidegate_central::{
    clickhouse::{View, Views},
    sink::{SinkMetrics, limits::CLOCK_SKEW, store::Store},
};

async fn run(life: &Life, statements: &[&str]) {
    for sql in statements {
        life.clickhouse.execute(sql, PATIENCE).await.expect(sql);
    }
}

async fn until<F: Future<Output = bool>>(what: &str, mut is: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !is().await {
        assert!(Instant::now() < deadline, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn look(life: &Life) -> Vec<View> {
    Views::new(life.clickhouse.clone(), 2).look().await.expect("an answer").views
}

/// Waits until central has set what these views need.
async fn secured(life: &Life, views: usize) {
    until("the windows", async || {
        let all = look(life).await;
        all.len() == views && all.iter().all(|v| v.problem.is_none())
    })
    .await;
}

const VIEWS: &[&str] = &[
    "CREATE TABLE tidegate.per_device (device String, n UInt64, total Float64) ENGINE = MergeTree ORDER BY device",
    "CREATE MATERIALIZED VIEW tidegate.`to per device` TO tidegate.per_device AS SELECT toString(device) AS device, \
     count() AS n, sum(assumeNotNull(temperature)) AS total FROM tidegate.machine GROUP BY device",
    // Its target comes with it; rows of the same device are added up by the server whenever it likes.
    "CREATE MATERIALIZED VIEW tidegate.summing ENGINE = SummingMergeTree ORDER BY device AS SELECT toString(device) AS \
     device, count() AS n FROM tidegate.machine GROUP BY device",
    // A view on the first one's target, by way of a table that keeps nothing.
    "CREATE TABLE tidegate.nothing (n UInt64) ENGINE = Null",
    "CREATE MATERIALIZED VIEW tidegate.into_nothing TO tidegate.nothing AS SELECT n FROM tidegate.per_device",
    "CREATE MATERIALIZED VIEW tidegate.cascade ENGINE = MergeTree ORDER BY n AS SELECT n FROM tidegate.nothing",
    // What it selects is another thing each time.
    "CREATE MATERIALIZED VIEW tidegate.chance ENGINE = MergeTree ORDER BY x AS SELECT rand64() AS x FROM tidegate.machine",
];

#[tokio::test(flavor = "multi_thread")]
async fn sums_are_exact_whatever_is_killed() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open_log(dir.path());
    let mut life = Life::begin(dir.path(), &log);
    let mut gateways = [(0, Gateway::new("g0", "machine", &[F])), (1, Gateway::new("g1", "machine", &[F]))];
    for (partition, gateway) in &mut gateways {
        put(&log, *partition, vec![gateway.record(10)]).await;
    }
    life.settled(&log).await;
    run(&life, VIEWS).await;
    secured(&life, 5).await;
    let windows: Vec<(String, u64)> = look(&life).await.into_iter().map(|v| (v.engine, v.window)).collect();
    assert!(windows.iter().all(|(engine, window)| engine == "Null" || *window == 25_000), "{windows:?}");
    for round in 0..10_u32 {
        for step in 0..12 {
            for (partition, gateway) in &mut gateways {
                put(&log, *partition, vec![gateway.record(1 + u64::from((round * 5 + step) % 30))]).await;
            }
            if step == 5 + round % 4 && round % 3 != 2 {
                kill_server(dir.path(), &life);
            }
        }
        if round % 3 == 2 {
            life.end().await;
            life = Life::begin(dir.path(), &log);
        } else {
            life.settled(&log).await;
        }
    }
    life.settled(&log).await;
    let table = "SELECT count(), sum(assumeNotNull(temperature)) FROM tidegate.machine WHERE seq > 10";
    let expected: Vec<(u64, f64)> = life.rows(table).await;
    let sent: u64 = gateways.iter().map(|(_, g)| g.next - 11).sum();
    assert_eq!(expected[0].0, sent);
    assert_eq!(life.rows::<(u64, f64)>("SELECT sum(n), sum(total) FROM tidegate.per_device").await, expected);
    for view in
        ["sum(n) FROM tidegate.summing", "sum(n) FROM tidegate.cascade", "count() FROM tidegate.chance"]
    {
        assert_eq!(life.rows::<u64>(&format!("SELECT {view}")).await, [sent], "{view}");
    }
    until("central's word", async || {
        life.registry.render().contains("tidegate_sink_unsafe_tables{kind=\"view\"} 0")
    })
    .await;
    let metrics = life.registry.render();
    assert!(metrics.contains("tidegate_sink_views_unsure_ranges_total 0"), "{metrics}");
    life.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_fails_has_its_rows_once_it_is_mended() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open_log(dir.path());
    let mut life = Life::begin(dir.path(), &log);
    let mut gateway = Gateway::new("g0", "machine", &[F]);
    put(&log, 0, vec![gateway.record(5)]).await;
    life.settled(&log).await;
    run(
        &life,
        &[
            "CREATE MATERIALIZED VIEW tidegate.first ENGINE = MergeTree ORDER BY seq AS SELECT seq FROM tidegate.machine",
            "CREATE TABLE tidegate.gated (seq UInt64) ENGINE = MergeTree ORDER BY seq",
            "CREATE MATERIALIZED VIEW tidegate.to_gated TO tidegate.gated AS SELECT seq + throwIf(seq > 0, 'shut') AS seq \
             FROM tidegate.machine",
        ],
    )
    .await;
    secured(&life, 2).await;
    put(&log, 0, vec![gateway.record(40)]).await;
    let fails = "tidegate_sink_doubts_total{reason=\"refused\"}";
    let failed = |life: &Life| {
        let metrics = life.registry.render();
        let line = metrics.lines().find_map(|l| l.strip_prefix(fails)).unwrap_or(" 0");
        line.trim().parse::<u64>().expect("a number")
    };
    // The rows are in their table from the first attempt on, and the lane goes on trying for the view.
    until("the second refusal", async || failed(&life) >= 2).await;
    assert_eq!(life.rows::<u64>("SELECT count() FROM tidegate.machine").await, [45]);
    // Also the next process: all that it has is the intent.
    life.end().await;
    life = Life::begin(dir.path(), &log);
    until("a refusal", async || failed(&life) >= 1).await;
    run(&life, &["ALTER TABLE tidegate.to_gated MODIFY QUERY SELECT seq FROM tidegate.machine"]).await;
    put(&log, 0, vec![gateway.record(7)]).await;
    life.settled(&log).await;
    for table in ["machine WHERE seq > 5", "first", "gated"] {
        let sql = format!("SELECT count(), uniqExact(seq), min(seq), max(seq) FROM tidegate.{table}");
        assert_eq!(life.rows::<(u64, u64, u64, u64)>(&sql).await, [(47, 47, 6, 52)], "{table}");
    }
    life.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_cannot_be_made_safe_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open_log(dir.path());
    let life = Life::begin(dir.path(), &log);
    let mut gateway = Gateway::new("g0", "machine", &[F, ("n", ColumnType::Int64)]);
    put(&log, 0, vec![gateway.record(5)]).await;
    life.settled(&log).await;
    run(
        &life,
        &[
            "CREATE MATERIALIZED VIEW tidegate.remembered ENGINE = Memory AS SELECT seq FROM tidegate.machine",
            // It carries the log's columns on, and is no stream's table for that.
            "CREATE MATERIALIZED VIEW tidegate.kept ENGINE = MergeTree ORDER BY seq AS SELECT seq, _partition, _offset \
             FROM tidegate.machine",
        ],
    )
    .await;
    until("central's word", async || {
        life.registry.render().contains("tidegate_sink_unsafe_tables{kind=\"view\"} 1")
    })
    .await;
    let views = look(&life).await;
    let [kept, remembered] = views.as_slice() else { panic!("{views:?}") };
    assert_eq!((kept.view.as_str(), kept.problem.as_deref()), ("tidegate.kept", None));
    assert_eq!((remembered.view.as_str(), remembered.stream.as_str()), ("tidegate.remembered", "machine"));
    let problem = remembered.problem.as_deref().unwrap_or_default();
    assert!(problem.contains("is a Memory, which recognises no repeated block"), "{problem}");
    life.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn inserts_are_counted_from_a_moment_on_also_when_they_are_merged() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open_log(dir.path());
    let life = Life::begin(dir.path(), &log);
    let mut gateway = Gateway::new("g0", "machine", &[F]);
    for _ in 0..6 {
        put(&log, 0, vec![gateway.record(5)]).await;
        life.settled(&log).await;
    }
    let metrics = SinkMetrics::new(&Registry::new());
    let store = Store::new(life.clickhouse.clone(), life.tables.clone(), log.clone(), metrics);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let since = async |at: u64| store.inserts_since(&gateway.stream, at).await.expect("an answer");
    // What came within the clocks' difference before counts, too.
    let soon = now + CLOCK_SKEW.as_secs() + 120;
    assert_eq!((since(0).await, since(now).await, since(soon).await), (6, 6, 0));
    run(&life, &["OPTIMIZE TABLE tidegate.machine FINAL"]).await;
    assert_eq!((since(now).await, since(soon).await), (6, 0));
    life.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_grow_with_the_lanes_that_may_write_a_table() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open_log(dir.path());
    let life = Life::begin(dir.path(), &log);
    let mut gateway = Gateway::new("g0", "machine", &[F]);
    put(&log, 0, vec![gateway.record(5)]).await;
    life.settled(&log).await;
    let has = async |window: u64| {
        let sql = "SELECT engine_full FROM system.tables WHERE database = 'tidegate' AND name = 'machine'";
        let engine: Vec<String> = life.rows(sql).await;
        let setting = format!("non_replicated_deduplication_window = {window},");
        assert!(engine[0].contains(&setting), "{setting} {engine:?}");
    };
    has(25_000).await;
    // The same database, under a log of more partitions: also what is there already.
    Views::new(life.clickhouse.clone(), 100).secure().await.expect("an answer");
    has(133_400).await;
    life.end().await;
}
