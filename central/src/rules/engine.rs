//! The core of the rules: evaluations go in, transitions come out. It asks no clock and does no I/O.
//!
//! Invariants:
//! - a row selected by `{new}` is judged by exactly one successful evaluation: the positions move with the verdict,
//!   in the same state;
//! - an alert fires once: what is firing already is not a transition again, also after a restart from the state;
//! - a failed evaluation changes nothing, and neither does one whose table is not there: what that table will hold is
//!   judged once it is.

use super::{
    file::{Group, GroupClock, Rule, RuleSet},
    instance::{Matched, matched_rows},
    limits,
    source::{QueryError, Table},
    sql::{Positions, Range},
    state::{GroupState, Instance, Phase, RuleState, State},
};
use crate::alerts::{Notification, NotificationKind};
use std::collections::{BTreeMap, BTreeSet};

/// The core.
#[derive(Debug)]
pub struct Engine {
    rules: RuleSet,
    health: BTreeMap<String, RuleHealth>,
    /// Groups whose last clock question had no answer.
    stalled: BTreeSet<usize>,
    /// What is remembered; the driver stores it before anything leaves.
    pub state: State,
}

/// How a rule's last evaluation went; not stored.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct RuleHealth {
    /// Evaluations since the start.
    pub evaluations: u64,
    /// Failed ones among them.
    pub failures: u64,
    /// Rows and instances that were over a bound.
    pub suppressed: u64,
    /// Why the last evaluation failed; none when it did not.
    pub last_error: Option<String>,
    /// What ClickHouse says of the table that the rule waits for, or its group's clock; none while all are there.
    pub unknown_table: Option<String>,
    /// When it was, ns of this machine's clock.
    pub last_wall_ns: i64,
}

/// One evaluation to make.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    rule: usize,
    group: usize,
    range: Range,
    now_ns: i64,
    /// The statement to run; none when there is nothing to ask, which counts as a result without rows.
    pub sql: Option<String>,
}

impl Evaluation {
    /// Which rule of the group it is about.
    pub fn rule(&self) -> usize {
        self.rule
    }
}

/// `group/alert`, the name that a rule's state is kept under.
fn rule_key(group: &Group, rule: &Rule) -> String {
    format!("{}/{}", group.name, rule.alert)
}

impl Engine {
    /// Puts rules and what is remembered of them together. A rule seen for the first time judges the rows stored from
    /// `frontier` on. Alerts of rules that are no more are resolved: the returned notifications say so.
    pub fn start(
        rules: RuleSet,
        state: State,
        frontier: &Positions,
        wall_ns: i64,
    ) -> (Self, Vec<Notification>) {
        let mut engine = Self { rules, health: BTreeMap::new(), stalled: BTreeSet::new(), state };
        let mut known = BTreeSet::new();
        for group in &engine.rules.groups {
            if let GroupClock::Event(_) = group.clock {
                engine.state.groups.entry(group.name.clone()).or_insert_with(|| GroupState {
                    clock_ns: None,
                    // The clock of a new group is read from the first row on: event time has no "from now on".
                    positions: Positions::new(),
                });
            }
            for rule in &group.rules {
                let key = rule_key(group, rule);
                engine.health.insert(key.clone(), RuleHealth::default());
                let fresh = || RuleState { positions: frontier.clone(), ..RuleState::default() };
                engine.state.rules.entry(key.clone()).or_insert_with(fresh);
                known.insert(key);
            }
        }
        let rules = &engine.rules;
        let keeps_clock =
            |name: &str| rules.groups.iter().any(|g| g.name == name && g.clock != GroupClock::Wall);
        engine.state.groups.retain(|name, _| keeps_clock(name));
        let mut resolved = Vec::new();
        engine.state.rules.retain(|key, rule| {
            if !known.contains(key) {
                let firing = rule.instances.iter().filter(|i| i.phase == Phase::Firing);
                resolved.extend(firing.map(|i| notification(key, i, NotificationKind::Resolved, wall_ns)));
            }
            known.contains(key)
        });
        (engine, resolved)
    }

    /// The rules it was started with.
    pub fn rules(&self) -> &RuleSet {
        &self.rules
    }

    /// How each rule fares, by `group/alert`.
    pub fn health(&self) -> &BTreeMap<String, RuleHealth> {
        &self.health
    }

    /// What to ask so that a group's event clock moves on; none when there is nothing new or the group goes by the wall.
    pub fn clock_query(&self, group: usize, frontier: &Positions, wall_ns: i64) -> Option<(String, Range)> {
        let group = self.rules.groups.get(group)?;
        let GroupClock::Event(stream) = &group.clock else { return None };
        let from = &self.state.groups.get(&group.name)?.positions;
        let range = Range::new(from, frontier, limits::NEW_OFFSETS_MAX);
        if range.is_empty() {
            return None;
        }
        let ahead = i64::try_from(limits::CLOCK_AHEAD_MAX.as_nanos()).unwrap_or(i64::MAX);
        let sql = format!(
            "select toString(toUnixTimestamp64Nano(max(time))) as newest, count() as rows from `{stream}` where {} and time <= {}",
            range.condition(),
            super::sql::moment(wall_ns.saturating_add(ahead)),
        );
        Some((sql, range))
    }

