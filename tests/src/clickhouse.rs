//! A ClickHouse server without a password, asked over HTTP as anybody would ask it: nothing of central is between.

use std::net::SocketAddr;

use anyhow::{Context, ensure};

use crate::http_load::client;

/// Central's database.
pub const DATABASE: &str = "tidegate";

/// Runs a statement and gives what the server answers; rows come as tab-separated lines.
pub async fn ask(server: SocketAddr, sql: &str) -> anyhow::Result<String> {
    let answer = client().post(format!("http://{server}/")).body(sql.to_owned()).send().await?;
    let (status, text) = (answer.status(), answer.text().await?);
    ensure!(status.is_success(), "{sql}: {status} {text}");
    Ok(text)
}

/// The fields of each row; none where the table is not there yet, because its stream has had no row.
pub async fn rows<const N: usize>(server: SocketAddr, sql: &str) -> anyhow::Result<Vec<[String; N]>> {
    let text = match ask(server, sql).await {
        Err(error) if error.to_string().contains("UNKNOWN_TABLE") => return Ok(Vec::new()),
        other => other?,
    };
    let fields = |line: &str| -> anyhow::Result<[String; N]> {
        let fields: Vec<String> = line.split('\t').map(str::to_owned).collect();
        fields.try_into().ok().with_context(|| format!("{sql}: {line:?}"))
    };
    text.lines().map(fields).collect()
}
