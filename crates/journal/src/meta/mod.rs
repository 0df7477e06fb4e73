//! The small and rebuildable: indexes, keys of sessions and repeats, the ledger's index. Kept in sled.
//!
//! Nothing here is the truth. Each change comes from a frame of a log, and `commit_seq` names the frame up to
//! which the store has followed; sled's own flush does not sync, so after a power cut the store may be behind,
//! damaged or strange. [`Meta::open`] compares it with the log and says what the caller must do: nothing, replay
//! the frames after `commit_seq`, or fill an empty store again.
//!
//! sled was seen to panic on damage, to hang after a full disk, and to deadlock. So one thread owns it, runs
//! everything in order, and nobody waits for that thread longer than a deadline. A store that failed is marked,
//! and the next start makes another; the gateway lives without it until then.

mod queue;
mod store;

use crate::{error::JournalError, frame::FrameSeq, image::Changes, limits, lock};
use queue::Queue;
use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};
use store::Store;

/// A key and its value.
pub type MetaEntry = (Vec<u8>, Vec<u8>);

/// How long anybody waits for the store.
#[derive(Debug, Clone, Copy)]
pub struct MetaOptions {
    /// For opening what is there; a store that needs longer is moved aside.
    pub open_deadline: Duration,
    /// For one request, its wait in the queue included.
    pub request_deadline: Duration,
}

impl Default for MetaOptions {
    fn default() -> Self {
        Self { open_deadline: limits::META_OPEN_DEADLINE, request_deadline: limits::META_REQUEST_DEADLINE }
    }
}

/// What [`Meta::open`] found, and what follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetaStart {
    /// The store has followed up to the newest frame.
    Current,
    /// Replay the frames after this one.
    Behind(FrameSeq),
    /// The store is empty now: fill it from the newest checkpoint and the frames after it, then commit. Raise a
    /// metric, but for [`RebuildCause::Missing`] on a first start.
    Rebuild(RebuildCause),
}

/// Why a store was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RebuildCause {
    /// There was none, or it was never filled to its end.
    Missing,
    /// It knows of a frame that the log does not have.
    Ahead(FrameSeq),
    /// It ends before the oldest frame that is still there.
    TooFarBehind(FrameSeq),
    /// It could not be opened or read, or failed while the last process ran.
    Damaged(String),
    /// It was not open in time.
    Slow,
    /// Its blob folder is not empty: sled does not sync what is there.
    Blobs,
}

/// Why the store does not answer. None of these harms the logs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// It cannot be read or written.
    #[error("the index is damaged: {0}")]
    Damaged(String),
    /// It did not answer in time; it is given up until the next start.
    #[error("the index does not answer")]
    Stuck,
    /// An earlier failure ended it; the next start makes it anew.
    #[error("the index has failed: {0}")]
    Failed(String),
    /// The value is over the bound.
    #[error("a value of {bytes} bytes is over the bound of {max}")]
    TooLarge {
        /// The value's length.
        bytes: usize,
        /// The bound.
        max: usize,
    },
}

struct Wanted {
    prefix: Vec<u8>,
    after: Option<Vec<u8>>,
    limit: usize,
}

const PREFIX: &str = "store-";

type Reply<T> = mpsc::SyncSender<Result<T, MetaError>>;

enum Request {
    Get(Vec<u8>, Reply<Option<Vec<u8>>>),
    Scan(Wanted, Reply<Vec<MetaEntry>>),
    Apply(Changes, Option<FrameSeq>),
    Settle(Reply<()>),
}

/// The store; clones are the same one.
#[derive(Clone)]
pub struct Meta(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    options: MetaOptions,
    requests: Arc<Queue<Request>>,
    failed: Arc<Mutex<Option<String>>>,
    /// Hears nothing, and ends when the thread does.
    ended: Mutex<mpsc::Receiver<()>>,
}

impl Meta {
    /// Opens the store in `dir` beside a log whose frames `oldest..=newest` can be replayed (`newest` 0: none).
    /// Whatever is wrong with what is there, an empty store takes its place; the one before is kept beside it,
    /// until the next change. Errors come only from a folder that cannot be used at all.
    pub fn open(
        dir: &Path,
        oldest: FrameSeq,
        newest: FrameSeq,
        options: MetaOptions,
    ) -> Result<(Self, MetaStart), JournalError> {
        std::fs::create_dir_all(dir).map_err(JournalError::io("make", dir))?;
        let generations = generations(dir).map_err(JournalError::io("list", dir))?;
        let last = generations.last().copied().unwrap_or(0);
        let there = folder(dir, last);
        let cause = if last == 0 {
            RebuildCause::Missing
        } else if marker(&there).exists() {
            RebuildCause::Damaged("it failed while the last process ran".into())
        } else {
            match Self::start(&there, options, options.open_deadline) {
                Err(MetaError::Stuck) => RebuildCause::Slow,
                Err(e) => RebuildCause::Damaged(e.to_string()),
                Ok((meta, commit_seq)) => match judge(commit_seq, oldest, newest, &there) {
                    Ok(start) => return Ok((meta, start)),
                    Err(cause) => {
                        meta.close();
                        cause
                    }
                },
            }
        };
        for &old in generations.iter().filter(|&&old| old < last) {
            remove(&folder(dir, old)).map_err(JournalError::io("delete an old index in", dir))?;
        }
        let patient = options.open_deadline + limits::META_FRESH_DEADLINE;
        let (meta, _) = Self::start(&folder(dir, last + 1), options, patient)
            .map_err(|e| JournalError::io("make the index in", dir)(io::Error::other(e.to_string())))?;
        if cause == RebuildCause::Missing && newest.0 == 0 {
            return Ok((meta, MetaStart::Current));
        }
        Ok((meta, MetaStart::Rebuild(cause)))
    }

