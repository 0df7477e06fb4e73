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

/// Waits until central has refused somebody for this reason and no other.
async fn refused(plant: &Plant, reason: &str) -> anyhow::Result<()> {
    const REFUSED: &str = "tidegate_link_connections_refused_total";
    wait::until_true(&format!("refused: {reason}"), DEADLINE, async || {
        plant.central_metrics().await.is_ok_and(|m| m.sum(REFUSED, &[("reason", reason)]) > 0.0)
    })
    .await
    .with_context(|| plant.logs())?;
    let metrics = plant.central_metrics().await?;
    let (all, these) = (metrics.sum(REFUSED, &[]), metrics.sum(REFUSED, &[("reason", reason)]));
    ensure!(all == these, "{all} refused, {these} of them because of {reason}\n{}", plant.logs());
    let log = plant.central.as_ref().map(|c| c.log()).unwrap_or_default();
    ensure!(log.contains("refused"), "central's log does not say so:\n{log}");
    Ok(())
}

/// Starts both programs and waits until central has refused the gateway; no row may arrive.
async fn expect_refused(plant: &mut Plant, reason: &str) -> anyhow::Result<()> {
    plant.start_central()?;
    plant.central_ready().await?;
    plant.start_gateway()?;
    plant.gateway_listens().await?;
    simple::send(plant, "press", simple::payloads(0, 10, 0)).await?;
    refused(plant, reason).await?;
    ensure!(plant.api.count(STREAM).await? == 0, "rows arrived");
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
    expect_refused(&mut plant, "unknown_ca").await
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
    expect_refused(&mut plant, "expired").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_certificate_is_refused_and_a_new_one_drains_the_buffer() -> anyhow::Result<()> {
    let mut plant = Plant::prepare(&simple::options())?;
    let cert = plant.path(&format!("pki/{GATEWAY}.pem"));
    pki::revoke(&plant.path("pki/revoked.txt"), &cert)?;
    expect_refused(&mut plant, "revoked").await?;

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

/// A certificate of another gateway: it may not speak for this one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_gateways_certificate_is_refused() -> anyhow::Result<()> {
    let mut plant = Plant::prepare(&simple::options())?;
    let valid = Validity { from_s: now_s()? - 60, until_s: now_s()? + 3_600 };
    let pki = plant.path("pki");
    pki::issue(&pki, "plant-2", &Role::Gateway, valid)?;
    replace(&plant, &pki, "plant-2")?;
    expect_refused(&mut plant, "other_name").await
}

/// Whoever is connected already is put out as well, and nothing that was accepted meanwhile is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_revoked_in_a_session_ends_it() -> anyhow::Result<()> {
    let plant = Plant::start(&simple::options()).await?;
    simple::send(&plant, "press", simple::payloads(0, 10, 0)).await?;
    plant.rows(STREAM, 10, DEADLINE).await?;
    pki::revoke(&plant.path("pki/revoked.txt"), &plant.path(&format!("pki/{GATEWAY}.pem")))?;
    refused(&plant, "revoked").await?;
    wait::until_true("the gateway is put out", DEADLINE, async || {
        plant.gateway_metrics().await.is_ok_and(|m| m.sum("tidegate_forward_connected", &[]) == 0.0)
    })
    .await?;
    simple::send(&plant, "press", simple::payloads(10, 10, 0)).await?;
    ensure!(plant.api.count(STREAM).await? == 10, "a revoked gateway's rows arrived");
    Ok(())
}
