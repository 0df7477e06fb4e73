//! Any bytes, taken as a progress record.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_central::log::ProgressRecord;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(record) = ProgressRecord::decode(bytes) {
        assert_eq!(record.encode(), bytes);
    }
});
