//! Reading frames of one segment: in order, hopping over payloads, or searching for the next whole one.
//!
//! The same code serves readers, recovery and inspection. Every step goes forward, so that no bytes whatsoever
//! can make it loop; memory is one chunk and one meta.

use crate::{
    disk::DiskFile,
    frame::{HEADER_BYTES, Header, MAGIC},
    limits::{FRAME_ALIGN, HOP_CHUNK_BYTES, READ_CHUNK_BYTES, UNREADABLE_STEP_BYTES},
};
use std::{io, ops::Range, sync::Arc};

/// `EIO`: the disk could not read this place.
const EIO: i32 = 5;

/// How much a cursor reads at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stride {
    /// Payloads are wanted: big sequential reads.
    Read,
    /// Payloads are hopped over: small reads at headers.
    Hop,
}

pub(crate) struct Cursor<F> {
    file: Arc<F>,
    /// Of the segment; learned from its first good frame.
    salt: Option<u64>,
    stride: Stride,
    buf: Vec<u8>,
    /// Where the buffer's first byte stands in the file.
    at: u64,
    filled: usize,
    unreadable: bool,
}

impl<F: DiskFile> Cursor<F> {
    pub(crate) fn new(file: Arc<F>, stride: Stride) -> Self {
        Self { file, salt: None, stride, buf: Vec::new(), at: 0, filled: 0, unreadable: false }
    }

    pub(crate) fn set_stride(&mut self, stride: Stride) {
        self.stride = stride;
    }

    pub(crate) fn salt(&self) -> Option<u64> {
        self.salt
    }

    /// Whether the disk refused to read some place: then what is missing may still be there.
    pub(crate) fn met_unreadable(&self) -> bool {
        self.unreadable
    }

    /// The whole, provable frame head exactly at `at`, with its seq in `seqs` and its end within `limit`.
    pub(crate) fn head_at(
        &mut self,
        at: u64,
        limit: u64,
        seqs: &Range<u64>,
        meta: &mut Vec<u8>,
    ) -> io::Result<Option<Header>> {
        let mut bytes = [0; HEADER_BYTES];
        let seen = self.view(at, HEADER_BYTES, limit)?;
        if seen.len() < HEADER_BYTES {
            return Ok(None);
        }
        bytes.copy_from_slice(seen);
        let Some(header) = Header::parse(&bytes) else { return Ok(None) };
        let fits =
            at.checked_add(header.payload_at() + u64::from(header.payload_bytes)).is_some_and(|e| e <= limit);
        if !fits || !seqs.contains(&header.seq) || self.salt.is_some_and(|salt| salt != header.salt) {
            return Ok(None);
        }
        meta.clear();
        let whole = self.read(at + HEADER_BYTES as u64, header.meta_bytes as usize, limit, meta)?;
        if !whole || !Header::proves(&bytes, meta) {
            return Ok(None);
        }
        self.salt = Some(header.salt);
        Ok(Some(header))
    }

    /// The first whole frame head at or after `from`.
    pub(crate) fn find(
        &mut self,
        from: u64,
        limit: u64,
        seqs: &Range<u64>,
        meta: &mut Vec<u8>,
    ) -> io::Result<Option<(u64, Header)>> {
        if let Some(header) = self.head_at(from, limit, seqs, meta)? {
            return Ok(Some((from, header)));
        }
        let stride = std::mem::replace(&mut self.stride, Stride::Read);
        let found = self.search(from + FRAME_ALIGN, limit, seqs, meta);
        self.stride = stride;
        found
    }

    fn search(
        &mut self,
        mut from: u64,
        limit: u64,
        seqs: &Range<u64>,
        meta: &mut Vec<u8>,
    ) -> io::Result<Option<(u64, Header)>> {
        while let Some(at) = self.next_magic(from, limit)? {
            if let Some(header) = self.head_at(at, limit, seqs, meta)? {
                return Ok(Some((at, header)));
            }
            from = at + FRAME_ALIGN;
        }
        Ok(None)
    }

    /// The next aligned place at or after `from` that starts with the magic.
    fn next_magic(&mut self, mut from: u64, limit: u64) -> io::Result<Option<u64>> {
        while from + HEADER_BYTES as u64 <= limit {
            let seen = self.view(from, FRAME_ALIGN as usize, limit)?;
            if seen.len() < FRAME_ALIGN as usize {
                return Ok(None);
            }
            let start = (from - self.at) as usize;
            let rest = &self.buf[start..self.filled];
            let step = FRAME_ALIGN as usize;
            if let Some(i) = rest.chunks_exact(step).position(|place| place[..MAGIC.len()] == MAGIC) {
                return Ok(Some(from + (i * step) as u64));
            }
            from += (rest.len() / step * step) as u64;
            // Preallocated and never written space is a hole: it need not be read.
            match self.file.next_data(from)? {
                Some(data) => from = from.max(data - data % FRAME_ALIGN),
                None => return Ok(None),
            }
        }
        Ok(None)
    }

