//! The demonstration: the main job on real data, with two crashes in the middle.
//!
//! 20 machines over MQTT QoS 1 and a 21st over HTTP send the same 22,695 readings; a filter and an aggregate run over
//! them on the gateway; central stores every stream and judges one alert rule. A third of the way through the gateway is
//! killed, at two thirds central with its database. In the end every row is compared with what a plain program computes
//! from the file.

mod report;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::http_load::Poster;
use crate::latency::{self, Taken};
use crate::machines::{self, HOT, HOURLY, RAW, Verdict};
use crate::model::Expected;
use crate::mqtt_load::{Device, Progress};
use crate::nab;
use crate::pace::Pace;
use crate::plant::{Options, Plant};
use crate::webhook::Webhook;

pub use report::Report;

/// Machines over MQTT; one more comes over HTTP.
const MQTT_MACHINES: usize = 20;
/// All machines.
pub const MACHINES: usize = MQTT_MACHINES + 1;
/// Events per second and machine.
const RATE: f64 = 750.0;
/// Unacknowledged messages per machine.
const IN_FLIGHT_MAX: usize = 200;
/// A latency sample every so many messages.
const SAMPLE_EVERY: usize = 50;
/// Longest wait for the last row after the last acknowledgement.
const SETTLE: Duration = Duration::from_secs(90);
/// Longest wait for the last acknowledgement.
const SEND: Duration = Duration::from_secs(180);
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// How to run.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Readings per machine; all of them for the demonstration proper.
    pub readings: usize,
    /// Whether the programs are killed in the middle.
    pub kills: bool,
}

/// A kill, and how long the program was away.
struct Outage {
    from: Instant,
    until: Instant,
}

/// What is running while the demonstration runs.
struct Run {
    plant: Plant,
    webhook: Webhook,
    progress: Arc<Progress>,
    expected: Expected,
    began: Instant,
    outages: Vec<Outage>,
    shown: Shown,
}

/// What the last line of progress said, for the rates of the next one.
#[derive(Debug, Clone, Copy, Default)]
struct Shown {
    at: Duration,
    sent: u64,
    acknowledged: u64,
    rows: u64,
    /// Rows in central's log, of all streams: of the central that runs now, and of the one before.
    stored: u64,
    stored_before: u64,
}

/// Runs it; progress goes to stderr. Gives the installation too, still running.
pub async fn run(settings: Settings, log: &str) -> anyhow::Result<(Report, Plant)> {
    let began = Instant::now();
    let webhook = Webhook::listen().await?;
    eprintln!("starting tidegate-central (with ClickHouse inside) and one tidegate-gateway");
    let options = Options { log: log.to_owned(), ..machines::options(&webhook.url()) };
    let plant = Plant::start(&options).await?;
    eprintln!("both are ready after {:.1} s", began.elapsed().as_secs_f64());
    let expected = machines::expected(settings.readings);
    let progress = Arc::new(Progress::default());
    let mut run =
        Run { plant, webhook, progress, expected, began, outages: Vec::new(), shown: Shown::default() };
    let taken = run.send(settings).await?;
    run.settle().await?;
    let verdict = machines::judge(&run.plant.api, MACHINES, &run.expected).await?;
    let audit = run.balanced_audit().await?;
    let report = run.report(settings, &verdict, audit, &taken).await?;
    Ok((report, run.plant))
}

impl Run {
    /// Everything is sent, acknowledged, and both programs were killed once.
    async fn send(&mut self, settings: Settings) -> anyhow::Result<Vec<Taken>> {
        let payloads = machines::payloads(settings.readings);
        let total = (payloads.len() * MACHINES) as u64;
        eprintln!(
            "replaying {} readings as {MQTT_MACHINES} machines over MQTT QoS 1 and one over HTTP: {total} events",
            payloads.len()
        );
        let stop = CancellationToken::new();
        let _stop_at_the_end = stop.clone().drop_guard();
        let mut devices = self.start_devices(&payloads, &stop);
        let readings: Arc<[nab::Reading]> = nab::readings().into();
        let watch_stop = CancellationToken::new();
        let watcher = tokio::spawn(latency::watch(
            self.plant.api,
            RAW,
            readings,
            Arc::clone(&self.progress),
            watch_stop.clone(),
        ));
        let deadline = Instant::now() + SEND;
        let mut kills = usize::from(!settings.kills) * 2;
        let mut show_at = Instant::now();
        while !devices.is_empty() {
            let acknowledged = self.progress.acknowledged();
            if kills == 0 && acknowledged * 3 >= total {
                self.kill_gateway().await?;
                kills = 1;
            } else if kills == 1 && acknowledged * 3 >= total * 2 {
                self.kill_central().await?;
                kills = 2;
            }
            if Instant::now() >= show_at {
                self.show_progress(total).await;
                show_at = Instant::now() + PROGRESS_EVERY;
            }
            let _ = tokio::time::timeout(PROGRESS_EVERY, devices.join_next()).await;
            if Instant::now() > deadline {
                bail!("not everything is acknowledged after {SEND:?}\n{}", self.plant.logs());
            }
        }
        // The last samples still have to become visible.
        self.rows_arrive(total).await?;
        watch_stop.cancel();
        watcher.await.context("the latency watcher ended badly")
    }

