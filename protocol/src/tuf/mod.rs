//! TUF metadata (The Update Framework, specification 1.0.x), ed25519 only: the types of the four top-level roles,
//! OLPC canonical JSON, verification, the client's workflow as a pure state, and signing.
//!
//! Invariants: no I/O and no clock (`now` is an argument); a [`Verified`] role exists only because enough distinct
//! keys signed exactly the bytes that it was read from; a refused file changes nothing in [`TrustedMetadata`].
//!
//! Not here: delegated targets roles (kept as unknown fields and never searched), fetching and storing.
//!
//! Clause numbers (§) are those of the specification 1.0.34.

mod canonical;
mod error;
mod roles;
mod sign;
mod signed;
mod time;
mod trusted;

#[cfg(test)]
mod tests;

pub use canonical::{CanonicalError, canonical_json};
pub use error::{RoleName, TufError};
pub use roles::{
    Hashes, Header, Key, KeyValue, MetaFile, Role, RoleKeys, Roles, Root, Snapshot, TargetFile, Targets,
    Timestamp,
};
pub use sign::{SigningKey, sign};
pub use signed::{Signed, Verified};
pub use time::UtcTime;
pub use trusted::{Change, Download, Target, TrustedMetadata};

/// What metadata written here claims to obey. Readers accept every 1.x.
pub const SPEC_VERSION: &str = "1.0.34";
/// Root files that one refresh walks through at most; the same bound as the reference client's.
pub const ROOT_ROTATIONS_MAX: u32 = 256;
/// Files of one release at most.
pub const RELEASE_FILES_MAX: usize = 2048;
