//! The nearest known name to an unknown one.

use std::collections::BTreeSet;

/// The known name with the smallest edit distance, if it is near enough to be a slip of the fingers.
pub(super) fn nearest<'a>(name: &str, known: &'a BTreeSet<String>) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).max(2);
    known
        .iter()
        .map(|candidate| (distance(name, candidate), candidate.as_str()))
        .filter(|(distance, candidate)| *distance <= limit && *distance < candidate.chars().count())
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance; an underscore for a hyphen costs nothing, since that is the most common slip.
fn distance(a: &str, b: &str) -> usize {
    let fold = |c: char| if c == '_' { '-' } else { c.to_ascii_lowercase() };
    let b: Vec<char> = b.chars().map(fold).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().map(fold).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_slips_and_not_strangers() {
        let known: BTreeSet<String> = ["data-dir", "admin", "id", "commit-interval"].map(String::from).into();
        assert_eq!(nearest("data_dir", &known), Some("data-dir"));
        assert_eq!(nearest("adnim", &known), Some("admin"));
        assert_eq!(nearest("commit-intervall", &known), Some("commit-interval"));
        assert_eq!(nearest("zebra", &known), None);
        assert_eq!(nearest("xy", &known), None);
    }
}
