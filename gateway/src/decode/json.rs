//! One JSON object into one row of cells, in one pass, without a tree.

use super::{DecodeRules, base64, describe};
use crate::limits::JSON_DEPTH_MAX;
use record::{ColumnType, StreamSchema, Value};
use serde::{
    Deserialize,
    de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use std::{borrow::Cow, collections::HashMap, fmt};

/// What a field of the payload means to the stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Target {
    column: Option<u16>,
    time: bool,
    device: bool,
}

/// The fields that a stream wants.
#[derive(Debug)]
pub(super) struct Fields {
    targets: HashMap<Box<str>, Target>,
    types: Vec<ColumnType>,
}

/// A value on its way into a column.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) enum Cell<'a> {
    #[default]
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Cow<'a, str>),
    Bytes(Vec<u8>),
}

impl Cell<'_> {
    pub(super) fn value(&self) -> Value<'_> {
        match self {
            Cell::Null => Value::Null,
            Cell::Bool(v) => Value::Bool(*v),
            Cell::Int(v) => Value::Int(*v),
            Cell::Float(v) => Value::Float(*v),
            Cell::Text(v) => Value::Str(v),
            Cell::Bytes(v) => Value::Bytes(v),
        }
    }
}

/// One object's values.
#[derive(Debug, Default)]
pub(super) struct Row<'a> {
    pub(super) cells: Vec<Cell<'a>>,
    /// The time as it stands in the payload, quotes and all.
    pub(super) time: Option<&'a str>,
    pub(super) device: Option<Cow<'a, str>>,
    pub(super) undeclared: u32,
}

/// What is wrong with an element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    Syntax(String),
    Number(String),
    Depth,
    Shape(&'static str),
    Device,
    Column(u16, &'static str),
}

impl Fault {
    fn from_serde(e: &serde_json::Error) -> Self {
        let text = e.to_string();
        if text.starts_with("number out of range") { Self::Number(text) } else { Self::Syntax(text) }
    }
}

/// The elements of a payload that is a list.
pub(super) fn elements(text: &str) -> Result<Vec<&RawValue>, Fault> {
    if nesting(text) > JSON_DEPTH_MAX {
        return Err(Fault::Depth);
    }
    let all: Vec<&RawValue> = serde_json::from_str(text).map_err(|e| Fault::from_serde(&e))?;
    if all.is_empty() { Err(Fault::Shape("an empty list")) } else { Ok(all) }
}

/// The deepest nesting of brackets outside of texts.
fn nesting(text: &str) -> usize {
    let (mut depth, mut deepest, mut quoted, mut escaped) = (0_usize, 0, false, false);
    for b in text.bytes() {
        match b {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'[' | b'{' if !quoted => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

impl Fields {
    pub(super) fn new(schema: &StreamSchema, rules: &DecodeRules) -> Self {
        let mut targets: HashMap<Box<str>, Target> = HashMap::new();
        for (i, column) in schema.columns().iter().enumerate() {
            targets.entry(column.name.as_str().into()).or_default().column = u16::try_from(i).ok();
        }
        targets.entry(rules.time.as_str().into()).or_default().time = true;
        targets.entry(rules.device.field().into()).or_default().device = true;
        Self { targets, types: schema.columns().iter().map(|c| c.ty).collect() }
    }

    /// Reads one element into `row`; `depth` is what the element itself counts as. `device`: whether the element may
    /// hold the device.
    pub(super) fn read<'a>(
        &self,
        text: &'a str,
        depth: usize,
        device: bool,
        row: &mut Row<'a>,
    ) -> Result<(), Fault> {
        row.cells.clear();
        row.cells.resize(self.types.len(), Cell::Null);
        let mut fault = None;
        let mut de = serde_json::Deserializer::from_str(text);
        let pass = Object { fields: self, row, fault: &mut fault, depth, device };
        let result = de.deserialize_any(pass).and_then(|()| de.end());
        match (fault, result) {
            (Some(fault), _) => Err(fault),
            (None, Err(e)) => Err(Fault::from_serde(&e)),
            (None, Ok(())) => Ok(()),
        }
    }
}

/// Ends the pass; what is wrong stands in the pass's fault.
fn stop<E: de::Error>() -> E {
    E::custom("refused")
}

struct Object<'p, 'a> {
    fields: &'p Fields,
    row: &'p mut Row<'a>,
    fault: &'p mut Option<Fault>,
    depth: usize,
    device: bool,
}

impl Object<'_, '_> {
    /// What a key means in this element.
    fn meaning(&self, target: Target) -> Option<Target> {
        let target = Target { device: target.device && self.device, ..target };
        (target.time || target.device || target.column.is_some()).then_some(target)
    }

    fn refuse<E: de::Error>(self, found: &'static str) -> Result<(), E> {
        *self.fault = Some(Fault::Shape(found));
        Err(stop())
    }
}

impl<'a> Visitor<'a> for Object<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(target) = map.next_key_seed(Key(self.fields))? {
            let Some(target) = target.and_then(|target| self.meaning(target)) else {
                self.row.undeclared += 1;
                map.next_value_seed(Skip { depth: self.depth, fault: self.fault })?;
                continue;
            };
            if target.time {
                // A column may bear the name of the time field: both get the value.
                let raw = map.next_value::<&'a RawValue>()?.get();
                self.row.time = (raw != "null").then_some(raw);
                if let Some(i) = target.column {
                    let seed = Slot { ty: self.fields.types[usize::from(i)], index: i, fault: self.fault };
                    let mut de = serde_json::Deserializer::from_str(raw);
                    let cell = seed.deserialize(&mut de).map_err(de::Error::custom)?;
                    self.row.cells[usize::from(i)] = cell;
                }
                continue;
            }
            match target.column {
                None => self.row.device = map.next_value_seed(Name(self.fault))?,
                Some(i) => {
                    let seed = Slot { ty: self.fields.types[usize::from(i)], index: i, fault: self.fault };
                    let cell = map.next_value_seed(seed)?;
                    if target.device {
                        self.row.device = device_of(&cell);
                    }
                    self.row.cells[usize::from(i)] = cell;
                }
            }
        }
        Ok(())
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<(), E> {
        self.refuse("a boolean")
    }
    fn visit_i64<E: de::Error>(self, _: i64) -> Result<(), E> {
        self.refuse("a number")
    }
    fn visit_u64<E: de::Error>(self, _: u64) -> Result<(), E> {
        self.refuse("a number")
    }
    fn visit_f64<E: de::Error>(self, _: f64) -> Result<(), E> {
        self.refuse("a number")
    }
    fn visit_str<E: de::Error>(self, _: &str) -> Result<(), E> {
        self.refuse("a text")
    }
    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        self.refuse("null")
    }
    fn visit_seq<A: SeqAccess<'a>>(self, _: A) -> Result<(), A::Error> {
        self.refuse("a list")
    }
}

