//! From a component to native code. Lives in a program of its own (`tidegate-module-compiler`), because a compiler
//! takes ten times the size of a gateway and hundreds of megabytes while it works.

use crate::{
    Artifact, Refusal, UdfError, World,
    engine::engine_config,
    validate::{ModuleLimits, validate},
};
use record::Digest;

/// Validates a component and compiles it for this machine's family of CPUs.
pub fn compile(bytes: &[u8], limits: &ModuleLimits) -> Result<(Option<World>, Artifact), UdfError> {
    let world = validate(bytes, limits)?;
    let engine_error = |e: wasmtime::Error| UdfError::Engine(format!("{e:#}"));
    let engine = wasmtime::Engine::new(&engine_config().map_err(engine_error)?).map_err(engine_error)?;
    let code = engine
        .precompile_component(bytes)
        .map_err(|e| UdfError::Refused(Refusal::Invalid { why: format!("{e:#}") }))?;
    Ok((world, Artifact::new(Digest::of(bytes), &code)))
}
