//! The disk under the gateway's folder runs full because of somebody else: sources are told to wait, the gateway goes on
//! running, and what was acknowledged arrives.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use reqwest::StatusCode;
use tidegate_tests::http_load::client;
use tidegate_tests::plant::{Options, Plant};
use tidegate_tests::simple::{self, STREAM};
use tidegate_tests::wait;

const DEADLINE: Duration = Duration::from_secs(60);
const PADDING: usize = 100_000;

/// A file system of its own over a folder.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn over(folder: &Path, size: &str) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let size = format!("size={size}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tidegate-test"]).arg(folder);
        let done = mount.output().context("cannot run mount")?;
        ensure!(
            done.status.success(),
            "this test mounts a small tmpfs: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        Ok(Self(folder.to_owned()))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_makes_sources_wait_and_loses_nothing() -> anyhow::Result<()> {
    // The quota is larger than what the disk will have left: only the disk can stop it.
    let options = Options { quota: "256 MiB".to_owned(), ..simple::options() };
    let mut plant = Plant::prepare(&options)?;
    let folder = plant.path("gateway-data");
    let _disk = Tmpfs::over(&folder, "300m")?;
    plant.start_gateway()?;
    plant.gateway_listens().await?;
    let url = format!("http://{}/v1/ingest/{STREAM}?device=web", plant.http);
    let post = async |n: usize| -> anyhow::Result<StatusCode> {
        let body = simple::payloads(n, 1, PADDING)[0].clone();
        // A request whose fate was open is repeated under its key.
        let request = client().post(&url).header("Idempotency-Key", format!("disk-{n}")).body(body);
        Ok(request.send().await?.status())
    };
    ensure!(post(0).await? == StatusCode::OK, "the first event was not taken\n{}", plant.logs());

    let ballast = folder.join("ballast");
    fill(&ballast);
    let mut taken = 1;
    let refused = wait::until("a refusal", DEADLINE, async || match post(taken).await {
        Ok(StatusCode::OK) => {
            taken += 1;
            None
        }
        Ok(status) => Some(Ok(status)),
        Err(error) => Some(Err(error)),
    })
    .await?;
    let status = refused.with_context(|| plant.logs())?;
    ensure!(
        status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::SERVICE_UNAVAILABLE,
        "{status}\n{}",
        plant.logs()
    );
    plant.gateway.as_mut().context("not started")?.expect_running()?;

    // Room again: it goes on by itself.
    std::fs::remove_file(&ballast)?;
    wait::until("an event taken again", DEADLINE, async || {
        (post(taken).await.ok()? == StatusCode::OK).then_some(())
    })
    .await
    .with_context(|| plant.logs())?;
    taken += 1;
    plant.start_central()?;
    plant.central_ready().await?;
    plant.rows(STREAM, taken as u64, DEADLINE).await?;
    let values = simple::values(&plant, "web").await?;
    ensure!(values == (0..taken).map(|n| n as f64).collect::<Vec<_>>(), "{values:?}");
    Ok(())
}

/// Writes until nothing fits any more.
fn fill(file: &Path) {
    use std::io::Write;
    let Ok(mut file) = std::fs::File::create(file) else { return };
    let block = vec![0x55; 64 << 10];
    while file.write_all(&block).is_ok() {}
}
