//! The gateway: takes what devices send, makes it durable, computes on it, forwards it exactly once.
//!
//! ```text
//! source ──▶ ingest (door) ──▶ input log ──▶ lanes (decode, dedup, modules, windows) ──▶ output log ──▶ forward ──▶ central
//!   ▲           │ durable                                                                  │
//!   └── ack ────┘                                          trim input ◀── consumed ────────┘
//! ```
//!
//! Invariants of the whole:
//! - a device is acknowledged only after the sync that covers its event;
//! - consuming input, changing state and producing rows are one frame of the output log;
//! - only durable frames leave; a seq that left is never given to other rows;
//! - every event ends in a term of the conservation equation.
//!
//! Stages never call each other: a log lies between them, memory carries only "the tail moved".

pub mod admin;
pub mod config;
pub mod dead_letter;
pub mod decode;
pub mod event;
pub mod folder;
pub mod forward;
pub mod index;
pub mod ingest;
pub mod lanes;
mod left_behind;
pub mod limits;
pub mod metrics;
pub mod modules;
pub mod output;
pub mod source;
pub mod status;
pub mod step;

use config::{Config, From, SourceKind};
use daemon::{
    clock::{SystemClock, SystemRandom},
    metrics::{Readiness, Registry},
    tasks::{Exit, Tasks},
};
use folder::Folder;
use index::Index;
use ingest::{Door, DoorParts, route::Routes};
use journal::{HubOptions, JournalError, Log, LogOptions, Quota, RealDisk};
use lanes::{LaneParts, ModulesFor};
use link::{client::Central, tls::TlsFiles};
use metrics::{ForwardMetrics, LanesMetrics};
use modules::Modules;
use output::{Output, Writer};
use record::{
    DEAD_LETTERS, StreamName,
    clock::{Clock, Random},
};
use std::{collections::BTreeMap, fmt::Display, net::SocketAddr, sync::Arc};
use tokio::{net::TcpListener, runtime::Handle, sync::mpsc};

/// Why the gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder.
    #[error(transparent)]
    Folder(#[from] folder::FolderError),
    /// A log.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The state.
    #[error(transparent)]
    Recovery(#[from] output::RecoveryError),
    /// Modules.
    #[error(transparent)]
    Modules(#[from] modules::ModulesError),
    /// Events wait for streams that the configuration no longer has.
    #[error(
        "the buffer holds events of streams that are not in the configuration: {waiting}; put the streams back until \
         their events have left, or name them in `discard` of [buffer] to give the events up"
    )]
    LeftBehind {
        /// How many events of which stream.
        waiting: String,
    },
    /// An address is taken or not ours.
    #[error("cannot listen on {address} for {what}: {source}")]
    Listen {
        /// Which address.
        address: SocketAddr,
        /// For what.
        what: String,
        /// The operating system's answer.
        source: std::io::Error,
    },
}

/// Everything that is opened before the first task runs.
struct Opened {
    config: Config,
    folder: Folder,
    registry: Registry,
    readiness: Readiness,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    quota: Quota,
    routes: Arc<Routes>,
    door: Arc<Door>,
    modules: Arc<Modules>,
    forward: ForwardMetrics,
    families: LanesMetrics,
    index: Index,
    output: Output,
    output_handle: journal::LogHandle,
}

/// Opens everything, runs until `stop` resolves or a stage fails, and winds down.
pub async fn run<S: Display>(config: Config, stop: impl Future<Output = S>) -> Result<Exit, StartError> {
    let mut tasks = Tasks::new();
    let opened = open(config, &mut tasks)?;
    left_behind::settle(&opened.config, opened.door.hub().log(), &opened.output, &*opened.clock)?;
    let snapshot = opened.output.snapshot();
    let lanes = opened.start_lanes(&mut tasks);
    opened.start_forwarding(&mut tasks, snapshot.clone());
    opened.start_dropping(&mut tasks);
    opened.start_sources(&mut tasks).await?;
    opened.start_admin(&mut tasks, lanes, snapshot).await?;
    let (folder, door) = opened.into_kept();
    let exit = tasks.run(stop, limits::SHUTDOWN_DEADLINE).await;
    // What was taken and not yet written is not acknowledged; it is written all the same.
    if let Err(error) = tokio::task::block_in_place(|| door.hub().close()) {
        tracing::error!(%error, "the input log did not close well");
    }
    // The lock on the folder is held until nobody writes to it any more.
    drop(folder);
    Ok(exit)
}

