//! From a guest crate to a component: runs cargo for `wasm32-unknown-unknown`, then puts the core module that comes out
//! into a component.
//!
//! Where rustup has the target, its cargo builds. Where it has not (no target can be fetched), Debian's `rustc-web`,
//! `cargo-web` and `rust-web-src` build the standard library along, with rustup's `rust-lld` as linker; that takes a
//! minute, once per target folder.
//!
//! This crate never checks what a component may do: that is the module compiler's job, at every upload.

mod toolchain;

pub use toolchain::{TARGET, Toolchain};

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

/// What cannot be built, and why.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Neither toolchain is there.
    #[error(
        "no toolchain can build for {TARGET}: run `rustup target add {TARGET}`, or on Debian and Ubuntu \
         `apt-get install rustc-web cargo-web rust-web-src`"
    )]
    NoToolchain,
    /// The folder is not one of a guest crate.
    #[error("{}: not a guest crate: {why}", dir.display())]
    NotAGuest {
        /// The folder.
        dir: PathBuf,
        /// What is missing.
        why: String,
    },
    /// Cargo said no; its own words went to stderr.
    #[error("cargo failed to build {package} ({status})")]
    Cargo {
        /// The guest.
        package: String,
        /// How cargo ended.
        status: std::process::ExitStatus,
    },
    /// The core module does not make a component.
    #[error("{package} does not make a component: {why}")]
    Component {
        /// The guest.
        package: String,
        /// What the encoder says.
        why: String,
    },
    /// A file or a program.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What came of it.
        source: io::Error,
    },
}

fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> BuildError {
    move |source| BuildError::Io { what: what.into(), source }
}

/// Where things go.
#[derive(Debug, Clone)]
pub struct Options {
    /// Cargo's target folder for guests; the standard library built along stays there.
    pub target_dir: PathBuf,
    /// Components go here, as `<name>.wasm`.
    pub out_dir: PathBuf,
    /// Whether the lock file must be there and fit.
    pub locked: bool,
}

/// A component that was built.
#[derive(Debug, Clone)]
pub struct Built {
    /// The guest's package name.
    pub name: String,
    /// The version in its manifest.
    pub version: String,
    /// The component.
    pub component: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// How long it all took.
    pub took: Duration,
}

/// Builds the guest crate in `dir`.
pub fn build(toolchain: &Toolchain, dir: &Path, options: &Options) -> Result<Built, BuildError> {
    let began = Instant::now();
    let (name, version) = package(dir)?;
    let mut cargo = toolchain.cargo(&options.target_dir);
    cargo.current_dir(dir).args(["build", "--quiet", "--release", "--package", &name]);
    if options.locked {
        cargo.arg("--locked");
    }
    let status = cargo.status().map_err(io(format!("running {cargo:?}")))?;
    if !status.success() {
        return Err(BuildError::Cargo { package: name, status });
    }
    let core =
        options.target_dir.join(TARGET).join("release").join(format!("{}.wasm", name.replace('-', "_")));
    let core = std::fs::read(&core).map_err(io(format!(
        "reading {} (does Cargo.toml say crate-type = [\"cdylib\"]?)",
        core.display()
    )))?;
    let component =
        componentize(&core).map_err(|why| BuildError::Component { package: name.clone(), why })?;
    std::fs::create_dir_all(&options.out_dir).map_err(io(format!("making {}", options.out_dir.display())))?;
    let path = options.out_dir.join(format!("{name}.wasm"));
    let unfinished = options.out_dir.join(format!(".{name}.wasm.{}", std::process::id()));
    std::fs::write(&unfinished, &component).map_err(io(format!("writing {}", unfinished.display())))?;
    std::fs::rename(&unfinished, &path).map_err(io(format!("writing {}", path.display())))?;
    Ok(Built { name, version, component: path, bytes: component.len() as u64, took: began.elapsed() })
}

/// The component around a core module that carries its world in a custom section, as wit-bindgen leaves it.
pub fn componentize(core: &[u8]) -> Result<Vec<u8>, String> {
    let encode = || wit_component::ComponentEncoder::default().validate(true).module(core)?.encode();
    encode().map_err(|e| format!("{e:#}"))
}

/// Name and version in a crate's manifest, as cargo reads it.
fn package(dir: &Path) -> Result<(String, String), BuildError> {
    let bad = |why: String| BuildError::NotAGuest { dir: dir.into(), why };
    if !dir.join("Cargo.toml").is_file() {
        return Err(bad("it has no Cargo.toml".into()));
    }
    let mut out = cargo(dir, &["pkgid", "--offline"])?;
    if !out.status.success() {
        // A new crate has no lock file yet, and without one cargo names no package.
        let locked = cargo(dir, &["generate-lockfile"])?;
        if !locked.status.success() {
            return Err(bad(String::from_utf8_lossy(&locked.stderr).trim().to_string()));
        }
        out = cargo(dir, &["pkgid", "--offline"])?;
    }
    if !out.status.success() {
        return Err(bad(String::from_utf8_lossy(&out.stderr).trim().to_string()));
    }
    let said = String::from_utf8_lossy(&out.stdout).trim().to_string();
    parse_pkgid(&said).ok_or_else(|| bad(format!("cargo calls it {said:?}")))
}

fn cargo(dir: &Path, args: &[&str]) -> Result<Output, BuildError> {
    let mut cargo = Command::new("cargo");
    cargo.args(args).current_dir(dir);
    toolchain::forget_caller(&mut cargo);
    cargo.output().map_err(io(format!("running cargo {}", args[0])))
}

/// `path+file:///a/dir#name@1.2.3`, or `path+file:///a/name#1.2.3` where folder and package share the name.
fn parse_pkgid(id: &str) -> Option<(String, String)> {
    let (url, fragment) = id.rsplit_once('#')?;
    match fragment.split_once('@') {
        Some((name, version)) => Some((name.into(), version.into())),
        None => Some((url.rsplit('/').next()?.into(), fragment.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_ids_are_read() {
        let is = |id, name: &str, version: &str| {
            assert_eq!(parse_pkgid(id), Some((name.to_string(), version.to_string())));
        };
        is("path+file:///a/threshold#0.1.0", "threshold", "0.1.0");
        is("path+file:///a/sdk#tidegate-udf@0.1.0", "tidegate-udf", "0.1.0");
        assert_eq!(parse_pkgid("nothing"), None);
    }

    #[test]
    fn a_folder_without_a_crate_is_named() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let e = package(dir.path()).expect_err("no manifest").to_string();
        assert!(e.contains("no Cargo.toml") && e.contains(&dir.path().display().to_string()), "{e}");
    }

    #[test]
    fn a_core_module_without_a_world_is_no_component_of_ours() {
        assert!(componentize(b"\0asm").is_err());
    }
}
