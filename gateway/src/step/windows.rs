//! Keys, watermarks and open windows of an aggregating stream: which row belongs to which window, which window closes.
//!
//! Each key (a device, usually) has its own watermark: its newest event time less the allowed lateness. A window closes
//! when its key's watermark reaches its end. So a device that was offline for a day is not late because its neighbour
//! was not. A row that belongs to a closed window is late.
//!
//! The module's groups are numbered by slots; a slot is given out when a window opens and comes back when it closed.
//! Rows are judged one after the other, whatever the batch: a window that closes in the middle of a batch is closed for
//! the rest of it.
//!
//! A stream has room for so many keys. When a new one comes and there is none left, keys are forgotten that fell silent:
//! whose newest event time is behind the newest of the stream by a window, the lateness and the idle time together. The
//! windows that they have open close with that. What they had closed is remembered as one bound for all of them: a key
//! that is new, or new again, begins with everything up to it closed, so that no window is given twice. As long as there
//! is room nothing of this happens, and keys know nothing of each other.

use super::cells::{Cells, Pick, device_key};
use crate::{
    config::Window,
    limits::{WINDOW_KEYS_MAX, WINDOWS_OPEN_MAX},
};
use record::{Batch, arrow::array::Array};
use std::collections::HashMap;

/// A window that closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Closing {
    pub(super) key: u32,
    pub(super) start_ns: i64,
    pub(super) slot: u32,
}

/// Where the rows of a batch go.
#[derive(Debug, Default)]
pub(super) struct Assigned {
    /// Bit i: row i goes into a window.
    pub(super) accepted: Vec<u64>,
    /// The slot of each accepted row.
    pub(super) slots: Vec<u32>,
    /// Rows whose window has closed.
    pub(super) late: Vec<usize>,
    /// Rows that would need one key or window too many.
    pub(super) overflow: Vec<usize>,
    /// Windows that close, in the order in which they do.
    pub(super) closing: Vec<Closing>,
    /// Keys whose watermark moved.
    pub(super) moved: Vec<u32>,
    /// Keys that were forgotten; their places are taken again only by a later batch.
    pub(super) forgotten: Vec<u32>,
}

/// One key.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) bytes: Box<[u8]>,
    pub(super) newest_ns: i64,
    /// Windows that end at or before this were closed without the watermark's doing.
    pub(super) closed_ns: i64,
    /// Start and slot, oldest first.
    open: Vec<(i64, u32)>,
    last_row_ns: u64,
    moved: bool,
    pub(super) forgotten: bool,
}

/// What a slot holds.
#[derive(Debug, Clone, Default)]
pub(super) struct Slot {
    /// Key and window start while it is given out.
    pub(super) window: Option<(u32, i64)>,
    /// The state as it was last saved; nothing before the first row was taken.
    pub(super) saved: Option<Vec<u8>>,
}

/// All keys and open windows.
#[derive(Debug)]
pub(super) struct Windows {
    every_ns: i64,
    lateness_ns: i64,
    /// How far behind the stream's newest event time a key counts as silent.
    silent_ns: i64,
    keys_max: usize,
    picks: Vec<Pick>,
    by_bytes: HashMap<Box<[u8]>, u32>,
    pub(super) keys: Vec<Key>,
    /// Places in `keys` to be taken again; those that this batch's forgotten keys leave only after it.
    free_keys: Vec<u32>,
    leaving_keys: Vec<u32>,
    /// The newest event time of all keys.
    newest_ns: i64,
    /// Windows that end at or before this may have belonged to a key that was forgotten.
    pub(super) forgotten_through_ns: i64,
    /// No key can be silent before the newest event time is this: spares looking at all of them in vain.
    none_silent_until_ns: i64,
    pub(super) slots: Vec<Slot>,
    free: Vec<u32>,
}

/// The keys of a batch's rows.
struct Named {
    /// For each row an index of `names`.
    of_row: Vec<u32>,
    names: Vec<Name>,
}

/// One of them, with its place if there is one.
struct Name {
    bytes: Box<[u8]>,
    key: Option<u32>,
}

/// When there is no room, at most this share of the keys is forgotten at once: the oldest.
const FORGOTTEN_SHARE: usize = 16;

