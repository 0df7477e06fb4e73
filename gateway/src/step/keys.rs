//! Every key of the gateway's state image: layout, value, lifetime. Numbers in keys are big-endian, so that the order
//! of bytes is theirs; numbers in values are little-endian.
//!
//! | key | value | lives |
//! | --- | --- | --- |
//! | `c` lane | `u64` input frame consumed through | as long as the folder |
//! | `q` stream | `u64` last seq, 32 bytes chain hash | as long as the folder |
//! | `n` stream | 64 bytes counts | as long as the folder |
//! | `h` stream | columns, see [`columns_value`] | as long as the folder |
//! | `l` stream 0 `u64` ordinal | a loss entry | until pushed out by newer ones |
//! | `k` stream 0 key | `i64` newest event time, `i64` closed through | until the key falls silent and its room is needed |
//! | `w` stream | `i64` length of its windows, then `name:type,` of the key's columns | as long as the folder |
//! | `e` stream | `i64` windows of forgotten keys are closed through | as long as the folder |
//! | `g` stream 0 `i64` window start, key | the module's state of the window | until the window closes |
//! | `d` stream 0 `u64` number | `i64` newest receive time, then 24 bytes a dedup key | until it leaves the dedup window |

use record::{Column, Counts, Digest, Seq, StreamName, StreamSchema};

fn named(tag: u8, stream: &StreamName) -> Vec<u8> {
    let mut key = Vec::with_capacity(stream.as_str().len() + 32);
    key.push(tag);
    key.extend_from_slice(stream.as_str().as_bytes());
    key
}

fn prefix(tag: u8, stream: &StreamName) -> Vec<u8> {
    let mut key = named(tag, stream);
    key.push(0);
    key
}

/// Where a lane's consumed position stands.
pub fn consumed(lane: &StreamName) -> Vec<u8> {
    named(b'c', lane)
}

/// Where a stream's last seq and chain hash stand.
pub fn chain(stream: &StreamName) -> Vec<u8> {
    named(b'q', stream)
}

/// Where a stream's counts stand.
pub fn counts(stream: &StreamName) -> Vec<u8> {
    named(b'n', stream)
}

/// Where a stream's columns stand.
pub fn columns(stream: &StreamName) -> Vec<u8> {
    named(b'h', stream)
}

/// Where a stream's losses stand.
pub fn losses(stream: &StreamName) -> Vec<u8> {
    prefix(b'l', stream)
}

/// One loss.
pub fn loss(stream: &StreamName, ordinal: u64) -> Vec<u8> {
    let mut key = losses(stream);
    key.extend_from_slice(&ordinal.to_be_bytes());
    key
}

/// Where the keys of a windowed stream stand.
pub fn window_keys(stream: &StreamName) -> Vec<u8> {
    prefix(b'k', stream)
}

/// One key of a windowed stream.
pub fn window_key(stream: &StreamName, key: &[u8]) -> Vec<u8> {
    let mut out = window_keys(stream);
    out.extend_from_slice(key);
    out
}

/// Where the bound stands up to which windows of forgotten keys are closed.
pub fn forgotten_through(stream: &StreamName) -> Vec<u8> {
    named(b'e', stream)
}

/// Where the shape of a stream's windows stands.
pub fn window_shape(stream: &StreamName) -> Vec<u8> {
    named(b'w', stream)
}

/// Where the open windows of a stream stand.
pub fn groups(stream: &StreamName) -> Vec<u8> {
    prefix(b'g', stream)
}

/// One open window.
pub fn group(stream: &StreamName, start_ns: i64, key: &[u8]) -> Vec<u8> {
    let mut out = groups(stream);
    out.extend_from_slice(&ordered(start_ns).to_be_bytes());
    out.extend_from_slice(key);
    out
}

/// Whose state a key is of.
pub fn stream_of(key: &[u8]) -> Option<StreamName> {
    let name = key.get(1..)?.split(|b| *b == 0).next()?;
    StreamName::new(std::str::from_utf8(name).ok()?).ok()
}

