//! The engine's connections: a writing pool and a read-only pool over one data folder.
//!
//! Invariants: a connection serves one request at a time; settings of one request never reach the next (what differs is set
//! or reset before the statement); a connection whose state is in doubt is replaced, never reused.

use crate::{
    engine::{Connection, Library},
    error::{Failure, code},
    limits::{READ_SECONDS_MAX, READERS, STATEMENT_BYTES_MAX, WRITERS},
    statement::Forbidden,
};
use std::{collections::BTreeMap, path::Path, sync::Mutex};
use tokio::sync::{Semaphore, SemaphorePermit};

/// The database of requests that name none, or `default`.
const HOME: &str = "home";

/// Which pool serves a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everything the engine can do.
    Write,
    /// Statements that leave no trace and reach nothing outside the tables.
    Read,
}

/// One connection with the state that its last request left on it.
pub(crate) struct Session {
    pub(crate) connection: Connection,
    settings: BTreeMap<String, String>,
    database: String,
    clean: bool,
}

impl Session {
    /// Brings database and settings to what a request asks for.
    pub(crate) fn prepare(
        &mut self,
        database: Option<&str>,
        wanted: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        let mut changes = Vec::new();
        for name in self.settings.keys().filter(|n| !wanted.contains_key(*n)) {
            changes.push(format!("{name}=DEFAULT"));
        }
        for (name, value) in wanted.iter().filter(|(n, v)| self.settings.get(*n) != Some(*v)) {
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                return Err(Failure::new(
                    code::UNKNOWN_SETTING,
                    format!("Unknown setting {name:?}. (UNKNOWN_SETTING)"),
                ));
            }
            changes.push(format!("{name}={}", quote(value)));
        }
        // Until the statement is through, nobody knows which of the settings took hold.
        self.clean = false;
        if !changes.is_empty() {
            self.connection.execute(format!("SET {}", changes.join(", ")).as_bytes(), "TabSeparated", &[])?;
            self.settings.clone_from(wanted);
        }
        let database = database.filter(|d| *d != "default").unwrap_or(HOME);
        if database != self.database {
            let name = database.replace('\\', "\\\\").replace('`', "\\`");
            self.connection.execute(format!("USE `{name}`").as_bytes(), "TabSeparated", &[])?;
            database.clone_into(&mut self.database);
        }
        self.clean = true;
        Ok(())
    }

    /// Says that this connection may not be used again.
    pub(crate) fn spoil(&mut self) {
        self.clean = false;
    }
}

fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

struct Pool {
    idle: Mutex<Vec<Session>>,
    permits: Semaphore,
    arguments: Vec<String>,
}

impl Pool {
    fn open(lib: Library, size: usize, arguments: Vec<String>) -> Result<Self, Failure> {
        let idle = (0..size).map(|_| fresh(lib, &arguments)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { idle: Mutex::new(idle), permits: Semaphore::new(size), arguments })
    }
}

fn fresh(lib: Library, arguments: &[String]) -> Result<Session, Failure> {
    let mut connection = Connection::open(lib, arguments)?;
    connection.execute(format!("USE {HOME}").as_bytes(), "TabSeparated", &[])?;
    Ok(Session { connection, settings: BTreeMap::new(), database: HOME.into(), clean: true })
}

/// Both pools, and what the engine told about itself.
pub(crate) struct Engine {
    lib: Library,
    write: Pool,
    read: Pool,
    /// The engine's version, as `select version()` gives it.
    pub(crate) version: String,
    /// Functions that the read-only pool refuses.
    pub(crate) forbidden: Forbidden,
}

/// The right to take a session from a pool.
pub(crate) struct Turn<'a> {
    engine: &'a Engine,
    access: Access,
    _permit: SemaphorePermit<'a>,
}

