//! `tidegate pki`: a small authority of one's own, for installations without one.

use crate::output::{Output, Verdict};
use clap::{Args, Subcommand};
use link::pki::{Issued, Role, Validity};
use serde_json::json;
use std::{
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

/// The noun.
#[derive(Debug, Subcommand)]
pub(crate) enum Pki {
    /// Make an authority: ca.pem, ca.key, revoked.txt
    Init(Init),
    /// Make a certificate and its key: NAME.pem, NAME.key
    Issue(Issue),
    /// Put a certificate on the list that central refuses
    Revoke(Revoke),
}

/// The verb `init`.
#[derive(Debug, Args)]
pub(crate) struct Init {
    /// The authority's folder; nothing in it is overwritten
    dir: PathBuf,
    /// The authority's name
    #[arg(long, default_value = "Tidegate")]
    name: String,
    /// How long it is believed
    #[arg(long, default_value_t = 3_650)]
    days: u32,
}

/// The verb `issue`.
#[derive(Debug, Args)]
pub(crate) struct Issue {
    /// A gateway's id, or a name for central
    name: String,
    /// The authority's folder
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// A certificate for central, with the host names and addresses under which gateways reach it
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    server: Vec<String>,
    /// How long it is believed
    #[arg(long, default_value_t = 365)]
    days: u32,
}

/// The verb `revoke`.
#[derive(Debug, Args)]
pub(crate) struct Revoke {
    /// The certificate's file
    cert: PathBuf,
    /// The list; the one beside the certificate when not given
    #[arg(long)]
    list: Option<PathBuf>,
}

impl Pki {
    pub(crate) fn run(self, out: &Output) -> anyhow::Result<Verdict> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let now_ns = i64::try_from(now)?;
        match self {
            Self::Init(verb) => {
                let issued = link::pki::init(&verb.dir, &verb.name, Validity::days(now_ns, verb.days))?;
                show(out, &issued);
            }
            Self::Issue(verb) => {
                let role = if verb.server.is_empty() { Role::Gateway } else { Role::Server(verb.server) };
                let valid = Validity::days(now_ns, verb.days);
                show(out, &link::pki::issue(&verb.dir, &verb.name, &role, valid)?);
            }
            Self::Revoke(verb) => {
                let list = verb.list.unwrap_or_else(|| verb.cert.with_file_name("revoked.txt"));
                let serial = link::pki::revoke(&list, &verb.cert)?;
                out.show(&json!({ "list": list, "serial": serial }), |_| {
                    format!(
                        "{serial} stands in {}; central refuses it from the next handshake on",
                        list.display()
                    )
                });
            }
        }
        Ok(Verdict::Fine)
    }
}

fn show(out: &Output, i: &Issued) {
    out.show(&json!({ "cert": i.cert, "key": i.key, "serial": i.serial }), |_| {
        format!("{}\n{}", i.cert.display(), i.key.display())
    });
}