fn open(config: Config, tasks: &mut Tasks) -> Result<Opened, StartError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let random: Arc<dyn Random> = Arc::new(SystemRandom);
    let (registry, readiness) = (Registry::new(), Readiness::new());
    let folder = Folder::open(&config.data_dir, &config.id, &*random)?;
    let headroom = limits::DISK_HEADROOM_BYTES.min(config.buffer.quota_bytes / 4);
    let quota = Quota::new(&RealDisk, folder.path(), config.buffer.quota_bytes, headroom)?;
    let log_options = || LogOptions {
        segment_bytes: config.buffer.segment_bytes,
        salt: random.next_u64(),
        quota: Some(quota.clone()),
    };
    let (output_log, found) = Log::open(RealDisk, &folder.output(), log_options())?;
    let recovered = output::recover(&output_log, folder.incarnation())?;
    tracing::info!(incarnation = %folder.incarnation(), torn_bytes = found.torn_bytes, steps = recovered.steps,
        state_bytes = recovered.image.bytes(), "output log opened");
    for gap in found.quarantined.iter().chain(&recovered.damaged) {
        tracing::error!(first = %gap.first, last = %gap.last, cause = ?gap.cause, "frames of the output log are not readable");
    }
    let token = tasks.token();
    let stopping = Box::new(move || token.is_cancelled());
    let (writer, output) = Writer::new(output_log, folder.incarnation(), recovered.image, stopping);
    let output_handle = writer.log();
    tasks.spawn_blocking("output-writer", move || writer.run().map_err(Into::into));

    let (index, from) = Index::open(&folder.index(), &output_handle, &registry)?;
    let (follower, log, life, stop) =
        (index.clone(), output_handle.clone(), folder.incarnation(), tasks.token());
    tasks.spawn_blocking("index", move || {
        follower.follow(&log, from, life, &stop)?;
        // An index that failed is missed by nobody; a task that ends would end the process.
        Handle::current().block_on(stop.cancelled());
        Ok(())
    });

    let (input_log, found) = Log::open(RealDisk, &folder.input(), log_options())?;
    tracing::info!(
        torn_bytes = found.torn_bytes,
        bytes = found.bytes,
        segments = found.segments,
        "input log opened"
    );
    let routes = Arc::new(Routes::new(&config));
    let share = |n: u64| usize::try_from(config.buffer.quota_bytes / n).unwrap_or(usize::MAX);
    let options = HubOptions {
        window: config.buffer.commit_interval,
        backlog_bytes: share(limits::ROUND_QUOTA_SHARE).min(journal::limits::HUB_BACKLOG_BYTES),
        push_bytes: share(limits::PUSH_QUOTA_SHARE).max(limits::PUSH_BYTES_MIN),
        reserve_bytes: 2 * config.buffer.segment_bytes,
        quota: Some(quota.clone()),
        ..HubOptions::default()
    };
    let parts = DoorParts { log: input_log, options, routes: routes.clone(), clock: clock.clone() };
    let door = Door::open(parts, &registry)?;
    let modules = Arc::new(Modules::open(&folder.modules(), &config.modules)?);
    let (forward, families) = (ForwardMetrics::new(&registry), LanesMetrics::new(&registry));
    Ok(Opened {
        config,
        folder,
        registry,
        readiness,
        clock,
        random,
        quota,
        routes,
        door,
        modules,
        forward,
        families,
        index,
        output,
        output_handle,
    })
}

/// A lane as the admin API sees it.
pub struct LaneHandle {
    /// Its root stream and the streams below.
    pub streams: Vec<StreamName>,
    /// Orders for it.
    pub commands: mpsc::Sender<lanes::Command>,
    /// What it shows.
    pub metrics: metrics::LaneMetrics,
}

impl Opened {
    /// What outlives the start; the rest goes, so that the writer of the output log ends with the last lane.
    fn into_kept(self) -> (Folder, Arc<Door>) {
        (self.folder, self.door)
    }

