//! What is stored beside the data, per gateway and stream: how far it is stored, what the gateway counted, what was
//! refused. The newest record of a key replaces the older.

use super::codec::{CodecError, Reader, Writer};
use crate::limits::{LOSS_ENTRIES_MAX, REASON_BYTES_MAX};
use link::limits::RETIRED_MAX;
pub use link::receive::Head;
use record::{Counts, Digest, GatewayId, Incarnation, Seq, StreamName};

/// The three kinds of progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ProgressKind {
    /// [`Head`]
    Head = 1,
    /// [`Counted`]
    Counted = 2,
    /// [`Quarantined`]
    Quarantined = 3,
}

/// What a progress record is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProgressKey {
    /// The gateway.
    pub gateway: GatewayId,
    /// Its stream.
    pub stream: StreamName,
    /// Which of its records.
    pub kind: ProgressKind,
}

impl ProgressKey {
    /// As bytes, of which each key has its own: kind, gateway, stream.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u8(self.kind as u8);
        w.text(self.gateway.as_str());
        w.text(self.stream.as_str());
        w.0
    }
}

/// A loss that the gateway declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LossEntry {
    /// Number of the entry in its stream's ledger, 1, 2, 3…
    pub ordinal: u64,
    /// First and last seq lost; zeros when the rows never had one.
    pub first_seq: Seq,
    /// See `first_seq`.
    pub last_seq: Seq,
    /// The gateway's time of the first row lost, nanoseconds since the epoch: when its event was accepted, or, if it had
    /// a seq, when it was written. 0 when unknown.
    pub first_time_ns: i64,
    /// The same of the last row lost.
    pub last_time_ns: i64,
    /// Rows lost.
    pub rows: u64,
    /// Why.
    pub reason: String,
}

/// What the gateway last said it counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// The life of the gateway's folder that the counts belong to.
    pub incarnation: Incarnation,
    /// The terms of the conservation equation, since the incarnation began.
    pub counts: Counts,
    /// What earlier incarnations had counted when they were last heard.
    pub earlier: Counts,
    /// The stream's last seq when they were taken.
    pub as_of: Seq,
    /// When central heard them, nanoseconds since the epoch.
    pub heard_at_ns: i64,
    /// The newest declared losses, oldest first, at most [`LOSS_ENTRIES_MAX`].
    pub losses: Vec<LossEntry>,
}

/// The newest block that was refused because it cannot belong to what is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// The life that the refused block claims.
    pub incarnation: Incarnation,
    /// Its first seq.
    pub first: Seq,
    /// Its last seq.
    pub last: Seq,
    /// Its hash.
    pub hash: Digest,
    /// What does not fit.
    pub reason: String,
    /// When, in nanoseconds since the epoch.
    pub at_ns: i64,
    /// How many blocks were refused so far in this stream.
    pub times: u64,
}

/// The value of a progress record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// How far the stream is stored.
    Head(Head),
    /// What the gateway counted.
    Counted(Counted),
    /// What was refused.
    Quarantined(Quarantined),
}

/// A key and its newest value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgressRecord {
    /// The gateway.
    pub gateway: GatewayId,
    /// Its stream.
    pub stream: StreamName,
    /// What is known.
    pub value: Progress,
}

impl ProgressRecord {
    /// What the record is about.
    pub fn key(&self) -> ProgressKey {
        let kind = match self.value {
            Progress::Head(_) => ProgressKind::Head,
            Progress::Counted(_) => ProgressKind::Counted,
            Progress::Quarantined(_) => ProgressKind::Quarantined,
        };
        ProgressKey { gateway: self.gateway.clone(), stream: self.stream.clone(), kind }
    }

