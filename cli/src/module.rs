//! `tidegate module`: from a new guest crate to a module that a gateway runs.

use crate::{
    api::Api,
    output::{Output, Verdict, cell, table},
};
use anyhow::{Context as _, bail};
use clap::{Args, Subcommand, ValueEnum};
use module_build::{Options, Toolchain};
use record::ModuleRef;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The noun.
#[derive(Debug, Subcommand)]
pub(crate) enum Module {
    /// Make a folder with a small module in Rust, ready to build
    New(New),
    /// Build a module's folder into a component
    Build(Build),
    /// Validate a component as a gateway would: its world, its imports, its limits, and that it compiles
    Check(Check),
    /// Send a component to a gateway, which validates, stores and activates it
    Push(Push),
    /// A gateway's modules
    List(At),
    /// One module of a gateway
    Show(One),
    /// Make a stored version the active one
    Activate(One),
    /// Make the version before the active one active again
    Rollback(Rollback),
}

/// What a module does.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Kind {
    /// Keeps some events and leaves out others
    Filter,
    /// Makes events into other events
    Transform,
    /// Sums up the events of a window
    Aggregate,
}

/// The verb `new`.
#[derive(Debug, Args)]
pub(crate) struct New {
    /// Its name; a folder of that name is made
    name: String,
    /// What it does
    #[arg(long, value_enum, default_value = "filter")]
    kind: Kind,
    /// Folder of the guest SDK; searched for as wasm-udfs/sdk from here upwards when not given
    #[arg(long)]
    sdk: Option<PathBuf>,
}

/// The verb `build`.
#[derive(Debug, Args)]
pub(crate) struct Build {
    /// The module's folder
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Where the component goes
    #[arg(long, default_value = "target/modules")]
    out: PathBuf,
    /// Cargo's folder for what it builds, which modules may share; `target` in the module's folder when not given
    #[arg(long, value_name = "FOLDER")]
    target_dir: Option<PathBuf>,
}

/// The verb `check`.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The component
    file: PathBuf,
    /// The compiler program; the one beside this program when not given
    #[arg(long)]
    compiler: Option<PathBuf>,
}

/// Which gateway.
#[derive(Debug, Args)]
pub(crate) struct At {
    /// Address of the gateway's admin pages
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9464")]
    gateway: String,
}

/// The verb `push`.
#[derive(Debug, Args)]
pub(crate) struct Push {
    /// The component
    file: PathBuf,
    /// What it is called from now on
    #[arg(value_name = "NAME@VERSION")]
    module: ModuleRef,
    /// Store it without using it yet
    #[arg(long)]
    no_activate: bool,
    #[command(flatten)]
    at: At,
}

/// The verbs about one module.
#[derive(Debug, Args)]
pub(crate) struct One {
    /// Which
    #[arg(value_name = "NAME@VERSION")]
    module: ModuleRef,
    #[command(flatten)]
    at: At,
}

/// The verb `rollback`.
#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// Its name
    name: String,
    #[command(flatten)]
    at: At,
}

impl Module {
    pub(crate) async fn run(self, out: &Output) -> anyhow::Result<Verdict> {
        match self {
            Self::New(verb) => verb.run(out),
            Self::Build(verb) => verb.run(out),
            Self::Check(verb) => verb.run(out),
            Self::Push(verb) => {
                let body = fs::read(&verb.file).with_context(|| verb.file.display().to_string())?;
                let path = format!("{}?activate={}", path(&verb.module), !verb.no_activate);
                let answer = Api::new(&verb.at.gateway)?.put(&path, body).await?;
                out.show(&answer, one);
                Ok(Verdict::Fine)
            }
            Self::List(at) => {
                let answer = Api::new(&at.gateway)?.get("/v1/modules", &[]).await?;
                out.show(&answer, list);
                Ok(Verdict::Fine)
            }
            Self::Show(verb) => {
                let answer = Api::new(&verb.at.gateway)?.get(&path(&verb.module), &[]).await?;
                out.show(&answer, one);
                Ok(Verdict::Fine)
            }
            Self::Activate(verb) => {
                let path = format!("{}/activate", path(&verb.module));
                let answer = Api::new(&verb.at.gateway)?.post(&path, &json!({})).await?;
                out.show(&answer, |_| format!("{} is active", verb.module));
                Ok(Verdict::Fine)
            }
            Self::Rollback(verb) => {
                let path = format!("/v1/modules/{}/rollback", verb.name);
                let answer = Api::new(&verb.at.gateway)?.post(&path, &json!({})).await?;
                out.show(&answer, |a| format!("{}@{} is active", verb.name, cell(&a["active"])));
                Ok(Verdict::Fine)
            }
        }
    }
}

fn path(m: &ModuleRef) -> String {
    format!("/v1/modules/{}/{}", m.name, m.version)
}

fn one(m: &Value) -> String {
    let state = if m["active"] == true { "active" } else { "stored" };
    format!(
        "{}@{}: {}, {} bytes, {state}, sha256 {}",
        cell(&m["name"]),
        cell(&m["version"]),
        cell(&m["world"]),
        cell(&m["bytes"]),
        cell(&m["digest"])
    )
}

