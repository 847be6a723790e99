//! The repository on disk and what may be done to it. Blocking; call from `spawn_blocking`.
//!
//! Each change reads the current metadata from disk, writes the next targets, the next snapshot and last the timestamp, each
//! durable before the next. A crash in between leaves files that no timestamp names; the next change overwrites them.
//! Every change is idempotent: publishing what is published, or withdrawing what is not, writes nothing.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Mutex,
};

use andon_protocol::{
    Digest, ReleaseId,
    tuf::{
        Header, MetaFile, Role, RoleKeys, RoleName, Roles, Root, Signed, SigningKey, Snapshot, TargetFile,
        Targets, Timestamp, TufError, UtcTime, Verified, sign,
    },
};

use super::keys;
use crate::files::{self, Privacy};

const DAY_MS: i64 = 24 * 3600 * 1000;

/// How long a role's metadata is good for. It is signed anew when half of it, for root a year, is left.
fn lifetime_ms(role: RoleName) -> i64 {
    DAY_MS
        * match role {
            RoleName::Root => 5 * 365,
            RoleName::Targets => 365,
            RoleName::Snapshot => 30,
            RoleName::Timestamp => 7,
        }
}

const ROOT_RENEWAL_MS: i64 = 365 * DAY_MS;

#[derive(Debug, thiserror::Error)]
pub enum TufRepositoryError {
    #[error("TUF repository: {0}")]
    Io(#[from] io::Error),
    #[error("TUF repository: {file} is not what this server wrote: {source}")]
    Metadata { file: String, source: TufError },
    #[error("TUF repository: cannot sign: {0}")]
    Sign(TufError),
    #[error(
        "TUF repository: the key {0} is missing; restore it from your backup, or replace it with a new root"
    )]
    KeyMissing(PathBuf),
    #[error("TUF repository: the key {0} is not the one that the root lists for its role")]
    KeyUnknown(PathBuf),
    #[error("TUF repository: {path} has another content than the release says")]
    Content { path: String },
}

type Result<T, E = TufRepositoryError> = std::result::Result<T, E>;

/// A file of a release: its name within it (`golden/cases.json`), and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedFile {
    pub name: String,
    pub length: u64,
    pub digest: Digest,
}

pub struct Repository {
    metadata: PathBuf,
    targets: PathBuf,
    keys: PathBuf,
    /// One change at a time.
    change: Mutex<()>,
}

/// What the current timestamp leads to.
struct Current {
    root: Verified<Root>,
    timestamp: Verified<Timestamp>,
    snapshot: Verified<Snapshot>,
    targets: Verified<Targets>,
}

impl Repository {
    /// Opens the repository under `data_dir`, made with fresh keys at the first start, and renews what is about to
    /// expire.
    pub fn open(data_dir: &Path, now_ms: i64) -> Result<Self> {
        let tuf = data_dir.join("tuf");
        let repository = Self {
            metadata: tuf.join("metadata"),
            targets: tuf.join("targets"),
            keys: data_dir.join("keys"),
            change: Mutex::new(()),
        };
        for folder in [&repository.metadata, &repository.targets, &repository.keys] {
            files::create_dir(folder)?;
        }
        if !repository.metadata.join("timestamp.json").exists() {
            repository.create(now_ms)?;
        }
        repository.renew(now_ms)?;
        Ok(repository)
    }

    /// Where the device listener serves from.
    pub fn metadata_dir(&self) -> &Path {
        &self.metadata
    }

    pub fn targets_dir(&self) -> &Path {
        &self.targets
    }

    /// The text of `1.root.json`: what a device takes on trust at its enrolment.
    pub fn first_root(&self) -> Result<String> {
        let bytes = self.read("1.root.json", RoleName::Root)?;
        String::from_utf8(bytes).map_err(|e| io::Error::new(ErrorKind::InvalidData, e).into())
    }

    /// Whether all files of the release are in the current targets.
    pub fn is_published(&self, release: &ReleaseId) -> Result<bool> {
        let prefix = release.target_path("");
        Ok(self
            .current()?
            .targets
            .targets
            .range(prefix.clone()..)
            .next()
            .is_some_and(|(p, _)| p.starts_with(&prefix)))
    }

    /// Publishes the files of `release`, which lie in `folder`, as targets, all under one new version.
    pub fn publish(
        &self,
        release: &ReleaseId,
        folder: &Path,
        files: &[PublishedFile],
        now_ms: i64,
    ) -> Result<()> {
        let _change = self.lock_change();
        let current = self.current()?;
        let mut targets = current.targets.targets.clone();
        for file in files {
            self.place(release, folder, file)?;
            targets.insert(release.target_path(&file.name), TargetFile::new(file.length, file.digest));
        }
        self.write_targets(&current, targets, now_ms)
    }

