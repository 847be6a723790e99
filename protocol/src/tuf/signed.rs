//! A metadata file as received, and the proof that it was verified.

use std::{collections::BTreeSet, ops::Deref};

use ed25519_dalek::{Signature as Ed25519Signature, VerifyingKey};
use serde::Deserialize;
use serde_json::Value;

use super::{
    RoleName, TufError, canonical_json,
    roles::{Key, Role, Root},
};

/// A metadata file that was parsed and not yet verified. Role, signatures and signed bytes come from one parse, so
/// that what is interpreted is what was signed, even where an object repeats a key.
#[derive(Debug, Clone)]
pub struct Signed<T> {
    role: T,
    signatures: Vec<Signature>,
    canonical: Vec<u8>,
    raw: Vec<u8>,
}

#[derive(Debug, Clone, Deserialize)]
struct Signature {
    keyid: String,
    sig: String,
}

#[derive(Deserialize)]
struct Envelope {
    signatures: Vec<Signature>,
    signed: Value,
}

impl<T: Role> Signed<T> {
    /// Reads a file of role `T`: size bound, JSON, `_type`, specification version, shape. Checks no signature.
    pub fn parse(bytes: &[u8]) -> Result<Self, TufError> {
        let role = T::NAME;
        let max = role.bytes_max();
        if bytes.len() > max {
            return Err(TufError::TooLarge { role, bytes: bytes.len(), max });
        }
        let malformed = |reason: String| TufError::Malformed { role, reason };
        let Envelope { signatures, signed } =
            serde_json::from_slice(bytes).map_err(|e| malformed(e.to_string()))?;
        let mut seen = BTreeSet::new();
        if let Some(twice) = signatures.iter().find(|s| !seen.insert(s.keyid.as_str())) {
            return Err(TufError::DuplicateSignature { role, keyid: twice.keyid.chars().take(80).collect() });
        }
        let canonical = canonical_json(&signed).map_err(|source| TufError::Canonical { role, source })?;
        let content: T = serde_json::from_value(signed).map_err(|e| malformed(e.to_string()))?;
        let header = content.header();
        if header.role != role {
            return Err(malformed(format!("_type is {}", header.role)));
        }
        // §4.3: the major version decides. A missing minor part is read as such files exist.
        if header.spec_version.split('.').next() != Some("1") {
            let version = header.spec_version.chars().take(20).collect();
            return Err(TufError::UnsupportedSpec { role, version });
        }
        if header.version == 0 || header.version > i64::MAX as u64 {
            return Err(malformed(format!("version {} is not 1 to 2^63", header.version)));
        }
        content.check().map_err(malformed)?;
        Ok(Self { role: content, signatures, canonical, raw: bytes.to_vec() })
    }

    /// Requires that at least the role's threshold of distinct keys, as `root` gives them, signed this (§5.3.4 and
    /// alike). A broken signature beside enough good ones does no harm.
    ///
    /// Departs from the reference client in being stricter: one key under two ids counts once.
    pub fn verify(self, root: &Root) -> Result<Verified<T>, TufError> {
        let role = T::NAME;
        let wanted = root.roles.of(role);
        let mut signers = BTreeSet::new();
        for keyid in &wanted.keyids {
            let Some(key) = root.keys.get(keyid) else { continue };
            let public = ed25519_key(role, keyid, key)?;
            let signature = self.signatures.iter().find(|s| s.keyid == *keyid);
            if let (Some(public), Some(signature)) = (public, signature)
                && is_valid(&public, &signature.sig, &self.canonical)
            {
                signers.insert(public.to_bytes());
            }
        }
        let valid = signers.len() as u32;
        if valid < wanted.threshold {
            return Err(TufError::BelowThreshold { role, needed: wanted.threshold, valid });
        }
        Ok(Verified(self))
    }
}

impl Signed<Root> {
    /// The role as read, proven by nothing: for whoever wrote it themselves, and for tools that show files.
    pub fn unverified(&self) -> &Root {
        &self.role
    }

    /// A new root must be signed by the keys of the root before it and by its own (§5.3.4); the first one by its own.
    pub(super) fn verify_self(self) -> Result<Verified<Root>, TufError> {
        let own = self.role.clone();
        self.verify(&own)
    }
}

/// `None`: a key that is no point of the curve, which can sign nothing.
fn ed25519_key(role: RoleName, keyid: &str, key: &Key) -> Result<Option<VerifyingKey>, TufError> {
    if key.keytype != "ed25519" || key.scheme != "ed25519" {
        let short = |text: &str| text.chars().take(80).collect();
        return Err(TufError::UnsupportedKey {
            role,
            keyid: short(keyid),
            keytype: short(&key.keytype),
            scheme: short(&key.scheme),
        });
    }
    let mut bytes = [0; 32];
    let decoded = hex::decode_to_slice(&key.keyval.public, &mut bytes).is_ok();
    Ok(decoded.then(|| VerifyingKey::from_bytes(&bytes).ok()).flatten())
}

fn is_valid(public: &VerifyingKey, signature: &str, message: &[u8]) -> bool {
    let mut bytes = [0; 64];
    hex::decode_to_slice(signature, &mut bytes).is_ok()
        // Strict: refuses keys of small order, under which one signature fits many messages.
        && public.verify_strict(message, &Ed25519Signature::from_bytes(&bytes)).is_ok()
}

/// A role whose signatures were verified. [`Signed::verify`] is the only source of it.
#[derive(Debug, Clone)]
pub struct Verified<T>(Signed<T>);

impl<T> Verified<T> {
    /// The file as it was received, to be stored.
    pub fn bytes(&self) -> &[u8] {
        &self.0.raw
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0.role
    }
}
