//! Is this a module of the contract? Read from its bytes, before anything is compiled.

use crate::{
    Refusal, World,
    contract::{check_import, world_of},
    error::bounded,
    limits::{ERROR_BYTES_MAX, MODULE_BYTES_MAX, MODULE_START_MEMORY_BYTES_MAX},
};
use wasmparser::{Encoding, Parser, Payload, Validator, WasmFeatures};

const PAGE_BYTES: u64 = 64 << 10;

/// What a module may be.
#[derive(Debug, Clone, Copy)]
pub struct ModuleLimits {
    /// Size of the component.
    pub module_bytes: u64,
    /// Memory that it declares for its start.
    pub start_memory_bytes: u64,
    /// Whether its exports must make a world of the contract; not so for the benchmark's row-shaped twin, which no
    /// host loads as a module.
    pub world: bool,
}

impl Default for ModuleLimits {
    fn default() -> Self {
        Self {
            module_bytes: MODULE_BYTES_MAX,
            start_memory_bytes: MODULE_START_MEMORY_BYTES_MAX,
            world: true,
        }
    }
}

/// The world of a component, or why it is none of ours: size, form, imports, memory, exports, in this order. No world
/// only where none is asked for.
pub fn validate(bytes: &[u8], limits: &ModuleLimits) -> Result<Option<World>, Refusal> {
    let size = bytes.len() as u64;
    if size > limits.module_bytes {
        return Err(Refusal::Size { bytes: size, limit: limits.module_bytes });
    }
    let invalid = |e: wasmparser::BinaryReaderError| Refusal::Invalid {
        why: bounded(&format!("{} (at byte {})", e.message(), e.offset()), ERROR_BYTES_MAX),
    };
    let mut validator = Validator::new_with_features(features());
    let (mut depth, mut memory, mut exports, mut ends) = (0u32, 0u64, Vec::new(), false);
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload.map_err(invalid)?;
        match &payload {
            Payload::Version { encoding: Encoding::Module, .. } if depth == 0 => {
                return Err(Refusal::CoreModule);
            }
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) if depth == 0 => ends = true,
            Payload::End(_) => depth -= 1,
            Payload::ComponentImportSection(imports) if depth == 0 => {
                for import in imports.clone() {
                    check_import(import.map_err(invalid)?.name.0)?;
                }
            }
            Payload::ComponentExportSection(names) if depth == 0 => {
                for export in names.clone() {
                    exports.push(export.map_err(invalid)?.name.0.to_string());
                }
            }
            Payload::MemorySection(memories) => {
                for declared in memories.clone() {
                    memory =
                        memory.saturating_add(declared.map_err(invalid)?.initial.saturating_mul(PAGE_BYTES));
                }
            }
            _ => {}
        }
        if memory > limits.start_memory_bytes {
            return Err(Refusal::Memory { bytes: memory, limit: limits.start_memory_bytes });
        }
        validator.payload(&payload).map_err(invalid)?;
    }
    if !ends {
        return Err(Refusal::Invalid { why: "it ends in the middle".into() });
    }
    match world_of(exports.iter().map(String::as_str)) {
        Ok((world, _)) => Ok(Some(world)),
        Err(_) if !limits.world => Ok(None),
        Err(e) => Err(e),
    }
}

/// What the engine runs: what every toolchain of the guests emits, and no threads, no 64-bit memories, no garbage
/// collection.
fn features() -> WasmFeatures {
    WasmFeatures::WASM2
        | WasmFeatures::COMPONENT_MODEL
        | WasmFeatures::MULTI_MEMORY
        | WasmFeatures::TAIL_CALL
        | WasmFeatures::EXTENDED_CONST
        | WasmFeatures::RELAXED_SIMD
}
