//! Bounds of names, schemas, batches and blocks.

/// Longest name of a gateway, source, stream, column or module, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Most declared columns of one stream.
pub const COLUMNS_MAX: usize = 512;
/// Most rows of one batch: a step takes at most this many, and a sink insert holds at least one batch.
pub const BATCH_ROWS_MAX: usize = 16_384;
/// Longest device name, in bytes; longer ones are dead-lettered.
pub const DEVICE_BYTES_MAX: usize = 1_024;
/// Largest encoded block, in bytes. Below the default `message.max.bytes` of a Kafka broker (1,048,588) with room for
/// the record's headers and key.
pub const BLOCK_BYTES_MAX: usize = 1_000_000;
/// Largest block after decompression, in bytes: a claim above it is refused before memory is taken.
pub const BLOCK_DECODED_BYTES_MAX: usize = 256 << 20;

const _: () = assert!(BLOCK_BYTES_MAX < 1_048_588 - 16 * 1024);
const _: () = assert!(BATCH_ROWS_MAX <= 65_536);
