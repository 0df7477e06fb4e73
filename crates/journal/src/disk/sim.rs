//! A disk in memory that behaves as badly as disks may.
//!
//! Until a file is synced, each of its writes may be kept, lost, or kept in part (sector by sector, in any
//! order) when [`SimDisk::crash`] is called; until a folder is synced, names made or removed in it may be kept or
//! not, one by one. A failed sync forgets what it should have written, as Linux does: asking again succeeds and
//! lies. Space is bounded, and the power can go in the middle of anything. All choices come from one seed.

use super::{Disk, DiskFile};
use crate::lock;
use record::clock::{Random, SeededRandom};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

/// What is written or lost as one.
const SECTOR_BYTES: usize = 512;

/// The simulated disk; clones are the same one.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<World>>);

struct World {
    random: SeededRandom,
    /// Handles of an earlier one are dead.
    epoch: u64,
    inodes: HashMap<u64, Inode>,
    next_inode: u64,
    dirs: BTreeSet<PathBuf>,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    pending_names: Vec<Naming>,
    capacity: u64,
    faults: Faults,
}

#[derive(Default)]
struct Faults {
    /// Changes of the disk until the power goes; `Some(0)` when it is gone.
    power: Option<u64>,
    syncs: u32,
    writes: u32,
    unreadable: bool,
}

enum Naming {
    Link(PathBuf, u64),
    Unlink(PathBuf),
}

#[derive(Default)]
struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
    /// At least so long.
    Reserve(u64),
}

/// A file of a [`SimDisk`].
pub struct SimFile {
    world: Arc<Mutex<World>>,
    inode: u64,
    epoch: u64,
    writable: bool,
}

impl SimDisk {
    /// An empty disk of `capacity` bytes whose choices the seed decides.
    pub fn new(seed: u64, capacity: u64) -> Self {
        Self(Arc::new(Mutex::new(World {
            random: SeededRandom::new(seed),
            epoch: 0,
            inodes: HashMap::new(),
            next_inode: 1,
            dirs: BTreeSet::from([PathBuf::from("/")]),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending_names: Vec::new(),
            capacity,
            faults: Faults::default(),
        })))
    }

    /// The power goes and comes back: open files are dead, what was not synced is kept by chance.
    pub fn crash(&self) {
        lock(&self.0).crash();
    }

    /// The next `n` syncs of a file fail.
    pub fn fail_syncs(&self, n: u32) {
        lock(&self.0).faults.syncs = n;
    }

    /// The next `n` writes fail with an I/O error after a part of them was done.
    pub fn fail_writes(&self, n: u32) {
        lock(&self.0).faults.writes = n;
    }

    /// The power goes during the `n`th change from now: it and all that follow fail, until [`SimDisk::crash`].
    pub fn power_off_after(&self, n: u64) {
        lock(&self.0).faults.power = Some(n.max(1));
    }

    /// From now on, or no longer, every read fails with an I/O error.
    pub fn set_unreadable(&self, unreadable: bool) {
        lock(&self.0).faults.unreadable = unreadable;
    }

    /// Changes the size of the disk; what is there stays.
    pub fn set_capacity(&self, capacity: u64) {
        lock(&self.0).capacity = capacity;
    }

    /// Bytes of all files.
    pub fn used(&self) -> u64 {
        lock(&self.0).used()
    }

    /// Changes bytes of a file for good, as a failing medium does.
    pub fn corrupt(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut world = lock(&self.0);
        let Some(inode) = world.names.get(path).copied() else { return };
        let Some(inode) = world.inodes.get_mut(&inode) else { return };
        change(&mut inode.now);
        inode.durable = inode.now.clone();
        inode.pending.clear();
    }

    /// What a file holds, synced or not.
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let world = lock(&self.0);
        world.inodes.get(world.names.get(path)?).map(|inode| inode.now.clone())
    }

    fn file(&self, path: &Path, writable: bool) -> io::Result<SimFile> {
        let world = lock(&self.0);
        world.powered()?;
        let inode = *world.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(SimFile { world: self.0.clone(), inode, epoch: world.epoch, writable })
    }
}

impl World {
    fn used(&self) -> u64 {
        self.names
            .values()
            .filter_map(|inode| self.inodes.get(inode))
            .map(|inode| inode.now.len() as u64)
            .sum()
    }

