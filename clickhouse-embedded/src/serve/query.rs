//! Everything but inserts with data: one statement, its result whole or in pieces.

use super::answer;
use crate::{
    engine::{Class, Pieces},
    error::{Failure, code},
    limits::PIECES_IN_FLIGHT,
    pool::{Access, Engine, Session},
    request::Request,
    statement,
};
use axum::{body::Body, response::Response};
use bytes::Bytes;
use std::{sync::Arc, time::Instant};
use tokio::sync::{mpsc, oneshot};

/// Formats whose pieces can be put one behind the other. The last one repeats its header with every piece; the others
/// that do so, or that wrap the result (JSON, Arrow, Parquet…), are computed whole.
const IN_PIECES: [&str; 8] =
    ["TabSeparated", "TSV", "TabSeparatedRaw", "CSV", "JSONEachRow", "RowBinary", "Native", WITH_HEADER];
const WITH_HEADER: &str = "RowBinaryWithNamesAndTypes";

type Chunk = Result<Bytes, std::io::Error>;

/// How the answer begins: the format and the summary of a whole result.
struct Begin {
    format: String,
    summary: Option<String>,
    tag: Option<String>,
}

/// Runs one statement.
pub(super) async fn run(engine: &Arc<Engine>, sql: Vec<u8>, request: Request) -> Result<Response, Failure> {
    let (chunks, mut body) = mpsc::channel::<Chunk>(PIECES_IN_FLIGHT);
    let (begin, begun) = oneshot::channel::<Begin>();
    let query_id = request.query_id.clone();
    let owned = engine.clone();
    let handle = tokio::runtime::Handle::current();
    let work = tokio::task::spawn_blocking(move || {
        let turn = handle.block_on(owned.turn(request.access()))?;
        turn.run(|session| {
            session.prepare(request.database.as_deref(), &request.settings)?;
            Statement { engine: &owned, sql: &sql, request: &request }.run(session, begin, &chunks)
        })
    });
    match begun.await {
        Ok(begin) => {
            let stream = futures_util::stream::poll_fn(move |context| body.poll_recv(context));
            let body = Body::from_stream(stream);
            let mut response = answer::success(body, &begin.format, &query_id, begin.summary.as_deref());
            if let Some(tag) = begin.tag.and_then(|t| axum::http::HeaderValue::from_str(&t).ok()) {
                response.headers_mut().insert("X-ClickHouse-Exception-Tag", tag);
            }
            Ok(response)
        }
        // Nothing was begun: the worker ended with an error.
        Err(_) => match work.await {
            Ok(Err(failure)) => Err(failure),
            _ => Err(Failure::new(code::ENGINE, "the statement's worker ended")),
        },
    }
}

struct Statement<'a> {
    engine: &'a Engine,
    sql: &'a [u8],
    request: &'a Request,
}

