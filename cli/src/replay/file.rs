//! The file's lines as events of devices.

use anyhow::{Context as _, bail};
use serde_json::{Map, Value};
use std::{ops::Range, path::Path};

/// Bytes of a file at most: it is read as a whole.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// How lines become events.
#[derive(Debug, Clone, Default)]
pub(super) struct Shape {
    pub(super) devices: u32,
    pub(super) device: String,
    pub(super) device_column: Option<String>,
    pub(super) device_field: Option<String>,
    pub(super) renames: Vec<(String, String)>,
    pub(super) time_column: Option<String>,
    pub(super) limit: Option<usize>,
}

/// All events: line after line, each for every device.
#[derive(Debug)]
pub(super) struct Events {
    shape: Shape,
    lines: Vec<Map<String, Value>>,
}

impl Events {
    pub(super) fn read(path: &Path, shape: Shape) -> anyhow::Result<Self> {
        let named = || path.display().to_string();
        let size = std::fs::metadata(path).with_context(named)?.len();
        if size > FILE_BYTES_MAX {
            bail!("{}: larger than {FILE_BYTES_MAX} bytes", named());
        }
        let text = std::fs::read_to_string(path).with_context(named)?;
        let is_csv = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv"));
        let lines = if is_csv { csv(&text) } else { ndjson(&text) }.with_context(named)?;
        Self::new(lines, shape).with_context(named)
    }

    fn new(mut lines: Vec<Map<String, Value>>, shape: Shape) -> anyhow::Result<Self> {
        lines.truncate(shape.limit.unwrap_or(usize::MAX));
        for (i, line) in lines.iter_mut().enumerate() {
            if let Some(column) = &shape.time_column {
                let cell =
                    line.get_mut(column).with_context(|| format!("event {}: no column {column:?}", i + 1))?;
                let text = cell.as_str().map(str::to_owned);
                let rfc = text.as_deref().and_then(rfc3339);
                *cell = Value::String(rfc.with_context(|| format!("event {}: {cell} is not a time", i + 1))?);
            }
            if let Some(column) = &shape.device_column
                && !line.contains_key(column)
            {
                bail!("event {}: no column {column:?}", i + 1);
            }
            for (old, new) in &shape.renames {
                let cell = line.remove(old).with_context(|| format!("event {}: no column {old:?}", i + 1))?;
                line.insert(new.clone(), cell);
            }
        }
        let shape = Shape {
            device_column: shape.device_column.as_ref().map(|c| renamed(c, &shape.renames)),
            ..shape
        };
        Ok(Self { shape, lines })
    }

    fn devices(&self) -> usize {
        if self.shape.device_column.is_some() { 1 } else { self.shape.devices.max(1) as usize }
    }

    pub(super) fn len(&self) -> usize {
        self.lines.len() * self.devices()
    }

    /// The events of one of several connections; a device keeps to one of them, so that its order holds.
    pub(super) fn of_connection(&self, connection: usize, connections: usize) -> Vec<u32> {
        let devices = self.devices();
        let all: Range<usize> = 0..self.len();
        if self.shape.device_column.is_none() {
            return all.filter(|i| (i % devices) % connections == connection).map(|i| i as u32).collect();
        }
        let hash = |name: &str| name.bytes().fold(5381usize, |h, b| h.wrapping_mul(33) ^ usize::from(b));
        all.filter(|i| hash(&self.device(*i)) % connections == connection).map(|i| i as u32).collect()
    }

    /// The device of event `i`.
    pub(super) fn device(&self, i: usize) -> String {
        match &self.shape.device_column {
            Some(c) => match self.lines[i].get(c) {
                Some(Value::String(s)) => s.clone(),
                Some(other) => other.to_string(),
                None => String::new(),
            },
            None if self.shape.devices <= 1 => self.shape.device.clone(),
            None => format!("{}-{}", self.shape.device, i % self.devices() + 1),
        }
    }

    /// The JSON of event `i`.
    pub(super) fn json(&self, i: usize) -> String {
        let line = &self.lines[i / self.devices()];
        match &self.shape.device_field {
            None => serde_json::to_string(line).expect("a map with text keys always encodes"),
            Some(key) => {
                let mut line = line.clone();
                line.insert(key.clone(), Value::String(self.device(i)));
                Value::Object(line).to_string()
            }
        }
    }
}

fn renamed(column: &str, renames: &[(String, String)]) -> String {
    renames.iter().find(|(old, _)| old == column).map_or(column, |(_, new)| new).to_owned()
}

/// `2013-12-02 21:15:00`, with or without fraction and zone, as RFC 3339.
fn rfc3339(text: &str) -> Option<String> {
    let mut t = text.trim().replacen(' ', "T", 1);
    let zoned = t.ends_with(['Z', 'z']) || t.get(10..).is_some_and(|rest| rest.contains(['+', '-']));
    if !zoned {
        t.push('Z');
    }
    time::OffsetDateTime::parse(&t, &time::format_description::well_known::Rfc3339).ok()?;
    Some(t)
}

fn ndjson(text: &str) -> anyhow::Result<Vec<Map<String, Value>>> {
    let mut out = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        out.push(serde_json::from_str(line).with_context(|| format!("line {} is not a JSON object", i + 1))?);
    }
    Ok(out)
}

