//! What may happen in a round, chosen by the run's seed. Nothing here does anything.

use std::fmt;
use std::time::Duration;

use record::clock::Random;

use super::lines::BROKER_SESSION;
use super::proxy::{Place, Trap, Way};
use crate::cluster::{JUDGE, LINKS, SINKS};

/// A process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// A gateway, by its number.
    Gateway(usize),
    /// A process that takes gateways.
    Link(usize),
    /// A process that writes tables.
    Sink(usize),
    /// The process with alerts, API and audit.
    Judge,
    /// ClickHouse.
    ClickHouse,
    /// The broker.
    Kafka,
}

impl Target {
    /// Its name as a process of central, if it is one.
    pub fn process(self) -> Option<&'static str> {
        match self {
            Self::Link(n) => Some(LINKS[n]),
            Self::Sink(n) => Some(SINKS[n]),
            Self::Judge => Some(JUDGE),
            Self::Gateway(_) | Self::ClickHouse | Self::Kafka => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway(n) => write!(f, "gateway-{}", n + 1),
            Self::Link(n) => f.write_str(LINKS[*n]),
            Self::Sink(n) => f.write_str(SINKS[*n]),
            Self::Judge => f.write_str("judge"),
            Self::ClickHouse => f.write_str("clickhouse"),
            Self::Kafka => f.write_str("kafka"),
        }
    }
}

/// A line between two processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Between {
    /// Gateways and this link.
    GatewaysAnd(&'static str),
    /// This process and the broker.
    KafkaAnd(&'static str),
    /// This process and ClickHouse.
    ClickHouseAnd(&'static str),
}

impl fmt::Display for Between {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GatewaysAnd(link) => write!(f, "gateways→{link}"),
            Self::KafkaAnd(process) => write!(f, "{process}→kafka"),
            Self::ClickHouseAnd(process) => write!(f, "{process}→clickhouse"),
        }
    }
}

/// What happens to a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// Connections are closed.
    Cut,
    /// Connections are reset.
    Reset,
    /// Data waits.
    Delay,
    /// Data of one direction vanishes while the connection stands; then it is reset.
    HalfOpen(Way),
    /// Connections are reset, and new ones refused.
    Refuse,
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL; they are started again after a time.
    Kill {
        /// Whom.
        targets: Vec<Target>,
        /// The time.
        away: Duration,
    },
    /// SIGSTOP for a time, then SIGCONT.
    Freeze {
        /// Whom.
        target: Target,
        /// The time; a zombie's is longer than its sessions may be silent.
        time: Duration,
        /// Who is killed, and started again, meanwhile.
        meanwhile: Option<Target>,
    },
    /// Something happens to a line.
    Line {
        /// Which.
        between: Between,
        /// What.
        harm: Harm,
        /// Whether to one connection only.
        one: bool,
        /// How long.
        time: Duration,
    },
}

/// Silent for so long is a zombie: others have taken over what it had.
pub const ZOMBIE: Duration = Duration::from_secs(7);

impl Fault {
    /// The word under which it is counted.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kill { targets, .. } if targets.len() > 1 => "kill-two",
            Self::Kill { .. } => "kill",
            Self::Freeze { time, .. } if *time >= ZOMBIE => "zombie",
            Self::Freeze { .. } => "freeze",
            Self::Line { harm, time, .. } => match harm {
                Harm::Cut => "cut",
                Harm::Reset => "reset",
                Harm::Delay if *time >= ZOMBIE => "long-delay",
                Harm::Delay => "delay",
                Harm::HalfOpen(_) => "half-open",
                Harm::Refuse => "refuse",
            },
        }
    }

    /// Whom or what it strikes, each counted once.
    pub fn struck(&self) -> Vec<String> {
        match self {
            Self::Kill { targets, .. } => targets.iter().map(ToString::to_string).collect(),
            Self::Freeze { target, .. } => vec![target.to_string()],
            Self::Line { between, .. } => vec![between.to_string()],
        }
    }

    /// Processes that must be ready again when it is over.
    pub fn processes(&self) -> Vec<Target> {
        match self {
            Self::Kill { targets, .. } => targets.clone(),
            Self::Freeze { target, meanwhile, .. } => {
                [Some(*target), *meanwhile].into_iter().flatten().collect()
            }
            Self::Line { .. } => Vec::new(),
        }
    }
}

/// When it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// At once.
    Now,
    /// So long after a write has been caught on a line.
    InWrite(Between, Trap, Duration),
}

/// A round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// Before it begins.
    pub pause: Duration,
    /// When it happens.
    pub moment: Moment,
    /// What happens.
    pub fault: Fault,
    /// The next round does not wait until this one is recovered from.
    pub overlapped: bool,
}

/// Rounds, one after the other, as the seed has them.
pub struct Rounds<R>(pub R);

impl<R: Random> Iterator for Rounds<R> {
    type Item = Round;

    fn next(&mut self) -> Option<Round> {
        let pause = self.ms(20, 500);
        let fault = match self.below(100) {
            0..36 => self.kill(),
            36..48 => self.freeze(),
            48..53 => self.zombie(),
            _ => self.line(),
        };
        let (caught, overlapped) = (self.below(100) < 55, self.below(100) < 65);
        let moment = match self.writes_to(&fault).filter(|_| caught) {
            Some(between) => self.in_write(between),
            None => Moment::Now,
        };
        Some(Round { pause, moment, fault, overlapped })
    }
}

impl<R: Random> Rounds<R> {
    fn below(&self, most: u64) -> u64 {
        self.0.next_u64() % most
    }

    fn ms(&self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }

    fn one_of<T: Copy>(&self, all: &[T]) -> T {
        // Below the length of a slice.
        all[self.below(all.len() as u64) as usize]
    }

