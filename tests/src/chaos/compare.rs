//! Everything that is anywhere against everything that was acknowledged, row by row: the log as Kafka's own consumer
//! shows it, the tables, and views that somebody made on them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::{Context, ensure};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type};
use record::block;

use super::load::{PLAIN, Readings, Sent};
use crate::clickhouse::{self, DATABASE};
use crate::kafka::Kafka;
use crate::machines::{HOT, HOT_ABOVE, HOURLY, RAW};
use crate::model::{self, Difference, WindowStats};

/// A stream and one of its devices at one gateway: stream, gateway, device.
type Key = (String, String, String);

/// Rows and windows somewhere, or those that have to be there.
#[derive(Default)]
pub struct Found {
    rows: BTreeMap<Key, Vec<(i64, f64)>>,
    windows: BTreeMap<Key, Vec<(i64, WindowStats)>>,
}

/// What differs.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// Rows and windows that were looked at.
    pub looked_at: u64,
    /// Rows.
    pub rows: Difference,
    /// Windows.
    pub windows: Difference,
}

impl Found {
    /// What has to be there.
    pub fn expected(readings: &Readings, sent: &[Sent]) -> Self {
        let mut all = Self::default();
        for one in sent {
            let key = |stream: &str| (stream.to_owned(), one.gateway.clone(), one.device.clone());
            let expected = readings.expect(one.stream, one.count);
            if one.stream == RAW {
                let hot = expected.rows.iter().filter(|(_, value)| **value > HOT_ABOVE);
                all.rows.insert(key(HOT), hot.map(|(time, value)| (*time, *value)).collect());
                all.windows.insert(key(HOURLY), expected.windows.into_iter().collect());
            }
            all.rows.insert(key(one.stream), expected.rows.into_iter().collect());
        }
        all
    }

