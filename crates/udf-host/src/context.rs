//! What belongs to one instance on the host's side: its budget of memory and tables, and its log.

use crate::{
    Limits,
    error::bounded,
    limits::{LOG_BURST, LOG_LINE_BYTES_MAX, LOG_TICKS_PER_LINE},
    wire::Level,
};
use wasmtime::ResourceLimiter;

/// The limiter's own error: clearer than a refused growth, which a guest may take for something else.
#[derive(Debug, thiserror::Error)]
#[error("memory limit of {limit} bytes")]
pub(crate) struct OverMemory {
    pub(crate) limit: usize,
}

/// The data of a store.
pub(crate) struct Context {
    module: String,
    limits: Limits,
    memory_bytes: usize,
    table_elements: usize,
    growing: usize,
    now: u64,
    log: LogBudget,
    /// The last line of level error in this call; a panic's text, most often.
    last_error: Option<String>,
}

/// A bucket of log lines, filled by ticks.
struct LogBudget {
    lines: u32,
    filled_at: u64,
    dropped: u64,
}

impl Context {
    pub(crate) fn new(module: &str, limits: &Limits) -> Self {
        let log = LogBudget { lines: LOG_BURST, filled_at: 0, dropped: 0 };
        Self {
            module: module.into(),
            limits: limits.clone(),
            memory_bytes: 0,
            table_elements: 0,
            growing: 0,
            now: 0,
            log,
            last_error: None,
        }
    }

    /// Before every call.
    pub(crate) fn begin(&mut self, now: u64) {
        self.now = now;
        self.last_error = None;
    }

    /// The last words of the call, if it left any.
    pub(crate) fn take_last_error(&mut self) -> Option<String> {
        self.last_error.take()
    }

    /// Memory in use.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Takes a line from the module: cut, cleaned, and dropped when there were too many.
    pub(crate) fn log(&mut self, level: Level, message: &str) {
        let line = bounded(message, LOG_LINE_BYTES_MAX);
        if level == Level::Error {
            self.last_error = Some(line.clone());
        }
        if let Some(dropped) = self.log.take(self.now) {
            write_line(&self.module, level, &line, dropped);
        }
    }
}

impl LogBudget {
    /// Whether a line may be written, and how many were dropped before it.
    fn take(&mut self, now: u64) -> Option<u64> {
        let earned = now.saturating_sub(self.filled_at) / LOG_TICKS_PER_LINE;
        self.filled_at += earned * LOG_TICKS_PER_LINE;
        self.lines = self.lines.saturating_add(u32::try_from(earned).unwrap_or(LOG_BURST)).min(LOG_BURST);
        if self.lines == 0 {
            self.dropped += 1;
            return None;
        }
        self.lines -= 1;
        Some(std::mem::take(&mut self.dropped))
    }
}

fn write_line(module: &str, level: Level, line: &str, dropped: u64) {
    match level {
        Level::Debug => tracing::debug!(target: "module", module, dropped, "{line}"),
        Level::Info => tracing::info!(target: "module", module, dropped, "{line}"),
        Level::Warn => tracing::warn!(target: "module", module, dropped, "{line}"),
        Level::Error => tracing::error!(target: "module", module, dropped, "{line}"),
    }
}

impl ResourceLimiter for Context {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current);
        if self.memory_bytes.saturating_add(more) > self.limits.memory_bytes {
            return Err(wasmtime::Error::new(OverMemory { limit: self.limits.memory_bytes }));
        }
        self.memory_bytes += more;
        self.growing = more;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.memory_bytes -= std::mem::take(&mut self.growing);
        Ok(())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current);
        if self.table_elements.saturating_add(more) > self.limits.table_elements {
            return Ok(false);
        }
        self.table_elements += more;
        Ok(true)
    }

    fn instances(&self) -> usize {
        self.limits.core_instances
    }

    fn tables(&self) -> usize {
        self.limits.tables
    }

    fn memories(&self) -> usize {
        self.limits.memories
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_are_rationed_and_what_is_dropped_is_counted() {
        let mut budget = LogBudget { lines: LOG_BURST, filled_at: 0, dropped: 0 };
        for _ in 0..LOG_BURST {
            assert_eq!(budget.take(5), Some(0));
        }
        assert_eq!((budget.take(5), budget.take(5)), (None, None));
        assert_eq!(budget.take(LOG_TICKS_PER_LINE), Some(2));
        assert_eq!(budget.take(LOG_TICKS_PER_LINE), None);
    }

    #[test]
    fn a_failed_growth_is_given_back() {
        let mut c = Context::new("m", &Limits { memory_bytes: 100, ..Limits::default() });
        assert!(c.memory_growing(0, 60, None).expect("fits"));
        c.memory_grow_failed(wasmtime::Error::msg("no")).expect("undone");
        assert!(c.memory_growing(0, 100, None).expect("fits"));
        assert!(c.memory_growing(100, 101, None).is_err());
    }
}