fn list(answer: &Value) -> String {
    let all = answer["modules"].as_array().map(Vec::as_slice).unwrap_or_default();
    if all.is_empty() {
        return "the gateway has no modules".into();
    }
    let row = |m: &Value| {
        let active = if m["active"] == true { "active" } else { "" };
        let digest: String = cell(&m["digest"]).chars().take(12).collect();
        vec![
            cell(&m["name"]),
            cell(&m["version"]),
            cell(&m["world"]),
            cell(&m["bytes"]),
            active.to_owned(),
            digest,
        ]
    };
    let rows: Vec<Vec<String>> = all.iter().map(row).collect();
    table(&["name", "version", "world", "bytes", "", "sha256"], &rows)
}

impl Build {
    fn run(self, out: &Output) -> anyhow::Result<Verdict> {
        let toolchain = Toolchain::find()?;
        let absolute = |p: &Path| std::path::absolute(p).with_context(|| p.display().to_string());
        let options = Options {
            target_dir: absolute(&self.target_dir.unwrap_or_else(|| self.dir.join("target")))?,
            out_dir: absolute(&self.out)?,
            locked: self.dir.join("Cargo.lock").is_file(),
        };
        let built = module_build::build(&toolchain, &absolute(&self.dir)?, &options)?;
        let value = json!({
            "name": built.name,
            "version": built.version,
            "component": built.component,
            "bytes": built.bytes,
            "seconds": built.took.as_secs_f64(),
        });
        out.show(&value, |_| {
            let component = built.component.display();
            format!(
                "{component} ({} bytes)\npush it: tidegate module push {component} {}@{}",
                built.bytes, built.name, built.version
            )
        });
        Ok(Verdict::Fine)
    }
}

impl Check {
    fn run(self, out: &Output) -> anyhow::Result<Verdict> {
        let compiler = match self.compiler {
            Some(path) => path,
            None => std::env::current_exe()?.with_file_name("tidegate-module-compiler"),
        };
        let artifact = std::env::temp_dir().join(format!("tidegate-check-{}.cwasm", std::process::id()));
        let said =
            Command::new(&compiler)
                .arg("--in")
                .arg(&self.file)
                .arg("--out")
                .arg(&artifact)
                .output()
                .with_context(|| format!("{} does not start; name it with --compiler", compiler.display()))?;
        // It may not have been written at all.
        let _ = fs::remove_file(&artifact);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let fine = said.status.success();
        let (found, why) = (text(&said.stdout), text(&said.stderr));
        let (world, sizes) = found.split_once(": ").unwrap_or((&found, ""));
        let value = json!({
            "file": self.file,
            "fine": fine,
            "world": if fine { json!(world) } else { Value::Null },
            "sizes": if fine { json!(sizes) } else { Value::Null },
            "error": if fine { Value::Null } else { json!(why) },
        });
        out.show(&value, |_| {
            let file = self.file.display();
            if fine { format!("{file}: fine, {found}") } else { format!("{file}: {why}") }
        });
        Ok(Verdict::fine_if(fine))
    }
}

impl New {
    fn run(self, out: &Output) -> anyhow::Result<Verdict> {
        format!("{}@0.1.0", self.name).parse::<ModuleRef>()?;
        let sdk = match self.sdk {
            Some(path) => path,
            None => find_sdk()?,
        };
        let sdk = sdk.canonicalize().with_context(|| sdk.display().to_string())?;
        if !sdk.join("Cargo.toml").is_file() {
            bail!("{} is not the guest SDK: it has no Cargo.toml", sdk.display());
        }
        let dir = PathBuf::from(&self.name);
        fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        fs::create_dir(dir.join("src"))?;
        let manifest = MANIFEST.replace("NAME", &self.name).replace("SDK", &sdk.display().to_string());
        fs::write(dir.join("Cargo.toml"), manifest)?;
        let source = match self.kind {
            Kind::Filter => FILTER,
            Kind::Transform => TRANSFORM,
            Kind::Aggregate => AGGREGATE,
        };
        fs::write(dir.join("src/lib.rs"), source)?;
        out.show(&json!({ "folder": dir }), |_| {
            format!("made {0}/; next: tidegate module build {0}", self.name)
        });
        Ok(Verdict::Fine)
    }
}

fn find_sdk() -> anyhow::Result<PathBuf> {
    let here = std::env::current_dir()?;
    let found = here.ancestors().map(|dir| dir.join("wasm-udfs/sdk")).find(|p| p.is_dir());
    found.context("no wasm-udfs/sdk from here upwards; name the guest SDK's folder with --sdk")
}

const MANIFEST: &str = r#"[package]
name = "NAME"
version = "0.1.0"
edition = "2024"
publish = false

[workspace]

[lib]
crate-type = ["cdylib"]

[dependencies]
tidegate-udf = { path = "SDK" }
serde = { version = "1", features = ["derive"] }

[profile.release]
lto = true
codegen-units = 1
panic = "abort"
strip = true
"#;

// The example modules are what a new one begins as: they are built and tested with everything else.
const FILTER: &str = include_str!("../../wasm-udfs/threshold/src/lib.rs");
const TRANSFORM: &str = include_str!("../../wasm-udfs/scale/src/lib.rs");
const AGGREGATE: &str = include_str!("../../wasm-udfs/stats/src/lib.rs");
