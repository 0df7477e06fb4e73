//! Topic filters: their syntax and what they match (section 4.7 of the MQTT 5 specification).

/// Why a text is not a topic filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// No characters.
    #[error("a topic filter must not be empty")]
    Empty,
    /// More than 65,535 bytes.
    #[error("a topic filter has at most 65535 bytes")]
    TooLong,
    /// U+0000.
    #[error("a topic filter must not contain U+0000")]
    NulCharacter,
    /// `#` before the last level, or beside other characters.
    #[error("`#` must be alone in the last level of a topic filter")]
    MultiLevel,
    /// `+` beside other characters.
    #[error("`+` must be alone in its level of a topic filter")]
    SingleLevel,
}

/// Checks the syntax without keeping anything.
pub(crate) fn check_filter(text: &str) -> Result<(), FilterError> {
    if text.is_empty() {
        return Err(FilterError::Empty);
    }
    if text.len() > usize::from(u16::MAX) {
        return Err(FilterError::TooLong);
    }
    if text.bytes().any(|byte| byte == 0) {
        return Err(FilterError::NulCharacter);
    }
    let mut levels = text.split('/').peekable();
    while let Some(level) = levels.next() {
        if level.contains('#') && (level != "#" || levels.peek().is_some()) {
            return Err(FilterError::MultiLevel);
        }
        if level.contains('+') && level != "+" {
            return Err(FilterError::SingleLevel);
        }
    }
    Ok(())
}

/// A checked topic filter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicFilter(String);

impl TopicFilter {
    /// Checks the syntax.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        check_filter(text)?;
        Ok(Self(text.to_owned()))
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True when the filter selects the topic. Topics that begin with `$` are selected only by filters that name that
    /// first level (MQTT-4.7.2-1). `a/#` selects `a` as well.
    pub fn matches(&self, topic: &str) -> bool {
        if topic.starts_with('$') && self.0.starts_with(['+', '#']) {
            return false;
        }
        let mut names = topic.split('/');
        for level in self.0.split('/') {
            match (level, names.next()) {
                ("#", _) => return true,
                ("+", Some(_)) => {}
                (wanted, Some(name)) if wanted == name => {}
                _ => return false,
            }
        }
        names.next().is_none()
    }
}

impl std::fmt::Display for TopicFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The level of a topic with this number, counted from 1; `None` when the topic is shorter.
pub fn level(topic: &str, number: usize) -> Option<&str> {
    topic.split('/').nth(number.checked_sub(1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syntax() {
        for good in ["#", "+", "a", "/", "a/b", "a/+/b", "+/+", "a/#", "/#", "$sys/#", "ä/+"] {
            TopicFilter::parse(good).unwrap();
        }
        assert_eq!(TopicFilter::parse(""), Err(FilterError::Empty));
        assert_eq!(TopicFilter::parse("a#"), Err(FilterError::MultiLevel));
        assert_eq!(TopicFilter::parse("#/a"), Err(FilterError::MultiLevel));
        assert_eq!(TopicFilter::parse("a/##"), Err(FilterError::MultiLevel));
        assert_eq!(TopicFilter::parse("a+/b"), Err(FilterError::SingleLevel));
        assert_eq!(TopicFilter::parse("++"), Err(FilterError::SingleLevel));
        assert_eq!(TopicFilter::parse("a\0"), Err(FilterError::NulCharacter));
        assert_eq!(TopicFilter::parse(&"x".repeat(65_536)), Err(FilterError::TooLong));
    }

    #[test]
    fn matching_as_the_specification_tells() {
        let table: &[(&str, &str, bool)] = &[
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/ranking", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
            ("sport/tennis/player1/#", "sport/tennis/player10", false),
            ("#", "a/b", true),
            ("#", "/", true),
            ("#", "$SYS/x", false),
            ("+/x", "$SYS/x", false),
            ("$SYS/#", "$SYS/x", true),
            ("$SYS/+", "$SYS/x", true),
            ("sport/tennis/+", "sport/tennis/player1", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("a/+/c", "a//c", true),
            ("a/b", "a/B", false),
            ("machines/+/telemetry", "machines/7/telemetry", true),
        ];
        for (filter, topic, expected) in table {
            assert_eq!(TopicFilter::parse(filter).unwrap().matches(topic), *expected, "{filter} on {topic}");
        }
    }

    #[test]
    fn levels_count_from_one() {
        assert_eq!(level("machines/7/telemetry", 2), Some("7"));
        assert_eq!(level("machines/7", 3), None);
        assert_eq!(level("machines", 0), None);
    }
}
