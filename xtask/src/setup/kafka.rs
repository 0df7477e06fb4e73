//! Apache Kafka's jars, by way of Maven, into the user's cache; those of its console tools in the folder `tools` below.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::run::{on_path, run};
use crate::workspace::Workspace;

const VERSION: &str = "4.4.0";

/// The folder of the jars, fetched when it is not there. Whole or not there: a fetch that broke off leaves nothing.
pub fn jars() -> anyhow::Result<PathBuf> {
    let home = std::env::var_os("HOME").context("HOME is not set: it names the folder of the cache")?;
    let cache = Path::new(&home).join(".cache/tidegate");
    let jars = cache.join(format!("kafka-{VERSION}"));
    if !on_path("java") || (!jars.is_dir() && !on_path("mvn")) {
        bail!("Kafka needs Java, and Maven to fetch it: apt-get install -y default-jre-headless maven");
    }
    if jars.is_dir() {
        return Ok(jars);
    }
    std::fs::create_dir_all(&cache)?;
    let unfinished = cache.join(format!("kafka-{VERSION}.{}", std::process::id()));
    eprintln!("fetching Apache Kafka {VERSION} (43 MB) and its tools (40 MB)");
    let fetched = fetch("pom.xml", &unfinished).and_then(|()| fetch("tools.xml", &unfinished.join("tools")));
    if let Err(error) = fetched {
        // What there is of it is of no use.
        let _ = std::fs::remove_dir_all(&unfinished);
        return Err(error);
    }
    // Another process may have been faster; its jars are the same.
    if std::fs::rename(&unfinished, &jars).is_err() && jars.is_dir() {
        std::fs::remove_dir_all(&unfinished)?;
    }
    Ok(jars)
}

/// The jars that a project file names, and all that they need.
fn fetch(project: &str, into: &Path) -> anyhow::Result<()> {
    let project = Workspace::get()?.root.join("xtask/kafka").join(project);
    let mut maven = Command::new("mvn");
    maven.args(["-q", "-B", "-f"]).arg(project).arg("dependency:copy-dependencies");
    maven.arg(format!("-DoutputDirectory={}", into.display()));
    run(maven.stdout(std::io::stderr()))
}
