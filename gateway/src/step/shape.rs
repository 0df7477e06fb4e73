//! The shape of a stream's windows as it is kept beside them: their length and their key. Saved keys and windows are
//! understood only by whoever knows it, and the configuration may have changed since.

use super::cells::{self, Pick};
use record::{StreamSchema, Value, schema::DEVICE, schema::TIME};

/// Length and key of a stream's windows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) every_ns: i64,
    /// `name:type,` of each column of the key, in its order.
    pub(super) key: String,
}

impl Shape {
    pub(super) fn new(every_ns: i64, picks: &[Pick], input: &StreamSchema) -> Self {
        let column = |pick: &Pick| match pick {
            Pick::Time => format!("{TIME}:,"),
            Pick::Device => format!("{DEVICE}:,"),
            Pick::Column(i, ty) => format!("{}:{ty},", input.columns()[*i].name),
        };
        Self { every_ns, key: picks.iter().map(column).collect() }
    }

    /// As it stands in the state.
    pub(super) fn value(&self) -> Vec<u8> {
        [&self.every_ns.to_le_bytes()[..], self.key.as_bytes()].concat()
    }

    /// Reads [`Shape::value`].
    pub(super) fn read(value: &[u8]) -> Option<Self> {
        let (every, key) = value.split_first_chunk::<8>()?;
        Some(Self { every_ns: i64::from_le_bytes(*every), key: std::str::from_utf8(key).ok()?.to_owned() })
    }
}

/// Whether the bytes of a saved key can be of these columns.
pub(super) fn fits(key: &[u8], picks: &[Pick]) -> bool {
    use record::ColumnType as T;
    let fits = |(value, pick): (&Value<'_>, &Pick)| {
        matches!(
            (value, pick),
            (Value::Str(_), Pick::Device | Pick::Column(_, T::String))
                | (Value::Int(_), Pick::Time | Pick::Column(_, T::Int64))
                | (Value::Bool(_), Pick::Column(_, T::Bool))
                | (Value::Float(_), Pick::Column(_, T::Float64))
                | (Value::Bytes(_), Pick::Column(_, T::Bytes))
                | (Value::Null, Pick::Column(..))
        )
    };
    cells::read(key).is_some_and(|values| values.len() == picks.len() && values.iter().zip(picks).all(fits))
}
