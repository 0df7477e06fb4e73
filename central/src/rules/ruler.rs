//! The driver: asks the clock, the sink's position and ClickHouse, feeds the core, stores its state, sends what follows.
//!
//! One task owns engine, outbox and store, so that a verdict and its notifications are stored in one step.

use super::{
    engine::{Engine, RuleHealth},
    file::RuleSet,
    limits,
    metrics::RuleMetrics,
    source::{Frontier, QueryError, QueryLimits, QuerySource},
    sql::Positions,
    state::{Instance, State},
    store::{Store, StoreError},
};
use crate::alerts::{Deliverer, Delivery, Notification, NotificationKind, Outbox, Outcome, Receiver};
use daemon::metrics::Registry;
use record::clock::{Clock, Random};
use serde::Serialize;
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// Commands that may wait for the ruler.
const COMMANDS_MAX: usize = 16;
/// The longest sleep between two looks at what is due.
const NAP_MAX: Duration = Duration::from_secs(5);

/// What a ruler is made of.
pub struct Parts {
    /// The state's folder.
    pub dir: PathBuf,
    /// Identity of the log that offsets belong to.
    pub log: String,
    /// The rules, already checked.
    pub rules: RuleSet,
    /// Who is told.
    pub receivers: Vec<Receiver>,
    /// ClickHouse.
    pub source: Arc<dyn QuerySource>,
    /// The sink's position.
    pub frontier: Arc<dyn Frontier>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// For the waits after failures.
    pub random: Arc<dyn Random>,
    /// Where metrics go.
    pub registry: Registry,
}

/// Why the ruler cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RulerError {
    /// The state cannot be read or made durable.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No client for requests to receivers.
    #[error("no http client: {0}")]
    Client(#[from] reqwest::Error),
    /// How far the sink has come cannot be read at the start.
    #[error("the sink's position cannot be read: {0}")]
    Frontier(String),
}

/// What the API shows.
#[derive(Debug, Clone, Default, Serialize)]
pub struct View {
    /// Pending and firing alerts.
    pub alerts: Vec<AlertView>,
    /// Every rule and how it fares.
    pub rules: Vec<RuleView>,
    /// Every receiver and what waits for it.
    pub receivers: Vec<ReceiverView>,
}

/// An alert as the API shows it.
#[derive(Debug, Clone, Serialize)]
pub struct AlertView {
    /// `group/alert`.
    pub rule: String,
    /// The instance.
    #[serde(flatten)]
    pub instance: Instance,
}

/// A rule as the API shows it.
#[derive(Debug, Clone, Serialize)]
pub struct RuleView {
    /// `group/alert`.
    pub rule: String,
    /// How it fares.
    #[serde(flatten)]
    pub health: RuleHealth,
    /// The next offset to judge, per partition, for a rule with `{new}`.
    pub positions: Positions,
}

/// A receiver as the API shows it.
#[derive(Debug, Clone, Serialize)]
pub struct ReceiverView {
    /// Its name.
    pub receiver: String,
    /// Transitions that wait for it.
    pub pending: usize,
    /// Transitions given up since the start.
    pub dropped: u64,
    /// Failures in a row.
    pub failures: u32,
}

enum Command {
    Test(oneshot::Sender<Vec<String>>),
}

/// The way to a running ruler.
#[derive(Clone)]
pub struct RulerHandle {
    view: watch::Receiver<Arc<View>>,
    commands: mpsc::Sender<Command>,
}

impl RulerHandle {
    /// What the rules see now.
    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// Sends a test alert, `TidegateTest`, and its end to every receiver; returns the ids of the two transitions, or none
    /// when the ruler is gone.
    pub async fn send_test(&self) -> Option<Vec<String>> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Test(reply)).await.ok()?;
        answer.await.ok()
    }
}

/// The task that judges.
pub struct Ruler {
    engine: Engine,
    outbox: Outbox,
    store: Store,
    deliverer: Deliverer,
    source: Arc<dyn QuerySource>,
    frontier: Arc<dyn Frontier>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    metrics: RuleMetrics,
    view: watch::Sender<Arc<View>>,
    commands: mpsc::Receiver<Command>,
    /// Rules whose last evaluation had no answer and groups whose clock question had none, so that it is logged once.
    quiet: BTreeMap<String, String>,
}

