//! The binding to libchdb, loaded at run time: the only file of this program with `unsafe`.
//!
//! The library's C header promises: a connection may be used from any thread, one statement at a time; a result and an
//! insert handle belong to the caller until destroyed; texts and buffers inside them live as long as they do. The
//! types here keep to that: [`Connection`] takes `&mut self` for every statement, a stream borrows its connection, and
//! what is handed out borrows the result it lies in. The library is never unloaded, because its threads run until exit.
#![allow(unsafe_code)]

use crate::error::{Failure, code};
use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    marker::PhantomData,
    path::Path,
};

type Handle = *mut c_void;
type Connect = unsafe extern "C" fn(c_int, *mut *mut c_char) -> *mut Handle;
type WithParams = unsafe extern "C" fn(
    Handle,
    *const c_char,
    usize,
    *const c_char,
    usize,
    *const *const c_char,
    *const usize,
    *const *const c_char,
    *const usize,
    usize,
) -> Handle;

/// The functions used, as the header of libchdb 26.7 declares them. Results, insert streams and connections are opaque.
struct Api {
    version: unsafe extern "C" fn() -> *const c_char,
    connect: Connect,
    close: unsafe extern "C" fn(*mut Handle),
    shutdown: unsafe extern "C" fn() -> c_int,
    query: WithParams,
    stream_query: WithParams,
    stream_fetch: unsafe extern "C" fn(Handle, Handle) -> Handle,
    stream_cancel: unsafe extern "C" fn(Handle, Handle),
    insert: WithParams,
    insert_append: unsafe extern "C" fn(Handle, *const c_void, usize) -> c_int,
    insert_done: unsafe extern "C" fn(Handle) -> Handle,
    insert_cancel: unsafe extern "C" fn(Handle),
    insert_error: unsafe extern "C" fn(Handle) -> *const c_char,
    insert_destroy: unsafe extern "C" fn(Handle),
    classify:
        unsafe extern "C" fn(Handle, *const c_char, usize, *const c_char, usize, *mut RawAnalysis) -> c_int,
    result_buffer: unsafe extern "C" fn(Handle) -> *const c_char,
    result_length: unsafe extern "C" fn(Handle) -> usize,
    result_error: unsafe extern "C" fn(Handle) -> *const c_char,
    result_rows_read: unsafe extern "C" fn(Handle) -> u64,
    result_rows_written: unsafe extern "C" fn(Handle) -> u64,
    result_bytes_written: unsafe extern "C" fn(Handle) -> u64,
    result_destroy: unsafe extern "C" fn(Handle),
}

/// `chdb_query_analysis_v1`.
#[repr(C)]
#[derive(Default)]
struct RawAnalysis {
    struct_size: u32,
    statement_count: u32,
    flags: u32,
    query_class: u32,
}

/// The loaded library. Cheap to copy.
#[derive(Clone, Copy)]
pub(crate) struct Library(&'static Api);

/// What a statement does, in the judgement of the engine's own parser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Leaves no trace.
    ReadOnly,
    /// Changes data, tables or anything else that lasts.
    Mutating,
    /// Changes the session, or writes outside the engine.
    Control,
    /// Did not parse.
    Unknown,
}

/// Answer of [`Connection::classify`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Analysis {
    /// Statements in the text; 0 when it did not parse.
    pub(crate) statements: u32,
    /// The most restricted of them.
    pub(crate) class: Class,
}