/// A column's cell as a device's name.
fn device_of<'a>(cell: &Cell<'a>) -> Option<Cow<'a, str>> {
    match cell {
        Cell::Text(text) => Some(text.clone()),
        Cell::Int(v) => Some(v.to_string().into()),
        _ => None,
    }
}

/// A key: what it means to the stream, if anything.
struct Key<'p>(&'p Fields);

impl<'a> DeserializeSeed<'a> for Key<'_> {
    type Value = Option<Target>;
    fn deserialize<D: Deserializer<'a>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Option<Target>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_str<E: de::Error>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.targets.get(key).copied())
    }
}

/// The device's name: text or an integer.
struct Name<'p>(&'p mut Option<Fault>);

impl<'a> DeserializeSeed<'a> for Name<'_> {
    type Value = Option<Cow<'a, str>>;
    fn deserialize<D: Deserializer<'a>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Name<'_> {
    type Value = Option<Cow<'a, str>>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a device")
    }
    fn visit_borrowed_str<E: de::Error>(self, v: &'a str) -> Result<Self::Value, E> {
        Ok(Some(v.into()))
    }
    fn visit_str<E: de::Error>(self, v: &str) -> Result<Self::Value, E> {
        Ok(Some(v.to_owned().into()))
    }
    fn visit_i64<E: de::Error>(self, v: i64) -> Result<Self::Value, E> {
        Ok(Some(v.to_string().into()))
    }
    fn visit_u64<E: de::Error>(self, v: u64) -> Result<Self::Value, E> {
        Ok(Some(v.to_string().into()))
    }
    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Self::Value, E> {
        *self.0 = Some(Fault::Device);
        Err(stop())
    }
    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Self::Value, E> {
        *self.0 = Some(Fault::Device);
        Err(stop())
    }
    fn visit_seq<A: SeqAccess<'a>>(self, _: A) -> Result<Self::Value, A::Error> {
        *self.0 = Some(Fault::Device);
        Err(stop())
    }
    fn visit_map<A: MapAccess<'a>>(self, _: A) -> Result<Self::Value, A::Error> {
        *self.0 = Some(Fault::Device);
        Err(stop())
    }
}

/// A declared column's value.
struct Slot<'p> {
    ty: ColumnType,
    index: u16,
    fault: &'p mut Option<Fault>,
}

