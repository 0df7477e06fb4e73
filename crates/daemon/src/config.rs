//! Configuration: one TOML file, read key by key, every mistake reported at once with its place.
//!
//! A daemon parses the file into a [`Document`], reads it through a [`Checker`] and builds its own checked
//! configuration from what the getters return. A getter that finds a mistake notes it and returns a stand-in, so that
//! reading goes on and the next mistake is found too; [`Checker::finish`] then refuses the whole file. Keys that
//! nobody asked for are mistakes as well, answered with the nearest name that somebody did ask for.
//!
//! ```
//! use daemon::config::{Checker, Document};
//! let document = Document::parse("[gateway]\nid = \"plant-7\"\n", "gateway.toml")?;
//! let check = Checker::new(&document);
//! let gateway = check.root().section("gateway");
//! let id: String = gateway.string("id").required();
//! let commit = gateway.duration("commit-interval", "100 us", "1 s").or(std::time::Duration::from_millis(5));
//! check.finish()?;
//! assert_eq!((id.as_str(), commit.as_millis()), ("plant-7", 5));
//! # Ok::<(), daemon::config::ConfigErrors>(())
//! ```

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

mod document;
mod nearest;
mod section;
pub mod units;

pub use document::Document;
pub use section::{Field, Kind, Section};

use document::{Table, Value};

/// One mistake in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The key's path, like `stream.machine.from`; empty for a mistake of the file as a whole.
    pub key: String,
    /// What is wrong and what would be right.
    pub message: String,
}

/// All mistakes of one file, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors {
    /// The file.
    pub path: PathBuf,
    /// At least one.
    pub errors: Vec<ConfigError>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{path}:{}:{}: ", error.line, error.column)?;
            if !error.key.is_empty() {
                write!(f, "{}: ", error.key)?;
            }
            f.write_str(&error.message)?;
        }
        Ok(())
    }
}

/// Reads a document and collects its mistakes.
pub struct Checker<'d> {
    document: &'d Document,
    errors: RefCell<Vec<ConfigError>>,
    /// Per table path: the keys that somebody asked for.
    asked: RefCell<BTreeMap<String, BTreeSet<String>>>,
    /// Tables whose remaining keys are free: a module's own settings, or a section that is wrong as a whole.
    free: RefCell<BTreeSet<String>>,
}

impl<'d> Checker<'d> {
    /// A checker with nothing read yet.
    pub fn new(document: &'d Document) -> Self {
        Self { document, errors: RefCell::default(), asked: RefCell::default(), free: RefCell::default() }
    }

    /// The file's top level.
    pub fn root(&self) -> Section<'_> {
        Section::new(self, Some(self.document.root()), String::new(), 0)
    }

    /// The folder that relative paths in the file start from.
    pub fn folder(&self) -> &Path {
        self.document.path().parent().unwrap_or(Path::new(""))
    }

    /// Refuses the file when there was any mistake or any key that nobody asked for.
    ///
    /// # Errors
    /// All mistakes, in the order of the file.
    pub fn finish(self) -> Result<(), ConfigErrors> {
        self.find_unknown(self.document.root(), "");
        let mut errors = self.errors.into_inner();
        if errors.is_empty() {
            return Ok(());
        }
        errors.sort();
        errors.dedup();
        Err(ConfigErrors { path: self.document.path().to_owned(), errors })
    }

    fn note(&self, offset: usize, key: String, message: impl Into<String>) {
        let (line, column) = self.document.place(offset);
        self.errors.borrow_mut().push(ConfigError { line, column, key, message: message.into() });
    }

    fn ask(&self, path: &str, key: &str) {
        self.asked.borrow_mut().entry(path.to_owned()).or_default().insert(key.to_owned());
    }

    fn set_free(&self, path: &str) {
        self.free.borrow_mut().insert(path.to_owned());
    }

    fn find_unknown(&self, table: &Table, path: &str) {
        if self.free.borrow().contains(path) {
            return;
        }
        let asked = self.asked.borrow().get(path).cloned().unwrap_or_default();
        for entry in &table.entries {
            let entry_path = joined(path, &entry.key);
            if !asked.contains(&entry.key) {
                let message = match nearest::nearest(&entry.key, &asked) {
                    Some(name) => format!("unknown key, did you mean `{name}`?"),
                    None => "unknown key".to_owned(),
                };
                self.note(entry.key_at, entry_path, message);
                continue;
            }
            self.find_unknown_in(&entry.value, &entry_path);
        }
    }

    fn find_unknown_in(&self, value: &Value, path: &str) {
        match value {
            Value::Table(table) => self.find_unknown(table, path),
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.find_unknown_in(&item.value, &format!("{path}[{index}]"));
                }
            }
            _ => {}
        }
    }
}

fn joined(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

#[cfg(test)]
mod tests;