    /// Takes the answer to [`Engine::clock_query`]. On an error the clock stands still, and when its stream has no table
    /// the group's rules wait for it.
    pub fn advance_clock(&mut self, index: usize, range: &Range, answer: &Result<Table, QueryError>) {
        let Some(group) = self.rules.groups.get(index) else { return };
        let Some(state) = self.state.groups.get_mut(&group.name) else { return };
        let unknown = match answer {
            Ok(table) => {
                if let Some(newest) = newest_event(table) {
                    state.clock_ns = Some(state.clock_ns.map_or(newest, |c| c.max(newest)));
                }
                state.positions = range.end().clone();
                self.stalled.remove(&index);
                None
            }
            Err(e) => {
                self.stalled.insert(index);
                let QueryError::UnknownTable(text) = e else { return };
                Some(text)
            }
        };
        for rule in &group.rules {
            if let Some(health) = self.health.get_mut(&rule_key(group, rule)) {
                health.unknown_table = unknown.cloned();
            }
        }
    }

    /// What a group's clock shows; none for an event clock before the first event.
    pub fn now(&self, group: usize, wall_ns: i64) -> Option<i64> {
        let group = self.rules.groups.get(group)?;
        match group.clock {
            GroupClock::Wall => Some(wall_ns),
            GroupClock::Event(_) => self.state.groups.get(&group.name)?.clock_ns,
        }
    }

    /// The evaluations of a group that are due now. In a group with an event clock no rule looks further than the clock
    /// has looked, so that `{now}` and `{new}` belong together.
    pub fn plan(&self, group: usize, frontier: &Positions, wall_ns: i64) -> Vec<Evaluation> {
        let Some(now_ns) = self.now(group, wall_ns) else { return Vec::new() };
        let g = &self.rules.groups[group];
        let frontier = self.state.groups.get(&g.name).map_or(frontier, |clock| &clock.positions);
        let mut out = Vec::new();
        for (index, rule) in g.rules.iter().enumerate() {
            let Some(state) = self.state.rules.get(&rule_key(g, rule)) else { continue };
            let range = Range::new(&state.positions, frontier, limits::NEW_OFFSETS_MAX);
            let every = i64::try_from(g.every.as_nanos()).unwrap_or(i64::MAX);
            let since = state.since_ns.unwrap_or(now_ns.saturating_sub(every));
            let nothing_new = rule.sql.judges_new_rows() && range.is_empty();
            let sql = (!nothing_new).then(|| rule.sql.render(&range, now_ns, since));
            out.push(Evaluation { rule: index, group, range, now_ns, sql });
        }
        out
    }

    /// Whether rows up to `frontier` remain that the last evaluations left because of their bounds.
    pub fn behind(&self, group: usize, frontier: &Positions) -> bool {
        let Some(g) = self.rules.groups.get(group) else { return false };
        // What did not succeed is left to the next interval: asking at once would be asking without a pause.
        if self.stalled.contains(&group) {
            return false;
        }
        let lags = |positions: &Positions, to| !Range::new(positions, to, u64::MAX).is_empty();
        let clock = self.state.groups.get(&g.name);
        if clock.is_some_and(|c| lags(&c.positions, frontier)) {
            return true;
        }
        // Rules are not evaluated before their clock shows something.
        if clock.is_some_and(|c| c.clock_ns.is_none()) {
            return false;
        }
        let frontier = clock.map_or(frontier, |c| &c.positions);
        g.rules.iter().filter(|r| r.sql.judges_new_rows()).any(|r| {
            let key = rule_key(g, r);
            let fine = |h: &RuleHealth| h.last_error.is_none() && h.unknown_table.is_none();
            let healthy = self.health.get(&key).is_some_and(fine);
            healthy && self.state.rules.get(&key).is_some_and(|s| lags(&s.positions, frontier))
        })
    }

    /// Takes the outcome of an evaluation and says what has begun or ceased to fire.
    pub fn apply(
        &mut self,
        evaluation: &Evaluation,
        answer: Result<Table, QueryError>,
        wall_ns: i64,
    ) -> Vec<Notification> {
        let group = &self.rules.groups[evaluation.group];
        let rule = &group.rules[evaluation.rule];
        let key = rule_key(group, rule);
        let (Some(state), Some(health)) = (self.state.rules.get_mut(&key), self.health.get_mut(&key)) else {
            return Vec::new();
        };
        health.evaluations += 1;
        health.last_wall_ns = wall_ns;
        let table = match answer {
            Ok(table) => table,
            // Perhaps it is not there yet, perhaps it is misspelled or gone for a while: only its rows could tell, so the
            // verdict waits for them.
            Err(QueryError::UnknownTable(text)) => {
                health.last_error = None;
                health.unknown_table = Some(text);
                return Vec::new();
            }
            Err(e) => {
                health.failures += 1;
                health.last_error = Some(e.to_string());
                return Vec::new();
            }
        };
        health.last_error = None;
        if !self.stalled.contains(&evaluation.group) {
            health.unknown_table = None;
        }
        let (matched, suppressed) = matched_rows(rule, &table);
        health.suppressed += suppressed + u64::from(table.truncated);
        state.positions.clone_from(evaluation.range.end());
        state.since_ns = Some(evaluation.now_ns);
        let turn = Turn { key: &key, rule, now_ns: evaluation.now_ns, wall_ns };
        let (notifications, over) = turn.take(&mut state.instances, matched);
        health.suppressed += over;
        notifications
    }

