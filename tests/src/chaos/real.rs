//! Chaos on the real thing: two gateways, two links, two sinks, a judge, a real Kafka and a ClickHouse server, each
//! process behind lines of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use record::clock::SeededRandom;
use serde_json::{Value, json};

use super::compare::{self, Found, Verdict};
use super::faults::{Moment, Rounds};
use super::load::{self, Door, Load, PLAIN, Readings, Sent};
use super::recovery::{self, Times, Witness};
use super::strike::Field;
use super::{Audited, Settings};
use crate::clickhouse::{self, DATABASE};
use crate::cluster::Cluster;
use crate::machines::{HOT, HOURLY, RAW};
use crate::model::Difference;
use crate::wait;

/// The gateways; their shards are two, so both links have work.
const GATEWAYS: [&str; 2] = ["chaos-1", "chaos-2"];
/// Machines over MQTT, per stream and gateway; one over HTTP is beside them.
const MACHINES: usize = 2;
/// Events a second of each machine.
const RATE: f64 = 25.0;
/// So long may a round take on average before machines have nothing left to say.
const SECONDS_PER_ROUND: u64 = 20;
/// The kind of a recovery from several faults: the one before was not waited for.
const SEVERAL: &str = "several";
/// Longest wait for the last acknowledgement, the last row, and a balanced audit.
const SETTLE: Duration = Duration::from_secs(180);

/// The outcome.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    settings: Option<Settings>,
    /// Kind → whom it struck → how often.
    pub faults: BTreeMap<&'static str, BTreeMap<String, u64>>,
    in_writes: u64,
    acknowledged: u64,
    repeated: u64,
    rows: BTreeMap<&'static str, u64>,
    windows: BTreeMap<&'static str, u64>,
    /// By the place that was looked at.
    differences: BTreeMap<&'static str, Difference>,
    aggregates: Difference,
    audited: Audited,
    recovery: Times,
    seconds: f64,
}

impl Outcome {
    /// Whether every acknowledged event is everywhere once, and nothing else is anywhere.
    pub fn holds(&self) -> bool {
        self.differences.len() == 4
            && self.differences.values().all(Difference::is_none)
            && self.aggregates.is_none()
            && self.audited.balanced
            && self.acknowledged > 0
    }

    /// The one JSON object.
    pub fn json(&self) -> Value {
        let sum = |of: fn(&Difference) -> u64| self.differences.values().map(of).sum::<u64>();
        let wrong = &self.aggregates;
        let examples = self
            .differences
            .iter()
            .flat_map(|(place, d)| d.examples.iter().map(move |e| format!("{place}: {e}")));
        json!({
            "seed": self.settings.map(|s| s.seed),
            "rounds": self.settings.map(|s| s.rounds),
            "faults": self.faults,
            "faults_in_writes": self.in_writes,
            "events_acknowledged": self.acknowledged,
            "events_repeated": self.repeated,
            "rows": self.rows,
            "windows": self.windows,
            "lost": sum(|d| d.lost),
            "doubled": sum(|d| d.doubled),
            "foreign": sum(|d| d.foreign),
            "aggregates_wrong": wrong.lost + wrong.doubled + wrong.foreign,
            "balanced": self.audited.balanced,
            "problems": self.audited.problems,
            "examples": examples.chain(wrong.examples.iter().cloned()).collect::<Vec<_>>(),
            "recovery_ms": self.recovery.json(),
            "seconds": (self.seconds * 10.0).round() / 10.0,
            "holds": self.holds(),
        })
    }
}

/// Runs it; progress goes to stderr.
pub async fn run(settings: Settings) -> anyhow::Result<Outcome> {
    let began = Instant::now();
    eprintln!("seed {}, {} rounds on Kafka", settings.seed, settings.rounds);
    let mut field = start().await?;
    let outcome = run_on(settings, &mut field).await;
    if !outcome.as_ref().is_ok_and(Outcome::holds) {
        let plant = field.cluster.plant.keep().display().to_string();
        eprintln!("kept to look at: {plant} and {:?}", field.cluster.kafka.keep());
    }
    let mut outcome = outcome.with_context(|| format!("seed {}", settings.seed))?;
    outcome.seconds = began.elapsed().as_secs_f64();
    Ok(outcome)
}

async fn run_on(settings: Settings, field: &mut Field) -> anyhow::Result<Outcome> {
    let count = (settings.rounds + 10) * SECONDS_PER_ROUND * RATE as u64;
    let readings = Arc::new(Readings::of(usize::try_from(count)?));
    let mut sent = first_events(field, &readings).await.with_context(|| field.logs())?;
    compare::make_views(field.cluster.clickhouse_at()).await?;
    let mut load = Load::new(Arc::clone(&readings));
    let mut witnesses = Vec::new();
    for (number, door) in doors(field).iter().enumerate() {
        let tag = format!("g{}-", number + 1);
        let machines = (MACHINES, RATE);
        load.start(door, (RAW, "machines"), &tag, machines);
        let plain = load.start(door, (PLAIN, "plain"), &tag, machines);
        witnesses.push(Witness { device: format!("{tag}plain-1"), progress: plain[0].clone() });
    }
    let mut outcome = Outcome { settings: Some(settings), ..Outcome::default() };
    rounds(settings, field, &readings, &witnesses, &load, &mut outcome).await?;
    load.finish.cancel();
    eprintln!("rounds are over, waiting for the last acknowledgements");
    let ended = tokio::time::timeout(SETTLE, load.end()).await;
    sent.extend(
        ended.with_context(|| {
            format!("not everything is acknowledged after {SETTLE:?}\n{}", field.logs())
        })??,
    );
    // The first events are not the machines'.
    outcome.acknowledged = sent.iter().map(|one| one.count as u64).sum();
    outcome.repeated = load.repeated();
    judge(field, &readings, &sent, &mut outcome).await?;
    Ok(outcome)
}

