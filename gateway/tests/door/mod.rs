//! A real door over a real log, for tests of one source.

use daemon::{clock::SystemClock, metrics::Registry};
use journal::{FrameSeq, HubOptions, Log, LogOptions, RealDisk};
use record::clock::Clock;
use std::{path::Path, sync::Arc, time::Duration};
use tidegate_gateway::{
    config::Config,
    event::Events,
    ingest::{Door, DoorParts, EVENTS, route::Routes},
};

/// No test waits longer than this for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(45);

/// Opens it; `sources` and streams are the configuration's sections behind the first two.
pub(crate) fn open(dir: &Path, sections: &str) -> (Arc<Door>, Registry) {
    let text = format!(
        r#"
[gateway]
id = "plant-7"
data-dir = "data"
[central]
url = "https://central.example:7443"
tls = {{ ca = "ca.pem", cert = "plant-7.pem", key = "plant-7.key" }}
{sections}"#
    );
    let config = Config::parse(&text, Path::new("/etc/gateway.toml")).expect("valid");
    let options = LogOptions { segment_bytes: 1 << 20, ..LogOptions::default() };
    let (log, _) = Log::open(RealDisk, dir, options).expect("a log");
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let options = HubOptions { reserve_bytes: 0, ..HubOptions::default() };
    let registry = Registry::new();
    let parts = DoorParts { log, options, routes: Arc::new(Routes::new(&config)), clock };
    (Door::open(parts, &registry).expect("a door"), registry)
}

/// Payloads of the events in the log, in order.
pub(crate) fn stored(door: &Door) -> Vec<String> {
    let mut reader = door.hub().log().reader(FrameSeq(1));
    let mut out = Vec::new();
    while let Some(frame) = reader.next().expect("readable") {
        if frame.kind == EVENTS {
            let events = Events::new(&frame.payload).map(|event| event.expect("a record"));
            let wanted = events.filter(|event| !event.delivery.noted);
            out.extend(wanted.map(|event| String::from_utf8_lossy(event.payload).into_owned()));
        }
    }
    out
}
