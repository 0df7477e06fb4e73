//! Records of the data topic in order, for one purpose: a consumer that is in no group, and a thread that polls it.
//!
//! Each partition has a bounded buffer of what comes behind the last record that was handed out. A read elsewhere moves
//! the consumer there; what was fetched before is thrown away.

use super::{
    KafkaOptions,
    headers::{self, Poison},
    limits::{ASK_TIMEOUT, BUFFER_BYTES_MAX, FETCH_WAIT, FETCHED_KIB_MAX, READ_TIMEOUT, READER_POLL, ms},
    polling::{Polling, Watch},
    shard::number,
};
use crate::log::{Offset, Partition, ReadError, StoredRecord};
use rdkafka::{
    Message, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult},
    message::{BorrowedMessage, Headers as _},
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// One partition as far as it is followed.
struct Part {
    /// The next record to hand out; none before the first read.
    at: Option<Offset>,
    /// Where the consumer is to be put.
    seek: bool,
    buffer: VecDeque<StoredRecord>,
    bytes: usize,
    /// There was nothing behind the buffer when the consumer last looked.
    ended: bool,
    paused: bool,
    failed: Option<ReadError>,
    tail: watch::Sender<Offset>,
    /// Bumped with each change that a waiting read must see.
    changed: watch::Sender<u64>,
}

impl Part {
    fn new() -> Self {
        Self {
            at: None,
            seek: true,
            buffer: VecDeque::new(),
            bytes: 0,
            ended: false,
            paused: false,
            failed: None,
            tail: watch::Sender::new(Offset(0)),
            changed: watch::Sender::new(0),
        }
    }

    fn wake(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    fn take(&mut self, bytes_max: usize) -> Vec<StoredRecord> {
        let (mut out, mut bytes) = (Vec::new(), 0);
        while let Some(first) = self.buffer.front() {
            if !out.is_empty() && bytes + first.bytes.len() > bytes_max {
                break;
            }
            bytes += first.bytes.len();
            self.at = Some(first.offset.next());
            out.extend(self.buffer.pop_front());
        }
        self.bytes -= bytes;
        out
    }
}

type Parts = Arc<Mutex<BTreeMap<Partition, Part>>>;

fn lock(parts: &Parts) -> MutexGuard<'_, BTreeMap<Partition, Part>> {
    // Entries are changed field by field under the lock; a panic leaves at worst a read that is made again.
    parts.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What happens to a record that is none.
pub(super) type OnPoison =
    Box<dyn Fn((Partition, Offset), &Poison, &BorrowedMessage<'_>) -> Result<(), String> + Send>;

pub(super) struct Reader {
    parts: Parts,
    _thread: Polling,
}

impl Reader {
    pub(super) fn new(
        options: &KafkaOptions,
        name: &str,
        watch: &Watch,
        on_poison: OnPoison,
    ) -> Result<Self, String> {
        let mut config = options.client();
        config
            .set("group.id", options.group(&format!("read-{name}")))
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", ms(FETCH_WAIT))
            .set("queued.max.messages.kbytes", FETCHED_KIB_MAX.to_string());
        let consumer: BaseConsumer = config.create().map_err(|e| e.to_string())?;
        let parts = Parts::default();
        let worker = Worker { consumer, topic: options.topic("data"), parts: parts.clone(), on_poison };
        let thread = Polling::start("kafka-reader", watch, move |stop| worker.run(stop))?;
        Ok(Self { parts, _thread: thread })
    }

    pub(super) fn tail(&self, partition: Partition) -> watch::Receiver<Offset> {
        lock(&self.parts).entry(partition).or_insert_with(Part::new).tail.subscribe()
    }

    pub(super) async fn read(
        &self,
        partition: Partition,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<StoredRecord>, ReadError> {
        let mut changed = {
            let mut parts = lock(&self.parts);
            let part = parts.entry(partition).or_insert_with(Part::new);
            if part.at != Some(from) {
                part.buffer.clear();
                (part.at, part.seek, part.ended, part.bytes) = (Some(from), true, false, 0);
            }
            part.changed.subscribe()
        };
        let wait = async {
            loop {
                changed.borrow_and_update();
                {
                    let mut parts = lock(&self.parts);
                    let part = parts.entry(partition).or_insert_with(Part::new);
                    if let Some(error) = part.failed.take() {
                        part.at = None;
                        return Err(error);
                    }
                    if part.at != Some(from) {
                        // What is in the buffer, or not, is not what was asked for here.
                        let reason =
                            format!("a read from {from} was overtaken by another of the same reader");
                        return Err(ReadError::Storage { partition, reason });
                    }
                    if !part.seek && (!part.buffer.is_empty() || part.ended) {
                        return Ok(part.take(bytes_max));
                    }
                }
                if changed.changed().await.is_err() {
                    return Err(ReadError::NoPartition(partition));
                }
            }
        };
        let late = |_| {
            let reason = format!("no answer within {READ_TIMEOUT:?}");
            Err(ReadError::Storage { partition, reason })
        };
        tokio::time::timeout(READ_TIMEOUT, wait).await.unwrap_or_else(late)
    }
}

struct Worker {
    consumer: BaseConsumer,
    topic: String,
    parts: Parts,
    on_poison: OnPoison,
}

impl Worker {
    fn run(&self, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            self.seek_all();
            self.pause_and_resume();
            match self.consumer.poll(READER_POLL) {
                None => {}
                Some(Ok(message)) => self.take(&message),
                Some(Err(KafkaError::PartitionEOF(n))) => self.ended(n),
                Some(Err(error)) => tracing::debug!(%error, "a reader of the log"),
            }
        }
    }

    fn ended(&self, n: i32) {
        let Ok(n) = u32::try_from(n) else { return };
        if let Some(part) = lock(&self.parts).get_mut(&Partition(n)).filter(|p| !p.seek) {
            part.ended = true;
            part.wake();
        }
    }

    fn list(&self, partition: Partition, offset: rdkafka::Offset) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, number(partition.0), offset)?;
        Ok(list)
    }