impl Windows {
    pub(super) fn new(window: &Window, picks: Vec<Pick>) -> Self {
        let ns = |d: std::time::Duration| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX);
        let (every_ns, lateness_ns) = (ns(window.every).max(1), ns(window.lateness));
        let idle_ns = window.idle.map_or(0, ns);
        Self {
            every_ns,
            lateness_ns,
            silent_ns: every_ns.saturating_add(lateness_ns).saturating_add(idle_ns),
            keys_max: WINDOW_KEYS_MAX,
            picks,
            by_bytes: HashMap::new(),
            keys: Vec::new(),
            free_keys: Vec::new(),
            leaving_keys: Vec::new(),
            newest_ns: i64::MIN,
            forgotten_through_ns: i64::MIN,
            none_silent_until_ns: i64::MIN,
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    pub(super) fn every_ns(&self) -> i64 {
        self.every_ns
    }

    /// The columns of a key, in its order.
    pub(super) fn picks(&self) -> &[Pick] {
        &self.picks
    }

    /// Puts back a key as it was saved.
    pub(super) fn restore_key(&mut self, bytes: &[u8], newest_ns: i64, closed_ns: i64, now_ns: u64) {
        let key = self.make(bytes.into(), now_ns);
        let key = &mut self.keys[key as usize];
        (key.newest_ns, key.closed_ns) = (newest_ns, closed_ns);
        self.newest_ns = self.newest_ns.max(newest_ns);
    }

    /// Puts back an open window as it was saved; its key was put back before.
    pub(super) fn restore_window(&mut self, bytes: &[u8], start_ns: i64, state: Vec<u8>) -> bool {
        let Some(key) = self.by_bytes.get(bytes).copied() else { return false };
        let Some(slot) = self.slot(key, start_ns) else { return false };
        self.slots[slot as usize].saved = Some(state);
        true
    }

    fn make(&mut self, bytes: Box<[u8]>, now_ns: u64) -> u32 {
        let key = Key {
            bytes: bytes.clone(),
            newest_ns: i64::MIN,
            closed_ns: self.forgotten_through_ns,
            open: Vec::new(),
            last_row_ns: now_ns,
            moved: false,
            forgotten: false,
        };
        let index = match self.free_keys.pop() {
            Some(index) => {
                self.keys[index as usize] = key;
                index
            }
            None => {
                self.keys.push(key);
                (self.keys.len() - 1) as u32
            }
        };
        self.by_bytes.insert(bytes, index);
        index
    }

    /// Forgets the oldest of the keys that are silent at a row of this time; false when none is.
    fn forget(&mut self, time_ns: i64, out: &mut Assigned) -> bool {
        let newest = self.newest_ns.max(time_ns);
        if newest < self.none_silent_until_ns {
            return false;
        }
        let silent_through = newest.saturating_sub(self.silent_ns);
        let living = self.keys.iter().enumerate().filter(|(_, k)| !k.forgotten);
        let mut oldest: Vec<(i64, &[u8], u32)> =
            living.map(|(index, k)| (k.newest_ns, &*k.bytes, index as u32)).collect();
        oldest.sort_unstable();
        let silent = oldest.partition_point(|(newest, ..)| *newest <= silent_through);
        if silent == 0 {
            let first = oldest.first().map_or(i64::MAX, |(newest, ..)| *newest);
            self.none_silent_until_ns = first.saturating_add(self.silent_ns);
            return false;
        }
        oldest.truncate(silent.min(self.keys_max.div_ceil(FORGOTTEN_SHARE)));
        let leaving: Vec<u32> = oldest.into_iter().map(|(_, _, index)| index).collect();
        for index in leaving {
            let key = &mut self.keys[index as usize];
            let last_end =
                key.newest_ns.div_euclid(self.every_ns).saturating_add(1).saturating_mul(self.every_ns);
            self.forgotten_through_ns = self.forgotten_through_ns.max(key.closed_ns).max(last_end);
            key.forgotten = true;
            let open = key.open.drain(..);
            out.closing.extend(open.map(|(start_ns, slot)| Closing { key: index, start_ns, slot }));
            self.by_bytes.remove(&key.bytes);
            self.leaving_keys.push(index);
            out.forgotten.push(index);
        }
        true
    }

    /// The slot of a key's window, opened if need be.
    fn slot(&mut self, key: u32, start_ns: i64) -> Option<u32> {
        let open = &mut self.keys[key as usize].open;
        let at = match open.binary_search_by_key(&start_ns, |(start, _)| *start) {
            Ok(at) => return Some(open[at].1),
            Err(at) => at,
        };
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() >= WINDOWS_OPEN_MAX => return None,
            None => {
                self.slots.push(Slot::default());
                (self.slots.len() - 1) as u32
            }
        };
        self.slots[slot as usize] = Slot { window: Some((key, start_ns)), saved: None };
        open.insert(at, (start_ns, slot));
        Some(slot)
    }

