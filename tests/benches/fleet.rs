//! `cargo xtask bench fleet`: many gateways against one process of central with the role `link`: memory of a session,
//! transactions a second, time to the acknowledgement.
//!
//! `cargo xtask bench fleet [--json] [--log embedded|kafka|both] [--gateways 10000] [--seconds 30] [--every-ms 10000]
//! [--blocks 4] [--rows 100]`
//!
//! Each gateway is a session of its own: the product's client, its own certificate, its own connection over mutual TLS. It
//! has a stream that says nothing and one that comes in bursts. First all connect and are quiet, then bursts come at
//! exponential times. A block's time runs from when its burst was due to its acknowledgement, so a load that is late counts
//! as well. The load is one process on the same cores; its cost stands beside the link's.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use link::{client::Central, tls::TlsFiles};
use record::{GatewayId, StreamName};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tidegate_tests::{
    bench::{
        blocks::{Chain, Machines},
        bursts::{Bursty, Fleet, Pattern},
        exit,
        feed::Gateways,
        number,
        process::{peak_rss_mb, rss_mb},
        report::{Report, percentile},
        site::{LogKind, Site},
        wants_json,
    },
    wait,
};

/// Gateways that are on their way to a session at a time; the fleet does not knock as one.
const KNOCKING: u64 = 200;
const CONNECTED: Duration = Duration::from_secs(300);
/// How long the fleet is quiet while its cost is taken, and how long bursts come before they count.
const QUIET: Duration = Duration::from_secs(10);
const WARM_UP: Duration = Duration::from_secs(10);

fn main() -> std::process::ExitCode {
    exit(bench())
}

fn bench() -> Result<bool> {
    let gateways = number("--gateways", 10_000)?;
    more_sockets(gateways)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut report = Report::new("fleet");
    report.figure("gateways", gateways as f64);
    for log in LogKind::asked()? {
        runtime.block_on(fleet(log, gateways, &mut report))?;
    }
    Ok(report.finish(wants_json()))
}

/// One socket a gateway here, one a gateway in the link, which inherits the limit.
fn more_sockets(gateways: u64) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let wanted = gateways + 1_000;
    anyhow::ensure!(
        limit.maximum.is_none_or(|most| most >= wanted),
        "{gateways} gateways need {wanted} open files, the system allows {:?}",
        limit.maximum
    );
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?)
}

async fn fleet(log: LogKind, gateways: u64, report: &mut Report) -> Result<()> {
    let site = Site::link_only(log, &format!("connections = {}", gateways + 1_000)).await?;
    let (link, log) = (site.pid("link")?, log.name());
    let identities = identities(&site, gateways)?;
    let alone = rss_mb(link)?;
    let (fleet, pattern) = (Fleet::new(), Arc::new(pattern()?));

    let mut sessions = Gateways::new();
    let (begun, before) = (Instant::now(), site.cost()?);
    for (n, (gateway, tls)) in identities.into_iter().enumerate() {
        let n = n as u64;
        all_but(&fleet, n, KNOCKING).await.with_context(|| site.logs())?;
        let central = Central::new(vec![format!("https://{}", site.plant.link)], tls);
        let machines = Machines::of(&gateway)?;
        let chain = |name| Ok::<_, anyhow::Error>(Chain::new(&StreamName::new(name)?, machines.schema()));
        let outbox = Bursty::new(gateway, n, [chain("silent")?, chain("load")?], &pattern, &fleet);
        sessions.start(central, outbox);
    }
    all_but(&fleet, gateways, 1).await.with_context(|| site.logs())?;
    let (_, cpu) = site.cost()?.since(&before);
    report
        .figure(&format!("{log}_sessions_begun_per_second"), gateways as f64 / begun.elapsed().as_secs_f64());
    report.figure(&format!("{log}_link_cpu_ms_per_begin"), cpu["link"] * 1e3 / gateways as f64);

    let before = site.cost()?;
    tokio::time::sleep(QUIET).await;
    let (seconds, cpu) = site.cost()?.since(&before);
    report.figure(
        &format!("{log}_link_idle_kib_per_gateway"),
        (rss_mb(link)? - alone) * 1e6 / 1024.0 / gateways as f64,
    );
    report.figure(&format!("{log}_link_idle_cores"), cpu["link"] / seconds);
    report.figure(&format!("{log}_load_idle_cores"), cpu["load"] / seconds);

    fleet.bursting.send_replace(true);
    tokio::time::sleep(WARM_UP).await;
    bursts(&site, &fleet, log, report).await?;
    report.figure(
        &format!("{log}_link_peak_kib_per_gateway"),
        (peak_rss_mb(link)? - alone) * 1e6 / 1024.0 / gateways as f64,
    );
    report.at_least(&format!("{log}_sessions"), fleet.connected.load(Relaxed) as f64, gateways as f64);
    report.at_most(&format!("{log}_sessions_failed"), fleet.failed.load(Relaxed) as f64, 0.0);
    sessions.stop().await
}

