//! Names of the contract: which interfaces a module may import, and which world its exports make.

use crate::Refusal;
use std::fmt;

/// The WIT package of the contract.
pub const PACKAGE: &str = "tidegate:udf";

/// Versions of the contract that this host accepts: every one that was ever shipped.
pub const CONTRACT_VERSIONS: [&str; 1] = ["0.1.0"];

/// What a module does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum World {
    /// Decides for each event whether it stays.
    Filter,
    /// Makes other events out of events.
    Transform,
    /// Grouped arithmetic.
    Aggregate,
}

impl World {
    /// All of them.
    pub const ALL: [World; 3] = [Self::Filter, Self::Transform, Self::Aggregate];

    /// Its name in `wit/`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Transform => "transform",
            Self::Aggregate => "aggregate",
        }
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name of the interface that a world exports.
pub(crate) fn api_name(world: World, version: &str) -> String {
    format!("{PACKAGE}/{world}-api@{version}")
}

/// The name of the log that a module may import.
pub(crate) fn log_name(version: &str) -> String {
    format!("{PACKAGE}/log@{version}")
}

/// Refuses an import that is not of the contract, by name.
pub(crate) fn check_import(name: &str) -> Result<(), Refusal> {
    let of_contract =
        CONTRACT_VERSIONS.iter().any(|v| name == log_name(v) || name == format!("{PACKAGE}/columns@{v}"));
    if of_contract { Ok(()) } else { Err(Refusal::Import { name: name.into() }) }
}

/// The world, and the version of the contract, that some exports make.
pub(crate) fn world_of<'a>(
    exports: impl IntoIterator<Item = &'a str>,
) -> Result<(World, &'static str), Refusal> {
    let exports: Vec<&str> = exports.into_iter().collect();
    let mut found = Vec::new();
    for world in World::ALL {
        for version in CONTRACT_VERSIONS {
            if exports.contains(&api_name(world, version).as_str()) {
                found.push((world, version));
            }
        }
    }
    match found[..] {
        [one] => Ok(one),
        _ => Err(Refusal::World { exports: exports.iter().map(ToString::to_string).collect() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_contract_may_be_imported() {
        assert!(check_import("tidegate:udf/log@0.1.0").is_ok());
        assert!(check_import("tidegate:udf/columns@0.1.0").is_ok());
        for foreign in
            ["wasi:cli/environment@0.2.0", "tidegate:udf/log@9.0.0", "tidegate:udf/files@0.1.0", "x"]
        {
            let e = check_import(foreign).expect_err("not of the contract").to_string();
            assert!(e.contains(foreign), "{e}");
        }
    }

    #[test]
    fn exports_make_one_world() {
        assert_eq!(world_of(["tidegate:udf/filter-api@0.1.0"]), Ok((World::Filter, "0.1.0")));
        for bad in [
            vec!["wasi:cli/run@0.2.0"],
            vec!["tidegate:udf/filter-api@9.0.0"],
            vec!["tidegate:udf/filter-api@0.1.0", "tidegate:udf/transform-api@0.1.0"],
            vec![],
        ] {
            let e = world_of(bad.clone()).expect_err("not one world").to_string();
            assert!(bad.iter().all(|name| e.contains(name)), "{e}");
        }
    }
}
