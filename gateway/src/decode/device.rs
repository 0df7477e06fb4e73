//! Where an event's device stands.

use crate::event::Event;
use std::borrow::Cow;

/// Where the device stands. Over HTTP, a device named by the request (`?device=`) goes before the rule, and where the
/// rule speaks of a topic or a client that an HTTP request does not have, the field `device` is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceRule {
    /// A level of the topic, counted from 1.
    TopicLevel(usize),
    /// A field of the payload, text or an integer.
    Field(String),
    /// The MQTT client id.
    ClientId,
}

/// The field that is read where the rule does not fit an HTTP request.
const FALLBACK_FIELD: &str = "device";

impl DeviceRule {
    /// The payload's field that may hold the device.
    pub fn field(&self) -> &str {
        match self {
            Self::Field(name) => name,
            Self::TopicLevel(_) | Self::ClientId => FALLBACK_FIELD,
        }
    }

    /// Whether the payload of this event may hold the device: else a field of that name is like any other.
    pub fn reads_field(&self, event: &Event<'_>) -> bool {
        match self {
            Self::Field(_) => true,
            Self::TopicLevel(_) | Self::ClientId => event.delivery.http && event.client.is_empty(),
        }
    }

    /// The device of an event whose field holds `field`.
    pub fn of<'a>(&self, field: Option<&'a str>, event: &Event<'a>) -> Option<Cow<'a, str>> {
        let named = event.delivery.http.then_some(event.client).filter(|c| !c.is_empty());
        let by_rule = match self {
            Self::TopicLevel(level) => event.topic.split('/').nth(level.saturating_sub(1)),
            Self::Field(_) => field,
            Self::ClientId if event.delivery.http => None,
            Self::ClientId => Some(event.client),
        };
        let fallback = if event.delivery.http { field } else { None };
        let found = [named, by_rule, fallback].into_iter().flatten().find(|d| !d.is_empty());
        found.map(Cow::Borrowed)
    }

    /// The message of a dead letter without a device.
    pub fn missing(&self) -> String {
        match self {
            Self::TopicLevel(level) => format!("the topic has no level {level}"),
            Self::Field(name) => format!("no field {name:?}"),
            Self::ClientId => "the client has no id".to_owned(),
        }
    }
}
