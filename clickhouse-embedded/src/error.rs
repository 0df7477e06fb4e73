//! Failures as ClickHouse tells them: a number that clients branch on, and a text.

use std::fmt;

/// Codes that this server gives on its own account.
pub(crate) mod code {
    pub(crate) const BAD_ARGUMENTS: u32 = 36;
    pub(crate) const SYNTAX_ERROR: u32 = 62;
    pub(crate) const CANNOT_READ_ALL_DATA: u32 = 33;
    pub(crate) const CHECKSUM_DOESNT_MATCH: u32 = 40;
    pub(crate) const UNKNOWN_SETTING: u32 = 115;
    pub(crate) const READONLY: u32 = 164;
    pub(crate) const UNKNOWN_COMPRESSION: u32 = 89;
    pub(crate) const TOO_MANY_REQUESTS: u32 = 202;
    pub(crate) const TOO_LARGE: u32 = 307;
    pub(crate) const NOT_IMPLEMENTED: u32 = 48;
    pub(crate) const ACCESS_DENIED: u32 = 497;
    pub(crate) const AUTHENTICATION_FAILED: u32 = 516;
    pub(crate) const ENGINE: u32 = 1002;
}

/// One failure of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The number in `X-ClickHouse-Exception-Code`.
    pub(crate) code: u32,
    /// The text, beginning with `Code: N. DB::Exception:`.
    pub(crate) text: String,
}

impl Failure {
    /// A failure found here, not in the engine.
    pub(crate) fn new(code: u32, text: impl fmt::Display) -> Self {
        Self { code, text: format!("Code: {code}. DB::Exception: {text}") }
    }

    /// Reads the code out of the engine's message.
    pub(crate) fn from_engine(message: &str) -> Self {
        let code = message
            .strip_prefix("Code: ")
            .and_then(|rest| rest.split('.').next())
            .and_then(|digits| digits.parse().ok());
        match code {
            Some(code) => Self { code, text: message.trim_end().to_owned() },
            None => Self::new(code::ENGINE, message.trim_end()),
        }
    }

    /// The HTTP status that a ClickHouse server gives with this code.
    pub(crate) fn status(&self) -> u16 {
        match self.code {
            code::AUTHENTICATION_FAILED | 192 | 193 | 194 => 403,
            code::ACCESS_DENIED | code::READONLY | 291 => 403,
            60 | 81 | 46 => 404,
            code::TOO_LARGE => 413,
            159 => 408,
            code::TOO_MANY_REQUESTS | 241 => 503,
            code::BAD_ARGUMENTS | code::SYNTAX_ERROR | code::UNKNOWN_SETTING | code::NOT_IMPLEMENTED => 400,
            code::CANNOT_READ_ALL_DATA | code::CHECKSUM_DOESNT_MATCH | code::UNKNOWN_COMPRESSION => 400,
            6 | 16 | 20 | 26 | 27 | 38 | 41 | 42 | 43 | 44 | 47 | 50 | 53 | 57 | 69 | 70 | 72 | 117 | 456
            | 457 => 400,
            _ => 500,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engines_code_is_kept() {
        let f = Failure::from_engine("Code: 60. DB::Exception: no such table. (UNKNOWN_TABLE)\n");
        assert_eq!((f.code, f.status()), (60, 404));
        assert!(f.text.ends_with("(UNKNOWN_TABLE)"));
        assert_eq!(Failure::from_engine("odd").text, "Code: 1002. DB::Exception: odd");
    }
}
