//! Requests to central's and a gateway's HTTP interfaces.

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::Value;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(120);

/// Where central answers.
#[derive(Debug, Clone, Args)]
pub(crate) struct Central {
    /// Address of central's API
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9465")]
    central: String,
}

impl Central {
    pub(crate) fn api(&self) -> anyhow::Result<Api> {
        Api::new(&self.central)
    }
}

/// One HTTP interface.
#[derive(Debug)]
pub(crate) struct Api {
    base: String,
    client: reqwest::Client,
}

impl Api {
    pub(crate) fn new(base: &str) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder().timeout(TIMEOUT).no_proxy().build()?;
        Ok(Self { base: base.trim_end_matches('/').to_owned(), client })
    }

    /// The same interface, for answers that take longer.
    pub(crate) fn patient(self, timeout: Duration) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder().timeout(timeout).no_proxy().build()?;
        Ok(Self { client, ..self })
    }

    pub(crate) async fn get(&self, path: &str, query: &[(&str, String)]) -> anyhow::Result<Value> {
        self.send(self.client.get(self.url(path)).query(query)).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.send(self.client.post(self.url(path)).json(body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: Vec<u8>) -> anyhow::Result<Value> {
        self.send(self.client.put(self.url(path)).body(body)).await
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// Sends it; an answer that is not a success is an error with what the other side says.
    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
        let answer = request.send().await.with_context(|| format!("{} does not answer", self.base))?;
        let status = answer.status();
        let text = answer.text().await.with_context(|| format!("{} broke off", self.base))?;
        if status.is_success() {
            return serde_json::from_str(&text)
                .with_context(|| format!("{} did not answer in JSON", self.base));
        }
        let said = serde_json::from_str::<Value>(&text).ok();
        let said = said.as_ref().and_then(|v| v["error"].as_str()).unwrap_or(text.trim());
        bail!("{}: {status}: {said}", self.base)
    }
}
