//! A server like ClickHouse: one table a stream, a view on each, both with a window of tokens.
//!
//! - An insert is one block: all of it or nothing. A token that the window knows makes it a repeat, which is answered like
//!   an insert, and passes on to the view; the view dedups by its own window.
//! - The window is bounded: a token goes when enough newer ones came, though not earlier than [`TOKENS_KEPT`] after half
//!   of them did: that half is what the design needs for all that may still be on its way.
//! - The server may keep a token and lose the part, may fail in the view after the table took the rows, may die anywhere,
//!   and may carry an insert out long after its client has given up, though not later than [`central::sink::limits::QUIET`].

use crate::{
    event::{Answer, Asker, Event},
    fault::Fault,
    mutant::Mutant,
    schedule::{MS, SECOND},
    sink::{Found, Tables},
    world::World,
};
use central::{
    log::{Offset, StoredRecord},
    sink::{
        intent::Intent,
        limits::{QUIET, SURE},
    },
};
use record::{Digest, StreamName};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Tokens that a window holds.
const WINDOW: usize = 4;
/// A token is used again while fewer inserts came since.
pub(crate) const TOKENS_SURE: u64 = WINDOW as u64 / 2;
/// Half of the window of a real table is enough for what all lanes insert in this time.
pub(crate) const TOKENS_KEPT: u64 = 100 * SECOND;
const _: () = assert!(SURE.as_nanos() + QUIET.as_nanos() <= TOKENS_KEPT as u128);

/// One insert into one table.
#[derive(Debug, Clone)]
pub(crate) struct Insert {
    pub(crate) table: StreamName,
    pub(crate) token: String,
    pub(crate) records: Vec<StoredRecord>,
    pub(crate) fate: Fate,
}

/// How an insert goes on in the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Done,
    /// Answered with an error; nothing was done.
    Refused,
    /// Answered with an error although it was done.
    ThenError,
    /// The table has the rows, the view does not.
    ViewFailed,
    /// The token is remembered, the rows are gone.
    PartLost,
}

#[derive(Debug)]
pub(crate) enum Statement {
    /// An insert, and the life of the server that it was sent to.
    Insert(Asker, Insert, u32),
    /// Its second half.
    View(Asker, Insert, u32),
    /// What the tables of these streams hold of an intent's records.
    ReadBack(Asker, BTreeSet<StreamName>, Intent),
    MaxOffset(Asker),
}

/// The rows of one record in a table.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) hash: Digest,
    pub(crate) times: u64,
    pub(crate) rows: u64,
    pub(crate) first_seq: u64,
    pub(crate) last_seq: u64,
}

#[derive(Debug, Default)]
struct Window {
    tokens: VecDeque<Token>,
    /// When each insert came.
    inserts: Vec<u64>,
}

#[derive(Debug)]
struct Token {
    text: String,
    /// When half of a window came behind it.
    half_at: Option<u64>,
}

impl Window {
    fn knows(&self, token: &str) -> bool {
        self.tokens.iter().any(|t| t.text == token)
    }

    /// Remembers a token; gives how many were pushed out.
    fn push(&mut self, token: &str, now: u64) -> usize {
        self.inserts.push(now);
        self.tokens.push_back(Token { text: token.to_owned(), half_at: None });
        let before = self.tokens.len();
        let half = before.saturating_sub(WINDOW / 2);
        self.tokens.iter_mut().take(half).for_each(|t| t.half_at = t.half_at.or(Some(now)));
        let old = |t: &Token| t.half_at.is_some_and(|at| at + TOKENS_KEPT < now);
        while self.tokens.len() > WINDOW && self.tokens.front().is_some_and(old) {
            self.tokens.pop_front();
        }
        before - self.tokens.len()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) rows: BTreeMap<(u32, Offset), Rows>,
    pub(crate) view: BTreeMap<(u32, Offset), u64>,
    window: Window,
    view_window: Window,
}

