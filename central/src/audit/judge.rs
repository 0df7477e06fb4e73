//! The comparison itself, without I/O.

use super::{
    report::{GatewayReport, Report, RereadReport, StreamReport, ViewReport},
    tally::{Scan, Tally, TallyKey},
    values::Altered,
};
use crate::{
    clickhouse::View,
    limits::LOSS_ENTRIES_MAX,
    link::{GatewayState, StreamState},
    log::Head,
    rules::Positions,
};
use record::{Counts, DEAD_LETTERS, GatewayId, Incarnation, StreamName};
use std::collections::{BTreeMap, BTreeSet};

/// Problems that a report lists at most; the rest is counted in one line.
const PROBLEMS_MAX: usize = 200;

/// What a table holds of one tally.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TableRows {
    /// Rows.
    pub rows: u64,
    /// Different seqs.
    pub unique: u64,
    /// Lowest seq.
    pub first_seq: u64,
    /// Highest seq.
    pub last_seq: u64,
}

/// What the log holds now, of what was counted before.
#[derive(Debug, Clone, Default)]
pub struct Again {
    /// The records that can be read.
    pub scan: Scan,
    /// Where reading began, per partition.
    pub from: Positions,
    /// It ended before its time.
    pub is_cut: bool,
    /// Records read.
    pub records: u64,
    /// Bytes of their blocks.
    pub bytes: u64,
    /// Records whose rows have other values in their table; empty when nobody asked for that.
    pub altered: Vec<Altered>,
    /// What was not read.
    pub notes: Vec<String>,
}

/// A record of which a view holds other rows than its SELECT gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// Its partition.
    pub partition: u32,
    /// Its offset there.
    pub offset: u64,
    /// Rows that the view holds.
    pub held: u64,
    /// Rows that its SELECT gives.
    pub given: u64,
}

/// A view, and what it holds.
#[derive(Debug, Clone)]
pub struct ViewRows {
    /// The view.
    pub view: View,
    /// Where it differs; the error says why it was not compared.
    pub differences: Result<Vec<Difference>, String>,
}

/// Everything that was fetched.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// What central knows of each gateway; read first.
    pub gateways: BTreeMap<GatewayId, GatewayState>,
    /// The log up to where the sink has committed.
    pub committed: Scan,
    /// The log up to its end.
    pub whole: Scan,
    /// What the tables hold of each tally, up to where the sink has committed.
    pub tables: BTreeMap<TallyKey, TableRows>,
    /// Rows per gateway and stream in the tables, up to where the sink has committed, whatever their origin.
    pub totals: BTreeMap<(String, StreamName), u64>,
    /// The log once more, when somebody asked for it.
    pub again: Option<Again>,
    /// Views on the tables.
    pub views: Vec<ViewRows>,
    /// Tables of streams that do not recognise a repeated insert, each with the reason.
    pub unsafe_tables: Vec<String>,
    /// What could not be known.
    pub notes: Vec<String>,
}

/// Compares.
pub fn judge(e: &Evidence) -> Report {
    let mut report = Report { notes: e.notes.clone(), ..Report::default() };
    let known = e.gateways.keys().chain(e.whole.tallies().keys().map(|k| &k.gateway));
    for gateway in known.collect::<BTreeSet<_>>() {
        report.gateways.push(judge_gateway(e, gateway, &mut report.problems));
    }
    strays(e, &mut report);
    judge_views(e, &mut report);
    report.reread =
        e.again.as_ref().map(|a| RereadReport { records: a.records, bytes: a.bytes, complete: !a.is_cut });
    for s in report.gateways.iter().flat_map(|g| &g.streams) {
        report.lost += s.lost;
        report.duplicated += s.duplicated;
        report.dropped += s.declared_lost + s.counts.map_or(0, |c| c.dropped);
        report.buffered += s.buffered;
        report.in_flight += s.in_flight;
    }
    report.balanced = report.problems.is_empty() && report.lost == 0 && report.duplicated == 0;
    let over = report.problems.len().saturating_sub(PROBLEMS_MAX);
    if over > 0 {
        report.problems.truncate(PROBLEMS_MAX);
        report.problems.push(format!("and {over} more"));
    }
    report
}