impl Ruler {
    /// Opens the state and settles from where new rules judge. Open it before gateways may knock: what is stored later is
    /// then judged by every rule.
    pub async fn open(parts: Parts) -> Result<(Self, RulerHandle), RulerError> {
        let (mut store, stored) = Store::open(&parts.dir)?;
        let frontier = parts.frontier.committed().await.map_err(RulerError::Frontier)?;
        let wall_ns = parts.clock.wall_ns();
        let (mut engine, resolved) =
            Engine::start(parts.rules, stored.unwrap_or_default(), &frontier, wall_ns);
        let (mut outbox, gone) = Outbox::new(parts.receivers, &mut engine.state.outbox);
        if gone > 0 {
            tracing::warn!(
                notifications = gone,
                "notifications for receivers that are no longer configured are given up"
            );
        }
        outbox.push(&mut engine.state.outbox, &resolved);
        store.save(&engine.state)?;
        let (view, view_out) = watch::channel(Arc::new(View::default()));
        let (commands, commands_in) = mpsc::channel(COMMANDS_MAX);
        let mut ruler = Self {
            engine,
            outbox,
            store,
            deliverer: Deliverer::new()?,
            source: parts.source,
            frontier: parts.frontier,
            clock: parts.clock,
            random: parts.random,
            metrics: RuleMetrics::new(&parts.registry),
            view,
            commands: commands_in,
            quiet: BTreeMap::new(),
        };
        ruler.show();
        Ok((ruler, RulerHandle { view: view_out, commands }))
    }