    fn powered(&self) -> io::Result<()> {
        match self.faults.power {
            Some(0) => Err(io::Error::other("the simulated machine has no power")),
            _ => Ok(()),
        }
    }

    /// One change was made, or is being made when the power goes.
    fn tick(&mut self) -> io::Result<()> {
        if let Some(left) = &mut self.faults.power {
            *left = left.saturating_sub(1);
        }
        self.powered()
    }

    fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.used())
    }

    fn below(&self, n: u64) -> u64 {
        self.random.next_u64() % n
    }

    fn crash(&mut self) {
        self.epoch += 1;
        self.faults = Faults::default();
        let mut names = std::mem::take(&mut self.durable_names);
        for naming in std::mem::take(&mut self.pending_names) {
            if self.below(2) == 0 {
                continue;
            }
            apply_naming(&mut names, naming);
        }
        // In the order of their numbers, so that the seed alone decides.
        let mut inodes: Vec<u64> = self.inodes.keys().copied().collect();
        inodes.sort_unstable();
        for number in inodes {
            let Some(mut inode) = self.inodes.remove(&number) else { continue };
            if names.values().any(|&named| named == number) {
                self.settle(&mut inode);
                self.inodes.insert(number, inode);
            }
        }
        self.durable_names = names.clone();
        self.names = names;
    }

    /// Decides what of the unsynced changes reached the medium.
    fn settle(&self, inode: &mut Inode) {
        let mut bytes = std::mem::take(&mut inode.durable);
        let changes = std::mem::take(&mut inode.pending);
        let (manner, stop) = (self.below(4), self.below(changes.len() as u64 + 1) as usize);
        for (i, change) in changes.into_iter().enumerate() {
            match manner {
                // All lost; all kept.
                0 => break,
                1 => apply(&mut bytes, change),
                // In order, the last one torn.
                2 if i < stop => apply(&mut bytes, change),
                2 if i == stop => self.tear(&mut bytes, change),
                2 => break,
                // In any order, each one whole, torn or lost.
                _ => match self.below(3) {
                    0 => apply(&mut bytes, change),
                    1 => self.tear(&mut bytes, change),
                    _ => {}
                },
            }
        }
        inode.now = bytes.clone();
        inode.durable = bytes;
    }

    /// Keeps some sectors of a write; a change of length happens or not.
    fn tear(&self, bytes: &mut Vec<u8>, change: Change) {
        let Change::Write(at, data) = change else {
            if self.below(2) == 0 {
                apply(bytes, change);
            }
            return;
        };
        let mut from = 0;
        while from < data.len() {
            let place = at as usize + from;
            let to = data.len().min(from + SECTOR_BYTES - place % SECTOR_BYTES);
            if self.below(2) == 0 {
                apply(bytes, Change::Write(place as u64, data[from..to].to_vec()));
            }
            from = to;
        }
    }
}

fn apply_naming(names: &mut BTreeMap<PathBuf, u64>, naming: Naming) {
    match naming {
        Naming::Link(path, inode) => names.insert(path, inode),
        Naming::Unlink(path) => names.remove(&path),
    };
}

fn apply(bytes: &mut Vec<u8>, change: Change) {
    match change {
        Change::Write(at, data) => {
            let end = at as usize + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[at as usize..end].copy_from_slice(&data);
        }
        Change::Length(len) => bytes.resize(len as usize, 0),
        Change::Reserve(len) => bytes.resize(bytes.len().max(len as usize), 0),
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        lock(&self.0).dirs.extend(dir.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<SimFile> {
        {
            let mut world = lock(&self.0);
            world.powered()?;
            if world.names.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let inode = world.next_inode;
            world.next_inode += 1;
            world.inodes.insert(inode, Inode::default());
            world.names.insert(path.to_owned(), inode);
            world.pending_names.push(Naming::Link(path.to_owned(), inode));
            world.tick()?;
        }
        self.file(path, true)
    }

    fn open(&self, path: &Path) -> io::Result<SimFile> {
        self.file(path, true)
    }

    fn open_read(&self, path: &Path) -> io::Result<SimFile> {
        self.file(path, false)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let world = lock(&self.0);
        world.powered()?;
        if !world.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inside = world.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| path.file_name()).map(|n| n.to_string_lossy().into_owned()).collect())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut world = lock(&self.0);
        world.powered()?;
        world.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        world.pending_names.push(Naming::Unlink(path.to_owned()));
        world.tick()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = lock(&self.0);
        world.powered()?;
        let inode = world.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        world.names.insert(to.to_owned(), inode);
        world.pending_names.push(Naming::Link(to.to_owned(), inode));
        world.pending_names.push(Naming::Unlink(from.to_owned()));
        world.tick()
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut world = lock(&self.0);
        world.tick()?;
        let inside = |naming: &Naming| {
            let (Naming::Link(path, _) | Naming::Unlink(path)) = naming;
            path.parent() == Some(dir)
        };
        let (now, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut world.pending_names).into_iter().partition(inside);
        world.pending_names = later;
        now.into_iter().for_each(|naming| apply_naming(&mut world.durable_names, naming));
        Ok(())
    }

    fn free_bytes(&self, _dir: &Path) -> io::Result<u64> {
        Ok(lock(&self.0).free())
    }
}

