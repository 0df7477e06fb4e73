//! What the demonstration says in the end: for people, and as one JSON object.

use std::fmt::{self, Write as _};

use serde_json::{Value, json};

use crate::machines::{HOT, HOURLY, RAW};
use crate::nab;
use crate::plant::Plant;
use crate::tables;

/// The outcome.
pub struct Report {
    /// Messages sent, repeats not counted.
    pub events_published: u64,
    /// Messages acknowledged.
    pub events_acknowledged: u64,
    /// Messages that there were to send.
    pub events_expected: u64,
    /// Rows of the raw stream.
    pub rows_raw: u64,
    /// Rows that the filter kept.
    pub rows_filtered: u64,
    /// Windows.
    pub rows_aggregated: u64,
    /// Rows missing or wrong.
    pub lost: u64,
    /// Rows there more than once.
    pub duplicated: u64,
    /// Dead letters.
    pub dead_lettered: u64,
    /// Dead letters more or less than the file's repeated times make.
    pub dead_letters_wrong: u64,
    /// Alerts that began to fire, as the webhook got them.
    pub alerts_fired: u64,
    /// Alerts that were told again under another id.
    pub alerts_doubled: u64,
    /// The first of them.
    pub first_alert: Option<Value>,
    /// Whether every term of the audit fits and every row is right.
    pub balanced: bool,
    /// Examples of rows that are not right.
    pub examples: Vec<String>,
    /// Programs killed.
    pub kills: u64,
    /// From the first program's start.
    pub seconds: f64,
    /// Median from PUBLISH to a query that sees the row, while everything was up.
    pub latency_ms_p50: f64,
    /// The same for 99 of 100.
    pub latency_ms_p99: f64,
    /// The longest, crashes included.
    pub latency_ms_worst: f64,
    /// Messages measured.
    pub latency_samples: u64,
    /// Bytes per event.
    pub sizes: Sizes,
    /// The audit as central gave it.
    pub audit: Value,
    /// What to look at, with where.
    pub addresses: Vec<(&'static str, String)>,
}

/// Bytes per event, where they could be measured; programs that were killed count from their last start.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sizes {
    /// Written to the gateway's disk, in both logs.
    pub gateway_disk: Option<f64>,
    /// On the wire from gateway to central, as blocks: what the event itself and all that is computed from it take.
    pub wire: Option<f64>,
    /// On disk in the raw table.
    pub table: Option<f64>,
}

impl Sizes {
    /// Asks both programs' metrics and ClickHouse's own tables.
    pub async fn measure(plant: &Plant) -> Self {
        let sql = "select sum(bytes_on_disk) / sum(rows) from system.parts where active and database = 'tidegate' \
                   and table = 'machine'";
        let table = plant.api.query(sql).await.ok();
        let table = table.and_then(|rows| tables::float(rows.first()?.first()?));
        let ratio = |bytes: f64, events: f64| (events > 0.0).then(|| bytes / events);
        let gateway = plant.gateway_metrics().await.unwrap_or_default();
        let gateway_disk = ratio(
            gateway.sum("tidegate_buffer_written_bytes_total", &[]),
            gateway.sum("tidegate_ingest_events_total", &[]),
        );
        let central = plant.central_metrics().await.unwrap_or_default();
        // All streams' blocks over the raw stream's rows: of the rows of a link, this share is raw.
        let raw = plant.api.count(RAW).await.unwrap_or(0) as f64;
        let mut all = raw;
        for table in [HOT, HOURLY, "dead_letters"] {
            all += plant.api.count(table).await.unwrap_or(0) as f64;
        }
        let rows = central.sum("tidegate_link_rows_total", &[]) * raw / all.max(1.0);
        let wire = ratio(central.sum("tidegate_link_bytes_total", &[]), rows);
        Self { gateway_disk, wire, table }
    }
}

/// Where to look.
pub(super) fn addresses(plant: &Plant) -> Vec<(&'static str, String)> {
    let (gateway, central) = (plant.admin, plant.api.address());
    vec![
        ("gateway metrics", format!("http://{gateway}/metrics")),
        ("central metrics", format!("http://{central}/metrics")),
        ("central API", format!("http://{central}")),
        ("MQTT", format!("mqtt://{}", plant.mqtt)),
        ("HTTP", format!("http://{}/v1/ingest/{RAW}?device=NAME", plant.http)),
        ("query", format!("tidegate query --central http://{central} 'select count() from {RAW}'")),
        ("audit", format!("tidegate audit --central http://{central}")),
    ]
}

impl Report {
    /// Whether the demonstration shows what it has to show.
    pub fn holds(&self) -> bool {
        self.balanced
            && self.lost == 0
            && self.duplicated == 0
            && self.dead_letters_wrong == 0
            && self.events_acknowledged == self.events_expected
            && self.alerts_fired > 0
            && self.alerts_doubled == 0
    }

