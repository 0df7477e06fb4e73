//! Connections between gateways and link processes.
//!
//! Messages of one connection arrive in order, each with its delay. A connection that is cut loses what comes after some
//! moment in each direction; each end learns of it at its own time, or by its keepalive only, so that messages of an old
//! session may arrive after a newer one has begun.

use crate::{
    event::{Address, Call, Down, Process},
    fault::Fault,
    schedule::{MS, SECOND},
    world::World,
};
use bytes::Bytes;
use link::message::{ToCentral, ToGateway};
use record::GatewayId;

/// The longest that an end believes in a connection that is gone.
const KEEPALIVE: u64 = 20 * SECOND;
/// The longest that a gateway waits for a connection.
const CONNECT: u64 = 10 * SECOND;

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) gateway: Address,
    central: Address,
    /// When the last message of each direction arrives.
    up_at: u64,
    down_at: u64,
    /// Nothing arrives after this.
    pub(crate) up_until: u64,
    pub(crate) down_until: u64,
    /// One of the ends has closed it.
    closed: bool,
}

impl World {
    /// A gateway opens a connection to a link process.
    pub(crate) fn connect(&mut self, gateway: Address, to: usize) -> usize {
        let central = self.address(Process::Link(to));
        let now = self.schedule.now();
        let number = self.connections.len();
        let within = self.chance.between(MS, 10 * MS);
        let stands = self.is_up(central.process) && !self.is_paused(central.process);
        // Half of those that are lost stand at central's end.
        let lost = stands && self.chance.strikes(Fault::ConnectLost);
        self.connections.push(Connection {
            gateway,
            central,
            up_at: now + within,
            down_at: now + within,
            up_until: u64::MAX,
            down_until: u64::MAX,
            closed: !stands,
        });
        let refused = !self.is_up(central.process);
        if stands && !lost {
            self.call(within, gateway, Call::Connected(number, true));
        } else {
            let within = if refused { within } else { CONNECT };
            self.call(within, gateway, Call::Connected(number, false));
            self.cut(number);
        }
        number
    }

    pub(crate) fn gateway_of(&self, connection: usize) -> GatewayId {
        match self.connections[connection].gateway.process {
            Process::Gateway(folder) => self.folders[folder].gateway.clone(),
            other => unreachable!("{other:?} opens no connection"),
        }
    }

    pub(crate) fn send_up(&mut self, connection: usize, mut message: ToCentral) {
        if let ToCentral::Batch(batch) = &mut message {
            let folder = self.connections[connection].gateway.process;
            if self.chance.strikes(Fault::Swallowed) {
                return self.may_be_refused(folder);
            }
            if self.chance.strikes(Fault::Altered) {
                batch.bytes = Bytes::from_static(b"altered");
                self.may_be_refused(folder);
            }
        }
        let within = self.chance.between(MS / 5, 5 * MS);
        let at = self.schedule.now() + within;
        let c = &mut self.connections[connection];
        c.up_at = c.up_at.max(at);
        if c.up_at <= c.up_until {
            let (at, central) = (c.up_at, c.central);
            self.call_at(at, central, Call::Up(connection, message));
        }
    }

    pub(crate) fn send_down(&mut self, connection: usize, down: Down) {
        let within = self.chance.between(MS / 5, 5 * MS);
        let at = self.schedule.now() + within;
        let c = &mut self.connections[connection];
        c.down_at = c.down_at.max(at);
        let ends = matches!(down, Down::Goodbye(_) | Down::Message(ToGateway::WrongNode { .. }));
        if c.down_at <= c.down_until {
            let (at, gateway) = (c.down_at, c.gateway);
            self.call_at(at, gateway, Call::Down(connection, down));
        }
        if ends {
            self.connections[connection].closed = true;
        }
    }

    /// A gateway closes its end; central hears of it behind what was sent.
    pub(crate) fn close(&mut self, connection: usize) {
        let within = self.chance.between(MS / 5, 5 * MS);
        let at = self.schedule.now() + within;
        let c = &mut self.connections[connection];
        c.closed = true;
        c.up_at = c.up_at.max(at);
        if c.up_at <= c.up_until {
            let (at, central) = (c.up_at, c.central);
            self.call_at(at, central, Call::Gone(connection));
        }
    }

    /// The network forgets a connection: what is on the way may arrive up to some moment.
    pub(crate) fn cut(&mut self, connection: usize) {
        let now = self.schedule.now();
        let end = || match self.chance.below(4) {
            0 => (0, KEEPALIVE),
            1 => (self.chance.below(6 * MS), KEEPALIVE),
            2 => (u64::MAX / 2, self.chance.below(50 * MS)),
            _ => (self.chance.below(6 * MS), self.chance.below(100 * MS)),
        };
        let ((up, central_in), (down, gateway_in)) = (end(), end());
        let c = &mut self.connections[connection];
        c.closed = true;
        (c.up_until, c.down_until) = (c.up_until.min(now + up), c.down_until.min(now + down));
        let (gateway, central) = (c.gateway, c.central);
        self.call(gateway_in, gateway, Call::Lost(connection));
        self.call(central_in, central, Call::Gone(connection));
    }

    /// Both ends of all connections of a process that died hear of it, sooner or later.
    pub(crate) fn cut_all_of(&mut self, process: Process) {
        let of = |c: &Connection| !c.closed && (c.gateway.process == process || c.central.process == process);
        let all: Vec<usize> = (0..self.connections.len()).filter(|n| of(&self.connections[*n])).collect();
        all.into_iter().for_each(|n| self.cut(n));
    }

    /// One of the connections that stand.
    pub(crate) fn some_connection(&self) -> Option<usize> {
        let standing: Vec<usize> =
            (0..self.connections.len()).filter(|n| !self.connections[*n].closed).collect();
        (!standing.is_empty()).then(|| standing[self.chance.below(standing.len() as u64) as usize])
    }
}