/// Whether a key of the state is that of an open window.
pub fn is_group(key: &[u8]) -> bool {
    key.first() == Some(&b'g')
}

/// The window start and key behind [`group`], given what follows the prefix.
pub fn group_parts(rest: &[u8]) -> Option<(i64, &[u8])> {
    let (start, key) = rest.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*start).wrapping_sub(1 << 63).cast_signed(), key))
}

/// Where the dedup keys of a stream stand.
pub fn dedup(stream: &StreamName) -> Vec<u8> {
    prefix(b'd', stream)
}

/// One chunk of dedup keys.
pub fn dedup_chunk(stream: &StreamName, number: u64) -> Vec<u8> {
    let mut key = dedup(stream);
    key.extend_from_slice(&number.to_be_bytes());
    key
}

/// Signed numbers in the order of unsigned ones.
fn ordered(n: i64) -> u64 {
    n.cast_unsigned().wrapping_add(1 << 63)
}

/// Last seq and chain hash.
pub fn chain_value(last: Seq, hash: &Digest) -> Vec<u8> {
    [&last.0.to_le_bytes()[..], &hash.0].concat()
}

/// Reads [`chain_value`].
pub fn read_chain(value: &[u8]) -> Option<(Seq, Digest)> {
    let (last, hash) = value.split_first_chunk::<8>()?;
    Some((Seq(u64::from_le_bytes(*last)), Digest(hash.try_into().ok()?)))
}

/// A number.
pub fn read_u64(value: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(value.try_into().ok()?))
}

/// Counts, zero when there are none.
pub fn read_counts(value: Option<&[u8]>) -> Counts {
    value.and_then(Counts::from_bytes).unwrap_or_default()
}

/// Columns as `name:type,` each.
pub fn columns_value(schema: &StreamSchema) -> Vec<u8> {
    schema.columns().iter().map(|c| format!("{}:{},", c.name, c.ty)).collect::<String>().into_bytes()
}

/// Reads [`columns_value`].
pub fn read_columns(value: &[u8]) -> Option<StreamSchema> {
    let text = std::str::from_utf8(value).ok()?;
    let columns = text.split_terminator(',').map(|c| {
        let (name, ty) = c.split_once(':')?;
        Some(Column { name: name.to_owned(), ty: ty.parse().ok()? })
    });
    StreamSchema::new(columns.collect::<Option<Vec<_>>>()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use record::ColumnType;

    #[test]
    fn one_stream_is_no_prefix_of_another() {
        let (a, b) = (StreamName::new("m").unwrap(), StreamName::new("m1").unwrap());
        assert!(!groups(&b).starts_with(&groups(&a)));
        assert!(!dedup(&b).starts_with(&dedup(&a)));
        assert!(!losses(&b).starts_with(&losses(&a)));
        assert!(!window_keys(&b).starts_with(&window_keys(&a)));
    }

    proptest! {
        #[test]
        fn groups_round_trip_in_order(a: i64, b: i64, key in proptest::collection::vec(any::<u8>(), 0..20)) {
            let stream = StreamName::new("m").unwrap();
            let n = groups(&stream).len();
            let (ka, kb) = (group(&stream, a, &key), group(&stream, b, &key));
            prop_assert_eq!(group_parts(&ka[n..]), Some((a, &key[..])));
            prop_assert_eq!(ka.cmp(&kb), a.cmp(&b));
        }

        #[test]
        fn values_round_trip(last: u64, hash: [u8; 32], types in proptest::collection::vec(0usize..5, 0..9)) {
            prop_assert_eq!(read_chain(&chain_value(Seq(last), &Digest(hash))), Some((Seq(last), Digest(hash))));
            let columns = types.iter().enumerate().map(|(i, t)| Column { name: format!("c{i}"), ty: ColumnType::ALL[*t] });
            let schema = StreamSchema::new(columns.collect()).unwrap();
            prop_assert_eq!(read_columns(&columns_value(&schema)), Some(schema));
        }
    }
}
