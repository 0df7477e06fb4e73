//! Both ends of the link over loopback with real TLS: blocks through killed connections and a central that stops and
//! comes back; callers that have no business here.

use link::{
    client::{self, Central, Event, Outbox, OutboxError},
    forward::{Entry, Item, Position},
    limits::PROTOCOL,
    message::{Batch, Hello, StreamHello, StreamLedger},
    pki::{self, Role, Validity},
    tls::TlsFiles,
};
use record::{
    BatchBuilder, BlockHeader, Column, ColumnType, Counts, Digest, EventTime, GatewayId, Incarnation, Seq,
    StreamName, StreamSchema, Value, block, chain_hash,
    clock::{Clock, Random, SeededRandom},
};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};
use tidegate_central::{
    link::{Gateways, LinkConfig, LinkError, LinkMetrics, LinkParts, SchemaGate, SchemaRefusal, Unchecked},
    log::{
        Lease, Log, Offset, Partition,
        embedded::{Embedded, EmbeddedOptions},
        partition_of,
    },
};
use tokio::{
    io::{AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(60);

fn stream(name: &str) -> StreamName {
    StreamName::new(name).expect("valid")
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(daemon::clock::SystemClock::new())
}

fn schema() -> Arc<StreamSchema> {
    Arc::new(StreamSchema::new(vec![Column { name: "v".into(), ty: ColumnType::Int64 }]).expect("valid"))
}

// ---- identities

struct Pki {
    dir: tempfile::TempDir,
}

impl Pki {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temp dir");
        let me = Self { dir };
        pki::init(me.path(), "test authority", me.valid(1)).expect("made");
        me.issue("central", Role::Server(vec!["127.0.0.1".into()]), me.valid(1));
        me
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn valid(&self, days: u32) -> Validity {
        Validity::days(clock().wall_ns(), days)
    }

    fn issue(&self, name: &str, role: Role, valid: Validity) -> PathBuf {
        pki::issue(self.path(), name, &role, valid).expect("issued").cert
    }

    fn files(&self, name: &str) -> TlsFiles {
        TlsFiles {
            ca: self.path().join("ca.pem"),
            cert: self.path().join(format!("{name}.pem")),
            key: self.path().join(format!("{name}.key")),
            revoked: None,
        }
    }
}

// ---- central

struct Running {
    address: SocketAddr,
    log: Arc<dyn Log>,
    gateways: Arc<Gateways>,
    registry: daemon::metrics::Registry,
    stop: CancellationToken,
    task: JoinHandle<Result<(), LinkError>>,
}

fn open_log(dir: &Path, options: &EmbeddedOptions) -> Arc<dyn Log> {
    Arc::new(Embedded::open(journal::RealDisk, dir, options, &SeededRandom::new(9)).expect("opens"))
}

impl Running {
    async fn start(pki: &Pki, log: Arc<dyn Log>, gate: Arc<dyn SchemaGate>) -> Self {
        let registry = daemon::metrics::Registry::new();
        let gateways = Arc::new(Gateways::new());
        let listener = tidegate_central::link::bind(([127, 0, 0, 1], 0).into()).await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let revoked = Some(pki.path().join("revoked.txt"));
        let config = LinkConfig {
            bind: address,
            tls: TlsFiles { revoked, ..pki.files("central") },
            commit_interval: Duration::from_millis(2),
            commit_bytes: 1 << 20,
            limits: Default::default(),
        };
        let parts = LinkParts {
            log: log.clone(),
            gate,
            gateways: gateways.clone(),
            metrics: LinkMetrics::new(&registry),
            clock: clock(),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(tidegate_central::link::run(config, listener, parts, stop.clone()));
        Self { address, log, gateways, registry, stop, task }
    }

    async fn stop(self) {
        self.stop.cancel();
        timeout(LIMIT, self.task).await.expect("ends in time").expect("no panic").expect("ends well");
    }

    /// Waits until a line stands among the metrics.
    async fn metric(&self, line: &str) {
        let found = timeout(LIMIT, async {
            while !self.registry.render().lines().any(|l| l == line) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let all =
            || self.registry.render().lines().filter(|l| l.contains("_link_")).collect::<Vec<_>>().join("\n");
        found.await.unwrap_or_else(|_| panic!("{line} not in\n{}", all()));
    }

    /// Every row of the log, per stream, with the chain checked.
    async fn rows(&self) -> BTreeMap<StreamName, Vec<u64>> {
        let mut out: BTreeMap<StreamName, Vec<u64>> = BTreeMap::new();
        let mut heads: BTreeMap<StreamName, Digest> = BTreeMap::new();
        for p in 0..self.log.partitions() {
            let mut from = Offset(0);
            loop {
                let records = self.log.read("test", Partition(p), from, 100_000).await.expect("readable");
                let Some(last) = records.last() else { break };
                from = last.offset.next();
                for r in records {
                    let h = &r.headers;
                    let head = heads.entry(h.stream.clone()).or_default();
                    assert_eq!(h.prev_hash, *head, "the chain of {}", h.stream);
                    *head = h.hash;
                    let rows = block::decode(&r.bytes).expect("a block");
                    assert_eq!(rows.rows() as u32, h.rows);
                    out.entry(h.stream.clone()).or_default().extend(h.first_seq.0..=h.last_seq.0);
                }
            }
        }
        out
    }
}

// ---- the gateway

/// A gateway's output log in memory.
struct Tape {
    gateway: GatewayId,
    life: Incarnation,
    entries: Mutex<Vec<Entry>>,
    heads: Mutex<BTreeMap<StreamName, (Seq, Digest)>>,
    moved: watch::Sender<usize>,
}

impl Tape {
    fn new(gateway: &str) -> Arc<Self> {
        Arc::new(Self {
            gateway: GatewayId::new(gateway).expect("valid"),
            life: Incarnation(5),
            entries: Mutex::default(),
            heads: Mutex::default(),
            moved: watch::channel(0).0,
        })
    }

    /// One entry with a block of `rows` rows for each stream named.
    fn push(&self, streams: &[&str], rows: u64) {
        let mut entries = self.entries.lock().expect("no panic");
        let mut items = Vec::new();
        for name in streams {
            let name = stream(name);
            let mut heads = self.heads.lock().expect("no panic");
            let (last, prev) = heads.get(&name).copied().unwrap_or_default();
            let mut builder = BatchBuilder::new(schema());
            for n in 0..rows {
                let time = EventTime::from_ns(n.into()).expect("in range");
                builder.push(time, "d", &[Value::Int((last.0 + n) as i64)]).expect("fits");
            }
            let bytes = block::encode(&builder.finish().expect("fits")).expect("encodes");
            let (first, end, fingerprint) = (last.next(), Seq(last.0 + rows), schema().fingerprint());
            let hash = chain_hash(&prev, &name, self.life, first, end, fingerprint, &bytes);
            heads.insert(name.clone(), (end, hash));
            let header = BlockHeader {
                stream: name,
                incarnation: self.life,
                first,
                last: end,
                schema: fingerprint,
                prev_hash: prev,
                hash,
            };
            items.push(Item::Block(Batch { header, bytes: bytes.into() }));
        }
        let position = Position(entries.len() as u64 + 1);
        entries.push(Entry { position, items });
        self.moved.send_replace(entries.len());
    }

    fn expected(&self) -> BTreeMap<StreamName, Vec<u64>> {
        let heads = self.heads.lock().expect("no panic");
        heads.iter().map(|(s, (last, _))| (s.clone(), (1..=last.0).collect())).collect()
    }
}

struct Reading {
    tape: Arc<Tape>,
    next: usize,
    moved: watch::Receiver<usize>,
    through: watch::Sender<u64>,
    events: mpsc::UnboundedSender<Event>,
}

impl Outbox for Reading {
    fn hello(&mut self) -> Hello {
        let heads = self.tape.heads.lock().expect("no panic");
        let stream = |(s, (last, hash)): (&StreamName, &(Seq, Digest))| StreamHello {
            stream: s.clone(),
            schema: (*schema()).clone(),
            last: *last,
            hash: *hash,
        };
        Hello {
            gateway: self.tape.gateway.clone(),
            incarnation: self.tape.life,
            protocol: PROTOCOL,
            software: "test".into(),
            streams: heads.iter().map(stream).collect(),
        }
    }

    fn seek(&mut self, after: Position) -> Result<(), OutboxError> {
        self.next = usize::try_from(after.0)?;
        Ok(())
    }

    fn try_next(&mut self) -> Result<Option<Entry>, OutboxError> {
        let entries = self.tape.entries.lock().expect("no panic");
        self.moved.mark_unchanged();
        let entry = entries.get(self.next).cloned();
        self.next += usize::from(entry.is_some());
        Ok(entry)
    }

    async fn moved(&mut self) {
        if self.moved.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn ledger(&mut self, _: &BTreeMap<StreamName, u64>) -> Vec<StreamLedger> {
        let heads = self.tape.heads.lock().expect("no panic");
        let ledger = |(s, (last, _)): (&StreamName, &(Seq, Digest))| StreamLedger {
            stream: s.clone(),
            counts: Counts { received: last.0, kept: last.0, produced: last.0, ..Counts::default() },
            as_of: *last,
            losses: vec![],
        };
        heads.iter().map(ledger).collect()
    }

    fn event(&mut self, event: Event) -> Result<(), OutboxError> {
        if let Event::Through(p) = event {
            self.through.send_replace(p.0);
        }
        self.events.send(event)?;
        Ok(())
    }
}

struct Gateway {
    tape: Arc<Tape>,
    through: watch::Receiver<u64>,
    events: mpsc::UnboundedReceiver<Event>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), client::ClientError>>,
}

impl Gateway {
    fn start(tape: &Arc<Tape>, address: SocketAddr, tls: TlsFiles) -> Self {
        let mut central = Central::new(vec![format!("https://{address}")], tls);
        central.forward.backoff_min = Duration::from_millis(10);
        central.forward.backoff_max = Duration::from_millis(100);
        central.keepalive_interval = Duration::from_millis(500);
        central.keepalive_timeout = Duration::from_millis(500);
        central.ledger_interval = Duration::from_millis(20);
        let (through_tx, through) = watch::channel(0);
        let (events_tx, events) = mpsc::unbounded_channel();
        let moved = tape.moved.subscribe();
        let mut outbox =
            Reading { tape: tape.clone(), next: 0, moved, through: through_tx, events: events_tx };
        let stop = CancellationToken::new();
        let token = stop.clone();
        let random: Arc<dyn Random> = Arc::new(daemon::clock::SystemRandom);
        let task = tokio::spawn(async move {
            client::run(central, &mut outbox, Position(0), clock(), random, token).await
        });
        Self { tape: tape.clone(), through, events, stop, task }
    }

    async fn drained(&mut self) {
        let all = self.tape.entries.lock().expect("no panic").len() as u64;
        let done = timeout(LIMIT, self.through.wait_for(|p| *p == all)).await;
        done.expect("everything is acknowledged in time").expect("the link runs");
    }

    async fn event(&mut self, what: impl Fn(&Event) -> bool) -> Event {
        let found = timeout(LIMIT, async {
            loop {
                let event = self.events.recv().await.expect("the link runs");
                if what(&event) {
                    return event;
                }
            }
        });
        found.await.expect("it happens in time")
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("no panic").expect("ends well");
    }
}

// ---- a network that can be cut

struct Cable {
    address: SocketAddr,
    target: Arc<Mutex<SocketAddr>>,
    cut: Arc<Mutex<CancellationToken>>,
    freeze: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Cable {
    async fn new(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let target = Arc::new(Mutex::new(target));
        let cut = Arc::new(Mutex::new(CancellationToken::new()));
        let (freeze, frozen) = watch::channel(false);
        let (to, cutter) = (target.clone(), cut.clone());
        let task = tokio::spawn(async move {
            let mut lines = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                let (to, token) = (*to.lock().expect("no panic"), cutter.lock().expect("no panic").clone());
                let mut frozen = frozen.clone();
                lines.spawn(async move {
                    let Ok(mut far) = TcpStream::connect(to).await else { return };
                    tokio::select! {
                        () = token.cancelled() => {}
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        // Both sides stay open and nothing passes any more: half-open for both.
                        () = async { drop(frozen.wait_for(|f| *f).await) } => token.cancelled().await,
                    }
                });
            }
        });
        Self { address, target, cut, freeze, task }
    }

    fn cut(&self) {
        let old = std::mem::take(&mut *self.cut.lock().expect("no panic"));
        old.cancel();
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_once_through_cut_connections_and_restarts() {
    let pki = Pki::new();
    pki.issue("plant-7", Role::Gateway, pki.valid(1));
    let dir = tempfile::tempdir().expect("temp dir");
    let options = EmbeddedOptions { segment_bytes: 1 << 20, ..EmbeddedOptions::default() };
    let mut central = Running::start(&pki, open_log(dir.path(), &options), Arc::new(Unchecked)).await;
    let cable = Cable::new(central.address).await;
    let tape = Tape::new("plant-7");
    let mut gateway = Gateway::start(&tape, cable.address, pki.files("plant-7"));
    for round in 0..12_u64 {
        for n in 0..40 {
            tape.push(if n % 3 == 0 { &["a", "b"] } else { &["a"] }, 1 + (n + round) % 7);
        }
        let target = tape.entries.lock().expect("no panic").len() as u64 - 20;
        let reached = timeout(LIMIT, gateway.through.wait_for(|p| *p >= target)).await;
        reached.expect("in time").expect("the link runs");
        // Some blocks are on their way at this moment.
        cable.cut();
        if round % 4 == 3 {
            central.stop().await;
            central = Running::start(&pki, open_log(dir.path(), &options), Arc::new(Unchecked)).await;
            *cable.target.lock().expect("no panic") = central.address;
        }
    }
    gateway.drained().await;
    assert_eq!(central.rows().await, tape.expected());

    // What the gateway counted is stored beside the data and shown.
    let id = GatewayId::new("plant-7").expect("valid");
    let counted = timeout(LIMIT, async {
        loop {
            let state = central.gateways.snapshot().remove(&id).expect("known");
            let a = state.streams[&stream("a")].clone();
            if let (Some(c), Some(h), Some(connection)) = (a.counted, a.head, state.connected)
                && c.as_of == h.last
            {
                assert_eq!((c.counts.produced, connection.software.as_str()), (h.rows, "test"));
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    counted.await.expect("the ledger comes in time");
    central.metric("tidegate_link_sessions 1").await;
    gateway.stop().await;
    central.metric("tidegate_link_sessions 0").await;
    let before = tape.expected();
    central.stop().await;
    // Nothing is lost or doubled by a last restart.
    let central = Running::start(&pki, open_log(dir.path(), &options), Arc::new(Unchecked)).await;
    assert_eq!(central.rows().await, before);
    central.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_open_connection_is_noticed_and_what_waits_drains_by_itself() {
    let pki = Pki::new();
    pki.issue("plant-7", Role::Gateway, pki.valid(1));
    let dir = tempfile::tempdir().expect("temp dir");
    let log = open_log(dir.path(), &EmbeddedOptions::default());
    let central = Running::start(&pki, log, Arc::new(Unchecked)).await;
    let cable = Cable::new(central.address).await;
    let tape = Tape::new("plant-7");
    tape.push(&["a"], 5);
    let mut gateway = Gateway::start(&tape, cable.address, pki.files("plant-7"));
    gateway.drained().await;
    // The cable is dead and neither side is told; what comes now waits.
    cable.freeze.send_replace(true);
    tape.push(&["a"], 5);
    tape.push(&["a"], 5);
    let event = gateway.event(|e| matches!(e, Event::Disconnected { .. })).await;
    assert!(matches!(&event, Event::Disconnected { reason, .. } if !reason.is_empty()), "{event:?}");
    cable.freeze.send_replace(false);
    cable.cut();
    // No new publish is needed.
    gateway.drained().await;
    assert_eq!(central.rows().await, tape.expected());
    gateway.stop().await;
    central.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_without_business_are_turned_away_with_the_reason() {
    let pki = Pki::new();
    let stranger = Pki::new();
    pki.issue("plant-7", Role::Gateway, pki.valid(1));
    pki.issue("plant-8", Role::Gateway, pki.valid(1));
    pki.issue("old", Role::Gateway, Validity { from_s: 1_000_000_000, until_s: 1_000_086_400 });
    let gone = pki.issue("gone", Role::Gateway, pki.valid(1));
    pki::revoke(&pki.path().join("revoked.txt"), &gone).expect("revoked");
    stranger.issue("plant-7", Role::Gateway, stranger.valid(1));
    let dir = tempfile::tempdir().expect("temp dir");
    let log = open_log(dir.path(), &EmbeddedOptions::default());
    let central = Running::start(&pki, log, Arc::new(Unchecked)).await;

    let unknown = TlsFiles { ca: pki.path().join("ca.pem"), ..stranger.files("plant-7") };
    let cases = [
        ("plant-7", unknown, "unknown_ca"),
        ("plant-7", pki.files("plant-8"), "other_name"),
        ("old", pki.files("old"), "expired"),
        ("gone", pki.files("gone"), "revoked"),
        ("central", pki.files("central"), "bad_certificate"),
        ("plant-7", stranger.files("plant-7"), "central_not_believed"),
    ];
    for (name, tls, reason) in cases {
        let tape = Tape::new(name);
        tape.push(&["a"], 1);
        let mut gateway = Gateway::start(&tape, central.address, tls);
        gateway.event(|e| matches!(e, Event::Disconnected { .. })).await;
        gateway.stop().await;
        let count = format!("tidegate_link_connections_refused_total{{reason=\"{reason}\"}}");
        let counted = central.registry.render().lines().any(|l| l.starts_with(&count) && !l.ends_with(" 0"));
        if !counted {
            central.metric(&format!("{count} 1")).await;
        }
    }
    let mut plain = TcpStream::connect(central.address).await.expect("connects");
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("sent");
    central.metric("tidegate_link_connections_refused_total{reason=\"not_tls\"} 1").await;
    assert!(central.rows().await.is_empty());
    assert!(central.gateways.snapshot().is_empty());
    central.stop().await;
}

/// Refuses one stream until told otherwise.
struct Picky(watch::Receiver<bool>);

#[async_trait::async_trait]
impl SchemaGate for Picky {
    async fn check(&self, name: &StreamName, _: &StreamSchema) -> Result<(), SchemaRefusal> {
        if name.as_str() == "b" && !*self.0.borrow() {
            return Err(SchemaRefusal::Conflict(
                "column v is String in the table, int64 at the gateway".into(),
            ));
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_type_conflict_holds_one_stream_and_its_data_waits() {
    let pki = Pki::new();
    pki.issue("plant-7", Role::Gateway, pki.valid(1));
    let dir = tempfile::tempdir().expect("temp dir");
    let (allow, allowed) = watch::channel(false);
    let log = open_log(dir.path(), &EmbeddedOptions::default());
    let central = Running::start(&pki, log, Arc::new(Picky(allowed))).await;
    let cable = Cable::new(central.address).await;
    let tape = Tape::new("plant-7");
    for _ in 0..20 {
        tape.push(&["a", "b"], 3);
    }
    let mut gateway = Gateway::start(&tape, cable.address, pki.files("plant-7"));
    let halted = gateway.event(|e| matches!(e, Event::Halted(..))).await;
    let Event::Halted(name, why) = halted else { unreachable!("asked for above") };
    assert_eq!(name, stream("b"));
    assert!(why.to_string().contains("String in the table, int64"), "{why}");
    gateway.event(|e| *e == Event::Acked(stream("a"), Seq(60))).await;
    assert_eq!(*gateway.through.borrow(), 0, "what the held stream has not delivered stays");
    assert!(!central.rows().await.contains_key(&stream("b")));
    central.metric("tidegate_link_streams_refused_total{reason=\"type_conflict\"} 1").await;
    allow.send_replace(true);
    cable.cut();
    gateway.drained().await;
    assert_eq!(central.rows().await, tape.expected());
    gateway.stop().await;
    central.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_log_makes_gateways_wait_and_loses_nothing() {
    let pki = Pki::new();
    pki.issue("plant-7", Role::Gateway, pki.valid(1));
    let dir = tempfile::tempdir().expect("temp dir");
    let options = EmbeddedOptions {
        partitions: 1,
        segment_bytes: 16 << 10,
        quota_bytes: 256 << 10,
        keep_bytes: 0,
        groups: vec!["sink".into()],
    };
    let log = open_log(dir.path(), &options);
    let central = Running::start(&pki, log.clone(), Arc::new(Unchecked)).await;
    let tape = Tape::new("plant-7");
    for _ in 0..900 {
        tape.push(&["a"], 2);
    }
    let mut gateway = Gateway::start(&tape, central.address, pki.files("plant-7"));
    let event = gateway.event(|e| matches!(e, Event::Disconnected { .. })).await;
    assert!(matches!(&event, Event::Disconnected { reason, .. } if reason.contains("is full")), "{event:?}");
    // The sink takes what is there, again and again, until everything has gone through.
    let p = partition_of(&tape.gateway, 1);
    let (mut taken, mut from) = (Vec::new(), Offset(0));
    let all = timeout(LIMIT, async {
        while taken.len() < 1_800 {
            for r in log.read("test", p, from, 1 << 20).await.expect("readable") {
                taken.extend(r.headers.first_seq.0..=r.headers.last_seq.0);
                from = r.offset.next();
            }
            log.commit_offset("sink", p, Lease(1), from, "").await.expect("commits");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    all.await.expect("everything comes in time");
    assert_eq!(taken, (1..=1_800).collect::<Vec<_>>());
    gateway.drained().await;
    gateway.stop().await;
    central.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_fails_to_sync_ends_the_role_and_nothing_unsynced_is_acknowledged() {
    let pki = Pki::new();
    pki.issue("plant-7", Role::Gateway, pki.valid(1));
    let disk = journal::disk::sim::SimDisk::new(3, 1 << 30);
    let options = EmbeddedOptions { segment_bytes: 1 << 20, ..EmbeddedOptions::default() };
    let open = |disk: &journal::disk::sim::SimDisk| -> Arc<dyn Log> {
        Arc::new(
            Embedded::open(disk.clone(), Path::new("/log"), &options, &SeededRandom::new(1)).expect("opens"),
        )
    };
    let central = Running::start(&pki, open(&disk), Arc::new(Unchecked)).await;
    let cable = Cable::new(central.address).await;
    let tape = Tape::new("plant-7");
    tape.push(&["a"], 5);
    let mut gateway = Gateway::start(&tape, cable.address, pki.files("plant-7"));
    gateway.drained().await;
    disk.fail_syncs(1);
    tape.push(&["a"], 5);
    let ended = timeout(LIMIT, central.task).await.expect("ends in time").expect("no panic");
    assert!(matches!(ended, Err(LinkError::Log(_))), "{ended:?}");
    assert_eq!(*gateway.through.borrow(), 1);
    drop(central.log);
    disk.crash();
    let central = Running::start(&pki, open(&disk), Arc::new(Unchecked)).await;
    *cable.target.lock().expect("no panic") = central.address;
    gateway.drained().await;
    assert_eq!(central.rows().await, tape.expected());
    gateway.stop().await;
    central.stop().await;
}
