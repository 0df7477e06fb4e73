//! ClickHouse over its HTTP interface, with the official client: any server's URL, or the embedded one that [`process`]
//! keeps running.
//!
//! Invariants: statements name their tables in full, so that nothing depends on a server's idea of a current database;
//! every statement has a time-out; an error says whether the server has answered, since only then it is known that it is
//! no longer at work.
//!
//! It never writes rows: that is the sink's work.

mod error;
pub mod process;
mod query;
mod tables;
mod views;

pub use error::ClickhouseError;
pub use query::Reader;
pub use tables::{QUARANTINE, TableError, Tables, quoted, text_literal};
pub use views::{Look, TableName, View, ViewSource, Views};

use clickhouse::{Client, Compression, RowOwned, RowRead};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time::timeout};

/// Who asks a server, and for what database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// User.
    pub user: String,
    /// Password; empty for none.
    pub password: String,
    /// The database of all tables.
    pub database: String,
}

/// A server. Clones are the same one, and share its connections.
#[derive(Clone)]
pub struct ClickHouse {
    account: Arc<Account>,
    url: watch::Receiver<Option<String>>,
    client: Arc<Mutex<Option<(String, Client)>>>,
}

impl std::fmt::Debug for ClickHouse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClickHouse")
            .field("url", &*self.url.borrow())
            .field("database", &self.account.database)
            .finish_non_exhaustive()
    }
}

impl ClickHouse {
    /// The server at a URL such as `http://127.0.0.1:8123`.
    pub fn at(url: &str, account: Account) -> Self {
        // A dropped sender leaves the last value readable for ever.
        Self::following(watch::channel(Some(url.to_owned())).1, account)
    }

    /// A server whose URL may change, and be unknown for a while ([`process::Embedded::url`]).
    pub fn following(url: watch::Receiver<Option<String>>, account: Account) -> Self {
        Self { account: Arc::new(account), url, client: Arc::default() }
    }

    /// The database of all tables.
    pub fn database(&self) -> &str {
        &self.account.database
    }

    /// Where the server is now, if it is anywhere.
    pub fn url(&self) -> Option<String> {
        self.url.borrow().clone()
    }

    /// A client for the server where it is now.
    pub fn client(&self) -> Result<Client, ClickhouseError> {
        let url = self.url().ok_or(ClickhouseError::NotRunning)?;
        let mut cached = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, client)) = cached.as_ref()
            && *known == url
        {
            return Ok(client.clone());
        }
        let client = Client::default()
            .with_url(&url)
            .with_user(&self.account.user)
            .with_password(&self.account.password)
            .with_product_info("tidegate-central", env!("CARGO_PKG_VERSION"))
            // Blocks are compact already, and the embedded server is on this machine.
            .with_compression(Compression::None);
        *cached = Some((url, client.clone()));
        Ok(client)
    }

    /// Runs a statement that gives no rows.
    pub async fn execute(&self, sql: &str, limit: Duration) -> Result<(), ClickhouseError> {
        let run = self.client()?.query_raw(sql).execute();
        timeout(limit, run).await.map_err(|_| ClickhouseError::Timeout(limit))?.map_err(Into::into)
    }

    /// Runs a statement and reads its rows.
    pub async fn rows<T: RowOwned + RowRead>(
        &self,
        sql: &str,
        limit: Duration,
    ) -> Result<Vec<T>, ClickhouseError> {
        let run = self.client()?.query_raw(sql).fetch_all::<T>();
        timeout(limit, run).await.map_err(|_| ClickhouseError::Timeout(limit))?.map_err(Into::into)
    }

    /// Whether the server answers.
    pub async fn ping(&self, limit: Duration) -> Result<(), ClickhouseError> {
        self.rows::<u8>("SELECT 1", limit).await.map(drop)
    }
}
