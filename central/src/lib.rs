//! The central daemon: takes blocks from gateways, keeps them in a log, writes them to ClickHouse, judges alert rules.
//!
//! In data order: [`link`] (gateways knock here) → [`log`] → [`sink`] → [`clickhouse`] → [`rules`] → [`alerts`]; beside the
//! sink, where it is asked for, [`fanout`]; [`api`] and [`audit`] look at all of them. A stage never calls another: the log and the tables are the queues between them.
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
pub mod fanout;
pub mod limits;
pub mod link;
pub mod log;
pub mod rules;
pub mod sink;

use ::link::tls::TlsError;
use alerts::{Receiver, ReceiverKind};
use api::ApiParts;
use audit::{AuditError, AuditParts, Auditor, AuditorHandle};
use clickhouse::{
    Account, ClickHouse, Reader, Tables, ViewSource, Views,
    process::{Embedded, EmbeddedOptions, PrepareError},
};
use config::Config;
use daemon::{
    clock::{SystemClock, SystemRandom},
    metrics::{Readiness, Registry},
    tasks::{Exit, Tasks},
};
use fanout::FanoutMetrics;
use journal::{DirLock, JournalError, RealDisk};
use limits::{LET_GO_TIMEOUT, STOP_DEADLINE};
use link::{Gateways, LinkError, LinkMetrics, LinkParts, SchemaGate, Unchecked};
use log::{Log, Outlet, embedded, kafka::Kafka};
use record::clock::{Clock, Random};
use rules::{QuerySource, RuleFileError, RuleSet, Ruler, RulerError, RulerHandle};
use sink::{LogFrontier, SinkMetrics, SinkOptions};
use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};
use thiserror::Error;
use tokio::net::TcpListener;

