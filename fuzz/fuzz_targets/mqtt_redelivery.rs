//! Any bytes, taken as a checkpoint of the redelivery window and as a run of it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mqtt::{
    Ticket,
    redelivery::{Limits, Run, Window},
};

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    if let Ok(run) = Run::decode(&mut rest) {
        let mut again = Vec::new();
        run.encode(&mut again);
        assert_eq!(again, bytes[..bytes.len() - rest.len()]);
        let mut window = Window::new(Limits::default());
        window.record(&run, Ticket(1));
    }
    if let Ok(window) = Window::decode(bytes, Limits::default()) {
        let mut once = Vec::new();
        window.encode(Ticket(u64::MAX), &mut once);
        let copy = Window::decode(&once, Limits::default()).expect("what was encoded");
        let mut twice = Vec::new();
        copy.encode(Ticket(u64::MAX), &mut twice);
        assert_eq!(once, twice);
    }
});
