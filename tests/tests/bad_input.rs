//! Bad input, each with what has to become of it. Nothing vanishes, nothing crashes, and good input passes all the while.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use reqwest::StatusCode;
use tidegate_tests::http_load::client;
use tidegate_tests::plant::{GATEWAY, Plant};
use tidegate_tests::program;
use tidegate_tests::simple::{self, STREAM};
use tidegate_tests::wait;
use tidegate_tests::wire::{Answer, Client};

const DEADLINE: Duration = Duration::from_secs(60);

/// Payloads that are accepted, since losing them would be worse, and become dead letters with this reason.
fn dead_letters() -> Vec<(&'static str, String)> {
    let deep = "[".repeat(200) + &"]".repeat(200);
    let future_s = 4_000_000_000_u64;
    vec![
        ("json", "not json".to_owned()),
        ("json", r#"{"ts":1735689600,"value":NaN}"#.to_owned()),
        ("json", r#"{"ts":1735689600,"value":1"#.to_owned()),
        ("json", String::new()),
        ("shape", "17".to_owned()),
        ("depth", format!(r#"{{"ts":1735689600,"value":1,"more":{deep}}}"#)),
        ("number", r#"{"ts":1735689600,"value":1e400}"#.to_owned()),
        ("column", r#"{"ts":1735689600,"value":"warm"}"#.to_owned()),
        ("time", r#"{"value":1}"#.to_owned()),
        ("time", r#"{"ts":"yesterday","value":1}"#.to_owned()),
        ("time-range", r#"{"ts":"1850-01-01T00:00:00Z","value":1}"#.to_owned()),
        ("time-range", r#"{"ts":"2300-01-01T00:00:00Z","value":1}"#.to_owned()),
        ("future", format!(r#"{{"ts":{future_s},"value":1}}"#)),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_decode_is_a_dead_letter_with_payload_and_reason() -> anyhow::Result<()> {
    let plant = Plant::start(&simple::options()).await?;
    let mut client = Client::connect(plant.mqtt, "bad").await?;
    let letters = dead_letters();
    for (reason, payload) in &letters {
        let answer = client.publish("t/bad/data", payload.as_bytes()).await?;
        ensure!(matches!(answer, Answer::Acknowledged(_)), "{reason} {payload:?}: {answer:?}");
    }
    let not_utf8 = client.publish("t/bad/data", b"\xff\xfe").await?;
    ensure!(matches!(not_utf8, Answer::Acknowledged(_)), "not UTF-8: {not_utf8:?}");
    // A little more than a reading may have: refused, the device would send it for ever.
    let large = vec![b'x'; (512 << 10) + 1];
    let answer = client.publish("t/bad/data", &large).await?;
    ensure!(matches!(answer, Answer::Acknowledged(_)), "too large: {answer:?}");
    // Text that would be dangerous in SQL is text.
    let texts = ["; drop table telemetry", "two\n\nlines; drop table telemetry", "'\"\\`"];
    for (index, text) in texts.iter().enumerate() {
        // What no column is declared for is stepped over, also where it bears the name of something else.
        let device = serde_json::json!({ "id": index });
        let payload = serde_json::json!({ "ts": 1_735_689_600 + index, "value": index, "note": text, "device": device });
        client.publish("t/sql/data", payload.to_string().as_bytes()).await?;
    }

    plant.rows("dead_letters", letters.len() as u64 + 2, DEADLINE).await?;
    let mut found = simple::dead_letters(&plant).await?;
    let cut = found.iter().position(|(reason, _)| reason == "too-large").context("none is too large")?;
    let (_, beginning) = found.remove(cut);
    let is_beginning = beginning.len() > 1_000 && beginning.bytes().filter(|b| *b == b'x').count() > 1_000;
    ensure!(is_beginning, "{} bytes: {:.100}", beginning.len(), beginning);
    let mut wanted: BTreeMap<(String, String), i64> = BTreeMap::new();
    for (reason, payload) in letters {
        *wanted.entry((reason.to_owned(), payload)).or_default() += 1;
    }
    *wanted.entry(("utf8".to_owned(), "//4=".to_owned())).or_default() += 1;
    for (reason, payload) in found {
        *wanted.entry((reason, payload)).or_default() -= 1;
    }
    let wrong: Vec<_> = wanted.iter().filter(|(_, count)| **count != 0).collect();
    ensure!(wrong.is_empty(), "missing (positive) or unexpected (negative): {wrong:#?}");

    plant.rows(STREAM, texts.len() as u64, DEADLINE).await?;
    let rows =
        plant.api.query(&format!("select note from {STREAM} where device = 'sql' order by time")).await?;
    let notes: Vec<&str> = rows.iter().filter_map(|row| row.first()?.as_str()).collect();
    ensure!(notes == texts, "{notes:?}");
    let undeclared =
        plant.gateway_metrics().await?.sum("tidegate_undeclared_fields_total", &[("stream", STREAM)]);
    // And the one beside "depth" of the dead letters above.
    ensure!(undeclared >= texts.len() as f64, "{undeclared} undeclared fields counted");
    let audit = plant.api.audit().await?;
    ensure!(audit["lost"] == 0 && audit["duplicated"] == 0, "{audit}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_message_ends_its_connection_only() -> anyhow::Result<()> {
    let mut plant = Plant::prepare(&simple::options())?;
    plant.start_gateway()?;
    plant.gateway_listens().await?;
    let mut good = Client::connect(plant.mqtt, "good").await?;
    let mut payload = simple::payloads(0, 1, 0)[0].clone();

    // A topic that no stream wants is acknowledged and counted.
    let answer = good.publish("nobody/wants/this", &payload).await?;
    ensure!(matches!(answer, Answer::Acknowledged(_)), "{answer:?}");
    let metrics = plant.gateway_metrics().await?;
    ensure!(metrics.sum("tidegate_ingest_unmatched_total", &[]) == 1.0, "not counted");

    // The longest topic that MQTT knows is a topic; an empty one is a mistake of the protocol.
    let long = "t/".to_owned() + &"x".repeat(65_528) + "/data";
    let mut client = Client::connect(plant.mqtt, "long").await?;
    let answer = client.publish(&long, &payload).await?;
    ensure!(matches!(answer, Answer::Acknowledged(_)), "a long topic: {answer:?}");
    let mut client = Client::connect(plant.mqtt, "empty").await?;
    ensure!(client.publish("", &payload).await? == Answer::Closed, "an empty topic was taken");

    // Ten megabytes are no reading. Either the connection ends, or the message is acknowledged and accounted for.
    let mut client = Client::connect(plant.mqtt, "large").await?;
    payload.resize(10 << 20, b' ');
    let before = plant.gateway_metrics().await?.sum("tidegate_ingest_too_large_total", &[]);
    let answer = client.publish("t/large/data", &payload).await?;
    let counted = plant.gateway_metrics().await?.sum("tidegate_ingest_too_large_total", &[]) > before;
    ensure!(answer == Answer::Closed || counted, "{answer:?}, and nobody counted it");

    // Garbage instead of packets.
    let mut client = Client::connect(plant.mqtt, "garbage").await?;
    ensure!(client.exchange(&[0xff; 64]).await? == Answer::Closed, "garbage was taken");

    // Whoever behaves has noticed nothing.
    let answer = good.publish("t/good/data", &simple::payloads(0, 1, 0)[0]).await?;
    ensure!(matches!(answer, Answer::Acknowledged(_)), "{answer:?}");
    plant.gateway_listens().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_answers_say_what_is_wrong() -> anyhow::Result<()> {
    let mut plant = Plant::prepare(&simple::options())?;
    plant.start_gateway()?;
    plant.gateway_listens().await?;
    let base = format!("http://{}/v1/ingest", plant.http);
    let post = async |path: &str, body: Vec<u8>| -> anyhow::Result<(StatusCode, String)> {
        let answer = client().post(format!("{base}/{path}?device=web")).body(body).send().await?;
        Ok((answer.status(), answer.text().await?))
    };
    let good = simple::payloads(0, 3, 0);
    let (status, text) = post(STREAM, good.join(&b'\n')).await?;
    ensure!(status == StatusCode::OK && text.contains("\"accepted\":3"), "{status} {text}");
    let (status, text) = post(STREAM, b"{\"ts\":1}\nnot json\n".to_vec()).await?;
    ensure!(status == StatusCode::BAD_REQUEST && text.contains("line 2"), "{status} {text}");
    let (status, _) = post("nosuchstream", good[0].clone()).await?;
    ensure!(status == StatusCode::NOT_FOUND, "{status}");
    let (status, text) = too_large(plant.http).await?;
    ensure!(status == "413", "{status} {text}");
    let (status, text) = post(STREAM, vec![0xff, 0xfe]).await?;
    ensure!(status == StatusCode::BAD_REQUEST, "{status} {text}");
    Ok(())
}

/// Posts ten megabytes and reads the answer whatever becomes of the rest of the body: the server may answer and close
/// before it has read it.
async fn too_large(http: std::net::SocketAddr) -> anyhow::Result<(String, String)> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (mut read, mut write) = tokio::net::TcpStream::connect(http).await?.into_split();
    let head = format!(
        "POST /v1/ingest/{STREAM}?device=web HTTP/1.1\r\nHost: {http}\r\nContent-Length: {}\r\n\r\n",
        10 << 20
    );
    let sending = tokio::spawn(async move {
        write.write_all(head.as_bytes()).await?;
        write.write_all(&vec![b' '; 10 << 20]).await
    });
    let mut answer = vec![0; 4_096];
    let length = tokio::time::timeout(DEADLINE, read.read(&mut answer)).await.context("no answer")??;
    sending.abort();
    let text = String::from_utf8_lossy(&answer[..length]).into_owned();
    Ok((text.split(' ').nth(1).unwrap_or_default().to_owned(), text))
}

/// A WebAssembly component of these sections, each shorter than 128 bytes.
fn component(sections: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
    for (id, body) in sections {
        bytes.extend([*id, body.len() as u8]);
        bytes.extend(*body);
    }
    bytes
}

/// It imports an instance without content by this name.
fn component_that_imports(name: &str) -> Vec<u8> {
    let import = [&[1, 0, name.len() as u8], name.as_bytes(), &[5, 0]].concat();
    component(&[(7, &[1, 0x42, 0]), (10, &import)])
}

/// Its core module asks for a memory of 16,384 pages.
fn component_with_1_gib() -> Vec<u8> {
    let core = [&b"\0asm\x01\0\0\0"[..], &[5, 5, 1, 0, 0x80, 0x80, 1]].concat();
    component(&[(1, &core)])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modules_that_are_none_are_refused_with_the_reason() -> anyhow::Result<()> {
    let mut plant = Plant::prepare(&simple::options())?;
    plant.start_gateway()?;
    plant.gateway_listens().await?;
    let threshold = std::fs::read(program::module("threshold")?)?;
    // A component of a world that the host does not offer.
    let rows = std::fs::read(program::module("bench-rows")?)?;
    let none = "not a valid WebAssembly component";
    let cases = [
        ("truncated", threshold[..threshold.len() / 2].to_vec(), none),
        ("empty", Vec::new(), none),
        ("text", b"this is no module".to_vec(), none),
        ("world", rows, "tidegate:bench-rows/rows-api@0.1.0"),
        ("wasi", component_that_imports("wasi:cli/environment@0.2.0"), "wasi:cli/environment@0.2.0"),
        ("memory", component_with_1_gib(), "1073741824"),
    ];
    for (name, bytes, reason) in cases {
        let url = format!("http://{}/v1/modules/{name}/0.1.0", plant.admin);
        let answer = client().put(url).body(bytes).send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        ensure!(status.is_client_error() && text.contains(reason), "{name}: {status} {text}");
    }
    let url = format!("http://{}/v1/modules/threshold/0.1.0", plant.admin);
    let answer = client().put(url).body(threshold).send().await?;
    let (status, text) = (answer.status(), answer.text().await?);
    ensure!(status.is_success(), "a good module: {status} {text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_that_changes_its_type_is_refused_and_its_data_kept() -> anyhow::Result<()> {
    let mut plant = Plant::start(&simple::options()).await?;
    simple::send(&plant, "press", simple::payloads(0, 10, 0)).await?;
    plant.rows(STREAM, 10, DEADLINE).await?;

    plant.kill_gateway();
    let mut changed = simple::options();
    changed.streams = changed.streams.replace("value = \"float64\"", "value = \"string\"");
    plant.configure_gateway(&changed)?;
    plant.start_gateway()?;
    plant.gateway_listens().await?;
    wait::until_true("the stream refused", DEADLINE, async || {
        plant.central_metrics().await.is_ok_and(|m| m.sum("tidegate_link_streams_refused_total", &[]) > 0.0)
    })
    .await
    .with_context(|| plant.logs())?;
    let log = plant.logs().to_lowercase();
    ensure!(log.contains("float64") && log.contains("string"), "the error names not both types:\n{log}");
    ensure!(plant.api.count(STREAM).await? == 10, "rows changed");
    ensure!(log.contains(GATEWAY), "{log}");
    Ok(())
}
