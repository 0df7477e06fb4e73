//! Where things are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::Context;
use serde_json::Value;

/// What cargo says about the workspace.
pub(crate) struct Workspace {
    /// The repository.
    pub(crate) root: PathBuf,
    /// Where cargo builds; obeys `CARGO_TARGET_DIR`.
    pub(crate) target: PathBuf,
    metadata: Value,
}

/// A target of a member, like a benchmark.
pub(crate) struct Target {
    /// The member.
    pub(crate) package: String,
    /// The target.
    pub(crate) name: String,
}

impl Workspace {
    /// Asks cargo, once.
    pub(crate) fn get() -> anyhow::Result<&'static Self> {
        static WORKSPACE: OnceLock<Workspace> = OnceLock::new();
        if let Some(known) = WORKSPACE.get() {
            return Ok(known);
        }
        let read = Self::read()?;
        Ok(WORKSPACE.get_or_init(|| read))
    }

    fn read() -> anyhow::Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
        let out = Command::new("cargo")
            .args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"])
            .arg(&manifest)
            .output()
            .context("cannot run cargo")?;
        anyhow::ensure!(out.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
        let metadata: Value = serde_json::from_slice(&out.stdout)?;
        let folder = |key: &str| {
            metadata[key].as_str().map(PathBuf::from).with_context(|| format!("cargo metadata has no {key}"))
        };
        Ok(Self { root: folder("workspace_root")?, target: folder("target_directory")?, metadata })
    }

    /// All targets of a kind (`bench`, `example`, `bin`).
    pub(crate) fn targets(&self, kind: &str) -> Vec<Target> {
        let mut found = Vec::new();
        for package in self.metadata["packages"].as_array().into_iter().flatten() {
            for target in package["targets"].as_array().into_iter().flatten() {
                let is_kind = target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|k| k == kind));
                if let (true, Some(package), Some(name)) =
                    (is_kind, package["name"].as_str(), target["name"].as_str())
                {
                    found.push(Target { package: package.to_owned(), name: name.to_owned() });
                }
            }
        }
        found
    }

    /// A program built with the profile of tests and demonstration.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.target.join("debug").join(name)
    }

    /// `cargo`, in the repository.
    pub(crate) fn cargo(&self, args: &[&str]) -> Command {
        let mut command = Command::new("cargo");
        command.current_dir(&self.root).args(args);
        // Cargo tells xtask about xtask's own package; build scripts that look at these variables would run again
        // each time one builds with and without xtask.
        for (name, _) in std::env::vars_os() {
            let own = name
                .to_str()
                .is_some_and(|n| n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST_"));
            if own {
                command.env_remove(name);
            }
        }
        command
    }
}
