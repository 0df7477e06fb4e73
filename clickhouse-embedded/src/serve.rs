//! The HTTP side: accept, authenticate, give the statement a turn on an engine connection, answer.

mod answer;
mod insert;
mod query;

use crate::{
    error::{Failure, code},
    framing::Unframe,
    limits::{BODY_IDLE, PARENT_POLL, REQUESTS_MAX, SHUTDOWN, SQL_BODY_BYTES_MAX, STATEMENT_BYTES_MAX},
    pool::Engine,
    request::Request,
    statement,
};
use axum::{Router, body::Body, extract::State, response::Response, serve::ListenerExt as _};
use bytes::Bytes;
use futures_util::StreamExt as _;
use std::{future::Future, net::SocketAddr, pin::pin, sync::Arc};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::Semaphore,
    time::timeout,
};

struct Server {
    engine: Arc<Engine>,
    password: Option<String>,
    requests: Semaphore,
}

/// Serves until SIGTERM or SIGINT, or until the parent is gone; `ready` hears the address.
pub(crate) async fn serve(
    engine: Arc<Engine>,
    password: Option<String>,
    listen: SocketAddr,
    parent: Option<u32>,
    ready: impl FnOnce(SocketAddr) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut stop = pin!(stop(parent)?);
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    // Answers are small and wait for nobody: with Nagle's algorithm the slowest of them take 40 ms longer.
    let listener = listener.tap_io(|socket| {
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
    });
    let server = Arc::new(Server { engine, password, requests: Semaphore::new(REQUESTS_MAX) });
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let app = Router::new().fallback(handle).with_state(server);
    let serving = axum::serve(listener, app).with_graceful_shutdown(async {
        ended.await.ok();
    });
    let mut serving = pin!(serving.into_future());
    ready(address)?;
    tokio::select! {
        result = &mut serving => return result,
        () = &mut stop => {}
    }
    tracing::info!("stopping");
    drop(end);
    timeout(SHUTDOWN, serving).await.unwrap_or(Ok(()))
}

/// Ends when the program should. Signals are watched from the call on.
fn stop(parent: Option<u32>) -> std::io::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    Ok(async move {
        let orphaned = async {
            let Some(pid) = parent else { return std::future::pending().await };
            while std::os::unix::process::parent_id() == pid {
                tokio::time::sleep(PARENT_POLL).await;
            }
            tracing::warn!(pid, "the parent is gone");
        };
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            () = orphaned => {}
        }
    })
}

async fn handle(State(server): State<Arc<Server>>, request: axum::extract::Request) -> Response {
    if request.uri().path() == "/ping" {
        return Response::new(Body::from("Ok.\n"));
    }
    match Box::pin(server.answer(request)).await {
        Ok(response) => response,
        Err(failure) => answer::failure(&failure, &server.engine.version),
    }
}

impl Server {
    async fn answer(&self, request: axum::extract::Request) -> Result<Response, Failure> {
        let (head, body) = request.into_parts();
        let mut request = Request::parse(&head.method, &head.uri, &head.headers)?;
        request.authenticate(self.password.as_deref())?;
        let _place = self.requests.try_acquire().map_err(|_| {
            Failure::new(
                code::TOO_MANY_REQUESTS,
                format!("{REQUESTS_MAX} requests are under way. (TOO_MANY_SIMULTANEOUS_QUERIES)"),
            )
        })?;
        check_length(request.sql.len())?;
        if request.boundary.is_none()
            && let Some(parts) = statement::insert_parts(request.sql.as_bytes())
        {
            let job = insert::Job::new(&parts, &request)?;
            return insert::run(&self.engine, job, body).await;
        }
        let text = collect(body, request.decompress).await?;
        let mut text = if request.boundary.is_some() {
            request.multipart(&text)?;
            std::mem::take(&mut request.sql).into_bytes()
        } else if request.sql.is_empty() {
            text
        } else {
            [request.sql.as_bytes(), b"\n", &text].concat()
        };
        if let Some(parts) = statement::insert_parts(&text) {
            check_length(parts.head.len())?;
            let job = insert::Job::new(&parts, &request)?;
            return insert::run(&self.engine, job, Body::empty()).await;
        }
        check_length(text.len())?;
        text.truncate(text.trim_ascii_end().len());
        if text.is_empty() {
            return Ok(Response::new(Body::from("Ok.\n")));
        }
        query::run(&self.engine, text, request).await
    }
}

fn check_length(sql: usize) -> Result<(), Failure> {
    if sql <= STATEMENT_BYTES_MAX {
        return Ok(());
    }
    Err(Failure::new(
        code::TOO_LARGE,
        format!("the statement has {sql} bytes, the limit is {STATEMENT_BYTES_MAX}"),
    ))
}

/// Collects a body that carries SQL.
async fn collect(body: Body, framed: bool) -> Result<Vec<u8>, Failure> {
    let mut stream = body.into_data_stream();
    let (mut unframe, mut text) = (Unframe::new(framed), Vec::new());
    while let Some(piece) = next_piece(&mut stream).await? {
        unframe.push(&piece, |block| {
            if text.len() + block.len() > SQL_BODY_BYTES_MAX {
                return Err(Failure::new(
                    code::TOO_LARGE,
                    format!(
                        "a body with SQL in it is limited to {SQL_BODY_BYTES_MAX} bytes: put the INSERT into the URL"
                    ),
                ));
            }
            text.extend_from_slice(block);
            Ok(())
        })?;
    }
    unframe.finish()?;
    Ok(text)
}

/// The next piece of a body; an error when the client went away or says nothing for too long.
async fn next_piece(stream: &mut axum::body::BodyDataStream) -> Result<Option<Bytes>, Failure> {
    match timeout(BODY_IDLE, stream.next()).await {
        Ok(Some(Ok(piece))) => Ok(Some(piece)),
        Ok(Some(Err(e))) => {
            Err(Failure::new(code::CANNOT_READ_ALL_DATA, format!("the body ended early: {e}")))
        }
        Ok(None) => Ok(None),
        Err(_) => Err(Failure::new(159, format!("the body gave nothing for {} s", BODY_IDLE.as_secs()))),
    }
}
