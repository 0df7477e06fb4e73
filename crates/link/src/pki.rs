//! A small certificate authority in a folder: `ca.pem`, `ca.key`, a certificate and key per name, `revoked.txt`.
//!
//! Keys are written with mode 0600 and nothing that exists is ever overwritten. It is meant for plants that have no
//! authority of their own; certificates of another one work as well.

use crate::tls::{TlsError, subject};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};
use thiserror::Error;

/// Why a certificate could not be made.
#[derive(Debug, Error)]
pub enum PkiError {
    /// A file cannot be read or written; never overwritten when it exists.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The authority or a certificate is not usable.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A name or a date cannot stand in a certificate.
    #[error("{what}: {why}")]
    Value {
        /// What was being made.
        what: String,
        /// Why it cannot be.
        why: String,
    },
}

/// From when to when a certificate is believed, seconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First second.
    pub from_s: u64,
    /// Last second.
    pub until_s: u64,
}

impl Validity {
    /// From an hour ago (clocks differ) for a number of days.
    pub fn days(now_wall_ns: i64, days: u32) -> Self {
        let now_s = u64::try_from(now_wall_ns / 1_000_000_000).unwrap_or_default();
        Self { from_s: now_s.saturating_sub(3_600), until_s: now_s + u64::from(days) * 86_400 }
    }
}

/// What a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// A gateway; its name is its id.
    Gateway,
    /// Central; the host names and addresses under which gateways reach it.
    Server(Vec<String>),
}

/// Where a new certificate and its key were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key, mode 0600.
    pub key: PathBuf,
    /// Its serial, lower-case hexadecimal.
    pub serial: String,
}

fn value(what: &str, e: impl std::fmt::Display) -> PkiError {
    PkiError::Value { what: what.to_owned(), why: e.to_string() }
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let file = |source| PkiError::File { path: path.to_owned(), source };
    let mut f = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(file)?;
    f.write_all(text.as_bytes()).and_then(|()| f.sync_all()).map_err(file)
}

fn read(path: &Path) -> Result<String, PkiError> {
    std::fs::read_to_string(path).map_err(|source| PkiError::File { path: path.to_owned(), source })
}

fn params(name: &str, valid: Validity) -> CertificateParams {
    let mut p = CertificateParams::default();
    p.distinguished_name.push(DnType::CommonName, name);
    p.not_before = date_time_ymd(1970, 1, 1) + Duration::from_secs(valid.from_s);
    p.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(valid.until_s);
    p.use_authority_key_identifier_extension = true;
    p
}

fn authority(name: &str, valid: Validity) -> CertificateParams {
    let mut p = params(name, valid);
    p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    p.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    p
}

fn save(dir: &Path, name: &str, cert: &rcgen::Certificate, key: &KeyPair) -> Result<Issued, PkiError> {
    let paths = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    for p in [&paths.0, &paths.1] {
        if p.exists() {
            let source = io::Error::new(io::ErrorKind::AlreadyExists, "is there already");
            return Err(PkiError::File { path: p.clone(), source });
        }
    }
    write_new(&paths.1, &key.serialize_pem(), 0o600)?;
    write_new(&paths.0, &cert.pem(), 0o644)?;
    let serial = subject(cert.der()).map(|s| s.serial).unwrap_or_default();
    Ok(Issued { cert: paths.0, key: paths.1, serial })
}

/// Makes an authority in a folder: `ca.pem`, `ca.key` and an empty `revoked.txt`.
pub fn init(dir: &Path, name: &str, valid: Validity) -> Result<Issued, PkiError> {
    std::fs::create_dir_all(dir).map_err(|source| PkiError::File { path: dir.to_owned(), source })?;
    let key = KeyPair::generate().map_err(|e| value("a key", e))?;
    let cert = authority(name, valid).self_signed(&key).map_err(|e| value(name, e))?;
    let issued = save(dir, "ca", &cert, &key)?;
    let revoked = dir.join("revoked.txt");
    if !revoked.exists() {
        write_new(&revoked, "# serials of certificates that central refuses, one a line\n", 0o644)?;
    }
    Ok(issued)
}

