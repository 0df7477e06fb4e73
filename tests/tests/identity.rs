//! Who may connect to central: a gateway with a certificate of central's authority, valid, not revoked. Everybody else
//! is refused, with a line in the log and a counter.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use link::pki::{self, Role, Validity};
use tidegate_tests::plant::{GATEWAY, Plant};
use tidegate_tests::simple::{self, STREAM};
use tidegate_tests::wait;

const DEADLINE: Duration = Duration::from_secs(60);

fn now_s() -> anyhow::Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

/// Puts another certificate in the place of the gateway's.
fn replace(plant: &Plant, from: &Path, name: &str) -> anyhow::Result<()> {
    for kind in ["pem", "key"] {
        std::fs::copy(from.join(format!("{name}.{kind}")), plant.path(&format!("pki/{GATEWAY}.{kind}")))?;
    }
    Ok(())
}

/// Starts both programs and waits until central has refused somebody; no row may arrive.
async fn expect_refused(plant: &mut Plant, what: &str) -> anyhow::Result<()> {
    plant.start_central()?;
    plant.central_ready().await?;
    plant.start_gateway()?;
    plant.gateway_listens().await?;
    simple::send(plant, "press", simple::payloads(0, 10, 0)).await?;
    wait::until_true(&format!("{what} refused"), DEADLINE, async || {
        plant
            .central_metrics()
            .await
            .is_ok_and(|m| m.sum("tidegate_link_connections_refused_total", &[]) > 0.0)
    })
    .await
    .with_context(|| plant.logs())?;
    let log = plant.central.as_ref().map(|c| c.log()).unwrap_or_default();
    ensure!(log.contains("refused"), "central's log does not say so:\n{log}");
    ensure!(plant.api.count(STREAM).await? == 0, "rows of {what} arrived");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_authority_is_refused() -> anyhow::Result<()> {
    let mut plant = Plant::prepare(&simple::options())?;
    let other = plant.path("other");
    let valid = Validity { from_s: now_s()? - 60, until_s: now_s()? + 3_600 };
    pki::init(&other, "another authority", valid)?;
    pki::issue(&other, GATEWAY, &Role::Gateway, valid)?;
    replace(&plant, &other, GATEWAY)?;
    expect_refused(&mut plant, "a stranger").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_certificate_is_refused() -> anyhow::Result<()> {
    let mut plant = Plant::prepare(&simple::options())?;
    let expired = plant.path("expired");
    std::fs::create_dir(&expired)?;
    for file in ["ca.pem", "ca.key"] {
        std::fs::copy(plant.path("pki").join(file), expired.join(file))?;
    }
    let past = Validity { from_s: now_s()? - 7_200, until_s: now_s()? - 3_600 };
    pki::issue(&expired, GATEWAY, &Role::Gateway, past)?;
    replace(&plant, &expired, GATEWAY)?;
    expect_refused(&mut plant, "an expired certificate").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_certificate_is_refused_and_a_new_one_drains_the_buffer() -> anyhow::Result<()> {
    let mut plant = Plant::prepare(&simple::options())?;
    let cert = plant.path(&format!("pki/{GATEWAY}.pem"));
    pki::revoke(&plant.path("pki/revoked.txt"), &cert)?;
    expect_refused(&mut plant, "a revoked certificate").await?;

    // What was accepted meanwhile is kept, and goes out as soon as the gateway may.
    plant.kill_gateway();
    std::fs::remove_file(&cert)?;
    std::fs::remove_file(plant.path(&format!("pki/{GATEWAY}.key")))?;
    let valid = Validity { from_s: now_s()? - 60, until_s: now_s()? + 3_600 };
    pki::issue(&plant.path("pki"), GATEWAY, &Role::Gateway, valid)?;
    plant.start_gateway()?;
    plant.rows(STREAM, 10, DEADLINE).await?;
    Ok(())
}
