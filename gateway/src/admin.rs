//! The gateway's own pages, on loopback: `/metrics`, `/healthz`, `/readyz`, `/v1/status`, and the modules.
//!
//! | request | does |
//! | --- | --- |
//! | `GET /v1/status` | streams with their counts and cursors, buffer, link |
//! | `GET /v1/modules` | all stored modules, and which version of a name is active |
//! | `PUT /v1/modules/{name}/{version}` | validates, stores and (unless `?activate=false`) activates the component in the body |
//! | `GET /v1/modules/{name}/{version}` | one module |
//! | `POST /v1/modules/{name}/{version}/activate` | makes a stored version the active one |
//! | `POST /v1/modules/{name}/rollback` | makes the version before the active one active again: the one that was, or the configured one |
//! | `GET /v1/dead-letters?limit=100` | the newest dead letters |
//! | `POST /v1/streams/{name}/flush` | closes the stream's open windows, as a recorded step |
//!
//! A lane takes up a change of modules between two frames, never within one.

use crate::config::{Config, From, Stream};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use daemon::metrics::{Readiness, Registry};
use record::{ModuleRef, StreamSchema};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use udf_host::{Limits, ModuleStore, StoreError, StoredModule, Trial};

/// Gives the status page's content.
pub type Status = Arc<dyn Fn() -> Value + Send + Sync>;

/// What the pages show and change.
pub struct Parts {
    /// Metrics.
    pub registry: Registry,
    /// Conditions of `/readyz`.
    pub readiness: Readiness,
    /// Content of `/v1/status`.
    pub status: Status,
    /// The modules.
    pub modules: Arc<ModuleStore>,
    /// For trying a pushed module with the settings of the streams that use it.
    pub config: Arc<Config>,
    /// Pages about streams: dead letters, the order to flush.
    pub streams: Router,
    /// Counted up when the active version of a module may have changed.
    pub modules_changed: watch::Sender<u64>,
}

/// The part of [`Parts`] that requests about modules need.
struct Modules {
    store: Arc<ModuleStore>,
    config: Arc<Config>,
    changed: watch::Sender<u64>,
}

/// Serves the pages until told to stop.
pub async fn serve(listener: TcpListener, parts: Parts, stop: CancellationToken) -> std::io::Result<()> {
    let Parts { registry, readiness, status, modules, config, streams, modules_changed } = parts;
    let modules = Arc::new(Modules { store: modules, config, changed: modules_changed });
    let app = Router::new()
        .route("/v1/modules", get(list))
        .route("/v1/modules/{name}/{version}", put(push).get(show))
        .route("/v1/modules/{name}/{version}/activate", post(activate))
        .route("/v1/modules/{name}/rollback", post(rollback))
        .layer(DefaultBodyLimit::max(crate::limits::MODULE_BYTES_MAX))
        .with_state(modules)
        .route("/v1/status", get(move || std::future::ready(Json(status()))))
        .merge(streams)
        .merge(daemon::metrics::router(registry, readiness));
    axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// The version of a module that a stream runs: the active one of its name, or, when none was ever activated, the one
/// that the configuration names.
pub fn version_in_use(store: &ModuleStore, configured: &ModuleRef) -> Result<ModuleRef, StoreError> {
    Ok(store.active(&configured.name)?.unwrap_or_else(|| configured.clone()))
}

struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

impl std::convert::From<StoreError> for Refusal {
    fn from(e: StoreError) -> Self {
        let status = match e {
            StoreError::Refused(_) => StatusCode::UNPROCESSABLE_ENTITY,
            StoreError::Exists { .. } | StoreError::NoPrevious(_) => StatusCode::CONFLICT,
            StoreError::Unknown(_) => StatusCode::NOT_FOUND,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, e.to_string())
    }
}

#[derive(Debug, Deserialize)]
struct PushParameters {
    #[serde(default = "yes")]
    activate: bool,
}

fn yes() -> bool {
    true
}

fn module_ref(name: &str, version: &str) -> Result<ModuleRef, Refusal> {
    format!("{name}@{version}").parse().map_err(|e| Refusal(StatusCode::BAD_REQUEST, format!("{e}")))
}

/// The store blocks (files, the compiler program), so it is called from a thread that may.
async fn blocking<T: Send + 'static>(
    modules: &Arc<Modules>,
    work: impl FnOnce(&Modules) -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let modules = modules.clone();
    let done = tokio::task::spawn_blocking(move || work(&modules)).await;
    done.unwrap_or_else(|e| Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, e.to_string())))
}

async fn list(State(modules): State<Arc<Modules>>) -> Result<Json<Value>, Refusal> {
    let all = blocking(&modules, |m| {
        let active = m.store.activations()?;
        let is_active =
            |s: &StoredModule| active.get(&s.module.name).is_some_and(|a| a.version == s.module.version);
        let all: Vec<Value> = m.store.list()?.iter().map(|s| described(s, is_active(s))).collect();
        Ok(all)
    });
    Ok(Json(json!({ "modules": all.await? })))
}

