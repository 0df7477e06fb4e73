//! Gateways of a fleet: one stream that says nothing and one that comes in bursts, at times of its own.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use link::{
    client::{Event, Outbox, OutboxError},
    forward::{Entry, Item, Position},
    message::{Hello, StreamLedger},
};
use record::{
    GatewayId, Seq, StreamName,
    clock::{Random as _, SeededRandom},
};
use tokio::{sync::watch, time::Instant};

use super::{blocks::Chain, feed::hello};

/// What the load of every gateway is.
#[derive(Debug, Clone)]
pub struct Pattern {
    /// The mean time from one burst of a gateway to its next; the times are exponential, as of many machines.
    pub every: Duration,
    /// Blocks of a burst, all at once.
    pub blocks: u32,
    /// Rows of a block.
    pub rows: u64,
    /// The rows, encoded; the same in every block, since nobody opens them.
    pub body: Bytes,
}

/// What all gateways of the fleet tell.
pub struct Fleet {
    /// Sessions that stand.
    pub connected: AtomicU64,
    /// Sessions that ended, and attempts that failed.
    pub failed: AtomicU64,
    /// Bursts come while it is true.
    pub bursting: watch::Sender<bool>,
    /// From the time at which a block was due to its acknowledgement, in milliseconds, since somebody took them.
    acks_ms: Mutex<Vec<f64>>,
}

impl Fleet {
    /// Nobody yet, and quiet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            connected: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            bursting: watch::Sender::new(false),
            acks_ms: Mutex::default(),
        })
    }

    fn acks(&self) -> std::sync::MutexGuard<'_, Vec<f64>> {
        // A sample is pushed whole.
        self.acks_ms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The samples since the last call.
    pub fn take_acks_ms(&self) -> Vec<f64> {
        std::mem::take(&mut *self.acks())
    }
}

/// One gateway.
pub struct Bursty {
    gateway: GatewayId,
    silent: Chain,
    chain: Chain,
    pattern: Arc<Pattern>,
    fleet: Arc<Fleet>,
    bursting: watch::Receiver<bool>,
    random: SeededRandom,
    /// When the next burst comes, and how many blocks of the present one are still to be made.
    due: Instant,
    left: u32,
    /// When the present burst was due.
    begun: Instant,
    /// A session stands.
    open: bool,
    /// Made and not acknowledged, oldest first, with the time at which each was due; the first `sent` of them are sent.
    waiting: VecDeque<(Entry, Instant)>,
    sent: usize,
    made: u64,
}

impl Bursty {
    /// The gateway with this number.
    pub fn new(
        gateway: GatewayId,
        number: u64,
        chains: [Chain; 2],
        pattern: &Arc<Pattern>,
        fleet: &Arc<Fleet>,
    ) -> Self {
        let [silent, chain] = chains;
        let mut me = Self {
            gateway,
            silent,
            chain,
            pattern: pattern.clone(),
            fleet: fleet.clone(),
            bursting: fleet.bursting.subscribe(),
            random: SeededRandom::new(number),
            due: Instant::now(),
            left: 0,
            begun: Instant::now(),
            open: false,
            waiting: VecDeque::new(),
            sent: 0,
            made: 0,
        };
        me.due = me.after(Instant::now());
        me
    }

    fn after(&self, now: Instant) -> Instant {
        let uniform = ((self.random.next_u64() >> 11) as f64 + 1.0) / (1_u64 << 53) as f64;
        now + self.pattern.every.mul_f64(-uniform.ln())
    }

    /// Makes the next block, when its burst is due.
    fn make(&mut self) {
        if self.left == 0 {
            if !*self.bursting.borrow() || Instant::now() < self.due {
                return;
            }
            // The next one comes when it comes, also when the load is late with this one.
            (self.begun, self.left) = (self.due, self.pattern.blocks);
            self.due = self.after(self.due);
        }
        self.left -= 1;
        self.made += 1;
        let batch = self.chain.append(self.pattern.body.clone(), self.pattern.rows);
        let entry = Entry { position: Position(self.made), items: vec![Item::Block(batch)] };
        self.waiting.push_back((entry, self.begun));
    }
}

impl Outbox for Bursty {
    fn hello(&mut self) -> Hello {
        hello(&self.gateway, &[&self.silent, &self.chain])
    }

    fn seek(&mut self, after: Position) -> Result<(), OutboxError> {
        self.sent = self.waiting.iter().take_while(|(entry, _)| entry.position <= after).count();
        Ok(())
    }

    fn try_next(&mut self) -> Result<Option<Entry>, OutboxError> {
        if self.sent == self.waiting.len() {
            self.make();
        }
        let Some((entry, _)) = self.waiting.get(self.sent) else { return Ok(None) };
        self.sent += 1;
        Ok(Some(entry.clone()))
    }

    async fn moved(&mut self) {
        if *self.bursting.borrow_and_update() {
            tokio::time::sleep_until(self.due).await;
        } else if self.bursting.changed().await.is_err() {
            std::future::pending::<()>().await;
        } else {
            // Nothing was due while it was quiet.
            self.due = self.after(Instant::now());
        }
    }

    fn ledger(&mut self, _known: &BTreeMap<StreamName, u64>) -> Vec<StreamLedger> {
        Vec::new()
    }

    fn event(&mut self, event: Event) -> Result<(), OutboxError> {
        match event {
            Event::Connected => {
                self.open = true;
                self.fleet.connected.fetch_add(1, Relaxed);
            }
            Event::Disconnected { .. } => {
                self.fleet.failed.fetch_add(1, Relaxed);
                if std::mem::take(&mut self.open) {
                    self.fleet.connected.fetch_sub(1, Relaxed);
                }
            }
            Event::Acked(_, last) => self.acked(last),
            Event::Halted(stream, halt) => return Err(format!("{stream}: {halt}").into()),
            Event::Through(_) | Event::InFlight(..) => {}
        }
        Ok(())
    }
}

impl Bursty {
    /// The silent stream is acknowledged up to 0.
    fn acked(&mut self, last: Seq) {
        let covers = |entry: &Entry| {
            entry.items.iter().all(|item| matches!(item, Item::Block(block) if block.header.last <= last))
        };
        while let Some((_, since)) = self.waiting.pop_front_if(|(entry, _)| covers(entry)) {
            self.fleet.acks().push(since.elapsed().as_secs_f64() * 1e3);
            self.sent = self.sent.saturating_sub(1);
        }
    }
}
