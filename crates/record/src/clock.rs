//! Time and randomness, handed in, so that a seeded simulation can run the real code.

/// Two clocks: one that people read and one that only goes forward.
pub trait Clock: Send + Sync {
    /// Nanoseconds since the Unix epoch, as the machine believes; may jump.
    fn wall_ns(&self) -> i64;
    /// Nanoseconds since some fixed moment; never goes back. For time-outs and intervals.
    fn monotonic_ns(&self) -> u64;
}

/// A source of random bits: the operating system's in a daemon, a seeded generator in a simulation.
pub trait Random: Send + Sync {
    /// The next 64 random bits.
    fn next_u64(&self) -> u64;
}

/// A small seeded generator (SplitMix64, Steele, Lea and Flood 2014) for simulations and tests.
#[derive(Debug)]
pub struct SeededRandom(std::sync::atomic::AtomicU64);

impl SeededRandom {
    /// The generator that the seed names; the same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(std::sync::atomic::AtomicU64::new(seed))
    }
}

impl Random for SeededRandom {
    fn next_u64(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(STEP, std::sync::atomic::Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// A clock that moves only when it is told to, for simulations and tests.
#[derive(Debug, Default)]
pub struct ManualClock(std::sync::atomic::AtomicU64);

impl ManualClock {
    /// A clock standing at `ns` on both scales.
    pub fn at_ns(ns: u64) -> Self {
        Self(std::sync::atomic::AtomicU64::new(ns))
    }

    /// Moves both scales forward.
    pub fn advance_ns(&self, ns: u64) {
        self.0.fetch_add(ns, std::sync::atomic::Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn wall_ns(&self) -> i64 {
        i64::try_from(self.monotonic_ns()).unwrap_or(i64::MAX)
    }

    fn monotonic_ns(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_same_numbers() {
        let (a, b) = (SeededRandom::new(7), SeededRandom::new(7));
        let (x, y): (Vec<_>, Vec<_>) = (0..8).map(|_| (a.next_u64(), b.next_u64())).unzip();
        assert_eq!(x, y);
        assert_ne!(x[0], x[1]);
    }
}
