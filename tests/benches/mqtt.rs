//! `cargo xtask bench mqtt`: acknowledged, durable QoS 1 messages a second beside mosquitto with persistence off.
//!
//! The same pre-encoded load goes to both, in turns, on the same machine; the ratio of the medians is the figure. The
//! gateway decodes and forwards nothing less than in production: its pipeline runs behind the listener (central is not
//! there, so rows stay in the output log).

use anyhow::{Context as _, Result};
use std::{net::SocketAddr, time::Duration};
use tidegate_tests::{
    bench::{
        exit,
        flood::{Flood, Flooded, run},
        plain_stream,
        process::{cpu_seconds, peak_rss_mb},
        report::{Report, percentile},
        wants_json,
    },
    plant::Plant,
    ports,
    program::{Program, of_system},
    wait,
};

const ROUNDS: usize = 5;
const MESSAGES: u64 = 300_000;

fn main() -> std::process::ExitCode {
    exit(bench())
}

fn bench() -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut options = plain_stream("load");
    options.quota = "8 GiB".into();
    let mut plant = Plant::prepare(&options)?;
    plant.start_gateway()?;
    let broker_at = ports::free();
    let config = plant.path("mosquitto.conf");
    let text = format!(
        "listener {} 127.0.0.1\nallow_anonymous true\npersistence false\nmax_queued_messages 0\nmax_inflight_messages 0\n",
        broker_at.port()
    );
    std::fs::write(&config, text)?;
    let config = config.to_str().context("path is not UTF-8")?.to_owned();
    let log = plant.path("mosquitto.log");
    let broker = Program::start("mosquitto", &of_system(&["mosquitto"])?, &["-c", &config], &log)?;
    for address in [broker_at, plant.mqtt] {
        let open = async || std::net::TcpStream::connect(address).is_ok();
        runtime.block_on(wait::until_true("the listener is open", Duration::from_secs(60), open))?;
    }
    let gateway = plant.gateway.as_ref().context("started above")?.pid();
    let mut rounds = Rounds::default();
    for round in 0..=ROUNDS {
        let before = (cpu_seconds(gateway)?, cpu_seconds(broker.pid())?);
        let ours = run(&flood(plant.mqtt))?;
        let between = cpu_seconds(gateway)?;
        let theirs = run(&flood(broker_at))?;
        let after = cpu_seconds(broker.pid())?;
        eprintln!("round {round}: {:.0} /s, mosquitto {:.0} /s", ours.per_second(), theirs.per_second());
        // The first round warms both up.
        if round > 0 {
            rounds.add(&ours, &theirs, between - before.0, after - before.1);
        }
    }
    rounds.report(peak_rss_mb(gateway)?)
}

fn flood(server: SocketAddr) -> Flood {
    Flood {
        server,
        connections: 10,
        in_flight: 500,
        messages: MESSAGES,
        payload_bytes: 128,
        noise: false,
        rate: None,
        topic_root: "load".into(),
        deadline: Duration::from_secs(120),
    }
}

#[derive(Default)]
struct Rounds {
    ours: Vec<f64>,
    theirs: Vec<f64>,
    our_cpu: Vec<f64>,
    their_cpu: Vec<f64>,
}

impl Rounds {
    fn add(&mut self, ours: &Flooded, theirs: &Flooded, our_cpu: f64, their_cpu: f64) {
        self.ours.push(ours.per_second());
        self.theirs.push(theirs.per_second());
        self.our_cpu.push(our_cpu / ours.acknowledged as f64 * 1e6);
        self.their_cpu.push(their_cpu / theirs.acknowledged as f64 * 1e6);
    }

    fn report(mut self, peak: f64) -> Result<bool> {
        let ours = percentile(&mut self.ours, 0.5);
        let theirs = percentile(&mut self.theirs, 0.5);
        let mut report = Report::new("mqtt");
        report.figure("durable_acknowledged_per_second", ours);
        report.figure("mosquitto_acknowledged_per_second", theirs);
        report.figure("cpu_seconds_per_million", percentile(&mut self.our_cpu, 0.5));
        report.figure("mosquitto_cpu_seconds_per_million", percentile(&mut self.their_cpu, 0.5));
        report.figure("peak_rss_mb", peak);
        report.at_least("ratio_to_mosquitto_without_persistence", ours / theirs, 1.0);
        Ok(report.finish(wants_json()))
    }
}
