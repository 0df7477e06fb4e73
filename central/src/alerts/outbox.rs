//! The order of deliveries: what goes to whom next, when to try again, when to repeat. Asks no clock and does no I/O.

use super::{Notification, NotificationKind, Receiver, ReceiverKind};
use record::clock::Random;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    time::Duration,
};

/// Bounds of the outbox.
pub mod limits {
    use std::time::Duration;

    /// Transitions waiting for one receiver; the oldest beyond it are given up and counted.
    pub const QUEUE_MAX: usize = 10_000;
    /// Alerts in one request to Alertmanager.
    pub const BATCH_MAX: usize = 64;
    /// First wait after a failure; doubles up to [`BACKOFF_MAX`].
    pub const BACKOFF_MIN: Duration = Duration::from_secs(1);
    /// Longest wait after failures.
    pub const BACKOFF_MAX: Duration = Duration::from_secs(60);
    /// How often Alertmanager is told again what fires.
    pub const REPEAT_EVERY: Duration = Duration::from_secs(60);
    /// How long Alertmanager believes that an alert fires without being told again: a restart of this program within
    /// it resolves nothing.
    pub const BELIEVED_FOR: Duration = Duration::from_secs(600);

    const _: () = assert!(BELIEVED_FOR.as_secs() >= 4 * REPEAT_EVERY.as_secs());
    const _: () = assert!(BELIEVED_FOR.as_secs() > BACKOFF_MAX.as_secs() + REPEAT_EVERY.as_secs());
}

/// The stored half: what each receiver, by name, has not accepted yet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OutboxState {
    queues: BTreeMap<String, VecDeque<Notification>>,
}

impl OutboxState {
    /// Transitions waiting for a receiver.
    pub fn waiting(&self, receiver: &str) -> usize {
        self.queues.get(receiver).map_or(0, VecDeque::len)
    }
}

/// One request to make.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// To whom.
    pub receiver: Receiver,
    /// What to say.
    pub items: Vec<Notification>,
    /// How many of the items are the head of the stored queue; 0 for a repetition of what fires.
    queued: usize,
}

/// How a delivery went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver has it.
    Accepted,
    /// Worth trying again: no answer, overload, a failure on its side.
    Failed(String),
    /// The receiver says that the request itself is wrong.
    Refused(String),
}

#[derive(Debug)]
struct Lane {
    receiver: Receiver,
    in_flight: bool,
    failures: u32,
    not_before_ns: u64,
    /// When the last round of repetitions was complete.
    repeated_ns: Option<u64>,
    repeat: VecDeque<Notification>,
    /// After a refused batch: how many items to send one by one, so that only the bad one is given up.
    alone: usize,
    /// Given up because the queue was full or the receiver refused.
    dropped: u64,
}

/// The deciding half.
#[derive(Debug)]
pub struct Outbox {
    lanes: BTreeMap<String, Lane>,
}

impl Outbox {
    /// An outbox for these receivers. Queues of receivers that are no more are removed; the number of transitions lost
    /// with them is returned.
    pub fn new(receivers: Vec<Receiver>, state: &mut OutboxState) -> (Self, usize) {
        let lane = |receiver: Receiver| Lane {
            receiver,
            in_flight: false,
            failures: 0,
            not_before_ns: 0,
            repeated_ns: None,
            repeat: VecDeque::new(),
            alone: 0,
            dropped: 0,
        };
        let lanes: BTreeMap<_, _> = receivers.into_iter().map(|r| (r.name.clone(), lane(r))).collect();
        let gone = state.queues.iter().filter(|(r, _)| !lanes.contains_key(*r)).map(|(_, q)| q.len()).sum();
        state.queues.retain(|r, _| lanes.contains_key(r));
        (Self { lanes }, gone)
    }