fn described(module: &StoredModule, active: bool) -> Value {
    json!({
        "name": module.module.name, "version": module.module.version, "digest": module.digest.to_hex(),
        "world": module.world.to_string(), "bytes": module.bytes, "active": active,
    })
}

async fn show(
    State(modules): State<Arc<Modules>>,
    Path((name, version)): Path<(String, String)>,
) -> Result<Json<Value>, Refusal> {
    let module = module_ref(&name, &version)?;
    let found = blocking(&modules, move |m| {
        let stored = m.store.show(&module)?.ok_or_else(|| StoreError::Unknown(module.to_string()))?;
        let active = m.store.active(&module.name)?.as_ref() == Some(&module);
        Ok(described(&stored, active))
    });
    Ok(Json(found.await?))
}

async fn push(
    State(modules): State<Arc<Modules>>,
    Path((name, version)): Path<(String, String)>,
    Query(parameters): Query<PushParameters>,
    body: Bytes,
) -> Result<Json<Value>, Refusal> {
    let module = module_ref(&name, &version)?;
    let stored = blocking(&modules, move |m| {
        let stored = m.store.put(&module, &body, &m.trials(&module))?;
        if parameters.activate {
            m.store.activate(&module)?;
            m.changed.send_modify(|n| *n += 1);
        }
        let (digest, world) = (stored.digest.to_hex(), stored.world.to_string());
        tracing::info!(%module, digest, world, active = parameters.activate, "module stored");
        Ok(described(&stored, parameters.activate))
    });
    Ok(Json(stored.await?))
}

async fn activate(
    State(modules): State<Arc<Modules>>,
    Path((name, version)): Path<(String, String)>,
) -> Result<Json<Value>, Refusal> {
    let module = module_ref(&name, &version)?;
    let now = blocking(&modules, move |m| {
        let now = m.store.activate(&module)?;
        m.changed.send_modify(|n| *n += 1);
        tracing::info!(%module, "module activated");
        Ok(now)
    });
    let now = now.await?;
    Ok(Json(json!({ "name": name, "active": now.version, "previous": now.previous })))
}

async fn rollback(
    State(modules): State<Arc<Modules>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let asked = name.clone();
    let now = blocking(&modules, move |m| {
        let now = match m.store.rollback(&asked) {
            // Activated only once: what ran before it is the version that the configuration names.
            Err(StoreError::NoPrevious(name)) => match m.configured(&asked)? {
                Some(before) => m.store.activate(&before)?,
                None => return Err(StoreError::NoPrevious(name).into()),
            },
            now => now?,
        };
        m.changed.send_modify(|n| *n += 1);
        tracing::info!(module = asked, version = now.version, "module rolled back");
        Ok(now)
    });
    let now = now.await?;
    Ok(Json(json!({ "name": name, "active": now.version, "previous": now.previous })))
}

impl Modules {
    /// The version of this name that all streams are configured with, if it is one and not the active one.
    fn configured(&self, name: &str) -> Result<Option<ModuleRef>, StoreError> {
        let settings = self.config.streams.iter().filter_map(|s| s.module.as_ref());
        let mut named = settings.map(|s| &s.module).filter(|m| m.name == name);
        let Some(first) = named.next() else { return Ok(None) };
        let other = self.store.active(name)?.is_some_and(|active| active != *first);
        Ok((other && named.all(|named| named == first)).then(|| first.clone()))
    }

    /// The settings of every stream that uses a module of this name on rows whose columns are known from the
    /// configuration: those of a root stream.
    fn trials(&self, module: &ModuleRef) -> Vec<Trial> {
        let uses = |s: &&Stream| s.module.as_ref().is_some_and(|m| m.module.name == module.name);
        let streams = self.config.streams.iter().filter(uses);
        streams.filter_map(|s| trial(&self.config, s)).collect()
    }
}

fn trial(config: &Config, stream: &Stream) -> Option<Trial> {
    let setting = stream.module.as_ref()?;
    let limits = Limits {
        memory_bytes: setting.limits.memory_bytes.try_into().ok()?,
        call_time: setting.limits.time,
        output_bytes: setting.limits.output_bytes.try_into().ok()?,
        ..Limits::default()
    };
    Some(Trial { config: setting.with.clone(), input: parent_schema(config, stream)?, limits })
}

/// Only a root declares columns; what a module in between makes of them is not known here.
fn parent_schema(config: &Config, stream: &Stream) -> Option<Arc<StreamSchema>> {
    let From::Stream(parent) = &stream.from else { return None };
    match &config.stream(parent.as_str())?.from {
        From::Sources { schema, .. } => Some(schema.clone()),
        From::Stream(_) => None,
    }
}