    /// Whether there is room for a new key with a window; makes some, if it can, for a row of this time.
    fn room(&mut self, time_ns: i64, out: &mut Assigned) -> bool {
        let slots = !self.free.is_empty() || self.slots.len() < WINDOWS_OPEN_MAX;
        // The slots of windows that close now come back after the batch.
        (slots && self.by_bytes.len() < self.keys_max)
            || (self.forget(time_ns, out) && slots && self.by_bytes.len() < self.keys_max)
    }

    /// Judges the rows of a batch in order.
    pub(super) fn assign(&mut self, batch: &Batch, now_ns: u64) -> Assigned {
        // Nobody speaks of the keys any more that the batch before this one made leave.
        self.free_keys.append(&mut self.leaving_keys);
        let mut out = Assigned { accepted: vec![0; batch.rows().div_ceil(64)], ..Assigned::default() };
        let mut named = self.keys_of(batch);
        for (row, time) in batch.times().iter().enumerate() {
            let name = &mut named.names[named.of_row[row] as usize];
            let start = time.div_euclid(self.every_ns).saturating_mul(self.every_ns);
            let known = name.key.filter(|key| !self.keys[*key as usize].forgotten);
            if self.has_closed(known, start) {
                out.late.push(row);
                continue;
            }
            let key = match known {
                Some(key) => key,
                None if !self.room(*time, &mut out) => {
                    out.overflow.push(row);
                    continue;
                }
                // Making room has closed windows.
                None if self.has_closed(None, start) => {
                    out.late.push(row);
                    continue;
                }
                None => {
                    self.none_silent_until_ns =
                        self.none_silent_until_ns.min(time.saturating_add(self.silent_ns));
                    *name.key.insert(self.make(name.bytes.clone(), now_ns))
                }
            };
            let Some(slot) = self.slot(key, start) else {
                self.forget(*time, &mut out);
                out.overflow.push(row);
                continue;
            };
            out.accepted[row / 64] |= 1 << (row % 64);
            out.slots.push(slot);
            self.advance(key, *time, now_ns, &mut out);
        }
        for key in &out.moved {
            self.keys[*key as usize].moved = false;
        }
        out
    }

    /// The keys of a batch, each looked up once.
    fn keys_of(&self, batch: &Batch) -> Named {
        let mut out = Named { of_row: Vec::with_capacity(batch.rows()), names: Vec::new() };
        let name = |bytes: Box<[u8]>| Name { key: self.by_bytes.get(&bytes).copied(), bytes };
        if self.picks == [Pick::Device] {
            let devices = batch.device_names();
            let mut seen: Vec<Option<u32>> = vec![None; devices.len()];
            for device in batch.devices().keys().values() {
                let device = usize::try_from(*device).unwrap_or_default();
                let at = *seen[device].get_or_insert_with(|| {
                    out.names.push(name(device_key(devices.value(device)).into()));
                    (out.names.len() - 1) as u32
                });
                out.of_row.push(at);
            }
            return out;
        }
        let (cells, mut bytes) = (Cells::new(batch, &self.picks), Vec::new());
        let mut seen: HashMap<Box<[u8]>, u32> = HashMap::new();
        for row in 0..batch.rows() {
            bytes.clear();
            cells.append(row, &mut bytes);
            let at = seen.get(&*bytes).copied().unwrap_or_else(|| {
                out.names.push(name(bytes.as_slice().into()));
                seen.insert(bytes.as_slice().into(), (out.names.len() - 1) as u32);
                (out.names.len() - 1) as u32
            });
            out.of_row.push(at);
        }
        out
    }