/// Makes a certificate of the authority in a folder: `NAME.pem` and `NAME.key`. `name` is one path component.
pub fn issue(dir: &Path, name: &str, role: &Role, valid: Validity) -> Result<Issued, PkiError> {
    // The rules of a gateway's name keep it a plain file name too.
    record::GatewayId::new(name).map_err(|e| value("the name", e))?;
    if name == "ca" {
        return Err(value("the name", "\"ca\" is the authority's"));
    }
    let ca_path = dir.join("ca.pem");
    let ca_pem = read(&ca_path)?;
    let ca_key = KeyPair::from_pem(&read(&dir.join("ca.key"))?).map_err(|e| value("ca.key", e))?;
    let ca_der = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|e| value("ca.pem", e))?;
    let ca_name = subject(&ca_der).ok_or_else(|| value("ca.pem", "has no common name"))?.name;
    let issuer = Issuer::new(authority(&ca_name, valid), ca_key);

    let mut p = params(name, valid);
    p.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    match role {
        Role::Gateway => p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
        Role::Server(sans) => {
            let names = CertificateParams::new(sans.clone()).map_err(|e| value("a host name", e))?;
            p.subject_alt_names = names.subject_alt_names;
            p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        }
    }
    let key = KeyPair::generate().map_err(|e| value("a key", e))?;
    let cert = p.signed_by(&key, &issuer).map_err(|e| value(name, e))?;
    save(dir, name, &cert, &key)
}

/// Appends a certificate's serial to a list of revoked ones and returns the serial. Central reads the list at the next
/// handshake.
pub fn revoke(list: &Path, cert: &Path) -> Result<String, PkiError> {
    let pem = read(cert)?;
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| value("the certificate", e))?;
    let s = subject(&der).ok_or_else(|| value("the certificate", "has no common name"))?;
    let file = |source| PkiError::File { path: list.to_owned(), source };
    let mut f = OpenOptions::new().append(true).create(true).open(list).map_err(file)?;
    f.write_all(format!("{} # {}\n", s.serial, s.name).as_bytes())
        .and_then(|()| f.sync_all())
        .map_err(file)?;
    Ok(s.serial)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::TlsFiles;
    use std::os::unix::fs::PermissionsExt;

    const NOW_NS: i64 = 1_800_000_000_000_000_000;

    #[test]
    fn an_authority_issues_and_revokes() {
        let dir = tempfile::tempdir().expect("temp dir");
        let valid = Validity::days(NOW_NS, 30);
        let ca = init(dir.path(), "Tidegate demo", valid).expect("made");
        let server = Role::Server(vec!["localhost".into(), "127.0.0.1".into()]);
        let central = issue(dir.path(), "central", &server, valid).expect("made");
        let gw = issue(dir.path(), "plant-7", &Role::Gateway, valid).expect("made");
        for key in [&ca.key, &central.key, &gw.key] {
            let mode = std::fs::metadata(key).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", key.display());
        }
        let list = dir.path().join("revoked.txt");
        let files =
            TlsFiles { ca: ca.cert, cert: central.cert, key: central.key, revoked: Some(list.clone()) };
        assert_eq!(files.own_name().expect("named"), "central");
        files.server_config().expect("usable");
        assert_eq!(revoke(&list, &gw.cert).expect("revoked"), gw.serial);
        assert!(read(&list).expect("there").contains(&gw.serial));
        files.server_config().expect("usable");
    }

    #[test]
    fn nothing_is_overwritten_and_names_stay_in_the_folder() {
        let dir = tempfile::tempdir().expect("temp dir");
        let valid = Validity::days(NOW_NS, 1);
        init(dir.path(), "x", valid).expect("made");
        assert!(init(dir.path(), "x", valid).is_err());
        issue(dir.path(), "a", &Role::Gateway, valid).expect("made");
        for bad in ["a", "ca", "../a", ""] {
            assert!(issue(dir.path(), bad, &Role::Gateway, valid).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn broken_files_are_named() {
        let dir = tempfile::tempdir().expect("temp dir");
        let junk = dir.path().join("junk.pem");
        std::fs::write(&junk, "junk").expect("written");
        let files = TlsFiles {
            ca: junk.clone(),
            cert: junk.clone(),
            key: dir.path().join("missing.key"),
            revoked: None,
        };
        assert!(files.load().expect_err("broken").to_string().contains("missing.key"));
        let files = TlsFiles { key: junk, ..files };
        assert!(files.load().expect_err("broken").to_string().contains("junk.pem: holds no certificate"));
    }
}