impl Library {
    /// Loads the library at `path` and keeps it from installing signal handlers of its own.
    pub(crate) fn load(path: &Path) -> Result<Self, libloading::Error> {
        use libloading::os::unix::{Library as Unix, RTLD_LOCAL, RTLD_NOW};
        // SAFETY: loading runs the library's initialisers; the caller names a libchdb, whose initialisers only set up
        // its own statics. RTLD_LOCAL keeps its C++ and compression symbols away from ours.
        let lib = unsafe { Unix::open(Some(path), RTLD_NOW | RTLD_LOCAL)? };
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: the field's type repeats the header's declaration of this function, and the library stays
                // loaded for ever (it is forgotten below), so the copied pointer never dangles.
                *unsafe { lib.get($name)? }
            };
        }
        let quiet: unsafe extern "C" fn(c_int) = symbol!(b"chdb_set_signal_handlers_enabled");
        let api = Api {
            version: symbol!(b"chdb_version"),
            connect: symbol!(b"chdb_connect"),
            close: symbol!(b"chdb_close_conn"),
            shutdown: symbol!(b"chdb_shutdown"),
            query: symbol!(b"chdb_query_with_params_n"),
            stream_query: symbol!(b"chdb_stream_query_with_params_n"),
            stream_fetch: symbol!(b"chdb_stream_fetch_result"),
            stream_cancel: symbol!(b"chdb_stream_cancel_query"),
            insert: symbol!(b"chdb_stream_insert_with_params_n"),
            insert_append: symbol!(b"chdb_stream_append"),
            insert_done: symbol!(b"chdb_stream_done"),
            insert_cancel: symbol!(b"chdb_stream_cancel_insert"),
            insert_error: symbol!(b"chdb_stream_insert_error"),
            insert_destroy: symbol!(b"chdb_destroy_insert_stream"),
            classify: symbol!(b"chdb_classify_query_n"),
            result_buffer: symbol!(b"chdb_result_buffer"),
            result_length: symbol!(b"chdb_result_length"),
            result_error: symbol!(b"chdb_result_error"),
            result_rows_read: symbol!(b"chdb_result_rows_read"),
            result_rows_written: symbol!(b"chdb_result_rows_written"),
            result_bytes_written: symbol!(b"chdb_result_bytes_written"),
            result_destroy: symbol!(b"chdb_destroy_query_result"),
        };
        // SAFETY: takes a plain number; called before the first connection, as the header asks. The engine's handlers
        // would take SIGTERM from this program.
        unsafe { quiet(0) };
        std::mem::forget(lib);
        Ok(Self(Box::leak(Box::new(api))))
    }

    /// The library's version, for example `26.7.3`.
    pub(crate) fn version(self) -> String {
        // SAFETY: returns a NUL-terminated text that lives as long as the library.
        unsafe { text((self.0.version)()) }.unwrap_or_default()
    }

    /// Stops the engine's threads; every connection must be closed. False when one is still open.
    pub(crate) fn shutdown(self) -> bool {
        // SAFETY: takes nothing; refuses by itself while a connection is open.
        unsafe { (self.0.shutdown)() == 0 }
    }
}

/// Copies a C text; `None` for a null pointer.
///
/// # Safety
/// `p` is null or points to a NUL-terminated text.
unsafe fn text(p: *const c_char) -> Option<String> {
    // SAFETY: the caller's promise.
    (!p.is_null()).then(|| unsafe { CStr::from_ptr(p) }.to_string_lossy().into_owned())
}

/// Names and values of a statement's `{name:Type}` parameters.
pub(crate) type Params = [(String, String)];

/// One engine connection; serial by construction.
pub(crate) struct Connection {
    api: &'static Api,
    raw: *mut Handle,
}

// SAFETY: the header allows a connection to be used from any thread as long as calls do not overlap; every call takes
// `&mut self` (and it is not Sync).
unsafe impl Send for Connection {}

impl Connection {
    /// Opens a connection with arguments such as `--path=…` and `--readonly=2`.
    pub(crate) fn open(lib: Library, args: &[String]) -> Result<Self, Failure> {
        let mut owned = vec![c"clickhouse".to_owned()];
        for a in args {
            owned.push(
                CString::new(a.as_str())
                    .map_err(|_| Failure::new(code::BAD_ARGUMENTS, "NUL in an argument"))?,
            );
        }
        let mut argv: Vec<*mut c_char> = owned.iter().map(|a| a.as_ptr().cast_mut()).collect();
        let argc = c_int::try_from(argv.len())
            .map_err(|_| Failure::new(code::BAD_ARGUMENTS, "too many arguments"))?;
        // SAFETY: argv holds argc NUL-terminated texts, alive during the call; the engine copies and never writes them.
        let raw = unsafe { (lib.0.connect)(argc, argv.as_mut_ptr()) };
        // SAFETY: a non-null answer points to the handle.
        if raw.is_null() || unsafe { (*raw).is_null() } {
            return Err(Failure::new(code::ENGINE, "the engine refused a connection"));
        }
        Ok(Self { api: lib.0, raw })
    }