    fn start_devices(&self, payloads: &Arc<[Vec<u8>]>, stop: &CancellationToken) -> JoinSet<()> {
        let mut devices = JoinSet::new();
        for number in 1..=MQTT_MACHINES {
            let name = machines::name(number);
            let device = Device {
                topic: machines::topic(&name),
                name,
                payloads: Arc::clone(payloads),
                pace: Pace::per_second(RATE),
                in_flight_max: IN_FLIGHT_MAX,
                sample_every: SAMPLE_EVERY,
                finish: CancellationToken::new(),
            };
            let (broker, progress, stop) = (self.plant.mqtt, Arc::clone(&self.progress), stop.clone());
            devices.spawn(async move {
                device.run(broker, progress, stop).await;
            });
        }
        let poster = Poster {
            name: machines::name(MACHINES),
            stream: RAW.to_owned(),
            payloads: Arc::clone(payloads),
            batch: 100,
            pace: Pace::per_second(RATE),
            finish: CancellationToken::new(),
        };
        let (gateway, progress, stop) = (self.plant.http, Arc::clone(&self.progress), stop.clone());
        devices.spawn(async move {
            poster.run(gateway, progress, stop).await;
        });
        devices
    }

    async fn kill_gateway(&mut self) -> anyhow::Result<()> {
        eprintln!("\nkilling the gateway with SIGKILL, and starting it again");
        let from = Instant::now();
        self.plant.kill_gateway();
        self.plant.start_gateway()?;
        self.plant.gateway_ready().await?;
        self.recovered("the gateway", from);
        Ok(())
    }

    async fn kill_central(&mut self) -> anyhow::Result<()> {
        eprintln!("\nkilling central with SIGKILL, and starting it again");
        let from = Instant::now();
        self.plant.kill_central();
        self.plant.start_central()?;
        self.plant.central_ready().await?;
        self.recovered("central", from);
        Ok(())
    }

    fn recovered(&mut self, name: &str, from: Instant) {
        eprintln!("{name} is back after {:.1} s", from.elapsed().as_secs_f64());
        self.outages.push(Outage { from, until: Instant::now() });
    }

    async fn show_progress(&mut self, total: u64) {
        use std::io::{IsTerminal, Write};
        let now = self.began.elapsed();
        // A central that is just starting has no answer; the line then says so.
        let rows = self.plant.api.count(RAW).await.ok();
        let (sent, acknowledged) = (self.progress.sent(), self.progress.acknowledged());
        let stored =
            self.plant.central_metrics().await.map(|m| m.sum("tidegate_link_rows_total", &[]) as u64);
        let mut shown = Shown { at: now, sent, acknowledged, ..self.shown };
        shown.rows = rows.unwrap_or(shown.rows);
        if let Ok(stored) = stored {
            // A central that was started again counts from nothing.
            shown.stored_before += if stored < shown.stored { shown.stored } else { 0 };
            shown.stored = stored;
        }
        let rate = |now: u64, before: u64| {
            let seconds = (shown.at - self.shown.at).as_secs_f64().max(0.001);
            format!("{:.0}/s", now.saturating_sub(before) as f64 / seconds)
        };
        let line = format!(
            "{:5.1} s  published {sent}/{total} ({})  acknowledged {acknowledged} ({})  stored {}  rows {} ({})  alerts {}",
            now.as_secs_f64(),
            rate(sent, self.shown.sent),
            rate(acknowledged, self.shown.acknowledged),
            shown.stored_before + shown.stored,
            rows.map_or_else(|| "?".to_owned(), |n| n.to_string()),
            rate(shown.rows, self.shown.rows),
            self.webhook.fired(),
        );
        self.shown = shown;
        let mut err = std::io::stderr();
        let _ = if err.is_terminal() { write!(err, "\r{line}\x1b[K") } else { writeln!(err, "{line}") };
        let _ = err.flush();
    }

