//! The client's workflow (§5.3 to §5.7) as a state without I/O. The caller fetches what [`Download`] names, hands it in, and
//! stores what was taken. Order of calls:
//!
//! ```text
//! new(stored root) → update_root* → root_done(now)
//!   → [local_timestamp] → update_timestamp → [local_snapshot] → update_snapshot → update_targets → target(…)
//! ```
//! Local files are only a memory of the versions seen: they need not be fresh, and one that no longer verifies is
//! forgotten. [`TrustedMetadata::local_snapshot`] returning `true` and an accepted local `targets.json` save a fetch.
//!
//! Recovery from a fast-forward attack (§5.3.11): when a root revokes a timestamp or snapshot key, versions seen
//! before count no longer. The caller deletes its stored timestamp and snapshot when [`TrustedMetadata::rotated`] says
//! so, *before* it stores the new root: then a crash between the two loses nothing but the memory of versions.

use super::{
    Header, ROOT_ROTATIONS_MAX, RoleName, TufError, UtcTime,
    roles::{MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp},
    signed::{Signed, Verified},
};
use crate::ids::{Digest, ReleaseId};

#[derive(Debug, Clone)]
pub struct TrustedMetadata {
    root: Verified<Root>,
    roots_new: u32,
    rotated: bool,
    /// Set by `root_done`; one time for the whole refresh (§5.1).
    now: Option<UtcTime>,
    timestamp: Option<Verified<Timestamp>>,
    /// Whether `timestamp` is the repository's current one, not only the stored one.
    timestamp_current: bool,
    snapshot: Option<Verified<Snapshot>>,
    /// Whether `snapshot` is the one that `timestamp` names.
    snapshot_current: bool,
    targets: Option<Verified<Targets>>,
}

/// Whether a fetched file is newer than the stored one. The same version is not read again, so the stored one stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    New,
    Same,
}

/// A metadata file to fetch, below the metadata URL, and how many bytes of it may be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Download {
    pub file: String,
    pub bytes_max: usize,
}

/// A file of a release as verified metadata describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    path: String,
    download: String,
    length: u64,
    digest: Digest,
}

impl Target {
    /// `MODEL/VERSION/FILE`, plain names only.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Where it is fetched, below the targets URL. The last part carries the digest in a consistent repository.
    pub fn download(&self) -> &str {
        &self.download
    }

    pub fn length(&self) -> u64 {
        self.length
    }

    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Whether `content` is the file (§5.7.3).
    pub fn check(&self, content: &[u8]) -> Result<(), TufError> {
        if content.len() as u64 != self.length {
            let (expected, found) = (self.length, content.len() as u64);
            return Err(TufError::Length { file: self.path.clone(), expected, found });
        }
        if Digest::of(content) != self.digest {
            return Err(TufError::Hash { file: self.path.clone(), algorithm: "sha256".into() });
        }
        Ok(())
    }
}

impl TrustedMetadata {
    /// Starts from a root that is trusted already: the one from enrolment, or the newest one stored since. It must be
    /// signed by itself; it may be expired (§5.3.10 looks at the last one only).
    pub fn new(root: &[u8]) -> Result<Self, TufError> {
        Ok(Self {
            root: Signed::<Root>::parse(root)?.verify_self()?,
            roots_new: 0,
            rotated: false,
            now: None,
            timestamp: None,
            timestamp_current: false,
            snapshot: None,
            snapshot_current: false,
            targets: None,
        })
    }

    pub fn root(&self) -> &Verified<Root> {
        &self.root
    }

    pub fn timestamp(&self) -> Option<&Verified<Timestamp>> {
        self.timestamp.as_ref()
    }

    pub fn snapshot(&self) -> Option<&Verified<Snapshot>> {
        self.snapshot.as_ref()
    }

    pub fn targets(&self) -> Option<&Verified<Targets>> {
        self.targets.as_ref()
    }

    /// Whether a new root revoked a key of timestamp or snapshot.
    pub fn rotated(&self) -> bool {
        self.rotated
    }

    /// The root to ask for next (§5.3.3). That it does not exist is how the walk ends.
    pub fn root_download(&self) -> Download {
        download(&format!("{}.", self.root.header.version.saturating_add(1)), RoleName::Root, None)
    }

    /// §5.3.4 to §5.3.8: signed by the trusted root's keys and by its own, and exactly one version on.
    pub fn update_root(&mut self, bytes: &[u8]) -> Result<(), TufError> {
        if self.now.is_some() {
            return Err(TufError::OutOfOrder { call: "update_root", after: "new, before root_done" });
        }
        if self.roots_new == ROOT_ROTATIONS_MAX {
            return Err(TufError::TooManyRoots);
        }
        let root = Signed::<Root>::parse(bytes)?.verify(&self.root)?;
        let expected = self.root.header.version.saturating_add(1);
        expect_version("root.json", expected, root.header.version)?;
        let root = Signed::<Root>::parse(bytes)?.verify_self()?;
        self.rotated |= [RoleName::Timestamp, RoleName::Snapshot]
            .into_iter()
            .any(|role| revokes(&self.root, &root, role));
        self.root = root;
        self.roots_new += 1;
        Ok(())
    }

