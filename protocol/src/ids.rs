//! Typed ids. Each validates once, at the edge, so that a value of the type can be put into a path, a topic or a
//! certificate without another look.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Why a text is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error(
        "{kind} {text:?}: allowed are 1 to {max} characters of a-z, 0-9, '-', '_' and '.', the first one a-z or 0-9"
    )]
    Name { kind: &'static str, text: String, max: usize },
    #[error("digest {text:?}: expected 64 lowercase hexadecimal digits")]
    Digest { text: String },
    #[error("release {text:?}: expected MODEL/VERSION with a version of at least 1")]
    Release { text: String },
    #[error("boot id {text:?}: expected 32 lowercase hexadecimal digits")]
    Boot { text: String },
}

fn checked_name(kind: &'static str, text: &str) -> Result<String, IdError> {
    const MAX: usize = 63;
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let legal = (1..=MAX).contains(&text.len())
        && plain(text.as_bytes()[0])
        && text.bytes().all(|c| plain(c) || matches!(c, b'-' | b'_' | b'.'));
    if legal { Ok(text.to_owned()) } else { Err(IdError::Name { kind, text: shortened(text), max: MAX }) }
}

/// Hostile text is quoted in errors, but never whole.
fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

macro_rules! text_id {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

/// A device: the common name of its client certificate, its MQTT client id and the third level of its topics.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceId(String);
text_id!(DeviceId);

impl FromStr for DeviceId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        checked_name("device id", text).map(Self)
    }
}

/// One start of an agent process: 128 random bits. Records are numbered within it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BootId(String);
text_id!(BootId);

impl BootId {
    pub fn from_random(bits: [u8; 16]) -> Self {
        Self(hex::encode(bits))
    }
}

impl FromStr for BootId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let legal = text.len() == 32 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        if legal { Ok(Self(text.to_owned())) } else { Err(IdError::Boot { text: shortened(text) }) }
    }
}

/// A release of a model, written `MODEL/VERSION`. Versions of a model grow and are never reused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReleaseId {
    model: String,
    version: u32,
}

impl ReleaseId {
    pub fn new(model: &str, version: u32) -> Result<Self, IdError> {
        let model = checked_name("model", model)?;
        if version == 0 {
            return Err(IdError::Release { text: format!("{model}/{version}") });
        }
        Ok(Self { model, version })
    }

    pub fn model(&self) -> &str {
        &self.model
    }

    pub fn version(&self) -> u32 {
        self.version
    }

    /// The path of one of its files as a TUF target, `MODEL/VERSION/FILE`.
    pub fn target_path(&self, file: &str) -> String {
        format!("{}/{}/{file}", self.model, self.version)
    }
}

impl fmt::Display for ReleaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.model, self.version)
    }
}

impl FromStr for ReleaseId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let bad = || IdError::Release { text: shortened(text) };
        let (model, version) = text.split_once('/').ok_or_else(bad)?;
        // `u32::from_str` takes a leading `+` and zeros, which would give one release two names.
        let version = version.parse::<u32>().ok().filter(|v| v.to_string() == version).ok_or_else(bad)?;
        Self::new(model, version)
    }
}

impl TryFrom<String> for ReleaseId {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<ReleaseId> for String {
    fn from(id: ReleaseId) -> String {
        id.to_string()
    }
}

/// SHA-256 of a content; the name of everything that is stored by content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    pub fn of(content: &[u8]) -> Self {
        Self(Sha256::digest(content).into())
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let bad = || IdError::Digest { text: shortened(text) };
        if text.bytes().any(|c| c.is_ascii_uppercase()) {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| bad())?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

#[cfg(feature = "openapi")]
mod schema {
    //! In JSON every id is a string.
    macro_rules! string_schema {
        ($($name:ty),*) => {$(
            impl utoipa::PartialSchema for $name {
                fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                    String::schema()
                }
            }
            impl utoipa::ToSchema for $name {}
        )*};
    }
    string_schema!(super::DeviceId, super::BootId, super::ReleaseId, super::Digest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_refuse_what_could_leave_a_path_or_a_topic() {
        for bad in ["", ".", "..", "a/b", "a+b", "#", "A", "-a", "a b", "ä", &"a".repeat(64)] {
            assert!(bad.parse::<DeviceId>().is_err(), "{bad:?}");
        }
        assert_eq!("line-3.cam_1".parse::<DeviceId>().unwrap().as_str(), "line-3.cam_1");
        for bad in ["", "m", "m/", "m/0", "m/-1", "m/+1", "m/01", "m/1/2", "../1", "M/1", "m/4294967296"] {
            assert!(bad.parse::<ReleaseId>().is_err(), "{bad:?}");
        }
        assert_eq!("m/7".parse::<ReleaseId>().unwrap().target_path("model.onnx"), "m/7/model.onnx");
        for bad in ["", "0", &"0".repeat(63), &"g".repeat(64), &"A".repeat(64)] {
            assert!(bad.parse::<Digest>().is_err(), "{bad:?}");
        }
        let digest = Digest::of(b"andon");
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
    }
}