    /// The one JSON object.
    pub fn json(&self) -> Value {
        json!({
            "events_published": self.events_published,
            "events_acknowledged": self.events_acknowledged,
            "rows_raw": self.rows_raw,
            "rows_filtered": self.rows_filtered,
            "rows_aggregated": self.rows_aggregated,
            "lost": self.lost,
            "duplicated": self.duplicated,
            "dead_lettered": self.dead_lettered,
            "alerts_fired": self.alerts_fired,
            "alerts_doubled": self.alerts_doubled,
            "balanced": self.balanced,
            "kills": self.kills,
            "seconds": (self.seconds * 10.0).round() / 10.0,
            "latency_ms_p50": self.latency_ms_p50.round(),
            "latency_ms_p99": self.latency_ms_p99.round(),
            "latency_ms_worst": self.latency_ms_worst.round(),
            "latency_samples": self.latency_samples,
            "bytes_per_event_gateway_disk": self.sizes.gateway_disk,
            "bytes_per_event_wire": self.sizes.wire,
            "bytes_per_event_table": self.sizes.table,
            "first_alert": self.first_alert,
            "examples": self.examples,
            "audit": self.audit,
        })
    }

    fn write_audit(&self, out: &mut String) -> fmt::Result {
        let terms =
            ["received", "repeats", "kept", "filtered", "aggregated", "dead_lettered", "dropped", "produced"];
        writeln!(out, "\nAudit: received = repeats + kept + filtered + aggregated + dead letters + dropped")?;
        write!(out, "  {:<14}", "stream")?;
        for term in terms {
            write!(out, " {term:>13}")?;
        }
        writeln!(out, " {:>10} {:>6} {:>8}", "in table", "lost", "doubled")?;
        for gateway in self.audit["gateways"].as_array().into_iter().flatten() {
            for stream in gateway["streams"].as_array().into_iter().flatten() {
                write!(out, "  {:<14}", stream["stream"].as_str().unwrap_or("?"))?;
                for term in terms {
                    write!(out, " {:>13}", show(&stream["counts"][term]))?;
                }
                let (table, lost) = (show(&stream["table_rows"]), show(&stream["lost"]));
                writeln!(out, " {table:>10} {lost:>6} {:>8}", show(&stream["duplicated"]))?;
            }
        }
        for problem in self.audit["problems"].as_array().into_iter().flatten() {
            writeln!(out, "  PROBLEM: {}", show(problem))?;
        }
        Ok(())
    }

    fn write_alert(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "\nAlerts: {} fired", self.alerts_fired)?;
        if let Some(alert) = &self.first_alert {
            writeln!(
                out,
                "  first: {} on {}, value {}, at {} (event time)",
                show(&alert["labels"]["alertname"]),
                show(&alert["labels"]["device"]),
                show(&alert["value"]),
                show(&alert["active_since"])
            )?;
        }
        for failure in nab::failures() {
            writeln!(out, "  labelled failure: {}", failure.text)?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        self.write_audit(&mut out)?;
        writeln!(
            out,
            "\nRows: {RAW} {}, {HOT} {}, {HOURLY} {}, dead_letters {}",
            self.rows_raw, self.rows_filtered, self.rows_aggregated, self.dead_lettered
        )?;
        if self.dead_lettered > 0 {
            writeln!(
                out,
                "  (the file's clock goes back once: 12 times of each machine stand twice with other values; the second"
            )?;
            writeln!(out, "  of each is a dead letter, reason key-conflict: nothing vanishes)")?;
        }
        self.write_alert(&mut out)?;
        writeln!(
            out,
            "\nPUBLISH to queryable: p50 {:.0} ms, p99 {:.0} ms ({} messages); the longest, through a crash: {:.1} s",
            self.latency_ms_p50,
            self.latency_ms_p99,
            self.latency_samples,
            self.latency_ms_worst / 1e3
        )?;
        let size = |size: Option<f64>| size.map_or("not measured".to_owned(), |bytes| format!("{bytes:.1}"));
        writeln!(
            out,
            "Bytes per event: {} written to the gateway's disk, {} on the wire, {} on disk in the raw table",
            size(self.sizes.gateway_disk),
            size(self.sizes.wire),
            size(self.sizes.table)
        )?;
        writeln!(out, "\nLook at:")?;
        for (what, address) in &self.addresses {
            writeln!(out, "  {what:<16} {address}")?;
        }
        for example in &self.examples {
            writeln!(out, "WRONG: {example}")?;
        }
        let verdict = if self.holds() { "EVERY EVENT ONCE" } else { "FAILED" };
        writeln!(
            out,
            "\n{verdict}: {} published, {} acknowledged, {} lost, {} doubled, {} killed, {:.0} s",
            self.events_published,
            self.events_acknowledged,
            self.lost,
            self.duplicated,
            self.kills,
            self.seconds
        )?;
        f.write_str(&out)
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
