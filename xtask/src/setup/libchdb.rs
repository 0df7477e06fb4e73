//! The engine's library for the embedded ClickHouse server: fetched once through npm, checked, kept in the cache folder.
//!
//! Safe to repeat and to run twice at once: the folder appears by one rename, when everything in it is whole.

use anyhow::{Context as _, bail, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const PACKAGE: &str = "@chdb/lib-linux-x64-gnu@26.7.3-stable.1";
const SHA256: &str = "c0d32b129e988f2b9a9a31c9141aecf5e1e2453f9a079efc4d36ab8e3f92b2ad";
/// Folder below the cache folder; `tidegate-clickhouse` looks for it under this name.
const FOLDER: &str = "libchdb-26.7.3";
const FILE: &str = "libchdb.so";

/// The folder for everything that is fetched once: `TIDEGATE_CACHE`, else `$XDG_CACHE_HOME/tidegate`, else
/// `~/.cache/tidegate`.
pub fn cache_folder() -> anyhow::Result<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    var("TIDEGATE_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|d| d.join("tidegate")))
        .or_else(|| var("HOME").map(|d| d.join(".cache").join("tidegate")))
        .context("no cache folder: set TIDEGATE_CACHE, XDG_CACHE_HOME or HOME")
}

/// Path of the library; fetches it when it is not there (178 MB, 566 MB unpacked).
pub fn libchdb() -> anyhow::Result<PathBuf> {
    let cache = cache_folder()?;
    let folder = cache.join(FOLDER);
    let library = folder.join(FILE);
    if library.is_file() {
        return Ok(library);
    }
    if !cfg!(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu")) {
        bail!(
            "the embedded ClickHouse engine is fetched for x86-64 Linux with glibc only: name a server's URL instead"
        );
    }
    eprintln!("fetching the ClickHouse engine ({PACKAGE}, 178 MB) through npm, once");
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let scratch = cache.join(format!("{FOLDER}.{}.part", std::process::id()));
    let result = fetch(&scratch).and_then(|unpacked| match fs::rename(&unpacked, &folder) {
        // Another run may have been faster; then its folder serves.
        Err(_) if library.is_file() => Ok(()),
        other => other.with_context(|| format!("cannot put {} in place", folder.display())),
    });
    // What is left of the attempt is rubbish either way.
    let swept = fs::remove_dir_all(&scratch);
    result?;
    swept.with_context(|| format!("cannot remove {}", scratch.display()))?;
    Ok(library)
}

/// Downloads, checks and unpacks below `scratch`; gives the folder that holds the library.
fn fetch(scratch: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(scratch)?;
    run(Command::new("npm").args(["pack", "--silent", PACKAGE]).current_dir(scratch))
        .context("npm could not fetch the engine (is npm installed, is the network there?)")?;
    let archive = fs::read_dir(scratch)?
        .filter_map(Result::ok)
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "tgz"))
        .context("npm pack left no archive")?;
    let sum = run(Command::new("sha256sum").arg(&archive))?;
    let sum = sum.split_whitespace().next().unwrap_or_default();
    ensure!(sum == SHA256, "{PACKAGE} has the sha256 {sum}, expected {SHA256}: it is not used");
    run(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(scratch).arg("package/libchdb.so"))?;
    let unpacked = scratch.join("package");
    ensure!(unpacked.join(FILE).is_file(), "the package holds no {FILE}");
    // A half-written file must not survive a power cut under its final name.
    fs::File::open(unpacked.join(FILE))?.sync_all()?;
    Ok(unpacked)
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let out = command.output().with_context(|| format!("cannot run {name}"))?;
    ensure!(out.status.success(), "{name} failed: {}", String::from_utf8_lossy(&out.stderr).trim());
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