    /// Key and value as bytes: kind, gateway, stream, value; explicit, little-endian.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u8(self.key().kind as u8);
        w.text(self.gateway.as_str());
        w.text(self.stream.as_str());
        match &self.value {
            Progress::Head(h) => put_head(&mut w, h),
            Progress::Counted(c) => put_counted(&mut w, c),
            Progress::Quarantined(q) => put_quarantined(&mut w, q),
        }
        w.0
    }

    /// Reads what [`ProgressRecord::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut r = Reader::new(bytes);
        let kind = r.u8()?;
        let (gateway, stream) = (r.gateway()?, r.stream()?);
        let value = match kind {
            1 => Progress::Head(take_head(&mut r)?),
            2 => Progress::Counted(take_counted(&mut r)?),
            3 => Progress::Quarantined(take_quarantined(&mut r)?),
            n => return Err(CodecError(format!("progress of kind {n}"))),
        };
        r.end()?;
        Ok(Self { gateway, stream, value })
    }
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(REASON_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn put_head(w: &mut Writer, h: &Head) {
    w.u64(h.incarnation.0);
    w.u64(h.last.0);
    w.digest(&h.hash);
    w.u64(h.rows);
    w.u64(h.lost);
    w.u64(h.rows_before);
    w.u32(u32::try_from(h.retired.len()).unwrap_or(u32::MAX));
    h.retired.iter().for_each(|i| w.u64(i.0));
}

fn take_head(r: &mut Reader<'_>) -> Result<Head, CodecError> {
    let (incarnation, last, hash) = (Incarnation(r.u64()?), Seq(r.u64()?), r.digest()?);
    let (rows, lost, rows_before, n) = (r.u64()?, r.u64()?, r.u64()?, r.u32()? as usize);
    if n > RETIRED_MAX {
        return Err(CodecError(format!("{n} retired incarnations")));
    }
    let retired = (0..n).map(|_| r.u64().map(Incarnation)).collect::<Result<_, _>>()?;
    Ok(Head { incarnation, last, hash, rows, lost, rows_before, retired })
}

fn put_counted(w: &mut Writer, c: &Counted) {
    w.u64(c.incarnation.0);
    w.bytes(&c.counts.to_bytes());
    w.bytes(&c.earlier.to_bytes());
    w.u64(c.as_of.0);
    w.i64(c.heard_at_ns);
    let newest = &c.losses[c.losses.len().saturating_sub(LOSS_ENTRIES_MAX)..];
    w.u32(u32::try_from(newest.len()).unwrap_or(u32::MAX));
    for l in newest {
        w.u64(l.ordinal);
        w.u64(l.first_seq.0);
        w.u64(l.last_seq.0);
        w.i64(l.first_time_ns);
        w.i64(l.last_time_ns);
        w.u64(l.rows);
        w.text(cut(&l.reason));
    }
}

fn take_counted(r: &mut Reader<'_>) -> Result<Counted, CodecError> {
    let incarnation = Incarnation(r.u64()?);
    let terms = |b: &[u8]| Counts::from_bytes(b).ok_or_else(|| CodecError("counts of another length".into()));
    let (counts, earlier) = (terms(r.bytes()?)?, terms(r.bytes()?)?);
    let (as_of, heard_at_ns) = (Seq(r.u64()?), r.i64()?);
    let n = r.u32()? as usize;
    if n > LOSS_ENTRIES_MAX {
        return Err(CodecError(format!("{n} loss entries")));
    }
    let mut losses = Vec::with_capacity(n);
    for _ in 0..n {
        losses.push(LossEntry {
            ordinal: r.u64()?,
            first_seq: Seq(r.u64()?),
            last_seq: Seq(r.u64()?),
            first_time_ns: r.i64()?,
            last_time_ns: r.i64()?,
            rows: r.u64()?,
            reason: take_reason(r)?,
        });
    }
    Ok(Counted { incarnation, counts, earlier, as_of, heard_at_ns, losses })
}

fn take_reason(r: &mut Reader<'_>) -> Result<String, CodecError> {
    let reason = r.text()?;
    if reason.len() > REASON_BYTES_MAX {
        return Err(CodecError(format!("a reason of {} bytes", reason.len())));
    }
    Ok(reason.to_owned())
}

fn put_quarantined(w: &mut Writer, q: &Quarantined) {
    w.u64(q.incarnation.0);
    w.u64(q.first.0);
    w.u64(q.last.0);
    w.digest(&q.hash);
    w.text(cut(&q.reason));
    w.i64(q.at_ns);
    w.u64(q.times);
}

fn take_quarantined(r: &mut Reader<'_>) -> Result<Quarantined, CodecError> {
    Ok(Quarantined {
        incarnation: Incarnation(r.u64()?),
        first: Seq(r.u64()?),
        last: Seq(r.u64()?),
        hash: r.digest()?,
        reason: take_reason(r)?,
        at_ns: r.i64()?,
        times: r.u64()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::clock::{Random as _, SeededRandom};

    fn samples() -> Vec<ProgressRecord> {
        let loss = LossEntry {
            ordinal: 1,
            first_seq: Seq(0),
            last_seq: Seq(0),
            first_time_ns: 5,
            last_time_ns: 6,
            rows: 7,
            reason: "full".into(),
        };
        let values = [
            Progress::Head(Head {
                incarnation: Incarnation(1),
                last: Seq(2),
                hash: Digest::of(b"h"),
                rows: 2,
                lost: 0,
                rows_before: 7,
                retired: vec![Incarnation(9)],
            }),
            Progress::Counted(Counted {
                incarnation: Incarnation(1),
                counts: Counts { received: 9, kept: 9, ..Counts::default() },
                earlier: Counts { received: 1, dropped: 1, ..Counts::default() },
                as_of: Seq(9),
                heard_at_ns: 4,
                losses: vec![loss],
            }),
            Progress::Quarantined(Quarantined {
                incarnation: Incarnation(3),
                first: Seq(1),
                last: Seq(2),
                hash: Digest::of(b"q"),
                reason: "ä".repeat(400),
                at_ns: 3,
                times: 1,
            }),
        ];
        let gateway = GatewayId::new("plant-7").expect("valid");
        let stream = StreamName::new("machine").expect("valid");
        values
            .into_iter()
            .map(|value| ProgressRecord { gateway: gateway.clone(), stream: stream.clone(), value })
            .collect()
    }

    /// The short form of the fuzz target `progress_record`.
    #[test]
    fn what_foreign_bytes_decode_to_encodes_to_them() {
        let samples: Vec<Vec<u8>> = samples().iter().map(ProgressRecord::encode).collect();
        let mut taken = 0;
        for seed in 0..30_000 {
            let random = SeededRandom::new(seed);
            let below = |n: usize| (random.next_u64() as usize) % n;
            let mut bytes = samples[below(samples.len())].clone();
            for _ in 0..1 + below(3) {
                let at = below(bytes.len());
                match below(3) {
                    0 => bytes[at] = random.next_u64() as u8,
                    1 => bytes.truncate(1 + at),
                    _ => bytes.extend((0..below(9)).map(|_| random.next_u64() as u8)),
                }
            }
            if let Ok(record) = ProgressRecord::decode(&bytes) {
                taken += 1;
                assert_eq!(record.encode(), bytes, "seed {seed}");
            }
        }
        assert!(taken > 100, "{taken}");
    }

    #[test]
    fn records_round_trip_and_every_cut_is_noticed() {
        for mut record in samples() {
            let bytes = record.encode();
            if let Progress::Quarantined(q) = &mut record.value {
                q.reason = "ä".repeat(REASON_BYTES_MAX / 2);
            }
            assert_eq!(ProgressRecord::decode(&bytes), Ok(record));
            for cut in 0..bytes.len() {
                assert!(ProgressRecord::decode(&bytes[..cut]).is_err(), "cut at {cut}");
            }
        }
    }
}
