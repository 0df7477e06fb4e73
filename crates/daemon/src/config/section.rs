//! One table of the file, read with typed getters.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::document::{Entry, Table, Value};
use super::{Checker, joined, units};

/// What a value is, for keys that take more than one shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    String,
    /// A number or a boolean or a date.
    Scalar,
    /// A list.
    List,
    /// A table, inline or not.
    Table,
}

/// A table of the file, or the empty stand-in for one that is missing (already reported).
#[derive(Clone)]
pub struct Section<'c> {
    check: &'c Checker<'c>,
    table: Option<&'c Table>,
    path: String,
    at: usize,
}

/// What a getter found. Decide what absence means: [`required`](Field::required), [`or`](Field::or) or
/// [`optional`](Field::optional).
#[must_use]
pub struct Field<'c, T> {
    section: Section<'c>,
    key: String,
    found: Found<T>,
    stand_in: T,
}

enum Found<T> {
    Value(T),
    Absent,
    /// There, but wrong; already reported.
    Wrong,
}

impl<T> Field<'_, T> {
    /// The value; absence is a mistake.
    pub fn required(self) -> T {
        match self.found {
            Found::Value(value) => value,
            Found::Wrong => self.stand_in,
            Found::Absent => {
                // A section that is missing as a whole was reported once; its keys would only be noise.
                if self.section.table.is_some() {
                    self.section.check.note(
                        self.section.at,
                        joined(&self.section.path, &self.key),
                        "missing, and needed",
                    );
                }
                self.stand_in
            }
        }
    }

    /// The value, or this default when the key is absent.
    pub fn or(self, default: T) -> T {
        match self.found {
            Found::Value(value) => value,
            Found::Absent | Found::Wrong => default,
        }
    }

    /// The value, if the key is there and right.
    pub fn optional(self) -> Option<T> {
        match self.found {
            Found::Value(value) => Some(value),
            Found::Absent | Found::Wrong => None,
        }
    }
}

impl<'c> Section<'c> {
    pub(super) fn new(check: &'c Checker<'c>, table: Option<&'c Table>, path: String, at: usize) -> Self {
        Self { check, table, path, at }
    }

    /// The section's path, like `stream.machine`; empty at the top.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// All keys of the section, in the order of the file. They count as asked for.
    pub fn keys(&self) -> Vec<String> {
        let keys: Vec<String> =
            self.table.iter().flat_map(|table| &table.entries).map(|entry| entry.key.clone()).collect();
        for key in &keys {
            self.check.ask(&self.path, key);
        }
        keys
    }

    /// Whether the key is there, and what it holds.
    pub fn kind(&self, key: &str) -> Option<Kind> {
        Some(match &self.entry(key)?.value {
            Value::String(_) => Kind::String,
            Value::Array(_) => Kind::List,
            Value::Table(_) => Kind::Table,
            Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => Kind::Scalar,
        })
    }

    /// Reports a mistake at a key: for conditions that involve more than one value.
    pub fn error(&self, key: &str, message: impl Into<String>) {
        let at = self.table.and_then(|table| table.get(key)).map_or(self.at, |entry| entry.value_at);
        self.check.note(at, joined(&self.path, key), message);
    }

    /// Reports a mistake of the section as a whole.
    pub fn error_here(&self, message: impl Into<String>) {
        self.check.note(self.at, self.path.clone(), message);
    }

    /// Makes the section's other keys free: they are not reported as unknown. For a section whose kind is wrong.
    pub fn ignore_rest(&self) {
        self.check.set_free(&self.path);
    }