impl Statement<'_> {
    fn run(
        &self,
        session: &mut Session,
        begin: oneshot::Sender<Begin>,
        chunks: &mpsc::Sender<Chunk>,
    ) -> Result<(), Failure> {
        let class = self.check(session)?;
        // What was judged is what runs: without the format, which goes to the engine beside the text.
        let (sql, format) = match class {
            Class::ReadOnly => statement::without_format(self.sql),
            _ => (self.sql, None),
        };
        let default = self.request.default_format.as_deref().unwrap_or("TabSeparated");
        let format = format.unwrap_or(default);
        if self.request.access() == Access::Read {
            self.check_reach(session, sql)?;
        }
        if class == Class::Control {
            // It may have changed the session: the next request gets a fresh one.
            session.spoil();
        }
        if class == Class::ReadOnly && IN_PIECES.contains(&format) && statement::is_select(sql) {
            return self.pieces(session, sql, format, begin, chunks);
        }
        let started = Instant::now();
        let output = session.connection.execute(sql, format, &self.request.params)?;
        let summary = Some(answer::summary(&output, started.elapsed()));
        if begin.send(Begin { format: format.to_owned(), summary, tag: None }).is_ok()
            && !output.as_ref().is_empty()
        {
            // The client may be gone; then nobody needs the result.
            chunks.blocking_send(Ok(answer::bytes(output))).ok();
        }
        Ok(())
    }

    /// One statement, by the engine's own count, and a read-only one in the read-only pool.
    fn check(&self, session: &mut Session) -> Result<Class, Failure> {
        let analysis = session.connection.classify(self.sql)?;
        if analysis.statements > 1
            || (analysis.class == Class::Unknown && statement::has_inner_semicolon(self.sql))
        {
            return Err(Failure::new(
                code::SYNTAX_ERROR,
                "Syntax error (Multi-statements are not allowed): one statement a request. (SYNTAX_ERROR)",
            ));
        }
        let writes = matches!(analysis.class, Class::Mutating | Class::Control);
        if writes && self.request.access() == Access::Read {
            return Err(Failure::new(
                code::READONLY,
                "Cannot execute query in readonly mode. For queries over HTTP, method GET implies readonly: use \
                 method POST for modifying queries. (READONLY)",
            ));
        }
        Ok(analysis.class)
    }

    /// In the read-only pool: no function that reaches files, networks or programs. The engine's parser names the
    /// functions; a text that it does not parse is run as it is, so that its message reaches the user.
    fn check_reach(&self, session: &mut Session, sql: &[u8]) -> Result<(), Failure> {
        let found = if statement::is_select(sql) {
            let tree = [b"EXPLAIN AST SELECT * FROM (".as_slice(), sql, b"\n)"].concat();
            let tree = session.connection.execute(&tree, "TabSeparatedRaw", &self.request.params)?;
            self.engine.forbidden.in_syntax_tree(&String::from_utf8_lossy(tree.as_ref()))
        } else {
            self.engine.forbidden.mentioned(sql)
        };
        match found {
            None => Ok(()),
            Some(name) => Err(Failure::new(
                code::ACCESS_DENIED,
                format!(
                    "Not enough privileges: {name} may not be used by read-only requests. (ACCESS_DENIED)"
                ),
            )),
        }
    }

    fn pieces(
        &self,
        session: &mut Session,
        sql: &[u8],
        format: &str,
        begin: oneshot::Sender<Begin>,
        chunks: &mpsc::Sender<Chunk>,
    ) -> Result<(), Failure> {
        let mut pieces = session.connection.stream(sql, format, &self.request.params)?;
        let first = pieces.next_piece()?;
        let Some(first) = first else {
            drop(pieces);
            // No rows: only a whole result has the header that some formats begin with.
            let output = session.connection.execute(sql, format, &self.request.params)?;
            if begin.send(Begin { format: format.to_owned(), summary: None, tag: None }).is_ok() {
                chunks.blocking_send(Ok(answer::bytes(output))).ok();
            }
            return Ok(());
        };
        let header = if format == WITH_HEADER { header_len(first.as_ref()) } else { Some(0) };
        let Some(header) = header else {
            return Err(Failure::new(code::ENGINE, "the first piece of the result has no whole header"));
        };
        let tag = exception_tag(self.sql);
        let head = Begin { format: format.to_owned(), summary: None, tag: Some(tag.clone()) };
        if begin.send(head).is_err() {
            return Ok(());
        }
        let first = answer::bytes(first);
        let header = first.slice(..header);
        if chunks.blocking_send(Ok(first)).is_err() {
            return Ok(());
        }
        let result = rest(&mut pieces, &header, chunks);
        if let Err(failure) = &result {
            let text = format!("{failure} (version {} (official build))\n", self.engine.version);
            let len = text.len();
            let tail = format!("\r\n__exception__\r\n{tag}\r\n{text}{len} {tag}\r\n__exception__\r\n");
            // Then the connection breaks off, so that a client that does not know the tag sees a failure too.
            if chunks.blocking_send(Ok(tail.into())).is_ok() {
                chunks.blocking_send(Err(std::io::Error::other("the statement failed midway"))).ok();
            }
        }
        result
    }
}

fn rest(pieces: &mut Pieces<'_>, header: &Bytes, chunks: &mpsc::Sender<Chunk>) -> Result<(), Failure> {
    while let Some(piece) = pieces.next_piece()? {
        let piece = answer::bytes(piece);
        let piece = if piece.starts_with(header) { piece.slice(header.len()..) } else { piece };
        if chunks.blocking_send(Ok(piece)).is_err() {
            // The client is gone: dropping the stream cancels the statement.
            return Ok(());
        }
    }
    Ok(())
}

/// Length of the header of RowBinaryWithNamesAndTypes: a count, then as many names and as many types.
fn header_len(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    let columns = varint(bytes, &mut at)?;
    for _ in 0..columns.checked_mul(2)? {
        let len = varint(bytes, &mut at)?;
        at = at.checked_add(len)?;
        if at > bytes.len() {
            return None;
        }
    }
    Some(at)
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<usize> {
    let mut value = 0_usize;
    for shift in (0..63).step_by(7) {
        let b = *bytes.get(*at)?;
        *at += 1;
        value |= usize::from(b & 0x7f) << shift;
        if b < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Sixteen letters that mark an error behind the rows of a result; made from the statement and the time, since they must
/// only be unlikely in data.
fn exception_tag(sql: &[u8]) -> String {
    use std::hash::{BuildHasher as _, RandomState};
    let hash = RandomState::new().hash_one((sql, Instant::now()));
    (0..16).map(|i| char::from(b'a' + ((hash >> (i * 4)) & 0xf) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_measured() {
        let bytes = b"\x02\x01a\x01b\x05Int64\x06StringREST";
        assert_eq!(header_len(bytes), Some(bytes.len() - 4));
        for cut in 0..bytes.len() - 4 {
            assert_eq!(header_len(&bytes[..cut]), None);
        }
    }
}
