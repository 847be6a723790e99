//! CBOR (RFC 8949) with a bound. The first thing done to a payload is to compare its length with what its kind may be.

use serde::{Serialize, de::DeserializeOwned};

/// Why a payload is not what its content type says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("{kind} of {bytes} bytes is over its limit of {max} bytes")]
    TooLarge { kind: &'static str, bytes: usize, max: usize },
    #[error("{kind} is no valid CBOR of that kind: {reason}")]
    Malformed { kind: &'static str, reason: String },
    #[error("{kind} has {bytes} bytes after its end")]
    Trailing { kind: &'static str, bytes: usize },
    #[error("{kind} breaks a rule: {rule}")]
    Invalid { kind: &'static str, rule: String },
}

/// A payload of the wire: its content type, its largest size, and the rules that its type cannot express.
pub trait Wire: Serialize + DeserializeOwned {
    const KIND: &'static str;
    const CONTENT_TYPE: &'static str;
    const BYTES_MAX: usize;

    /// Rules beyond the types (counts, ranges). Called after decoding.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

/// CBOR of `value`. Cannot fail for our own types, which have text keys and no foreign serialisers.
pub fn encode<T: Wire>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).unwrap_or_else(|e| unreachable!("{}: {e}", T::KIND));
    bytes
}

/// Reads one `T` that fills `bytes` exactly. Unknown fields are ignored.
pub fn decode<T: Wire>(bytes: &[u8]) -> Result<T, DecodeError> {
    let kind = T::KIND;
    if bytes.len() > T::BYTES_MAX {
        return Err(DecodeError::TooLarge { kind, bytes: bytes.len(), max: T::BYTES_MAX });
    }
    let mut rest = bytes;
    let value: T = ciborium::de::from_reader_with_recursion_limit(&mut rest, 16)
        .map_err(|e| DecodeError::Malformed { kind, reason: e.to_string() })?;
    if !rest.is_empty() {
        return Err(DecodeError::Trailing { kind, bytes: rest.len() });
    }
    value.check().map_err(|rule| DecodeError::Invalid { kind, rule })?;
    Ok(value)
}
