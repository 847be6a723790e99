//! The `signed` part of each role (§4.3 to §4.6). Fields that this version does not know are kept in `other`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use sha2::{Digest as _, Sha256, Sha512};

use super::{RoleName, SPEC_VERSION, TufError, canonical_json, time::UtcTime};
use crate::ids::Digest;

/// Digests by algorithm, hexadecimal.
pub type Hashes = BTreeMap<String, String>;

/// A top-level role.
pub trait Role: Serialize + DeserializeOwned {
    const NAME: RoleName;

    fn header(&self) -> &Header;

    /// Rules beyond the types. Called after parsing.
    fn check(&self) -> Result<(), String>;
}

/// What every role starts with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    #[serde(rename = "_type")]
    pub role: RoleName,
    pub spec_version: String,
    /// From 1, growing with every change.
    pub version: u64,
    pub expires: UtcTime,
}

impl Header {
    pub fn new(role: RoleName, version: u64, expires: UtcTime) -> Self {
        Self { role, spec_version: SPEC_VERSION.into(), version, expires }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Root {
    #[serde(flatten)]
    pub header: Header,
    #[serde(default)]
    pub consistent_snapshot: bool,
    /// By key id. The id is an opaque name, never computed anew (§4.2: a client need not know how it was made).
    pub keys: BTreeMap<String, Key>,
    pub roles: Roles,
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Key {
    pub keytype: String,
    pub scheme: String,
    pub keyval: KeyValue,
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeyValue {
    /// 64 hexadecimal digits for ed25519.
    pub public: String,
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl Key {
    pub fn ed25519(public: &[u8; 32]) -> Self {
        let keyval = KeyValue { public: hex::encode(public), other: BTreeMap::new() };
        Self { keytype: "ed25519".into(), scheme: "ed25519".into(), keyval, other: BTreeMap::new() }
    }

    /// The id that we give a key: SHA-256 of its canonical JSON (§4.2).
    pub fn id(&self) -> String {
        let value = serde_json::to_value(self).unwrap_or_default();
        hex::encode(Sha256::digest(canonical_json(&value).unwrap_or_default()))
    }
}

/// Which keys may speak for the role, and how many of them must.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoleKeys {
    pub keyids: Vec<String>,
    pub threshold: u32,
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl RoleKeys {
    pub fn new(keyids: Vec<String>, threshold: u32) -> Self {
        Self { keyids, threshold, other: BTreeMap::new() }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Roles {
    pub root: RoleKeys,
    pub timestamp: RoleKeys,
    pub snapshot: RoleKeys,
    pub targets: RoleKeys,
}

impl Roles {
    pub fn of(&self, role: RoleName) -> &RoleKeys {
        match role {
            RoleName::Root => &self.root,
            RoleName::Timestamp => &self.timestamp,
            RoleName::Snapshot => &self.snapshot,
            RoleName::Targets => &self.targets,
        }
    }
}

impl Role for Root {
    const NAME: RoleName = RoleName::Root;

    fn header(&self) -> &Header {
        &self.header
    }

    fn check(&self) -> Result<(), String> {
        for role in RoleName::ALL {
            let RoleKeys { keyids, threshold, .. } = self.roles.of(role);
            let mut distinct = keyids.clone();
            distinct.sort_unstable();
            distinct.dedup();
            if distinct.len() != keyids.len() {
                return Err(format!("role {role} lists a key id twice"));
            }
            if *threshold == 0 {
                return Err(format!("role {role} has threshold 0"));
            }
        }
        Ok(())
    }
}

/// Another metadata file: its version, and where the writer chose to say so, its length and digests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetaFile {
    pub version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hashes: Option<Hashes>,
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl MetaFile {
    /// The entry for a file with this content.
    pub fn of(version: u64, content: &[u8]) -> Self {
        Self {
            version,
            length: Some(content.len() as u64),
            hashes: Some(sha256_hashes(Digest::of(content))),
            other: BTreeMap::new(),
        }
    }

    /// Compares `content` with what is said about it.
    pub(super) fn matches(&self, file: &str, content: &[u8]) -> Result<(), TufError> {
        if let Some(expected) = self.length
            && expected != content.len() as u64
        {
            return Err(TufError::Length { file: file.into(), expected, found: content.len() as u64 });
        }
        self.hashes.as_ref().map_or(Ok(()), |hashes| match_hashes(hashes, file, content))
    }

    fn check(&self, file: &str) -> Result<(), String> {
        if self.version == 0 {
            return Err(format!("{file} has version 0"));
        }
        Ok(())
    }
}

fn sha256_hashes(digest: Digest) -> Hashes {
    Hashes::from([("sha256".to_owned(), digest.to_string())])
}

/// Every digest that is given must match, and each must be of a kind that is known.
fn match_hashes(hashes: &Hashes, file: &str, content: &[u8]) -> Result<(), TufError> {
    for (algorithm, expected) in hashes {
        let found = match algorithm.as_str() {
            "sha256" => hex::encode(Sha256::digest(content)),
            "sha512" => hex::encode(Sha512::digest(content)),
            _ => return Err(TufError::UnknownHash { file: file.into(), algorithm: algorithm.clone() }),
        };
        if found != *expected {
            return Err(TufError::Hash { file: file.into(), algorithm: algorithm.clone() });
        }
    }
    Ok(())
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timestamp {
    #[serde(flatten)]
    pub header: Header,
    /// `snapshot.json` and nothing else.
    pub meta: BTreeMap<String, MetaFile>,
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl Timestamp {
    pub fn new(header: Header, snapshot: MetaFile) -> Self {
        let meta = BTreeMap::from([(RoleName::Snapshot.file().to_owned(), snapshot)]);
        Self { header, meta, other: BTreeMap::new() }
    }

    /// The entry of `snapshot.json`.
    pub fn snapshot(&self) -> Result<&MetaFile, TufError> {
        let file = RoleName::Snapshot.file();
        self.meta.get(file).ok_or_else(|| TufError::NotListed { file: file.into(), by: RoleName::Timestamp })
    }
}

impl Role for Timestamp {
    const NAME: RoleName = RoleName::Timestamp;

    fn header(&self) -> &Header {
        &self.header
    }

    fn check(&self) -> Result<(), String> {
        match self.meta.get(RoleName::Snapshot.file()) {
            Some(meta) if self.meta.len() == 1 => meta.check("snapshot.json"),
            _ => Err("meta must list snapshot.json and nothing else".into()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    #[serde(flatten)]
    pub header: Header,
    /// `targets.json`, and a file for each delegated role.
    pub meta: BTreeMap<String, MetaFile>,
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl Snapshot {
    pub fn new(header: Header, targets: MetaFile) -> Self {
        let meta = BTreeMap::from([(RoleName::Targets.file().to_owned(), targets)]);
        Self { header, meta, other: BTreeMap::new() }
    }

    /// The entry of `targets.json`.
    pub fn targets(&self) -> Result<&MetaFile, TufError> {
        let file = RoleName::Targets.file();
        self.meta.get(file).ok_or_else(|| TufError::NotListed { file: file.into(), by: RoleName::Snapshot })
    }
}

impl Role for Snapshot {
    const NAME: RoleName = RoleName::Snapshot;

    fn header(&self) -> &Header {
        &self.header
    }

    fn check(&self) -> Result<(), String> {
        self.meta.iter().try_for_each(|(file, meta)| meta.check(file))
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Targets {
    #[serde(flatten)]
    pub header: Header,
    /// By path, `MODEL/VERSION/FILE`.
    pub targets: BTreeMap<String, TargetFile>,
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetFile {
    pub length: u64,
    pub hashes: Hashes,
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl TargetFile {
    pub fn new(length: u64, digest: Digest) -> Self {
        Self { length, hashes: sha256_hashes(digest), other: BTreeMap::new() }
    }
}

impl Targets {
    pub fn new(header: Header, targets: BTreeMap<String, TargetFile>) -> Self {
        Self { header, targets, other: BTreeMap::new() }
    }
}

impl Role for Targets {
    const NAME: RoleName = RoleName::Targets;

    fn header(&self) -> &Header {
        &self.header
    }

    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}
