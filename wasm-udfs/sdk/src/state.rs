//! States as bytes: little-endian, no layout of memory.

use crate::Result;

/// Appends numbers to a state's bytes.
#[derive(Default)]
pub struct StateWriter(Vec<u8>);

impl StateWriter {
    /// Begins with the version of the layout that follows.
    pub fn new(version: u8) -> Self {
        Self(vec![version])
    }
    /// Appends an unsigned integer.
    pub fn u64(&mut self, v: u64) {
        self.0.extend(v.to_le_bytes());
    }
    /// Appends an integer.
    pub fn i64(&mut self, v: i64) {
        self.0.extend(v.to_le_bytes());
    }
    /// Appends a floating point number, bit by bit as it is.
    pub fn f64(&mut self, v: f64) {
        self.0.extend(v.to_le_bytes());
    }
    /// The bytes.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Takes numbers from a state's bytes.
pub struct StateReader<'a>(&'a [u8]);

impl<'a> StateReader<'a> {
    /// The version of the layout, and what follows it.
    pub fn new(bytes: &'a [u8]) -> Result<(u8, Self)> {
        let (version, rest) = bytes.split_first().ok_or("the state has no bytes")?;
        Ok((*version, Self(rest)))
    }
    fn eight(&mut self) -> Result<[u8; 8]> {
        let (head, rest) = self.0.split_first_chunk::<8>().ok_or("the state is too short")?;
        self.0 = rest;
        Ok(*head)
    }
    /// The next unsigned integer.
    pub fn u64(&mut self) -> Result<u64> {
        self.eight().map(u64::from_le_bytes)
    }
    /// The next integer.
    pub fn i64(&mut self) -> Result<i64> {
        self.eight().map(i64::from_le_bytes)
    }
    /// The next floating point number.
    pub fn f64(&mut self) -> Result<f64> {
        self.eight().map(f64::from_le_bytes)
    }
    /// Refuses bytes that nobody asked for.
    pub fn finish(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(format!("the state has {} bytes too many", self.0.len())) }
    }
}
