//! A whole installation in a temporary folder: an authority, central with its embedded ClickHouse, one gateway.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use link::pki::{self, Role, Validity};
use link::tls::TlsFiles;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::http_load::client;
use crate::program::{self, Program};
use crate::scrape::Metrics;
use crate::tables::Api;
use crate::{ports, wait};

/// The gateway's id in every plant.
pub const GATEWAY: &str = "plant-1";
/// How long a program may take to become ready; generous, because a debug build recovers on a busy machine.
pub const READY: Duration = Duration::from_secs(60);
/// How long one question may take: a program that is stopped takes connections and says nothing.
const ASKED: Duration = Duration::from_secs(2);

/// What differs between plants.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `[stream.…]` sections of the gateway.
    pub streams: String,
    /// More `[source.…]` sections, beside the listener `floor` and the HTTP source `api`.
    pub sources: String,
    /// Modules of `wasm-udfs/` that the gateway has from the start.
    pub modules: Vec<&'static str>,
    /// The gateway's quota; its default when empty.
    pub quota: String,
    /// More lines of the gateway's `[buffer]`.
    pub buffer: String,
    /// The gateway's program; the one of the tests' own build when not given.
    pub gateway_program: Option<PathBuf>,
    /// Where the gateway looks for central; the plant's own when empty.
    pub centrals: Vec<SocketAddr>,
    /// What the plant's central does; everything when empty.
    pub roles: Vec<&'static str>,
    /// More lines of central's `[link]`.
    pub link: String,
    /// Lines of central's `[log]`; the embedded one when empty.
    pub log: String,
    /// Lines of central's `[clickhouse]`; the embedded engine when empty.
    pub clickhouse: String,
    /// A rule file.
    pub rules: String,
    /// Alertmanagers' URLs.
    pub alertmanagers: Vec<String>,
    /// Webhooks' URLs.
    pub webhooks: Vec<String>,
}

/// The installation. Dropping it kills its programs and removes its folder.
pub struct Plant {
    /// MQTT listener.
    pub mqtt: SocketAddr,
    /// HTTP source.
    pub http: SocketAddr,
    /// The gateway's metrics, health and admin API.
    pub admin: SocketAddr,
    /// Where central takes gateways.
    pub link: SocketAddr,
    /// Central's API.
    pub api: Api,
    /// The gateway, while it runs.
    pub gateway: Option<Program>,
    /// Central, while it runs.
    pub central: Option<Program>,
    gateway_program: PathBuf,
    // The last field: programs are gone before their folder.
    folder: TempDir,
}

impl Plant {
    /// Writes certificates and configurations; starts nothing.
    pub fn prepare(options: &Options) -> anyhow::Result<Self> {
        let folder = TempDir::with_prefix("tidegate-plant-")?;
        let gateway_program = match &options.gateway_program {
            Some(program) => program.clone(),
            None => program::ours("tidegate-gateway")?,
        };
        let plant = Self {
            mqtt: ports::free(),
            http: ports::free(),
            admin: ports::free(),
            link: ports::free(),
            api: Api::at(ports::free()),
            gateway: None,
            central: None,
            gateway_program,
            folder,
        };
        make_authority(&plant.path("pki"))?;
        std::fs::create_dir_all(plant.path("rules"))?;
        if !options.rules.is_empty() {
            std::fs::write(plant.path("rules/rules.yaml"), &options.rules)?;
        }
        plant.configure_gateway(options)?;
        plant.configure_central(options, "central", &options.roles, plant.link, plant.api.address())?;
        Ok(plant)
    }

    /// Prepares, starts both programs and waits until they are ready and connected.
    pub async fn start(options: &Options) -> anyhow::Result<Self> {
        let mut plant = Self::prepare(options)?;
        plant.start_central()?;
        plant.start_gateway()?;
        plant.central_ready().await?;
        plant.gateway_ready().await?;
        Ok(plant)
    }

    /// Leaves the folder behind, for whoever wants to look into it; its path.
    pub fn keep(&mut self) -> &Path {
        self.folder.disable_cleanup(true);
        self.folder.path()
    }

    /// A path in the plant's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the gateway's configuration (again).
    pub fn configure_gateway(&self, options: &Options) -> anyhow::Result<()> {
        let toml = gateway_toml(
            GATEWAY,
            "gateway-data",
            [self.admin, self.mqtt, self.http],
            &self.centrals(options),
            options,
        )?;
        Ok(std::fs::write(self.path("gateway.toml"), toml)?)
    }

    /// Another gateway with a certificate of its own, configured like the plant's; it is not started.
    pub fn another_gateway(&self, options: &Options, id: &str) -> anyhow::Result<Gateway> {
        issue(&self.path("pki"), id)?;
        let gateway = Gateway {
            id: id.to_owned(),
            mqtt: ports::free(),
            http: ports::free(),
            admin: ports::free(),
            program: None,
            command: self.gateway_program.clone(),
            config: self.path(&format!("{id}.toml")),
            log: self.path(&format!("{id}.log")),
        };
        let places = [gateway.admin, gateway.mqtt, gateway.http];
        let toml = gateway_toml(id, &format!("{id}-data"), places, &self.centrals(options), options)?;
        std::fs::write(&gateway.config, toml)?;
        Ok(gateway)
    }