/// The sink's group in the log.
pub const SINK_GROUP: &str = "sink";
/// That of the fan-out.
pub const FANOUT_GROUP: &str = "fanout";

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
    /// The log in Kafka.
    #[error("the log in Kafka: {0}")]
    Kafka(String),
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
    /// The engine's library is not where the configuration says.
    #[error(
        "the embedded clickhouse server: the engine's library {}: {why}; `cargo xtask setup` fetches libchdb.so into \
         ~/.cache/tidegate: copy it to this path, or name another with clickhouse.library",
        path.display()
    )]
    NoLibrary {
        /// Where it should be.
        path: PathBuf,
        /// Why it cannot be read.
        why: io::Error,
    },
    /// Mistakes in the rule files, all of them, or files that cannot be found.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Rules(Vec<RuleFileError>),
    /// A receiver of alerts is none.
    #[error("{0}")]
    Alerts(String),
    /// The rules' state.
    #[error(transparent)]
    Ruler(#[from] RulerError),
    /// The auditor's tally.
    #[error(transparent)]
    Audit(#[from] AuditError),
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
    /// Topics of single events, where the log has such.
    pub outlet: Option<Arc<dyn Outlet>>,
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
    rule_set(config)?;
    receivers(config)?;
    Ok(())
}

/// Runs central until `stop` resolves or a stage ends.
pub async fn run(
    config: Config,
    stop: impl Future<Output = &'static str> + Send,
) -> Result<Exit, StartError> {
    // A second installation is refused, and means the same provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    check(&config)?;
    let data_dir = config.data_dir.clone();
    let folder = |source| StartError::DataDir { path: data_dir.clone(), source };
    std::fs::create_dir_all(&data_dir).map_err(folder)?;
    let _lock = DirLock::acquire(&data_dir.join("lock"))?;
    let mut tasks = Tasks::new();
    let base = base(config, &mut tasks).await?;
    watch_log(&base, &mut tasks);
    let clickhouse = start_clickhouse(&base, &mut tasks)?;
    let tables = Arc::new(Tables::new(clickhouse.clone(), base.log.partitions()));
    if base.config.roles.sink {
        start_sink(&base, &clickhouse, &tables, &mut tasks);
    }
    start_fanout(&base, &mut tasks);
    let gate = schema_gate(&base.config, tables);
    let views: Arc<dyn ViewSource> = Arc::new(Views::new(clickhouse.clone(), base.log.partitions()));
    let source: Arc<dyn QuerySource> = Arc::new(Reader::new(clickhouse));
    let auditor = start_auditor(&base, &source, views, &mut tasks)?;
    // Before the first gateway may knock: every rule judges what is stored from now on.
    let ruler = start_rules(&base, &source, &mut tasks).await?;
    start_link(&base, gate, &mut tasks).await?;
    start_pages(&base, source, auditor, ruler, &mut tasks).await?;
    // While the stages end, others take over already what is owned here.
    let (log, token) = (base.log.clone(), tasks.token());
    tasks.spawn("letting go", async move {
        token.cancelled().await;
        let_go(&*log).await;
        Ok(())
    });
    Ok(tasks.run(stop, STOP_DEADLINE).await)
}

async fn let_go(log: &dyn Log) {
    if tokio::time::timeout(LET_GO_TIMEOUT, log.close()).await.is_err() {
        tracing::warn!(
            "the log does not answer: what is owned here is another's only when this process is missed"
        );
    }
}

/// Who judges columns at Hello. A server of its own can be asked from any process, the embedded one belongs to the sink's.
fn schema_gate(config: &Config, tables: Arc<Tables>) -> Arc<dyn SchemaGate> {
    let reachable = config.roles.sink || matches!(config.clickhouse, config::ClickHouse::Server { .. });
    if reachable { tables } else { Arc::new(Unchecked) }
}

async fn base(config: Config, tasks: &mut Tasks) -> Result<Base, StartError> {
    let registry = Registry::new();
    let random = Arc::new(SystemRandom);
    let (log, outlet): (Arc<dyn Log>, Option<Arc<dyn Outlet>>) = match &config.log {
        config::Log::Embedded(options) => {
            let log = embedded::Embedded::open(RealDisk, &config.data_dir.join("log"), options, &*random)?;
            link::log_size_metrics(&registry, log.quota());
            (Arc::new(log), None)
        }
        config::Log::Kafka(options) => {
            tracing::info!(
                brokers = options.brokers.join(","),
                prefix = options.prefix,
                "the log is in Kafka"
            );
            let log =
                Arc::new(Kafka::open(options.clone(), random.clone()).await.map_err(StartError::Kafka)?);
            log.count_in(&registry);
            let (aged, shown, token) = (log.clone(), registry.clone(), tasks.token());
            tasks.spawn("log's ages", async move {
                aged.watch_ages(&shown, &SystemClock::new(), token).await;
                Ok(())
            });
            let (watched, token) = (log.clone(), tasks.token());
            tasks.spawn("log's threads", async move {
                tokio::select! {
                    () = token.cancelled() => Ok(()),
                    name = watched.thread_ended() => Err(format!("the thread {name} ended").into()),
                }
            });
            (log.clone(), Some(log))
        }
    };
    Ok(Base {
        config,
        log,
        outlet,
        gateways: Arc::new(Gateways::new()),
        registry,
        readiness: Readiness::new(),
        clock: Arc::new(SystemClock::new()),
        random,
    })
}

/// The log's extent, for the metrics.
fn watch_log(base: &Base, tasks: &mut Tasks) {
    let (registry, log, token) = (base.registry.clone(), base.log.clone(), tasks.token());
    tasks.spawn("log", async move {
        link::watch_log(&registry, log, token).await;
        Ok(())
    });
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
    if let Some(path) = options.library.as_ref().filter(|_| base.config.roles.sink) {
        std::fs::File::open(path).map_err(|why| StartError::NoLibrary { path: path.clone(), why })?;
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
        let restarts = base.registry.counter(
            "tidegate_clickhouse_restarts_total",
            "Starts of the embedded ClickHouse server after the first.",
        );
        let mut url = server.url();
        let token = tasks.token();
        tasks.spawn("clickhouse", async move {
            tokio::join!(server.run(restarts, token), async {
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
fn start_sink(base: &Base, clickhouse: &ClickHouse, tables: &Arc<Tables>, tasks: &mut Tasks) {
    let parts = sink::Parts {
        log: base.log.clone(),
        clickhouse: clickhouse.clone(),
        tables: tables.clone(),
        metrics: SinkMetrics::new(&base.registry),
        clock: base.clock.clone(),
        options: SinkOptions::default(),
    };
    // Nobody here looks at its lanes: metrics do.
    let _ = sink::start(parts, tasks);
}

/// Log → topics of single events.
fn start_fanout(base: &Base, tasks: &mut Tasks) {
    let Some(outlet) = base.outlet.clone().filter(|_| base.config.roles.fanout) else { return };
    let parts = fanout::Parts {
        log: base.log.clone(),
        outlet,
        streams: base.config.fanout.streams.clone().map(Arc::new),
        metrics: FanoutMetrics::new(&base.registry),
        clock: base.clock.clone(),
    };
    fanout::start(parts, tasks);
    base.readiness.check("fanout").ready();
}

/// Log and tables → verdict.
fn start_auditor(
    base: &Base,
    source: &Arc<dyn QuerySource>,
    views: Arc<dyn ViewSource>,
    tasks: &mut Tasks,
) -> Result<Option<AuditorHandle>, StartError> {
    if !base.config.roles.audit {
        return Ok(None);
    }
    let (auditor, handle) = Auditor::open(AuditParts {
        dir: base.config.data_dir.join("audit"),
        log: base.log.clone(),
        gateways: base.gateways.clone(),
        frontier: Arc::new(LogFrontier(base.log.clone())),
        source: source.clone(),
        views,
        clock: base.clock.clone(),
        registry: base.registry.clone(),
    })?;
    let token = tasks.token();
    tasks.spawn("audit", async move { Ok(auditor.run(token).await?) });
    Ok(Some(handle))
}

/// Tables → alerts.
async fn start_rules(
    base: &Base,
    source: &Arc<dyn QuerySource>,
    tasks: &mut Tasks,
) -> Result<Option<RulerHandle>, StartError> {
    if !base.config.roles.alerts {
        return Ok(None);
    }
    let (ruler, handle) = Ruler::open(rules::Parts {
        dir: base.config.data_dir.join("rules"),
        log: base.log.id().to_owned(),
        rules: rule_set(&base.config)?,
        receivers: receivers(&base.config)?,
        source: source.clone(),
        frontier: Arc::new(LogFrontier(base.log.clone())),
        clock: base.clock.clone(),
        random: base.random.clone(),
        registry: base.registry.clone(),
    })
    .await?;
    let token = tasks.token();
    tasks.spawn("rules", async move { Ok(ruler.run(token).await?) });
    Ok(Some(handle))
}

/// The rules of all files that the patterns name; a `*` may stand in the last component.
fn rule_set(config: &Config) -> Result<RuleSet, StartError> {
    let files = rules::file::find(&config.alerts.rules).map_err(StartError::Rules)?;
    rules::file::load(&files).map_err(StartError::Rules)
}

fn receivers(config: &Config) -> Result<Vec<Receiver>, StartError> {
    let of = |kind, urls: &[String]| -> Result<Vec<Receiver>, StartError> {
        urls.iter().map(|url| Receiver::new(kind, url).map_err(StartError::Alerts)).collect()
    };
    let mut all = of(ReceiverKind::Alertmanager, &config.alerts.alertmanagers)?;
    all.extend(of(ReceiverKind::Webhook, &config.alerts.webhooks)?);
    Ok(all)
}

/// Metrics, health and the API.
async fn start_pages(
    base: &Base,
    source: Arc<dyn QuerySource>,
    auditor: Option<AuditorHandle>,
    ruler: Option<RulerHandle>,
    tasks: &mut Tasks,
) -> Result<(), StartError> {
    let address = base.config.api;
    let bind = |source| StartError::Bind { address, source };
    let listener = TcpListener::bind(address).await.map_err(bind)?;
    let (registry, readiness) = (base.registry.clone(), base.readiness.clone());
    let pages = if base.config.roles.api {
        let parts = ApiParts {
            gateways: base.gateways.clone(),
            partitions: base.log.partitions(),
            source,
            ruler,
            auditor,
            receivers: receivers(&base.config)?.len(),
        };
        api::router(parts, registry, readiness)
    } else {
        daemon::metrics::router(registry, readiness)
    };
    let token = tasks.token();
    tracing::info!(address = %listener.local_addr().map_err(bind)?, "metrics, health and API");
    tasks.spawn("pages", async move {
        axum::serve(listener, pages).with_graceful_shutdown(token.cancelled_owned()).await?;
        Ok(())
    });
    Ok(())
}
