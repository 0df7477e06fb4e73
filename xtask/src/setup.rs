//! What the other commands need, checked first and installed where that is possible.
//!
//! A Rust toolchain and npm are assumed. On Debian and Ubuntu as root the rest is installed, after saying so;
//! elsewhere the command that installs it is named. Safe to repeat: what is there is left alone.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};

use crate::run::{on_path, run};

#[allow(
    unreachable_pub,
    reason = "a program has no outside; the set-up of one thing reads as its own little library"
)]
mod libchdb;

/// A broker to run against.
#[allow(
    unreachable_pub,
    reason = "a program has no outside; the set-up of one thing reads as its own little library"
)]
pub mod kafka;

const WASM_TARGET: &str = "wasm32-unknown-unknown";

/// A program that must be there, and the Debian package that brings it.
struct Need {
    what: &'static str,
    why: &'static str,
    package: &'static str,
    /// The demonstration and the benchmarks do without it.
    tests_only: bool,
    there: fn() -> bool,
}

const NEEDS: &[Need] = &[
    Need {
        what: "a C compiler",
        why: "some dependencies compile C",
        package: "build-essential",
        tests_only: false,
        there: || on_path("cc") && on_path("make"),
    },
    Need {
        what: "OpenSSL's headers",
        why: "the client of Kafka is built with them",
        package: "libssl-dev",
        tests_only: false,
        there: || Path::new("/usr/include/openssl/ssl.h").exists(),
    },
    Need {
        what: "zlib's headers",
        why: "the client of Kafka is built with them",
        package: "zlib1g-dev",
        tests_only: false,
        there: || Path::new("/usr/include/zlib.h").exists(),
    },
    Need {
        what: "setpriv",
        why: "ends the programs that a test started when the test is killed",
        package: "util-linux",
        tests_only: false,
        there: || on_path("setpriv"),
    },
    Need {
        what: "Java",
        why: "the tests start a real Apache Kafka",
        package: "default-jre-headless",
        tests_only: true,
        there: || on_path("java"),
    },
    Need {
        what: "Maven",
        why: "it fetches Apache Kafka",
        package: "maven",
        tests_only: true,
        there: || on_path("mvn"),
    },
    Need {
        what: "mosquitto",
        why: "the tests subscribe to a real broker",
        package: "mosquitto",
        tests_only: true,
        there: || on_path("mosquitto"),
    },
    Need {
        what: "promtool",
        why: "the tests lint metrics and alerting rules",
        package: "prometheus",
        tests_only: true,
        there: || on_path("promtool"),
    },
    Need {
        what: "Alertmanager",
        why: "the tests deliver alerts to it",
        package: "prometheus-alertmanager",
        tests_only: true,
        there: || on_path("prometheus-alertmanager") || on_path("alertmanager"),
    },
];

/// Everything for the tests.
pub(crate) fn all() -> anyhow::Result<()> {
    check(true)
}

/// Everything for the demonstration.
pub(crate) fn demonstration() -> anyhow::Result<()> {
    check(false)
}

fn check(tests: bool) -> anyhow::Result<()> {
    let began = Instant::now();
    if !on_path("npm") {
        bail!(
            "npm is needed, to fetch the ClickHouse engine: install Node.js from https://nodejs.org or your system's packages"
        );
    }
    packages(tests)?;
    for_modules()?;
    libchdb::libchdb()?;
    if tests {
        kafka::jars()?;
    }
    if began.elapsed().as_secs() >= 1 {
        eprintln!("set-up took {:.0} s; next time it is there", began.elapsed().as_secs_f64());
    }
    Ok(())
}

/// What building the WASM modules needs.
pub(crate) fn for_modules() -> anyhow::Result<()> {
    if rustup_has_target() || debian_can_build() {
        return Ok(());
    }
    if on_path("rustup") && try_rustup() && rustup_has_target() {
        return Ok(());
    }
    let packages = ["rustc-web", "cargo-web", "rust-web-src"];
    if !may_install() {
        bail!(
            "nothing here builds for {WASM_TARGET}: run `rustup target add {WASM_TARGET}`, or on Debian and Ubuntu \
             as root `apt-get install {}`",
            packages.join(" ")
        );
    }
    install(&packages, "they build the WASM modules")
}

fn packages(tests: bool) -> anyhow::Result<()> {
    let needed = || NEEDS.iter().filter(|need| tests || !need.tests_only);
    let missing: Vec<&Need> = needed().filter(|need| !(need.there)()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for need in &missing {
        eprintln!("missing: {} ({}; Debian package {})", need.what, need.why, need.package);
    }
    let names: Vec<&str> = missing.iter().map(|need| need.package).collect();
    if !may_install() {
        bail!("on Debian and Ubuntu this installs what is missing: sudo apt-get install {}", names.join(" "));
    }
    install(&names, "they are needed as said above")?;
    match needed().find(|need| !(need.there)()) {
        None => Ok(()),
        Some(need) => bail!("{} is still not there after installing {}", need.what, need.package),
    }
}

/// Whether this is Debian or Ubuntu and we are root.
fn may_install() -> bool {
    let root = Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout.trim_ascii() == b"0");
    root && on_path("apt-get") && Path::new("/etc/debian_version").exists()
}

fn install(packages: &[&str], why: &str) -> anyhow::Result<()> {
    let names = packages.join(" ");
    eprintln!("installing with apt-get: {names} ({why})");
    let _quiet = NoServices::begin()?;
    let attempt = || {
        let mut apt = Command::new("apt-get");
        apt.args(["install", "-y", "-q", "--no-install-recommends"]).args(packages);
        run(apt.env("DEBIAN_FRONTEND", "noninteractive").stdout(std::io::stderr()))
    };
    // A machine that has never asked for its package lists knows no package.
    attempt()
        .or_else(|_| {
            run(Command::new("apt-get").args(["update", "-q"]).stdout(std::io::stderr()))?;
            attempt()
        })
        .with_context(|| format!("could not install {names}"))
}

/// Debian starts a service when its package is installed; the tests start their own on free ports. This tells the
/// package tools to start nothing, for as long as it lives, unless the machine already says something about that.
struct NoServices {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn begin() -> anyhow::Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        std::fs::write(POLICY, "#!/bin/sh\nexit 101\n")?;
        std::fs::set_permissions(POLICY, std::fs::Permissions::from_mode(0o755))?;
        Ok(Self { ours: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = std::fs::remove_file(POLICY)
        {
            eprintln!("could not remove {POLICY}: {error}");
        }
    }
}

fn rustup_has_target() -> bool {
    let Ok(out) = Command::new("rustc").args(["--print", "sysroot"]).output() else { return false };
    let sysroot = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    Path::new(&sysroot).join("lib/rustlib").join(WASM_TARGET).join("lib").is_dir()
}

fn debian_can_build() -> bool {
    ["/usr/bin/rustc", "/usr/bin/cargo", "/usr/lib/rustlib/src/rust/library/std"]
        .iter()
        .all(|path| Path::new(path).exists())
}

fn try_rustup() -> bool {
    eprintln!("adding the Rust target {WASM_TARGET}");
    // rustup repeats for a long time where its server cannot be reached; there is another way then.
    let mut command = Command::new("timeout");
    command.args(["60", "rustup", "target", "add", WASM_TARGET]).stdout(std::io::stderr());
    let added = run(&mut command);
    if let Err(error) = &added {
        eprintln!("that did not work: {error:#}");
    }
    added.is_ok()
}
