//! Rule files: YAML in the shape that Prometheus users know, with SQL for the expression.
//!
//! Reading never stops at the first mistake: every error of every file comes back at once, each with file, line,
//! column and key.

use super::{
    duration, limits,
    sql::RuleSql,
    template::Template,
    yaml::{self, Data, Key, Node, Place},
};
use record::StreamName;
use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

/// All groups of all files.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RuleSet {
    /// Groups, in the order of the files; their names are unique.
    pub groups: Vec<Group>,
}

/// Rules that are evaluated together, by one clock.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Unique over all files.
    pub name: String,
    /// Real time from one evaluation to the next.
    pub every: Duration,
    /// What `{now}`, `for` and `keep-firing-for` go by.
    pub clock: GroupClock,
    /// Evaluated in this order.
    pub rules: Vec<Rule>,
}

/// The time that a group lives in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupClock {
    /// This machine's clock.
    Wall,
    /// The newest event time stored for a stream; stands still while no event arrives, never goes back.
    Event(StreamName),
}

/// One alerting rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Name of its alerts, unique in the group.
    pub alert: String,
    /// Each row of the result is an instance.
    pub sql: RuleSql,
    /// How long the condition must have held before the alert fires, ns of the group's clock.
    pub for_ns: i64,
    /// How long the alert stays after the last row that matched, ns of the group's clock.
    pub keep_firing_ns: i64,
    /// Labels beside those from the row; they win over a column of the same name.
    pub labels: Vec<(String, Template)>,
    /// Text for people.
    pub annotations: Vec<(String, Template)>,
}

impl RuleSet {
    /// Number of rules in all groups.
    pub fn rules(&self) -> usize {
        self.groups.iter().map(|g| g.rules.len()).sum()
    }
}