    /// Starts the thread, which opens the folder and then serves.
    fn start(
        dir: &Path,
        options: MetaOptions,
        deadline: Duration,
    ) -> Result<(Self, Option<FrameSeq>), MetaError> {
        let requests = Arc::new(Queue::new(limits::META_QUEUE));
        let failed = Arc::new(Mutex::new(None));
        let (opened, wait) = mpsc::sync_channel(1);
        let (_end, ended) = mpsc::sync_channel::<()>(0);
        let (path, queue, failure) = (dir.to_owned(), requests.clone(), failed.clone());
        let body = move || {
            // Dropped when the thread ends, however it ends.
            let _end = _end;
            let open = guarded(|| {
                let store = Store::open(&path)?;
                let commit_seq = store.commit_seq()?;
                Ok((store, commit_seq))
            });
            match open {
                Ok((store, commit_seq)) => {
                    // Nobody may wait any more: then the thread just ends.
                    if opened.send(Ok(commit_seq)).is_ok() {
                        serve(&store, &queue, &failure, &path);
                    }
                    // A store that hangs when it is closed takes this thread only.
                    let _ = guarded(|| {
                        drop(store);
                        Ok(())
                    });
                }
                Err(e) => drop(opened.send(Err(e))),
            }
        };
        thread::Builder::new()
            .name("journal-meta".into())
            .spawn(body)
            .map_err(|e| MetaError::Failed(e.to_string()))?;
        let commit_seq = match wait.recv_timeout(deadline) {
            Ok(opened) => opened?,
            Err(mpsc::RecvTimeoutError::Timeout) => return Err(MetaError::Stuck),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(MetaError::Damaged("its thread ended".into()));
            }
        };
        let inner = Inner { dir: dir.to_owned(), options, requests, failed, ended: Mutex::new(ended) };
        Ok((Self(Arc::new(inner)), commit_seq))
    }

    /// One value, as of all changes handed in before.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError> {
        self.ask(|reply| Request::Get(key.to_vec(), reply))
    }

    /// At most `limit` entries whose keys start with `prefix`, in their order.
    pub fn scan_prefix(&self, prefix: &[u8], limit: usize) -> Result<Vec<MetaEntry>, MetaError> {
        let limit = limit.min(limits::META_SCAN_MAX);
        self.ask(|reply| Request::Scan(Wanted { prefix: prefix.to_vec(), after: None, limit }, reply))
    }

    /// As [`Meta::scan_prefix`], only keys after `after`: the next page.
    pub fn scan_after(&self, prefix: &[u8], after: &[u8], limit: usize) -> Result<Vec<MetaEntry>, MetaError> {
        let limit = limit.min(limits::META_SCAN_MAX);
        let after = Some(after.to_vec());
        self.ask(|reply| Request::Scan(Wanted { prefix: prefix.to_vec(), after, limit }, reply))
    }

    /// Hands in one change that belongs to no frame.
    pub fn put(&self, key: &[u8], value: &[u8]) -> Result<(), MetaError> {
        self.apply(Changes { puts: vec![(key.to_vec(), value.to_vec())], deletes: Vec::new() })
    }

    /// Hands in one deletion that belongs to no frame.
    pub fn delete(&self, key: &[u8]) -> Result<(), MetaError> {
        self.apply(Changes { puts: Vec::new(), deletes: vec![key.to_vec()] })
    }

    /// Hands in changes that belong to no frame, or to a filling that a commit will end.
    pub fn apply(&self, changes: Changes) -> Result<(), MetaError> {
        self.hand_in(changes, None)
    }

    /// Hands in what the frames up to `seq` change. It is applied in order, soon; after a crash the store may be
    /// behind. Changes must bear being applied twice.
    pub fn commit(&self, seq: FrameSeq, changes: Changes) -> Result<(), MetaError> {
        self.hand_in(changes, Some(seq))
    }

    /// Waits until all that was handed in is applied and given to the operating system.
    pub fn settle(&self) -> Result<(), MetaError> {
        self.ask(Request::Settle)
    }

    /// Files in sled's blob folder: anything but 0 is an alarm.
    pub fn blobs(&self) -> usize {
        blobs(&self.0.dir)
    }

    /// Why the store has failed, if it has.
    pub fn failed(&self) -> Option<String> {
        lock(&self.0.failed).clone()
    }

    /// Ends the thread, if it ends in time; what was handed in before is applied.
    pub fn close(&self) {
        self.0.close();
    }

    fn hand_in(&self, changes: Changes, seq: Option<FrameSeq>) -> Result<(), MetaError> {
        let max = limits::META_VALUE_BYTES_MAX;
        if let Some((_, value)) = changes.puts.iter().find(|(_, value)| value.len() > max) {
            return Err(MetaError::TooLarge { bytes: value.len(), max });
        }
        self.alive()?;
        if self.0.requests.push(Request::Apply(changes, seq), self.0.options.request_deadline) {
            return Ok(());
        }
        Err(self.stuck())
    }

    fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, MetaError> {
        self.alive()?;
        let (reply, answer) = mpsc::sync_channel(1);
        let deadline = self.0.options.request_deadline;
        if !self.0.requests.push(request(reply), deadline) {
            return Err(self.stuck());
        }
        match answer.recv_timeout(deadline) {
            Ok(answer) => answer,
            Err(_) => Err(self.stuck()),
        }
    }

    fn alive(&self) -> Result<(), MetaError> {
        match self.failed() {
            Some(reason) => Err(MetaError::Failed(reason)),
            None => Ok(()),
        }
    }

    /// The thread did not answer: it has failed, or hangs and is given up.
    fn stuck(&self) -> MetaError {
        fail(&self.0.failed, &self.0.dir, "it did not answer in time".into());
        self.0.requests.close();
        MetaError::Stuck
    }
}