    /// Puts transitions into every receiver's queue.
    pub fn push(&mut self, state: &mut OutboxState, items: &[Notification]) {
        for (name, lane) in &mut self.lanes {
            let queue = state.queues.entry(name.clone()).or_default();
            queue.extend(items.iter().cloned());
            // What is in flight is the head of the queue and must stay there until its outcome is known.
            let keep = if lane.in_flight { limits::BATCH_MAX } else { 0 };
            while queue.len() > limits::QUEUE_MAX {
                queue.remove(keep);
                lane.dropped += 1;
            }
        }
    }

    /// The requests to make now, at most one per receiver at a time. `firing` is every alert that fires.
    pub fn next(&mut self, state: &OutboxState, firing: &[Notification], now_ns: u64) -> Vec<Delivery> {
        let mut out = Vec::new();
        for (name, lane) in &mut self.lanes {
            if lane.in_flight || now_ns < lane.not_before_ns {
                continue;
            }
            let queue = state.queues.get(name).filter(|q| !q.is_empty());
            let delivery = match queue {
                Some(queue) => Some(lane.head_of(queue)),
                None => lane.repetition(firing, now_ns),
            };
            if let Some(d) = delivery {
                lane.in_flight = true;
                out.push(d);
            }
        }
        out
    }

    /// Takes the outcome of a delivery; true when the stored half changed.
    pub fn done(
        &mut self,
        state: &mut OutboxState,
        delivery: &Delivery,
        outcome: &Outcome,
        now_ns: u64,
        random: &dyn Random,
    ) -> bool {
        let Some(lane) = self.lanes.get_mut(&delivery.receiver.name) else { return false };
        lane.in_flight = false;
        let take = match outcome {
            Outcome::Accepted => {
                lane.failures = 0;
                lane.alone = lane.alone.saturating_sub(delivery.queued);
                if delivery.queued == 0 && lane.repeat.is_empty() {
                    lane.repeated_ns = Some(now_ns);
                }
                delivery.queued
            }
            Outcome::Refused(_) if delivery.queued > 1 => {
                lane.alone = delivery.queued;
                0
            }
            Outcome::Refused(_) if delivery.queued == 1 => {
                lane.dropped += 1;
                lane.alone = lane.alone.saturating_sub(1);
                1
            }
            Outcome::Refused(_) | Outcome::Failed(_) => {
                lane.failures = lane.failures.saturating_add(1);
                lane.not_before_ns = now_ns.saturating_add(backoff_ns(lane.failures, random));
                lane.repeat.clear();
                0
            }
        };
        if let Some(queue) = state.queues.get_mut(&delivery.receiver.name) {
            queue.drain(..take.min(queue.len()));
        }
        take > 0
    }

    /// When [`Outbox::next`] may have something that it did not have before, if nothing else happens.
    pub fn wake_ns(&self, state: &OutboxState, any_firing: bool) -> Option<u64> {
        let lane_wake = |(name, lane): (&String, &Lane)| {
            if lane.in_flight {
                return None;
            }
            if state.waiting(name) > 0 || !lane.repeat.is_empty() {
                return Some(lane.not_before_ns);
            }
            let repeats = any_firing && lane.receiver.kind == ReceiverKind::Alertmanager;
            let due = lane.repeated_ns.map_or(0, |t| t.saturating_add(ns(limits::REPEAT_EVERY)));
            repeats.then(|| due.max(lane.not_before_ns))
        };
        self.lanes.iter().filter_map(lane_wake).min()
    }

    /// Per receiver: name, transitions given up so far, failures in a row.
    pub fn health(&self) -> impl Iterator<Item = (&str, u64, u32)> {
        self.lanes.iter().map(|(name, l)| (name.as_str(), l.dropped, l.failures))
    }
}

