//! `cargo xtask demo [--kafka] [--json] [--keep]`: the main job on real data. Exits 1 when an event was lost, doubled or is not
//! accounted for.

use std::process::ExitCode;

use clap::Parser;
use tidegate_tests::demo::{self, Settings};
use tidegate_tests::kafka::Kafka;

/// The main job on real data, with crashes in the middle.
#[derive(Debug, Parser)]
struct Args {
    /// Print one JSON object instead of the report
    #[arg(long)]
    json: bool,
    /// Leave everything running until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Central's log in a real Apache Kafka, which is started beside it
    #[arg(long)]
    kafka: bool,
    /// Readings per machine
    #[arg(long, default_value_t = usize::MAX)]
    readings: usize,
    /// Kill nothing
    #[arg(long)]
    gentle: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    // A signal ends the wait here, so that the installation is taken down like at any other end.
    let stopped = stop();
    let work = async {
        let kafka = match args.kafka {
            true => Some(Kafka::start(&[]).await?),
            false => None,
        };
        let log = kafka.as_ref().map(Kafka::central_log).unwrap_or_default();
        let settings = Settings { readings: args.readings, kills: !args.gentle };
        let (report, plant) = demo::run(settings, &log).await?;
        if args.json {
            eprintln!("{report}");
            println!("{}", report.json());
        } else {
            println!("{report}");
        }
        if args.keep {
            eprintln!("everything keeps running; Ctrl-C ends it");
            std::future::pending::<()>().await;
        }
        drop(plant);
        drop(kafka);
        anyhow::Ok(report.holds())
    };
    tokio::select! {
        result = work => match result {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("demo: {error:#}");
                ExitCode::FAILURE
            }
        },
        () = stopped => {
            eprintln!("stopping");
            ExitCode::from(130)
        }
    }
}

async fn stop() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut terminate), Ok(mut interrupt)) => tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        },
        _ => std::future::pending().await,
    }
}