    /// Takes releases out of the targets. Their files stay, for devices that are fetching them.
    pub fn withdraw(&self, releases: &[ReleaseId], now_ms: i64) -> Result<()> {
        let _change = self.lock_change();
        let current = self.current()?;
        let mut targets = current.targets.targets.clone();
        for release in releases {
            let prefix = release.target_path("");
            targets.retain(|path, _| !path.starts_with(&prefix));
        }
        self.write_targets(&current, targets, now_ms)
    }

    /// Signs anew what has less than half of its life left. Called at start and now and then.
    pub fn renew(&self, now_ms: i64) -> Result<()> {
        let _change = self.lock_change();
        self.renew_root(now_ms)?;
        let current = self.current()?;
        let is_due = |header: &Header| header.expires.unix_ms() - now_ms < lifetime_ms(header.role) / 2;
        if is_due(&current.targets.header) {
            self.write_from_targets(&current, current.targets.targets.clone(), now_ms)
        } else if is_due(&current.snapshot.header) {
            self.write_from_snapshot(
                &current,
                current.snapshot.targets().map_err(stored("snapshot.json"))?.clone(),
                now_ms,
            )
        } else if is_due(&current.timestamp.header) {
            self.write_timestamp(
                &current,
                current.timestamp.snapshot().map_err(stored("timestamp.json"))?.clone(),
                now_ms,
            )
        } else {
            Ok(())
        }
    }

    fn create(&self, now_ms: i64) -> Result<()> {
        let key = |role| match keys::load(&self.keys, role)? {
            // Left by a first start that did not come to its end.
            Some(key) => Ok(key),
            None => keys::create(&self.keys, role),
        };
        let signers: BTreeMap<RoleName, SigningKey> =
            RoleName::ALL.into_iter().map(|role| Ok((role, key(role)?))).collect::<io::Result<_>>()?;
        let one = |role: RoleName| RoleKeys::new(vec![signers[&role].id().to_owned()], 1);
        let root = Root {
            header: header(RoleName::Root, 1, now_ms),
            consistent_snapshot: true,
            keys: signers.values().map(|k| (k.id().to_owned(), k.public())).collect(),
            roles: Roles {
                root: one(RoleName::Root),
                timestamp: one(RoleName::Timestamp),
                snapshot: one(RoleName::Snapshot),
                targets: one(RoleName::Targets),
            },
            other: BTreeMap::new(),
        };
        self.write("1.root.json", &root, &signers[&RoleName::Root])?;
        let targets = Targets::new(header(RoleName::Targets, 1, now_ms), BTreeMap::new());
        let bytes = self.write("1.targets.json", &targets, &signers[&RoleName::Targets])?;
        let snapshot = Snapshot::new(header(RoleName::Snapshot, 1, now_ms), MetaFile::of(1, &bytes));
        let bytes = self.write("1.snapshot.json", &snapshot, &signers[&RoleName::Snapshot])?;
        let timestamp = Timestamp::new(header(RoleName::Timestamp, 1, now_ms), MetaFile::of(1, &bytes));
        self.write("timestamp.json", &timestamp, &signers[&RoleName::Timestamp])?;
        Ok(())
    }

    /// A root that is about to expire is signed anew, if its key is here.
    fn renew_root(&self, now_ms: i64) -> Result<()> {
        let root = self.root()?;
        let left_ms = root.header.expires.unix_ms() - now_ms;
        if left_ms >= ROOT_RENEWAL_MS {
            return Ok(());
        }
        let Some(key) = keys::load(&self.keys, RoleName::Root)? else {
            let (days, path) = (left_ms / DAY_MS, keys::path(&self.keys, RoleName::Root));
            tracing::warn!(
                days,
                "the TUF root expires: put {} back and start the server again",
                path.display()
            );
            return Ok(());
        };
        let mut next = Root::clone(&root);
        next.header = header(RoleName::Root, root.header.version + 1, now_ms);
        self.write(&format!("{}.root.json", next.header.version), &next, &self.listed(&root, key)?)?;
        tracing::info!(version = next.header.version, "the TUF root was signed anew");
        Ok(())
    }

    fn write_targets(
        &self,
        current: &Current,
        targets: BTreeMap<String, TargetFile>,
        now_ms: i64,
    ) -> Result<()> {
        if targets == current.targets.targets {
            return Ok(());
        }
        self.write_from_targets(current, targets, now_ms)
    }

