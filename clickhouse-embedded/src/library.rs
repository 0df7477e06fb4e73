//! Where the engine's shared library is found.

use std::path::{Path, PathBuf};

/// Folder and file below the cache folder, as the set-up command leaves them.
const CACHED: &str = "libchdb-26.7.3/libchdb.so";

/// The library to load: the one named, else `TIDEGATE_LIBCHDB`, else the cache folder's. An error says what to do.
pub(crate) fn find(named: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let chosen = named.or_else(|| std::env::var_os("TIDEGATE_LIBCHDB").map(PathBuf::from));
    if let Some(path) = chosen {
        anyhow::ensure!(path.is_file(), "the engine's library {} is not there", path.display());
        return Ok(path);
    }
    let path = cache_folder().map(|c| c.join(CACHED));
    match path {
        Some(path) if path.is_file() => Ok(path),
        other => anyhow::bail!(
            "the engine's library libchdb.so is not set up (looked at {}): run `cargo xtask setup`, or name it with \
             --library, TIDEGATE_LIBCHDB, or clickhouse.library in central.toml",
            other
                .as_deref()
                .unwrap_or(Path::new(
                    "no cache folder: neither TIDEGATE_CACHE, XDG_CACHE_HOME nor HOME is set"
                ))
                .display()
        ),
    }
}

fn cache_folder() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    var("TIDEGATE_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|d| d.join("tidegate")))
        .or_else(|| var("HOME").map(|d| d.join(".cache").join("tidegate")))
}
