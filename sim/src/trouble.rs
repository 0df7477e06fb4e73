//! The troublemaker: kills, stops, cuts, restores and clones while the run is not calm.

use crate::{
    clickhouse::TOKENS_KEPT,
    event::{Address, Event, Process, Trouble},
    fault::Fault,
    gateway::Folder,
    schedule::{MS, SECOND},
    world::World,
};

/// Strikes, of which one is tried at a time.
const STRIKES: [Fault; 13] = [
    Fault::GatewayCrash,
    Fault::LinkCrash,
    Fault::SinkCrash,
    Fault::LinkPause,
    Fault::SinkPause,
    Fault::LinkMoves,
    Fault::SinkMoves,
    Fault::Cut,
    Fault::Damaged,
    Fault::Restored,
    Fault::Cloned,
    Fault::Reborn,
    Fault::ServerCrash,
];

impl World {
    pub(crate) fn trouble(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::Strike => {
                if self.chance.calm {
                    return;
                }
                let fault = STRIKES[self.chance.below(STRIKES.len() as u64) as usize];
                if self.chance.strikes(fault) {
                    self.say(|_| fault.text().to_owned());
                    self.strike(fault);
                }
                let within = self.chance.between(MS, self.calm_at / 40);
                let at = self.schedule.now() + within;
                self.schedule.at(at, Event::Trouble(Trouble::Strike));
            }
            Trouble::Hit(address, fault) if address == self.address(address.process) => {
                self.say(|_| fault.text().to_owned());
                match fault {
                    Fault::LinkStops | Fault::SinkStops => self.stand_still(address.process),
                    _ => self.crash(address.process),
                }
            }
            Trouble::Hit(..) => {}
            Trouble::Start(process) => self.start(process),
            Trouble::GoOn(address) => self.go_on(address),
            Trouble::Backup(n) => self.backups[n] = Some(self.folders[n].copy()),
            Trouble::Calm => self.calm(),
            Trouble::Look => {}
        }
    }

    /// A process has taken a step: it may be hit before it hears what came of it.
    pub(crate) fn stepped(&mut self, address: Address) {
        let faults: &[Fault] = match address.process {
            Process::Gateway(_) => &[Fault::GatewayDies],
            Process::Link(_) => &[Fault::LinkDies, Fault::LinkStops],
            Process::Sink(_) => &[Fault::SinkDies, Fault::SinkStops],
        };
        for fault in faults {
            if self.chance.strikes(*fault) {
                let within = self.chance.below(15 * MS);
                let at = self.schedule.now() + within;
                self.schedule.at(at, Event::Trouble(Trouble::Hit(address, *fault)));
            }
        }
    }

    fn one_of(&self, n: usize) -> usize {
        self.chance.below(n as u64) as usize
    }

    /// A gateway that runs.
    fn a_gateway(&self) -> Option<usize> {
        let n = self.one_of(self.folders.len());
        (!self.folders[n].over && self.is_up(Process::Gateway(n))).then_some(n)
    }

    fn strike(&mut self, fault: Fault) {
        let (link, sink) = (self.one_of(self.links.len()), self.one_of(self.sinks.len()));
        match fault {
            Fault::GatewayCrash => {
                if let Some(n) = self.a_gateway() {
                    self.crash(Process::Gateway(n));
                }
            }
            Fault::LinkCrash => self.crash(Process::Link(link)),
            Fault::SinkCrash => self.crash(Process::Sink(sink)),
            Fault::LinkPause => self.stand_still(Process::Link(link)),
            Fault::SinkPause => self.stand_still(Process::Sink(sink)),
            Fault::LinkMoves => self.moves(Process::Link(link)),
            Fault::SinkMoves => self.moves(Process::Sink(sink)),
            Fault::Cut => {
                if let Some(connection) = self.some_connection() {
                    self.cut(connection);
                }
            }
            Fault::Damaged => {
                // A loss has no hash before it: in a folder that was cloned it hides that the rows before are others.
                if let Some(n) = self.a_gateway().filter(|n| !self.folders[*n].suspect) {
                    let f = &self.folders[n];
                    let position = f.trimmed + self.one_of((f.durable - f.trimmed).max(1));
                    if position < f.durable {
                        self.folders[n].damage(position);
                    }
                }
            }
            Fault::ServerCrash => self.server.life += 1,
            _ => self.another_life(fault),
        }
    }

    fn crash(&mut self, process: Process) {
        if self.is_up(process) {
            self.kill(process);
            let within = self.chance.between(10 * MS, 15 * SECOND);
            let at = self.schedule.now() + within;
            self.schedule.at(at, Event::Trouble(Trouble::Start(process)));
        }
    }

    fn stand_still(&mut self, process: Process) {
        if self.is_up(process) && !self.is_paused(process) {
            let long = self.chance.one_in(3);
            let (least, most) = if long { (TOKENS_KEPT, 3 * TOKENS_KEPT) } else { (SECOND, 20 * SECOND) };
            let time = self.chance.between(least, most);
            self.pause(process, time);
        }
    }

    fn moves(&mut self, process: Process) {
        if self.is_up(process) && !self.is_paused(process) {
            let address = self.address(process);
            self.rejoins(address);
        }
    }

    /// A gateway's folder is exchanged: by an older copy, by an empty one, or there are two of it.
    fn another_life(&mut self, fault: Fault) {
        let Some(n) = self.a_gateway() else { return };
        if self.folders[n].suspect {
            return;
        }
        let next = match fault {
            Fault::Restored => {
                let Some(copy) = self.backups[n].take() else { return };
                self.folders[n].over = true;
                copy
            }
            Fault::Cloned => {
                self.folders[n].suspect = true;
                self.folders[n].copy()
            }
            _ => {
                self.folders[n].over = true;
                let left = self.folders[n].may_still_make();
                Folder::new(self.folders[n].gateway.clone(), 1 + self.chance.below(1 << 40), left.max(2))
            }
        };
        if self.folders[n].over {
            self.kill(Process::Gateway(n));
        }
        let new = self.add_folder(next);
        self.folders[new].suspect = fault != Fault::Reborn;
        self.folders[new].molested |= self.folders[n].molested && fault != Fault::Reborn;
        self.start(Process::Gateway(new));
    }

    /// Nothing goes wrong any more: what is down starts, what stands still goes on in its time, of two clones one stays.
    fn calm(&mut self) {
        self.chance.calm = true;
        self.say(|_| "calm".to_owned());
        self.central().into_iter().for_each(|process| self.start(process));
        for n in 0..self.folders.len() {
            let twin = (0..n).find(|m| {
                let (a, b) = (&self.folders[*m], &self.folders[n]);
                a.gateway == b.gateway && !a.over && !b.over
            });
            if let Some(twin) = twin {
                let gone = if self.chance.one_in(2) { twin } else { n };
                self.folders[gone].over = true;
                if self.is_up(Process::Gateway(gone)) {
                    self.kill(Process::Gateway(gone));
                }
            }
        }
        for n in 0..self.folders.len() {
            if !self.folders[n].over {
                self.start(Process::Gateway(n));
            }
        }
        let at = self.schedule.now();
        self.schedule.at(at, Event::Trouble(Trouble::Look));
    }
}