    fn write_from_targets(
        &self,
        current: &Current,
        targets: BTreeMap<String, TargetFile>,
        now_ms: i64,
    ) -> Result<()> {
        let version = current.targets.header.version + 1;
        let targets = Targets::new(header(RoleName::Targets, version, now_ms), targets);
        let key = self.key(&current.root, RoleName::Targets)?;
        let bytes = self.write(&format!("{version}.targets.json"), &targets, &key)?;
        self.write_from_snapshot(current, MetaFile::of(version, &bytes), now_ms)
    }

    fn write_from_snapshot(&self, current: &Current, targets: MetaFile, now_ms: i64) -> Result<()> {
        let version = current.snapshot.header.version + 1;
        let snapshot = Snapshot::new(header(RoleName::Snapshot, version, now_ms), targets);
        let key = self.key(&current.root, RoleName::Snapshot)?;
        let bytes = self.write(&format!("{version}.snapshot.json"), &snapshot, &key)?;
        self.write_timestamp(current, MetaFile::of(version, &bytes), now_ms)
    }

    fn write_timestamp(&self, current: &Current, snapshot: MetaFile, now_ms: i64) -> Result<()> {
        let version = current.timestamp.header.version + 1;
        let timestamp = Timestamp::new(header(RoleName::Timestamp, version, now_ms), snapshot);
        let key = self.key(&current.root, RoleName::Timestamp)?;
        self.write("timestamp.json", &timestamp, &key)?;
        Ok(())
    }

    /// Links a file of a release to its place among the targets.
    fn place(&self, release: &ReleaseId, folder: &Path, file: &PublishedFile) -> Result<()> {
        let source = folder.join(&file.name);
        let target_path = release.target_path(&file.name);
        let (parent, name) = target_path.rsplit_once('/').unwrap_or(("", &target_path));
        let target = self.targets.join(parent).join(format!("{}.{name}", file.digest));
        let content = files::read_bounded(&source, file.length).map_err(|e| keys::with_path(&source, e))?;
        if content.len() as u64 != file.length || Digest::of(&content) != file.digest {
            return Err(TufRepositoryError::Content { path: target_path });
        }
        if target.exists() {
            return Ok(());
        }
        if let Some(parent) = target.parent() {
            files::create_dir(parent)?;
        }
        File::open(&source)?.sync_all()?;
        if fs::hard_link(&source, &target).is_err() {
            // Another file system, or one without links.
            files::write_atomically(&target, &content, Privacy::Readable)?;
        }
        files::sync_parent(&target).map_err(Into::into)
    }

    /// What the timestamp on disk leads to, verified like a device would, but for freshness.
    fn current(&self) -> Result<Current> {
        let root = self.root()?;
        let timestamp: Verified<Timestamp> = self.read_verified("timestamp.json", &root)?;
        let version = timestamp.snapshot().map_err(stored("timestamp.json"))?.version;
        let snapshot: Verified<Snapshot> = self.read_verified(&format!("{version}.snapshot.json"), &root)?;
        let version = snapshot.targets().map_err(stored("snapshot.json"))?.version;
        let targets = self.read_verified(&format!("{version}.targets.json"), &root)?;
        Ok(Current { root, timestamp, snapshot, targets })
    }

    /// The newest root.
    fn root(&self) -> Result<Verified<Root>> {
        let mut newest = 1;
        for entry in fs::read_dir(&self.metadata)? {
            let name = entry?.file_name();
            let version =
                name.to_str().and_then(|n| n.strip_suffix(".root.json")).and_then(|n| n.parse::<u64>().ok());
            newest = newest.max(version.unwrap_or(0));
        }
        let file = format!("{newest}.root.json");
        let bytes = self.read(&file, RoleName::Root)?;
        let parsed = Signed::<Root>::parse(&bytes).map_err(stored(&file))?;
        let keys = parsed.unverified().clone();
        parsed.verify(&keys).map_err(stored(&file))
    }

    fn read_verified<T: Role>(&self, file: &str, root: &Root) -> Result<Verified<T>> {
        let bytes = self.read(file, T::NAME)?;
        Signed::<T>::parse(&bytes).and_then(|s| s.verify(root)).map_err(stored(file))
    }

    fn read(&self, file: &str, role: RoleName) -> Result<Vec<u8>> {
        let path = self.metadata.join(file);
        Ok(files::read_bounded(&path, role.bytes_max() as u64).map_err(|e| keys::with_path(&path, e))?)
    }

