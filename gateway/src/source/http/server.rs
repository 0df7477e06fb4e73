//! Connections of the HTTP source: bounded in number, and cut when a request's head does not come.
//!
//! One that is over the bound is told 503 and closed; of those, too, only so many at a time. It never looks into a
//! request.

use crate::limits::{
    HTTP_HEAD_BYTES_MAX, HTTP_HEAD_WAIT, HTTP_REFUSAL_WAIT, REFUSED_AT_ONCE_MAX, RETRY_AFTER,
};
use axum::Router;
use daemon::metrics::Counter;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// How long to wait after a failed accept: it fails when the process is out of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves connections until told to stop; requests under way are finished.
pub(super) async fn serve(
    listener: TcpListener,
    app: Router,
    connections_max: usize,
    refused: Counter,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(connections_max));
    let refusals = Arc::new(Semaphore::new(REFUSED_AT_ONCE_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        if let Ok(place) = places.clone().try_acquire_owned() {
            connections.spawn(connection(stream, app.clone(), place, stop.clone()));
        } else {
            refused.inc();
            if let Ok(place) = refusals.clone().try_acquire_owned() {
                connections.spawn(refuse(stream, place));
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(stream: TcpStream, app: Router, _place: OwnedSemaphorePermit, stop: CancellationToken) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HTTP_HEAD_WAIT).max_buf_size(HTTP_HEAD_BYTES_MAX);
    let served = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    let mut served = std::pin::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection ended");
    }
}

/// Says that there is no room, and takes what was sent, so that the answer is not lost with a reset.
async fn refuse(mut stream: TcpStream, _place: OwnedSemaphorePermit) {
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nretry-after: {}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        RETRY_AFTER.as_secs()
    );
    let told = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    // Whether it was heard is of no interest: the connection ends here.
    let _ = tokio::time::timeout(HTTP_REFUSAL_WAIT, told).await;
}
