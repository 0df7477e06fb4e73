//! Spans of time as people write them in rules: `10s`, `5m`, `1h30m`, `5 min`, `250ms`.

/// Nanoseconds, 0 or more; the error says what is wrong.
pub(crate) fn parse(text: &str) -> Result<i64, String> {
    let bad = || format!("{text:?} is not a duration like 10s, 5m or 1h30m");
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(bad());
    }
    let mut total: i64 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let number: i64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = rest[digits..].trim_start();
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let unit = unit_ns(&rest[..letters]).ok_or_else(bad)?;
        rest = rest[letters..].trim_start();
        let part = number.checked_mul(unit).ok_or_else(|| format!("{text:?} is too long"))?;
        total = total.checked_add(part).ok_or_else(|| format!("{text:?} is too long"))?;
    }
    Ok(total)
}

fn unit_ns(unit: &str) -> Option<i64> {
    const SECOND: i64 = 1_000_000_000;
    Some(match unit {
        "ms" => SECOND / 1_000,
        "s" => SECOND,
        "m" | "min" => 60 * SECOND,
        "h" => 3_600 * SECOND,
        "d" => 86_400 * SECOND,
        "w" => 7 * 86_400 * SECOND,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn durations() {
        for (text, ns) in [
            ("0", 0),
            ("10s", 10_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("5 min", 300_000_000_000),
            ("250ms", 250_000_000),
        ] {
            assert_eq!(parse(text), Ok(ns), "{text}");
        }
        for bad in ["", "10", "s", "-1s", "1.5h", "1y", "99999999999w", "1s x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
