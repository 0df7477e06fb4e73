//! From the rows of a result to instances: which columns become labels, what the value is, how texts are filled.

use super::{
    file::{Rule, is_label_name},
    limits,
    source::{ResultColumn, Table},
};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

/// One set of labels that the condition holds for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Matched {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) value: Option<f64>,
    /// The row's own `time`, the earliest when several rows have the same labels.
    pub(super) time_ns: Option<i64>,
}

/// The instances of a result; rows with the same labels are one, the last of them gives value and texts. Also says how
/// many were over the bound.
pub(super) fn matched_rows(rule: &Rule, table: &Table) -> (Vec<Matched>, u64) {
    let mut out: Vec<Matched> = Vec::new();
    let mut index: HashMap<BTreeMap<String, String>, usize> = HashMap::new();
    let mut suppressed = 0;
    for row in table.rows.iter().take(limits::ROWS_MAX) {
        let m = matched(rule, &table.columns, row);
        match index.get(&m.labels) {
            Some(i) => {
                let earlier = [out[*i].time_ns, m.time_ns].into_iter().flatten().min();
                out[*i] = Matched { time_ns: earlier, ..m };
            }
            None if out.len() >= limits::INSTANCES_MAX => suppressed += 1,
            None => {
                index.insert(m.labels.clone(), out.len());
                out.push(m);
            }
        }
    }
    (out, suppressed + table.rows.len().saturating_sub(limits::ROWS_MAX) as u64)
}

fn matched(rule: &Rule, columns: &[ResultColumn], row: &[Value]) -> Matched {
    let texts: BTreeMap<String, String> =
        columns.iter().zip(row).map(|(c, v)| (c.name.clone(), text(v))).collect();
    let mut labels = BTreeMap::new();
    let mut value = None;
    let mut time_ns = None;
    for (column, cell) in columns.iter().zip(row) {
        if column.name == "value" {
            value = number(cell);
        } else if column.name == "time" && is_time(&column.ty) {
            time_ns = cell.as_str().and_then(parse_time);
        } else if is_text(&column.ty) && !cell.is_null() && labels.len() < limits::LABELS_MAX / 2 {
            labels.insert(label_name(&column.name), cut(&text(cell)));
        }
    }
    for (name, template) in &rule.labels {
        labels.insert(name.clone(), cut(&template.render(&texts)));
    }
    // Alertmanager takes an empty label for an absent one: the identity must not depend on the difference.
    labels.retain(|_, v| !v.is_empty());
    labels.insert("alertname".into(), rule.alert.clone());
    let annotations = rule.annotations.iter().map(|(n, t)| (n.clone(), cut(&t.render(&texts)))).collect();
    Matched { labels, annotations, value, time_ns }
}

fn text(v: &Value) -> String {
    match v {
        Value::String(s) => s.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// A number; ClickHouse writes 64-bit integers as text, depending on its settings.
fn number(v: &Value) -> Option<f64> {
    let n = v.as_f64().or_else(|| v.as_str()?.parse().ok())?;
    n.is_finite().then_some(n)
}

fn inner(ty: &str) -> &str {
    let mut ty = ty;
    for wrapper in ["LowCardinality(", "Nullable("] {
        if let Some(t) = ty.strip_prefix(wrapper).and_then(|t| t.strip_suffix(')')) {
            ty = t;
        }
    }
    ty
}

fn is_text(ty: &str) -> bool {
    let ty = inner(ty);
    ty == "String" || ty == "UUID" || ["FixedString(", "Enum8(", "Enum16("].iter().any(|p| ty.starts_with(p))
}

fn is_time(ty: &str) -> bool {
    inner(ty).starts_with("DateTime")
}

/// `2013-12-16 17:25:00.123` or `2013-12-16T17:25:00.123Z`, UTC, as ns since the epoch.
fn parse_time(text: &str) -> Option<i64> {
    let text = text.trim_end_matches('Z').replacen(' ', "T", 1) + "Z";
    let t = time::OffsetDateTime::parse(&text, &time::format_description::well_known::Rfc3339).ok()?;
    i64::try_from(t.unix_timestamp_nanos()).ok()
}

fn label_name(column: &str) -> String {
    if is_label_name(column) {
        return column.to_owned();
    }
    let safe = column.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' });
    format!("_{}", safe.take(100).collect::<String>())
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(limits::TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;

    fn rule() -> Rule {
        let text = r#"
groups:
  - name: g
    rules:
      - { alert: Hot, sql: "select 1", labels: { severity: page, zone: "{{ mode }}" }, annotations: { summary: "{{ device }}: {{ value }}" } }
"#;
        super::super::file::parse(Path::new("r"), text).expect("valid").groups[0].rules[0].clone()
    }

    fn column(name: &str, ty: &str) -> ResultColumn {
        ResultColumn { name: name.into(), ty: ty.into() }
    }

    #[test]
    fn text_columns_become_labels_and_equal_labels_merge() {
        let table = Table {
            columns: vec![
                column("device", "LowCardinality(String)"),
                column("mode", "Nullable(String)"),
                column("my-col", "String"),
                column("n", "UInt64"),
                column("time", "DateTime64(9, 'UTC')"),
                column("value", "Nullable(Float64)"),
            ],
            rows: vec![
                vec![
                    json!("m-1"),
                    json!(null),
                    json!("x"),
                    json!("7"),
                    json!("2013-12-16 17:25:00.5"),
                    json!(96.0),
                ],
                vec![
                    json!("m-1"),
                    json!(null),
                    json!("x"),
                    json!("8"),
                    json!("2013-12-16 17:20:00"),
                    json!(97.5),
                ],
                vec![json!("m-2"), json!("auto"), json!(""), json!("9"), json!(null), json!(null)],
            ],
            truncated: false,
        };
        let (m, suppressed) = matched_rows(&rule(), &table);
        assert_eq!((m.len(), suppressed), (2, 0));
        let labels: Vec<_> = m[0].labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(labels, ["_my_col=x", "alertname=Hot", "device=m-1", "severity=page"]);
        assert_eq!(m[0].annotations["summary"], "m-1: 97.5");
        assert_eq!((m[0].value, m[0].time_ns), (Some(97.5), Some(1_387_214_400_000_000_000)));
        assert_eq!((m[1].labels["zone"].as_str(), m[1].value, m[1].time_ns), ("auto", None, None));
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        assert_eq!(cut(&"é".repeat(600)).len(), 1_024);
        assert_eq!(cut(&("a".to_owned() + &"é".repeat(600))).len(), 1_023);
    }
}