impl Lane {
    fn head_of(&self, queue: &VecDeque<Notification>) -> Delivery {
        let max = match self.receiver.kind {
            ReceiverKind::Webhook => 1,
            ReceiverKind::Alertmanager if self.alone > 0 => 1,
            ReceiverKind::Alertmanager => limits::BATCH_MAX,
        };
        // Alertmanager merges what one request says about one alert, so each alert stands in it once.
        let mut seen = HashSet::new();
        let items: Vec<Notification> =
            queue.iter().take(max).take_while(|n| seen.insert(&n.labels)).cloned().collect();
        Delivery { receiver: self.receiver.clone(), queued: items.len(), items }
    }

    fn repetition(&mut self, firing: &[Notification], now_ns: u64) -> Option<Delivery> {
        if self.receiver.kind != ReceiverKind::Alertmanager {
            return None;
        }
        let due = self.repeated_ns.is_none_or(|t| now_ns >= t.saturating_add(ns(limits::REPEAT_EVERY)));
        if self.repeat.is_empty() && due {
            self.repeat = firing.iter().filter(|n| n.kind == NotificationKind::Firing).cloned().collect();
        }
        if self.repeat.is_empty() {
            return None;
        }
        // What was resolved since the round began must not be called firing again.
        let still: HashSet<&str> = firing.iter().map(|n| n.id.as_str()).collect();
        let mut items = Vec::new();
        while let Some(n) = self.repeat.pop_front() {
            if still.contains(n.id.as_str()) {
                items.push(n);
            }
            if items.len() == limits::BATCH_MAX {
                break;
            }
        }
        if items.is_empty() {
            self.repeated_ns = Some(now_ns);
            return None;
        }
        Some(Delivery { receiver: self.receiver.clone(), items, queued: 0 })
    }
}

