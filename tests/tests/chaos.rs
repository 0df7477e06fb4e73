//! Ten rounds of SIGKILL at random moments: the same harness as `cargo xtask chaos`, bounded.

use tidegate_tests::chaos::{self, Settings, embedded};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_rounds_lose_nothing_and_double_nothing() -> anyhow::Result<()> {
    let outcome = embedded::run(Settings { rounds: 10, seed: 1 }).await?;
    eprintln!("{}", outcome.json());
    anyhow::ensure!(
        outcome.kills.iter().all(|kills| *kills > 0),
        "not every program was killed: {:?}",
        outcome.kills
    );
    chaos::check(outcome.holds(), &outcome.json())
}
