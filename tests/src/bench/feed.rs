//! Gateways of a load: the product's own client over mutual TLS, with an output log that is in memory already.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, bail};
use link::{
    client::{self, Central, Event, Outbox, OutboxError},
    forward::{Entry, Item, Position},
    limits::PROTOCOL,
    message::{Batch, Hello, StreamLedger},
};
use record::{
    GatewayId, Seq, StreamName,
    clock::{Clock, SeededRandom},
};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::blocks::{Chain, LIFE};

/// What a load says at the beginning of a session.
pub fn hello(gateway: &GatewayId, streams: &[&Chain]) -> Hello {
    Hello {
        gateway: gateway.clone(),
        incarnation: LIFE,
        protocol: PROTOCOL,
        software: "tidegate-load".into(),
        streams: streams.iter().map(|chain| chain.hello()).collect(),
    }
}

/// The machine's clocks.
struct Machine(Instant);

impl Clock for Machine {
    fn wall_ns(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    }

    fn monotonic_ns(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Sessions that run.
pub struct Gateways {
    tasks: JoinSet<Result<(), client::ClientError>>,
    stop: CancellationToken,
    clock: Arc<dyn Clock>,
}

impl Gateways {
    /// None yet.
    pub fn new() -> Self {
        let clock: Arc<dyn Clock> = Arc::new(Machine(Instant::now()));
        Self { tasks: JoinSet::new(), stop: CancellationToken::new(), clock }
    }

    /// One more, from now on.
    pub fn start<O: Outbox + 'static>(&mut self, central: Central, mut outbox: O) {
        let (clock, stop) = (self.clock.clone(), self.stop.clone());
        let random = Arc::new(SeededRandom::new(self.tasks.len() as u64));
        self.tasks.spawn(async move {
            client::run(central, &mut outbox, Position::default(), clock, random, stop).await
        });
    }

    /// Ends all sessions; an error when one had ended by itself.
    pub async fn stop(mut self) -> Result<()> {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended??;
        }
        Ok(())
    }
}

impl Default for Gateways {
    fn default() -> Self {
        Self::new()
    }
}

/// How far a [`Ready`] gateway is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Told {
    /// A session stands.
    pub connected: bool,
    /// How often one ended.
    pub disconnected: u64,
    /// Everything up to here is stored by central.
    pub acked: u64,
}

/// A gateway whose blocks are all there; it sends them when it is let go.
pub struct Ready {
    hello: Hello,
    batches: Arc<[Batch]>,
    sent: usize,
    go: watch::Receiver<bool>,
    told: watch::Sender<Told>,
}

impl Ready {
    /// Everything is sent once `go` is true.
    pub fn new(hello: Hello, batches: Arc<[Batch]>, go: watch::Receiver<bool>) -> Self {
        Self { hello, batches, sent: 0, go, told: watch::Sender::default() }
    }

    /// Word of how far it is.
    pub fn told(&self) -> watch::Receiver<Told> {
        self.told.subscribe()
    }
}

impl Outbox for Ready {
    fn hello(&mut self) -> Hello {
        self.hello.clone()
    }

    fn seek(&mut self, after: Position) -> Result<(), OutboxError> {
        self.sent = usize::try_from(after.0)?;
        Ok(())
    }

    fn try_next(&mut self) -> Result<Option<Entry>, OutboxError> {
        let Some(batch) = self.batches.get(self.sent).filter(|_| *self.go.borrow()) else { return Ok(None) };
        self.sent += 1;
        let position = Position(self.sent as u64);
        Ok(Some(Entry { position, items: vec![Item::Block(batch.clone())] }))
    }

    async fn moved(&mut self) {
        if self.sent == self.batches.len() || self.go.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn ledger(&mut self, _known: &BTreeMap<StreamName, u64>) -> Vec<StreamLedger> {
        Vec::new()
    }

    fn event(&mut self, event: Event) -> Result<(), OutboxError> {
        match event {
            Event::Connected => self.told.send_modify(|t| t.connected = true),
            Event::Disconnected { .. } => self.told.send_modify(|t| {
                t.connected = false;
                t.disconnected += 1;
            }),
            Event::Acked(_, Seq(last)) => self.told.send_modify(|t| t.acked = last),
            Event::Halted(stream, halt) => return Err(format!("{stream}: {halt}").into()),
            Event::Through(_) | Event::InFlight(..) => {}
        }
        Ok(())
    }
}

/// Waits until a gateway is that far.
pub async fn until(
    told: &mut watch::Receiver<Told>,
    deadline: Duration,
    far: impl FnMut(&Told) -> bool,
) -> Result<()> {
    let in_time = tokio::time::timeout(deadline, told.wait_for(far)).await.map(|reached| reached.map(drop));
    let Ok(reached) = in_time else {
        bail!("after {deadline:?} a gateway of the load is only at {:?}", *told.borrow());
    };
    Ok(reached?)
}