    /// Text, not empty.
    pub fn string(&self, key: &str) -> Field<'c, String> {
        self.parsed(key, String::new(), |text| {
            if text.is_empty() { Err("must not be empty".to_owned()) } else { Ok(text.to_owned()) }
        })
    }

    /// Text that `parse` understands; the error's text is reported.
    pub fn parsed<T, E: Display>(
        &self,
        key: &str,
        stand_in: T,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Field<'c, T> {
        self.read(key, stand_in, |value| match value {
            Value::String(text) => parse(text).map_err(|error| error.to_string()),
            other => Err(format!("must be a string, is {}", other.type_name())),
        })
    }

    /// An integer within bounds.
    pub fn integer(&self, key: &str, range: RangeInclusive<i64>) -> Field<'c, i64> {
        self.read(key, *range.start(), |value| match value {
            Value::Integer(Some(number)) if range.contains(number) => Ok(*number),
            Value::Integer(_) => Err(format!("must be from {} to {}", range.start(), range.end())),
            other => Err(format!("must be an integer, is {}", other.type_name())),
        })
    }

    /// A number within bounds.
    pub fn number(&self, key: &str, range: RangeInclusive<f64>) -> Field<'c, f64> {
        self.read(key, *range.start(), |value| {
            let number = match value {
                Value::Integer(Some(number)) => *number as f64,
                Value::Float(number) => *number,
                other => return Err(format!("must be a number, is {}", other.type_name())),
            };
            if range.contains(&number) {
                Ok(number)
            } else {
                Err(format!("must be from {} to {}", range.start(), range.end()))
            }
        })
    }

    /// True or false.
    pub fn boolean(&self, key: &str) -> Field<'c, bool> {
        self.read(key, false, |value| match value {
            Value::Boolean(truth) => Ok(*truth),
            other => Err(format!("must be true or false, is {}", other.type_name())),
        })
    }

    /// One of a few words. The first stands in for a wrong one.
    pub fn choice<T: Clone>(&self, key: &str, choices: &[(&str, T)]) -> Field<'c, T> {
        self.parsed(key, choices[0].1.clone(), |text| {
            let found = choices.iter().find(|(word, _)| *word == text);
            found.map(|(_, value)| value.clone()).ok_or_else(|| {
                let words: Vec<String> = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect();
                format!("must be {}, is \"{text}\"", words.join(" or "))
            })
        })
    }

    /// A size like `2 GiB`, within bounds written the same way.
    pub fn bytes(&self, key: &str, least: &str, most: &str) -> Field<'c, u64> {
        let bounds = "bounds are written in the program as sizes";
        let (low, high) = (units::parse_bytes(least).expect(bounds), units::parse_bytes(most).expect(bounds));
        self.parsed(key, low, |text| {
            let size = units::parse_bytes(text)?;
            if (low..=high).contains(&size) {
                Ok(size)
            } else {
                Err(format!("must be from {least} to {most}"))
            }
        })
    }

    /// A duration like `5 ms`, within bounds written the same way.
    pub fn duration(&self, key: &str, least: &str, most: &str) -> Field<'c, Duration> {
        let bounds = "bounds are written in the program as durations";
        let (low, high) =
            (units::parse_duration(least).expect(bounds), units::parse_duration(most).expect(bounds));
        self.parsed(key, low, |text| {
            let duration = units::parse_duration(text)?;
            if (low..=high).contains(&duration) {
                Ok(duration)
            } else {
                Err(format!("must be from {least} to {most}"))
            }
        })
    }

    /// An address to bind or to connect to, like `127.0.0.1:9464`.
    pub fn socket(&self, key: &str) -> Field<'c, SocketAddr> {
        self.parsed(key, SocketAddr::from(([0, 0, 0, 0], 0)), |text| {
            text.parse::<SocketAddr>()
                .map_err(|_| format!("`{text}` is not an address like \"127.0.0.1:9464\""))
        })
    }

    /// A path; a relative one starts at the configuration file's folder.
    pub fn path_to(&self, key: &str) -> Field<'c, PathBuf> {
        let folder = self.check.folder().to_owned();
        self.parsed(key, PathBuf::new(), |text| {
            if text.is_empty() { Err("must not be empty".to_owned()) } else { Ok(folder.join(text)) }
        })
    }

    /// The folder that relative paths in the file start from.
    pub fn folder(&self) -> PathBuf {
        self.check.folder().to_owned()
    }

    /// A list of texts; one text alone is a list of one.
    pub fn strings(&self, key: &str) -> Field<'c, Vec<String>> {
        self.read(key, Vec::new(), |value| match value {
            Value::String(text) => Ok(vec![text.clone()]),
            Value::Array(items) => items
                .iter()
                .map(|item| match &item.value {
                    Value::String(text) => Ok(text.clone()),
                    other => Err(format!("must be a list of strings, holds {}", other.type_name())),
                })
                .collect(),
            other => Err(format!("must be a list of strings, is {}", other.type_name())),
        })
    }

    /// Any value, as JSON text: settings that belong to somebody else, like a module's. Its keys are not checked.
    pub fn json(&self, key: &str) -> Field<'c, String> {
        self.check.set_free(&joined(&self.path, key));
        self.read(key, "null".to_owned(), |value| {
            let mut text = String::new();
            json_value(value, &mut text)?;
            Ok(text)
        })
    }

    /// A table that must be there.
    pub fn section(&self, key: &str) -> Section<'c> {
        self.optional_section(key).unwrap_or_else(|| {
            let path = joined(&self.path, key);
            let absent = self.table.is_some_and(|table| table.get(key).is_none());
            if absent {
                self.check.note(self.at, path.clone(), "missing section, and needed");
            }
            Section::new(self.check, None, path, self.at)
        })
    }

    /// A table that may be there.
    pub fn optional_section(&self, key: &str) -> Option<Section<'c>> {
        let entry = self.entry(key)?;
        let path = joined(&self.path, key);
        match &entry.value {
            // An inline table is at its brace; a headed one is at its key in the header.
            Value::Table(table) => {
                Some(Section::new(self.check, Some(table), path, entry.key_at.max(entry.value_at)))
            }
            other => {
                self.check.note(entry.value_at, path, format!("must be a table, is {}", other.type_name()));
                None
            }
        }
    }

    /// The tables below a key by their names: `[source.X]` for every X, in the order of the file.
    pub fn sections(&self, key: &str) -> Vec<(String, Section<'c>)> {
        let Some(section) = self.optional_section(key) else { return Vec::new() };
        let names = section.keys();
        names.into_iter().filter_map(|name| Some((name.clone(), section.optional_section(&name)?))).collect()
    }

    /// A list of tables.
    pub fn list(&self, key: &str) -> Vec<Section<'c>> {
        let Some(entry) = self.entry(key) else { return Vec::new() };
        let path = joined(&self.path, key);
        let Value::Array(items) = &entry.value else {
            let message = format!("must be a list of tables, is {}", entry.value.type_name());
            self.check.note(entry.value_at, path, message);
            return Vec::new();
        };
        let mut sections = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let item_path = format!("{path}[{index}]");
            match &item.value {
                Value::Table(table) => {
                    sections.push(Section::new(self.check, Some(table), item_path, item.at));
                }
                other => {
                    self.check.note(item.at, item_path, format!("must be a table, is {}", other.type_name()));
                }
            }
        }
        sections
    }

    fn entry(&self, key: &str) -> Option<&'c Entry> {
        self.check.ask(&self.path, key);
        self.table?.get(key)
    }

    fn read<T>(
        &self,
        key: &str,
        stand_in: T,
        convert: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Field<'c, T> {
        let found = match self.entry(key) {
            None => Found::Absent,
            Some(entry) => match convert(&entry.value) {
                Ok(value) => Found::Value(value),
                Err(message) => {
                    self.check.note(entry.value_at, joined(&self.path, key), message);
                    Found::Wrong
                }
            },
        };
        Field { section: self.clone(), key: key.to_owned(), found, stand_in }
    }
}

fn json_value(value: &Value, out: &mut String) -> Result<(), String> {
    match value {
        Value::String(text) | Value::Datetime(text) => json_string(text, out),
        Value::Integer(Some(number)) => out.push_str(&number.to_string()),
        Value::Integer(None) => return Err("an integer does not fit 64 bits".to_owned()),
        Value::Float(number) if number.is_finite() => out.push_str(&format!("{number:?}")),
        Value::Float(_) => return Err("infinite numbers and NaN have no place in settings".to_owned()),
        Value::Boolean(truth) => out.push_str(if *truth { "true" } else { "false" }),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                json_value(&item.value, out)?;
            }
            out.push(']');
        }
        Value::Table(table) => {
            out.push('{');
            for (index, entry) in table.entries.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                json_string(&entry.key, out);
                out.push(':');
                json_value(&entry.value, out)?;
            }
            out.push('}');
        }
    }
    Ok(())
}

fn json_string(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}
