//! Signing keys as files.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey, spki::der::pem::LineEnding};

use andon_protocol::tuf::{RoleName, SigningKey};

use crate::files::{self, Privacy};

const PEM_BYTES_MAX: u64 = 4096;

pub(super) fn path(folder: &Path, role: RoleName) -> PathBuf {
    folder.join(format!("tuf-{role}.pem"))
}

/// The key of `role`; `None` where there is no such file.
pub(super) fn load(folder: &Path, role: RoleName) -> io::Result<Option<SigningKey>> {
    let path = path(folder, role);
    let bytes = match files::read_bounded(&path, PEM_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(with_path(&path, error)),
    };
    let bad = |what: String| io::Error::new(ErrorKind::InvalidData, format!("{}: {what}", path.display()));
    let pem = String::from_utf8(bytes).map_err(|e| bad(e.to_string()))?;
    let key = ed25519_dalek::SigningKey::from_pkcs8_pem(&pem)
        .map_err(|e| bad(format!("is no ed25519 key in PKCS#8: {e}")))?;
    Ok(Some(SigningKey::from_seed(key.as_bytes())))
}

/// Makes a key for `role` and stores it.
pub(super) fn create(folder: &Path, role: RoleName) -> io::Result<SigningKey> {
    let seed: [u8; 32] = rand::random();
    let pem = ed25519_dalek::SigningKey::from_bytes(&seed)
        .to_pkcs8_pem(LineEnding::LF)
        .map_err(|e| io::Error::other(format!("cannot encode a key: {e}")))?;
    files::write_atomically(&path(folder, role), pem.as_bytes(), Privacy::Secret)?;
    Ok(SigningKey::from_seed(&seed))
}

pub(super) fn with_path(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
