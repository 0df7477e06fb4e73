//! The parsed file, with the place of every key and value.

use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{ConfigError, ConfigErrors};

/// A TOML file that is well formed; whether its keys make sense is the checker's question.
#[derive(Debug)]
pub struct Document {
    path: PathBuf,
    text: String,
    root: Table,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) entries: Vec<Entry>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    /// Byte offsets in the text.
    pub(super) key_at: usize,
    pub(super) value_at: usize,
    pub(super) value: Value,
}

#[derive(Debug)]
pub(super) struct Item {
    pub(super) at: usize,
    pub(super) value: Value,
}

#[derive(Debug)]
pub(super) enum Value {
    String(String),
    /// None when it does not fit 64 bits.
    Integer(Option<i64>),
    Float(f64),
    Boolean(bool),
    Datetime(String),
    Array(Vec<Item>),
    Table(Table),
}

impl Value {
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::String(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a number",
            Self::Boolean(_) => "a boolean",
            Self::Datetime(_) => "a date",
            Self::Array(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

impl Table {
    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }
}

impl Document {
    /// Parses TOML; `path` is only for messages and for relative paths inside the file.
    ///
    /// # Errors
    /// Every place where the text is not TOML.
    pub fn parse(text: &str, path: impl Into<PathBuf>) -> Result<Self, ConfigErrors> {
        let path = path.into();
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            let errors = errors
                .iter()
                .map(|error| {
                    let (line, column) = place(text, error.span().map_or(0, |span| span.start));
                    let message = error.message().trim().replace('\n', ", ");
                    ConfigError { line, column, key: String::new(), message }
                })
                .collect();
            return Err(ConfigErrors { path, errors });
        }
        let root = own_table(table.get_ref());
        Ok(Self { path, text: text.to_owned(), root })
    }

    /// Reads and parses a file.
    ///
    /// # Errors
    /// When the file cannot be read or is not TOML.
    pub fn read(path: &Path) -> Result<Self, ConfigErrors> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(error) => {
                let message = format!("cannot read the file: {error}");
                let errors = vec![ConfigError { line: 1, column: 1, key: String::new(), message }];
                Err(ConfigErrors { path: path.to_owned(), errors })
            }
        }
    }

    /// The file's path, as given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn root(&self) -> &Table {
        &self.root
    }

    /// Line and column, from 1, of a byte offset.
    pub(super) fn place(&self, offset: usize) -> (usize, usize) {
        place(&self.text, offset)
    }
}

fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

fn own_table(table: &DeTable<'_>) -> Table {
    let mut entries: Vec<Entry> = table
        .iter()
        .map(|(key, value)| Entry {
            key: key.get_ref().to_string(),
            key_at: key.span().start,
            value_at: value.span().start,
            value: own_value(value),
        })
        .collect();
    entries.sort_by_key(|entry| entry.key_at);
    Table { entries }
}

fn own_value(value: &Spanned<DeValue<'_>>) -> Value {
    match value.get_ref() {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => {
            let digits: String = number.as_str().chars().filter(|c| *c != '_').collect();
            Value::Integer(i64::from_str_radix(&digits, number.radix()).ok())
        }
        DeValue::Float(number) => {
            let digits: String = number.as_str().chars().filter(|c| *c != '_').collect();
            Value::Float(digits.parse().unwrap_or(f64::NAN))
        }
        DeValue::Boolean(truth) => Value::Boolean(*truth),
        DeValue::Datetime(date) => Value::Datetime(date.to_string()),
        DeValue::Array(items) => Value::Array(
            items.iter().map(|item| Item { at: item.span().start, value: own_value(item) }).collect(),
        ),
        DeValue::Table(table) => Value::Table(own_table(table)),
    }
}
