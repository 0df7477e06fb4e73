//! The broker source against a real mosquitto with a persistent session: the gateway is killed while messages come, the
//! broker is stopped and started again; everything arrives once.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use tidegate_tests::plant::{Options, Plant};
use tidegate_tests::program::{self, Program};
use tidegate_tests::simple::{self, STREAM};
use tidegate_tests::{ports, wait};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(60);

struct Broker {
    address: SocketAddr,
    folder: tempfile::TempDir,
}

impl Broker {
    fn prepare() -> anyhow::Result<Self> {
        let broker = Self { address: ports::free(), folder: tempfile::tempdir()? };
        let folder = broker.folder.path().display().to_string();
        let port = broker.address.port();
        let config = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {folder}/\n\
             max_queued_messages 0\nmax_inflight_messages 100\nautosave_interval 1\nuser root\n"
        );
        std::fs::write(broker.folder.path().join("mosquitto.conf"), config)?;
        Ok(broker)
    }

    async fn start(&self) -> anyhow::Result<Program> {
        let mosquitto = program::of_system(&["mosquitto"])?;
        let config = self.path("mosquitto.conf");
        let log = self.path("mosquitto.log");
        let mut program = Program::start("mosquitto", &mosquitto, &["-c", &config], Path::new(&log))?;
        let address = self.address;
        wait::until_true("mosquitto listens", DEADLINE, async || {
            tokio::net::TcpStream::connect(address).await.is_ok()
        })
        .await?;
        program.expect_running()?;
        Ok(program)
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

async fn publish(broker: &Broker, from: usize, count: usize) -> anyhow::Result<()> {
    // A session of its own each time: the publisher is not what is tested.
    let mut device = simple::device("press", simple::payloads(from, count, 0));
    device.name = format!("publisher-{from}");
    let run = device.run(broker.address, std::sync::Arc::default(), CancellationToken::new());
    tokio::time::timeout(DEADLINE, run).await.context("mosquitto does not acknowledge")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_persistent_session_survives_both_sides() -> anyhow::Result<()> {
    let broker = Broker::prepare()?;
    let mut mosquitto = broker.start().await?;
    let mut streams = simple::stream(&["plc"]);
    // mosquitto hands a message out again with DUP; where a redelivery cannot be told for certain, the key can.
    streams.push_str("dedup = { key = [\"device\", \"time\"], window = \"1 h\" }\n");
    let sources = format!(
        "[source.plc]\nkind = \"mqtt\"\nurl = \"mqtt://{}\"\nsubscribe = [{{ topic = \"t/+/data\", qos = 1 }}]\n",
        broker.address
    );
    let options = Options { streams, sources, ..Options::default() };
    let mut plant = Plant::start(&options).await?;
    // The subscription is there before the first message.
    wait::until_true("subscribed", DEADLINE, async || {
        plant.gateway_metrics().await.is_ok_and(|m| m.sum("tidegate_broker_connected", &[]) == 1.0)
    })
    .await?;

    publish(&broker, 0, 2_000).await?;
    plant.kill_gateway();
    // While the gateway is away, its session at the broker collects.
    publish(&broker, 2_000, 2_000).await?;
    plant.start_gateway()?;
    plant.gateway_ready().await?;
    plant.rows(STREAM, 4_000, DEADLINE).await?;

    mosquitto.stop(DEADLINE)?;
    let mut mosquitto = broker.start().await?;
    wait::until_true("subscribed again", DEADLINE, async || {
        plant.gateway_metrics().await.is_ok_and(|m| m.sum("tidegate_broker_connected", &[]) == 1.0)
    })
    .await?;
    publish(&broker, 4_000, 1_000).await?;
    plant.rows(STREAM, 5_000, DEADLINE).await?;
    let values = simple::values(&plant, "press").await?;
    ensure!(values == (0..5_000).map(f64::from).collect::<Vec<_>>(), "{} values", values.len());
    mosquitto.expect_running()
}