    /// Waits until as many rows as there have to be are in the raw table.
    async fn rows_arrive(&mut self, total: u64) -> anyhow::Result<()> {
        let wanted = (self.expected.rows.len() * MACHINES) as u64;
        let deadline = Instant::now() + SETTLE;
        loop {
            let rows = self.plant.api.count(RAW).await.unwrap_or(0);
            self.show_progress(total).await;
            if rows >= wanted {
                eprintln!();
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{rows} rows of {wanted} in {RAW} after {SETTLE:?}\n{}", self.plant.logs());
            }
            tokio::time::sleep(PROGRESS_EVERY).await;
        }
    }

    /// Waits until the other tables have what they have to have, too.
    async fn settle(&self) -> anyhow::Result<()> {
        let machines = MACHINES as u64;
        let hot = self.expected.above(machines::HOT_ABOVE) * machines;
        self.plant.rows(HOT, hot, SETTLE).await?;
        self.plant.rows(HOURLY, self.expected.windows.len() as u64 * machines, SETTLE).await?;
        self.plant.rows("dead_letters", self.expected.conflicts * machines, SETTLE).await?;
        Ok(())
    }

    /// The audit once it balances, or the last one when it does not. The gateway's ledger travels behind its rows.
    async fn balanced_audit(&self) -> anyhow::Result<Value> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let audit = self.plant.api.audit().await?;
            if audit["balanced"] == true || Instant::now() > deadline {
                return Ok(audit);
            }
            tokio::time::sleep(PROGRESS_EVERY).await;
        }
    }

    async fn report(
        &self,
        settings: Settings,
        verdict: &Verdict,
        audit: Value,
        taken: &[Taken],
    ) -> anyhow::Result<Report> {
        let api = &self.plant.api;
        // A message that was on its way while a program was down measures the outage, not the pipeline.
        let was_down = |t: &&Taken| {
            self.outages.iter().any(|o| t.at < o.until + Duration::from_secs(2) && t.at + t.took > o.from)
        };
        let calm: Vec<Duration> = taken.iter().filter(|t| !was_down(t)).map(|t| t.took).collect();
        let conflicts = api.number("select count() from dead_letters where reason = 'key-conflict'").await?;
        let expected_conflicts = self.expected.conflicts * MACHINES as u64;
        let dead_lettered = api.count("dead_letters").await?;
        let audit_lost = audit["lost"].as_u64().unwrap_or(0);
        let audit_doubled = audit["duplicated"].as_u64().unwrap_or(0);
        let letters_wrong =
            dead_lettered.abs_diff(expected_conflicts) + conflicts.abs_diff(expected_conflicts);
        Ok(Report {
            events_published: self.progress.sent(),
            events_acknowledged: self.progress.acknowledged(),
            events_expected: (settings.readings.min(nab::readings().len()) * MACHINES) as u64,
            rows_raw: api.count(RAW).await?,
            rows_filtered: api.count(HOT).await?,
            rows_aggregated: api.count(HOURLY).await?,
            lost: verdict.lost() + audit_lost,
            duplicated: verdict.doubled() + audit_doubled,
            dead_lettered,
            dead_letters_wrong: letters_wrong,
            alerts_fired: self.webhook.fired() as u64,
            alerts_doubled: self.webhook.doubled() as u64,
            first_alert: self.webhook.received().into_iter().find(|alert| alert["status"] == "firing"),
            balanced: audit["balanced"] == true && verdict.is_right() && letters_wrong == 0,
            examples: verdict.examples(),
            kills: self.outages.len() as u64,
            seconds: self.began.elapsed().as_secs_f64(),
            latency_ms_p50: latency::quantile_ms(calm.clone(), 0.5),
            latency_ms_p99: latency::quantile_ms(calm.clone(), 0.99),
            latency_ms_worst: latency::quantile_ms(taken.iter().map(|t| t.took).collect(), 1.0),
            latency_samples: calm.len() as u64,
            sizes: report::Sizes::measure(&self.plant).await,
            audit,
            addresses: report::addresses(&self.plant),
        })
    }
}
