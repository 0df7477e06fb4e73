//! The broker source against a real mosquitto with a persistent session: the gateway is killed while messages come, the
//! broker is killed, too, with messages waiting on its disk; everything arrives once.

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
             max_queued_messages 0\nmax_inflight_messages 100\nautosave_on_changes true\nautosave_interval 1\nuser root\n"
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

    /// Waits until the broker has this message on its disk.
    async fn saved(&self, payload: &[u8]) -> anyhow::Result<()> {
        let file = self.path("mosquitto.db");
        wait::until_true("the broker has saved its messages", DEADLINE, async || {
            std::fs::read(&file).is_ok_and(|bytes| bytes.windows(payload.len()).any(|part| part == payload))
        })
        .await
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
    // mosquitto hands a message out again with DUP; where a redelivery cannot be told for certain, the key can.
    // A killed mosquitto forgets acknowledgements and sends what it has again without DUP: only the key helps there.
    survives("dedup = { key = [\"device\", \"time\"], window = \"1 h\" }\n", true).await
}

/// The payloads carry their time, so that a redelivery is known by its bytes, DUP and packet id alone. The broker
/// lives: one that forgets what was acknowledged is another matter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readings_with_their_time_need_no_dedup_key() -> anyhow::Result<()> {
    survives("", false).await
}

async fn survives(dedup: &str, kill_broker: bool) -> anyhow::Result<()> {
    let broker = Broker::prepare()?;
    let mut mosquitto = broker.start().await?;
    let mut streams = simple::stream(&["plc"]);
    streams.push_str(dedup);
    let sources = format!(
        "[source.plc]\nkind = \"mqtt\"\nurl = \"mqtt://{}\"\nsubscribe = [{{ topic = \"t/+/data\", qos = 1 }}]\n",
        broker.address
    );
    let options = Options { streams, sources, ..Options::default() };
    let mut plant = Plant::start(&options).await?;
    // The subscription is there before the first message.
    subscribed(&plant).await?;

    publish(&broker, 0, 2_000).await?;
    plant.kill_gateway();
    // While the gateway is away, its session at the broker collects.
    publish(&broker, 2_000, 2_000).await?;
    plant.start_gateway()?;
    plant.gateway_ready().await?;
    plant.rows(STREAM, 4_000, DEADLINE).await?;

    if !kill_broker {
        return arrived_once(&plant, 4_000).await;
    }
    // Both are killed while messages wait that only the broker has.
    plant.kill_gateway();
    publish(&broker, 4_000, 500).await?;
    broker.saved(&simple::payloads(4_499, 1, 0)[0]).await?;
    mosquitto.kill();
    let mut mosquitto = broker.start().await?;
    plant.start_gateway()?;
    plant.gateway_ready().await?;
    plant.rows(STREAM, 4_500, DEADLINE).await?;

    // The gateway finds its broker again by itself.
    mosquitto.kill();
    let mut mosquitto = broker.start().await?;
    subscribed(&plant).await?;
    publish(&broker, 4_500, 500).await?;
    plant.rows(STREAM, 5_000, DEADLINE).await?;
    arrived_once(&plant, 5_000).await?;
    mosquitto.expect_running()
}

async fn arrived_once(plant: &Plant, count: u32) -> anyhow::Result<()> {
    let values = simple::values(plant, "press").await?;
    ensure!(values == (0..count).map(f64::from).collect::<Vec<_>>(), "{} values", values.len());
    let audit = plant.api.audit().await?;
    ensure!(audit["lost"] == 0 && audit["duplicated"] == 0, "{audit}");
    Ok(())
}

async fn subscribed(plant: &Plant) -> anyhow::Result<()> {
    wait::until_true("subscribed", DEADLINE, async || {
        plant.gateway_metrics().await.is_ok_and(|m| m.sum("tidegate_broker_connected", &[]) == 1.0)
    })
    .await
}
