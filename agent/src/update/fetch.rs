//! Bringing a release onto the disk: refresh the trust, list the release's files, have each of them, publish.
//!
//! Invariants: nothing is fetched that signed metadata does not name, and no byte beyond what it says; a file counts
//! when it was read back from the disk and matches its digest; every step can be repeated after a power cut, and a
//! download goes on where it stopped. Space is checked before the first byte.

use std::{
    io,
    path::{Path, PathBuf},
};

use andon_protocol::{
    ReleaseId,
    release::{GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE},
    state::UpdatePhase,
    tuf::{Target, TufError},
};

use super::{
    source::{Receive, Source, SourceError},
    state::Slot,
    store::{FileList, Listed, Store, folders_of},
    trust,
};

/// Left free for everything else.
const SPACE_MARGIN_BYTES: u64 = 16 * 1024 * 1024;
/// A part file is synced this often, so that a power cut costs little.
const SYNC_BYTES: u64 = 4 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("{0}")]
    Trust(#[from] TufError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("the repository has no {file}")]
    Missing { file: String },
    #[error("{file} is not what was signed: {reason}")]
    Content { file: String, reason: &'static str },
    #[error("the release is {bytes} bytes, allowed are {max} (update.release_bytes_max)")]
    TooLarge { bytes: u64, max: u64 },
    #[error("the release has no {0}")]
    Incomplete(&'static str),
    #[error("the release needs {needed} bytes, {free} are free; free some space under {}", folder.display())]
    Space { needed: u64, free: u64, folder: PathBuf },
    #[error("{0}")]
    Disk(#[from] io::Error),
    /// Something more urgent came.
    #[error("interrupted")]
    Interrupted,
}

impl FetchError {
    /// Whether waiting may help without anybody doing anything about the release.
    pub fn is_transient(&self) -> bool {
        match self {
            FetchError::Source(SourceError::Status { status, .. }) => *status >= 500 || *status == 429,
            FetchError::Source(_)
            | FetchError::Space { .. }
            | FetchError::Disk(_)
            | FetchError::Interrupted => true,
            FetchError::Trust(_)
            | FetchError::Missing { .. }
            | FetchError::Content { .. }
            | FetchError::TooLarge { .. }
            | FetchError::Incomplete(_) => false,
        }
    }
}

/// What a fetch needs besides the release.
pub struct Fetch<'a> {
    pub store: &'a Store,
    pub source: &'a mut dyn Source,
    pub enrolment_root: &'a [u8],
    pub now_ms: i64,
    pub release_bytes_max: u64,
    /// Releases whose files may be used again.
    pub kept: &'a [&'a Slot],
    /// Asked between two pieces: is there something more urgent?
    pub interrupted: &'a dyn Fn() -> bool,
    /// Told phase, bytes done and bytes in all.
    pub progress: &'a dyn Fn(UpdatePhase, u64, u64),
}

impl Fetch<'_> {
    pub fn run(&mut self, release: &ReleaseId) -> Result<Slot, FetchError> {
        let trusted = trust::refresh(self.store, self.enrolment_root, self.source, self.now_ms)?;
        let targets = trusted.release(release)?;
        let list = FileList::of(&targets)?;
        let bytes = self.check(&list)?;
        let slot = Slot { release: release.clone(), content: list.content };
        if self.store.verify(&list.content).is_ok() {
            return Ok(slot);
        }
        // What another release left behind only takes space.
        self.store.collect(self.kept, Some(&list.content))?;
        self.check_space(&list)?;
        let folder = self.store.staging_folder(&list.content);
        self.store.disk().create_folder(&folder)?;
        for below in folders_of(&list.files) {
            self.store.disk().create_folder(&folder.join(below))?;
        }
        let mut done = 0;
        for (file, target) in list.files.iter().zip(&targets) {
            (self.progress)(UpdatePhase::Downloading, done, bytes);
            self.have(&folder, file, target, done, bytes)?;
            done += file.length;
        }
        (self.progress)(UpdatePhase::Verifying, done, bytes);
        self.store.publish(&list)?;
        match self.store.verify(&list.content) {
            Ok(_) => Ok(slot),
            Err(reason) => Err(io::Error::new(io::ErrorKind::InvalidData, reason).into()),
        }
    }

    fn check(&self, list: &FileList) -> Result<u64, FetchError> {
        for needed in [MODEL_FILE, MANIFEST_FILE, GOLDEN_FILE] {
            if !list.files.iter().any(|file| file.path == needed) {
                return Err(FetchError::Incomplete(needed));
            }
        }
        if let Some(file) = list.files.iter().find(|file| file.path.ends_with(".part")) {
            let reason = "a name that ends in .part is ours";
            return Err(FetchError::Content { file: file.path.clone(), reason });
        }
        let bytes = list.files.iter().fold(0u64, |sum, file| sum.saturating_add(file.length));
        if bytes > self.release_bytes_max {
            return Err(FetchError::TooLarge { bytes, max: self.release_bytes_max });
        }
        Ok(bytes)
    }

    fn check_space(&self, list: &FileList) -> Result<(), FetchError> {
        let folder = self.store.staging_folder(&list.content);
        let here = |file: &Listed| {
            let path = folder.join(&file.path);
            let length = |path: &Path| self.store.disk().length(path).unwrap_or(0);
            length(&path).max(length(&part_of(&path))).min(file.length)
        };
        let needed: u64 = list.files.iter().map(|file| file.length - here(file)).sum();
        let needed = needed.saturating_add(SPACE_MARGIN_BYTES);
        let free = self.store.disk().free_bytes(self.store.folder())?;
        if free < needed {
            return Err(FetchError::Space { needed, free, folder: self.store.folder().to_owned() });
        }
        Ok(())
    }

    /// Has one file of the release in staging, verified and durable.
    fn have(
        &mut self,
        folder: &Path,
        file: &Listed,
        target: &Target,
        before: u64,
        total: u64,
    ) -> Result<(), FetchError> {
        let path = folder.join(&file.path);
        if self.store.matches(&path, file)? {
            return Ok(());
        }
        let part = part_of(&path);
        match self.store.find_copy(self.kept, file)? {
            Some(copy) => self.store.copy(&copy, &part)?,
            None => self.download(&part, file, target, before, total)?,
        }
        if !self.store.matches(&part, file)? {
            self.store.disk().remove(&part)?;
            return Err(FetchError::Content { file: file.path.clone(), reason: "its digest differs" });
        }
        self.store.disk().rename(&part, &path)?;
        Ok(self.store.disk().sync(path.parent().unwrap_or(folder))?)
    }

    fn download(
        &mut self,
        part: &Path,
        file: &Listed,
        target: &Target,
        before: u64,
        total: u64,
    ) -> Result<(), FetchError> {
        let disk = self.store.disk();
        let mut offset = match disk.length(part) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error.into()),
        };
        if offset > file.length {
            disk.remove(part)?;
            offset = 0;
        }
        if file.length == 0 {
            disk.append(part, &[])?;
        }
        if offset < file.length {
            let mut to = PartFile {
                store: self.store,
                path: part,
                length: offset,
                length_max: file.length,
                unsynced: 0,
                interrupted: self.interrupted,
                progress: &|done| (self.progress)(UpdatePhase::Downloading, before + done, total),
            };
            let got = self.source.target(target.download(), offset, &mut to);
            let (length, kind) = (to.length, got.as_ref().err().and_then(receiver_kind));
            match kind {
                Some(io::ErrorKind::Interrupted) => return Err(FetchError::Interrupted),
                Some(io::ErrorKind::FileTooLarge) => {
                    disk.remove(part)?;
                    let reason = "it is longer";
                    return Err(FetchError::Content { file: file.path.clone(), reason });
                }
                _ => got?,
            }
            if length < file.length {
                let reason = format!("the connection ended after {length} of {} bytes", file.length);
                return Err(SourceError::Network { file: file.path.clone(), reason }.into());
            }
        }
        Ok(disk.sync(part)?)
    }
}

fn receiver_kind(error: &SourceError) -> Option<io::ErrorKind> {
    match error {
        SourceError::Receiver(error) => Some(error.kind()),
        _ => None,
    }
}

fn part_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    path.with_file_name(name)
}

/// Writes what comes, never more than the file is long.
struct PartFile<'a> {
    store: &'a Store,
    path: &'a Path,
    length: u64,
    length_max: u64,
    unsynced: u64,
    interrupted: &'a dyn Fn() -> bool,
    progress: &'a dyn Fn(u64),
}

impl Receive for PartFile<'_> {
    fn restart(&mut self) -> io::Result<()> {
        self.store.disk().remove(self.path)?;
        self.length = 0;
        self.unsynced = 0;
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        if (self.interrupted)() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if self.length + bytes.len() as u64 > self.length_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.store.disk().append(self.path, bytes)?;
        self.length += bytes.len() as u64;
        self.unsynced += bytes.len() as u64;
        if self.unsynced >= SYNC_BYTES {
            self.store.disk().sync(self.path)?;
            self.unsynced = 0;
        }
        (self.progress)(self.length);
        Ok(())
    }
}