    /// Puts the consumer where reads want it.
    fn seek_all(&self) {
        let wanted: Vec<(Partition, Option<Offset>)> =
            lock(&self.parts).iter().filter(|(_, p)| p.seek).map(|(n, p)| (*n, p.at)).collect();
        for (partition, at) in wanted {
            match self.seek(partition, at) {
                Ok(tail) => {
                    let mut parts = lock(&self.parts);
                    let Some(part) = parts.get_mut(&partition).filter(|p| p.at == at) else { continue };
                    (part.seek, part.paused) = (false, false);
                    part.tail.send_if_modified(|t| {
                        tail > *t && {
                            *t = tail;
                            true
                        }
                    });
                }
                Err(error) => {
                    let mut parts = lock(&self.parts);
                    if let Some(part) = parts.get_mut(&partition).filter(|p| at.is_some() && p.at == at) {
                        part.failed = Some(error);
                        part.wake();
                    }
                }
            }
        }
    }

    /// Fetches from there on, or from the end; where the partition ends.
    fn seek(&self, partition: Partition, at: Option<Offset>) -> Result<Offset, ReadError> {
        let storage = |e: KafkaError| ReadError::Storage { partition, reason: e.to_string() };
        let (low, high) =
            self.consumer.fetch_watermarks(&self.topic, number(partition.0), ASK_TIMEOUT).map_err(storage)?;
        let (low, high) = (Offset(low.max(0) as u64), Offset(high.max(0) as u64));
        if let Some(from) = at.filter(|from| *from < low) {
            return Err(ReadError::Trimmed { partition, from, first: low });
        }
        let start = at.unwrap_or(high).min(high);
        let start = rdkafka::Offset::Offset(i64::try_from(start.0).unwrap_or(i64::MAX));
        let anything = self.list(partition, rdkafka::Offset::Invalid).map_err(storage)?;
        // It may not be fetched yet.
        let _ = self.consumer.incremental_unassign(&anything);
        let list = self.list(partition, start).map_err(storage)?;
        self.consumer.incremental_assign(&list).map_err(storage)?;
        Ok(high)
    }

    fn pause_and_resume(&self) {
        for (partition, part) in lock(&self.parts).iter_mut() {
            let Ok(list) = self.list(*partition, rdkafka::Offset::Invalid) else { continue };
            if !part.paused && part.bytes > BUFFER_BYTES_MAX {
                part.paused = self.consumer.pause(&list).is_ok();
            } else if part.paused && part.bytes < BUFFER_BYTES_MAX / 2 {
                part.paused = self.consumer.resume(&list).is_err();
            }
        }
    }

    fn take(&self, message: &BorrowedMessage<'_>) {
        let Ok(n) = u32::try_from(message.partition()) else { return };
        let (partition, offset) = (Partition(n), Offset(message.offset().max(0) as u64));
        let fields = || message.headers().map(|h| h.iter().map(|h| (h.key, h.value)));
        let filler = message.payload().is_none() && fields().is_some_and(headers::is_filler);
        let record = headers::decode(offset, fields(), message.payload());
        if let Err(poison) = &record
            && !filler
            && let Err(error) = (self.on_poison)((partition, offset), poison, message)
        {
            // It is read again, and is not passed before it is kept.
            tracing::warn!(%partition, %offset, error, "a record that is none cannot be put aside yet");
            if let Some(part) = lock(&self.parts).get_mut(&partition) {
                part.seek = true;
                part.at = part.at.or(Some(offset));
                part.buffer.clear();
                part.bytes = 0;
            }
            return;
        }
        let mut parts = lock(&self.parts);
        let Some(part) = parts.get_mut(&partition).filter(|p| !p.seek) else { return };
        part.tail.send_if_modified(|t| {
            offset.next() > *t && {
                *t = offset.next();
                true
            }
        });
        if let (Ok(record), Some(_)) = (record, part.at.filter(|at| *at <= offset)) {
            part.bytes += record.bytes.len();
            part.buffer.push_back(record);
            part.ended = false;
            part.wake();
        }
    }
}
