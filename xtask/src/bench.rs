//! Benchmarks: every `[[bench]]` target of the workspace is one, by its name.

use anyhow::bail;

use crate::run::become_program;
use crate::workspace::Workspace;
use crate::{build, setup};

/// `bench NAME [--json …]`, or the list.
pub(crate) fn bench(args: &[String]) -> anyhow::Result<()> {
    let workspace = Workspace::get()?;
    let known = workspace.targets("bench");
    let Some((name, rest)) = args.split_first() else {
        for target in &known {
            println!("{} ({})", target.name, target.package);
        }
        return Ok(());
    };
    let Some(target) = known.iter().find(|target| target.name == *name) else {
        let names: Vec<&str> = known.iter().map(|target| target.name.as_str()).collect();
        bail!("no benchmark `{name}`; there are: {}", names.join(", "));
    };
    setup::all()?;
    build::programs()?;
    build::modules()?;
    if ["tidegate-tests", "tidegate-central"].contains(&target.package.as_str()) {
        // Whole programs are measured as they are shipped, and the gateway's size as it goes onto a device.
        build::release_programs()?;
    }
    if name == "footprint" {
        build::release_gateway()?;
    }
    let mut cargo = workspace.cargo(&["bench", "--quiet", "--workspace", "--bench", name, "--"]);
    become_program(cargo.args(rest))
}
