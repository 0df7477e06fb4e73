//! A type for every id and position, so that one is never taken for another.

use crate::{RecordError, limits::NAME_BYTES_MAX};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

fn check(kind: &'static str, name: &str, extra: &[char]) -> Result<(), RecordError> {
    let bad = |why| Err(RecordError::Name { kind, name: name.chars().take(80).collect(), why });
    if name.is_empty() {
        return bad("is empty");
    }
    if name.len() > NAME_BYTES_MAX {
        return bad("is longer than 64 bytes");
    }
    if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        return bad("must begin with a letter");
    }
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || extra.contains(&c)) {
        return bad("may hold only ASCII letters, digits, '_', '-' and '.'");
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $ty:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $ty(std::sync::Arc<str>);

        impl $ty {
            /// The name, checked: 1 to 64 bytes of ASCII letters, digits, `_`, `-`, `.`, beginning with a letter or `_`.
            pub fn new(name: &str) -> Result<Self, RecordError> {
                check($kind, name, &['-', '.'])?;
                Ok(Self(name.into()))
            }
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl FromStr for $ty {
            type Err = RecordError;
            fn from_str(s: &str) -> Result<Self, RecordError> {
                Self::new(s)
            }
        }
        impl TryFrom<String> for $ty {
            type Error = RecordError;
            fn try_from(s: String) -> Result<Self, RecordError> {
                Self::new(&s)
            }
        }
        impl From<$ty> for String {
            fn from(n: $ty) -> String {
                n.0.as_ref().to_owned()
            }
        }
        impl AsRef<str> for $ty {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// A gateway's id; equals the common name of its certificate.
    GatewayId, "gateway"
);
name!(
    /// A source of events on a gateway (`[source.NAME]`).
    SourceName, "source"
);
name!(
    /// A stream of events (`[stream.NAME]`); also the name of its table.
    StreamName, "stream"
);

/// Checks the name of a column: like other names, without `-` and `.`, so that it needs no quoting in SQL.
pub fn check_column_name(name: &str) -> Result<(), RecordError> {
    check("column", name, &[])
}

/// Which life of a gateway's data folder a sequence belongs to: random, drawn when the folder is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The number of a row in its stream's output: 1, 2, 3… without gaps, per gateway, stream and incarnation. 0 = none yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// The seq after this one.
    pub const fn next(self) -> Seq {
        Seq(self.0 + 1)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A SHA-256 digest.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Digest of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(bytes).into())
    }
    /// 64 hexadecimal digits.
    pub fn to_hex(self) -> String {
        hex::encode(self.0)
    }
    /// Reads 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Result<Self, RecordError> {
        let mut d = [0; 32];
        hex::decode_to_slice(text, &mut d).map_err(|_| {
            RecordError::Shape(format!("{:?} is not 64 hexadecimal digits", text.get(..80).unwrap_or(text)))
        })?;
        Ok(Self(d))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

/// `name@version` of a module.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModuleRef {
    /// Name, under the rules of other names.
    pub name: String,
    /// Version, e.g. `0.1.0`.
    pub version: String,
}

impl FromStr for ModuleRef {
    type Err = RecordError;
    fn from_str(s: &str) -> Result<Self, RecordError> {
        let bad = |why| RecordError::Name { kind: "module", name: s.chars().take(80).collect(), why };
        let (name, version) = s.split_once('@').ok_or_else(|| bad("must be written name@version"))?;
        check("module", name, &['-', '.'])?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+');
        if version.is_empty() || version.len() > NAME_BYTES_MAX || !version.chars().all(plain) {
            return Err(bad("has a version that is not digits, letters, '.', '-' or '+'"));
        }
        Ok(Self { name: name.into(), version: version.into() })
    }
}

impl TryFrom<String> for ModuleRef {
    type Error = RecordError;
    fn try_from(s: String) -> Result<Self, RecordError> {
        s.parse()
    }
}

impl From<ModuleRef> for String {
    fn from(m: ModuleRef) -> String {
        m.to_string()
    }
}

impl fmt::Display for ModuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!(StreamName::new("machine-1m").is_ok());
        for bad in ["", "1x", "a b", "ä", "a/b", &"x".repeat(65), "; drop table"] {
            assert!(StreamName::new(bad).is_err(), "{bad:?}");
        }
        assert!(check_column_name("temperature").is_ok());
        assert!(check_column_name("a-b").is_err());
    }

    #[test]
    fn module_refs() {
        let m: ModuleRef = "threshold@0.1.0".parse().expect("valid");
        assert_eq!(m.to_string(), "threshold@0.1.0");
        for bad in ["threshold", "@1", "a@", "a@1/2", "../a@1"] {
            assert!(bad.parse::<ModuleRef>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn digests_round_trip() {
        let d = Digest::of(b"x");
        assert_eq!(Digest::from_hex(&d.to_hex()), Ok(d));
        assert!(Digest::from_hex("zz").is_err());
    }
}
