//! Bounds of modules, calls and instances.

use std::time::Duration;

/// Largest component that is accepted, in bytes.
pub const MODULE_BYTES_MAX: u64 = 32 << 20;
/// Largest native artifact that is loaded, in bytes. Native code is two to six times the component.
pub const ARTIFACT_BYTES_MAX: u64 = 256 << 20;
/// Most memory that a module may declare at its start, in bytes.
pub const MODULE_START_MEMORY_BYTES_MAX: u64 = 256 << 20;
/// Most instances of one host at a time; each reserves 4 GiB of address space, and uses what it touches.
pub const INSTANCES_MAX: usize = 256;
/// How often the clock of running calls ticks: a call is stopped at most one tick after its time.
pub const TICK: Duration = Duration::from_millis(10);
/// The clock stops after this many ticks without any call, so that an idle gateway sleeps.
pub const TICKS_IDLE_MAX: u32 = 100;
/// Smallest allowance of one answer, in bytes, whatever its shape: errors and log lines must fit.
pub const OUTPUT_BYTES_MIN: usize = 64 << 10;
/// Longest error text of a module that is kept, in bytes.
pub const ERROR_BYTES_MAX: usize = 1_024;
/// Longest log line of a module that is kept, in bytes.
pub const LOG_LINE_BYTES_MAX: usize = 1_024;
/// Log lines that an instance may write at once.
pub const LOG_BURST: u32 = 20;
/// Ticks after which an instance may write one more log line.
pub const LOG_TICKS_PER_LINE: u64 = 100;
/// Memory of the compiler program, in bytes of address space.
pub const COMPILER_MEMORY_BYTES: u64 = 1 << 30;
/// Time of the compiler program.
pub const COMPILER_TIME: Duration = Duration::from_secs(60);
/// Longest words of the compiler program that are kept, in bytes.
pub const COMPILER_WORDS_BYTES_MAX: usize = 4_096;
/// Columns that a module may ask for or promise.
pub const MODULE_COLUMNS_MAX: usize = record::limits::COLUMNS_MAX;

/// What one instance of a module may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Linear memory, all of the instance's memories together.
    pub memory_bytes: usize,
    /// Time of one call.
    pub call_time: Duration,
    /// Size of one answer.
    pub output_bytes: usize,
    /// Core instances inside the component.
    pub core_instances: usize,
    /// Linear memories inside the component.
    pub memories: usize,
    /// Tables inside the component.
    pub tables: usize,
    /// Elements of all tables together.
    pub table_elements: usize,
}

impl Default for Limits {
    /// Enough for every guest language of the contract; a module in Python has 38 core instances.
    fn default() -> Self {
        Self {
            memory_bytes: 32 << 20,
            call_time: Duration::from_millis(250),
            output_bytes: 16 << 20,
            core_instances: 64,
            memories: 4,
            tables: 64,
            table_elements: 200_000,
        }
    }
}

const _: () = assert!(LOG_LINE_BYTES_MAX < OUTPUT_BYTES_MIN);
const _: () = assert!(ERROR_BYTES_MAX < OUTPUT_BYTES_MIN);
const _: () = assert!(MODULE_BYTES_MAX < ARTIFACT_BYTES_MAX);
