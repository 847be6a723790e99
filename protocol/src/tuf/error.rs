//! Why metadata or a target was refused.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{canonical::CanonicalError, time::UtcTime};

/// The four top-level roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoleName {
    Root,
    Timestamp,
    Snapshot,
    Targets,
}

impl RoleName {
    pub const ALL: [RoleName; 4] =
        [RoleName::Root, RoleName::Timestamp, RoleName::Snapshot, RoleName::Targets];

    pub fn as_str(self) -> &'static str {
        match self {
            RoleName::Root => "root",
            RoleName::Timestamp => "timestamp",
            RoleName::Snapshot => "snapshot",
            RoleName::Targets => "targets",
        }
    }

    /// The largest file that is read for the role; the reference client has the same bounds.
    pub fn bytes_max(self) -> usize {
        match self {
            RoleName::Root => 512_000,
            RoleName::Timestamp => 16_384,
            RoleName::Snapshot => 2_000_000,
            RoleName::Targets => 5_000_000,
        }
    }

    /// The name of the role's file without a version, `snapshot.json`.
    pub fn file(self) -> &'static str {
        match self {
            RoleName::Root => "root.json",
            RoleName::Timestamp => "timestamp.json",
            RoleName::Snapshot => "snapshot.json",
            RoleName::Targets => "targets.json",
        }
    }
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TufError {
    #[error("{role} metadata of {bytes} bytes is over its limit of {max} bytes")]
    TooLarge { role: RoleName, bytes: usize, max: usize },
    #[error("{role} metadata is malformed: {reason}")]
    Malformed { role: RoleName, reason: String },
    #[error("{role} metadata has no canonical form: {source}")]
    Canonical { role: RoleName, source: CanonicalError },
    #[error("{role} metadata obeys specification {version:?}, this client reads 1.x")]
    UnsupportedSpec { role: RoleName, version: String },
    #[error("key {keyid} of role {role} is {keytype}/{scheme}, only ed25519/ed25519 is accepted")]
    UnsupportedKey { role: RoleName, keyid: String, keytype: String, scheme: String },
    #[error("{role} metadata has two signatures of key {keyid}")]
    DuplicateSignature { role: RoleName, keyid: String },
    #[error("{role} metadata has {valid} valid signatures of distinct keys, {needed} are needed")]
    BelowThreshold { role: RoleName, needed: u32, valid: u32 },
    #[error("{role} metadata expired at {expires}, it is {now}")]
    Expired { role: RoleName, expires: UtcTime, now: UtcTime },
    #[error("{file} version {offered} is older than version {trusted}, which was seen before")]
    Rollback { file: String, trusted: u64, offered: u64 },
    #[error("{file} has version {found}, expected is {expected}")]
    Version { file: String, expected: u64, found: u64 },
    #[error("{file} was in the trusted snapshot and is missing in the new one")]
    RoleRemoved { file: String },
    #[error("{file} is not listed by {by}")]
    NotListed { file: String, by: RoleName },
    #[error("{file} has {found} bytes, expected are {expected}")]
    Length { file: String, expected: u64, found: u64 },
    #[error("{file} does not match its {algorithm} digest")]
    Hash { file: String, algorithm: String },
    #[error("{file} has no digest that this client knows, only {algorithm:?}")]
    UnknownHash { file: String, algorithm: String },
    #[error("over {ROOT_ROTATIONS_MAX} new root files in one refresh", ROOT_ROTATIONS_MAX = super::ROOT_ROTATIONS_MAX)]
    TooManyRoots,
    #[error("{call} is only possible after {after}")]
    OutOfOrder { call: &'static str, after: &'static str },
    #[error("no target {path:?} in the trusted metadata")]
    UnknownTarget { path: String },
    #[error("target path {path:?} is not a relative path of plain file names")]
    UnsafePath { path: String },
}