    fn target(&self) -> Target {
        match self.below(20) {
            0..4 => Target::Gateway(self.below(2) as usize),
            4..9 => Target::Link(self.below(2) as usize),
            9..14 => Target::Sink(self.below(2) as usize),
            14..17 => Target::ClickHouse,
            17..19 => Target::Kafka,
            _ => Target::Judge,
        }
    }

    fn kill(&self) -> Fault {
        let mut targets = vec![self.target()];
        if self.below(4) == 0 {
            targets.push(self.target());
            targets.dedup();
        }
        Fault::Kill { targets, away: self.ms(0, 400) }
    }

    fn freeze(&self) -> Fault {
        Fault::Freeze { target: self.target(), time: self.ms(100, 2_500), meanwhile: None }
    }

    fn zombie(&self) -> Fault {
        let target = self.target();
        // Some outlive the broker's time-out of a transaction, 10 s, as well.
        let mut time = ZOMBIE + self.ms(0, if self.below(3) == 0 { 5_000 } else { 1_500 });
        if target == Target::Kafka {
            // Nobody could take over from a single broker that is fenced.
            time = time.min(BROKER_SESSION - Duration::from_millis(500));
        }
        let meanwhile = Some(self.target()).filter(|other| *other != target && self.below(3) == 0);
        Fault::Freeze { target, time, meanwhile }
    }

    fn line(&self) -> Fault {
        let between = match self.below(16) {
            0..4 => Between::GatewaysAnd(self.one_of(&LINKS)),
            4..8 => Between::KafkaAnd(self.one_of(&LINKS)),
            8..11 => Between::KafkaAnd(self.one_of(&SINKS)),
            11..14 => Between::ClickHouseAnd(self.one_of(&SINKS)),
            14 => Between::KafkaAnd(JUDGE),
            _ => Between::ClickHouseAnd(self.one_of(&[LINKS[0], LINKS[1], JUDGE])),
        };
        let way = self.one_of(&[Way::ToServer, Way::ToClient]);
        let (harm, time) = match self.below(20) {
            0..5 => (Harm::Cut, Duration::ZERO),
            5..10 => (Harm::Reset, Duration::ZERO),
            10..13 => (Harm::Delay, self.ms(100, 2_500)),
            13 if self.below(2) == 0 => (Harm::Delay, ZOMBIE + self.ms(0, 5_000)),
            13..18 => (Harm::HalfOpen(way), self.ms(200, 3_000)),
            _ => (Harm::Refuse, self.ms(200, 2_000)),
        };
        Fault::Line { between, harm, one: self.below(3) == 0, time }
    }

    /// A line on which a write can be caught for this fault.
    fn writes_to(&self, fault: &Fault) -> Option<Between> {
        let sink = self.one_of(&SINKS);
        let process = match fault {
            Fault::Line {
                between: between @ (Between::KafkaAnd(JUDGE) | Between::ClickHouseAnd(_)), ..
            } => {
                // Only sinks insert, and the judge writes nothing.
                return Some(*between).filter(|b| SINKS.iter().any(|s| *b == Between::ClickHouseAnd(s)));
            }
            Fault::Line { between, .. } => return Some(*between),
            Fault::Kill { targets, .. } => targets.first()?,
            Fault::Freeze { target, .. } => target,
        };
        Some(match process {
            Target::Gateway(_) => Between::GatewaysAnd(self.one_of(&LINKS)),
            Target::Link(n) => Between::KafkaAnd(LINKS[*n]),
            Target::Sink(n) => {
                self.one_of(&[Between::KafkaAnd(SINKS[*n]), Between::ClickHouseAnd(SINKS[*n])])
            }
            Target::ClickHouse => Between::ClickHouseAnd(sink),
            Target::Kafka => Between::KafkaAnd(self.one_of(&[LINKS[0], LINKS[1], SINKS[0], SINKS[1]])),
            Target::Judge => return None,
        })
    }

    fn in_write(&self, between: Between) -> Moment {
        // A block, an insert or a produce request; an offset commit with an intent is smaller. What comes behind a
        // produce request on its connection, or on another one of the process, ends the transaction.
        let bytes_min = match between {
            Between::KafkaAnd(process) if SINKS.contains(&process) => 250,
            _ => 1_500,
        };
        let place = self.one_of(&[Place::Before, Place::Within, Place::Behind, Place::Behind]);
        let skip = self.one_of(&[0, 0, 1, 2, 3]);
        Moment::InWrite(between, Trap { bytes_min, skip, place }, self.ms(0, 30))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use record::clock::SeededRandom;

    use super::*;

    fn rounds(seed: u64, count: usize) -> Vec<Round> {
        Rounds(SeededRandom::new(seed)).take(count).collect()
    }

    #[test]
    fn a_seed_names_its_rounds() {
        assert_eq!(rounds(7, 100), rounds(7, 100));
        assert_ne!(rounds(7, 10), rounds(8, 10));
    }

    #[test]
    fn everything_happens_to_everybody() {
        let mut seen: BTreeMap<(&str, String), u32> = BTreeMap::new();
        for round in rounds(1, 5_000) {
            for struck in round.fault.struck() {
                *seen.entry((round.fault.kind(), struck)).or_default() += 1;
            }
        }
        let kinds = |kind: &str| seen.keys().filter(|(k, _)| *k == kind).count();
        // Nine processes, twelve lines.
        for kind in ["kill", "kill-two", "freeze", "zombie"] {
            assert_eq!(kinds(kind), 9, "{kind}: {seen:?}");
        }
        for kind in ["cut", "reset", "delay", "half-open", "refuse"] {
            assert_eq!(kinds(kind), 12, "{kind}: {seen:?}");
        }
        assert!(kinds("long-delay") > 6, "{seen:?}");
    }
}