fn judge_gateway(e: &Evidence, gateway: &GatewayId, problems: &mut Vec<String>) -> GatewayReport {
    let none = GatewayState::default();
    let state = e.gateways.get(gateway).unwrap_or(&none);
    let mut streams: BTreeSet<(StreamName, Incarnation)> = BTreeSet::new();
    for key in e.whole.tallies().keys().filter(|k| k.gateway == *gateway) {
        streams.insert((key.stream.clone(), key.incarnation));
    }
    for (name, s) in &state.streams {
        let lives = s.head.iter().map(|h| h.incarnation).chain(s.counted.iter().map(|c| c.incarnation));
        streams.extend(lives.map(|i| (name.clone(), i)));
    }
    let mut out = Vec::new();
    for (stream, incarnation) in streams {
        let key = TallyKey { gateway: gateway.clone(), stream, incarnation };
        let known = state.streams.get(&key.stream);
        let report = StreamJudge { e, key: &key, known }.judge();
        problems.extend(report.problems.iter().map(|p| format!("{gateway}/{}: {p}", key.stream)));
        out.push(report);
    }
    let counted = dead_letters_counted(state);
    let written = state.streams.iter().find(|(n, _)| n.as_str() == DEAD_LETTERS);
    let written = written.and_then(|(_, s)| s.counted.as_ref()).map_or(0, |c| c.counts.produced);
    if counted != written {
        problems
            .push(format!("{gateway}: its streams counted {counted} dead letters, {written} were written"));
    }
    GatewayReport {
        gateway: gateway.to_string(),
        dead_letters_counted: counted,
        dead_letters_written: written,
        streams: out,
    }
}

fn dead_letters_counted(state: &GatewayState) -> u64 {
    let streams = state.streams.iter().filter(|(n, _)| n.as_str() != DEAD_LETTERS);
    streams.filter_map(|(_, s)| s.counted.as_ref()).map(|c| c.counts.dead_lettered).sum()
}

struct StreamJudge<'a> {
    e: &'a Evidence,
    key: &'a TallyKey,
    known: Option<&'a StreamState>,
}

