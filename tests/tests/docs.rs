//! The documentation names the metrics that the programs export, all of them and no others; the keys of the
//! configurations, the verbs of the command line and the shipped alerts; and no link in it leads nowhere.

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

/// The keys that a page's tables list below the heading of a program's file, as `section.key`.
fn listed_keys(page: &str, file: &str) -> BTreeSet<String> {
    let start = format!("## {file}");
    let below = page.lines().skip_while(|line| *line != start).skip(1).take_while(|l| !l.starts_with("## "));
    let mut section = String::new();
    let mut keys = BTreeSet::new();
    for line in below {
        if let Some(rest) = line.strip_prefix("### `[") {
            section = rest.split([']', '.']).next().unwrap_or_default().to_owned();
        } else if let Some(row) = line.strip_prefix("| `") {
            let cell = row.split(" |").next().unwrap_or_default();
            // `preload."NAME@VERSION"` is the key `preload`; two keys may share a row.
            let names = cell.split('`').step_by(2).filter_map(|name| name.split(".\"").next());
            keys.extend(names.filter(|name| !name.is_empty()).map(|name| format!("{section}.{name}")));
        }
    }
    keys
}

/// The paths of a table's values.
fn leaves(table: &toml::Table, path: &str, found: &mut Vec<String>) {
    for (key, value) in table {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match value {
            toml::Value::Table(inner) => leaves(inner, &path, found),
            _ => found.push(path),
        }
    }
}

/// The keys of a configuration; the names of sources and streams are left out of them.
fn keys_of(file: &Path) -> Vec<String> {
    let config: toml::Table = read(file).parse().unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let mut found = Vec::new();
    for (section, value) in &config {
        let table = value.as_table().expect("everything stands in a section");
        if matches!(section.as_str(), "source" | "stream") {
            for named in table.values() {
                leaves(named.as_table().expect("a name has a section"), section, &mut found);
            }
        } else {
            leaves(table, section, &mut found);
        }
    }
    found
}

#[test]
fn the_page_of_configuration_lists_the_shipped_keys() {
    let page = read(&root().join("docs/configuration.md"));
    for file in ["gateway.toml", "central.toml"] {
        let (listed, keys) = (listed_keys(&page, file), keys_of(&root().join("deploy").join(file)));
        assert!(keys.len() >= 10, "only {} keys found in deploy/{file}", keys.len());
        // A row stands for all that is below its key: `columns` for every column.
        let is_listed = |key: &str| listed.iter().any(|l| key == l || key.starts_with(&format!("{l}.")));
        let missing: Vec<&String> = keys.iter().filter(|key| !is_listed(key)).collect();
        assert!(missing.is_empty(), "docs/configuration.md has no row below `{file}` for {missing:?}");
    }
}

/// The keys that a program asks its configuration for: the texts handed to getters of a section.
fn asked(files: &[&str]) -> BTreeSet<String> {
    const GETTERS: &[&str] = &[
        "string",
        "parsed",
        "integer",
        "number",
        "boolean",
        "choice",
        "bytes",
        "duration",
        "socket",
        "path_to",
        "strings",
        "json",
        "list",
        "section",
        "optional_section",
        "sections",
    ];
    let mut keys = BTreeSet::new();
    for file in files {
        let text = read(&root().join(file));
        let program = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for getter in GETTERS {
            for call in program.split(&format!(".{getter}(")).skip(1) {
                keys.extend(
                    call.trim_start().strip_prefix('"').and_then(|k| k.split('"').next()).map(str::to_owned),
                );
            }
        }
    }
    keys
}

#[test]
fn the_page_of_configuration_names_what_the_programs_ask_for() {
    let page = read(&root().join("docs/configuration.md"));
    let (gateway, central) = page.split_once("\n## central.toml\n").expect("a part for each program");
    let programs: [(&str, &[&str]); 2] = [
        (gateway, &["gateway/src/config.rs", "gateway/src/config/source.rs", "gateway/src/config/stream.rs"]),
        (central, &["central/src/config.rs"]),
    ];
    for (part, files) in programs {
        let code = part.split('`').skip(1).step_by(2);
        let words: BTreeSet<&str> =
            code.flat_map(|c| c.split(|c: char| !c.is_ascii_alphanumeric() && c != '-')).collect();
        let keys = asked(files);
        assert!(keys.len() >= 20, "only {} keys found in {files:?}", keys.len());
        let missing: Vec<&String> = keys.iter().filter(|key| !words.contains(key.as_str())).collect();
        assert!(missing.is_empty(), "docs/configuration.md does not name {missing:?} of {files:?}");
    }
}

/// `DeadLetters` as the command line spells it.
fn kebab(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('-');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// The commands of `tidegate`: nouns, and verbs with their nouns.
fn commands() -> BTreeSet<String> {
    let mut files = Vec::new();
    rust_files(&root().join("cli/src"), &mut files);
    let mut found = BTreeSet::new();
    for file in files {
        for part in read(&file).split("Subcommand)]\n").skip(1) {
            let Some((name, rest)) = part.split_once("enum ").and_then(|(_, e)| e.split_once(" {\n")) else {
                continue;
            };
            let body = rest.split("\n}").next().unwrap_or_default();
            for variant in body.lines().filter_map(|line| line.trim().split_once('(')) {
                let is_variant = variant.0.starts_with(|c: char| c.is_ascii_uppercase())
                    && variant.0.chars().all(|c| c.is_ascii_alphanumeric());
                if is_variant {
                    let noun = if name == "Noun" { String::new() } else { kebab(name) + " " };
                    found.insert(noun + &kebab(variant.0));
                }
            }
        }
    }
    found
}

#[test]
fn the_page_of_commands_names_every_command() {
    let page = read(&root().join("docs/cli.md"));
    let commands = commands();
    assert!(commands.len() >= 25, "only {commands:?} found in cli/src");
    let code: Vec<&str> = page.split('`').skip(1).step_by(2).collect();
    let is_named = |command: &str| {
        code.iter()
            .any(|c| c.strip_prefix(command).is_some_and(|rest| rest.is_empty() || rest.starts_with(' ')))
    };
    let missing: Vec<&String> = commands.iter().filter(|command| !is_named(command)).collect();
    assert!(missing.is_empty(), "docs/cli.md does not name {missing:?}");
}

#[test]
fn the_page_of_alerts_lists_the_shipped_ones() {
    let rules = read(&root().join("deploy/prometheus/tidegate-alerts.yml"));
    let shipped: BTreeSet<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let page = read(&root().join("docs/alerts.md"));
    let cells = page.lines().filter_map(|line| line.strip_prefix("| `Tidegate")?.split('`').next());
    let listed: BTreeSet<String> = cells.map(|rest| format!("Tidegate{rest}")).collect();
    assert!(shipped.len() >= 10, "only {shipped:?} found");
    assert_eq!(listed.iter().map(String::as_str).collect::<BTreeSet<_>>(), shipped);
}