    fn handle(&self) -> Handle {
        // SAFETY: `raw` came from connect, is not null, and stays valid until `close` in drop.
        unsafe { *self.raw }
    }

    fn call(&mut self, f: WithParams, sql: &[u8], format: &str, params: &Params) -> Handle {
        let names: Vec<*const c_char> = params.iter().map(|p| p.0.as_ptr().cast()).collect();
        let name_lens: Vec<usize> = params.iter().map(|p| p.0.len()).collect();
        let values: Vec<*const c_char> = params.iter().map(|p| p.1.as_ptr().cast()).collect();
        let value_lens: Vec<usize> = params.iter().map(|p| p.1.len()).collect();
        // SAFETY: every pointer goes with its length and outlives the call; the engine copies what it keeps. The four
        // arrays have `params.len()` entries.
        unsafe {
            f(
                self.handle(),
                sql.as_ptr().cast(),
                sql.len(),
                format.as_ptr().cast(),
                format.len(),
                names.as_ptr(),
                name_lens.as_ptr(),
                values.as_ptr(),
                value_lens.as_ptr(),
                params.len(),
            )
        }
    }

    /// Runs one statement; the whole result.
    pub(crate) fn execute(&mut self, sql: &[u8], format: &str, params: &Params) -> Result<Output, Failure> {
        let raw = self.call(self.api.query, sql, format, params);
        Output::take(self.api, raw)
    }

    /// Starts a statement whose result comes in pieces, each formatted on its own.
    pub(crate) fn stream(
        &mut self,
        sql: &[u8],
        format: &str,
        params: &Params,
    ) -> Result<Pieces<'_>, Failure> {
        let raw = self.call(self.api.stream_query, sql, format, params);
        let head = Output::take(self.api, raw)?;
        Ok(Pieces { connection: self, head, ended: false })
    }

    /// Starts an insert: `head` is the statement without FORMAT and data.
    pub(crate) fn insert(
        &mut self,
        head: &[u8],
        format: &str,
        params: &Params,
    ) -> Result<Insert<'_>, Failure> {
        let raw = self.call(self.api.insert, head, format, params);
        if raw.is_null() {
            return Err(Failure::new(code::ENGINE, "the engine did not start the insert"));
        }
        let insert = Insert { api: self.api, raw, ended: false, connection: PhantomData };
        match insert.error() {
            Some(f) => Err(f),
            None => Ok(insert),
        }
    }

    /// Says what a text would do, without running it.
    pub(crate) fn classify(&mut self, sql: &[u8]) -> Result<Analysis, Failure> {
        let size = u32::try_from(size_of::<RawAnalysis>()).unwrap_or_default();
        let mut out = RawAnalysis { struct_size: size, ..RawAnalysis::default() };
        // SAFETY: the text goes with its length, a null target database is allowed, and `out` tells its own size.
        let state = unsafe {
            (self.api.classify)(
                self.handle(),
                sql.as_ptr().cast(),
                sql.len(),
                std::ptr::null(),
                0,
                &raw mut out,
            )
        };
        if state != 0 {
            return Err(Failure::new(code::ENGINE, "the engine could not classify the statement"));
        }
        let class = match out.query_class {
            0 => Class::ReadOnly,
            1 | 2 => Class::Mutating,
            3 => Class::Control,
            _ => Class::Unknown,
        };
        Ok(Analysis { statements: out.statement_count, class })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: closed once; streams borrow the connection, so none is open.
        unsafe { (self.api.close)(self.raw) }
    }
}

/// A result, owned.
pub(crate) struct Output {
    api: &'static Api,
    raw: Handle,
}

// SAFETY: a result is plain memory that the caller owns; the header binds it to no thread.
unsafe impl Send for Output {}
// SAFETY: the accessors only read.
unsafe impl Sync for Output {}

impl Output {
    fn take(api: &'static Api, raw: Handle) -> Result<Self, Failure> {
        if raw.is_null() {
            return Err(Failure::new(code::ENGINE, "the engine gave no result"));
        }
        let out = Self { api, raw };
        // SAFETY: `raw` is a live result; the text is copied before the result is destroyed.
        match unsafe { text((api.result_error)(out.raw)) } {
            Some(message) => Err(Failure::from_engine(&message)),
            None => Ok(out),
        }
    }