impl StreamJudge<'_> {
    fn judge(&self) -> StreamReport {
        let mut r = StreamReport {
            stream: self.key.stream.to_string(),
            incarnation: self.key.incarnation.to_string(),
            ..StreamReport::default()
        };
        let whole = self.e.whole.tallies().get(self.key);
        self.log(whole, &mut r);
        self.log_again(whole, &mut r);
        self.table(&mut r);
        self.head(whole, &mut r);
        self.ledger(&mut r);
        r
    }

    /// Within the log: seqs follow each other and so do the hashes.
    fn log(&self, whole: Option<&Tally>, r: &mut StreamReport) {
        let committed = self.e.committed.tallies().get(self.key);
        r.log_rows = committed.map_or(0, |t| t.rows);
        let Some(t) = whole else { return };
        r.in_flight = t.rows - r.log_rows.min(t.rows);
        r.chain = Some(t.hash().to_owned());
        if let Some(b) = &t.first_break {
            r.problems.push(format!("the hash chain is broken: {b}"));
        }
        if t.repeated > 0 {
            r.duplicated += t.repeated;
            let at = t.first_gap.as_deref().unwrap_or_default();
            r.problems.push(format!("{} seqs stand twice in the log: {at}", t.repeated));
        }
    }

    /// What was counted can still be read, and still has its hashes.
    fn log_again(&self, whole: Option<&Tally>, r: &mut StreamReport) {
        let (Some(again), Some(whole)) = (&self.e.again, whole) else { return };
        let mut altered = again.altered.iter().filter(|a| a.key == *self.key);
        if let Some(first) = altered.next() {
            let n = 1 + altered.count();
            r.problems.push(format!(
                "{n} records have other values in the table than in the log, first {}",
                first.place
            ));
        }
        let from = again.from.get(&whole.partition).copied().unwrap_or(0);
        let Some(now) = again.scan.tallies().get(self.key) else {
            if whole.last_offset >= from && !again.is_cut && !whole.cut {
                r.problems.push("none of its records in the log can be read any more".into());
            }
            return;
        };
        if let Some(b) = now.first_break.as_ref().filter(|b| whole.first_break.as_ref() != Some(b)) {
            r.problems.push(format!("the log has changed since it was counted: {b}"));
        }
        // Gaps that were there when the records came are judged elsewhere.
        if now.missing > whole.missing {
            let (n, at) = (now.missing - whole.missing, now.first_gap.as_deref().unwrap_or_default());
            r.problems.push(format!("{n} seqs of the log cannot be read any more: {at}"));
        }
        if whole.first_offset >= from && now.first_seq > whole.first_seq {
            let (a, b) = (whole.first_seq, now.first_seq - 1);
            r.problems.push(format!("seqs {a} to {b} of the log cannot be read any more"));
        }
        if now.last_seq < whole.last_seq && !again.is_cut {
            let (a, b) = (now.last_seq + 1, whole.last_seq);
            r.problems.push(format!("seqs {a} to {b} of the log cannot be read any more"));
        }
    }

    /// The table holds what the log holds, up to where the sink has committed.
    fn table(&self, r: &mut StreamReport) {
        let none = TableRows::default();
        let t = self.e.tables.get(self.key).unwrap_or(&none);
        (r.table_rows, r.table_unique) = (t.rows, t.unique);
        if t.rows > 0 {
            (r.table_first_seq, r.table_last_seq) = (Some(t.first_seq), Some(t.last_seq));
        }
        if t.rows > t.unique {
            r.duplicated += t.rows - t.unique;
            r.problems.push(format!("{} rows stand twice in the table", t.rows - t.unique));
        }
        if t.unique < r.log_rows {
            r.lost += r.log_rows - t.unique;
            r.problems.push(format!("{} rows of the log are not in the table", r.log_rows - t.unique));
        }
        if t.unique > r.log_rows {
            r.problems.push(format!("{} rows of the table are not in the log", t.unique - r.log_rows));
        }
        let Some(c) = self.e.committed.tallies().get(self.key) else { return };
        if t.rows > 0 && (t.first_seq, t.last_seq) != (c.first_seq, c.last_seq) {
            r.problems.push(format!(
                "the table holds seqs {} to {}, the log {} to {}",
                t.first_seq, t.last_seq, c.first_seq, c.last_seq
            ));
        }
    }

    /// What central acknowledged stands in its log, apart from what the gateway declared lost.
    fn head(&self, whole: Option<&Tally>, r: &mut StreamReport) {
        let head = self.known.and_then(|s| s.head.as_ref()).filter(|h| h.incarnation == self.key.incarnation);
        if let Some(q) = self.known.and_then(|s| s.quarantined.as_ref())
            && (q.incarnation == self.key.incarnation || head.is_some())
        {
            r.problems.push(format!(
                "{} blocks were refused, the last: seqs {} to {}: {}",
                q.times, q.first, q.last, q.reason
            ));
        }
        let Some(head) = head else {
            // An incarnation that is over, or one whose progress is not known here: gaps stay unexplained.
            if let Some(t) = whole.filter(|t| t.missing > 0) {
                r.lost += t.missing;
                r.problems.push(format!(
                    "{} seqs are missing: {}",
                    t.missing,
                    t.first_gap.as_deref().unwrap_or_default()
                ));
            }
            return;
        };
        r.last_seq = Some(head.last.0);
        r.declared_lost = head.lost;
        self.damaged(head, r);
        if head.last.0 != head.rows + head.lost {
            r.problems.push(format!(
                "acknowledged up to seq {}, but {} rows stored and {} declared lost",
                head.last, head.rows, head.lost
            ));
        }
        self.earlier(head.rows_before, r);
        let missing = match whole {
            None if self.e.whole.is_cut() => 0,
            None => head.last.0,
            Some(t) => {
                let before = if t.began_late { 0 } else { t.first_seq.saturating_sub(1) };
                let after = if t.cut { 0 } else { head.last.0.saturating_sub(t.last_seq) };
                before + t.missing + after
            }
        };
        if missing > head.lost {
            r.lost += missing - head.lost;
            let at = whole
                .and_then(|t| t.first_gap.clone())
                .unwrap_or_else(|| format!("the log ends at seq {}", whole.map_or(0, |t| t.last_seq)));
            r.problems.push(format!("{} acknowledged seqs are not in the log: {at}", missing - head.lost));
        }
        if let Some(t) = whole.filter(|t| t.last_seq == head.last.0)
            && t.hash() != head.hash.to_hex()
        {
            r.problems.push(format!(
                "the chain ends in {} in the log and in {} in the progress",
                t.hash(),
                head.hash
            ));
        }
    }

    /// Rows that the gateway declared lost although its policy gave none up: frames of its output log were not readable. Its
    /// ledger may be older than its last word on losses, so it is asked when everything else has arrived.
    fn damaged(&self, head: &Head, r: &mut StreamReport) {
        let counted = self.known.and_then(|s| s.counted.as_ref());
        let Some(c) = counted.filter(|c| c.incarnation == head.incarnation && c.as_of == head.last) else {
            return;
        };
        if c.losses.len() >= LOSS_ENTRIES_MAX {
            return;
        }
        let by_policy: u64 = c.losses.iter().filter(|l| l.first_seq.0 > 0).map(|l| l.rows).sum();
        let damaged = head.lost.saturating_sub(by_policy);
        if damaged > 0 {
            r.lost += damaged;
            r.declared_lost -= damaged;
            r.problems.push(format!(
                "the gateway declared {damaged} rows lost that its policy did not give up: frames of its buffer are damaged"
            ));
        }
    }

    /// What earlier incarnations had acknowledged was in the log too.
    fn earlier(&self, rows_before: u64, r: &mut StreamReport) {
        let others = self.e.whole.tallies().iter().filter(|(k, _)| {
            k.gateway == self.key.gateway
                && k.stream == self.key.stream
                && k.incarnation != self.key.incarnation
        });
        let others: Vec<&Tally> = others.map(|(_, t)| t).collect();
        let rows: u64 = others.iter().map(|t| t.rows).sum();
        if rows < rows_before && !others.iter().any(|t| t.began_late) {
            r.lost += rows_before - rows;
            r.problems
                .push(format!("{rows_before} rows of earlier incarnations were stored, the log held {rows}"));
        }
    }

    /// The gateway's own equation.
    fn ledger(&self, r: &mut StreamReport) {
        let counted = self.known.and_then(|s| s.counted.as_ref());
        let Some(c) = counted.filter(|c| c.incarnation == self.key.incarnation) else { return };
        let counts: Counts = c.counts;
        r.counts = Some(counts);
        r.as_of = Some(c.as_of.0);
        r.buffered = c.as_of.0.saturating_sub(r.last_seq.unwrap_or(0));
        let missing = counts.missing();
        if missing != 0 {
            let what = if missing > 0 { "unaccounted for" } else { "accounted for too often" };
            r.problems.push(format!("{} rows received by the gateway are {what}", missing.unsigned_abs()));
            if missing > 0 {
                r.lost += u64::try_from(missing).unwrap_or(u64::MAX);
            }
        }
        // Losses of unknown number are in no count.
        for loss in c.losses.iter().filter(|loss| loss.rows == 0) {
            r.problems.push(format!("the gateway's loss ledger: {}", loss.reason));
        }
        if counts.produced != c.as_of.0 {
            r.problems
                .push(format!("the gateway produced {} rows and stands at seq {}", counts.produced, c.as_of));
        }
    }
}