/// The figures of a while under load.
async fn bursts(site: &Site, fleet: &Fleet, log: &str, report: &mut Report) -> Result<()> {
    fleet.take_acks_ms();
    let (before, at_first) = (site.cost()?, site.metrics("link").await?);
    tokio::time::sleep(Duration::from_secs(number("--seconds", 30)?)).await;
    let (after, at_last) = (site.cost()?, site.metrics("link").await?);
    let mut acks = fleet.take_acks_ms();
    let (seconds, cpu) = after.since(&before);
    let more = |name: &str| at_last.sum(name, &[]) - at_first.sum(name, &[]);
    let (groups, blocks) = (more("tidegate_link_commits_total"), more("tidegate_link_batches_total"));
    report.figure(&format!("{log}_transactions_per_second"), groups / seconds);
    report.figure(&format!("{log}_blocks_per_second"), blocks / seconds);
    report.figure(&format!("{log}_rows_per_second"), more("tidegate_link_rows_total") / seconds);
    report.figure(&format!("{log}_mb_per_second"), more("tidegate_link_bytes_total") / 1e6 / seconds);
    let commits = more("tidegate_link_commit_seconds_sum") / more("tidegate_link_commit_seconds_count");
    report.figure(&format!("{log}_commit_mean_ms"), commits * 1e3);
    report.figure(&format!("{log}_ack_p50_ms"), percentile(&mut acks, 0.5));
    report.figure(&format!("{log}_ack_p99_ms"), percentile(&mut acks, 0.99));
    for (name, cpu) in &cpu {
        report.figure(&format!("{log}_{name}_cores"), cpu / seconds);
    }
    report.figure(&format!("{log}_link_cpu_us_per_block"), cpu["link"] * 1e6 / blocks);
    Ok(())
}

/// Waits until fewer than `missing` of `started` gateways have no session.
async fn all_but(fleet: &Fleet, started: u64, missing: u64) -> Result<()> {
    let standing = async || started < fleet.connected.load(Relaxed) + missing;
    wait::until_true("the gateways have their sessions", CONNECTED, standing).await
}

fn pattern() -> Result<Pattern> {
    let rows = number("--rows", 100)?;
    let machines = Machines::of(&GatewayId::new("fleet")?)?;
    Ok(Pattern {
        every: Duration::from_millis(number("--every-ms", 10_000)?),
        blocks: u32::try_from(number("--blocks", 4)?)?,
        rows,
        body: machines.encode(1, rows)?,
    })
}

/// A name and a certificate for each.
fn identities(site: &Site, gateways: u64) -> Result<Vec<(GatewayId, TlsFiles)>> {
    let begun = Instant::now();
    // Each is synced to the disk, so several are made at a time.
    const MAKERS: u64 = 8;
    let issue =
        |n: u64| Ok((GatewayId::new(&format!("fleet-{n}"))?, site.plant.issue(&format!("fleet-{n}"))?));
    let all = std::thread::scope(|scope| {
        let makers: Vec<_> = (0..MAKERS)
            .map(|m| {
                scope.spawn(move || {
                    (m..gateways).step_by(MAKERS as usize).map(issue).collect::<Result<Vec<_>>>()
                })
            })
            .collect();
        let made = makers.into_iter().map(|m| m.join().map_err(|_| anyhow::anyhow!("no certificates"))?);
        made.collect::<Result<Vec<_>>>()
    })?;
    eprintln!("{gateways} certificates made in {:.1} s", begun.elapsed().as_secs_f64());
    Ok(all.into_iter().flatten().collect())
}
