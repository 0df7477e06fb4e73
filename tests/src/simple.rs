//! One plain stream, for tests of a single thing.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::mqtt_load::{Device, Progress};
use crate::pace::Pace;
use crate::plant::{Options, Plant};

/// The stream.
pub const STREAM: &str = "telemetry";
/// First event time: 2025-01-01.
const START_S: i64 = 1_735_689_600;

/// A root stream of `sources` with a number and a text, without dedup.
pub fn stream(sources: &[&str]) -> String {
    format!(
        r#"[stream.{STREAM}]
from = {sources:?}
topics = ["t/+/data"]
decode = {{ format = "json", time = "ts", device = {{ topic-level = 2 }} }}
columns = {{ value = "float64", note = "string" }}
"#
    )
}

/// The listener, the HTTP source and the stream.
pub fn options() -> Options {
    Options { streams: stream(&["floor", "api"]), ..Options::default() }
}

/// `count` payloads from index `from`, one second apart, `value` = index; `padding` bytes of text in each that
/// no compression makes much smaller.
pub fn payloads(from: usize, count: usize, padding: usize) -> Arc<[Vec<u8>]> {
    (from..from + count)
        .map(|index| {
            let note = noise(index as u64, padding);
            let seconds = START_S + i64::try_from(index).unwrap_or(0);
            format!(r#"{{"ts":{seconds},"value":{index},"note":"{note}"}}"#).into_bytes()
        })
        .collect()
}

/// Letters and digits without a pattern (the generator is splitmix64), the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> String {
    const LETTERS: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/";
    let mut state = seed.wrapping_mul(0xd134_2543_de82_ef95);
    let next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        char::from(LETTERS[((z ^ (z >> 31)) % 64) as usize])
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// A device that sends payloads as fast as it may.
pub fn device(name: &str, payloads: Arc<[Vec<u8>]>) -> Device {
    Device {
        name: name.to_owned(),
        topic: format!("t/{name}/data"),
        payloads,
        pace: Pace::unlimited(),
        in_flight_max: 100,
        sample_every: 0,
        finish: CancellationToken::new(),
    }
}

/// Sends everything over MQTT and waits until it is acknowledged.
pub async fn send(plant: &Plant, name: &str, payloads: Arc<[Vec<u8>]>) -> anyhow::Result<()> {
    let run = device(name, payloads).run(plant.mqtt, Arc::new(Progress::default()), CancellationToken::new());
    tokio::time::timeout(Duration::from_secs(60), run)
        .await
        .map_err(|_| anyhow::anyhow!("{name} is not acknowledged\n{}", plant.logs()))?;
    Ok(())
}

/// One device's values in the table, in order of time.
pub async fn values(plant: &Plant, device: &str) -> anyhow::Result<Vec<f64>> {
    let rows = plant.api.rows_of(STREAM, device, "value").await?;
    Ok(rows.into_iter().map(|(_, value)| value).collect())
}

/// Dead letters as (reason, payload), oldest first.
pub async fn dead_letters(plant: &Plant) -> anyhow::Result<Vec<(String, String)>> {
    let rows = plant.api.query("select reason, payload from dead_letters order by seq").await?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(rows.iter().filter_map(|row| Some((text(row.first()?), text(row.get(1)?)))).collect())
}