    fn write<T: Role>(&self, file: &str, role: &T, key: &SigningKey) -> Result<Vec<u8>> {
        let bytes = sign(role, std::slice::from_ref(key)).map_err(TufRepositoryError::Sign)?;
        files::write_atomically(&self.metadata.join(file), &bytes, Privacy::Readable)?;
        Ok(bytes)
    }

    /// The key of an online role.
    fn key(&self, root: &Root, role: RoleName) -> Result<SigningKey> {
        let path = || keys::path(&self.keys, role);
        let key = keys::load(&self.keys, role)?.ok_or_else(|| TufRepositoryError::KeyMissing(path()))?;
        let is_listed = root.roles.of(role).keyids.iter().any(|id| id == key.id());
        if is_listed { Ok(key) } else { Err(TufRepositoryError::KeyUnknown(path())) }
    }

    fn listed(&self, root: &Root, key: SigningKey) -> Result<SigningKey> {
        let is_listed = root.roles.root.keyids.iter().any(|id| id == key.id());
        let path = || keys::path(&self.keys, RoleName::Root);
        if is_listed { Ok(key) } else { Err(TufRepositoryError::KeyUnknown(path())) }
    }

    fn lock_change(&self) -> std::sync::MutexGuard<'_, ()> {
        // A panic while it was held left files that no timestamp names; the next change overwrites them.
        self.change.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn header(role: RoleName, version: u64, now_ms: i64) -> Header {
    Header::new(role, version, UtcTime::from_unix_ms(now_ms.saturating_add(lifetime_ms(role))))
}

fn stored(file: &str) -> impl FnOnce(TufError) -> TufRepositoryError {
    let file = file.to_owned();
    move |source| TufRepositoryError::Metadata { file, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use andon_protocol::tuf::{Change, TrustedMetadata};

    const NOW_MS: i64 = 1_795_000_000_000;

    fn release(folder: &Path, content: &[u8]) -> Vec<PublishedFile> {
        fs::create_dir_all(folder.join("golden")).unwrap();
        ["model.onnx", "golden/cases.json"]
            .map(|name| {
                fs::write(folder.join(name), content).unwrap();
                PublishedFile { name: name.into(), length: content.len() as u64, digest: Digest::of(content) }
            })
            .into()
    }

    /// What a device sees, with nothing stored but the first root.
    fn device(repository: &Repository, now_ms: i64) -> Result<TrustedMetadata, TufError> {
        let read = |file: &str| fs::read(repository.metadata_dir().join(file)).ok();
        let mut trusted = TrustedMetadata::new(repository.first_root().unwrap().as_bytes())?;
        while let Some(root) = read(&trusted.root_download().file) {
            trusted.update_root(&root)?;
        }
        trusted.root_done(now_ms)?;
        assert_eq!(trusted.update_timestamp(&read("timestamp.json").unwrap())?, Change::New);
        trusted.update_snapshot(&read(&trusted.snapshot_download()?.file).unwrap())?;
        trusted.update_targets(&read(&trusted.targets_download()?.file).unwrap())?;
        Ok(trusted)
    }

    #[test]
    fn devices_verify_what_is_published() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("r1");
        let files = release(&folder, b"one");
        let repository = Repository::open(dir.path(), NOW_MS).unwrap();
        let id: ReleaseId = "cell/1".parse().unwrap();
        assert!(device(&repository, NOW_MS).unwrap().release(&id).is_err());
        assert!(!repository.is_published(&id).unwrap());
        repository.publish(&id, &folder, &files, NOW_MS).unwrap();
        assert!(repository.is_published(&id).unwrap());
        let published = device(&repository, NOW_MS).unwrap().release(&id).unwrap();
        assert_eq!(published.len(), 2);
        for target in published {
            target.check(&fs::read(repository.targets_dir().join(target.download())).unwrap()).unwrap();
        }
        // Again changes nothing; a second release leaves the first.
        let before = fs::read(repository.metadata_dir().join("timestamp.json")).unwrap();
        repository.publish(&id, &folder, &files, NOW_MS + 1).unwrap();
        assert_eq!(fs::read(repository.metadata_dir().join("timestamp.json")).unwrap(), before);
        let second: ReleaseId = "cell/2".parse().unwrap();
        let folder = dir.path().join("r2");
        repository.publish(&second, &folder, &release(&folder, b"two"), NOW_MS).unwrap();
        repository.withdraw(std::slice::from_ref(&id), NOW_MS).unwrap();
        let trusted = device(&repository, NOW_MS).unwrap();
        assert!(trusted.release(&id).is_err() && trusted.release(&second).is_ok());
        assert_eq!(trusted.targets().unwrap().header.version, 4);
    }

    #[test]
    fn a_changed_file_is_not_published() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("r1");
        let files = release(&folder, b"one");
        fs::write(folder.join("golden/cases.json"), b"two").unwrap();
        let repository = Repository::open(dir.path(), NOW_MS).unwrap();
        let id: ReleaseId = "cell/1".parse().unwrap();
        let error = repository.publish(&id, &folder, &files, NOW_MS).unwrap_err();
        assert!(error.to_string().contains("cell/1/golden/cases.json has another content"), "{error}");
        assert!(!repository.is_published(&id).unwrap());
    }

