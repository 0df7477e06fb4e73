//! Event times as devices write them.
//!
//! Everything is exact: numbers are read digit by digit into nanoseconds, never through a float. What is finer than a
//! nanosecond is cut off.

use record::EventTime;

/// How a time is written in the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TimeFormat {
    /// Text is RFC 3339; a number is seconds, milliseconds, microseconds or nanoseconds by its size: below 10^11 (the
    /// year 5138 in seconds) it is seconds, below 10^14 milliseconds, below 10^17 microseconds.
    #[default]
    Auto,
    /// `2013-12-02T21:15:00.5Z`, with any offset; a space may stand for the `T`.
    Rfc3339,
    /// Seconds since the epoch, with or without a fraction.
    Seconds,
    /// Milliseconds since the epoch.
    Millis,
    /// Microseconds since the epoch.
    Micros,
    /// Nanoseconds since the epoch.
    Nanos,
}

/// Why a text is not a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeError {
    /// Not in the format that the stream declares.
    Format,
    /// Before 1900 or after 2262.
    Range,
}

/// Nanoseconds in a second.
pub const SECOND_NS: i64 = 1_000_000_000;

impl TimeFormat {
    /// The time that a JSON string or number stands for. `quoted` says that it stood in quotes; a number in quotes is
    /// understood too, some devices write their integers so.
    pub fn parse(self, text: &str, quoted: bool) -> Result<EventTime, TimeError> {
        let ns = match self {
            Self::Rfc3339 if quoted => rfc3339(text)?,
            Self::Rfc3339 => return Err(TimeError::Format),
            Self::Auto if quoted => match rfc3339(text) {
                Err(TimeError::Format) => decimal(text, None)?,
                other => other?,
            },
            Self::Auto => decimal(text, None)?,
            Self::Seconds => decimal(text, Some(9))?,
            Self::Millis => decimal(text, Some(6))?,
            Self::Micros => decimal(text, Some(3))?,
            Self::Nanos => decimal(text, Some(0))?,
        };
        EventTime::from_ns(ns).map_err(|_| TimeError::Range)
    }
}

