//! The one configuration of the engine: the compiler program and the hosts must agree on every word of it, or an
//! artifact is refused.

use record::Digest;
use wasmtime::Config;

/// The wasmtime of this workspace, pinned in the root manifest.
const WASMTIME: &str = "48.0.8";

/// The target is named, so that the code runs on every CPU of the family, not only on the one that compiled it.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
const TARGET: &str = "x86_64-unknown-linux-gnu";
#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
const TARGET: &str = "aarch64-unknown-linux-gnu";
#[cfg(all(target_os = "linux", target_arch = "riscv64"))]
const TARGET: &str = "riscv64gc-unknown-linux-gnu";
#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")
)))]
compile_error!("modules run on Linux on x86-64, aarch64 and riscv64");

/// Stack of a module's code, in bytes; an endless recursion ends here.
const STACK_BYTES: usize = 512 << 10;
/// Address space of one memory. With it and the guard, code needs no bounds checks; only touched pages cost memory.
const MEMORY_RESERVATION_BYTES: u64 = 4 << 30;
const MEMORY_GUARD_BYTES: u64 = 32 << 20;

/// The configuration.
pub(crate) fn engine_config() -> wasmtime::Result<Config> {
    let mut config = Config::new();
    config.target(TARGET)?;
    config.wasm_component_model(true);
    config.epoch_interruption(true);
    config.max_wasm_stack(STACK_BYTES);
    config.memory_reservation(MEMORY_RESERVATION_BYTES);
    config.memory_guard_size(MEMORY_GUARD_BYTES);
    config.wasm_backtrace_max_frames(None);
    Ok(config)
}

/// Stands for everything that an artifact depends on beside its module. A runtime-only engine cannot compute
/// wasmtime's own hash, so the settings are named here; the engine checks them once more when it loads.
pub(crate) fn compatibility() -> Digest {
    let text = format!(
        "tidegate artifact 1; wasmtime {WASMTIME}; {TARGET}; component-model; epochs; stack {STACK_BYTES}; \
         memory {MEMORY_RESERVATION_BYTES}+{MEMORY_GUARD_BYTES}"
    );
    Digest::of(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_wasmtime_is_the_one_in_use() {
        let manifest = include_str!("../../../Cargo.toml");
        assert!(manifest.contains(&format!("wasmtime = {{ version = \"={WASMTIME}\"")));
    }

    #[test]
    fn an_engine_starts_with_it() {
        wasmtime::Engine::new(&engine_config().expect("target")).expect("engine");
    }
}