    fn centrals(&self, options: &Options) -> Vec<SocketAddr> {
        if options.centrals.is_empty() { vec![self.link] } else { options.centrals.clone() }
    }

    /// Writes the configuration of a process of central: `NAME.toml`, with the data folder `NAME-data`.
    pub fn configure_central(
        &self,
        options: &Options,
        name: &str,
        roles: &[&str],
        link: SocketAddr,
        api: SocketAddr,
    ) -> anyhow::Result<()> {
        let toml = central_toml(options, name, roles, link, api);
        Ok(std::fs::write(self.path(&format!("{name}.toml")), toml)?)
    }

    /// A certificate for one more gateway.
    pub fn issue(&self, gateway: &str) -> anyhow::Result<TlsFiles> {
        let issued = pki::issue(&self.path("pki"), gateway, &Role::Gateway, validity()?)?;
        Ok(TlsFiles { ca: self.path("pki/ca.pem"), cert: issued.cert, key: issued.key, revoked: None })
    }

    /// Starts a process of central that was configured under this name; its log is `NAME.log`.
    pub fn start_process(&self, name: &str) -> anyhow::Result<Program> {
        let config = text(&self.path(&format!("{name}.toml")))?;
        let command = program::ours("tidegate-central")?;
        Program::start(name, &command, &["--config", &config], &self.path(&format!("{name}.log")))
    }

    /// Starts the gateway; it may still be recovering when this returns.
    pub fn start_gateway(&mut self) -> anyhow::Result<()> {
        let config = text(&self.path("gateway.toml"))?;
        let log = self.path("gateway.log");
        self.gateway =
            Some(Program::start("tidegate-gateway", &self.gateway_program, &["--config", &config], &log)?);
        Ok(())
    }

    /// Starts central.
    pub fn start_central(&mut self) -> anyhow::Result<()> {
        self.central = Some(self.start_process("central")?);
        Ok(())
    }

    /// SIGKILL for the gateway.
    pub fn kill_gateway(&mut self) {
        self.gateway = None;
    }

    /// SIGKILL for central.
    pub fn kill_central(&mut self) {
        self.central = None;
    }

    /// SIGKILL for the ClickHouse that central started; false when there is none at the moment.
    pub fn kill_clickhouse(&self) -> anyhow::Result<bool> {
        let Some(central) = &self.central else { return Ok(false) };
        let children = program::children(central.pid(), "tidegate-clickhouse");
        for pid in &children {
            program::send(*pid, rustix::process::Signal::KILL)?;
        }
        Ok(!children.is_empty())
    }

    /// Waits until the gateway says that it is ready.
    pub async fn gateway_ready(&mut self) -> anyhow::Result<()> {
        let admin = self.admin;
        let gateway = self.gateway.as_mut().context("the gateway is not started")?;
        ready("gateway", admin, gateway).await
    }

    /// Waits until the gateway takes connections, whether or not it reaches central.
    pub async fn gateway_listens(&mut self) -> anyhow::Result<()> {
        let (mqtt, http) = (self.mqtt, self.http);
        let gateway = self.gateway.as_mut().context("the gateway is not started")?;
        let listens = wait::until_true("the gateway listens", READY, async || {
            gateway.expect_running().is_err()
                || (TcpStream::connect(mqtt).await.is_ok() && TcpStream::connect(http).await.is_ok())
        });
        listens.await?;
        gateway.expect_running()
    }

    /// Waits until central says that it is ready.
    pub async fn central_ready(&mut self) -> anyhow::Result<()> {
        let api = self.api.address();
        let central = self.central.as_mut().context("central is not started")?;
        ready("central", api, central).await
    }

    /// The gateway's metrics.
    pub async fn gateway_metrics(&self) -> anyhow::Result<Metrics> {
        Metrics::of(self.admin).await
    }

    /// Central's metrics.
    pub async fn central_metrics(&self) -> anyhow::Result<Metrics> {
        Metrics::of(self.api.address()).await
    }

    /// Waits until a table holds at least this many rows; shows both logs when it does not.
    pub async fn rows(&self, table: &str, count: u64, deadline: Duration) -> anyhow::Result<u64> {
        let what = format!("{count} rows in {table}");
        let found =
            wait::until(&what, deadline, async || self.api.count(table).await.ok().filter(|n| *n >= count))
                .await;
        match found {
            Ok(rows) => Ok(rows),
            Err(error) => {
                let there = self.api.count(table).await;
                Err(error.context(format!("there are {there:?}\n{}", self.logs())))
            }
        }
    }

    /// The ends of both logs, for messages.
    pub fn logs(&self) -> String {
        let mut out = String::new();
        for name in ["gateway.log", "central.log"] {
            let _ = write!(out, "--- {name}\n{}\n", program::tail(&self.path(name), 25));
        }
        out
    }
}

