//! A YAML text as a tree whose every node knows its place, so that every error of a rule file can be reported at once.
//!
//! Scalars stay text: what a value means is the reader's business. Anchors and aliases are refused: a rule file
//! is read by people.

use super::limits::YAML_DEPTH_MAX;
use saphyr_parser::{Event, Parser, ScalarStyle, Span};

/// Line and column, both counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

impl From<Span> for Place {
    fn from(s: Span) -> Self {
        Self { line: s.start.line(), column: s.start.col() + 1 }
    }
}

/// A value and where it begins.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) data: Data,
}

/// What a node holds.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Data {
    /// Nothing written, `~` or `null`.
    Null,
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Key {
    pub(super) place: Place,
    pub(super) name: String,
}

impl Data {
    /// What a person would call it.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

/// Reads the first document of `text`; the error says where and why it is not YAML.
pub(super) fn parse(text: &str) -> Result<Node, (Place, String)> {
    let mut events = Parser::new_from_str(text);
    loop {
        let (event, span) = next(&mut events)?;
        match event {
            Event::StreamStart | Event::DocumentStart(_) | Event::Nothing => {}
            Event::StreamEnd | Event::DocumentEnd => {
                return Ok(Node { place: span.into(), data: Data::Null });
            }
            other => return node(&mut events, other, span.into(), 0),
        }
    }
}

type Events<'a> = Parser<'a, saphyr_parser::StrInput<'a>>;

fn next<'a>(events: &mut Events<'a>) -> Result<(Event<'a>, Span), (Place, String)> {
    match events.next() {
        Some(Ok(e)) => Ok(e),
        Some(Err(e)) => {
            let at = e.marker();
            Err((Place { line: at.line(), column: at.col() + 1 }, e.info().to_owned()))
        }
        None => Err((Place { line: 1, column: 1 }, "the text ends in the middle".into())),
    }
}

fn node(
    events: &mut Events<'_>,
    event: Event<'_>,
    place: Place,
    depth: usize,
) -> Result<Node, (Place, String)> {
    if depth > YAML_DEPTH_MAX {
        return Err((place, format!("nested deeper than {YAML_DEPTH_MAX} levels")));
    }
    let data = match event {
        Event::Scalar(text, style, 0, _) => match (style, text.as_ref()) {
            (ScalarStyle::Plain, "" | "~" | "null") => Data::Null,
            _ => Data::Text(text.into_owned()),
        },
        Event::SequenceStart(0, _) => {
            let mut items = Vec::new();
            loop {
                let (event, span) = next(events)?;
                if event == Event::SequenceEnd {
                    break Data::List(items);
                }
                items.push(node(events, event, span.into(), depth + 1)?);
            }
        }
        Event::MappingStart(0, _) => Data::Map(mapping(events, depth)?),
        _ => return Err((place, "anchors and aliases are not supported".into())),
    };
    Ok(Node { place, data })
}

fn mapping(events: &mut Events<'_>, depth: usize) -> Result<Vec<(Key, Node)>, (Place, String)> {
    let mut pairs: Vec<(Key, Node)> = Vec::new();
    loop {
        let (event, span) = next(events)?;
        let place = span.into();
        let name = match event {
            Event::MappingEnd => return Ok(pairs),
            Event::Scalar(text, _, 0, _) => text.into_owned(),
            _ => return Err((place, "a key must be plain text".into())),
        };
        if pairs.iter().any(|(k, _)| k.name == name) {
            return Err((place, format!("the key {name:?} stands here twice")));
        }
        let (event, span) = next(events)?;
        let value = node(events, event, span.into(), depth + 1)?;
        pairs.push((Key { place, name }, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_kinds() {
        let n = parse("a: 1\nb:\n  - x\n  - { y: 'z', n: }\n").expect("valid");
        let Data::Map(pairs) = &n.data else { panic!("{n:?}") };
        assert_eq!(pairs[0].1.data, Data::Text("1".into()));
        assert_eq!((pairs[1].0.place.line, pairs[1].0.place.column), (2, 1));
        let Data::List(items) = &pairs[1].1.data else { panic!() };
        let Data::Map(inner) = &items[1].data else { panic!() };
        assert_eq!((inner[0].1.data.clone(), inner[1].1.data.clone()), (Data::Text("z".into()), Data::Null));
        assert_eq!(items[1].place.line, 4);
    }

    #[test]
    fn what_is_refused() {
        for bad in ["a: &x 1\nb: *x", "a: 1\na: 2", "a: [1", "? [a]\n: b", &"[".repeat(40)] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(parse("").expect("empty is nothing").data, Data::Null);
    }
}
