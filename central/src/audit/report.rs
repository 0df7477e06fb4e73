//! What an audit says.

use record::Counts;
use serde::Serialize;

/// The verdict, with every term that led to it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// Nothing lost, nothing twice, every equation holds.
    pub balanced: bool,
    /// Rows that should be somewhere and are not.
    pub lost: u64,
    /// Rows that are somewhere more than once.
    pub duplicated: u64,
    /// Rows that gateways gave up by their streams' policy, each with an entry in the loss ledger; not part of `lost`.
    pub dropped: u64,
    /// Rows with a seq that central has not stored yet, as far as the gateways' last word goes.
    pub buffered: u64,
    /// Rows in central's log that the sink has not committed yet.
    pub in_flight: u64,
    /// When, RFC 3339.
    pub at: String,
    /// How long it took.
    pub seconds: f64,
    /// Per gateway.
    pub gateways: Vec<GatewayReport>,
    /// Views on the tables.
    pub views: Vec<ViewReport>,
    /// Tables and targets of views in which a repeated insert may double rows, each with the reason and what to do.
    pub unsafe_tables: Vec<String>,
    /// What was read again of the log; none when nobody asked for that.
    pub reread: Option<RereadReport>,
    /// Everything that does not fit, each with its place.
    pub problems: Vec<String>,
    /// What was not known.
    pub notes: Vec<String>,
}

/// One gateway.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GatewayReport {
    /// Its id.
    pub gateway: String,
    /// Rows that its streams counted as dead-lettered.
    pub dead_letters_counted: u64,
    /// Rows that its dead-letter stream produced.
    pub dead_letters_written: u64,
    /// Per stream and incarnation.
    pub streams: Vec<StreamReport>,
}

/// One stream in one life of the gateway's folder.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct StreamReport {
    /// Its name.
    pub stream: String,
    /// The life of the gateway's folder, 16 hexadecimal digits.
    pub incarnation: String,
    /// The gateway's terms; none when it has not sent any for this incarnation.
    pub counts: Option<Counts>,
    /// The stream's last seq when the gateway counted.
    pub as_of: Option<u64>,
    /// The last seq that central acknowledged; none for an incarnation that is over.
    pub last_seq: Option<u64>,
    /// Rows with a seq that the gateway gave up by its policy and declared lost.
    pub declared_lost: u64,
    /// Rows with a seq that the gateway had not got acknowledged when it counted.
    pub buffered: u64,
    /// Rows of the log's records, up to where the sink has committed.
    pub log_rows: u64,
    /// Rows in the log after that.
    pub in_flight: u64,
    /// Rows in the table, up to where the sink has committed.
    pub table_rows: u64,
    /// Different seqs among them.
    pub table_unique: u64,
    /// Lowest seq in the table.
    pub table_first_seq: Option<u64>,
    /// Highest seq in the table.
    pub table_last_seq: Option<u64>,
    /// The head of the hash chain in the log, 64 hexadecimal digits.
    pub chain: Option<String>,
    /// See [`Report::lost`].
    pub lost: u64,
    /// See [`Report::duplicated`].
    pub duplicated: u64,
    /// What does not fit here.
    pub problems: Vec<String>,
}

/// One view that somebody made.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ViewReport {
    /// Its name, with its database.
    pub view: String,
    /// The stream whose rows it sees.
    pub stream: String,
    /// Where it writes.
    pub target: String,
    /// The engine of that.
    pub engine: String,
    /// How many blocks that recognises when they are repeated.
    pub window: u64,
    /// A repeated insert does not double its rows.
    pub safe: bool,
    /// Why its rows were not compared; none when they were.
    pub not_compared: Option<String>,
    /// Rows that its SELECT gives and that it does not hold.
    pub missing: u64,
    /// Rows that it holds too many.
    pub extra: u64,
}

/// The part of the log that was read once more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RereadReport {
    /// Records.
    pub records: u64,
    /// Bytes of their blocks.
    pub bytes: u64,
    /// All that was asked for.
    pub complete: bool,
}