/// RFC 4180: commas, quotes doubled inside quotes, line breaks inside quotes. Cells that look like numbers are numbers,
/// empty ones are left out.
fn csv(text: &str) -> anyhow::Result<Vec<Map<String, Value>>> {
    let mut rows = Rows { rest: text.strip_prefix('\u{feff}').unwrap_or(text), line: 1 };
    let Some(head) = rows.next_row()? else { bail!("the file is empty") };
    let mut out = Vec::new();
    while let Some(cells) = rows.next_row()? {
        if cells.len() != head.len() {
            bail!("line {}: {} cells, the header has {}", rows.line - 1, cells.len(), head.len());
        }
        let filled = head.iter().zip(cells).filter(|(_, (cell, quoted))| *quoted || !cell.is_empty());
        out.push(filled.map(|((name, _), (cell, quoted))| (name.clone(), value(cell, quoted))).collect());
    }
    Ok(out)
}

fn value(cell: String, quoted: bool) -> Value {
    if !quoted
        && cell.starts_with(|c: char| c.is_ascii_digit() || c == '-')
        && let Ok(n) = serde_json::from_str::<serde_json::Number>(&cell)
    {
        return Value::Number(n);
    }
    match (quoted, cell.as_str()) {
        (false, "true") => Value::Bool(true),
        (false, "false") => Value::Bool(false),
        _ => Value::String(cell),
    }
}

struct Rows<'a> {
    rest: &'a str,
    line: usize,
}

impl Rows<'_> {
    /// The cells of the next row, each with whether it was quoted; blank lines are skipped.
    fn next_row(&mut self) -> anyhow::Result<Option<Vec<(String, bool)>>> {
        while let Some(rest) = self.rest.strip_prefix("\r\n").or_else(|| self.rest.strip_prefix('\n')) {
            self.rest = rest;
            self.line += 1;
        }
        if self.rest.is_empty() {
            return Ok(None);
        }
        let mut cells = Vec::new();
        loop {
            cells.push(if self.rest.starts_with('"') {
                (self.quoted()?, true)
            } else {
                (self.plain(), false)
            });
            if let Some(rest) = self.rest.strip_prefix(',') {
                self.rest = rest;
                continue;
            }
            let end = self.rest.strip_prefix("\r\n").or_else(|| self.rest.strip_prefix('\n'));
            match end {
                Some(rest) => self.rest = rest,
                None if self.rest.is_empty() => {}
                None => bail!("line {}: text after a closing quote", self.line),
            }
            self.line += 1;
            return Ok(Some(cells));
        }
    }

    fn plain(&mut self) -> String {
        let end = self.rest.find([',', '\n']).unwrap_or(self.rest.len());
        let cell = &self.rest[..end];
        let cell_end = if self.rest[end..].starts_with('\n') { cell.trim_end_matches('\r') } else { cell };
        self.rest = &self.rest[cell_end.len()..];
        cell_end.to_owned()
    }

    fn quoted(&mut self) -> anyhow::Result<String> {
        let mut cell = String::new();
        self.rest = &self.rest[1..];
        loop {
            let Some(end) = self.rest.find('"') else { bail!("line {}: a quote is not closed", self.line) };
            cell.push_str(&self.rest[..end]);
            self.rest = &self.rest[end + 1..];
            match self.rest.strip_prefix('"') {
                Some(rest) => {
                    cell.push('"');
                    self.rest = rest;
                }
                None => return Ok(cell),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_cells() {
        let text = "\u{feff}timestamp,value,name\r\n2013-12-02 21:15:00,73.9,\"a, \"\"b\"\"\nc\"\r\n\r\n2013-12-02 21:20:00,,true\n";
        let lines = csv(text).expect("valid");
        let text: Vec<String> = lines.iter().map(|l| Value::Object(l.clone()).to_string()).collect();
        assert_eq!(text[0], r#"{"name":"a, \"b\"\nc","timestamp":"2013-12-02 21:15:00","value":73.9}"#);
        assert_eq!(text[1], r#"{"name":true,"timestamp":"2013-12-02 21:20:00"}"#);
        for bad in ["", "a,b\n1\n", "a\n\"x\n", "a\n\"x\"y\n"] {
            assert!(csv(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn lines_become_events_of_devices() {
        let shape = Shape {
            devices: 3,
            device: "m".into(),
            device_field: Some("device".into()),
            renames: vec![("timestamp".into(), "ts".into())],
            time_column: Some("timestamp".into()),
            ..Shape::default()
        };
        let lines = csv("timestamp,value\n2013-12-02 21:15:00,1\n2013-12-02 21:20:00,2\n").expect("valid");
        let e = Events::new(lines, shape).expect("fits");
        assert_eq!(e.len(), 6);
        assert_eq!(e.json(4), r#"{"device":"m-2","ts":"2013-12-02T21:20:00Z","value":2}"#);
        assert_eq!((e.of_connection(0, 2), e.of_connection(1, 2)), (vec![0, 2, 3, 5], vec![1, 4]));
    }

    #[test]
    fn devices_may_come_from_a_column() {
        let shape = Shape { device_column: Some("id".into()), limit: Some(2), ..Shape::default() };
        let lines = ndjson("{\"id\": \"a\"}\n\n{\"id\": 7}\n{\"id\": 1}\n").expect("valid");
        let e = Events::new(lines, shape).expect("fits");
        assert_eq!((e.len(), e.device(0).as_str(), e.device(1).as_str()), (2, "a", "7"));
        assert!(ndjson("[1]").is_err());
        let shape = Shape { device_column: Some("id".into()), ..Shape::default() };
        assert!(Events::new(ndjson("{}").expect("valid"), shape).is_err());
    }
}
