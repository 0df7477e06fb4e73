//! Which cargo can build for the target, and how it is called.

use crate::BuildError;
use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// What guests are built for: no operating system, so nothing to import from one.
pub const TARGET: &str = "wasm32-unknown-unknown";

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_STD: &str = "/usr/lib/rustlib/src/rust/library/std";

/// A way to build guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Toolchain {
    /// The cargo on the path has the target.
    Rustup,
    /// Debian's cargo builds the standard library along; `linker_dir` holds `rust-lld`.
    Debian {
        /// A folder to search for the linker.
        linker_dir: PathBuf,
    },
}

impl Toolchain {
    /// Finds one that works here.
    pub fn find() -> Result<Self, BuildError> {
        if sysroot("rustc").is_some_and(|s| s.join("lib/rustlib").join(TARGET).join("lib").is_dir()) {
            return Ok(Self::Rustup);
        }
        let complete = [DEBIAN_RUSTC, DEBIAN_CARGO, DEBIAN_STD].iter().all(|p| Path::new(p).exists());
        match linker_dir() {
            Some(linker_dir) if complete => Ok(Self::Debian { linker_dir }),
            _ => Err(BuildError::NoToolchain),
        }
    }

    /// Whether a first build also builds the standard library.
    pub fn builds_std(&self) -> bool {
        matches!(self, Self::Debian { .. })
    }

    /// A cargo command for the target; the subcommand comes first, so this only sets the environment.
    pub(crate) fn cargo(&self, target_dir: &Path) -> Command {
        let mut cargo = match self {
            Self::Rustup => Command::new("cargo"),
            Self::Debian { .. } => Command::new(DEBIAN_CARGO),
        };
        forget_caller(&mut cargo);
        cargo.env("CARGO_TARGET_DIR", target_dir).env("CARGO_BUILD_TARGET", TARGET);
        // Panics name their source file: the same module comes out whoever builds it, and names nobody's home.
        if let Some(home) = cargo_home() {
            cargo.env("CARGO_ENCODED_RUSTFLAGS", format!("--remap-path-prefix={}=/cargo", home.display()));
        }
        if let Self::Debian { linker_dir } = self {
            let mut path = env::var_os("PATH").unwrap_or_default();
            path.push(":");
            path.push(linker_dir);
            cargo.env("PATH", path).env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
            cargo.env("CARGO_UNSTABLE_BUILD_STD", "std,panic_abort");
        }
        cargo
    }
}

/// A caller that cargo itself runs (`cargo xtask`) hands down settings of its own toolchain and target folder, which
/// are wrong for the guests.
pub(crate) fn forget_caller(command: &mut Command) {
    let foreign = [
        "CARGO",
        "CARGO_BUILD_TARGET",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_MANIFEST_DIR",
        "CARGO_MANIFEST_PATH",
        "CARGO_PKG_NAME",
        "CARGO_TARGET_DIR",
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
    ];
    for name in foreign {
        command.env_remove(name);
    }
}

fn cargo_home() -> Option<PathBuf> {
    let home = || env::home_dir().map(|h| h.join(".cargo"));
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home)
}

fn sysroot(rustc: &str) -> Option<PathBuf> {
    let mut command = Command::new(rustc);
    command.args(["--print", "sysroot"]);
    forget_caller(&mut command);
    let out = command.output().ok().filter(|o| o.status.success())?;
    Some(PathBuf::from(String::from_utf8(out.stdout).ok()?.trim()))
}

/// The folder of a `rust-lld`, inside the rustup toolchain or on the path.
fn linker_dir() -> Option<PathBuf> {
    let in_sysroot = sysroot("rustc").and_then(|sysroot| {
        let hosts = std::fs::read_dir(sysroot.join("lib/rustlib")).ok()?;
        hosts.flatten().map(|h| h.path().join("bin")).find(|dir| dir.join("rust-lld").is_file())
    });
    in_sysroot.or_else(|| {
        env::split_paths(&env::var_os("PATH").unwrap_or_default()).find(|d| d.join("rust-lld").is_file())
    })
}