fn ns(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

/// Doubling from the shortest to the longest wait, of which a random half is taken off, so that many programs do not
/// knock in step.
fn backoff_ns(failures: u32, random: &dyn Random) -> u64 {
    let doublings = failures.saturating_sub(1).min(16);
    let full = ns(limits::BACKOFF_MIN).saturating_mul(1 << doublings).min(ns(limits::BACKOFF_MAX));
    full - random.next_u64() % (full / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::clock::SeededRandom;

    const SECOND: u64 = 1_000_000_000;

    fn receiver(kind: ReceiverKind) -> Receiver {
        Receiver::new(kind, "http://127.0.0.1:9093").expect("a valid address")
    }

    fn note(device: &str, kind: NotificationKind) -> Notification {
        let labels = BTreeMap::from([("device".to_owned(), device.to_owned())]);
        Notification {
            id: Notification::id_of("g/a", &labels, 1, kind),
            rule: "g/a".into(),
            kind,
            labels,
            annotations: BTreeMap::new(),
            value: None,
            active_ns: 1,
            fired_wall_ns: 1,
            at_wall_ns: 1,
        }
    }

    struct Bed {
        state: OutboxState,
        outbox: Outbox,
        random: SeededRandom,
    }

    fn bed(kind: ReceiverKind) -> Bed {
        let mut state = OutboxState::default();
        let (outbox, _) = Outbox::new(vec![receiver(kind)], &mut state);
        Bed { state, outbox, random: SeededRandom::new(1) }
    }

    impl Bed {
        fn done(&mut self, d: &Delivery, outcome: Outcome, now_ns: u64) -> bool {
            self.outbox.done(&mut self.state, d, &outcome, now_ns, &self.random)
        }
    }

    #[test]
    fn failures_are_tried_again_later_and_nothing_is_lost() {
        let mut b = bed(ReceiverKind::Webhook);
        let (f, r) = (note("a", NotificationKind::Firing), note("a", NotificationKind::Resolved));
        b.outbox.push(&mut b.state, &[f.clone(), r.clone()]);
        let d = b.outbox.next(&b.state, &[], 0);
        assert_eq!(d[0].items, std::slice::from_ref(&f));
        assert!(b.outbox.next(&b.state, &[], 0).is_empty(), "one at a time");
        assert!(!b.done(&d[0], Outcome::Failed("no".into()), 0));
        assert!(b.outbox.next(&b.state, &[], 0).is_empty(), "backs off");
        let wake = b.outbox.wake_ns(&b.state, false).expect("has work");
        assert!((SECOND / 2..=SECOND).contains(&wake), "{wake}");
        let d = b.outbox.next(&b.state, &[], wake);
        assert_eq!(d[0].items, [f]);
        assert!(b.done(&d[0], Outcome::Accepted, wake));
        let d = b.outbox.next(&b.state, &[], wake);
        assert_eq!(d[0].items, [r]);
        assert!(b.done(&d[0], Outcome::Accepted, wake));
        assert_eq!(b.outbox.wake_ns(&b.state, true), None);
    }

    #[test]
    fn alertmanager_is_told_again_what_fires_and_gets_each_alert_once_a_request() {
        let mut b = bed(ReceiverKind::Alertmanager);
        let firing = [note("a", NotificationKind::Firing), note("b", NotificationKind::Firing)];
        b.outbox.push(&mut b.state, &firing);
        b.outbox.push(&mut b.state, &[note("a", NotificationKind::Resolved)]);
        let d = b.outbox.next(&b.state, &firing, 0);
        assert_eq!(d[0].items.len(), 2);
        b.done(&d[0], Outcome::Accepted, 0);
        let d = b.outbox.next(&b.state, &firing[1..], 0);
        assert_eq!(d[0].items, [note("a", NotificationKind::Resolved)]);
        b.done(&d[0], Outcome::Accepted, 0);
        let d = b.outbox.next(&b.state, &firing[1..], 0);
        assert_eq!(d[0].items, firing[1..], "after a start everything that fires is said once");
        assert!(!b.done(&d[0], Outcome::Accepted, 0), "a repetition changes nothing stored");
        assert!(b.outbox.next(&b.state, &firing[1..], 59 * SECOND).is_empty());
        assert_eq!(b.outbox.wake_ns(&b.state, true), Some(60 * SECOND));
        assert_eq!(b.outbox.next(&b.state, &firing[1..], 60 * SECOND)[0].items, firing[1..]);
    }

    #[test]
    fn one_bad_alert_does_not_take_its_batch_with_it() {
        let mut b = bed(ReceiverKind::Alertmanager);
        let all: Vec<_> = ["a", "b", "c"].map(|d| note(d, NotificationKind::Resolved)).into();
        b.outbox.push(&mut b.state, &all);
        let d = b.outbox.next(&b.state, &[], 0);
        b.done(&d[0], Outcome::Refused("bad".into()), 0);
        let mut accepted = 0;
        for _ in 0..3 {
            let d = b.outbox.next(&b.state, &[], 0);
            assert_eq!(d[0].items.len(), 1);
            let bad = d[0].items[0] == all[1];
            accepted += u32::from(!bad);
            b.done(&d[0], if bad { Outcome::Refused("bad".into()) } else { Outcome::Accepted }, 0);
        }
        assert_eq!((accepted, b.state.waiting(&receiver(ReceiverKind::Alertmanager).name)), (2, 0));
        assert_eq!(b.outbox.health().next().expect("one").1, 1);
    }

    #[test]
    fn the_queue_is_bounded_and_a_removed_receiver_is_forgotten() {
        let mut b = bed(ReceiverKind::Webhook);
        let many: Vec<_> =
            (0..limits::QUEUE_MAX + 5).map(|i| note(&i.to_string(), NotificationKind::Firing)).collect();
        b.outbox.push(&mut b.state, &many);
        let name = receiver(ReceiverKind::Webhook).name;
        assert_eq!(b.state.waiting(&name), limits::QUEUE_MAX);
        assert_eq!(b.outbox.health().next().expect("one").1, 5);
        let (_, gone) = Outbox::new(Vec::new(), &mut b.state);
        assert_eq!((gone, b.state.waiting(&name)), (limits::QUEUE_MAX, 0));
    }
}
