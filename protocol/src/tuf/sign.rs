//! Signing of metadata. Pure: keys come as seeds, from whoever can make random numbers and keep secrets.

use ed25519_dalek::Signer;
use serde_json::json;

use super::{
    TufError, canonical_json,
    roles::{Key, Role},
};

/// An ed25519 key with its id.
#[derive(Clone)]
pub struct SigningKey {
    secret: ed25519_dalek::SigningKey,
    id: String,
}

impl SigningKey {
    /// `seed`: 32 random bytes; they are the private key.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let secret = ed25519_dalek::SigningKey::from_bytes(seed);
        let id = Key::ed25519(secret.verifying_key().as_bytes()).id();
        Self { secret, id }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn public(&self) -> Key {
        Key::ed25519(self.secret.verifying_key().as_bytes())
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({})", self.id)
    }
}

/// The metadata file of `role`, signed by each of `keys`. Errors: a number in an unknown field that has no canonical
/// form, or a file over the role's bound, which no client would read.
pub fn sign<T: Role>(role: &T, keys: &[SigningKey]) -> Result<Vec<u8>, TufError> {
    let malformed = |e: serde_json::Error| TufError::Malformed { role: T::NAME, reason: e.to_string() };
    let signed = serde_json::to_value(role).map_err(malformed)?;
    let message = canonical_json(&signed).map_err(|source| TufError::Canonical { role: T::NAME, source })?;
    let signatures: Vec<_> = keys
        .iter()
        .map(|key| json!({ "keyid": key.id, "sig": hex::encode(key.secret.sign(&message).to_bytes()) }))
        .collect();
    let bytes =
        serde_json::to_vec(&json!({ "signatures": signatures, "signed": signed })).map_err(malformed)?;
    let max = T::NAME.bytes_max();
    if bytes.len() > max {
        return Err(TufError::TooLarge { role: T::NAME, bytes: bytes.len(), max });
    }
    Ok(bytes)
}
