//! Sizes and durations as people write them.

use std::time::Duration;

const SIZES: &[(&str, u64)] = &[
    ("B", 1),
    ("kB", 1000),
    ("KB", 1000),
    ("MB", 1000 * 1000),
    ("GB", 1000 * 1000 * 1000),
    ("TB", 1000 * 1000 * 1000 * 1000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

const TIMES: &[(&str, u64)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("min", 60 * 1_000_000_000),
    ("h", 3_600 * 1_000_000_000),
    ("d", 86_400 * 1_000_000_000),
];

/// Bytes of a size like `2 GiB`, `64KiB`, `1.5 MB` or `512 B`. The unit must be there.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    parse(text, SIZES).map_err(|_| format!("`{text}` is not a size like \"64 KiB\" or \"2 GiB\""))
}

/// A duration like `5 ms`, `30s`, `1 min`, `1 h` or `7 d`. The unit must be there.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    parse(text, TIMES)
        .map(Duration::from_nanos)
        .map_err(|_| format!("`{text}` is not a duration like \"5 ms\", \"30 s\" or \"1 h\""))
}

/// A size in the largest unit that shows it without loss of meaning: `2 GiB`, `1.5 MiB`, `17 B`.
pub fn show_bytes(bytes: u64) -> String {
    for (unit, size) in [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= size {
            let value = format!("{:.2}", bytes as f64 / size as f64);
            return format!("{} {unit}", value.trim_end_matches('0').trim_end_matches('.'));
        }
    }
    format!("{bytes} B")
}

/// A duration in the largest unit that divides it: `5 ms`, `90 s`, `1 h`.
pub fn show_duration(duration: Duration) -> String {
    let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let (unit, size) = TIMES
        .iter()
        .rfind(|(unit, size)| *unit != "µs" && ns >= *size && ns % size == 0)
        .copied()
        .unwrap_or(("ns", 1));
    format!("{} {unit}", ns / size)
}

fn parse(text: &str, units: &[(&str, u64)]) -> Result<u64, ()> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(())?;
    let (number, unit) = (&text[..end], text[end..].trim_start());
    let size = units.iter().find(|(name, _)| *name == unit).ok_or(())?.1;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(size).ok_or(());
    }
    let value = number.parse::<f64>().map_err(|_| ())? * size as f64;
    // Above 2^53 a float no longer names one integer; nobody writes fractions of that.
    if value.is_finite() && value < 9.0e15 { Ok(value.round() as u64) } else { Err(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_people_write() {
        assert_eq!(parse_bytes("2 GiB"), Ok(2 << 30));
        assert_eq!(parse_bytes("64KiB"), Ok(64 << 10));
        assert_eq!(parse_bytes("1.5 MB"), Ok(1_500_000));
        assert_eq!(parse_duration("5 ms"), Ok(Duration::from_millis(5)));
        assert_eq!(parse_duration("1 h"), Ok(Duration::from_secs(3600)));
        assert_eq!(parse_duration("0.5 s"), Ok(Duration::from_millis(500)));
        for bad in ["", "5", "GiB", "-1 s", "5 parsecs", "1e9 s", "99999999999999999999 B", "1..5 s"] {
            assert!(parse_bytes(bad).is_err() && parse_duration(bad).is_err(), "{bad}");
        }
        assert_eq!(show_duration(Duration::from_secs(90)), "90 s");
        assert_eq!(show_bytes(3 << 29), "1.5 GiB");
    }

    proptest! {
        #[test]
        fn a_shown_duration_reads_back(ns in 0u64..u64::MAX / 2) {
            let duration = Duration::from_nanos(ns);
            prop_assert_eq!(parse_duration(&show_duration(duration)), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in ".{0,24}") {
            let _ = (parse_bytes(&text), parse_duration(&text));
        }
    }
}
