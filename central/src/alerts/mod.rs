//! Telling people: transitions of alerts on their way to Alertmanager and to webhooks.
//!
//! Invariants:
//! - a transition is stored, in one step with the verdict that made it, before it is sent;
//! - it leaves the store only after its receiver has accepted it (or refused it for good, which is counted), so a
//!   restart loses none; a repeated one carries the same id, labels and start, by which receivers know it again;
//! - per receiver, transitions go out in the order in which they happened.
//!
//! It never decides what fires: that is the rules' business.

pub mod deliver;
pub mod outbox;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub use deliver::{Deliverer, Receiver, ReceiverKind};
pub use outbox::{Delivery, Outbox, OutboxState, Outcome};

/// Whether an alert begins or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NotificationKind {
    /// It fires.
    Firing,
    /// It is over.
    Resolved,
}

impl NotificationKind {
    /// One word, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Resolved => "resolved",
        }
    }
}

/// One transition of one alert.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Notification {
    /// Names the transition: the same after a restart, another for every other transition.
    pub id: String,
    /// `group/alert`.
    pub rule: String,
    /// Begins or ends.
    pub kind: NotificationKind,
    /// The alert's identity.
    pub labels: BTreeMap<String, String>,
    /// Text for people.
    pub annotations: BTreeMap<String, String>,
    /// The newest value, when it is a number.
    pub value: Option<f64>,
    /// Since when the condition holds, ns of the group's clock.
    pub active_ns: i64,
    /// When the alert began to fire, ns of this machine's clock; never changes while it fires.
    pub fired_wall_ns: i64,
    /// When this transition happened, ns of this machine's clock.
    pub at_wall_ns: i64,
}

impl Notification {
    /// The id of a transition: 32 hexadecimal digits that follow from what it is about.
    pub fn id_of(
        rule: &str,
        labels: &BTreeMap<String, String>,
        fired_wall_ns: i64,
        kind: NotificationKind,
    ) -> String {
        let labels = serde_json::to_string(labels).expect("a map of text always encodes");
        let text = format!("{rule}\n{labels}\n{fired_wall_ns}\n{}", kind.as_str());
        record::Digest::of(text.as_bytes()).to_hex()[..32].to_owned()
    }
}

/// RFC 3339 text as nanoseconds since the epoch.
pub fn from_rfc3339(text: &str) -> Option<i64> {
    let time = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()?;
    i64::try_from(time.unix_timestamp_nanos()).ok()
}

/// Nanoseconds since the epoch as RFC 3339 text in UTC.
pub fn rfc3339(ns: i64) -> String {
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(ns))
        .ok()
        .and_then(|t| t.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_else(|| ns.to_string())
}
