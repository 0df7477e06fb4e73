//! Keys, watermarks and open windows of an aggregating stream: which row belongs to which window, which window closes.
//!
//! Each key (a device, usually) has its own watermark: its newest event time less the allowed lateness. A window closes
//! when its key's watermark reaches its end. So a device that was offline for a day is not late because its neighbour
//! was not. A row that belongs to a closed window is late.
//!
//! The module's groups are numbered by slots; a slot is given out when a window opens and comes back when it closed.
//! Rows are judged one after the other, whatever the batch: a window that closes in the middle of a batch is closed for
//! the rest of it.

use super::cells::{Cells, Pick, device_key};
use crate::limits::{WINDOW_KEYS_MAX, WINDOWS_OPEN_MAX};
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
    picks: Vec<Pick>,
    by_bytes: HashMap<Box<[u8]>, u32>,
    pub(super) keys: Vec<Key>,
    pub(super) slots: Vec<Slot>,
    free: Vec<u32>,
    scratch: Vec<u8>,
}

impl Windows {
    pub(super) fn new(every_ns: i64, lateness_ns: i64, picks: Vec<Pick>) -> Self {
        Self {
            every_ns: every_ns.max(1),
            lateness_ns,
            picks,
            by_bytes: HashMap::new(),
            keys: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// The columns of a key, in its order.
    pub(super) fn picks(&self) -> &[Pick] {
        &self.picks
    }

    /// Puts back a key as it was saved.
    pub(super) fn restore_key(&mut self, bytes: &[u8], newest_ns: i64, closed_ns: i64, now_ns: u64) {
        let key = self.key(bytes, now_ns);
        if let Some(key) = key.and_then(|k| self.keys.get_mut(k as usize)) {
            (key.newest_ns, key.closed_ns) = (newest_ns, closed_ns);
        }
    }

    /// Puts back an open window as it was saved; its key was put back before.
    pub(super) fn restore_window(&mut self, bytes: &[u8], start_ns: i64, state: Vec<u8>) -> bool {
        let Some(key) = self.by_bytes.get(bytes).copied() else { return false };
        let Some(slot) = self.slot(key, start_ns) else { return false };
        self.slots[slot as usize].saved = Some(state);
        true
    }

    fn key(&mut self, bytes: &[u8], now_ns: u64) -> Option<u32> {
        if let Some(key) = self.by_bytes.get(bytes) {
            return Some(*key);
        }
        if self.keys.len() >= WINDOW_KEYS_MAX {
            return None;
        }
        let index = self.keys.len() as u32;
        self.by_bytes.insert(bytes.into(), index);
        self.keys.push(Key {
            bytes: bytes.into(),
            newest_ns: i64::MIN,
            closed_ns: i64::MIN,
            open: Vec::new(),
            last_row_ns: now_ns,
            moved: false,
        });
        Some(index)
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

    /// Judges the rows of a batch in order.
    pub(super) fn assign(&mut self, batch: &Batch, now_ns: u64) -> Assigned {
        let mut out = Assigned { accepted: vec![0; batch.rows().div_ceil(64)], ..Assigned::default() };
        let key_of_row = self.keys_of(batch, now_ns);
        for (row, (time, key)) in batch.times().iter().zip(key_of_row).enumerate() {
            let Some(key) = key else {
                out.overflow.push(row);
                continue;
            };
            let start = time.div_euclid(self.every_ns).saturating_mul(self.every_ns);
            let k = &self.keys[key as usize];
            if start.saturating_add(self.every_ns) <= self.closed_through(k) {
                out.late.push(row);
                continue;
            }
            let Some(slot) = self.slot(key, start) else {
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

    /// The key of every row; `None` where there would be too many.
    fn keys_of(&mut self, batch: &Batch, now_ns: u64) -> Vec<Option<u32>> {
        if self.picks == [Pick::Device] {
            // One look-up for each device of the batch instead of one for each row.
            let names = batch.device_names();
            let mut known: Vec<Option<Option<u32>>> = vec![None; names.len()];
            let rows = batch.devices().keys().values().iter();
            return rows
                .map(|name| {
                    let name = usize::try_from(*name).unwrap_or_default();
                    *known[name].get_or_insert_with(|| self.key(&device_key(names.value(name)), now_ns))
                })
                .collect();
        }
        let (picks, mut bytes) = (self.picks.clone(), std::mem::take(&mut self.scratch));
        let cells = Cells::new(batch, &picks);
        let keys = (0..batch.rows())
            .map(|row| {
                bytes.clear();
                cells.append(row, &mut bytes);
                self.key(&bytes, now_ns)
            })
            .collect();
        self.scratch = bytes;
        keys
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
        if !std::mem::replace(&mut k.moved, true) {
            out.moved.push(key);
        }
        let through = k.closed_ns.max(time_ns.saturating_sub(lateness));
        let closed = k.open.partition_point(|(start, _)| start.saturating_add(every) <= through);
        out.closing.extend(k.open.drain(..closed).map(|(start_ns, slot)| Closing { key, start_ns, slot }));
    }

    /// Closes every open window of the keys from which nothing came for `idle_ns`, or of all keys.
    pub(super) fn close_idle(&mut self, now_ns: u64, idle_ns: Option<u64>) -> (Vec<Closing>, Vec<u32>) {
        let (mut closing, mut touched) = (Vec::new(), Vec::new());
        for (index, key) in self.keys.iter_mut().enumerate() {
            let quiet = idle_ns.is_none_or(|idle| now_ns.saturating_sub(key.last_row_ns) >= idle);
            let Some((newest_start, _)) = key.open.last().copied().filter(|_| quiet) else { continue };
            key.closed_ns = key.closed_ns.max(newest_start.saturating_add(self.every_ns));
            touched.push(index as u32);
            closing.extend(key.open.drain(..).map(|(start_ns, slot)| Closing {
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