    /// Rows of the result.
    pub(crate) fn rows_read(&self) -> u64 {
        // SAFETY: a live result.
        unsafe { (self.api.result_rows_read)(self.raw) }
    }

    /// Rows written, views included.
    pub(crate) fn rows_written(&self) -> u64 {
        // SAFETY: a live result.
        unsafe { (self.api.result_rows_written)(self.raw) }
    }

    /// Bytes written, views included.
    pub(crate) fn bytes_written(&self) -> u64 {
        // SAFETY: a live result.
        unsafe { (self.api.result_bytes_written)(self.raw) }
    }
}

impl AsRef<[u8]> for Output {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: a live result.
        let (at, len) = unsafe { ((self.api.result_buffer)(self.raw), (self.api.result_length)(self.raw)) };
        if at.is_null() || len == 0 {
            return &[];
        }
        // SAFETY: the buffer holds `len` bytes, is never written again, and lives until drop.
        unsafe { std::slice::from_raw_parts(at.cast(), len) }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // SAFETY: destroyed once; nothing borrowed from it can still be alive.
        unsafe { (self.api.result_destroy)(self.raw) }
    }
}

/// A result that is still being computed. Dropped before its end, the statement is cancelled.
pub(crate) struct Pieces<'a> {
    connection: &'a mut Connection,
    head: Output,
    ended: bool,
}

impl Pieces<'_> {
    /// The next piece, or `None` at the end.
    pub(crate) fn next_piece(&mut self) -> Result<Option<Output>, Failure> {
        if self.ended {
            return Ok(None);
        }
        // SAFETY: the connection is borrowed for as long as the stream lives; `head` is the handle it gave.
        let raw = unsafe { (self.connection.api.stream_fetch)(self.connection.handle(), self.head.raw) };
        let piece = Output::take(self.connection.api, raw).inspect_err(|_| self.ended = true)?;
        if piece.as_ref().is_empty() {
            self.ended = true;
            return Ok(None);
        }
        Ok(Some(piece))
    }
}

impl Drop for Pieces<'_> {
    fn drop(&mut self) {
        if !self.ended {
            // SAFETY: as in `next_piece`; a stream is cancelled once, and only before its end.
            unsafe { (self.connection.api.stream_cancel)(self.connection.handle(), self.head.raw) }
        }
    }
}

/// An insert that takes data. Dropped before [`Insert::finish`], it is cancelled and commits nothing of its last block.
pub(crate) struct Insert<'a> {
    api: &'static Api,
    raw: Handle,
    ended: bool,
    connection: PhantomData<&'a mut Connection>,
}

impl Insert<'_> {
    fn error(&self) -> Option<Failure> {
        // SAFETY: a live handle; the text is copied.
        unsafe { text((self.api.insert_error)(self.raw)) }.map(|m| Failure::from_engine(&m))
    }

    /// Gives the engine more of the body; may wait for it.
    pub(crate) fn append(&mut self, data: &[u8]) -> Result<(), Failure> {
        // SAFETY: the bytes go with their length and are copied.
        match unsafe { (self.api.insert_append)(self.raw, data.as_ptr().cast(), data.len()) } {
            0 => Ok(()),
            _ => {
                Err(self.error().unwrap_or_else(|| Failure::new(code::ENGINE, "the engine refused the data")))
            }
        }
    }

    /// Ends the body and commits.
    pub(crate) fn finish(mut self) -> Result<Output, Failure> {
        self.ended = true;
        // SAFETY: ended once; the handle is destroyed in drop.
        let raw = unsafe { (self.api.insert_done)(self.raw) };
        Output::take(self.api, raw)
    }
}

impl Drop for Insert<'_> {
    fn drop(&mut self) {
        // SAFETY: cancelled at most once and never after `done`; destroyed once, as the header asks on every path.
        unsafe {
            if !self.ended {
                (self.api.insert_cancel)(self.raw);
            }
            (self.api.insert_destroy)(self.raw);
        }
    }
}