    /// §5.3.10: there is no newer root, and this one is fresh at `now_ms`.
    pub fn root_done(&mut self, now_ms: i64) -> Result<(), TufError> {
        let now = UtcTime::from_unix_ms(now_ms);
        require_fresh(&self.root.header, now)?;
        self.now = Some(now);
        Ok(())
    }

    /// Remembers the stored timestamp's versions, if it still verifies.
    pub fn local_timestamp(&mut self, bytes: &[u8]) -> Result<(), TufError> {
        self.now("local_timestamp")?;
        if self.timestamp_current {
            return Err(TufError::OutOfOrder {
                call: "local_timestamp",
                after: "root_done, before update_timestamp",
            });
        }
        if !self.rotated {
            self.timestamp = Some(Signed::<Timestamp>::parse(bytes)?.verify(&self.root)?);
        }
        Ok(())
    }

    pub fn timestamp_download(&self) -> Download {
        download("", RoleName::Timestamp, None)
    }

    /// §5.4: signatures, no lower version of itself or of the snapshot than seen before, freshness.
    pub fn update_timestamp(&mut self, bytes: &[u8]) -> Result<Change, TufError> {
        let now = self.now("update_timestamp")?;
        if self.snapshot.is_some() {
            return Err(TufError::OutOfOrder {
                call: "update_timestamp",
                after: "root_done, before any snapshot",
            });
        }
        let offered = Signed::<Timestamp>::parse(bytes)?.verify(&self.root)?;
        let change = match &self.timestamp {
            None => Change::New,
            Some(seen) => {
                forbid_rollback(RoleName::Timestamp.file(), seen.header.version, offered.header.version)?;
                forbid_rollback(
                    RoleName::Snapshot.file(),
                    seen.snapshot()?.version,
                    offered.snapshot()?.version,
                )?;
                if offered.header.version == seen.header.version { Change::Same } else { Change::New }
            }
        };
        let current = match (change, &self.timestamp) {
            (Change::Same, Some(seen)) => seen.clone(),
            _ => offered,
        };
        require_fresh(&current.header, now)?;
        self.timestamp = Some(current);
        self.timestamp_current = true;
        Ok(change)
    }

    /// Remembers the stored snapshot's versions, if it still verifies. `true`: it is the current one, so none need be
    /// fetched.
    pub fn local_snapshot(&mut self, bytes: &[u8]) -> Result<bool, TufError> {
        let (now, meta) = self.snapshot_meta("local_snapshot")?;
        let meta = meta.clone();
        if self.rotated || self.snapshot_current {
            return Ok(self.snapshot_current);
        }
        let snapshot = Signed::<Snapshot>::parse(bytes)?.verify(&self.root)?;
        self.snapshot_current = meta.matches(RoleName::Snapshot.file(), bytes).is_ok()
            && snapshot.header.version == meta.version
            && require_fresh(&snapshot.header, now).is_ok();
        self.snapshot = Some(snapshot);
        Ok(self.snapshot_current)
    }

    pub fn snapshot_download(&self) -> Result<Download, TufError> {
        let (_, meta) = self.snapshot_meta("snapshot_download")?;
        Ok(download(&self.version_prefix(meta.version), RoleName::Snapshot, meta.length))
    }

    /// §5.5: digest, signatures, the version that the timestamp names, no role lost or lowered, freshness.
    pub fn update_snapshot(&mut self, bytes: &[u8]) -> Result<(), TufError> {
        let (now, meta) = self.snapshot_meta("update_snapshot")?;
        meta.matches(RoleName::Snapshot.file(), bytes)?;
        let offered = Signed::<Snapshot>::parse(bytes)?.verify(&self.root)?;
        expect_version(RoleName::Snapshot.file(), meta.version, offered.header.version)?;
        offered.targets()?;
        for (file, seen) in self.snapshot.iter().flat_map(|s| &s.meta) {
            let Some(new) = offered.meta.get(file) else {
                return Err(TufError::RoleRemoved { file: short(file) });
            };
            forbid_rollback(file, seen.version, new.version)?;
        }
        require_fresh(&offered.header, now)?;
        self.snapshot = Some(offered);
        self.snapshot_current = true;
        Ok(())
    }

    pub fn targets_download(&self) -> Result<Download, TufError> {
        let (_, meta) = self.targets_meta("targets_download")?;
        Ok(download(&self.version_prefix(meta.version), RoleName::Targets, meta.length))
    }

    /// §5.6: digest, signatures, the version that the snapshot names, freshness. Takes a stored file as well.
    pub fn update_targets(&mut self, bytes: &[u8]) -> Result<(), TufError> {
        let (now, meta) = self.targets_meta("update_targets")?;
        meta.matches(RoleName::Targets.file(), bytes)?;
        let offered = Signed::<Targets>::parse(bytes)?.verify(&self.root)?;
        expect_version(RoleName::Targets.file(), meta.version, offered.header.version)?;
        require_fresh(&offered.header, now)?;
        self.targets = Some(offered);
        Ok(())
    }

