//! Runs user modules: WebAssembly components over batches of columns. The only crate that names wasmtime.
//!
//! Job: refuse what is not a module of the contract (`wit/`), keep modules by digest and name ([`ModuleStore`]), load
//! their native artifacts ([`Host`]), call them with a batch ([`FilterInstance`], [`TransformInstance`],
//! [`AggregateInstance`]) and find the rows that make one fail ([`isolate`]).
//!
//! Invariants:
//! - a module sees its batch and nothing else: its only import is a bounded log;
//! - every call is bounded in time, memory and size of the answer, and ends in a value or a [`CallError`];
//! - after a [`CallError`] an instance is used up: what it remembered is gone, a fresh one is needed;
//! - native code is loaded only after its digest and that of the module it was made from were checked.
//!
//! It never compiles (the feature `compile` is for the compiler program alone), never keeps windows or keys, and never
//! does anything asynchronous: calls block the thread that makes them.

mod aggregate;
mod artifact;
mod bisect;
mod call;
#[cfg(feature = "compile")]
pub mod compile;
mod context;
mod contract;
mod convert;
mod engine;
mod error;
mod filter;
mod host;
pub mod limits;
#[cfg(feature = "bench-rows")]
#[doc(hidden)]
pub mod rows;
mod store;
mod ticker;
mod transform;
#[cfg(feature = "compile")]
pub mod validate;
mod wire;

pub use aggregate::AggregateInstance;
pub use artifact::Artifact;
pub use bisect::{Budget, Isolated, PoisonRow, isolate};
pub use contract::{CONTRACT_VERSIONS, PACKAGE, World};
pub use convert::{Bitmap, Needs};
pub use error::{ArtifactError, CallError, Refusal, UdfError};
pub use filter::FilterInstance;
pub use host::{Host, HostConfig, Module};
pub use limits::Limits;
pub use store::{Activation, CompilerProgram, ModuleStore, StoreError, StoredModule, Trial};
pub use transform::TransformInstance;