    /// Everything in the data topic, as Kafka's console consumer reads it: committed records only. Blocks.
    pub fn in_kafka(kafka: &Kafka, topic: &str) -> anyhow::Result<Self> {
        let mut all = Self::default();
        kafka.every_record(topic, |record| {
            let header =
                |name: &str| record.headers.get(name).copied().with_context(|| format!("no header {name}"));
            let at = format!("{topic}-{} at {}", record.partition, record.offset);
            let (stream, gateway) = (header("stream")?, header("gateway")?);
            ensure!(record.key == gateway.as_bytes(), "{at}: the key is not the gateway");
            let batch = block::decode(record.value).with_context(|| at.clone())?;
            ensure!(header("rows")? == batch.rows().to_string(), "{at}: its header counts other rows");
            if [RAW, PLAIN, HOT].contains(&stream) {
                let values = batch.column("temperature").context("no column temperature")?;
                let values = values.as_primitive_opt::<Float64Type>().context("temperature is no number")?;
                for (row, time) in batch.times().iter().enumerate() {
                    let key = (stream.to_owned(), gateway.to_owned(), batch.device(row).to_owned());
                    all.rows.entry(key).or_default().push((*time, values.value(row)));
                }
            } else if stream == HOURLY {
                let float = |name: &str| -> anyhow::Result<_> {
                    let column =
                        batch.column(&format!("temperature_{name}")).context("a column is missing")?;
                    column.as_primitive_opt::<Float64Type>().context("a column is no number")
                };
                let counts = batch.column("count").context("no column count")?;
                let counts = counts.as_primitive_opt::<Int64Type>().context("count is no integer")?;
                let (min, max, mean, last) = (float("min")?, float("max")?, float("mean")?, float("last")?);
                for (row, time) in batch.times().iter().enumerate() {
                    let key = (stream.to_owned(), gateway.to_owned(), batch.device(row).to_owned());
                    let stats = WindowStats {
                        count: u64::try_from(counts.value(row))?,
                        min: min.value(row),
                        max: max.value(row),
                        mean: mean.value(row),
                        last: last.value(row),
                    };
                    all.windows.entry(key).or_default().push((*time, stats));
                }
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// Everything in the tables, as the server itself answers.
    pub async fn in_tables(server: SocketAddr) -> anyhow::Result<Self> {
        let mut all = Self::default();
        for stream in [RAW, PLAIN, HOT] {
            all.rows.append(&mut rows_of(server, stream, stream).await?);
        }
        let sql = format!(
            "select gateway, device, toUnixTimestamp64Nano(time), count, temperature_min, temperature_max, \
             temperature_mean, temperature_last from {DATABASE}.`{HOURLY}`"
        );
        for [gateway, device, time, count, min, max, mean, last] in clickhouse::rows(server, &sql).await? {
            let stats = WindowStats {
                count: count.parse()?,
                min: min.parse()?,
                max: max.parse()?,
                mean: mean.parse()?,
                last: last.parse()?,
            };
            let key = (HOURLY.to_owned(), gateway, device);
            all.windows.entry(key).or_default().push((time.parse()?, stats));
        }
        Ok(all)
    }

    /// Rows of the plain stream in the view that copies them.
    pub async fn in_copy(server: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self { rows: rows_of(server, COPY, PLAIN).await?, ..Self::default() })
    }

    /// The same of the rows alone that the copying view has.
    pub fn only_plain(&self) -> Self {
        let plain = self.rows.iter().filter(|((stream, ..), _)| stream == PLAIN);
        Self { rows: plain.map(|(key, rows)| (key.clone(), rows.clone())).collect(), ..Self::default() }
    }

    /// Rows, windows not counted.
    pub fn row_count(&self) -> u64 {
        self.rows.values().map(|rows| rows.len() as u64).sum()
    }

    /// Windows.
    pub fn window_count(&self) -> u64 {
        self.windows.values().map(|windows| windows.len() as u64).sum()
    }

    /// Rows of one stream.
    pub fn count_of(&self, stream: &str) -> u64 {
        let of_stream = self.rows.iter().filter(|((s, ..), _)| s == stream);
        of_stream.map(|(_, rows)| rows.len() as u64).sum()
    }

    /// How what was found differs from this.
    pub fn judge(&self, found: &Self) -> Verdict {
        let mut verdict =
            Verdict { looked_at: found.row_count() + found.window_count(), ..Verdict::default() };
        let keys: BTreeSet<&Key> = self.rows.keys().chain(found.rows.keys()).collect();
        for key in keys {
            let expected = self.rows.get(key).into_iter().flatten().copied().collect();
            let found = found.rows.get(key).map_or(&[][..], Vec::as_slice);
            verdict.rows.add(model::compare(&name(key), &expected, found));
        }
        let keys: BTreeSet<&Key> = self.windows.keys().chain(found.windows.keys()).collect();
        for key in keys {
            let expected = self.windows.get(key).into_iter().flatten().cloned().collect();
            let found = found.windows.get(key).map_or(&[][..], Vec::as_slice);
            verdict.windows.add(model::compare_windows(&name(key), &expected, found));
        }
        verdict
    }
}

fn name((stream, gateway, device): &Key) -> String {
    format!("{stream} of {device} at {gateway}")
}

async fn rows_of(
    server: SocketAddr,
    table: &str,
    stream: &str,
) -> anyhow::Result<BTreeMap<Key, Vec<(i64, f64)>>> {
    let mut all: BTreeMap<Key, Vec<(i64, f64)>> = BTreeMap::new();
    let sql =
        format!("select gateway, device, toUnixTimestamp64Nano(time), temperature from {DATABASE}.`{table}`");
    for [gateway, device, time, value] in clickhouse::rows(server, &sql).await? {
        let key = (stream.to_owned(), gateway, device);
        all.entry(key).or_default().push((time.parse()?, value.parse()?));
    }
    Ok(all)
}

/// A view that copies each row of the plain stream.
const COPY: &str = "plain_copy";
/// A view that counts the rows of the machine stream by device and day, in the engine that adds up.
const DAILY: &str = "machine_daily";

/// Makes the views as a user would: a target with its deduplication window, the view, and what was there before. Nothing
/// may be inserted meanwhile.
pub async fn make_views(server: SocketAddr) -> anyhow::Result<()> {
    let settings = "settings non_replicated_deduplication_window = 10000";
    let daily = format!(
        "select gateway, device, toDate(time) as day, count() as n from {DATABASE}.`{RAW}` group by gateway, device, day"
    );
    let copy = format!("select gateway, device, time, temperature from {DATABASE}.{PLAIN}");
    for sql in [
        format!(
            "create table {DATABASE}.{COPY} (gateway String, device String, time DateTime64(9, 'UTC'), \
             temperature Nullable(Float64)) engine = MergeTree order by (device, time) {settings}"
        ),
        format!(
            "create table {DATABASE}.{DAILY} (gateway String, device String, day Date, n UInt64) \
             engine = SummingMergeTree order by (gateway, device, day) {settings}"
        ),
        format!("insert into {DATABASE}.{COPY} {copy}"),
        format!("insert into {DATABASE}.{DAILY} {daily}"),
        format!("create materialized view {DATABASE}.{COPY}_view to {DATABASE}.{COPY} as {copy}"),
        format!("create materialized view {DATABASE}.{DAILY}_view to {DATABASE}.{DAILY} as {daily}"),
    ] {
        clickhouse::ask(server, &sql).await?;
    }
    Ok(())
}

/// How the counting view differs from what has to be in it; a count that is too low or too high is so many rows lost or
/// doubled.
pub async fn judge_daily(server: SocketAddr, expected: &Found) -> anyhow::Result<Difference> {
    const DAY_NS: i64 = 86_400_000_000_000;
    let mut wanted: BTreeMap<(String, String, i64), i64> = BTreeMap::new();
    for ((_, gateway, device), rows) in expected.rows.iter().filter(|((stream, ..), _)| stream == RAW) {
        for (time, _) in rows {
            *wanted.entry((gateway.clone(), device.clone(), time.div_euclid(DAY_NS))).or_default() += 1;
        }
    }
    let sql = format!(
        "select gateway, device, toUInt32(day), sum(n) from {DATABASE}.{DAILY} group by gateway, device, day"
    );
    let mut difference = Difference::default();
    for [gateway, device, day, count] in clickhouse::rows(server, &sql).await? {
        let key = (gateway, device, day.parse()?);
        let off = count.parse::<i64>()? - wanted.remove(&key).unwrap_or(0);
        if off != 0 {
            let (lost, doubled) = (off.min(0).unsigned_abs(), off.max(0).unsigned_abs());
            let examples = vec![format!("{DAILY} {key:?}: {off} rows too many")];
            difference.add(Difference { lost, doubled, foreign: 0, examples });
        }
    }
    for (key, count) in wanted {
        let examples = vec![format!("{DAILY} {key:?}: nothing instead of {count} rows")];
        difference.add(Difference { lost: count.unsigned_abs(), doubled: 0, foreign: 0, examples });
    }
    Ok(difference)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_at_the_wrong_gateway_is_lost_here_and_foreign_there() {
        let readings = Readings::of(40);
        let sent =
            |gateway: &str, stream| Sent { gateway: gateway.into(), stream, device: "d".into(), count: 40 };
        let expected = Found::expected(&readings, &[sent("a", PLAIN), sent("a", RAW)]);
        assert_eq!((expected.count_of(PLAIN), expected.count_of(RAW)), (40, 40));
        assert!(expected.window_count() > 0);
        let same = expected.judge(&expected);
        assert!(same.rows.is_none() && same.windows.is_none(), "{same:?}");
        let other = Found::expected(&readings, &[sent("b", PLAIN), sent("a", RAW)]);
        let differs = expected.judge(&other);
        assert_eq!((differs.rows.lost, differs.rows.foreign, differs.windows.is_none()), (40, 40, true));
    }
}
