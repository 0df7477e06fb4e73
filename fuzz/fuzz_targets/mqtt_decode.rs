//! Any bytes, taken as a client's packets of each version.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mqtt::{
    Version,
    decode::{self, Frame},
    packet::Packet,
};

fuzz_target!(|bytes: &[u8]| {
    for version in [Version::V31, Version::V311, Version::V5] {
        let mut rest = bytes;
        while let Ok(Some(frame)) = decode::frame(rest, version, 1 << 16) {
            walk(version, frame);
            rest = &rest[frame.bytes..];
        }
    }
});

fn walk(version: Version, frame: Frame<'_>) {
    match decode::packet(version, frame) {
        Ok(Packet::Publish(publish)) => {
            assert!(publish.topic.len() + publish.payload.len() <= frame.body.len());
            assert!(!publish.topic.is_empty() || publish.alias.is_some());
            assert!(publish.properties.iter().count() <= frame.body.len());
        }
        Ok(Packet::Connect(connect)) => {
            assert!(connect.client_id.len() <= frame.body.len());
            assert!(connect.properties.iter().count() <= frame.body.len());
        }
        Ok(Packet::Subscribe(subscribe)) => assert!(subscribe.filters().count() > 0),
        Ok(Packet::Unsubscribe(unsubscribe)) => assert!(unsubscribe.filters().count() > 0),
        Ok(_) | Err(_) => {}
    }
}
