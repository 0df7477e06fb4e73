//! Write Tidegate modules in Rust.
//!
//! A module is a type that implements [`Filter`], [`Transform`] or [`Aggregate`], and one `export_…!` line. It sees
//! batches of columns ([`Batch`]), only the columns that it asked for ([`Needs`]), and nothing else: no clock, no file,
//! no network, no randomness. An event's time comes with the batch. The one thing a module may call is [`log`].
//!
//! ```ignore
//! use tidegate_udf::{Batch, Bits, Field, Filter, Needs, Result, export_filter, settings};
//!
//! #[derive(serde::Deserialize)]
//! struct Hot { column: String, above: f64 }
//!
//! impl Filter for Hot {
//!     fn configure(config: &str, _input: &[Field]) -> Result<(Self, Needs)> {
//!         let hot: Hot = settings(config)?;
//!         let needs = Needs::of([&hot.column]);
//!         Ok((hot, needs))
//!     }
//!     fn keep(&mut self, rows: &Batch) -> Result<Bits> {
//!         rows.column(&self.column)?.select(|v| v > self.above)
//!     }
//! }
//! export_filter!(Hot);
//! ```
//!
//! An `Err` tells the gateway that the module refuses a row among these; the gateway looks for it, halving the batch,
//! and sets it aside as a dead letter. A panic does the same.

mod aggregate;
mod batch;
#[doc(hidden)]
pub mod bindings;
mod filter;
mod state;
mod transform;

pub use aggregate::{Aggregate, Groups};
pub use batch::{Bits, select};
pub use bindings::filter::tidegate::udf::columns::{Batch, Column, Data, Field, Kind, Needs, Strings};
pub use filter::Filter;
pub use state::{StateReader, StateWriter};
pub use transform::Transform;

/// What every function of a module answers with: the text of an error is shown to the user.
pub type Result<T> = std::result::Result<T, String>;

/// Reads the stream's `with` table into a type of the module.
pub fn settings<T: serde::de::DeserializeOwned>(config: &str) -> Result<T> {
    serde_json::from_str(config).map_err(|e| format!("configuration: {e}"))
}

/// Lines for the gateway's log. They are cut at a length, and too many are dropped and counted.
pub mod log {
    use crate::bindings::filter::tidegate::udf::log::{Level, write as write_whole};

    /// Longer lines are cut here: the gateway keeps less, and a line of megabytes would end the call.
    const LINE_BYTES_MAX: usize = 4_096;

    fn write(level: Level, message: &str) {
        write_whole(level, &message[..message.floor_char_boundary(LINE_BYTES_MAX)]);
    }

    /// For the module's author.
    pub fn debug(message: &str) {
        write(Level::Debug, message);
    }
    /// Worth knowing.
    pub fn info(message: &str) {
        write(Level::Info, message);
    }
    /// Worth looking at.
    pub fn warn(message: &str) {
        write(Level::Warn, message);
    }
    /// Worth acting upon; the last one of a call that traps becomes part of the trap's text.
    pub fn error(message: &str) {
        write(Level::Error, message);
    }
}

/// Makes a panic say what happened: without this its text would be lost with the instance.
#[doc(hidden)]
pub fn report_panics() {
    std::panic::set_hook(Box::new(|info| log::error(&info.to_string())));
}
