use crate::RecordError;
use serde::{Deserialize, Serialize};

/// Event time: nanoseconds since the Unix epoch, UTC, between 1900-01-01 and 2262-04-11 (what `DateTime64(9)` holds).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventTime(i64);

impl EventTime {
    /// 1900-01-01T00:00:00Z.
    pub const MIN: EventTime = EventTime(-2_208_988_800_000_000_000);
    /// The last nanosecond an `i64` can count, in the year 2262.
    pub const MAX: EventTime = EventTime(i64::MAX);

    /// From nanoseconds since the epoch; refused outside the range.
    pub fn from_ns(ns: i128) -> Result<Self, RecordError> {
        match i64::try_from(ns) {
            Ok(v) if v >= Self::MIN.0 => Ok(Self(v)),
            _ => Err(RecordError::TimeRange(ns)),
        }
    }

    /// Nanoseconds since the Unix epoch.
    pub const fn ns(self) -> i64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_is_that_of_datetime64() {
        assert_eq!(EventTime::from_ns(0).map(EventTime::ns), Ok(0));
        assert_eq!(EventTime::from_ns(EventTime::MIN.0.into()), Ok(EventTime::MIN));
        assert!(EventTime::from_ns(i128::from(EventTime::MIN.0) - 1).is_err());
        assert!(EventTime::from_ns(i128::from(i64::MAX) + 1).is_err());
    }
}