    /// The last place below `limit` that holds something but zeros, seen from `from`.
    pub(crate) fn last_written(&mut self, mut from: u64, limit: u64) -> io::Result<u64> {
        let mut last = from;
        self.stride = Stride::Read;
        while let Some(data) = self.file.next_data(from)?.filter(|&data| data < limit) {
            from = from.max(data);
            let seen = self.view(from, READ_CHUNK_BYTES, limit)?;
            if seen.is_empty() {
                break;
            }
            if let Some(i) = seen.iter().rposition(|&b| b != 0) {
                last = from + i as u64 + 1;
            }
            from += seen.len() as u64;
        }
        Ok(last)
    }

    /// Appends the payload of the frame at `at` to `out`; whether it is what was written.
    pub(crate) fn payload(
        &mut self,
        at: u64,
        header: &Header,
        limit: u64,
        out: &mut Vec<u8>,
    ) -> io::Result<bool> {
        let start = out.len();
        let whole = self.read(at + header.payload_at(), header.payload_bytes as usize, limit, out)?;
        Ok(whole && crc32fast::hash(&out[start..]) == header.payload_crc)
    }

    /// Whether the payload of the frame at `at` is what was written, in constant memory.
    pub(crate) fn payload_holds(&mut self, at: u64, header: &Header, limit: u64) -> io::Result<bool> {
        let stride = std::mem::replace(&mut self.stride, Stride::Read);
        let (mut from, end) =
            (at + header.payload_at(), at + header.payload_at() + u64::from(header.payload_bytes));
        let mut crc = crc32fast::Hasher::new();
        while from < end {
            let seen = self.view(from, READ_CHUNK_BYTES.min((end - from) as usize), limit)?;
            if seen.is_empty() {
                break;
            }
            crc.update(seen);
            from += seen.len() as u64;
        }
        self.stride = stride;
        Ok(from == end && crc.finalize() == header.payload_crc)
    }

    /// Appends `len` bytes from `at` to `out`: what is buffered from the buffer, a long rest straight from the
    /// file. Whether all were there.
    fn read(&mut self, at: u64, len: usize, limit: u64, out: &mut Vec<u8>) -> io::Result<bool> {
        if limit.saturating_sub(at) < len as u64 {
            return Ok(false);
        }
        let chunk = self.chunk();
        let buffered = match at.checked_sub(self.at) {
            Some(from) if from < self.filled as u64 => (self.filled - from as usize).min(len),
            _ => 0,
        };
        if buffered == len || len <= chunk / 2 {
            let seen = self.view(at, len, limit)?;
            out.extend_from_slice(seen);
            return Ok(seen.len() == len);
        }
        let from = if buffered > 0 { (at - self.at) as usize } else { 0 };
        let start = out.len();
        out.extend_from_slice(&self.buf[from..from + buffered]);
        out.resize(start + len, 0);
        let got = self.fill(&mut out[start + buffered..], at + buffered as u64)?;
        out.truncate(start + buffered + got);
        Ok(buffered + got == len)
    }

    fn chunk(&self) -> usize {
        match self.stride {
            Stride::Read => READ_CHUNK_BYTES,
            Stride::Hop => HOP_CHUNK_BYTES,
        }
    }

    /// Up to `want` bytes at `at`, fewer only at the limit or the end of the file.
    fn view(&mut self, at: u64, want: usize, limit: u64) -> io::Result<&[u8]> {
        let left = limit.saturating_sub(at);
        let want = left.min(want as u64) as usize;
        let inside = self.at <= at && at + want as u64 <= self.at + self.filled as u64;
        if !inside {
            let fetch = left.min(want.max(self.chunk()) as u64) as usize;
            let mut buf = std::mem::take(&mut self.buf);
            self.filled = 0;
            buf.resize(fetch, 0);
            let got = self.fill(&mut buf, at);
            self.buf = buf;
            self.filled = got?;
            self.at = at;
        }
        let from = (at - self.at) as usize;
        Ok(&self.buf[from..self.filled.min(from + want)])
    }

    /// Reads until the buffer is full or the file ends. Places that the disk cannot read come as zeros: they are
    /// damage to be stepped over, not a reason to stop.
    fn fill(&mut self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let mut got = 0;
        let mut careful = false;
        while got < buf.len() {
            let end = if careful { buf.len().min(got + UNREADABLE_STEP_BYTES) } else { buf.len() };
            match self.file.read_at(&mut buf[got..end], at + got as u64) {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(e) if e.raw_os_error() == Some(EIO) => {
                    if careful {
                        buf[got..end].fill(0);
                        got = end;
                    }
                    careful = true;
                    self.unreadable = true;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(got)
    }
}
