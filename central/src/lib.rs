//! The central daemon: takes blocks from gateways, keeps them in a log, writes them to ClickHouse, judges alert rules.
//!
//! In data order: [`link`] (gateways knock here) → [`log`] → [`sink`] → [`clickhouse`] → [`rules`] → [`alerts`]; `api` and
//! `audit` look at all of them. A stage never calls another: the log and the tables are the queues between them.
//!
//! Invariants:
//! - one process per data folder;
//! - a stage that ends unasked ends the process: the supervisor starts it again, and every start is a recovery;
//! - what is configured is checked before any storage is opened.

pub mod alerts;
pub mod api;
pub mod audit;
pub mod clickhouse;
pub mod config;
pub mod limits;
pub mod link;
pub mod log;
pub mod rules;
pub mod sink;

use ::link::tls::TlsError;
use clickhouse::{
    Account, ClickHouse, Tables,
    process::{Embedded, EmbeddedOptions, PrepareError},
};
use config::Config;
use daemon::{
    clock::{SystemClock, SystemRandom},
    metrics::{Readiness, Registry},
    tasks::{Exit, Tasks},
};
use journal::{DirLock, JournalError, RealDisk};
use limits::STOP_DEADLINE;
use link::{Gateways, LinkError, LinkMetrics, LinkParts, SchemaGate, Unchecked};
use log::{Log, embedded};
use record::clock::{Clock, Random};
use sink::{SinkHandle, SinkMetrics, SinkOptions};
use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};
use thiserror::Error;
use tokio::net::TcpListener;

/// The sink's group in the log.
pub const SINK_GROUP: &str = "sink";

