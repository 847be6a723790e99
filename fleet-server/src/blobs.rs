//! Contents by their digest. A blob is there whole or not at all, never changes, and is durable when `put` returns;
//! rows that name it are written after it. Nothing is ever deleted here.
//!
//! One implementation now, local files as `ab/cdef…` (the trainer reads the same layout, `protocol::job`); object
//! storage is the second.

use std::{
    fs,
    io::{self, ErrorKind, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use sha2::{Digest as _, Sha256};

use andon_protocol::Digest;

use crate::files::{self, Privacy};

/// Blocking: call through `spawn_blocking` ([`off_thread`]).
pub trait Blobs: Send + Sync + 'static {
    /// Stores `content` under its digest. Storing what is there already is no error and no work.
    fn put(&self, content: &[u8]) -> io::Result<Digest>;
    /// Takes over a file on the same file system whose content hashes to `digest`; the file is gone afterwards.
    /// `InvalidData`, with the file left alone, where the content is another.
    fn adopt(&self, file: &Path, digest: Digest) -> io::Result<()>;
    /// The whole content, at most `max` bytes; `NotFound` where there is none.
    fn get(&self, digest: Digest, max: u64) -> io::Result<Vec<u8>>;
    fn has(&self, digest: Digest) -> io::Result<bool>;
    /// Where a program on this machine may read the blobs.
    fn folder(&self) -> &Path;
}

/// Runs blocking work on `blobs` away from the executor.
pub async fn off_thread<T: Send + 'static>(
    blobs: &Arc<dyn Blobs>,
    work: impl FnOnce(&dyn Blobs) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let blobs = Arc::clone(blobs);
    tokio::task::spawn_blocking(move || work(&*blobs)).await.map_err(io::Error::other)?
}

pub struct LocalBlobs {
    root: PathBuf,
}

impl LocalBlobs {
    pub fn open(root: &Path) -> io::Result<Self> {
        files::create_dir(root)?;
        Ok(Self { root: root.to_owned() })
    }

    fn path(&self, digest: Digest) -> PathBuf {
        let hex = digest.to_string();
        self.root.join(&hex[..2]).join(&hex[2..])
    }

    /// Makes the folder of `path` and its entry in the root durable, once per folder.
    fn make_folder(&self, path: &Path) -> io::Result<()> {
        let folder = path.parent().unwrap_or(&self.root);
        if !folder.exists() {
            files::create_dir(folder)?;
            files::sync_parent(folder)?;
        }
        Ok(())
    }
}

impl Blobs for LocalBlobs {
    fn put(&self, content: &[u8]) -> io::Result<Digest> {
        let digest = Digest::of(content);
        let path = self.path(digest);
        if !path.exists() {
            self.make_folder(&path)?;
            files::write_atomically(&path, content, Privacy::Readable)?;
        }
        Ok(digest)
    }

    fn adopt(&self, file: &Path, digest: Digest) -> io::Result<()> {
        let path = self.path(digest);
        let mut content = fs::OpenOptions::new().read(true).write(true).open(file)?;
        if hash(&mut content)? != digest {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                format!("content is not that of digest {digest}"),
            ));
        }
        if path.exists() {
            return fs::remove_file(file);
        }
        self.make_folder(&path)?;
        content.flush()?;
        content.sync_all()?;
        fs::rename(file, &path)?;
        files::sync_parent(&path)
    }

    fn get(&self, digest: Digest, max: u64) -> io::Result<Vec<u8>> {
        files::read_bounded(&self.path(digest), max)
    }

    fn has(&self, digest: Digest) -> io::Result<bool> {
        self.path(digest).try_exists()
    }

    fn folder(&self) -> &Path {
        &self.root
    }
}

fn hash(content: &mut impl Read) -> io::Result<Digest> {
    let mut sha = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match content.read(&mut buffer)? {
            0 => return Ok(Digest::from_bytes(sha.finalize().into())),
            n => sha.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_are_named_by_content() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = LocalBlobs::open(&dir.path().join("blobs")).unwrap();
        let digest = blobs.put(b"image").unwrap();
        assert_eq!(blobs.put(b"image").unwrap(), digest);
        assert_eq!(blobs.get(digest, 5).unwrap(), b"image");
        assert_eq!(blobs.get(digest, 4).unwrap_err().kind(), ErrorKind::InvalidData);
        assert_eq!(blobs.get(Digest::of(b"none"), 9).unwrap_err().kind(), ErrorKind::NotFound);
        let hex = digest.to_string();
        assert!(blobs.folder().join(&hex[..2]).join(&hex[2..]).is_file());
    }

    #[test]
    fn a_file_is_adopted_only_under_its_own_digest() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = LocalBlobs::open(&dir.path().join("blobs")).unwrap();
        let part = dir.path().join("part");
        for _ in 0..2 {
            fs::write(&part, b"image").unwrap();
            assert_eq!(blobs.adopt(&part, Digest::of(b"other")).unwrap_err().kind(), ErrorKind::InvalidData);
            assert!(part.exists());
            blobs.adopt(&part, Digest::of(b"image")).unwrap();
            assert!(!part.exists());
            assert!(blobs.has(Digest::of(b"image")).unwrap());
        }
    }
}