impl Engine {
    /// Opens the engine on a folder.
    pub(crate) fn open(lib: Library, data: &Path) -> Result<Self, Failure> {
        let mut common = vec![
            format!("--path={}", data.display()),
            "--async_insert=0".into(),
            format!("--max_query_size={STATEMENT_BYTES_MAX}"),
        ];
        forget_stand_in(data)?;
        let mut first = Connection::open(lib, &common)?;
        settle_databases(&mut first)?;
        let text = |out: crate::engine::Output| String::from_utf8_lossy(out.as_ref()).trim().to_owned();
        let version = text(first.execute(b"SELECT version()", "TabSeparated", &[])?);
        let functions =
            text(first.execute(b"SELECT name FROM system.table_functions", "TabSeparatedRaw", &[])?);
        let write = Pool::open(lib, WRITERS, common.clone())?;
        common.push("--readonly=2".into());
        common.push(format!("--max_execution_time={READ_SECONDS_MAX}"));
        let read = Pool::open(lib, READERS, common)?;
        Ok(Self { lib, write, read, version, forbidden: Forbidden::new(&functions) })
    }

    fn pool(&self, access: Access) -> &Pool {
        match access {
            Access::Write => &self.write,
            Access::Read => &self.read,
        }
    }

    /// Waits for a free connection.
    pub(crate) async fn turn(&self, access: Access) -> Result<Turn<'_>, Failure> {
        let permit = self
            .pool(access)
            .permits
            .acquire()
            .await
            .map_err(|_| Failure::new(code::TOO_MANY_REQUESTS, "the server is stopping"))?;
        Ok(Turn { engine: self, access, _permit: permit })
    }

    /// Closes every idle connection and stops the engine's threads. Requests that still run keep theirs; then the
    /// answer is false, and the process ends with them (the tables stand a crash).
    pub(crate) fn close(&self) -> bool {
        for pool in [&self.read, &self.write] {
            pool.permits.close();
            pool.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
        }
        self.lib.shutdown()
    }
}

impl Turn<'_> {
    /// Runs `work` on a connection of the pool. A failure replaces the connection, since half-done work may have left
    /// something on it.
    pub(crate) fn run<T>(&self, work: impl FnOnce(&mut Session) -> Result<T, Failure>) -> Result<T, Failure> {
        let pool = self.engine.pool(self.access);
        let taken = pool.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop();
        let mut session = match taken {
            Some(session) => session,
            None => fresh(self.engine.lib, &pool.arguments)?,
        };
        let result = work(&mut session);
        if result.is_err() || !session.clean {
            // The new one is opened before the old one closes, so that the engine always has a connection.
            session = fresh(self.engine.lib, &pool.arguments)?;
        }
        pool.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(session);
        result
    }
}

/// Takes the library's own `default` away and puts an empty one in its place, and makes [`HOME`]. The library's lies over
/// the file system: in it a table name is also a path (`SELECT * FROM '/etc/passwd'`). It comes back at every start, so it
/// is detached at every start, before anybody can ask. A connection needs some `default`: the stand-in is a list of
/// dictionaries, in which nothing can be made.
fn settle_databases(connection: &mut Connection) -> Result<(), Failure> {
    connection.execute(b"DETACH DATABASE default", "TabSeparated", &[])?;
    connection.execute(b"CREATE DATABASE default ENGINE = Dictionary", "TabSeparated", &[])?;
    let home = format!("CREATE DATABASE IF NOT EXISTS {HOME} ENGINE = Atomic");
    connection.execute(home.as_bytes(), "TabSeparated", &[])?;
    let overlays = connection.execute(
        b"SELECT count() FROM system.databases WHERE engine IN ('Overlay', 'Filesystem', 'S3', 'HDFS')",
        "TabSeparated",
        &[],
    )?;
    match overlays.as_ref() {
        b"0\n" => Ok(()),
        _ => Err(Failure::new(code::ENGINE, "the engine offers a database that lies over files")),
    }
}

/// Removes the stand-in of the last start: it is made anew, and cannot be while its file is there.
fn forget_stand_in(data: &Path) -> Result<(), Failure> {
    let said =
        |e: std::io::Error, path: &Path| Failure::new(code::ENGINE, format!("{}: {e}", path.display()));
    let file = data.join("metadata").join("default.sql");
    match std::fs::read_to_string(&file) {
        Ok(text) if text.contains("ENGINE = Dictionary") => {
            std::fs::remove_file(&file).map_err(|e| said(e, &file))?;
        }
        Ok(_) => {
            return Err(Failure::new(
                code::ENGINE,
                format!("{} is a database of its own, which this server would hide", file.display()),
            ));
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(said(e, &file)),
    }
    let half = data.join("metadata").join("default.sql.tmp");
    match std::fs::remove_file(&half) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(said(e, &half)),
        _ => Ok(()),
    }
}
