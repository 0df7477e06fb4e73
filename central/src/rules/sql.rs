//! A rule's SQL and its placeholders.
//!
//! `{new}` selects the rows stored since the rule's last evaluation, by the `_partition` and `_offset` that the sink
//! gave each row, up to what the sink has committed. `{now}` is the group's clock, `{since}` what it showed at the
//! last evaluation. Anything else in braces that is a bare word is an error; ClickHouse's own `{name:Type}` and map
//! literals pass unchanged.

use std::{collections::BTreeMap, fmt::Write as _};

/// The next offset to judge, per partition; a partition that is not named stands at 0.
pub type Positions = BTreeMap<u32, u64>;

/// A rule's SQL, taken apart at its placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSql(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    New,
    Now,
    Since,
}

impl RuleSql {
    /// Takes the SQL apart; the error says what is wrong. Whether ClickHouse understands it shows at the first evaluation.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let first = text.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
        if !first.eq_ignore_ascii_case("select") && !first.eq_ignore_ascii_case("with") {
            return Err("must begin with select or with".into());
        }
        if text.ends_with(';') {
            return Err("must not end with a semicolon".into());
        }
        let mut parts = Vec::new();
        let mut rest = text;
        let mut text_so_far = String::new();
        while let Some(open) = rest.find('{') {
            let inner = &rest[open + 1..];
            let word = inner.find('}').map(|close| &inner[..close]).filter(|w| is_word(w));
            let Some(word) = word else {
                text_so_far.push_str(&rest[..=open]);
                rest = inner;
                continue;
            };
            let part = match word {
                "new" => Part::New,
                "now" => Part::Now,
                "since" => Part::Since,
                _ => {
                    return Err(format!(
                        "unknown placeholder {{{word}}}; there are {{new}}, {{now}} and {{since}}"
                    ));
                }
            };
            text_so_far.push_str(&rest[..open]);
            parts.push(Part::Text(std::mem::take(&mut text_so_far)));
            parts.push(part);
            rest = &inner[word.len() + 1..];
        }
        text_so_far.push_str(rest);
        parts.push(Part::Text(text_so_far));
        Ok(Self(parts))
    }

    /// Whether the rule judges each row once.
    pub fn judges_new_rows(&self) -> bool {
        self.0.contains(&Part::New)
    }

    /// The statement for one evaluation.
    pub fn render(&self, range: &Range, now_ns: i64, since_ns: i64) -> String {
        let mut out = String::new();
        for part in &self.0 {
            match part {
                Part::Text(t) => out.push_str(t),
                Part::New => out.push_str(&range.condition()),
                Part::Now => out.push_str(&moment(now_ns)),
                Part::Since => out.push_str(&moment(since_ns)),
            }
        }
        out
    }
}

fn is_word(s: &str) -> bool {
    s.starts_with(|c: char| c.is_ascii_alphabetic())
        && s.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// A moment as ClickHouse's `DateTime64(9, 'UTC')`.
pub(super) fn moment(ns: i64) -> String {
    format!("fromUnixTimestamp64Nano(toInt64({ns}), 'UTC')")
}

/// Offsets `from ..to` of every partition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Range {
    from: Positions,
    to: Positions,
}

impl Range {
    /// From where a reader stands up to `frontier`, at most `offsets_max` offsets of each partition. A partition that
    /// the reader has passed already is left where it is.
    pub fn new(from: &Positions, frontier: &Positions, offsets_max: u64) -> Self {
        let mut to = from.clone();
        for (p, end) in frontier {
            let start = from.get(p).copied().unwrap_or(0);
            to.insert(*p, (*end).min(start.saturating_add(offsets_max)).max(start));
        }
        Self { from: from.clone(), to }
    }

    /// Where the reader stands once the range is judged.
    pub fn end(&self) -> &Positions {
        &self.to
    }

    /// Whether it holds no offset.
    pub fn is_empty(&self) -> bool {
        self.spans().next().is_none()
    }

    fn spans(&self) -> impl Iterator<Item = (u32, u64, u64)> + '_ {
        let start = |p: &u32| self.from.get(p).copied().unwrap_or(0);
        self.to.iter().map(move |(p, end)| (*p, start(p), *end)).filter(|(_, start, end)| start < end)
    }

    /// An SQL condition true for exactly the rows of the range.
    pub fn condition(&self) -> String {
        let mut out = String::new();
        for (p, start, end) in self.spans() {
            let or = if out.is_empty() { "" } else { " or " };
            let _ = write!(out, "{or}(_partition = {p} and _offset >= {start} and _offset < {end})");
        }
        if out.is_empty() { "(1 = 0)".into() } else { format!("({out})") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled() {
        let sql = RuleSql::parse(
            "select map('a', 1), {x:UInt8} from m where {new} and time > {now} - interval 1 hour",
        )
        .expect("valid");
        assert!(sql.judges_new_rows());
        let range = Range::new(&Positions::from([(0, 5)]), &Positions::from([(0, 9), (1, 2)]), 100);
        let text = sql.render(&range, 7, 3);
        assert!(text.contains("((_partition = 0 and _offset >= 5 and _offset < 9) or (_partition = 1 and _offset >= 0 and _offset < 2))"), "{text}");
        assert!(text.contains("time > fromUnixTimestamp64Nano(toInt64(7), 'UTC') - interval"), "{text}");
        assert!(text.contains("{x:UInt8}"), "{text}");
    }

    #[test]
    fn what_is_refused() {
        for bad in ["drop table m", "select {old}", "select 1;", ""] {
            assert!(RuleSql::parse(bad).is_err(), "{bad}");
        }
        assert!(!RuleSql::parse("select {'a': 1}, '{'").expect("valid").judges_new_rows());
    }

    #[test]
    fn ranges_never_go_back_and_are_bounded() {
        let r = Range::new(&Positions::from([(0, 9)]), &Positions::from([(0, 5), (1, 500)]), 100);
        assert_eq!(r.end(), &Positions::from([(0, 9), (1, 100)]));
        assert!(!r.is_empty());
        assert!(Range::new(r.end(), &Positions::from([(0, 5)]), 100).is_empty());
        assert_eq!(Range::default().condition(), "(1 = 0)");
    }
}
