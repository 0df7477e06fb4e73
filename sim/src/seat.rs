//! A process' place in a consumer group, and the group as the broker has it.
//!
//! As in Kafka: a member that is silent for the session time-out is put out, what it had is given to others; each change
//! is a new generation; what a living member has is given away only after it has let go of it.

use crate::{
    event::{Address, Call, Process},
    schedule::{MS, SECOND},
    world::World,
};
use std::collections::BTreeMap;

/// A member that is silent for so long is put out.
pub(crate) const SESSION: u64 = 6 * SECOND;

/// What a member hears from its group.
#[derive(Debug, Clone, Copy)]
pub(crate) enum News {
    Generation(u64),
    Assigned(u32),
    Revoked(u32),
    /// It is no member any more.
    Expelled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Link,
    Sink,
}

impl Kind {
    pub(crate) fn of(process: Process) -> Self {
        if matches!(process, Process::Link(_)) { Self::Link } else { Self::Sink }
    }
}

/// What a process believes about its place.
#[derive(Debug, Default)]
pub(crate) struct Seat {
    pub(crate) member: u64,
    pub(crate) generation: u64,
    /// Places, each with its lease.
    pub(crate) owned: BTreeMap<u32, u64>,
    leases: u64,
}

impl Seat {
    pub(crate) fn assigned(&mut self, place: u32) -> u64 {
        self.leases += 1;
        self.owned.insert(place, self.leases);
        self.leases
    }

    /// Whether the place is owned under this lease.
    pub(crate) fn holds(&self, place: u32, lease: u64) -> bool {
        self.owned.get(&place) == Some(&lease)
    }
}

#[derive(Debug)]
struct Member {
    address: Address,
    /// News reach it in order.
    news_at: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) generation: u64,
    members: BTreeMap<u64, Member>,
    owners: Vec<Option<u64>>,
    revoking: Vec<bool>,
}

impl Group {
    pub(crate) fn new(places: u32) -> Self {
        let n = places as usize;
        Self { owners: vec![None; n], revoking: vec![false; n], ..Self::default() }
    }

    /// Whether an offset may be committed in the name of this member and generation.
    pub(crate) fn admits(&self, member: u64, generation: u64) -> bool {
        self.generation == generation && self.members.contains_key(&member)
    }
}

impl World {
    pub(crate) fn group(&mut self, kind: Kind) -> &mut Group {
        match kind {
            Kind::Link => &mut self.broker.link,
            Kind::Sink => &mut self.broker.sink,
        }
    }

    /// A process joins; gives its number as a member.
    pub(crate) fn join(&mut self, address: Address) -> u64 {
        let member = self.number();
        let kind = Kind::of(address.process);
        self.group(kind).members.insert(member, Member { address, news_at: 0 });
        self.rebalance(kind);
        member
    }

    /// A member leaves, or is put out.
    pub(crate) fn leave(&mut self, kind: Kind, member: u64) {
        let group = self.group(kind);
        if group.members.remove(&member).is_none() {
            return;
        }
        for place in 0..group.owners.len() {
            if group.owners[place] == Some(member) {
                (group.owners[place], group.revoking[place]) = (None, false);
            }
        }
        self.rebalance(kind);
    }

    /// A silent member is put out; it hears of it when it speaks again.
    pub(crate) fn expel(&mut self, kind: Kind, member: u64) {
        if let Some(address) = self.group(kind).members.get(&member).map(|m| m.address) {
            self.leave(kind, member);
            let within = self.chance.between(50 * MS, 1_200 * MS);
            self.call(within, address, Call::Seat(member, News::Expelled));
        }
    }

    /// A member has let go of a place.
    pub(crate) fn let_go(&mut self, kind: Kind, member: u64, place: u32) {
        let group = self.group(kind);
        let n = place as usize;
        if group.owners[n] == Some(member) && group.revoking[n] {
            (group.owners[n], group.revoking[n]) = (None, false);
            self.rebalance(kind);
        }
    }

    /// A new generation: free places are given away, and who has too many is asked to let go of one.
    fn rebalance(&mut self, kind: Kind) {
        let group = self.group(kind);
        group.generation += 1;
        let generation = group.generation;
        let mut news: Vec<(u64, News)> =
            group.members.keys().map(|m| (*m, News::Generation(generation))).collect();
        let mut load: BTreeMap<u64, usize> = group.members.keys().map(|m| (*m, 0)).collect();
        for owner in group.owners.iter().flatten() {
            *load.entry(*owner).or_default() += 1;
        }
        for place in 0..group.owners.len() {
            if group.owners[place].is_none()
                && let Some((member, n)) = load.iter_mut().min_by_key(|(m, n)| (**n, **m))
            {
                *n += 1;
                group.owners[place] = Some(*member);
                news.push((*member, News::Assigned(place as u32)));
            }
        }
        let least = load.values().min().copied().unwrap_or_default();
        if let Some((member, _)) = load.iter().find(|(_, n)| **n > least + 1)
            && let Some(place) = (0..group.owners.len()).find(|p| group.owners[*p] == Some(*member))
            && !std::mem::replace(&mut group.revoking[place], true)
        {
            news.push((*member, News::Revoked(place as u32)));
        }
        for (member, one) in news {
            let within = self.chance.between(MS, 300 * MS);
            let at = self.schedule.now() + within;
            if let Some(m) = self.group(kind).members.get_mut(&member) {
                m.news_at = m.news_at.max(at);
                let (at, address) = (m.news_at, m.address);
                self.call_at(at, address, Call::Seat(member, one));
            }
        }
    }
}