    /// Whether a window has closed, for a key or for one that is not known.
    fn has_closed(&self, key: Option<u32>, start_ns: i64) -> bool {
        let through =
            key.map_or(self.forgotten_through_ns, |key| self.closed_through(&self.keys[key as usize]));
        start_ns.saturating_add(self.every_ns) <= through
    }

    fn closed_through(&self, key: &Key) -> i64 {
        key.closed_ns.max(key.newest_ns.saturating_sub(self.lateness_ns))
    }

    /// Moves a key's watermark and closes what it passed.
    fn advance(&mut self, key: u32, time_ns: i64, now_ns: u64, out: &mut Assigned) {
        let (every, lateness) = (self.every_ns, self.lateness_ns);
        let k = &mut self.keys[key as usize];
        k.last_row_ns = now_ns;
        if time_ns <= k.newest_ns {
            return;
        }
        k.newest_ns = time_ns;
        self.newest_ns = self.newest_ns.max(time_ns);
        if !std::mem::replace(&mut k.moved, true) {
            out.moved.push(key);
        }
        let through = k.closed_ns.max(time_ns.saturating_sub(lateness));
        let closed = k.open.partition_point(|(start, _)| start.saturating_add(every) <= through);
        out.closing.extend(k.open.drain(..closed).map(|(start_ns, slot)| Closing { key, start_ns, slot }));
    }

    /// Closes the open windows of the keys from which nothing came for `idle_ns`, or of all keys; at most `most`.
    pub(super) fn close_idle(
        &mut self,
        now_ns: u64,
        idle_ns: Option<u64>,
        most: usize,
    ) -> (Vec<Closing>, Vec<u32>) {
        self.close_as(self.every_ns, now_ns, idle_ns, most)
    }

    /// Closes every open window, of a length that is no longer the stream's.
    pub(super) fn close_all_of(&mut self, every_ns: i64) -> Vec<Closing> {
        self.close_as(every_ns, 0, None, usize::MAX).0
    }

    fn close_as(
        &mut self,
        every_ns: i64,
        now_ns: u64,
        idle_ns: Option<u64>,
        most: usize,
    ) -> (Vec<Closing>, Vec<u32>) {
        let (mut closing, mut touched) = (Vec::new(), Vec::new());
        for (index, key) in self.keys.iter_mut().enumerate() {
            let quiet = idle_ns.is_none_or(|idle| now_ns.saturating_sub(key.last_row_ns) >= idle);
            let leaving = key.open.len().min(most - closing.len());
            let newest = leaving.checked_sub(1).and_then(|last| key.open.get(last)).copied();
            let Some((newest_start, _)) = newest.filter(|_| quiet) else { continue };
            key.closed_ns = key.closed_ns.max(newest_start.saturating_add(every_ns));
            touched.push(index as u32);
            closing.extend(key.open.drain(..leaving).map(|(start_ns, slot)| Closing {
                key: index as u32,
                start_ns,
                slot,
            }));
        }
        (closing, touched)
    }

    /// Takes slots back.
    pub(super) fn release(&mut self, closing: &[Closing]) {
        for closed in closing {
            self.slots[closed.slot as usize] = Slot::default();
            self.free.push(closed.slot);
        }
    }

    /// Slots with a saved state: what a fresh instance needs.
    pub(super) fn live(&self) -> (Vec<u32>, Vec<Vec<u8>>) {
        let saved = self.slots.iter().enumerate().filter_map(|(i, s)| Some((i as u32, s.saved.clone()?)));
        saved.unzip()
    }

    /// Forgets all open windows; keys and watermarks stay.
    pub(super) fn forget_open(&mut self) -> Vec<Closing> {
        let mut all = Vec::new();
        for (index, key) in self.keys.iter_mut().enumerate() {
            all.extend(key.open.drain(..).map(|(start_ns, slot)| Closing {
                key: index as u32,
                start_ns,
                slot,
            }));
        }
        self.release(&all);
        all
    }

    /// Open windows.
    pub(super) fn open_count(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}