    /// Judges until `stop`.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), RulerError> {
        let mut deliveries: JoinSet<(Delivery, Outcome)> = JoinSet::new();
        let mut due_ns: Vec<u64> = vec![0; self.engine.rules().groups.len()];
        loop {
            self.dispatch(&mut deliveries);
            let nap = self.nap(&due_ns);
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(done) = deliveries.join_next() => {
                    if let Ok((delivery, outcome)) = done {
                        self.delivered(&delivery, &outcome)?;
                    }
                }
                Some(command) = self.commands.recv() => self.command(command)?,
                () = tokio::time::sleep(nap) => {
                    let now_ns = self.clock.monotonic_ns();
                    let due = (0..due_ns.len()).filter(|g| due_ns[*g] <= now_ns).min_by_key(|g| due_ns[*g]);
                    if let Some(group) = due {
                        let again_at_once = tokio::select! {
                            () = stop.cancelled() => return Ok(()),
                            behind = self.evaluate(group) => behind?,
                        };
                        let every = u64::try_from(self.engine.rules().groups[group].every.as_nanos()).unwrap_or(u64::MAX);
                        // Counted from now: a group that takes longer than its interval must not starve the others.
                        due_ns[group] = if again_at_once { now_ns } else { now_ns.saturating_add(every) };
                    }
                }
            }
        }
    }

    fn nap(&self, due_ns: &[u64]) -> Duration {
        let any_firing = self.engine.instances().any(|(_, i)| i.fired_wall_ns.is_some());
        let wake = self.outbox.wake_ns(&self.engine.state.outbox, any_firing);
        let next = due_ns.iter().copied().chain(wake).min();
        let now_ns = self.clock.monotonic_ns();
        next.map_or(NAP_MAX, |t| Duration::from_nanos(t.saturating_sub(now_ns))).min(NAP_MAX)
    }

    /// One evaluation of a group; true when it should follow again at once because rows are left.
    async fn evaluate(&mut self, group: usize) -> Result<bool, RulerError> {
        let started_ns = self.clock.monotonic_ns();
        let wall_ns = self.clock.wall_ns();
        let name = self.engine.rules().groups[group].name.clone();
        let frontier = match self.frontier.committed().await {
            Ok(f) => f,
            Err(e) => {
                tracing::warn!(group = name, reason = e, "rules wait: the sink's position cannot be read");
                self.metrics.failure(&name, "frontier");
                return Ok(false);
            }
        };
        let limits = QueryLimits { rows_max: limits::ROWS_MAX, timeout: limits::QUERY_TIMEOUT };
        if let Some((sql, range)) = self.engine.clock_query(group, &frontier, wall_ns) {
            let answer = self.source.query(&sql, limits).await;
            match &answer {
                Err(e) => self.complain(&name, &name, e),
                Ok(_) => self.calm(&name),
            }
            self.engine.advance_clock(group, &range, &answer);
        }
        let evaluations = self.engine.plan(group, &frontier, wall_ns);
        let mut transitions = Vec::new();
        for evaluation in &evaluations {
            let answer = match &evaluation.sql {
                Some(sql) => self.source.query(sql, limits).await,
                None => Ok(Default::default()),
            };
            let rule = self.engine.rules().groups[group].rules[evaluation.rule()].alert.clone();
            match &answer {
                Err(e) => self.complain(&name, &format!("{name}/{rule}"), e),
                Ok(_) => self.calm(&format!("{name}/{rule}")),
            }
            transitions.extend(self.engine.apply(evaluation, answer, self.clock.wall_ns()));
        }
        for n in &transitions {
            let alert = n.labels.get("alertname").map_or("", String::as_str);
            self.metrics.transition(alert, n.kind.as_str());
            tracing::info!(rule = n.rule, labels = ?n.labels, value = n.value, "alert {}", n.kind.as_str());
        }
        self.outbox.push(&mut self.engine.state.outbox, &transitions);
        self.save()?;
        self.metrics.evaluated(&name, evaluations.len(), wall_ns, self.engine.now(group, wall_ns));
        self.metrics.duration.observe((self.clock.monotonic_ns() - started_ns) as f64 / 1e9);
        self.show();
        Ok(self.engine.behind(group, &frontier))
    }

    /// Counts a failure, and logs it unless it is the same as before. A table that is not there is no failure: the rule
    /// waits for it, and that is said once, whatever ClickHouse's words are each time.
    fn complain(&mut self, group: &str, rule: &str, e: &QueryError) {
        let waits = matches!(e, QueryError::UnknownTable(_));
        if !waits {
            self.metrics.failure(group, e.reason());
        }
        let known = if waits { e.reason().to_owned() } else { e.to_string() };
        if self.quiet.get(rule) == Some(&known) {
            return;
        }
        match waits {
            true => tracing::warn!(
                rule,
                reason = %e,
                "a rule waits for a table that is not there; what comes meanwhile is judged when it is"
            ),
            false => tracing::warn!(rule, reason = known, "a rule failed and will be evaluated again"),
        }
        self.quiet.insert(rule.to_owned(), known);
    }

    /// Notes a success after which the next failure is news.
    fn calm(&mut self, rule: &str) {
        if self.quiet.remove(rule).is_some() {
            tracing::info!(rule, "a rule is evaluated again");
        }
    }

    fn save(&mut self) -> Result<(), RulerError> {
        // A few milliseconds; the task that waits for it is the only one that could use the state meanwhile.
        tokio::task::block_in_place(|| self.store.save(&self.engine.state)).map_err(RulerError::Store)
    }

    fn dispatch(&mut self, deliveries: &mut JoinSet<(Delivery, Outcome)>) {
        let firing = self.engine.firing();
        for delivery in self.outbox.next(&self.engine.state.outbox, &firing, self.clock.monotonic_ns()) {
            let deliverer = self.deliverer.clone();
            let wall_ns = self.clock.wall_ns();
            deliveries.spawn(async move {
                let outcome = deliverer.deliver(&delivery, wall_ns).await;
                (delivery, outcome)
            });
        }
    }

    fn delivered(&mut self, delivery: &Delivery, outcome: &Outcome) -> Result<(), RulerError> {
        let receiver = &delivery.receiver.name;
        match outcome {
            Outcome::Accepted => {}
            Outcome::Failed(why) => {
                tracing::warn!(receiver, reason = why, "a notification failed and will be repeated")
            }
            Outcome::Refused(why) => tracing::error!(
                receiver,
                reason = why,
                items = delivery.items.len(),
                "a notification was refused"
            ),
        }
        self.metrics.delivered(receiver, outcome, self.clock.wall_ns());
        let now_ns = self.clock.monotonic_ns();
        if self.outbox.done(&mut self.engine.state.outbox, delivery, outcome, now_ns, &*self.random) {
            self.save()?;
        }
        self.show();
        Ok(())
    }

    fn command(&mut self, command: Command) -> Result<(), RulerError> {
        let Command::Test(reply) = command;
        let wall_ns = self.clock.wall_ns();
        let both = [NotificationKind::Firing, NotificationKind::Resolved]
            .map(|kind| test_notification(kind, wall_ns));
        self.outbox.push(&mut self.engine.state.outbox, &both);
        self.save()?;
        // Whoever asked may have left; the notifications go out all the same.
        let _ = reply.send(both.into_iter().map(|n| n.id).collect());
        Ok(())
    }

    fn show(&mut self) {
        self.metrics.snapshot(&self.engine, &self.outbox);
        let State { rules, outbox, .. } = &self.engine.state;
        let alert = |(rule, i): (&str, &Instance)| AlertView { rule: rule.to_owned(), instance: i.clone() };
        let health = self.engine.health().iter();
        let positions = |key: &str| rules.get(key).map(|r| r.positions.clone()).unwrap_or_default();
        let receiver = |(name, dropped, failures): (&str, u64, u32)| ReceiverView {
            receiver: name.to_owned(),
            pending: outbox.waiting(name),
            dropped,
            failures,
        };
        let view = View {
            alerts: self.engine.instances().map(alert).collect(),
            rules: health
                .map(|(k, h)| RuleView { rule: k.clone(), health: h.clone(), positions: positions(k) })
                .collect(),
            receivers: self.outbox.health().map(receiver).collect(),
        };
        self.view.send_replace(Arc::new(view));
    }
}

fn test_notification(kind: NotificationKind, wall_ns: i64) -> Notification {
    let labels: BTreeMap<String, String> = [("alertname", "TidegateTest"), ("severity", "none")]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
    let text = "A test of the way from Tidegate to its receivers.";
    Notification {
        id: Notification::id_of("test/TidegateTest", &labels, wall_ns, kind),
        rule: "test/TidegateTest".into(),
        kind,
        labels,
        annotations: BTreeMap::from([("summary".to_owned(), text.to_owned())]),
        value: None,
        active_ns: wall_ns,
        fired_wall_ns: wall_ns,
        at_wall_ns: wall_ns,
    }
}