impl Inner {
    fn close(&self) {
        self.requests.close();
        // An answer comes never; the end of the thread disconnects.
        let _ = lock(&self.ended).recv_timeout(self.options.request_deadline);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

fn judge(
    commit_seq: Option<FrameSeq>,
    oldest: FrameSeq,
    newest: FrameSeq,
    dir: &Path,
) -> Result<MetaStart, RebuildCause> {
    if blobs(dir) > 0 {
        return Err(RebuildCause::Blobs);
    }
    match commit_seq {
        None if newest.0 == 0 => Ok(MetaStart::Current),
        None => Err(RebuildCause::Missing),
        Some(seq) if seq > newest => Err(RebuildCause::Ahead(seq)),
        Some(seq) if seq == newest => Ok(MetaStart::Current),
        Some(seq) if seq.next() < oldest => Err(RebuildCause::TooFarBehind(seq)),
        Some(seq) => Ok(MetaStart::Behind(seq)),
    }
}

fn serve(store: &Store, requests: &Queue<Request>, failed: &Mutex<Option<String>>, dir: &Path) {
    while let Some(request) = requests.pop() {
        // Callers that gave up waiting do not hear the answer.
        let done = match request {
            Request::Get(key, reply) => tell(&reply, guarded(|| store.get(&key))),
            Request::Scan(wanted, reply) => tell(&reply, guarded(|| store.scan(&wanted))),
            Request::Apply(changes, seq) => guarded(|| store.apply(&changes, seq)),
            Request::Settle(reply) => tell(&reply, guarded(|| store.flush())),
        };
        if let Err(e) = done {
            fail(failed, dir, e.to_string());
            requests.close();
            return;
        }
    }
}

fn tell<T>(reply: &Reply<T>, result: Result<T, MetaError>) -> Result<(), MetaError> {
    let failure = result.as_ref().err().cloned();
    let _ = reply.try_send(result);
    failure.map_or(Ok(()), Err)
}

/// sled answers some damage with a panic.
fn guarded<T>(act: impl FnOnce() -> Result<T, MetaError>) -> Result<T, MetaError> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|panic| {
        let text =
            panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(MetaError::Damaged(format!("panic: {}", text.unwrap_or("without a message"))))
    })
}

/// The first failure stays; the marker tells the next start.
fn fail(failed: &Mutex<Option<String>>, dir: &Path, reason: String) {
    let mut failed = lock(failed);
    if failed.is_none() {
        tracing::error!(dir = %dir.display(), reason, "the index has failed; the next start makes it anew");
        *failed = Some(reason);
        if let Err(e) = std::fs::write(marker(dir), []) {
            tracing::warn!(error = %e, "cannot mark the index for rebuilding");
        }
    }
}

/// Each store has a folder of its own, with a number. A thread that hangs in the opening of an old one may go on
/// at any time and make files there: they must not come among those of the store that took its place.
fn folder(dir: &Path, generation: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{generation}"))
}

fn generations(dir: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        found.extend(name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse::<u64>().ok()));
    }
    found.sort_unstable();
    Ok(found)
}

/// Stands beside the folder of a store that has failed.
fn marker(store: &Path) -> PathBuf {
    store.with_extension("failed")
}

fn remove(store: &Path) -> io::Result<()> {
    std::fs::remove_dir_all(store)?;
    match std::fs::remove_file(marker(store)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn blobs(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("blobs")).map_or(0, Iterator::count)
}