    /// One thread per root stream; modules named by the configuration are put in meanwhile.
    fn start_lanes(&self, tasks: &mut Tasks) -> BTreeMap<StreamName, LaneHandle> {
        let (modules, settings, stop) = (self.modules.clone(), self.config.modules.clone(), tasks.token());
        tasks.spawn("modules", async move {
            tokio::task::spawn_blocking(move || modules.preload(&settings)).await?;
            stop.cancelled().await;
            Ok(())
        });
        let dead_letters = StreamName::new(DEAD_LETTERS).expect("a valid name");
        // Only a writer that has already ended refuses, and its task tells why.
        let _ = self.output.announce(vec![(dead_letters, dead_letter::schema())]);
        let for_stream = self.modules.clone();
        let modules_for: ModulesFor = Arc::new(move |stream, input| for_stream.for_stream(stream, input));
        let roots = self.config.streams.iter().filter(|s| matches!(s.from, From::Sources { .. }));
        let mut lanes = BTreeMap::new();
        for (index, root) in roots.enumerate() {
            let root = &self.with_fitting_dedup(root);
            let (commands, orders) = mpsc::channel(4);
            let metrics = self.families.lane(&root.name);
            let parts = LaneParts {
                root: root.clone(),
                streams: self.config.streams.clone(),
                index: index as u16,
                routes: self.routes.clone(),
                input: self.door.hub().log().clone(),
                output: self.output.clone(),
                modules: modules_for.clone(),
                modules_changed: self.modules.changed(),
                commands: orders,
                clock: self.clock.clone(),
                metrics: metrics.clone(),
                pressed: self.pressed(),
                step_interval: self.config.buffer.step_interval,
                step_bytes_max: self.step_bytes_max(),
                give_up_bytes: limits::HELD_GIVE_UP_SEGMENTS * self.config.buffer.segment_bytes,
                stop: tasks.token(),
                runtime: Handle::current(),
            };
            let streams = below(&self.config.streams, &root.name);
            lanes.insert(root.name.clone(), LaneHandle { streams, commands, metrics });
            tasks
                .spawn_blocking(format!("lane {}", root.name), move || lanes::run(parts).map_err(Into::into));
        }
        lanes
    }

    fn start_forwarding(
        &self,
        tasks: &mut Tasks,
        snapshot: tokio::sync::watch::Receiver<Arc<output::Snapshot>>,
    ) {
        let central = &self.config.central;
        let tls = TlsFiles {
            ca: central.ca.clone(),
            cert: central.cert.clone(),
            key: central.key.clone(),
            revoked: None,
        };
        let parts = forward::ForwardParts {
            gateway: self.config.id.clone(),
            incarnation: self.folder.incarnation(),
            log: self.output_handle.clone(),
            snapshot: snapshot.clone(),
            central: Central::new(central.urls.clone(), tls),
            clock: self.clock.clone(),
            random: self.random.clone(),
            metrics: self.forward.clone(),
            stop: tasks.token(),
        };
        tasks.spawn("forward", async move { forward::run(parts).await.map_err(Into::into) });
        let roots = self.config.streams.iter().filter(|s| matches!(s.from, From::Sources { .. }));
        let (input, lanes) = (self.door.hub().log().clone(), roots.map(|s| s.name.clone()).collect());
        let stop = tasks.token();
        tasks.spawn("trim", async move {
            forward::trim_input(input, lanes, snapshot, stop).await.map_err(Into::into)
        });
    }

    /// A checkpoint stands at the start of every segment of the output log, so the dedup keys of a stream may not take
    /// more than a quarter of one: with a small quota fewer are remembered.
    fn with_fitting_dedup(&self, root: &config::Stream) -> config::Stream {
        let mut root = root.clone();
        let fitting = self.config.buffer.segment_bytes as usize / 4 / step::DEDUP_ENTRY_BYTES;
        if let From::Sources { dedup: Some(dedup), .. } = &mut root.from
            && dedup.max_keys > fitting
        {
            tracing::warn!(stream = %root.name, asked = dedup.max_keys, remembered = fitting,
                "fewer dedup keys are remembered than asked for: a segment of the buffer holds no more");
            dedup.max_keys = fitting;
        }
        root
    }

    /// Most bytes that one step may come to.
    fn step_bytes_max(&self) -> usize {
        let share = self.config.buffer.quota_bytes / limits::STEP_OUT_QUOTA_SHARE;
        usize::try_from(share).unwrap_or(usize::MAX).min(limits::STEP_OUT_BYTES_MAX)
    }

    /// Whether the buffer is so full that dropping policies apply.
    fn pressed(&self) -> Arc<dyn Fn() -> bool + Send + Sync> {
        let (quota, room) =
            (self.quota.clone(), limits::DROP_BELOW_SEGMENTS * self.config.buffer.segment_bytes);
        Arc::new(move || !quota.admits(room))
    }

