//! Mutual TLS: who may speak. Both ends present a certificate of the same authority; central also refuses serials that
//! stand in the list of revoked ones, which is read again when it changes.
//!
//! One provider (ring) in the whole project; TLS 1.2 and 1.3; HTTP/2 by ALPN.

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};
use thiserror::Error;

/// What is wrong with certificates, keys or the list of revoked ones.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {why}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Where the certificates and keys are, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authority whose certificates are believed.
    pub ca: PathBuf,
    /// The own certificate, with intermediates if any.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Serials that are refused, one a line in hexadecimal, `#` begins a comment; central only.
    pub revoked: Option<PathBuf>,
}

/// The own identity and the authority, read from files and found to be certificates and a key.
#[derive(Clone)]
pub struct Pems {
    pub(crate) ca: Vec<u8>,
    pub(crate) cert: Vec<u8>,
    pub(crate) key: Vec<u8>,
}

impl std::fmt::Debug for Pems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pems")
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::File { path: path.to_owned(), source })
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bad = |why: String| TlsError::Content { path: path.to_owned(), why };
    let all: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|e| bad(e.to_string()))?;
    if all.is_empty() { Err(bad("holds no certificate".into())) } else { Ok(all) }
}

impl TlsFiles {
    /// Reads and checks the files.
    pub fn load(&self) -> Result<Pems, TlsError> {
        let pems = Pems { ca: read(&self.ca)?, cert: read(&self.cert)?, key: read(&self.key)? };
        certificates(&self.ca, &pems.ca)?;
        certificates(&self.cert, &pems.cert)?;
        self.key(&pems)?;
        Ok(pems)
    }

    fn key(&self, pems: &Pems) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_slice(&pems.key).map_err(|e| TlsError::Content {
            path: self.key.clone(),
            why: format!("holds no private key: {e}"),
        })
    }

    /// The common name of the own certificate.
    pub fn own_name(&self) -> Result<String, TlsError> {
        let pem = read(&self.cert)?;
        let first = certificates(&self.cert, &pem)?.swap_remove(0);
        let bad = |why: &str| TlsError::Content { path: self.cert.clone(), why: why.to_owned() };
        subject(&first).map(|s| s.name).ok_or_else(|| bad("has no common name"))
    }

    /// The configuration of central's end.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let pems = self.load()?;
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        let bad = |path: &Path, why: String| TlsError::Content { path: path.to_owned(), why };
        for cert in certificates(&self.ca, &pems.ca)? {
            roots.add(cert).map_err(|e| bad(&self.ca, e.to_string()))?;
        }
        let revoked = self.revoked.as_deref().map(RevokedSerials::load).transpose()?;
        let inner = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .build()
            .map_err(|e| bad(&self.ca, e.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| bad(&self.cert, e.to_string()))?
            .with_client_cert_verifier(Arc::new(Verifier { inner, revoked }))
            .with_single_cert(certificates(&self.cert, &pems.cert)?, self.key(&pems)?)
            .map_err(|e| bad(&self.cert, format!("does not go with {}: {e}", self.key.display())))?;
        config.alpn_protocols.push(b"h2".to_vec());
        Ok(Arc::new(config))
    }
}

/// Whose certificate it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Its common name.
    pub name: String,
    /// Its serial, lower-case hexadecimal.
    pub serial: String,
}

/// Common name and serial of a certificate; `None` when it has no common name or is no certificate.
pub fn subject(cert: &CertificateDer<'_>) -> Option<Subject> {
    let (_, parsed) = x509_parser::parse_x509_certificate(cert.as_ref()).ok()?;
    let name = parsed.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    Some(Subject { name, serial: hex(parsed.raw_serial()) })
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The list of refused serials, one a line.
#[derive(Debug)]
pub struct RevokedSerials {
    path: PathBuf,
    state: Mutex<(Option<SystemTime>, u64, HashSet<String>)>,
}

impl RevokedSerials {
    /// Reads the list.
    pub fn load(path: &Path) -> Result<Self, TlsError> {
        let me = Self { path: path.to_owned(), state: Mutex::new((None, 0, HashSet::new())) };
        me.refresh()?;
        Ok(me)
    }

    /// Reads the file again when its time or length changed.
    fn refresh(&self) -> Result<(), TlsError> {
        let file = |source| TlsError::File { path: self.path.clone(), source };
        let meta = fs::metadata(&self.path).map_err(file)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0.is_some() && state.0 == meta.modified().ok() && state.1 == meta.len() {
            return Ok(());
        }
        let text = fs::read_to_string(&self.path).map_err(file)?;
        let mut serials = HashSet::new();
        for (i, line) in text.lines().enumerate() {
            let serial = line.split('#').next().unwrap_or_default().trim().replace(':', "").to_lowercase();
            if !serial.chars().all(|c| c.is_ascii_hexdigit()) {
                let why = format!("line {} is not a serial in hexadecimal digits", i + 1);
                return Err(TlsError::Content { path: self.path.clone(), why });
            }
            if !serial.is_empty() {
                serials.insert(serial);
            }
        }
        *state = (meta.modified().ok(), meta.len(), serials);
        Ok(())
    }

    /// Whether a serial (lower-case hexadecimal) is refused; reads the file again when it changed.
    pub fn contains(&self, serial: &str) -> bool {
        if let Err(error) = self.refresh() {
            // The list as it was is still true: a revocation is never taken back by a broken file.
            tracing::error!(%error, "the list of revoked certificates cannot be read again");
        }
        self.state.lock().unwrap_or_else(PoisonError::into_inner).2.contains(serial)
    }
}

/// The usual checks, then the list of revoked serials.
#[derive(Debug)]
struct Verifier {
    inner: Arc<dyn ClientCertVerifier>,
    revoked: Option<RevokedSerials>,
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        if let Some(revoked) = &self.revoked {
            let subject = subject(end_entity).ok_or(CertificateError::BadEncoding)?;
            if revoked.contains(&subject.serial) {
                return Err(CertificateError::Revoked.into());
            }
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Makes ring the provider of libraries that ask for the process's default; harmless when done twice.
pub fn use_ring() {
    if CryptoProvider::get_default().is_none() {
        // Fails only when another thread was first with the same provider.
        let _ = ring::default_provider().install_default();
    }
}