async fn start() -> anyhow::Result<Field> {
    let cluster = Cluster::start_with_lines(load::options()).await?;
    let mut gateways = Vec::new();
    for id in GATEWAYS {
        gateways.push(cluster.plant.another_gateway(&cluster.options, id)?);
    }
    for gateway in &mut gateways {
        gateway.start()?;
    }
    for gateway in &mut gateways {
        gateway.ready().await?;
    }
    Ok(Field { cluster, gateways })
}

fn doors(field: &Field) -> Vec<Door> {
    let door = |g: &crate::plant::Gateway| Door { gateway: g.id.clone(), mqtt: g.mqtt, http: g.http };
    field.gateways.iter().map(door).collect()
}

/// An event for each stream, so that their tables are there before views are made on them.
async fn first_events(field: &Field, readings: &Arc<Readings>) -> anyhow::Result<Vec<Sent>> {
    let mut load = Load::new(Arc::clone(readings));
    let doors = doors(field);
    let door = doors.first().context("no gateway")?;
    load.start(door, (RAW, "machines"), "first-", (1, RATE));
    load.start(door, (PLAIN, "plain"), "first-", (1, RATE));
    let some =
        wait::until_true("the first events are acknowledged", SETTLE, async || load.acknowledged() >= 40);
    some.await?;
    load.finish.cancel();
    let sent = load.end().await?;
    let expected = Found::expected(readings, &sent);
    all_rows(field, &expected).await?;
    Ok(sent)
}

/// Waits until the tables hold as many rows as have to be there.
async fn all_rows(field: &Field, expected: &Found) -> anyhow::Result<()> {
    let server = field.cluster.clickhouse_at();
    let streams = [RAW, PLAIN, HOT].map(|stream| (stream, expected.count_of(stream)));
    for (table, wanted) in
        streams.into_iter().chain([(HOURLY, expected.window_count())]).filter(|(_, n)| *n > 0)
    {
        let sql = format!("select count() from {DATABASE}.`{table}`");
        let what = format!("{wanted} rows in {table}");
        let there = wait::until_true(&what, SETTLE, async || {
            let rows = clickhouse::rows::<1>(server, &sql).await;
            rows.is_ok_and(|rows| rows.first().is_some_and(|[n]| n.parse().is_ok_and(|n: u64| n >= wanted)))
        });
        // What is missing is told by the comparison.
        if let Err(error) = there.await {
            eprintln!("{error:#}\n{}", field.logs());
        }
    }
    Ok(())
}

async fn rounds(
    settings: Settings,
    field: &mut Field,
    readings: &Readings,
    witnesses: &[Witness],
    load: &Load,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let mut rounds = Rounds(SeededRandom::new(settings.seed));
    let (mut processes, mut overlapped) = (Vec::new(), false);
    for number in 1..=settings.rounds {
        let round = rounds.next().context("there is no end of rounds")?;
        let began = Instant::now();
        tokio::time::sleep(round.pause).await;
        let kind = round.fault.kind();
        for struck in round.fault.struck() {
            *outcome.faults.entry(kind).or_default().entry(struck).or_default() += 1;
        }
        let struck = field.strike(&round).await?;
        outcome.in_writes += u64::from(struck.in_write);
        field.expect_all_running().with_context(|| format!("round {number}: {round:?}"))?;
        processes.extend(round.fault.processes());
        let mut words = format!("{kind} {}", round.fault.struck().join(" and "));
        if let (Moment::InWrite(between, trap, _), true) = (round.moment, struck.in_write) {
            words += &format!(" ({:?} a write {between}, {} behind)", trap.place, trap.skip);
        }
        let waited = !round.overlapped || number == settings.rounds;
        let mut recovery = None;
        if waited {
            let time = recovery::recovered(field, readings, witnesses, struck, &processes).await;
            // A program that has ended is the reason, not that nothing flows.
            field.expect_all_running().with_context(|| format!("round {number}: {round:?}"))?;
            let time = time.with_context(|| format!("round {number}: {round:?}"))?;
            outcome.recovery.add(if overlapped { SEVERAL } else { kind }, time);
            recovery = Some(time);
            processes.clear();
        }
        overlapped = !waited;
        recovery::show(number, &words, &struck, began, recovery, load.acknowledged());
    }
    Ok(())
}

async fn judge(
    field: &mut Field,
    readings: &Readings,
    sent: &[Sent],
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let server = field.cluster.clickhouse_at();
    let expected = Found::expected(readings, sent);
    all_rows(field, &expected).await?;
    outcome.audited = Audited::ask(&field.cluster.plant.api, SETTLE).await;
    field.expect_all_running()?;
    eprintln!("comparing every row");
    let mut note = |place: &'static str, verdict: Verdict, found: &Found| {
        outcome.rows.insert(place, found.row_count());
        outcome.windows.insert(place, found.window_count());
        outcome.differences.insert(place, verdict.rows);
        outcome.aggregates.add(verdict.windows);
    };
    let topic = format!("{}.data", field.cluster.prefix);
    let kafka = Found::in_kafka(&field.cluster.kafka, &topic)?;
    note("kafka", expected.judge(&kafka), &kafka);
    drop(kafka);
    let tables = Found::in_tables(server).await?;
    note("tables", expected.judge(&tables), &tables);
    drop(tables);
    let copy = Found::in_copy(server).await?;
    note("copying_view", expected.only_plain().judge(&copy), &copy);
    outcome.differences.insert("counting_view", compare::judge_daily(server, &expected).await?);
    if !outcome.holds() {
        eprintln!("{}", field.logs());
    }
    Ok(())
}
