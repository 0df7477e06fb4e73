//! Every bound of the rules: what is over one gets a clear error or is counted, nothing grows without end.

use std::time::Duration;

/// Bytes of one rule file.
pub const FILE_BYTES_MAX: usize = 1 << 20;
/// Depth of a rule file's YAML.
pub const YAML_DEPTH_MAX: usize = 16;
/// Rules over all files.
pub const RULES_MAX: usize = 1_000;
/// Labels of one alert, given by the rule and by its row.
pub const LABELS_MAX: usize = 64;
/// Bytes of one label or annotation value; longer ones are cut at a character.
pub const TEXT_BYTES_MAX: usize = 1_024;
/// Instances a rule keeps; more are counted as suppressed, not kept.
pub const INSTANCES_MAX: usize = 1_000;
/// Rows taken from one evaluation; more are counted as suppressed, not read.
pub const ROWS_MAX: usize = 10_000;
/// Offsets of one partition that one evaluation judges; the rest follows in the next evaluation, at once.
pub const NEW_OFFSETS_MAX: u64 = 10_000;
/// How long one evaluation may take.
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// The shortest interval between evaluations of a group.
pub const EVERY_MIN: Duration = Duration::from_millis(100);
/// How far ahead of this machine's clock an event may stand and still move the event clock.
pub const CLOCK_AHEAD_MAX: Duration = Duration::from_secs(3_600);
/// `keep-firing-for` of a rule with `{new}` that does not say its own.
pub const KEEP_FIRING_DEFAULT: Duration = Duration::from_secs(300);

const _: () = assert!(INSTANCES_MAX <= ROWS_MAX);