impl Slot<'_> {
    fn refuse<T, E: de::Error>(self, found: &'static str) -> Result<T, E> {
        *self.fault = Some(Fault::Column(self.index, found));
        Err(stop())
    }

    fn number<'a, E: de::Error>(self, int: Option<i64>, float: f64) -> Result<Cell<'a>, E> {
        match (self.ty, int) {
            (ColumnType::Int64, Some(v)) => Ok(Cell::Int(v)),
            (ColumnType::Float64, _) => Ok(Cell::Float(float)),
            (ColumnType::Int64, None) => self.refuse("a number that is no 64-bit integer"),
            _ => self.refuse("a number"),
        }
    }

    fn text<'a, E: de::Error>(self, v: Cow<'a, str>) -> Result<Cell<'a>, E> {
        match self.ty {
            ColumnType::String => Ok(Cell::Text(v)),
            ColumnType::Bytes => match base64::decode(&v) {
                Some(bytes) => Ok(Cell::Bytes(bytes)),
                None => self.refuse("a text that is not base64"),
            },
            _ => self.refuse("a text"),
        }
    }
}

impl<'a> DeserializeSeed<'a> for Slot<'_> {
    type Value = Cell<'a>;
    fn deserialize<D: Deserializer<'a>>(self, d: D) -> Result<Cell<'a>, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Slot<'_> {
    type Value = Cell<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(describe(self.ty))
    }
    fn visit_bool<E: de::Error>(self, v: bool) -> Result<Cell<'a>, E> {
        if self.ty == ColumnType::Bool { Ok(Cell::Bool(v)) } else { self.refuse("a boolean") }
    }
    fn visit_i64<E: de::Error>(self, v: i64) -> Result<Cell<'a>, E> {
        self.number(Some(v), v as f64)
    }
    fn visit_u64<E: de::Error>(self, v: u64) -> Result<Cell<'a>, E> {
        self.number(i64::try_from(v).ok(), v as f64)
    }
    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Cell<'a>, E> {
        // Some languages write whole numbers as 3.0; up to 2^53 that is exact.
        let whole = v.fract() == 0.0 && v.abs() <= 9_007_199_254_740_992.0;
        self.number(whole.then_some(v as i64), v)
    }
    fn visit_borrowed_str<E: de::Error>(self, v: &'a str) -> Result<Cell<'a>, E> {
        self.text(v.into())
    }
    fn visit_str<E: de::Error>(self, v: &str) -> Result<Cell<'a>, E> {
        self.text(v.to_owned().into())
    }
    fn visit_unit<E: de::Error>(self) -> Result<Cell<'a>, E> {
        Ok(Cell::Null)
    }
    fn visit_seq<A: SeqAccess<'a>>(self, _: A) -> Result<Cell<'a>, A::Error> {
        self.refuse("a list")
    }
    fn visit_map<A: MapAccess<'a>>(self, _: A) -> Result<Cell<'a>, A::Error> {
        self.refuse("an object")
    }
}

/// Steps over a value, with a bound on its depth.
struct Skip<'p> {
    depth: usize,
    fault: &'p mut Option<Fault>,
}

impl<'a> DeserializeSeed<'a> for Skip<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'a>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl Skip<'_> {
    fn below<E: de::Error>(&mut self) -> Result<usize, E> {
        if self.depth < JSON_DEPTH_MAX {
            return Ok(self.depth + 1);
        }
        *self.fault = Some(Fault::Depth);
        Err(stop())
    }
}

impl<'a> Visitor<'a> for Skip<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }
    fn visit_bool<E: de::Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E: de::Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E: de::Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E: de::Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E: de::Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'a>>(mut self, mut seq: A) -> Result<(), A::Error> {
        let depth = self.below()?;
        while seq.next_element_seed(Skip { depth, fault: self.fault })?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'a>>(mut self, mut map: A) -> Result<(), A::Error> {
        let depth = self.below()?;
        while map.next_key::<de::IgnoredAny>()?.is_some() {
            map.next_value_seed(Skip { depth, fault: self.fault })?;
        }
        Ok(())
    }
}

/// The values of a body that is one value, a list, or values one after the other (NDJSON); an error names the place.
pub fn split_body(body: &str) -> Result<Vec<&RawValue>, serde_json::Error> {
    if body.trim_ascii_start().starts_with('[') {
        return serde_json::from_str(body);
    }
    let mut de = serde_json::Deserializer::from_str(body).into_iter::<&RawValue>();
    let mut all = Vec::new();
    for value in &mut de {
        all.push(value?);
    }
    if all.is_empty() {
        // The parser's own words for "nothing there", with a place.
        <&RawValue>::deserialize(&mut serde_json::Deserializer::from_str(body))?;
    }
    Ok(all)
}
