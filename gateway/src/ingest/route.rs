//! Which root streams an event belongs to: by topic for MQTT, by name for HTTP.

use crate::config::{Config, From};
use crate::decode::MissingTime;
use crate::limits::ROUTE_CACHE_MAX;
use mqtt::TopicFilter;
use record::{SourceName, StreamName};
use std::{collections::HashMap, sync::Arc};

/// Index of a root stream, in the configuration's order of root streams: the number of its lane.
pub type LaneIndex = u16;

/// The root streams and what they want.
#[derive(Debug)]
pub struct Routes {
    lanes: Vec<Lane>,
}

#[derive(Debug)]
struct Lane {
    stream: StreamName,
    sources: Vec<SourceName>,
    filters: Vec<TopicFilter>,
    /// Whether every payload carries the time of its reading, or becomes a dead letter.
    timed: bool,
}

impl Routes {
    /// The routes of a configuration.
    pub fn new(config: &Config) -> Self {
        let lanes = config.streams.iter().filter_map(|s| match &s.from {
            From::Sources { sources, topics, decode, .. } => Some(Lane {
                stream: s.name.clone(),
                sources: sources.clone(),
                filters: topics.iter().filter_map(|t| TopicFilter::parse(t).ok()).collect(),
                timed: decode.missing_time == MissingTime::DeadLetter,
            }),
            From::Stream(_) => None,
        });
        Self { lanes: lanes.collect() }
    }

    /// The root streams in the order of their lanes.
    pub fn streams(&self) -> impl Iterator<Item = &StreamName> {
        self.lanes.iter().map(|l| &l.stream)
    }

    /// The lanes that want events of this source and topic.
    pub fn by_topic(&self, source: &str, topic: &str) -> Vec<LaneIndex> {
        let wants = |l: &Lane| {
            l.sources.iter().any(|s| s.as_str() == source) && l.filters.iter().any(|f| f.matches(topic))
        };
        self.indices(wants)
    }

    /// The lane of the named stream, if events of this source may go there.
    pub fn by_name(&self, source: &str, stream: &str) -> Option<LaneIndex> {
        let wants = |l: &Lane| l.stream.as_str() == stream && l.sources.iter().any(|s| s.as_str() == source);
        self.indices(wants).first().copied()
    }

    /// Whether a lane wants an event as the input log holds it.
    pub fn wants(&self, lane: LaneIndex, event: &crate::event::Event<'_>) -> bool {
        let Some(l) = self.lanes.get(usize::from(lane)) else { return false };
        if event.delivery.noted || !l.sources.iter().any(|s| s.as_str() == event.source) {
            return false;
        }
        if event.stream.is_empty() {
            l.filters.iter().any(|f| f.matches(event.topic))
        } else {
            l.stream.as_str() == event.stream
        }
    }

    /// Whether in all of these lanes payloads carry the time of their reading.
    pub fn are_timed(&self, lanes: &[LaneIndex]) -> bool {
        lanes.iter().all(|lane| self.lanes.get(usize::from(*lane)).is_some_and(|l| l.timed))
    }

    fn indices(&self, wants: impl Fn(&Lane) -> bool) -> Vec<LaneIndex> {
        let numbered = self.lanes.iter().enumerate();
        numbered.filter(|(_, l)| wants(l)).filter_map(|(i, _)| LaneIndex::try_from(i).ok()).collect()
    }
}

/// Remembers the routes of the topics seen lately, so that filters are matched once a topic. One per connection or
/// lane: no lock.
#[derive(Debug)]
pub struct RouteCache {
    routes: Arc<Routes>,
    source: SourceName,
    seen: HashMap<String, Arc<[LaneIndex]>>,
}

impl RouteCache {
    /// An empty memory for topics of one source.
    pub fn new(routes: Arc<Routes>, source: SourceName) -> Self {
        Self { routes, source, seen: HashMap::new() }
    }

    /// As [`Routes::by_topic`].
    pub fn by_topic(&mut self, topic: &str) -> Arc<[LaneIndex]> {
        if let Some(found) = self.seen.get(topic) {
            return found.clone();
        }
        if self.seen.len() >= ROUTE_CACHE_MAX {
            self.seen.clear();
        }
        let found: Arc<[LaneIndex]> = self.routes.by_topic(self.source.as_str(), topic).into();
        self.seen.insert(topic.to_owned(), found.clone());
        found
    }
}
