//! A receiver of alerts: a small HTTP server that remembers every notification.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The receiver; it listens until it is dropped.
pub struct Webhook {
    address: SocketAddr,
    received: Arc<Mutex<Vec<Value>>>,
    server: JoinHandle<()>,
}

impl Webhook {
    /// Listens on a free port.
    pub async fn listen() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let received: Arc<Mutex<Vec<Value>>> = Arc::default();
        let app = Router::new().route("/", post(take)).with_state(Arc::clone(&received));
        let server = tokio::spawn(async move {
            // It ends with its task; a listener that breaks shows as alerts that do not come.
            let _ = axum::serve(listener, app).await;
        });
        Ok(Self { address, received, server })
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Everything received, in order.
    pub fn received(&self) -> Vec<Value> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Different alerts that began to fire: a repeated notification has the same id.
    pub fn fired(&self) -> usize {
        let received = self.received();
        let firing = received.iter().filter(|alert| alert["status"] == "firing");
        firing.filter_map(|alert| alert["id"].as_str()).collect::<BTreeSet<_>>().len()
    }

    /// Alerts that were told twice under different ids: the same labels, firing since the same moment.
    pub fn doubled(&self) -> usize {
        let mut ids: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for alert in self.received().iter().filter(|alert| alert["status"] == "firing") {
            let what = format!("{} {}", alert["labels"], alert["active_since"]);
            ids.entry(what).or_default().insert(alert["id"].to_string());
        }
        ids.values().map(|ids| ids.len() - 1).sum()
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn take(State(received): State<Arc<Mutex<Vec<Value>>>>, Json(alert): Json<Value>) {
    received.lock().unwrap_or_else(PoisonError::into_inner).push(alert);
}