#[derive(Debug, Default)]
pub(crate) struct Server {
    pub(crate) tables: BTreeMap<StreamName, Table>,
    pub(crate) life: u32,
    /// Inserts that are under way, also those whose client is gone.
    pub(crate) running: usize,
}

impl World {
    pub(crate) fn server_does(&mut self, statement: Statement) {
        match statement {
            Statement::Insert(asker, insert, life) => self.insert(asker, insert, life),
            Statement::View(asker, insert, life) => self.view(asker, insert, life),
            Statement::ReadBack(asker, streams, intent) => {
                let mut held = Tables::default();
                for (name, table) in streams.iter().filter_map(|s| self.server.tables.get_key_value(s)) {
                    let range = (asker.place, intent.from)..(asker.place, intent.to);
                    for ((_, offset), r) in table.rows.range(range) {
                        let rows = r.rows * r.times;
                        let (first_seq, last_seq) = (r.first_seq, r.last_seq);
                        held.found.insert(*offset, Found { rows, first_seq, last_seq, ..Found::default() });
                    }
                    let since = |at: &&u64| **at / SECOND >= intent.named_at;
                    let newer = table.window.inserts.iter().filter(since).count();
                    held.newer.insert(name.clone(), newer as u64);
                }
                self.answer(asker, Answer::Found(held));
            }
            Statement::MaxOffset(asker) => {
                let of = |t: &Table| {
                    let last = t.rows.range((asker.place, Offset(0))..(asker.place + 1, Offset(0)));
                    last.last().map(|((_, offset), _)| *offset)
                };
                let max = self.server.tables.values().filter_map(of).max();
                self.answer(asker, Answer::MaxOffset(max));
            }
        }
    }

    fn insert(&mut self, asker: Asker, insert: Insert, life: u32) {
        let Insert { table, token, records, fate } = &insert;
        if life != self.server.life || *fate == Fate::Refused {
            self.server.running -= 1;
            let ended = life == self.server.life;
            return self.answer(asker, Answer::Inserted(table.clone(), Err(ended)));
        }
        let now = self.schedule.now();
        let t = self.server.tables.entry(table.clone()).or_default();
        let repeat = t.window.knows(token);
        let mut gone = 0;
        if !repeat {
            gone = t.window.push(token, now);
            for r in records.iter().filter(|_| *fate != Fate::PartLost) {
                let h = &r.headers;
                let rows = t.rows.entry((asker.place, r.offset)).or_insert_with(|| Rows {
                    hash: h.hash,
                    times: 0,
                    rows: u64::from(h.rows),
                    first_seq: h.first_seq.0,
                    last_seq: h.last_seq.0,
                });
                rows.times += 1;
            }
        }
        (0..gone).for_each(|_| self.chance.happened.count(Fault::TokenGone));
        self.say(|_| {
            let word = if repeat { "knows" } else { "takes" };
            format!("the server {word} {token}: {} records, {fate:?}", records.len())
        });
        let within = self.chance.between(MS, 20 * MS);
        let at = now + within;
        self.schedule.at(at, Event::Server(Statement::View(asker, insert, life)));
    }

    fn view(&mut self, asker: Asker, insert: Insert, life: u32) {
        self.server.running -= 1;
        let Insert { table, token, records, fate } = insert;
        if life != self.server.life {
            return self.answer(asker, Answer::Inserted(table, Err(false)));
        }
        if matches!(fate, Fate::ViewFailed | Fate::PartLost) {
            return self.answer(asker, Answer::Inserted(table, Err(true)));
        }
        let (now, no_window) = (self.schedule.now(), self.mutant == Some(Mutant::ViewWithoutWindow));
        let t = self.server.tables.entry(table.clone()).or_default();
        if no_window || !t.view_window.knows(&token) {
            t.view_window.push(&token, now);
            for r in &records {
                *t.view.entry((asker.place, r.offset)).or_default() += 1;
            }
        }
        let result = if fate == Fate::ThenError { Err(true) } else { Ok(()) };
        self.answer(asker, Answer::Inserted(table, result));
    }
}
