//! Which filters the session at the broker has, kept beside the logs.
//!
//! A persistent session outlives the process, its configuration does not: a filter that went away must be given back to
//! the broker, and the retained messages that a renewed subscription brings are copies only where the topic was
//! subscribed to before. The file is written when the broker has answered a subscription and before anything that it
//! brought is taken: a crash in between brings nothing twice and loses nothing.

use crate::{config::Subscription, folder};
use mqtt::topic::TopicFilter;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    version: u32,
    broker: String,
    client_id: String,
    filters: BTreeSet<String>,
}

/// The filters of a session; see the module above.
#[derive(Debug)]
pub(super) struct Subscribed {
    path: PathBuf,
    stored: Stored,
    /// Subscribed to before this process asked: what is retained there was delivered then.
    before: Vec<TopicFilter>,
    /// Asked for and not answered yet.
    asked: Option<BTreeSet<String>>,
}

impl Subscribed {
    /// What the file says, if it speaks of this session.
    pub(super) fn open(path: PathBuf, broker: String, client_id: String) -> Self {
        let none = Stored { version: 1, broker, client_id, filters: BTreeSet::new() };
        let stored = std::fs::read(&path).ok().and_then(|bytes| {
            let read: Option<Stored> = serde_json::from_slice(&bytes).ok();
            if read.is_none() {
                tracing::warn!(path = %path.display(), "it cannot be read: retained messages may come twice");
            }
            let filters = read?;
            (Stored { filters: BTreeSet::new(), ..filters.clone() } == none).then_some(filters)
        });
        let stored = stored.unwrap_or(none);
        let before = filters(&stored.filters);
        Self { path, stored, before, asked: None }
    }

    /// The broker has no session: nothing is subscribed to.
    pub(super) fn lost(&mut self) {
        self.stored.filters.clear();
        self.before.clear();
    }

    /// These are asked for now. Gives those that the session has and nobody wants any more.
    pub(super) fn ask(&mut self, wanted: &[Subscription]) -> Vec<String> {
        let wanted: BTreeSet<String> = wanted.iter().map(|s| s.topic.clone()).collect();
        let unwanted = self.stored.filters.difference(&wanted).cloned().collect();
        self.asked = Some(wanted);
        unwanted
    }

    /// The broker has answered, or sends already: from now on the session has what was asked for, without those that
    /// were refused.
    pub(super) fn answered(&mut self, refused: &[String]) {
        let mut filters = match self.asked.take() {
            Some(asked) => asked,
            None if refused.is_empty() => return,
            None => self.stored.filters.clone(),
        };
        filters.retain(|filter| !refused.contains(filter));
        if filters == self.stored.filters {
            return;
        }
        self.stored.filters = filters;
        if let Err(error) = write(&self.path, &self.stored) {
            tracing::error!(%error, "the broker's subscriptions are not written down: retained messages may come twice");
        }
    }

    /// Whether a retained message of this topic was delivered before.
    pub(super) fn is_copy(&self, topic: &str) -> bool {
        self.before.iter().any(|filter| filter.matches(topic))
    }
}

fn filters(texts: &BTreeSet<String>) -> Vec<TopicFilter> {
    texts.iter().filter_map(|text| TopicFilter::parse(text).ok()).collect()
}

fn write(path: &Path, stored: &Stored) -> Result<(), String> {
    let text = serde_json::to_vec_pretty(stored).map_err(|e| e.to_string())?;
    folder::replace(path, &text).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(topics: &[&str]) -> Vec<Subscription> {
        topics.iter().map(|topic| Subscription { topic: (*topic).to_owned(), qos: 1 }).collect()
    }

    #[test]
    fn what_was_subscribed_to_is_known_in_the_next_process() {
        let dir = tempfile::tempdir().expect("a folder");
        let open = |client: &str| {
            Subscribed::open(dir.path().join("broker-plc.json"), "host:1883".to_owned(), client.to_owned())
        };
        let mut first = open("me");
        assert!(first.ask(&wanted(&["a/+", "b/#"])).is_empty());
        first.answered(&["b/#".to_owned()]);
        assert!(!first.is_copy("a/1"), "all that the first subscription brings is new");

        let mut second = open("me");
        assert!(second.is_copy("a/1") && !second.is_copy("b/1") && !second.is_copy("a/1/2"));
        assert_eq!(second.ask(&wanted(&["c"])), ["a/+"], "it is given back");
        assert!(open("me").is_copy("a/1"), "nothing has changed before the broker answers");
        second.answered(&[]);
        assert!(open("me").is_copy("c") && !open("me").is_copy("a/1"));

        assert!(!open("another").is_copy("c"), "another session");
        second.lost();
        assert!(!second.is_copy("a/1"));
        std::fs::write(dir.path().join("broker-plc.json"), "{").expect("written");
        assert!(!open("me").is_copy("c"));
    }
}