/// A further gateway of a plant. Dropping it kills its program.
pub struct Gateway {
    /// Its id, the name of its certificate.
    pub id: String,
    /// MQTT listener.
    pub mqtt: SocketAddr,
    /// HTTP source.
    pub http: SocketAddr,
    /// Metrics, health and admin API.
    pub admin: SocketAddr,
    /// The program, while it runs.
    pub program: Option<Program>,
    command: PathBuf,
    config: PathBuf,
    log: PathBuf,
}

impl Gateway {
    /// Starts it; it may still be recovering when this returns.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let config = text(&self.config)?;
        self.program = Some(Program::start(&self.id, &self.command, &["--config", &config], &self.log)?);
        Ok(())
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        let program = self.program.as_mut().with_context(|| format!("{} is not started", self.id))?;
        ready(&self.id, self.admin, program).await
    }

    /// Whether it says that it is ready.
    pub async fn is_ready(&self) -> bool {
        is_ready(self.admin).await
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        program::tail(&self.log, 25)
    }
}

/// `places` are those of admin API, MQTT listener and HTTP source.
fn gateway_toml(
    id: &str,
    data: &str,
    places: [SocketAddr; 3],
    centrals: &[SocketAddr],
    options: &Options,
) -> anyhow::Result<String> {
    let [admin, mqtt, http] = places;
    let urls: Vec<String> = centrals.iter().map(|address| format!("https://{address}")).collect();
    let mut toml = format!(
        r#"[gateway]
id = "{id}"
data-dir = "{data}"
admin = "{admin}"

[central]
url = {urls:?}
tls = {{ ca = "pki/ca.pem", cert = "pki/{id}.pem", key = "pki/{id}.key" }}

[source.floor]
kind = "mqtt-listener"
bind = "{mqtt}"

[source.api]
kind = "http"
bind = "{http}"
"#
    );
    toml.push_str("\n[buffer]\n");
    if !options.quota.is_empty() {
        let _ = writeln!(toml, "quota = \"{}\"", options.quota);
    }
    toml.push_str(&options.buffer);
    if !options.modules.is_empty() {
        toml.push_str("\n[modules.preload]\n");
        for name in &options.modules {
            let _ = writeln!(toml, "\"{name}@0.1.0\" = \"{}\"", text(&program::module(name)?)?);
        }
    }
    toml.push('\n');
    toml.push_str(&options.sources);
    toml.push('\n');
    toml.push_str(&options.streams);
    Ok(toml)
}

fn central_toml(options: &Options, name: &str, roles: &[&str], link: SocketAddr, api: SocketAddr) -> String {
    let list = |items: &[String]| serde_json::to_string(items).unwrap_or_default();
    let roles = if roles.is_empty() { String::new() } else { format!("roles = {roles:?}") };
    let mut toml = format!(
        r#"[central]
data-dir = "{name}-data"
{roles}

[link]
bind = "{link}"
tls = {{ ca = "pki/ca.pem", cert = "pki/central.pem", key = "pki/central.key", revoked = "pki/revoked.txt" }}
{}

[log]
{}

[clickhouse]
{}

[api]
bind = "{api}"
"#,
        options.link,
        if options.log.is_empty() { "kind = \"embedded\"" } else { &options.log },
        if options.clickhouse.is_empty() { "embedded = true" } else { &options.clickhouse },
    );
    if !options.rules.is_empty() {
        let (managers, hooks) = (list(&options.alertmanagers), list(&options.webhooks));
        let _ = write!(
            toml,
            "\n[alerts]\nrules = [\"rules/*.yaml\"]\nalertmanagers = {managers}\nwebhooks = {hooks}\n"
        );
    }
    toml
}

pub(crate) async fn ready(name: &str, address: SocketAddr, program: &mut Program) -> anyhow::Result<()> {
    let mut ended = None;
    let result = wait::until_true(&format!("{name} ready"), READY, async || {
        if let Err(error) = program.expect_running() {
            ended = Some(error);
            return true;
        }
        is_ready(address).await
    })
    .await;
    match ended {
        Some(error) => Err(error),
        None => result.with_context(|| program.log_tail()),
    }
}

/// Whether the program with its health page here says that it is ready.
pub(crate) async fn is_ready(address: SocketAddr) -> bool {
    let asked = client().get(format!("http://{address}/readyz")).timeout(ASKED).send().await;
    asked.is_ok_and(|answer| answer.status().is_success())
}

/// An authority, central's certificate and the gateway's, like `tidegate pki` makes them.
fn make_authority(folder: &Path) -> anyhow::Result<()> {
    let valid = validity()?;
    pki::init(folder, "tidegate demo authority", valid)?;
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    pki::issue(folder, "central", &Role::Server(names), valid)?;
    issue(folder, GATEWAY)
}

/// A gateway's certificate.
fn issue(folder: &Path, gateway: &str) -> anyhow::Result<()> {
    Ok(pki::issue(folder, gateway, &Role::Gateway, validity()?).map(drop)?)
}

fn validity() -> anyhow::Result<Validity> {
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?;
    Ok(Validity::days(now, 30))
}

fn text(path: &Path) -> anyhow::Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", path.display()))
}
