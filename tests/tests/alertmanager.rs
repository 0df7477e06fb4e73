//! An alert reaches a real Alertmanager once: a restart of central does not announce it again.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use serde_json::Value;
use tidegate_tests::http_load::client;
use tidegate_tests::plant::{Options, Plant};
use tidegate_tests::program::{self, Program};
use tidegate_tests::simple::{self, STREAM};
use tidegate_tests::{ports, wait};

const DEADLINE: Duration = Duration::from_secs(60);

type Received = Arc<Mutex<Vec<Value>>>;

/// What Alertmanager tells people: this receiver is its webhook.
async fn receiver() -> anyhow::Result<(SocketAddr, Received)> {
    let received = Received::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let take = |State(received): State<Received>, Json(message): Json<Value>| async move {
        received.lock().unwrap_or_else(PoisonError::into_inner).push(message);
    };
    let app = Router::new().route("/", post(take)).with_state(Arc::clone(&received));
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok((address, received))
}

async fn alertmanager(
    folder: &std::path::Path,
    webhook: SocketAddr,
) -> anyhow::Result<(SocketAddr, Program)> {
    let address = ports::free();
    let config = folder.join("alertmanager.yml");
    std::fs::write(
        &config,
        format!(
            "route: {{ receiver: test, group_by: ['...'], group_wait: 0s, group_interval: 1s, repeat_interval: 4h }}\n\
             receivers:\n  - name: test\n    webhook_configs:\n      - {{ url: 'http://{webhook}/', send_resolved: true }}\n"
        ),
    )?;
    let command = program::of_system(&["prometheus-alertmanager", "alertmanager"])?;
    let args = [
        format!("--config.file={}", config.display()),
        format!("--storage.path={}", folder.join("alertmanager-data").display()),
        format!("--web.listen-address={address}"),
        "--cluster.listen-address=".to_owned(),
    ];
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let program = Program::start("alertmanager", &command, &args, &folder.join("alertmanager.log"))?;
    wait::until_true("Alertmanager ready", DEADLINE, async || {
        client().get(format!("http://{address}/-/ready")).send().await.is_ok_and(|a| a.status().is_success())
    })
    .await
    .with_context(|| program.log_tail())?;
    Ok((address, program))
}

/// The alert as Alertmanager has it: how often it was told about it shows in `updatedAt`.
async fn alert(address: SocketAddr) -> Option<Value> {
    let answer = client().get(format!("http://{address}/api/v2/alerts")).send().await.ok()?;
    let alerts: Vec<Value> = serde_json::from_str(&answer.text().await.ok()?).ok()?;
    alerts.into_iter().find(|alert| alert["labels"]["alertname"] == "TooHigh")
}

fn firing(received: &Received) -> Vec<Value> {
    of_status(received, "firing")
}

fn of_status(received: &Received, status: &str) -> Vec<Value> {
    let received = received.lock().unwrap_or_else(PoisonError::into_inner);
    received.iter().filter(|message| message["status"] == status).cloned().collect()
}

/// A webhook of central's that is broken for its first requests.
async fn broken_at_first(failures: usize) -> anyhow::Result<(SocketAddr, Received)> {
    let received = Received::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let take = move |State(received): State<Received>, Json(message): Json<Value>| async move {
        let mut received = received.lock().unwrap_or_else(PoisonError::into_inner);
        received.push(message);
        if received.len() > failures { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR }
    };
    let app = Router::new().route("/", post(take)).with_state(Arc::clone(&received));
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok((address, received))
}

