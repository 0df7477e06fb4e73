//! Text with `{{ column }}` in it, filled from a result row.

use std::collections::BTreeMap;

/// A checked template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Column(String),
}

impl Template {
    /// Reads a template; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find("{{") {
            let inner = &rest[open + 2..];
            let close = inner.find("}}").ok_or("\"{{\" without \"}}\"")?;
            let name = inner[..close].trim();
            if name.is_empty() || !name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.')) {
                return Err(format!("{:?} is not the name of a column", &inner[..close]));
            }
            parts.push(Part::Text(rest[..open].to_owned()));
            parts.push(Part::Column(name.to_owned()));
            rest = &inner[close + 2..];
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Self(parts))
    }

    /// The text with the row's values; a column that the row lacks shows as `<no column NAME>`.
    pub fn render(&self, row: &BTreeMap<String, String>) -> String {
        let mut out = String::new();
        for part in &self.0 {
            match part {
                Part::Text(t) => out.push_str(t),
                Part::Column(c) => match row.get(c) {
                    Some(v) => out.push_str(v),
                    None => out.push_str(&format!("<no column {c}>")),
                },
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_columns() {
        let row = BTreeMap::from([
            ("device".to_owned(), "m-1".to_owned()),
            ("value".to_owned(), "96.5".to_owned()),
        ]);
        let t = Template::parse("{{ device }} reached {{value}} °C").expect("valid");
        assert_eq!(t.render(&row), "m-1 reached 96.5 °C");
        assert_eq!(Template::parse("{{ x }}!").expect("valid").render(&row), "<no column x>!");
        for bad in ["{{ a", "{{ }}", "{{ a b }}"] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
    }
}