/// One mistake in a rule file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleFileError {
    /// The file.
    pub file: PathBuf,
    /// Where in it; none when the file could not be read.
    pub place: Option<Place>,
    /// The key, e.g. `groups[0].rules[1].for`; empty at the top.
    pub key: String,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for RuleFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(p) = self.place {
            write!(f, ":{}:{}", p.line, p.column)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for RuleFileError {}

/// Finds the files that `patterns` name: paths, whose last part may hold one `*`. A file that two of them name is one,
/// and what begins with a dot, as an editor's copy does, only a path without `*` names.
pub fn find(patterns: &[PathBuf]) -> Result<Vec<PathBuf>, Vec<RuleFileError>> {
    let mut files = BTreeSet::new();
    let mut errors = Vec::new();
    for pattern in patterns {
        match find_one(pattern) {
            Ok(found) => files.extend(found),
            Err(message) => {
                let key = "alerts.rules".to_owned();
                errors.push(RuleFileError { file: pattern.clone(), place: None, key, message });
            }
        }
    }
    if errors.is_empty() { Ok(files.into_iter().collect()) } else { Err(errors) }
}

fn find_one(path: &Path) -> Result<Vec<PathBuf>, String> {
    let name = path.file_name().and_then(|n| n.to_str()).ok_or("names no file")?;
    let Some((before, after)) = name.split_once('*') else {
        return Ok(vec![path.to_owned()]);
    };
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))? {
        let entry = entry.map_err(|e| e.to_string())?;
        let file = entry.file_name();
        let Some(file) = file.to_str() else { continue };
        let long_enough = file.len() >= before.len() + after.len();
        if long_enough && file.starts_with(before) && file.ends_with(after) && !file.starts_with('.') {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Reads rule files.
pub fn load(files: &[PathBuf]) -> Result<RuleSet, Vec<RuleFileError>> {
    let mut reader = Reader::default();
    for file in files {
        reader.file.clone_from(file);
        match std::fs::metadata(file).and_then(|m| {
            let too_big = m.len() > limits::FILE_BYTES_MAX as u64;
            if too_big { Ok(None) } else { std::fs::read_to_string(file).map(Some) }
        }) {
            Ok(Some(text)) => reader.text(&text),
            Ok(None) => reader.error(None, "", format!("is larger than {} bytes", limits::FILE_BYTES_MAX)),
            Err(e) => reader.error(None, "", e.to_string()),
        }
    }
    reader.finish()
}

/// Reads one text as if it were `file`.
pub fn parse(file: &Path, text: &str) -> Result<RuleSet, Vec<RuleFileError>> {
    let mut reader = Reader { file: file.to_owned(), ..Reader::default() };
    reader.text(text);
    reader.finish()
}

#[derive(Default)]
struct Reader {
    file: PathBuf,
    set: RuleSet,
    errors: Vec<RuleFileError>,
}

/// A mapping's keys, taken one by one, so that what is left over is unknown.
struct Fields {
    place: Place,
    path: String,
    pairs: Vec<(Key, Node)>,
}

impl Fields {
    fn take(&mut self, name: &str) -> Option<Node> {
        let i = self.pairs.iter().position(|(k, _)| k.name == name)?;
        Some(self.pairs.remove(i).1)
    }

    fn key(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}

impl Reader {
    fn finish(self) -> Result<RuleSet, Vec<RuleFileError>> {
        if self.errors.is_empty() { Ok(self.set) } else { Err(self.errors) }
    }

    fn error(&mut self, place: Option<Place>, key: &str, message: impl Into<String>) {
        let (file, key, message) = (self.file.clone(), key.to_owned(), message.into());
        self.errors.push(RuleFileError { file, place, key, message });
    }

    fn text(&mut self, text: &str) {
        let top = match yaml::parse(text) {
            Ok(node) => node,
            Err((place, message)) => return self.error(Some(place), "", message),
        };
        if top.data == Data::Null {
            return self.error(Some(top.place), "", "the file is empty");
        }
        let Some(mut fields) = self.fields(top, String::new()) else { return };
        let groups = self.required(&mut fields, "groups");
        self.leftovers(fields, &["groups"]);
        for (i, node) in groups.map(|n| self.list(n, "groups")).unwrap_or_default().into_iter().enumerate() {
            self.group(node, format!("groups[{i}]"));
        }
    }

    fn group(&mut self, node: Node, path: String) {
        let place = node.place;
        let Some(mut f) = self.fields(node, path.clone()) else { return };
        let name = self.required(&mut f, "name").and_then(|n| self.name(n, &f.key("name")));
        let every = self.every(&mut f);
        let clock = self.clock(&mut f);
        let rules = self.required(&mut f, "rules");
        self.leftovers(f, &["name", "every", "clock", "stream", "rules"]);
        let mut read = Vec::new();
        for (i, node) in
            rules.map(|n| self.list(n, &format!("{path}.rules"))).unwrap_or_default().into_iter().enumerate()
        {
            let at = node.place;
            let path = format!("{path}.rules[{i}]");
            let Some(rule) = self.rule(node, &path) else { continue };
            if read.iter().any(|r: &Rule| r.alert == rule.alert) {
                self.error(Some(at), &path, format!("the group has a rule {:?} already", rule.alert));
            } else if self.set.rules() + read.len() >= limits::RULES_MAX {
                return self.error(Some(at), &path, format!("more than {} rules", limits::RULES_MAX));
            } else {
                read.push(rule);
            }
        }
        let (Some(name), Some(every), Some(clock)) = (name, every, clock) else { return };
        if self.set.groups.iter().any(|g| g.name == name) {
            return self.error(Some(place), &path, format!("there is a group {name:?} already"));
        }
        self.set.groups.push(Group { name, every, clock, rules: read });
    }

    fn every(&mut self, f: &mut Fields) -> Option<Duration> {
        let Some(node) = f.take("every") else { return Some(Duration::from_secs(1)) };
        let (place, key) = (node.place, f.key("every"));
        let every = Duration::from_nanos(u64::try_from(self.duration(node, &key)?).unwrap_or_default());
        if every < limits::EVERY_MIN {
            self.error(Some(place), &key, format!("must be at least {:?}", limits::EVERY_MIN));
            return None;
        }
        Some(every)
    }

    fn clock(&mut self, f: &mut Fields) -> Option<GroupClock> {
        let stream_key = f.key("stream");
        let stream = f.take("stream");
        let stream_place = stream.as_ref().map(|n| n.place);
        let stream = match stream {
            None => None,
            Some(node) => {
                let place = node.place;
                let text = self.scalar(node, &stream_key)?;
                match StreamName::new(&text) {
                    Ok(s) => Some(s),
                    Err(e) => {
                        self.error(Some(place), &stream_key, e.to_string());
                        return None;
                    }
                }
            }
        };
        let key = f.key("clock");
        let (kind, place) = match f.take("clock") {
            None => ("wall".to_owned(), f.place),
            Some(node) => {
                let place = node.place;
                (self.scalar(node, &key)?, place)
            }
        };
        match (kind.as_str(), stream) {
            ("wall", None) => Some(GroupClock::Wall),
            ("wall", Some(_)) => {
                self.error(stream_place, &stream_key, "only a group with clock: event goes by a stream");
                None
            }
            ("event", Some(s)) => Some(GroupClock::Event(s)),
            ("event", None) => {
                self.error(
                    Some(place),
                    &key,
                    "clock: event needs stream: NAME, the stream whose event times it follows",
                );
                None
            }
            (other, _) => {
                self.error(Some(place), &key, format!("{other:?} is not a clock; there are wall and event"));
                None
            }
        }
    }

    fn rule(&mut self, node: Node, path: &str) -> Option<Rule> {
        let mut f = self.fields(node, path.to_owned())?;
        let alert = self.required(&mut f, "alert").and_then(|n| self.name(n, &f.key("alert")));
        let sql = self.required(&mut f, "sql").and_then(|n| self.sql(n, &f.key("sql")));
        let for_ns = self.optional_duration(&mut f, "for", 0);
        let default_keep = match &sql {
            Some(s) if s.judges_new_rows() => limits::KEEP_FIRING_DEFAULT.as_nanos() as i64,
            _ => 0,
        };
        let keep_firing_ns = self.optional_duration(&mut f, "keep-firing-for", default_keep);
        let labels = self.templates(&mut f, "labels", true);
        let annotations = self.templates(&mut f, "annotations", false);
        self.leftovers(f, &["alert", "sql", "for", "keep-firing-for", "labels", "annotations"]);
        Some(Rule {
            alert: alert?,
            sql: sql?,
            for_ns: for_ns?,
            keep_firing_ns: keep_firing_ns?,
            labels: labels?,
            annotations: annotations?,
        })
    }

    fn sql(&mut self, node: Node, key: &str) -> Option<RuleSql> {
        let place = node.place;
        let text = self.scalar(node, key)?;
        RuleSql::parse(&text).map_err(|m| self.error(Some(place), key, m)).ok()
    }

    fn templates(&mut self, f: &mut Fields, name: &str, are_labels: bool) -> Option<Vec<(String, Template)>> {
        let key = f.key(name);
        let Some(node) = f.take(name) else { return Some(Vec::new()) };
        let fields = self.fields(node, key)?;
        let mut out = Vec::new();
        let mut bad = fields.pairs.len() > limits::LABELS_MAX / 2;
        if bad {
            self.error(
                Some(fields.place),
                &fields.path,
                format!("more than {} entries", limits::LABELS_MAX / 2),
            );
        }
        for (key, node) in fields.pairs {
            let path = format!("{}.{}", fields.path, key.name);
            if !is_label_name(&key.name) {
                self.error(
                    Some(key.place),
                    &path,
                    "a name here is letters, digits and '_', and does not begin with a digit",
                );
                bad = true;
            } else if are_labels && matches!(key.name.as_str(), "alertname" | "value") {
                self.error(Some(key.place), &path, "is set by the rule itself");
                bad = true;
            }
            let place = node.place;
            let Some(text) = self.scalar(node, &path) else {
                bad = true;
                continue;
            };
            match Template::parse(&text) {
                Ok(t) => out.push((key.name, t)),
                Err(m) => {
                    self.error(Some(place), &path, m);
                    bad = true;
                }
            }
        }
        (!bad).then_some(out)
    }

    fn optional_duration(&mut self, f: &mut Fields, name: &str, default_ns: i64) -> Option<i64> {
        let key = f.key(name);
        match f.take(name) {
            Some(node) => self.duration(node, &key),
            None => Some(default_ns),
        }
    }

    fn duration(&mut self, node: Node, key: &str) -> Option<i64> {
        let place = node.place;
        let text = self.scalar(node, key)?;
        duration::parse(&text).map_err(|m| self.error(Some(place), key, m)).ok()
    }

    fn name(&mut self, node: Node, key: &str) -> Option<String> {
        let place = node.place;
        let text = self.scalar(node, key)?;
        if text.is_empty() || text.len() > 128 || text.chars().any(char::is_control) {
            self.error(Some(place), key, "must be 1 to 128 bytes of plain text");
            return None;
        }
        Some(text)
    }

    fn scalar(&mut self, node: Node, key: &str) -> Option<String> {
        match node.data {
            Data::Text(t) => Some(t),
            other => {
                self.error(Some(node.place), key, format!("must be text, is {}", other.kind()));
                None
            }
        }
    }

    fn list(&mut self, node: Node, key: &str) -> Vec<Node> {
        match node.data {
            Data::List(items) => items,
            other => {
                self.error(Some(node.place), key, format!("must be a list, is {}", other.kind()));
                Vec::new()
            }
        }
    }

    fn fields(&mut self, node: Node, path: String) -> Option<Fields> {
        match node.data {
            Data::Map(pairs) => Some(Fields { place: node.place, path, pairs }),
            other => {
                self.error(Some(node.place), &path, format!("must be a mapping, is {}", other.kind()));
                None
            }
        }
    }

    fn required(&mut self, f: &mut Fields, name: &str) -> Option<Node> {
        let found = f.take(name);
        if found.is_none() {
            self.error(Some(f.place), &f.key(name), "is missing");
        }
        found
    }

    fn leftovers(&mut self, f: Fields, known: &[&str]) {
        for (key, _) in &f.pairs {
            let path = f.key(&key.name);
            self.error(Some(key.place), &path, format!("unknown key; there are {}", known.join(", ")));
        }
    }
}

/// Whether Prometheus and Alertmanager take it as the name of a label.
pub(super) fn is_label_name(s: &str) -> bool {
    s.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && s.len() <= 128
        && s.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
groups:
  - name: machines
    every: 1s
    clock: event
    stream: machine
    rules:
      - alert: MachineOverheating
        sql: select device, max(temperature) as value from machine where time > {since} group by device having value > 95
        for: 10s
        labels: { severity: page }
        annotations: { summary: "{{ device }} reached {{ value }} °C" }
      - alert: Hot
        sql: |
          select device, temperature as value
          from machine where {new} and temperature > 100
"#;

    #[test]
    fn a_good_file() {
        let set = parse(Path::new("r.yaml"), GOOD).expect("valid");
        let g = &set.groups[0];
        assert_eq!((g.name.as_str(), g.every), ("machines", Duration::from_secs(1)));
        assert_eq!(g.clock, GroupClock::Event(StreamName::new("machine").expect("valid")));
        assert_eq!((g.rules[0].for_ns, g.rules[0].keep_firing_ns), (10_000_000_000, 0));
        assert_eq!(g.rules[1].keep_firing_ns, 300_000_000_000);
    }

    #[test]
    fn every_error_comes_back_with_its_place() {
        let bad = r#"groups:
  - name: a
    every: soon
    clock: event
    rulez: []
    rules:
      - alert: X
        sql: drop table machine
        for: 10 parsecs
        labels: { "1x": a, alertname: b }
        annotations: { summary: "{{ device" }
      - sql: select 1
      - alert: Z
        sql: select {old}
"#;
        let errors = parse(Path::new("r.yaml"), bad).expect_err("nine mistakes");
        let text: Vec<String> = errors.iter().map(ToString::to_string).collect();
        for expected in [
            "r.yaml:3:12: groups[0].every: \"soon\"",
            "r.yaml:4:12: groups[0].clock: clock: event needs stream",
            "r.yaml:5:5: groups[0].rulez: unknown key",
            "r.yaml:8:14: groups[0].rules[0].sql: must begin with select",
            "r.yaml:9:14: groups[0].rules[0].for:",
            "r.yaml:10:19: groups[0].rules[0].labels.1x:",
            "r.yaml:10:28: groups[0].rules[0].labels.alertname: is set by the rule",
            "r.yaml:11:33: groups[0].rules[0].annotations.summary:",
            "r.yaml:12:9: groups[0].rules[1].alert: is missing",
            "r.yaml:14:14: groups[0].rules[2].sql: unknown placeholder {old}",
        ] {
            assert!(
                text.iter().any(|t| t.starts_with(expected)),
                "{expected} is not among\n{}",
                text.join("\n")
            );
        }
        assert_eq!(errors.len(), 10, "{}", text.join("\n"));
    }

    #[test]
    fn files_are_found_by_pattern_and_doubles_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        for f in ["a.yaml", "b.yaml", "c.txt", ".d.yaml"] {
            std::fs::write(dir.path().join(f), GOOD).expect("writes");
        }
        let patterns = ["*.yaml", "a.yaml"].map(|p| dir.path().join(p));
        let files = find(&patterns).expect("finds");
        assert_eq!(files, [dir.path().join("a.yaml"), dir.path().join("b.yaml")]);
        let nowhere = find(&[dir.path().join("none/*.yaml")]).expect_err("no folder");
        assert!(nowhere[0].to_string().contains("none/*.yaml: alerts.rules: "), "{}", nowhere[0]);
        let errors = load(&files).expect_err("the group stands in both");
        assert!(errors[0].to_string().contains("there is a group \"machines\" already"), "{}", errors[0]);
        assert!(load(&[dir.path().join("none.yaml")]).is_err());
        assert!(parse(Path::new("e.yaml"), "").is_err());
    }
}