    /// Every alert that fires, as its receivers know it.
    pub fn firing(&self) -> Vec<Notification> {
        let all = self.state.rules.iter().flat_map(|(key, r)| r.instances.iter().map(move |i| (key, i)));
        all.filter(|(_, i)| i.phase == Phase::Firing)
            .map(|(key, i)| {
                notification(key, i, NotificationKind::Firing, i.fired_wall_ns.unwrap_or_default())
            })
            .collect()
    }

    /// Pending and firing instances with their rule's `group/alert`.
    pub fn instances(&self) -> impl Iterator<Item = (&str, &Instance)> {
        self.state.rules.iter().flat_map(|(key, r)| r.instances.iter().map(move |i| (key.as_str(), i)))
    }
}

fn newest_event(table: &Table) -> Option<i64> {
    let row = table.rows.first()?;
    let some = |v: &serde_json::Value| v.as_u64().or_else(|| v.as_str()?.parse().ok());
    if some(row.get(1)?)? == 0 {
        return None;
    }
    row.first()?.as_str()?.parse().ok()
}

fn notification(key: &str, i: &Instance, kind: NotificationKind, at_wall_ns: i64) -> Notification {
    let fired_wall_ns = i.fired_wall_ns.unwrap_or(at_wall_ns);
    Notification {
        id: Notification::id_of(key, &i.labels, fired_wall_ns, kind),
        rule: key.to_owned(),
        kind,
        labels: i.labels.clone(),
        annotations: i.annotations.clone(),
        value: i.value,
        active_ns: i.active_ns,
        fired_wall_ns,
        at_wall_ns,
    }
}

/// One rule's verdict on its instances.
struct Turn<'a> {
    key: &'a str,
    rule: &'a Rule,
    now_ns: i64,
    wall_ns: i64,
}

impl Turn<'_> {
    /// Moves every instance on; also says how many new ones were over the bound.
    fn take(&self, instances: &mut Vec<Instance>, mut matched: Vec<Matched>) -> (Vec<Notification>, u64) {
        let mut out = Vec::new();
        instances.retain_mut(|instance| {
            let found = matched.iter().position(|m| m.labels == instance.labels);
            match found.map(|i| matched.swap_remove(i)) {
                Some(m) => {
                    out.extend(self.matched(instance, m));
                    true
                }
                None => self.unmatched(instance, &mut out),
            }
        });
        let mut over = 0;
        // `swap_remove` has shuffled what is left: labels are the order that does not depend on it.
        matched.sort_by(|a, b| a.labels.cmp(&b.labels));
        for m in matched {
            if instances.len() >= limits::INSTANCES_MAX {
                over += 1;
                continue;
            }
            let mut instance = Instance {
                labels: m.labels.clone(),
                annotations: BTreeMap::new(),
                value: None,
                phase: Phase::Pending,
                active_ns: m.time_ns.unwrap_or(self.now_ns),
                matched_ns: self.now_ns,
                fired_wall_ns: None,
            };
            out.extend(self.matched(&mut instance, m));
            instances.push(instance);
        }
        (out, over)
    }

    fn matched(&self, i: &mut Instance, m: Matched) -> Option<Notification> {
        i.matched_ns = self.now_ns;
        i.annotations = m.annotations;
        i.value = m.value;
        let held_ns = self.now_ns.saturating_sub(i.active_ns);
        if i.phase == Phase::Firing || held_ns < self.rule.for_ns {
            return None;
        }
        i.phase = Phase::Firing;
        i.fired_wall_ns = Some(self.wall_ns);
        Some(notification(self.key, i, NotificationKind::Firing, self.wall_ns))
    }

    /// Whether the instance stays.
    fn unmatched(&self, i: &Instance, out: &mut Vec<Notification>) -> bool {
        let quiet_ns = self.now_ns.saturating_sub(i.matched_ns);
        let stays = self.rule.keep_firing_ns > 0 && quiet_ns < self.rule.keep_firing_ns;
        if !stays && i.phase == Phase::Firing {
            out.push(notification(self.key, i, NotificationKind::Resolved, self.wall_ns));
        }
        stays
    }
}

#[cfg(test)]
mod tests;