    /// The task that gives up the oldest rows, where a stream's policy says so.
    fn start_dropping(&self, tasks: &mut Tasks) {
        let roots = self.config.streams.iter().filter(|s| matches!(s.from, From::Sources { .. }));
        let lanes: std::collections::BTreeSet<StreamName> =
            roots.filter(|s| s.on_full == config::OnFull::DropOldest).map(|s| s.name.clone()).collect();
        if lanes.is_empty() {
            return;
        }
        let dropping = forward::DropOldest {
            lanes,
            log: self.output_handle.clone(),
            output: self.output.clone(),
            incarnation: self.folder.incarnation(),
            acked: self.forward.clone(),
            metrics: self.families.clone(),
            pressed: self.pressed(),
            stop: tasks.token(),
        };
        tasks.spawn("drop-oldest", async move { dropping.run().await.map_err(Into::into) });
    }

    async fn start_sources(&self, tasks: &mut Tasks) -> Result<(), StartError> {
        for source in &self.config.sources {
            let (name, door, registry, stop) =
                (source.name.clone(), self.door.clone(), self.registry.clone(), tasks.token());
            let task = format!("source {name}");
            match source.kind.clone() {
                SourceKind::Http(settings) => {
                    let listener = listen(settings.bind, &task).await?;
                    tasks.spawn(task, async move {
                        source::http::serve(listener, name, settings, door, &registry, stop)
                            .await
                            .map_err(Into::into)
                    });
                }
                SourceKind::Mqtt(settings) => {
                    let (gateway, random) = (self.config.id.clone(), self.random.clone());
                    let folder = self.folder.path().to_owned();
                    let parts = source::mqtt_client::Parts { name, gateway, settings, folder, door, random };
                    tasks.spawn(task, async move {
                        source::mqtt_client::run(parts, &registry, stop).await.map_err(Into::into)
                    });
                }
                SourceKind::Listener(settings) => {
                    let (listener, clock) = (listen(settings.bind, &task).await?, self.clock.clone());
                    tasks.spawn(task, async move {
                        let served = source::mqtt_listener::serve(
                            listener, name, settings, door, clock, &registry, stop,
                        );
                        served.await.map_err(Into::into)
                    });
                }
            }
        }
        // An input log that failed takes the process with it: the supervisor restarts it, and recovery sees the truth.
        let (mut durable, stop) = (self.door.watch(), tasks.token());
        let log = self.door.hub().log().clone();
        tasks.spawn("input-log", async move {
            tokio::select! {
                () = stop.cancelled() => Ok(()),
                () = async { while durable.changed().await.is_ok() {} } => {
                    Err(log.poisoned().unwrap_or_else(|| "the input log ended".to_owned()).into())
                }
            }
        });
        Ok(())
    }

    async fn start_admin(
        &self,
        tasks: &mut Tasks,
        lanes: BTreeMap<StreamName, LaneHandle>,
        snapshot: tokio::sync::watch::Receiver<Arc<output::Snapshot>>,
    ) -> Result<(), StartError> {
        let listener = listen(self.config.admin, "the admin pages").await?;
        let (checked, stop) = (self.readiness.check("start"), tasks.token());
        let gateway = Arc::new(status::Gateway {
            gateway: self.config.id.clone(),
            incarnation: self.folder.incarnation(),
            streams: self.config.streams.clone(),
            lanes,
            snapshot,
            door: self.door.clone(),
            output: self.output_handle.clone(),
            quota: self.quota.clone(),
            forward: self.forward.clone(),
            index: self.index.clone(),
        });
        status::register(&gateway, &self.registry);
        let parts = admin::Parts {
            registry: self.registry.clone(),
            readiness: self.readiness.clone(),
            streams: status::routes(gateway.clone()),
            status: Arc::new(move || status::page(&gateway)),
            modules: self.modules.store().clone(),
            config: Arc::new(self.config.clone()),
            modules_changed: self.modules.changes(),
        };
        tracing::info!(gateway = %self.config.id, admin = %self.config.admin, "started");
        checked.ready();
        tasks.spawn("admin", async move { admin::serve(listener, parts, stop).await.map_err(Into::into) });
        Ok(())
    }
}

/// A stream and all streams below it, parents first.
fn below(streams: &[config::Stream], root: &StreamName) -> Vec<StreamName> {
    let mut out = vec![root.clone()];
    for stream in streams {
        if matches!(&stream.from, From::Stream(parent) if out.contains(parent)) {
            out.push(stream.name.clone());
        }
    }
    out
}

async fn listen(address: SocketAddr, what: &str) -> Result<TcpListener, StartError> {
    let bound = TcpListener::bind(address).await;
    let listener = bound.map_err(|source| StartError::Listen { address, what: what.to_owned(), source })?;
    let local = listener.local_addr().unwrap_or(address);
    tracing::info!(%local, what, "listening");
    Ok(listener)
}