/// A statement with all three placeholders, whose alert ends by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alert_ends_and_a_broken_webhook_is_tried_again() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (people, told) = receiver().await?;
    let (manager, _manager_program) = alertmanager(folder.path(), people).await?;
    let (webhook, posted) = broken_at_first(2).await?;
    let rules = format!(
        "groups:\n  - name: test\n    every: 500ms\n    rules:\n      - alert: TooHigh\n        sql: >-\n          \
         select device, value from {STREAM} where {{new}} and value > 50\n          \
         and time < {{now}} and {{since}} < {{now}} order by value\n        keep-firing-for: 2s\n"
    );
    let options = Options {
        rules,
        alertmanagers: vec![format!("http://{manager}")],
        webhooks: vec![format!("http://{webhook}/")],
        ..simple::options()
    };
    let plant = Plant::start(&options).await?;
    simple::send(&plant, "press", simple::payloads(0, 101, 0)).await?;

    // Alertmanager tells people of both, in this order.
    for status in ["firing", "resolved"] {
        wait::until_true(status, DEADLINE, async || !of_status(&told, status).is_empty())
            .await
            .with_context(|| plant.logs())?;
    }
    wait::until_true("the webhook hears of both", DEADLINE, async || {
        !of_status(&posted, "resolved").is_empty()
    })
    .await
    .with_context(|| plant.logs())?;
    let firing = firing(&posted);
    ensure!(firing.len() == 3, "two failures and a success: {firing:?}");
    ensure!(firing.iter().all(|message| message["id"] == firing[0]["id"]), "one transition: {firing:?}");
    ensure!(firing[0]["labels"]["device"] == "press" && firing[0]["value"] == 100.0, "{firing:?}");
    // The receiver has the request before central has the answer.
    let receiver = format!("webhook:{webhook}");
    let accepted = [("receiver", receiver.as_str()), ("outcome", "accepted")];
    wait::until_true("the webhook's answers are counted", DEADLINE, async || {
        plant.central_metrics().await.is_ok_and(|m| m.sum("tidegate_notifications_total", &accepted) >= 2.0)
    })
    .await?;
    let metrics = plant.central_metrics().await?;
    let outcome = |outcome| {
        metrics.sum("tidegate_notifications_total", &[("receiver", &receiver), ("outcome", outcome)])
    };
    // Each transition once, whatever it took.
    ensure!(outcome("accepted") == 2.0, "{} transitions counted as accepted", outcome("accepted"));
    ensure!(outcome("failed") == 2.0, "{} failures counted", outcome("failed"));
    ensure!(outcome("refused") == 0.0 && metrics.sum("tidegate_notifications_dropped_total", &[]) == 0.0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alert_is_told_once_also_across_a_restart() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (webhook, received) = receiver().await?;
    let (manager, _manager_program) = alertmanager(folder.path(), webhook).await?;
    let rules = format!(
        "groups:\n  - name: test\n    every: 1s\n    rules:\n      - alert: TooHigh\n        sql: >-\n          \
         select device, max(value) as value from {STREAM} group by device having value > 50\n        for: 0s\n        \
         labels: {{ severity: page }}\n        annotations: {{ summary: \"{{{{ device }}}} reached {{{{ value }}}}\" }}\n"
    );
    let options = Options { rules, alertmanagers: vec![format!("http://{manager}")], ..simple::options() };
    let mut plant = Plant::start(&options).await?;
    simple::send(&plant, "press", simple::payloads(0, 101, 0)).await?;

    let first = wait::until("the alert in Alertmanager", DEADLINE, async || alert(manager).await)
        .await
        .with_context(|| plant.logs())?;
    ensure!(first["labels"]["device"] == "press" && first["labels"]["severity"] == "page", "{first}");
    ensure!(first["annotations"]["summary"] == "press reached 100", "{first}");
    wait::until_true("the notification", DEADLINE, async || !firing(&received).is_empty()).await?;

    plant.kill_central();
    plant.start_central()?;
    plant.central_ready().await?;
    // Central tells Alertmanager again that the alert still fires: that it was heard shows in `updatedAt`.
    let again = wait::until("told again after the restart", Duration::from_secs(180), async || {
        alert(manager).await.filter(|now| now["updatedAt"] != first["updatedAt"])
    })
    .await
    .with_context(|| plant.logs())?;
    ensure!(again["startsAt"] == first["startsAt"], "another start: {first} {again}");
    ensure!(again["fingerprint"] == first["fingerprint"], "another alert: {first} {again}");
    // Alertmanager's groups look every second whether there is something new to tell.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let told = firing(&received);
    ensure!(told.len() == 1, "people were told {} times: {told:?}", told.len());
    Ok(())
}
