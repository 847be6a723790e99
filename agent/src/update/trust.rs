//! The TUF client's memory, and its refresh. What is trusted is decided by `andon_protocol::tuf`; this file fetches
//! what it asks for and stores what it took, root N before root N+1 is asked for.
//!
//! A stored file that does not verify is as good as none: the walk starts again at the root of the enrolment, which
//! is the only one taken on trust. Expired metadata, a wrong signature or a version that fell is refused and changes
//! nothing here.

use std::{io, path::PathBuf};

use andon_protocol::tuf::{Change, RoleName, TrustedMetadata};

use super::{fetch::FetchError, source::Source, store::Store};
use crate::files;

/// Walks from the stored root to verified targets.
pub fn refresh(
    store: &Store,
    enrolment_root: &[u8],
    source: &mut dyn Source,
    now_ms: i64,
) -> Result<TrustedMetadata, FetchError> {
    let mut trusted = stored_root(store, enrolment_root)?;
    loop {
        let next = trusted.root_download();
        let Some(bytes) = source.metadata(&next.file, next.bytes_max)? else { break };
        trusted.update_root(&bytes)?;
        if trusted.rotated() {
            // Before the new root is stored: a crash between the two loses the memory of versions and nothing else.
            store.disk().remove(&path(store, RoleName::Timestamp))?;
            store.disk().remove(&path(store, RoleName::Snapshot))?;
            store.disk().sync(&store.trust_folder())?;
        }
        keep(store, RoleName::Root, &bytes)?;
    }
    trusted.root_done(now_ms)?;

    if let Some(bytes) = stored(store, RoleName::Timestamp)? {
        ignore_stale(RoleName::Timestamp, trusted.local_timestamp(&bytes));
    }
    let next = trusted.timestamp_download();
    let bytes = require(source.metadata(&next.file, next.bytes_max)?, &next.file)?;
    if trusted.update_timestamp(&bytes)? == Change::New {
        keep(store, RoleName::Timestamp, &bytes)?;
    }

    let local = stored(store, RoleName::Snapshot)?;
    let current = local.is_some_and(|bytes| {
        trusted.local_snapshot(&bytes).unwrap_or_else(|error| {
            ignore_stale(RoleName::Snapshot, Err(error));
            false
        })
    });
    if !current {
        let next = trusted.snapshot_download()?;
        let bytes = require(source.metadata(&next.file, next.bytes_max)?, &next.file)?;
        trusted.update_snapshot(&bytes)?;
        keep(store, RoleName::Snapshot, &bytes)?;
    }

    let local = stored(store, RoleName::Targets)?;
    if local.is_none_or(|bytes| trusted.update_targets(&bytes).is_err()) {
        let next = trusted.targets_download()?;
        let bytes = require(source.metadata(&next.file, next.bytes_max)?, &next.file)?;
        trusted.update_targets(&bytes)?;
        keep(store, RoleName::Targets, &bytes)?;
    }
    Ok(trusted)
}

fn stored_root(store: &Store, enrolment_root: &[u8]) -> Result<TrustedMetadata, FetchError> {
    if let Some(bytes) = stored(store, RoleName::Root)? {
        match TrustedMetadata::new(&bytes) {
            Ok(trusted) => return Ok(trusted),
            Err(error) => {
                tracing::warn!(%error, "the stored root is damaged; starting from the one of enrolment")
            }
        }
    }
    Ok(TrustedMetadata::new(enrolment_root)?)
}

fn path(store: &Store, role: RoleName) -> PathBuf {
    store.trust_folder().join(role.file())
}

fn stored(store: &Store, role: RoleName) -> io::Result<Option<Vec<u8>>> {
    match store.disk().read(&path(store, role), role.bytes_max() as u64) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::FileTooLarge) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn keep(store: &Store, role: RoleName, bytes: &[u8]) -> io::Result<()> {
    files::replace(store.disk(), &path(store, role), bytes)
}

fn require(bytes: Option<Vec<u8>>, file: &str) -> Result<Vec<u8>, FetchError> {
    bytes.ok_or_else(|| FetchError::Missing { file: file.to_owned() })
}

fn ignore_stale(role: RoleName, result: Result<(), andon_protocol::tuf::TufError>) {
    if let Err(error) = result {
        tracing::info!(%role, %error, "stored metadata no longer verifies; it is fetched anew");
    }
}
