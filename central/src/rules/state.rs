//! What the rules remember across restarts: how far each has judged, its pending and firing instances, and the
//! notifications that are not delivered yet. All of it is one value, so that it is stored in one atomic step.

use super::sql::Positions;
use crate::alerts::OutboxState;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The layout that [`State::encode`] writes.
const VERSION: u32 = 1;

/// Everything remembered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    /// The log that all positions belong to.
    #[serde(default)]
    pub log: String,
    /// Clocks of the groups with `clock: event`, by name.
    pub groups: BTreeMap<String, GroupState>,
    /// By `group/alert`.
    pub rules: BTreeMap<String, RuleState>,
    /// Notifications on their way.
    pub outbox: OutboxState,
}

/// The event clock of a group.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GroupState {
    /// The newest event time seen, ns since the epoch; none before the first event.
    pub clock_ns: Option<i64>,
    /// Up to where the stream's rows have been looked at.
    pub positions: Positions,
}

/// One rule's memory.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RuleState {
    /// The next offset to judge, for a rule with `{new}`.
    pub positions: Positions,
    /// The group's clock at the last evaluation, ns.
    pub since_ns: Option<i64>,
    /// Pending and firing instances.
    pub instances: Vec<Instance>,
}

/// Where an instance stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The condition holds, but not for long enough yet.
    Pending,
    /// Told to the receivers.
    Firing,
}

/// One alert: a rule's condition for one set of labels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// Identity, `alertname` included.
    pub labels: BTreeMap<String, String>,
    /// Text for people, from the newest row that matched.
    pub annotations: BTreeMap<String, String>,
    /// The newest value, when it is a finite number.
    pub value: Option<f64>,
    /// Pending or firing.
    pub phase: Phase,
    /// Since when the condition holds, ns of the group's clock (or the row's own `time`).
    pub active_ns: i64,
    /// When a row matched last, ns of the group's clock.
    pub matched_ns: i64,
    /// When it began to fire, ns of this machine's clock; receivers know the alert by it.
    pub fired_wall_ns: Option<i64>,
}

/// A state that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the rules' state cannot be read: {0}")]
pub struct StateError(pub String);

impl Default for State {
    fn default() -> Self {
        Self {
            version: VERSION,
            log: String::new(),
            groups: BTreeMap::new(),
            rules: BTreeMap::new(),
            outbox: OutboxState::default(),
        }
    }
}

impl State {
    /// Positions in another log mean nothing: every reader begins anew at the start of this one. True when that happened.
    pub fn belongs_to(&mut self, log: &str) -> bool {
        if self.log == log {
            return false;
        }
        let moved = !std::mem::replace(&mut self.log, log.to_owned()).is_empty();
        if moved {
            self.groups.values_mut().for_each(|g| g.positions.clear());
            self.rules.values_mut().for_each(|r| r.positions.clear());
        }
        moved
    }

    /// JSON, so that a person can read it in need.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("maps with text keys and plain values always encode")
    }

    /// Reads what [`State::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let state: Self = serde_json::from_slice(bytes).map_err(|e| StateError(e.to_string()))?;
        if state.version != VERSION {
            return Err(StateError(format!("it has layout {}, this program knows {VERSION}", state.version)));
        }
        Ok(state)
    }
}