    /// A crash after any number of files of a change: devices see the old state, and the next change succeeds.
    #[test]
    fn a_crash_before_the_timestamp_shows_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("r1");
        let files = release(&folder, b"one");
        let id: ReleaseId = "cell/1".parse().unwrap();
        let repository = Repository::open(dir.path(), NOW_MS).unwrap();
        let timestamp = fs::read(repository.metadata_dir().join("timestamp.json")).unwrap();
        repository.publish(&id, &folder, &files, NOW_MS).unwrap();
        drop(repository);
        for lost in [
            &["timestamp.json"][..],
            &["timestamp.json", "2.snapshot.json"],
            &["timestamp.json", "2.targets.json"],
        ] {
            for file in lost {
                let _ = fs::remove_file(dir.path().join("tuf/metadata").join(file));
            }
            fs::write(dir.path().join("tuf/metadata/timestamp.json"), &timestamp).unwrap();
            let repository = Repository::open(dir.path(), NOW_MS).unwrap();
            assert!(device(&repository, NOW_MS).unwrap().release(&id).is_err());
            repository.publish(&id, &folder, &files, NOW_MS).unwrap();
            assert!(device(&repository, NOW_MS).unwrap().release(&id).is_ok());
        }
    }

    #[test]
    fn metadata_is_renewed_before_it_expires_and_the_root_key_may_be_away() {
        let dir = tempfile::tempdir().unwrap();
        let root_key = dir.path().join("keys/tuf-root.pem");
        drop(Repository::open(dir.path(), NOW_MS).unwrap());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&root_key), 0o600);
        let away = dir.path().join("away.pem");
        fs::rename(&root_key, &away).unwrap();
        let mut now_ms = NOW_MS;
        let mut days = 0;
        // Three years, with the task running every third day.
        while days < 3 * 365 {
            let repository = Repository::open(dir.path(), now_ms).unwrap();
            assert!(device(&repository, now_ms).is_ok(), "day {days}");
            now_ms += 3 * DAY_MS;
            days += 3;
        }
        // In the fifth year the key must come back.
        now_ms = NOW_MS + (4 * 365 + 1) * DAY_MS;
        let repository = Repository::open(dir.path(), now_ms).unwrap();
        assert_eq!(device(&repository, now_ms).unwrap().root().header.version, 1);
        fs::rename(&away, &root_key).unwrap();
        repository.renew(now_ms).unwrap();
        repository.renew(now_ms).unwrap();
        let trusted = device(&repository, now_ms + 2 * 365 * DAY_MS);
        assert!(matches!(trusted, Err(TufError::Expired { role: RoleName::Timestamp, .. })));
        assert_eq!(device(&repository, now_ms).unwrap().root().header.version, 2);
    }

    #[test]
    fn broken_repositories_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::open(dir.path(), NOW_MS).unwrap();
        drop(repository);
        let targets = dir.path().join("tuf/metadata/1.targets.json");
        let good = fs::read(&targets).unwrap();
        fs::write(&targets, &good[..good.len() - 1]).unwrap();
        let error = Repository::open(dir.path(), NOW_MS).err().unwrap().to_string();
        assert!(error.contains("1.targets.json is not what this server wrote"), "{error}");
        fs::write(&targets, good).unwrap();
        let repository = Repository::open(dir.path(), NOW_MS).unwrap();
        fs::remove_file(dir.path().join("keys/tuf-targets.pem")).unwrap();
        let folder = dir.path().join("r");
        let files = release(&folder, b"x");
        let id: ReleaseId = "cell/1".parse().unwrap();
        let error = repository.publish(&id, &folder, &files, NOW_MS).unwrap_err().to_string();
        assert!(error.contains("tuf-targets.pem is missing"), "{error}");
        keys::create(&dir.path().join("keys"), RoleName::Targets).unwrap();
        let error = repository.publish(&id, &folder, &files, NOW_MS).unwrap_err().to_string();
        assert!(error.contains("tuf-targets.pem is not the one"), "{error}");
    }
}
