//! Twenty rounds of `cargo xtask chaos --kafka`: two gateways, central on five processes, a real Kafka and a ClickHouse
//! server, killed, stopped and cut off from each other under load. The seed is one whose rounds hit everybody.

use tidegate_tests::chaos::{self, Settings, real};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_rounds_on_kafka_lose_nothing_and_double_nothing() -> anyhow::Result<()> {
    let outcome = real::run(Settings { rounds: 20, seed: 257 }).await?;
    eprintln!("{}", outcome.json());
    anyhow::ensure!(outcome.faults.len() > 6, "only {:?}", outcome.faults.keys());
    chaos::check(outcome.holds(), &outcome.json())
}
