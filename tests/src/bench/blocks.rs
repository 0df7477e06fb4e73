//! Ready-made blocks: what stands in a gateway's output log, encoded, numbered and chained beforehand, so that sending
//! them costs next to nothing.

use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use link::message::{Batch, StreamHello};
use record::{
    BatchBuilder, BlockHeader, Column, ColumnType, Digest, EventTime, GatewayId, Incarnation, Seq,
    StreamName, StreamSchema, Value, block, chain_hash,
};

/// The life of the load's data folders, which are none.
pub const LIFE: Incarnation = Incarnation(1);
const START_NS: i128 = 1_700_000_000_000_000_000;
const DEVICES: u64 = 200;

/// Machines of one gateway that report in turn, a second apart.
pub struct Machines {
    schema: Arc<StreamSchema>,
    devices: Vec<String>,
}

impl Machines {
    /// The machines of a gateway.
    pub fn of(gateway: &GatewayId) -> Result<Self> {
        let column = |name: &str, ty| Column { name: name.into(), ty };
        let schema = StreamSchema::new(vec![
            column("temperature", ColumnType::Float64),
            column("cycles", ColumnType::Int64),
            column("mode", ColumnType::String),
        ])?;
        let devices = (0..DEVICES).map(|d| format!("{gateway}-machine-{d:03}")).collect();
        Ok(Self { schema: Arc::new(schema), devices })
    }

    /// What their rows look like.
    pub fn schema(&self) -> &Arc<StreamSchema> {
        &self.schema
    }

    /// Their rows from seq `first` on, encoded.
    pub fn encode(&self, first: u64, rows: u64) -> Result<Bytes> {
        let mut builder = BatchBuilder::new(self.schema.clone());
        for seq in first..first + rows {
            let time = EventTime::from_ns(START_NS + i128::from(seq / DEVICES) * 1_000_000_000)?;
            // A slow wave with noise, as sensors give it.
            let noise = (seq.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as f64 / 4096.0;
            let temperature = 80.0 + (seq as f64 / 50_000.0).sin() * 10.0 + noise;
            let mode = if seq % 17 == 0 { "idle" } else { "running" };
            let values = [Value::Float(temperature), Value::Int((seq / DEVICES) as i64), Value::Str(mode)];
            builder.push(time, &self.devices[(seq % DEVICES) as usize], &values)?;
        }
        Ok(block::encode(&builder.finish()?)?.into())
    }
}

/// The numbers and hashes of one stream.
pub struct Chain {
    stream: StreamName,
    schema: Arc<StreamSchema>,
    last: Seq,
    hash: Digest,
}

impl Chain {
    /// A stream without rows.
    pub fn new(stream: &StreamName, schema: &Arc<StreamSchema>) -> Self {
        Self { stream: stream.clone(), schema: schema.clone(), last: Seq(0), hash: Digest::default() }
    }

    /// The next seq.
    pub fn next(&self) -> u64 {
        self.last.0 + 1
    }

    /// Makes encoded rows the next block.
    pub fn append(&mut self, bytes: Bytes, rows: u64) -> Batch {
        let (first, last) = (self.last.next(), Seq(self.last.0 + rows));
        let (prev_hash, schema) = (self.hash, self.schema.fingerprint());
        self.hash = chain_hash(&prev_hash, &self.stream, LIFE, first, last, schema, &bytes);
        self.last = last;
        let stream = self.stream.clone();
        let header =
            BlockHeader { stream, incarnation: LIFE, first, last, schema, prev_hash, hash: self.hash };
        Batch { header, bytes }
    }

    /// What a Hello says of the stream.
    pub fn hello(&self) -> StreamHello {
        let schema = (*self.schema).clone();
        StreamHello { stream: self.stream.clone(), schema, last: self.last, hash: self.hash }
    }
}

/// A gateway's id whose place among `places` (partitions or shards) is this one: both go by the first eight bytes of
/// the SHA-256 of the id, modulo their number.
pub fn gateway_at(place: u64, places: u64, ordinal: u64) -> Result<GatewayId> {
    let mut tries = 0;
    loop {
        let id = GatewayId::new(&format!("load-{ordinal}-{tries}"))?;
        let mut first = [0; 8];
        first.copy_from_slice(&Digest::of(id.as_str().as_bytes()).0[..8]);
        if u64::from_le_bytes(first) % places == place {
            return Ok(id);
        }
        tries += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_follow_each_other() -> Result<()> {
        let id = gateway_at(1, 2, 7)?;
        let machines = Machines::of(&id)?;
        let mut chain = Chain::new(&StreamName::new("load")?, machines.schema());
        let first = chain.append(machines.encode(chain.next(), 100)?, 100);
        let second = chain.append(machines.encode(chain.next(), 50)?, 50);
        assert_eq!((first.header.first, second.header.last), (Seq(1), Seq(150)));
        assert_eq!(second.header.prev_hash, first.header.hash);
        assert_eq!(block::decode(&second.bytes)?.rows(), 50);
        assert_eq!(chain.hello().hash, second.header.hash);
        Ok(())
    }
}
