//! `tidegate replay`: sends a file as if devices sent it, and counts what was acknowledged.

mod file;
mod http;
mod mqtt;
mod progress;

use crate::output::{Output, Verdict, thousands};
use anyhow::{Context as _, bail};
use clap::Args;
use file::{Events, Shape};
use progress::Counters;
use reqwest::Url;
use serde_json::json;
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{task::JoinSet, time};

/// The verb.
#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// CSV with a header line (.csv) or one JSON object a line (anything else)
    file: PathBuf,
    /// mqtt://HOST:PORT, or http://HOST:PORT/v1/ingest/STREAM
    #[arg(long, value_name = "URL")]
    to: Url,
    /// MQTT topic; `{device}` stands for the device's name
    #[arg(long, default_value = "machines/{device}/telemetry")]
    topic: String,
    /// Send the file once per device, as NAME-1 … NAME-N
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    devices: u32,
    /// Name of the device, or what the names of several begin with
    #[arg(long, default_value = "device", value_name = "NAME")]
    device: String,
    /// Take the device from this column instead
    #[arg(long, conflicts_with_all = ["device", "devices"], value_name = "COLUMN")]
    device_column: Option<String>,
    /// Put the device's name into each event under this key
    #[arg(long, value_name = "KEY")]
    device_field: Option<String>,
    /// Rename a column
    #[arg(long = "rename", value_name = "OLD=NEW", value_parser = pair)]
    renames: Vec<(String, String)>,
    /// A column with times like `2013-12-02 21:15:00`, taken as UTC and sent as RFC 3339
    #[arg(long, value_name = "COLUMN")]
    time_column: Option<String>,
    /// Events per second over all devices; 0 sends as fast as they are acknowledged
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    /// Lines of the file to send at most
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Connections that the devices are spread over
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    connections: u32,
    /// MQTT client id, or what the ids of several connections begin with
    #[arg(long, default_value = "tidegate-replay")]
    client_id: String,
    /// Unacknowledged messages per MQTT connection
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    window: u16,
    /// Events per HTTP request
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch: u32,
    /// Give up when nothing was acknowledged for so many seconds
    #[arg(long, default_value_t = 300)]
    patience: u64,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (old, new) = text.split_once('=').ok_or("must be OLD=NEW")?;
    Ok((old.to_owned(), new.to_owned()))
}

/// When each event of a connection is due.
#[derive(Debug, Clone, Copy)]
struct Pace {
    start: Instant,
    per_second: f64,
}

impl Pace {
    /// The moment of event `i` over all connections; none when there is no rate.
    fn due(&self, i: usize) -> Option<Instant> {
        (self.per_second > 0.0).then(|| self.start + Duration::from_secs_f64(i as f64 / self.per_second))
    }
}

impl Replay {
    pub(crate) async fn run(self, out: &Output) -> anyhow::Result<Verdict> {
        let shape = Shape {
            devices: self.devices,
            device: self.device.clone(),
            device_column: self.device_column.clone(),
            device_field: self.device_field.clone(),
            renames: self.renames.clone(),
            time_column: self.time_column.clone(),
            limit: self.limit,
        };
        let events = Arc::new(Events::read(&self.file, shape)?);
        let counters = Arc::new(Counters::new(events.len() as u64));
        let started = Instant::now();
        let mut connections = self.connect(&events, &counters, started)?;
        let mut ticks = time::interval(Duration::from_millis(200));
        let mut patience = progress::Patience::new(Duration::from_secs(self.patience));
        loop {
            tokio::select! {
                done = connections.join_next() => match done {
                    None => break,
                    Some(result) => result.context("a connection failed")??,
                },
                _ = ticks.tick() => {
                    counters.draw(started);
                    if patience.is_over(counters.acknowledged()) {
                        progress::end();
                        bail!("nothing was acknowledged for {} s: {}", self.patience, counters.last_trouble());
                    }
                }
            }
        }
        counters.draw(started);
        progress::end();
        Ok(self.report(out, &counters, started))
    }

    fn connect(
        &self,
        events: &Arc<Events>,
        counters: &Arc<Counters>,
        start: Instant,
    ) -> anyhow::Result<JoinSet<anyhow::Result<()>>> {
        let mut set = JoinSet::new();
        let count = self.connections as usize;
        let pace = Pace { start, per_second: self.rate };
        for c in 0..count {
            let mine = events.of_connection(c, count);
            if mine.is_empty() {
                continue;
            }
            let (events, counters) = (events.clone(), counters.clone());
            match self.to.scheme() {
                "mqtt" => {
                    let client_id =
                        if count == 1 { self.client_id.clone() } else { format!("{}-{c}", self.client_id) };
                    let target = mqtt::Target::new(&self.to, client_id, self.topic.clone(), self.window)?;
                    set.spawn(async move { mqtt::send(target, &events, mine, pace, &counters).await });
                }
                "http" | "https" => {
                    let target = http::Target::new(&self.to, self.batch as usize, c)?;
                    set.spawn(async move { http::send(target, &events, mine, pace, &counters).await });
                }
                other => bail!("cannot send over {other:?}; there are mqtt and http"),
            }
        }
        Ok(set)
    }

    fn report(&self, out: &Output, counters: &Counters, started: Instant) -> Verdict {
        let seconds = started.elapsed().as_secs_f64();
        let (sent, acknowledged) = (counters.sent(), counters.acknowledged());
        let value = json!({
            "file": self.file,
            "events": counters.total,
            "published": sent,
            "acknowledged": acknowledged,
            "repeated": counters.repeated(),
            "refused": counters.refused(),
            "reconnects": counters.reconnects(),
            "seconds": seconds,
            "rate": acknowledged as f64 / seconds.max(1e-9),
        });
        out.show(&value, |_| {
            format!(
                "{} of {} events acknowledged in {seconds:.1} s ({:.0}/s), {} repeated, {} refused, {} reconnects",
                thousands(acknowledged),
                thousands(counters.total),
                acknowledged as f64 / seconds.max(1e-9),
                counters.repeated(),
                counters.refused(),
                counters.reconnects(),
            )
        });
        Verdict::fine_if(acknowledged == counters.total)
    }
}