impl SimFile {
    fn with<T>(&self, act: impl FnOnce(&mut World, &mut Inode) -> io::Result<T>) -> io::Result<T> {
        let mut world = lock(&self.world);
        if world.epoch != self.epoch {
            return Err(io::Error::other("the simulated machine was restarted"));
        }
        world.powered()?;
        let mut inode = world.inodes.remove(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        let done = act(&mut world, &mut inode);
        world.inodes.insert(self.inode, inode);
        done
    }

    fn change(&self, act: impl FnOnce(&mut World, &mut Inode) -> io::Result<()>) -> io::Result<()> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.with(|world, inode| {
            act(world, inode)?;
            world.tick()
        })
    }
}

/// How much `inode` may still grow: its own bytes are not among `world`'s while it is being changed.
fn room(world: &World, inode: &Inode) -> u64 {
    world.free().saturating_sub(inode.now.len() as u64)
}

impl DiskFile for SimFile {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.with(|world, inode| {
            if world.faults.unreadable {
                return Err(io::Error::from_raw_os_error(5));
            }
            let from = (at as usize).min(inode.now.len());
            let n = buf.len().min(inode.now.len() - from);
            buf[..n].copy_from_slice(&inode.now[from..from + n]);
            Ok(n)
        })
    }

    fn write_at(&self, parts: &[IoSlice<'_>], at: u64) -> io::Result<()> {
        let mut data: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        self.change(|world, inode| {
            let whole = data.len();
            let may_end = inode.now.len() as u64 + room(world, inode);
            let fits = may_end.saturating_sub(at).min(whole as u64) as usize;
            let broken = world.faults.writes > 0;
            if broken {
                world.faults.writes -= 1;
                data.truncate(world.below(whole as u64 + 1) as usize);
            }
            data.truncate(fits);
            if !data.is_empty() {
                apply(&mut inode.now, Change::Write(at, data.clone()));
                inode.pending.push(Change::Write(at, data));
            }
            match (broken, fits < whole) {
                (true, _) => Err(io::Error::from_raw_os_error(5)),
                (false, true) => Err(io::ErrorKind::StorageFull.into()),
                (false, false) => Ok(()),
            }
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|world, inode| {
            world.tick()?;
            let failed = world.faults.syncs > 0;
            if failed {
                // The pages are marked clean all the same: what was to be written is forgotten, in part or whole.
                world.faults.syncs -= 1;
                let now = inode.now.clone();
                world.settle(inode);
                inode.now = now;
                return Err(io::Error::from_raw_os_error(5));
            }
            for change in std::mem::take(&mut inode.pending) {
                apply(&mut inode.durable, change);
            }
            Ok(())
        })
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.change(|world, inode| {
            if len.saturating_sub(inode.now.len() as u64) > room(world, inode) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            apply(&mut inode.now, Change::Reserve(len));
            inode.pending.push(Change::Reserve(len));
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|_, inode| {
            apply(&mut inode.now, Change::Length(len));
            inode.pending.push(Change::Length(len));
            Ok(())
        })
    }

    fn size(&self) -> io::Result<u64> {
        self.with(|_, inode| Ok(inode.now.len() as u64))
    }
}
