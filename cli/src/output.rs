//! What a verb leaves on stdout.

use serde_json::Value;
use std::io::{self, Write as _};

/// What the exit code says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// 0
    Fine,
    /// 1
    Wrong,
}

impl Verdict {
    pub(crate) fn fine_if(fine: bool) -> Self {
        if fine { Self::Fine } else { Self::Wrong }
    }
}

/// Text or one JSON object.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) json: bool,
}

impl Output {
    /// Prints the object, or what `text` makes of it.
    pub(crate) fn show(&self, value: &Value, text: impl FnOnce(&Value) -> String) {
        let text = if self.json { value.to_string() } else { text(value) };
        // A reader that closes the pipe early has seen enough.
        let _ = writeln!(io::stdout().lock(), "{}", text.trim_end());
    }
}

/// Columns side by side; numbers to the right.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |i: usize| {
        let cells = rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count());
        cells.chain([head[i].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let is_number = |c: &str| {
        !c.is_empty() && c.chars().all(|c| c.is_ascii_digit() || matches!(c, '-' | '.' | ',' | '–'))
    };
    let right: Vec<bool> = (0..head.len())
        .map(|i| !rows.is_empty() && rows.iter().filter_map(|r| r.get(i)).all(|c| is_number(c)))
        .collect();
    let line = |cells: &[String]| {
        let mut out = String::new();
        for (i, cell) in cells.iter().enumerate() {
            let gap = " ".repeat(widths[i].saturating_sub(cell.chars().count()));
            let cell = if right[i] { format!("{gap}{cell}") } else { format!("{cell}{gap}") };
            out.push_str(&cell);
            out.push_str("  ");
        }
        out.trim_end().to_owned() + "\n"
    };
    let head: Vec<String> = head.iter().map(|h| (*h).to_owned()).collect();
    let mut out = line(&head);
    for row in rows {
        out.push_str(&line(row));
    }
    out
}

/// A JSON value as a cell: text without quotes, nothing for null, control characters made visible.
pub(crate) fn cell(v: &Value) -> String {
    match v {
        Value::Null => String::new(),
        Value::String(s) => s.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect(),
        other => other.to_string(),
    }
}

/// `12345` as `12,345`.
pub(crate) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align() {
        let rows = vec![vec!["a".into(), "7".into()], vec!["long".into(), "1,200".into()]];
        assert_eq!(table(&["name", "rows"], &rows), "name   rows\na         7\nlong  1,200\n");
        assert_eq!((thousands(7), thousands(1_234_567)), ("7".into(), "1,234,567".into()));
    }

    #[test]
    fn cells_cannot_move_the_cursor() {
        assert_eq!(cell(&serde_json::json!("a\x1b[2Jb")), "a\u{fffd}[2Jb");
    }
}
