//! Inserts with data: the body goes to the engine's insert stream, never into an SQL text.

use super::{answer, next_piece};
use crate::{
    engine::Class,
    error::{Failure, code},
    framing::Unframe,
    limits::{INSERT_BODY_BYTES_MAX, PIECES_IN_FLIGHT},
    pool::{Access, Engine},
    request::Request,
    statement::InsertParts,
};
use axum::{body::Body, response::Response};
use bytes::Bytes;
use std::{collections::BTreeMap, sync::Arc, time::Instant};
use tokio::sync::mpsc;

/// What the blocking side needs.
pub(super) struct Job {
    head: Vec<u8>,
    format: String,
    inline: Vec<u8>,
    framed: bool,
    database: Option<String>,
    settings: BTreeMap<String, String>,
    params: Vec<(String, String)>,
    query_id: String,
}

impl Job {
    pub(super) fn new(parts: &InsertParts<'_>, request: &Request) -> Result<Self, Failure> {
        if request.access() == Access::Read {
            return Err(Failure::new(
                code::READONLY,
                "Cannot execute query in readonly mode: INSERT. (READONLY)",
            ));
        }
        Ok(Self {
            head: parts.head.to_vec(),
            format: parts.format.to_owned(),
            inline: parts.data.to_vec(),
            framed: request.decompress,
            database: request.database.clone(),
            settings: request.settings.clone(),
            params: request.params.clone(),
            query_id: request.query_id.clone(),
        })
    }
}

/// A piece of the body, or the news that there will be no more because it broke off.
type Piece = Result<Bytes, Failure>;

/// Runs an insert; `body` follows the data that stood in the statement's own text.
pub(super) async fn run(engine: &Arc<Engine>, job: Job, body: Body) -> Result<Response, Failure> {
    let (pieces, feed) = mpsc::channel::<Piece>(PIECES_IN_FLIGHT);
    let query_id = job.query_id.clone();
    let owned = engine.clone();
    let handle = tokio::runtime::Handle::current();
    let work = tokio::task::spawn_blocking(move || {
        let turn = handle.block_on(owned.turn(Access::Write))?;
        turn.run(|session| {
            session.prepare(job.database.as_deref(), &job.settings)?;
            write(session, &job, feed)
        })
    });
    forward(body, pieces).await;
    let summary = work.await.map_err(|_| Failure::new(code::ENGINE, "the insert's worker ended"))??;
    Ok(answer::success(Body::empty(), "TabSeparated", &query_id, Some(&summary)))
}

/// Hands the body on until it ends or breaks off. When the engine refuses early, the rest is read and dropped: a client
/// that is still writing would otherwise see a broken connection instead of the reason.
async fn forward(body: Body, pieces: mpsc::Sender<Piece>) {
    let mut stream = body.into_data_stream();
    let mut total = 0;
    let mut wanted = true;
    loop {
        let piece = match next_piece(&mut stream).await {
            Ok(Some(piece)) => {
                total += piece.len();
                if total > INSERT_BODY_BYTES_MAX {
                    let text = format!("the body is larger than {INSERT_BODY_BYTES_MAX} bytes");
                    Err(Failure::new(code::TOO_LARGE, text))
                } else {
                    Ok(piece)
                }
            }
            Ok(None) => return,
            Err(failure) => Err(failure),
        };
        let last = piece.is_err();
        wanted = wanted && pieces.send(piece).await.is_ok();
        if last {
            return;
        }
    }
}

fn write(
    session: &mut crate::pool::Session,
    job: &Job,
    mut feed: mpsc::Receiver<Piece>,
) -> Result<String, Failure> {
    let started = Instant::now();
    let whole = [job.head.as_slice(), b" FORMAT ", job.format.as_bytes()].concat();
    let analysis = session.connection.classify(&whole)?;
    if analysis.statements > 1 {
        return Err(Failure::new(
            code::SYNTAX_ERROR,
            "Syntax error: one statement a request. (SYNTAX_ERROR)",
        ));
    }
    if analysis.class == Class::Unknown && crate::statement::has_inner_semicolon(&whole) {
        return Err(Failure::new(code::SYNTAX_ERROR, "Syntax error in the INSERT. (SYNTAX_ERROR)"));
    }
    let mut insert = session.connection.insert(&job.head, &job.format, &job.params)?;
    if !job.inline.is_empty() {
        insert.append(&job.inline)?;
    }
    let mut unframe = Unframe::new(job.framed);
    // A body that breaks off leaves here with an error, which drops and so cancels the insert.
    while let Some(piece) = feed.blocking_recv() {
        unframe.push(&piece?, |block| insert.append(block))?;
    }
    unframe.finish()?;
    let output = insert.finish()?;
    Ok(answer::summary(&output, started.elapsed()))
}