/// Each view holds what its SELECT gives, where that can be told, and no repeated insert doubles its rows.
fn judge_views(e: &Evidence, report: &mut Report) {
    report.unsafe_tables.clone_from(&e.unsafe_tables);
    for ViewRows { view, differences } in &e.views {
        if let Some(problem) = &view.problem {
            report.unsafe_tables.push(format!("view {} of stream {}: {problem}", view.view, view.stream));
        }
        let mut r = ViewReport {
            view: view.view.clone(),
            stream: view.stream.clone(),
            target: view.target.clone(),
            engine: view.engine.clone(),
            window: view.window,
            safe: view.problem.is_none(),
            ..ViewReport::default()
        };
        match differences {
            Err(why) => r.not_compared = Some(why.clone()),
            Ok(all) => {
                // As many rows but others: at least one is missing, and one too many.
                let other = all.iter().filter(|d| d.held == d.given).count() as u64;
                r.missing = other + all.iter().map(|d| d.given.saturating_sub(d.held)).sum::<u64>();
                r.extra = other + all.iter().map(|d| d.held.saturating_sub(d.given)).sum::<u64>();
                if let Some(d) = all.first() {
                    report.problems.push(format!(
                        "view {} of stream {}: {} rows are missing and {} too many, first at offset {} of partition {}, \
                         of which it has {} rows and its SELECT gives {}",
                        r.view, r.stream, r.missing, r.extra, d.offset, d.partition, d.held, d.given
                    ));
                }
            }
        }
        report.views.push(r);
    }
}

/// Rows in a table that belong to no record of the log.
fn strays(e: &Evidence, report: &mut Report) {
    for ((gateway, stream), total) in &e.totals {
        let of = |k: &TallyKey| k.gateway.as_str() == gateway && k.stream == *stream;
        let explained: u64 = e.tables.iter().filter(|(k, _)| of(k)).map(|(_, t)| t.rows).sum();
        let mut tallies = e.committed.tallies().iter().filter(|(k, _)| of(k)).peekable();
        let uncounted = tallies.peek().is_none() && e.committed.is_cut();
        let began_late = uncounted || tallies.any(|(_, t)| t.began_late);
        let stray = total.saturating_sub(explained);
        if stray > 0 && began_late {
            report.notes.push(format!(
                "{gateway}/{stream}: {stray} rows are older than what the auditor has counted"
            ));
        } else if stray > 0 {
            report.problems.push(format!(
                "{gateway}/{stream}: {stray} rows of the table belong to no record of the log"
            ));
        }
    }
}

#[cfg(test)]
mod tests;
