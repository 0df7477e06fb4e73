//! Runs and windows as bytes, little-endian.
//!
//! ```text
//! run        client 16 | flags 1 (1 opens, 2 persistent) | in flight 2 | count 4 | count × record
//! record     packet id 2 | hash 8
//! window     version 1 | clients 4 | clients × { client 16 | flags 1 (2 persistent) | in flight 2 | issued 8 |
//!            count 4 | count × record }, the longest silent client first
//! ```

use std::collections::VecDeque;

use super::window::{Client, ClientKey, Limits, Record, Run, Window};
use crate::packet::PacketId;
use crate::session::Ticket;

const WINDOW_VERSION: u8 = 1;
const FLAG_OPENS: u8 = 1;
const FLAG_PERSISTENT: u8 = 2;
const RECORD_BYTES: usize = 10;
/// Most records of an encoded run: a read of 64 KiB holds about 9,400 publishes.
const RUN_RECORDS_MAX: usize = 1 << 20;

/// Bytes that are not a run or a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// The bytes end too early.
    #[error("redelivery window: the bytes end too early")]
    CutShort,
    /// Bytes are left over.
    #[error("redelivery window: {0} bytes are left over")]
    LeftOver(usize),
    /// Written by a newer release.
    #[error("redelivery window: version {0} is not known")]
    Version(u8),
    /// A value that is never written.
    #[error("redelivery window: {0}")]
    Invalid(&'static str),
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], WindowError> {
    let (head, tail) = bytes.split_first_chunk::<N>().ok_or(WindowError::CutShort)?;
    *bytes = tail;
    Ok(*head)
}

fn take_flags(bytes: &mut &[u8], allowed: u8) -> Result<u8, WindowError> {
    let [flags] = take(bytes)?;
    if flags & !allowed == 0 { Ok(flags) } else { Err(WindowError::Invalid("unknown flags")) }
}

fn take_records(bytes: &mut &[u8], max: usize) -> Result<Vec<(PacketId, u64)>, WindowError> {
    let count = u32::from_le_bytes(take(bytes)?) as usize;
    if count > max {
        return Err(WindowError::Invalid("more records than are ever written"));
    }
    if bytes.len() < count * RECORD_BYTES {
        return Err(WindowError::CutShort);
    }
    let record = |bytes: &mut &[u8]| {
        let id =
            PacketId::new(u16::from_le_bytes(take(bytes)?)).ok_or(WindowError::Invalid("packet id 0"))?;
        Ok((id, u64::from_le_bytes(take(bytes)?)))
    };
    (0..count).map(|_| record(bytes)).collect()
}

fn put_record(out: &mut Vec<u8>, id: PacketId, hash: u64) {
    out.extend_from_slice(&id.get().to_le_bytes());
    out.extend_from_slice(&hash.to_le_bytes());
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    let count = u32::try_from(count).expect("windows and runs are bounded far below 2^32");
    out.extend_from_slice(&count.to_le_bytes());
}

impl Run {
    /// Appends the run.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.reserve(23 + self.records.len() * RECORD_BYTES);
        out.extend_from_slice(&self.client.0.to_le_bytes());
        let opens = if self.opens { FLAG_OPENS } else { 0 };
        let persistent = if self.persistent { FLAG_PERSISTENT } else { 0 };
        out.push(opens | persistent);
        out.extend_from_slice(&self.in_flight.to_le_bytes());
        put_count(out, self.records.len());
        for &(id, hash) in &self.records {
            put_record(out, id, hash);
        }
    }

    /// Reads one run off the front of `bytes`.
    pub fn decode(bytes: &mut &[u8]) -> Result<Self, WindowError> {
        let client = ClientKey(u128::from_le_bytes(take(bytes)?));
        let flags = take_flags(bytes, FLAG_OPENS | FLAG_PERSISTENT)?;
        let in_flight = u16::from_le_bytes(take(bytes)?);
        let records = take_records(bytes, RUN_RECORDS_MAX)?;
        let (opens, persistent) = (flags & FLAG_OPENS != 0, flags & FLAG_PERSISTENT != 0);
        Ok(Self { client, opens, persistent, in_flight, records })
    }
}

impl Window {
    /// Appends a checkpoint of what the journal has up to and including the round `through`; anything newer is left
    /// out, and the counts are those without it.
    pub fn encode(&self, through: Ticket, out: &mut Vec<u8>) {
        out.push(WINDOW_VERSION);
        let at = out.len();
        put_count(out, 0);
        let mut written: u32 = 0;
        for key in self.by_use.values() {
            let Some(client) = self.clients.get(key).filter(|client| client.opened <= through) else {
                continue;
            };
            encode_client(*key, client, through, out);
            written += 1;
        }
        out[at..at + 4].copy_from_slice(&written.to_le_bytes());
    }

    /// Reads a checkpoint, which must be all of `bytes`. Its tickets are those of an earlier run of the program: all
    /// durable, so 0.
    pub fn decode(mut bytes: &[u8], limits: Limits) -> Result<Self, WindowError> {
        let bytes = &mut bytes;
        let [version] = take(bytes)?;
        if version != WINDOW_VERSION {
            return Err(WindowError::Version(version));
        }
        let count = u32::from_le_bytes(take(bytes)?);
        let mut window = Self::new(limits);
        for _ in 0..count {
            let (key, client) = decode_client(bytes)?;
            window.restore(key, client);
        }
        if bytes.is_empty() { Ok(window) } else { Err(WindowError::LeftOver(bytes.len())) }
    }
}

fn encode_client(key: ClientKey, client: &Client, through: Ticket, out: &mut Vec<u8>) {
    let durable = client.records.partition_point(|record| record.ticket <= through);
    let newer = (client.records.len() - durable) as u64;
    out.extend_from_slice(&key.0.to_le_bytes());
    out.push(if client.persistent { FLAG_PERSISTENT } else { 0 });
    out.extend_from_slice(&client.in_flight.to_le_bytes());
    // Not all of `issued` may still be in the records; those that are left out here never happened.
    let issued = if durable == 0 { 0 } else { client.issued - newer };
    out.extend_from_slice(&issued.to_le_bytes());
    put_count(out, durable);
    for record in client.records.iter().take(durable) {
        put_record(out, record.id, record.hash);
    }
}

fn decode_client(bytes: &mut &[u8]) -> Result<(ClientKey, Client), WindowError> {
    let key = ClientKey(u128::from_le_bytes(take(bytes)?));
    let flags = take_flags(bytes, FLAG_PERSISTENT)?;
    let in_flight = u16::from_le_bytes(take(bytes)?);
    let issued = u64::from_le_bytes(take(bytes)?);
    let records: VecDeque<Record> = take_records(bytes, usize::from(u16::MAX))?
        .into_iter()
        .map(|(id, hash)| Record { hash, ticket: Ticket(0), id })
        .collect();
    if !Window::counts_up(&records) {
        return Err(WindowError::Invalid("packet ids do not count up"));
    }
    if issued < records.len() as u64 {
        return Err(WindowError::Invalid("more records than publishes"));
    }
    let persistent = flags & FLAG_PERSISTENT != 0;
    Ok((key, Client { persistent, in_flight, issued, records, ..Client::default() }))
}
