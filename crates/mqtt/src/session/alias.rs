//! Topic aliases of one connection (MQTT 5, section 3.3.2.3.4).

use std::num::NonZeroU16;

use super::Ended;

#[derive(Debug)]
pub(super) struct Aliases {
    maximum: u16,
    topics: Vec<Option<Box<str>>>,
}

impl Aliases {
    pub(super) fn new(maximum: u16) -> Self {
        Self { maximum, topics: Vec::new() }
    }

    /// The topic that is meant: a name defines the alias anew, an empty one uses it.
    pub(super) fn resolve<'a>(&'a mut self, alias: NonZeroU16, topic: &'a str) -> Result<&'a str, Ended> {
        if alias.get() > self.maximum {
            return Err(Ended::AliasAboveMaximum(alias.get()));
        }
        let at = usize::from(alias.get()) - 1;
        if topic.is_empty() {
            let known = self.topics.get(at).and_then(Option::as_deref);
            return known.ok_or(Ended::AliasUnknown(alias.get()));
        }
        if self.topics.len() <= at {
            self.topics.resize(at + 1, None);
        }
        if self.topics[at].as_deref() != Some(topic) {
            self.topics[at] = Some(topic.into());
        }
        Ok(topic)
    }
}
