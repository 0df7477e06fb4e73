//! Native code on disk. Wasmtime's own format has no checksum, and a flipped bit in it is arbitrary code; so it stands
//! behind a header that says what it was made from and what its bytes are.
//!
//! Layout, little-endian: magic (8) · compatibility digest (32) · digest of the module (32) · digest of the code (32) ·
//! length of the code (8) · code.

use crate::{ArtifactError, engine::compatibility};
use record::Digest;

const MAGIC: &[u8; 8] = b"TGNATIV1";
const HEADER_BYTES: usize = 8 + 32 + 32 + 32 + 8;

/// Native code whose digest was checked. It can be made in two ways: by the compiler, or from bytes that the compiler
/// wrote for the same module and the same host.
#[derive(Clone)]
pub struct Artifact {
    module: Digest,
    bytes: Vec<u8>,
}

impl std::fmt::Debug for Artifact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Artifact").field("module", &self.module).field("bytes", &self.bytes.len()).finish()
    }
}

impl Artifact {
    /// Checks all that the header says.
    pub fn open(bytes: Vec<u8>, module: Digest) -> Result<Self, ArtifactError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(ArtifactError::Form("another kind of file"))?;
        let (compatible, rest) = digest(rest)?;
        let (found, rest) = digest(rest)?;
        let (code_digest, rest) = digest(rest)?;
        let (length, code) = rest.split_first_chunk::<8>().ok_or(CUT)?;
        if compatible != compatibility() {
            return Err(ArtifactError::OtherHost);
        }
        if found != module {
            return Err(ArtifactError::OtherModule { found, expected: module });
        }
        if u64::from_le_bytes(*length) != code.len() as u64 {
            return Err(CUT);
        }
        if Digest::of(code) != code_digest {
            return Err(ArtifactError::Damaged);
        }
        Ok(Self { module, bytes })
    }

    /// Puts code that was just compiled behind its header.
    #[cfg(feature = "compile")]
    pub(crate) fn new(module: Digest, code: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + code.len());
        bytes.extend(MAGIC);
        for digest in [compatibility(), module, Digest::of(code)] {
            bytes.extend(digest.0);
        }
        bytes.extend((code.len() as u64).to_le_bytes());
        bytes.extend(code);
        Self { module, bytes }
    }

    /// The whole file.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Digest of the module it was made from.
    pub fn module(&self) -> Digest {
        self.module
    }

    /// The native code, which both constructors vouch for.
    pub(crate) fn code(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES..]
    }
}

const CUT: ArtifactError = ArtifactError::Form("it is cut off");

fn digest(bytes: &[u8]) -> Result<(Digest, &[u8]), ArtifactError> {
    let (head, rest) = bytes.split_first_chunk::<32>().ok_or(CUT)?;
    Ok((Digest(*head), rest))
}
