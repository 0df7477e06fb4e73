//! The demonstration with a fifth of its readings: enough to see the first failure of the machine.

use anyhow::ensure;
use tidegate_tests::demo::{self, Settings};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_main_job_holds_through_both_crashes() -> anyhow::Result<()> {
    let (report, plant) = demo::run(Settings { readings: 4_500, kills: true }, "").await?;
    eprintln!("{report}");
    ensure!(report.holds(), "{}\n{}", report.json(), plant.logs());
    ensure!(report.kills == 2, "{} programs were killed", report.kills);
    Ok(())
}
