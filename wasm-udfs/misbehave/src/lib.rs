//! A filter that does, on purpose, what a module should not do: for tests of the host's limits.
//!
//! `with = { mode = "spin" }`; modes: `trap`, `spin`, `hoard`, `huge-output`, `panic`, `error`, `recurse`, `chatter`,
//! `wrong-length`, and `start-trap`, `start-spin` that already happen in `configure`. With `column` and `equals` only
//! batches that hold this number in that column are treated so; the others are kept whole.

use tidegate_udf::{Batch, Bits, Field, Filter, Needs, Result, export_filter, log, select, settings};

#[derive(serde::Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    Trap,
    Spin,
    Hoard,
    HugeOutput,
    Panic,
    Error,
    Recurse,
    Chatter,
    WrongLength,
    StartTrap,
    StartSpin,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Misbehave {
    mode: Mode,
    column: Option<String>,
    equals: Option<f64>,
}

impl Misbehave {
    fn is_poisoned(&self, rows: &Batch) -> Result<bool> {
        let (Some(column), Some(equals)) = (&self.column, self.equals) else { return Ok(true) };
        Ok(rows.column(column)?.select(|v| v == equals)?.iter().any(|word| *word != 0))
    }
}

fn trap() -> ! {
    #[cfg(target_arch = "wasm32")]
    core::arch::wasm32::unreachable();
    #[cfg(not(target_arch = "wasm32"))]
    std::process::abort()
}

fn spin() -> ! {
    loop {
        std::hint::spin_loop();
        std::hint::black_box(0);
    }
}

fn hoard() -> ! {
    let mut all: Vec<Vec<u8>> = Vec::new();
    loop {
        all.push(vec![1; 1 << 20]);
        std::hint::black_box(&all);
    }
}

#[allow(unconditional_recursion, reason = "the stack is meant to overflow")]
fn recurse(n: u64) -> u64 {
    std::hint::black_box(recurse(std::hint::black_box(n) + 1)) + 1
}

impl Filter for Misbehave {
    fn configure(config: &str, _input: &[Field]) -> Result<(Self, Needs)> {
        let misbehave: Misbehave = settings(config)?;
        match misbehave.mode {
            Mode::StartTrap => trap(),
            Mode::StartSpin => spin(),
            _ => {}
        }
        let needs = Needs::of(&misbehave.column);
        Ok((misbehave, needs))
    }

    fn keep(&mut self, rows: &Batch) -> Result<Bits> {
        let all = select(rows.len(), |_| true);
        if !self.is_poisoned(rows)? {
            return Ok(all);
        }
        match self.mode {
            Mode::Trap | Mode::StartTrap => trap(),
            Mode::Spin | Mode::StartSpin => spin(),
            Mode::Hoard => hoard(),
            Mode::HugeOutput => Ok(vec![u64::MAX; 1 << 20]),
            Mode::Panic => panic!("misbehaving as configured"),
            Mode::Error => Err("misbehaving as configured".into()),
            Mode::Recurse => Ok(vec![recurse(0); all.len()]),
            Mode::WrongLength => Ok(vec![u64::MAX; all.len() + 1]),
            Mode::Chatter => {
                for i in 0..10_000 {
                    log::info(&format!("line {i} {}", "x".repeat(2_000)));
                }
                Ok(all)
            }
        }
    }
}

export_filter!(Misbehave);
