//! The documentation names the metrics that the programs export, all of them and no others; and no link in it leads
//! nowhere.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Sources that register metrics.
const SOURCES: &[&str] = &["gateway/src", "central/src", "crates"];

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The Rust files below a folder that go into a program: those of a `src` folder, without tests in files of their own.
fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !matches!(name.as_str(), "target" | "tests" | "benches" | "examples") {
                rust_files(&path, found);
            }
        } else if name.ends_with(".rs") && name != "tests.rs" {
            found.push(path);
        }
    }
}

/// Whether a text is a metric's name and nothing else.
fn is_metric(text: &str) -> bool {
    text.strip_prefix("tidegate_").is_some_and(|rest| {
        !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    })
}

/// The metrics that programs register: names in quotes, outside of the unit tests at the end of a file.
fn registered() -> BTreeSet<String> {
    let mut files = Vec::new();
    for folder in SOURCES {
        rust_files(&root().join(folder), &mut files);
    }
    let mut names = BTreeSet::new();
    for file in files {
        let text = read(&file);
        let program = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        names.extend(program.split('"').filter(|t| is_metric(t)).map(str::to_owned));
    }
    names
}

/// The metrics that a text names.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|w| is_metric(w)).map(str::to_owned).collect()
}

/// The names at the start of the rows of a text's tables.
fn listed(text: &str) -> BTreeSet<String> {
    let cells = text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    cells.filter(|cell| is_metric(cell)).map(str::to_owned).collect()
}

#[test]
fn the_page_of_metrics_lists_what_is_exported() {
    let page = read(&root().join("docs/metrics.md"));
    let (registered, listed, named) = (registered(), listed(&page), named(&page));
    assert!(registered.len() > 60, "only {} metrics found in the sources", registered.len());
    let missing: Vec<&String> = registered.difference(&listed).collect();
    assert!(missing.is_empty(), "docs/metrics.md has no row for {missing:?}");
    let unknown: Vec<&String> = named.difference(&registered).collect();
    assert!(unknown.is_empty(), "docs/metrics.md names {unknown:?}, which nobody exports");
}

#[test]
fn pages_name_only_metrics_that_exist() {
    let registered = registered();
    for page in pages() {
        let text = read(&page);
        // A crate's name has the same beginning, but fewer words.
        let in_code = text.split('`').filter(|t| is_metric(t) && t.matches('_').count() > 2);
        let unknown: Vec<&str> = in_code.filter(|name| !registered.contains(*name)).collect();
        assert!(unknown.is_empty(), "{} names {unknown:?}, which nobody exports", page.display());
    }
}

/// What people read.
fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> = ["README.md", "ARCHITECTURE.md"].iter().map(|p| root().join(p)).collect();
    for entry in fs::read_dir(root().join("docs")).expect("docs can be listed") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|e| e == "md") {
            pages.push(path);
        }
    }
    pages.sort();
    pages
}

/// The targets of `[text](target)`, outside of code blocks and code in a line.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for part in line.split("](").skip(1) {
            let target = part.split(')').next().unwrap_or_default();
            // A title may follow the target.
            found.extend(target.split_whitespace().next().map(str::to_owned));
        }
    }
    found
}

/// The anchors of a page: its headings, as the usual renderers make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut in_code = false;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if !in_code && line.starts_with('#') {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            found.insert(kept.map(|c| if c == ' ' { '-' } else { c }).collect());
        }
    }
    found
}

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    let mut followed = 0;
    for page in pages() {
        let folder = page.parent().expect("a file is in a folder");
        for link in links(&read(&page)) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            followed += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if path.is_empty() { page.clone() } else { folder.join(path) };
            let there = target.exists()
                && (anchor.is_empty() || !target.is_file() || anchors(&read(&target)).contains(anchor));
            if !there {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(followed > 10, "only {followed} links found");
    assert!(broken.is_empty(), "links that lead nowhere: {broken:#?}");
}