/// Why central could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The data folder cannot be made.
    #[error("the data folder {}: {source}", path.display())]
    DataDir {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has the data folder.
    #[error(transparent)]
    Lock(#[from] JournalError),
    /// The log.
    #[error(transparent)]
    Log(#[from] embedded::OpenError),
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The embedded ClickHouse server's folder.
    #[error("the embedded clickhouse server: {0}")]
    Embedded(#[from] PrepareError),
    /// There is no program to start as the embedded server.
    #[error("the embedded clickhouse server: {} is not there; name it with clickhouse.program", .0.display())]
    NoProgram(PathBuf),
    /// The address of metrics and API.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// What every stage stands on.
pub struct Base {
    /// The checked configuration.
    pub config: Config,
    /// Between link and sink.
    pub log: Arc<dyn Log>,
    /// Who is known and connected.
    pub gateways: Arc<Gateways>,
    /// Metrics.
    pub registry: Registry,
    /// What must hold before this process counts as ready.
    pub readiness: Readiness,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub random: Arc<dyn Random>,
}

/// Checks what a configuration points to, without opening any storage.
pub fn check(config: &Config) -> Result<(), StartError> {
    if let Some(link) = &config.link {
        link.tls.server_config()?;
    }
    Ok(())
}

/// Runs central until `stop` resolves or a stage ends.
pub async fn run(
    config: Config,
    stop: impl Future<Output = &'static str> + Send,
) -> Result<Exit, StartError> {
    check(&config)?;
    let data_dir = config.data_dir.clone();
    let folder = |source| StartError::DataDir { path: data_dir.clone(), source };
    std::fs::create_dir_all(&data_dir).map_err(folder)?;
    let _lock = DirLock::acquire(&data_dir.join("lock"))?;
    let base = base(config)?;
    let mut tasks = Tasks::new();
    let clickhouse = start_clickhouse(&base, &mut tasks)?;
    let tables = Arc::new(Tables::new(clickhouse.clone()));
    let sink = base.config.roles.sink.then(|| start_sink(&base, &clickhouse, &tables, &mut tasks));
    let gate: Arc<dyn SchemaGate> = if sink.is_some() { tables } else { Arc::new(Unchecked) };
    start_link(&base, gate, &mut tasks).await?;
    start_pages(&base, &mut tasks).await?;
    Ok(tasks.run(stop, STOP_DEADLINE).await)
}

fn base(config: Config) -> Result<Base, StartError> {
    let registry = Registry::new();
    let random = Arc::new(SystemRandom);
    let log = embedded::Embedded::open(RealDisk, &config.data_dir.join("log"), &config.log, &*random)?;
    let log: Arc<dyn Log> = Arc::new(log);
    link::log_metrics(&registry, &log);
    Ok(Base {
        config,
        log,
        gateways: Arc::new(Gateways::new()),
        registry,
        readiness: Readiness::new(),
        clock: Arc::new(SystemClock::new()),
        random,
    })
}

/// Gateways → log.
async fn start_link(base: &Base, gate: Arc<dyn SchemaGate>, tasks: &mut Tasks) -> Result<(), StartError> {
    let Some(config) = base.config.link.clone() else { return Ok(()) };
    let ready = base.readiness.check("link");
    let listener = link::bind(config.bind).await?;
    tracing::info!(address = %config.bind, "gateways may connect");
    let parts = LinkParts {
        log: base.log.clone(),
        gate,
        gateways: base.gateways.clone(),
        metrics: LinkMetrics::new(&base.registry),
        clock: base.clock.clone(),
    };
    let token = tasks.token();
    tasks.spawn("link", async move {
        ready.ready();
        Ok(link::run(config, listener, parts, token).await?)
    });
    Ok(())
}

/// The server of all tables: one that exists, or the embedded one, which belongs to the process with the sink.
fn start_clickhouse(base: &Base, tasks: &mut Tasks) -> Result<ClickHouse, StartError> {
    let (program, library, database) = match &base.config.clickhouse {
        config::ClickHouse::Server { url, user, password, database } => {
            let (user, password, database) = (user.clone(), password.clone(), database.clone());
            return Ok(ClickHouse::at(url, Account { user, password, database }));
        }
        config::ClickHouse::Embedded { program, library, database } => (program, library, database),
    };
    let options = EmbeddedOptions {
        program: program.clone().unwrap_or_else(beside_this_program),
        library: library.clone(),
        folder: base.config.data_dir.join("clickhouse"),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
    };
    if base.config.roles.sink && !options.program.is_file() {
        return Err(StartError::NoProgram(options.program));
    }
    let server = Embedded::prepare(options, &*base.random)?;
    let account = Account {
        user: "default".into(),
        password: server.password().to_owned(),
        database: database.clone(),
    };
    let clickhouse = ClickHouse::following(server.url(), account);
    if base.config.roles.sink {
        let ready = base.readiness.check("clickhouse");
        let mut url = server.url();
        let token = tasks.token();
        tasks.spawn("clickhouse", async move {
            tokio::join!(server.run(token), async {
                while url.changed().await.is_ok() {
                    match url.borrow_and_update().is_some() {
                        true => ready.ready(),
                        false => ready.not_ready("the embedded server is not up"),
                    }
                }
            });
            Ok(())
        });
    }
    Ok(clickhouse)
}

fn beside_this_program() -> PathBuf {
    let name = "tidegate-clickhouse";
    std::env::current_exe().map_or_else(|_| name.into(), |here| here.with_file_name(name))
}

/// Log → tables.
fn start_sink(base: &Base, clickhouse: &ClickHouse, tables: &Arc<Tables>, tasks: &mut Tasks) -> SinkHandle {
    let parts = sink::Parts {
        log: base.log.clone(),
        clickhouse: clickhouse.clone(),
        tables: tables.clone(),
        metrics: SinkMetrics::new(&base.registry),
        clock: base.clock.clone(),
        options: SinkOptions::default(),
    };
    sink::start(parts, tasks)
}

/// Metrics and health.
async fn start_pages(base: &Base, tasks: &mut Tasks) -> Result<(), StartError> {
    let address = base.config.api;
    let bind = |source| StartError::Bind { address, source };
    let listener = TcpListener::bind(address).await.map_err(bind)?;
    let pages = daemon::metrics::router(base.registry.clone(), base.readiness.clone());
    let token = tasks.token();
    tracing::info!(address = %listener.local_addr().map_err(bind)?, "metrics and health");
    tasks.spawn("pages", async move {
        axum::serve(listener, pages).with_graceful_shutdown(token.cancelled_owned()).await?;
        Ok(())
    });
    Ok(())
}