/// A JSON number times a power of ten, as nanoseconds; without a power it is chosen by the number's size.
fn decimal(text: &str, power: Option<i32>) -> Result<i128, TimeError> {
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (mantissa, exponent) = match rest.find(['e', 'E']) {
        Some(at) => (&rest[..at], rest[at + 1..].parse::<i32>().map_err(|_| TimeError::Format)?),
        None => (rest, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return Err(TimeError::Format);
    }
    // The value is `number * 10^-shift`. More digits than these cannot change a nanosecond within the range.
    let (mut number, mut shift) = (0_i128, -i64::from(exponent));
    for (i, b) in whole.bytes().chain(fraction.bytes()).enumerate() {
        let in_fraction = i >= whole.len();
        if number > i128::MAX / 100 {
            shift -= i64::from(!in_fraction);
            continue;
        }
        number = number * 10 + i128::from(b - b'0');
        shift += i64::from(in_fraction);
    }
    let power = match power {
        Some(power) => power,
        None => match scaled(number, -shift)? {
            0..100_000_000_000 => 9,
            100_000_000_000..100_000_000_000_000 => 6,
            100_000_000_000_000..100_000_000_000_000_000 => 3,
            _ => 0,
        },
    };
    let ns = scaled(number, i64::from(power) - shift)?;
    Ok(if negative { -ns } else { ns })
}

/// `number * 10^by`, cut towards zero.
fn scaled(number: i128, by: i64) -> Result<i128, TimeError> {
    if number == 0 {
        return Ok(0);
    }
    let power = |n: i64| u32::try_from(n).ok().and_then(|n| 10_i128.checked_pow(n));
    if by >= 0 {
        power(by).and_then(|p| number.checked_mul(p)).ok_or(TimeError::Range)
    } else {
        Ok(power(-by).map_or(0, |p| number / p))
    }
}

/// RFC 3339, section 5.6, with a space allowed for the `T`.
fn rfc3339(text: &str) -> Result<i128, TimeError> {
    let b = text.as_bytes();
    if b.len() < 20 || !text.is_ascii() {
        return Err(TimeError::Format);
    }
    let number = |from: usize, to: usize| -> Result<i64, TimeError> {
        b[from..to].iter().try_fold(0_i64, |n, c| match c {
            b'0'..=b'9' => Ok(n * 10 + i64::from(c - b'0')),
            _ => Err(TimeError::Format),
        })
    };
    let punctuation: [(usize, &[u8]); 5] = [(4, b"-"), (7, b"-"), (10, b"Tt "), (13, b":"), (16, b":")];
    if punctuation.iter().any(|(at, allowed)| !allowed.contains(&b[*at])) {
        return Err(TimeError::Format);
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    // 60 is a leap second; it counts as the first second of the next minute.
    if !(1..=12).contains(&month)
        || day < 1
        || day > days_in(year, month)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return Err(TimeError::Format);
    }
    let mut at = 19;
    let mut fraction = 0_i128;
    if b[at] == b'.' {
        let digits = b[at + 1..].iter().take_while(|c| c.is_ascii_digit()).count();
        if digits == 0 {
            return Err(TimeError::Format);
        }
        for i in 0..9 {
            let digit = if i < digits { b[at + 1 + i] - b'0' } else { 0 };
            fraction = fraction * 10 + i128::from(digit);
        }
        at += 1 + digits;
    }
    let offset = match b.get(at) {
        Some(b'Z' | b'z') if b.len() == at + 1 => 0,
        Some(sign @ (b'+' | b'-')) if b.len() == at + 6 && b[at + 3] == b':' => {
            let (hours, minutes) = (number(at + 1, at + 3)?, number(at + 4, at + 6)?);
            if hours > 23 || minutes > 59 {
                return Err(TimeError::Format);
            }
            (hours * 3600 + minutes * 60) * if *sign == b'-' { -1 } else { 1 }
        }
        _ => return Err(TimeError::Format),
    };
    let seconds = days_from_epoch(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
    Ok(i128::from(seconds) * i128::from(SECOND_NS) + fraction)
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar (Hinnant, "chrono-compatible low-level date algorithms").
fn days_from_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use time::{OffsetDateTime, format_description::well_known::Rfc3339};

    fn ns(format: TimeFormat, text: &str, quoted: bool) -> Result<i64, TimeError> {
        format.parse(text, quoted).map(EventTime::ns)
    }

    #[test]
    fn the_same_moment_in_every_format() {
        use TimeFormat::{Auto, Micros, Millis, Nanos, Rfc3339, Seconds};
        let expected = Ok(1_386_018_900_250_000_000);
        for (format, text, quoted) in [
            (Auto, "2013-12-02T21:15:00.25Z", true),
            (Auto, "2013-12-02 23:15:00.250+02:00", true),
            (Rfc3339, "2013-12-02t16:15:00.250000000999-05:00", true),
            (Auto, "1386018900.25", false),
            (Auto, "1386018900250", false),
            (Auto, "1386018900250000", false),
            (Auto, "1386018900250000000", false),
            (Auto, "1386018900250", true),
            (Auto, "1.38601890025e9", false),
            (Seconds, "1386018900.250", false),
            (Millis, "1386018900250", false),
            (Micros, "1386018900250000", false),
            (Nanos, "1386018900250000000", false),
        ] {
            assert_eq!(ns(format, text, quoted), expected, "{format:?} {text}");
        }
    }

    #[test]
    fn no_times() {
        for text in [
            "",
            "yesterday",
            "2013-12-02",
            "2013-12-02T21:15:00",
            "2013-13-02T21:15:00Z",
            "2013-02-29T00:00:00Z",
        ] {
            assert_eq!(ns(TimeFormat::Auto, text, true), Err(TimeError::Format), "{text}");
        }
        for text in ["NaN", "1e", "--1", "1.2.3", "0x10", "2013-12-02T21:15:00Z"] {
            assert_eq!(ns(TimeFormat::Seconds, text, false), Err(TimeError::Format), "{text}");
        }
    }

    #[test]
    fn out_of_range() {
        for text in
            ["1899-12-31T23:59:59Z", "2262-04-12T00:00:00Z", "9999-12-31T23:59:59Z", "0000-01-01T00:00:00Z"]
        {
            assert_eq!(ns(TimeFormat::Auto, text, true), Err(TimeError::Range), "{text}");
        }
        assert_eq!(ns(TimeFormat::Seconds, "-2208988801", false), Err(TimeError::Range));
        assert_eq!(ns(TimeFormat::Auto, "1e400", false), Err(TimeError::Range));
        assert_eq!(ns(TimeFormat::Nanos, &"9".repeat(500), false), Err(TimeError::Range));
        assert_eq!(ns(TimeFormat::Seconds, "1e-400", false), Ok(0));
        assert_eq!(ns(TimeFormat::Auto, "1900-01-01T00:00:00Z", true), Ok(EventTime::MIN.ns()));
    }

    proptest! {
        #[test]
        fn agrees_with_the_time_crate(at in EventTime::MIN.ns()..i64::MAX) {
            let text = OffsetDateTime::from_unix_timestamp_nanos(at.into()).unwrap().format(&Rfc3339).unwrap();
            prop_assert_eq!(ns(TimeFormat::Auto, &text, true), Ok(at));
            prop_assert_eq!(ns(TimeFormat::Nanos, &at.to_string(), false), Ok(at));
        }

        #[test]
        fn any_text_gives_an_answer(text in ".{0,40}", quoted: bool) {
            let _ = ns(TimeFormat::Auto, &text, quoted);
            let _ = ns(TimeFormat::Seconds, &text, quoted);
        }
    }
}
