//! Faults on real processes and lines.

use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::Signal;

use super::faults::{Between, Fault, Harm, Moment, Round, Target};
use super::proxy::{Caught, End, Line, Which};
use crate::cluster::Cluster;
use crate::plant::Gateway;
use crate::program;

/// A write is waited for so long; then the fault happens without one.
const WRITE_MAX: Duration = Duration::from_secs(2);

/// What can be struck.
pub struct Field {
    /// Central and its servers.
    pub cluster: Cluster,
    /// The gateways.
    pub gateways: Vec<Gateway>,
}

/// A round that is over.
#[derive(Debug, Clone, Copy)]
pub struct Struck {
    /// Whether a write was caught for it.
    pub in_write: bool,
    /// When everything was there again.
    pub ended: Instant,
}

impl Field {
    /// Carries out a round: when this returns everything runs again, though nothing needs to have recovered.
    pub async fn strike(&mut self, round: &Round) -> anyhow::Result<Struck> {
        let mut caught = None;
        if let Moment::InWrite(between, trap, lag) = round.moment {
            let told = self.line(between)?.trap(trap);
            // Nothing is written where nothing is owned.
            caught = tokio::time::timeout(WRITE_MAX, told).await.ok().and_then(Result::ok);
            if caught.is_some() {
                tokio::time::sleep(lag).await;
            }
        }
        let in_write = caught.is_some();
        match &round.fault {
            Fault::Kill { targets, away } => {
                targets.iter().try_for_each(|target| self.kill(*target))?;
                drop(caught);
                tokio::time::sleep(*away).await;
                targets.iter().try_for_each(|target| self.start(*target))?;
            }
            Fault::Freeze { target, time, meanwhile } => {
                self.signal(*target, Signal::STOP)?;
                drop(caught);
                tokio::time::sleep(*time / 2).await;
                if let Some(other) = meanwhile {
                    self.kill(*other)?;
                    self.start(*other)?;
                }
                tokio::time::sleep(*time / 2).await;
                self.signal(*target, Signal::CONT)?;
            }
            Fault::Line { between, harm, one, time } => {
                harm_line(self.line(*between)?, *harm, *one, caught, *time).await;
            }
        }
        self.clear();
        Ok(Struck { in_write, ended: Instant::now() })
    }

    /// Ends all faults of lines.
    pub fn clear(&self) {
        if let Some(lines) = &self.cluster.lines {
            lines.clear();
        }
    }

    /// A program that ended although nobody killed it is an error.
    pub fn expect_all_running(&mut self) -> anyhow::Result<()> {
        for gateway in &mut self.gateways {
            gateway.program.as_mut().context("a gateway was not started again")?.expect_running()?;
        }
        self.cluster.expect_all_running()
    }

    /// Whether a process says that it is ready; servers have no such word.
    pub async fn is_ready(&self, target: Target) -> bool {
        match (target, target.process()) {
            (Target::Gateway(n), _) => self.gateways[n].is_ready().await,
            (_, Some(process)) => self.cluster.is_ready(process).await,
            (_, None) => true,
        }
    }

    /// The ends of all logs.
    pub fn logs(&self) -> String {
        let gateways = self.gateways.iter().map(|g| format!("--- {}\n{}\n", g.id, g.log_tail()));
        gateways.collect::<String>() + &self.cluster.logs()
    }

    fn line(&self, between: Between) -> anyhow::Result<&Line> {
        let lines = self.cluster.lines.as_ref().context("the cluster has no lines")?;
        match between {
            Between::GatewaysAnd(link) => lines.to_link(link),
            Between::KafkaAnd(process) => lines.to_kafka(process),
            Between::ClickHouseAnd(process) => lines.to_clickhouse(process),
        }
    }

    fn kill(&mut self, target: Target) -> anyhow::Result<()> {
        match target {
            Target::Gateway(n) => self.gateways[n].program = None,
            Target::Judge => self.cluster.plant.kill_central(),
            Target::ClickHouse => drop(self.cluster.kill_clickhouse()),
            Target::Kafka => self.cluster.kafka.kill()?,
            Target::Link(_) | Target::Sink(_) => {
                self.cluster.kill_node(target.process().context("a process")?)?;
            }
        }
        Ok(())
    }

    fn start(&mut self, target: Target) -> anyhow::Result<()> {
        match target {
            Target::Gateway(n) => self.gateways[n].start(),
            Target::Judge => self.cluster.plant.start_central(),
            Target::ClickHouse => self.cluster.start_clickhouse(),
            Target::Kafka => self.cluster.kafka.start_again(),
            Target::Link(_) | Target::Sink(_) => {
                self.cluster.start_node(target.process().context("a process")?)
            }
        }
    }

    fn signal(&mut self, target: Target, signal: Signal) -> anyhow::Result<()> {
        let of = |running: &Option<program::Program>| -> anyhow::Result<()> {
            program::send(running.as_ref().context("it does not run")?.pid(), signal)
        };
        match target {
            Target::Gateway(n) => of(&self.gateways[n].program),
            Target::Judge => of(&self.cluster.plant.central),
            Target::ClickHouse => self.cluster.signal_clickhouse(signal),
            Target::Kafka => self.cluster.kafka.signal(signal),
            Target::Link(_) | Target::Sink(_) => {
                self.cluster.signal(target.process().context("a process")?, signal)
            }
        }
    }
}

/// Harms a line for a time; `caught` is the write in whose middle it happens.
async fn harm_line(line: &Line, harm: Harm, one: bool, caught: Option<Caught>, time: Duration) {
    let connections = line.connections();
    let which = match (one, &caught) {
        (true, Some(caught)) => Which::One(caught.connection),
        // The newest is the one that works, more often than not.
        (true, None) => connections.last().map_or(Which::All, |id| Which::One(*id)),
        (false, _) => Which::All,
    };
    match harm {
        Harm::Cut => line.end(which, End::Cut),
        Harm::Reset => line.end(which, End::Reset),
        Harm::Delay => line.hold(which),
        Harm::HalfOpen(way) => line.swallow(which, way),
        Harm::Refuse => {
            line.refuse();
            line.end(which, End::Reset);
        }
    }
    drop(caught);
    tokio::time::sleep(time).await;
}
