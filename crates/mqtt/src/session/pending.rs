//! Acknowledgements that wait for the disk, in the order of receipt.

use std::collections::VecDeque;

use bytes::BytesMut;

use super::{Admission, Ticket};
use crate::encode;
use crate::packet::{PacketId, ReasonCode, Version};

#[derive(Debug, Clone, Copy)]
struct Ack {
    id: PacketId,
    reason: ReasonCode,
}

/// Ids stand in one queue, tickets in another with how many ids each covers: a read costs one ticket.
#[derive(Debug, Default)]
pub(super) struct Pending {
    acks: VecDeque<Ack>,
    rounds: VecDeque<(Ticket, usize)>,
    /// Ids at the back that no ticket covers yet.
    unassigned: usize,
}

impl Pending {
    pub(super) fn len(&self) -> usize {
        self.acks.len()
    }

    #[inline]
    pub(super) fn push(&mut self, id: PacketId, admission: Admission) {
        let reason = match admission {
            Admission::Taken => ReasonCode::SUCCESS,
            Admission::Refused(reason) => reason,
        };
        self.acks.push_back(Ack { id, reason });
        self.unassigned += 1;
    }

    #[inline]
    pub(super) fn assign(&mut self, ticket: Ticket) {
        if self.unassigned == 0 {
            return;
        }
        let count = std::mem::take(&mut self.unassigned);
        match self.rounds.back_mut() {
            Some((last, covered)) if *last >= ticket => *covered += count,
            _ => self.rounds.push_back((ticket, count)),
        }
    }

    #[inline]
    pub(super) fn release(&mut self, durable: Ticket, version: Version, out: &mut BytesMut) {
        while let Some(&(_, count)) = self.rounds.front().filter(|(ticket, _)| *ticket <= durable) {
            self.rounds.pop_front();
            out.reserve(count * 4);
            for ack in self.acks.drain(..count) {
                if ack.reason == ReasonCode::SUCCESS {
                    encode::puback(out, ack.id);
                } else {
                    encode::puback_with(out, version, ack.id, ack.reason, None);
                }
            }
        }
    }
}