    /// The target at `path`.
    pub fn target(&self, path: &str) -> Result<Target, TufError> {
        let targets = self.current_targets("target")?;
        match targets.targets.get_key_value(path) {
            Some((path, file)) => self.checked_target(path, file),
            None => Err(TufError::UnknownTarget { path: short(path) }),
        }
    }

    /// All files of a release, in the order of their paths; at least one, at most [`RELEASE_FILES_MAX`].
    ///
    /// [`RELEASE_FILES_MAX`]: super::RELEASE_FILES_MAX
    pub fn release(&self, release: &ReleaseId) -> Result<Vec<Target>, TufError> {
        let prefix = release.target_path("");
        let below = self.current_targets("release")?.targets.range(prefix.clone()..);
        let files: Vec<_> = below
            .take_while(|(path, _)| path.starts_with(&prefix))
            .take(super::RELEASE_FILES_MAX + 1)
            .map(|(path, file)| self.checked_target(path, file))
            .collect::<Result<_, _>>()?;
        match files.len() {
            0 => Err(TufError::UnknownTarget { path: prefix }),
            n if n > super::RELEASE_FILES_MAX => Err(TufError::Malformed {
                role: RoleName::Targets,
                reason: format!("release {release} has over {} files", super::RELEASE_FILES_MAX),
            }),
            _ => Ok(files),
        }
    }

    fn current_targets(&self, call: &'static str) -> Result<&Verified<Targets>, TufError> {
        self.targets.as_ref().ok_or(TufError::OutOfOrder { call, after: "update_targets" })
    }

    fn checked_target(&self, path: &str, file: &TargetFile) -> Result<Target, TufError> {
        // A signature says who wrote the path, not that it stays below the folder it is written to.
        if path.len() > 512 || !path.split('/').all(crate::release::is_plain_file_name) {
            return Err(TufError::UnsafePath { path: short(path) });
        }
        let Some(digest) = file.hashes.get("sha256") else {
            let algorithm = file.hashes.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(TufError::UnknownHash { file: short(path), algorithm: short(&algorithm) });
        };
        let digest: Digest = digest
            .parse()
            .map_err(|e| TufError::Malformed { role: RoleName::Targets, reason: format!("{path}: {e}") })?;
        // §5.7.3: the digest goes before the file's name, in its folder.
        let download = match (self.root.consistent_snapshot, path.rsplit_once('/')) {
            (false, _) => path.to_owned(),
            (true, Some((folder, name))) => format!("{folder}/{digest}.{name}"),
            (true, None) => format!("{digest}.{path}"),
        };
        Ok(Target { path: path.to_owned(), download, length: file.length, digest })
    }

    fn now(&self, call: &'static str) -> Result<UtcTime, TufError> {
        self.now.ok_or(TufError::OutOfOrder { call, after: "root_done" })
    }

    fn snapshot_meta(&self, call: &'static str) -> Result<(UtcTime, &MetaFile), TufError> {
        let now = self.now(call)?;
        match &self.timestamp {
            Some(timestamp) if self.timestamp_current => Ok((now, timestamp.snapshot()?)),
            _ => Err(TufError::OutOfOrder { call, after: "update_timestamp" }),
        }
    }

    fn targets_meta(&self, call: &'static str) -> Result<(UtcTime, &MetaFile), TufError> {
        let now = self.now(call)?;
        match &self.snapshot {
            Some(snapshot) if self.snapshot_current => Ok((now, snapshot.targets()?)),
            _ => Err(TufError::OutOfOrder { call, after: "a current snapshot" }),
        }
    }

    /// §6.2: in a consistent repository the version is part of the name.
    fn version_prefix(&self, version: u64) -> String {
        if self.root.consistent_snapshot { format!("{version}.") } else { String::new() }
    }
}

fn download(prefix: &str, role: RoleName, length: Option<u64>) -> Download {
    let max = role.bytes_max();
    let bytes_max = length.map_or(max, |l| usize::try_from(l).unwrap_or(max).min(max));
    Download { file: format!("{prefix}{}", role.file()), bytes_max }
}

fn require_fresh(header: &Header, now: UtcTime) -> Result<(), TufError> {
    if now >= header.expires {
        return Err(TufError::Expired { role: header.role, expires: header.expires, now });
    }
    Ok(())
}

fn expect_version(file: &str, expected: u64, found: u64) -> Result<(), TufError> {
    if found != expected {
        return Err(TufError::Version { file: file.into(), expected, found });
    }
    Ok(())
}

fn forbid_rollback(file: &str, trusted: u64, offered: u64) -> Result<(), TufError> {
    if offered < trusted {
        return Err(TufError::Rollback { file: short(file), trusted, offered });
    }
    Ok(())
}

fn revokes(old: &Root, new: &Root, role: RoleName) -> bool {
    let key = |root: &Root, id: &String| root.keys.get(id).map(|k| k.keyval.public.clone());
    let kept: Vec<_> = new.roles.of(role).keyids.iter().filter_map(|id| key(new, id)).collect();
    old.roles.of(role).keyids.iter().filter_map(|id| key(old, id)).any(|public| !kept.contains(&public))
}

fn short(text: &str) -> String {
    text.chars().take(120).collect()
}
