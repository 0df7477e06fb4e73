//! What views hold, as far as it can be compared: those that carry `_partition` and `_offset` on are compared with what their
//! SELECT gives, record by record; by the number of rows, and by their seqs where these are carried on, too.

use super::{
    auditor::{AuditError, ask, number},
    judge::{Difference, ViewRows},
};
use crate::{
    clickhouse::{Look, TableName, View, quoted},
    rules::{Positions, QuerySource, Range},
};
use record::StreamName;
use serde_json::Value;

/// The newest offsets of each partition that views are compared over.
const OFFSETS_MAX: u64 = 100_000;
/// Differences that are fetched at most.
const DIFFERENCES_MAX: usize = 1_000;
/// Engines that keep each row as it was inserted.
const PLAIN_ENGINES: &[&str] = &["MergeTree", "ReplicatedMergeTree", "SharedMergeTree"];

/// Compares every view, up to `counted` and not before `from`.
pub(super) async fn compare_all(
    source: &dyn QuerySource,
    look: Look,
    counted: &Positions,
    from: &Positions,
) -> Vec<ViewRows> {
    let mut all = Vec::with_capacity(look.views.len());
    for view in &look.views {
        let alone = look.views.iter().filter(|v| v.target == view.target).count() == 1;
        let differences = match comparable(view, alone) {
            // One view that cannot be asked does not keep the others from being judged.
            Ok((stream, target)) => compare(source, view, (&stream, target), counted, from).await,
            Err(why) => Err(why.to_owned()),
        };
        all.push(ViewRows { view: view.clone(), differences });
    }
    all
}

fn comparable(view: &View, alone: bool) -> Result<(StreamName, &TableName), &'static str> {
    let stream = StreamName::new(&view.stream).map_err(|_| "its stream is none")?;
    let target = view.into.as_ref().ok_or("it has no target")?;
    if !view.source.ends_with(&format!(".{stream}")) {
        return Err("it sees what another view holds");
    }
    if !alone {
        return Err("other views write into its target, too");
    }
    if !PLAIN_ENGINES.contains(&view.engine.as_str()) {
        return Err("its engine does not keep rows as they were inserted");
    }
    Ok((stream, target))
}

async fn compare(
    source: &dyn QuerySource,
    view: &View,
    (stream, target): (&StreamName, &TableName),
    counted: &Positions,
    from: &Positions,
) -> Result<Vec<Difference>, String> {
    let asked = async |sql: &str| ask(source, stream, sql).await.map_err(|e: AuditError| e.to_string());
    let text = |t: &str| format!("'{}'", t.replace('\\', "\\\\").replace('\'', "\\'"));
    let sql = format!(
        "select name from system.columns where database = {} and table = {} and name in ('_partition', '_offset', 'seq')",
        text(&target.database),
        text(&target.table)
    );
    let carried = asked(&sql).await?.rows;
    let carries = |name: &str| carried.iter().any(|row| row.first().is_some_and(|v| v == name));
    if !carries("_partition") || !carries("_offset") {
        return Err("it does not carry _partition and _offset on".into());
    }
    // A sum does not depend on order, and wraps alike on both sides.
    let seqs = if carries("seq") { "sum(cityHash64(toUInt64(seq)))" } else { "toUInt64(0)" };
    let into = format!("{}.{}", quoted(&target.database), quoted(&target.table));
    let all = Range::new(&Positions::new(), counted, u64::MAX).condition();
    let sql = format!("select _partition, min(_offset) from {into} where {all} group by _partition");
    // A view sees what comes after it was made.
    let mut begin = Positions::new();
    for row in &asked(&sql).await?.rows {
        let [partition, first] = row.as_slice() else { continue };
        let Ok(partition) = u32::try_from(number(partition)) else { continue };
        let bounded = counted.get(&partition).copied().unwrap_or(0).saturating_sub(OFFSETS_MAX);
        let wished = from.get(&partition).copied().unwrap_or(0);
        begin.insert(partition, number(first).max(bounded).max(wished));
    }
    let end: Positions =
        counted.iter().filter(|(p, _)| begin.contains_key(p)).map(|(p, o)| (*p, *o)).collect();
    let range = Range::new(&begin, &end, u64::MAX).condition();
    let sql = format!(
        "select p, o, sum(a) as held, sum(b) as given from (select toUInt64(_partition) as p, toUInt64(_offset) as o, count() \
         as a, 0 as b, {seqs} as s, toUInt64(0) as t from {into} where {range} group by p, o union all select \
         toUInt64(_partition) as p, toUInt64(_offset) as o, 0 as a, count() as b, toUInt64(0) as s, {seqs} as t from ({}) \
         where {range} group by p, o) group by p, o having held != given or sum(s) != sum(t) order by p, o limit \
         {DIFFERENCES_MAX}",
        view.select
    );
    let rows = asked(&sql).await?.rows;
    Ok(rows.iter().filter_map(|row| difference(row)).collect())
}

fn difference(row: &[Value]) -> Option<Difference> {
    let [partition, offset, held, given] = row else { return None };
    let partition = u32::try_from(number(partition)).ok()?;
    Some(Difference { partition, offset: number(offset), held: number(held), given: number(given) })
}
