//! Why ClickHouse did not do what it was asked.

use std::time::Duration;

/// See the module. Messages of a server can be long: they are cut.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClickhouseError {
    /// The embedded server is not up.
    #[error("the embedded clickhouse server is not running")]
    NotRunning,
    /// No answer: refused, broken off or not understood on the way.
    #[error("clickhouse is not reachable: {0}")]
    Unreachable(String),
    /// No answer in time.
    #[error("clickhouse gave no answer within {0:?}")]
    Timeout(Duration),
    /// An answer that says no.
    #[error("clickhouse refused: {text}")]
    Refused {
        /// ClickHouse's number of the error; 0 when it gave none.
        code: u32,
        /// Its text.
        text: String,
    },
    /// An answer that is not what was asked for.
    #[error("clickhouse gave an unexpected answer: {0}")]
    Unexpected(String),
}

const TEXT_CHARS_MAX: usize = 600;

impl ClickhouseError {
    /// Whether the server has answered and so is no longer at work on the request.
    pub fn ended(&self) -> bool {
        matches!(self, Self::NotRunning | Self::Refused { .. } | Self::Unexpected(_))
    }

    /// Whether the table or database is not there.
    pub fn is_unknown_table(&self) -> bool {
        matches!(self, Self::Refused { code: 60 | 81, .. })
    }

    /// One word for a metric.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotRunning => "not_running",
            Self::Unreachable(_) => "unreachable",
            Self::Timeout(_) => "timeout",
            Self::Refused { .. } => "refused",
            Self::Unexpected(_) => "unexpected",
        }
    }
}

impl From<clickhouse::error::Error> for ClickhouseError {
    fn from(error: clickhouse::error::Error) -> Self {
        use clickhouse::error::Error;
        let cut = |text: String| text.chars().take(TEXT_CHARS_MAX).collect::<String>();
        match error {
            Error::BadResponse(text) => {
                let code = text
                    .strip_prefix("Code: ")
                    .and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next())
                    .and_then(|digits| digits.parse().ok());
                Self::Refused { code: code.unwrap_or_default(), text: cut(text) }
            }
            Error::TimedOut => Self::Timeout(Duration::ZERO),
            Error::Network(source) => {
                let mut text = source.to_string();
                let mut cause = source.source();
                while let Some(next) = cause {
                    text = format!("{text}: {next}");
                    cause = next.source();
                }
                Self::Unreachable(cut(text))
            }
            other => Self::Unexpected(cut(other.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_read() {
        let text = "Code: 60. DB::Exception: Table x does not exist. (UNKNOWN_TABLE)";
        let e = ClickhouseError::from(clickhouse::error::Error::BadResponse(text.into()));
        assert!(e.is_unknown_table() && e.ended());
        assert!(!ClickhouseError::Unreachable("reset".into()).ended());
    }
}
