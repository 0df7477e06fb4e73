//! The clock of running calls. A thread bumps the engine's epoch every tick; code compiled with epochs looks at it in
//! every loop and at every call, and stops at its deadline.
//!
//! The thread sleeps while nobody calls: after [`TICKS_IDLE_MAX`] ticks without a call it waits to be woken, and the
//! first call wakes it. This is a safeguard against endless loops, not a source of time, so it reads the real clock.

use crate::limits::{TICK, TICKS_IDLE_MAX};
use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use wasmtime::Engine;

#[derive(Debug, Default)]
struct Shared {
    ticks: AtomicU64,
    entered: AtomicU64,
    left: AtomicU64,
    parked: AtomicBool,
    stop: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Shared {
    fn unpark(&self) {
        let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.parked.store(false, SeqCst);
        self.wake.notify_all();
    }

    /// Waits until a call comes. The flag is raised before the counters are read, and callers count themselves before
    /// they read the flag, so one of the two sees the other.
    fn park(&self) {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.parked.store(true, SeqCst);
        if self.entered.load(SeqCst) != self.left.load(SeqCst) {
            self.parked.store(false, SeqCst);
        }
        while self.parked.load(SeqCst) && !self.stop.load(SeqCst) {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The thread and its handle.
#[derive(Debug)]
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// While it lives, a call runs and the clock ticks.
pub(crate) struct Running(Arc<Shared>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.left.fetch_add(1, SeqCst);
    }
}

impl Ticker {
    pub(crate) fn start(engine: Engine) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let thread = thread::Builder::new().name("udf-ticker".into()).spawn({
            let shared = shared.clone();
            move || tick(&shared, &engine)
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Says that a call begins.
    pub(crate) fn enter(&self) -> Running {
        self.shared.entered.fetch_add(1, SeqCst);
        if self.shared.parked.load(SeqCst) {
            self.shared.unpark();
        }
        Running(self.shared.clone())
    }

    /// Ticks so far; they stand still while nobody calls.
    pub(crate) fn ticks(&self) -> u64 {
        self.shared.ticks.load(SeqCst)
    }

    /// The deadline for a time: never earlier, at most a tick later.
    pub(crate) fn ticks_for(time: Duration) -> u64 {
        let ticks = time.as_nanos().div_ceil(TICK.as_nanos()) + 1;
        u64::try_from(ticks).unwrap_or(u64::MAX / 2)
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.shared.unpark();
        if let Some(thread) = self.thread.take() {
            // A panic of the ticker would already have been printed; there is nothing to do about it here.
            let _ = thread.join();
        }
    }
}

fn tick(shared: &Shared, engine: &Engine) {
    let (mut idle, mut seen) = (0, 0);
    let mut next = Instant::now() + TICK;
    while !shared.stop.load(SeqCst) {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        // A late wake-up, on a busy machine, catches up: a call's time is real time.
        while next <= Instant::now() {
            engine.increment_epoch();
            shared.ticks.fetch_add(1, SeqCst);
            next += TICK;
        }
        let entered = shared.entered.load(SeqCst);
        let busy = entered != seen || entered != shared.left.load(SeqCst);
        seen = entered;
        idle = if busy { 0 } else { idle + 1 };
        if idle >= TICKS_IDLE_MAX {
            shared.park();
            (idle, next) = (0, Instant::now() + TICK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::engine_config;

    fn eventually(what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !holds() {
            assert!(Instant::now() < deadline, "never: {what}");
            thread::yield_now();
        }
    }

    #[test]
    fn it_sleeps_when_idle_and_a_call_wakes_it() {
        let engine = Engine::new(&engine_config().expect("target")).expect("engine");
        let ticker = Ticker::start(engine).expect("starts");
        for _ in 0..2 {
            eventually("it parks", || ticker.shared.parked.load(SeqCst));
            let before = ticker.ticks();
            let running = ticker.enter();
            eventually("it ticks", || ticker.ticks() > before + 2);
            drop(running);
        }
    }

    #[test]
    fn a_deadline_is_never_early() {
        assert_eq!(Ticker::ticks_for(TICK * 5), 6);
        assert_eq!(Ticker::ticks_for(TICK * 5 + Duration::from_nanos(1)), 7);
    }
}
