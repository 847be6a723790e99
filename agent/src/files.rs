//! Files that survive a power cut. One helper writes whole files (temporary file, write, fsync, rename, fsync of the
//! folder), and [`Disk`] is the seam at which the tests cut the power: they record every call, drop what was not
//! synced and start again.
//!
//! Invariants: a reader sees the old content or the new, never a mixture; what [`replace`] returned `Ok` for is there
//! after a power cut; no read is unbounded. An error of fsync is final for that file: it is never tried again and
//! called clean.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The calls that the spool and the updater make of a file system. Paths are absolute. Nothing is durable before
/// [`sync`](Disk::sync) of the file *and* of the folder that names it.
pub trait Disk: Send + Sync {
    /// The whole content; an error of kind `FileTooLarge` if it is over `bytes_max`.
    fn read(&self, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>>;
    /// Up to `bytes_max` bytes from `offset` on; fewer at the end of the file.
    fn read_at(&self, path: &Path, offset: u64, bytes_max: usize) -> io::Result<Vec<u8>>;
    /// Length of a file; `NotFound` if there is none.
    fn length(&self, path: &Path) -> io::Result<u64>;
    /// Adds to the end of a file, which is made (mode 0600) if it isn't there.
    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Makes what is in a file, or which names are in a folder, durable.
    fn sync(&self, path: &Path) -> io::Result<()>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file, or a folder with all that is in it. What is not there is no error.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes a folder, and its parents. One that is there is no error.
    fn create_folder(&self, path: &Path) -> io::Result<()>;
    /// Names in a folder, in no order; at most [`LIST_MAX`].
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Bytes that an unprivileged writer may still use.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
}

pub const LIST_MAX: usize = 1 << 20;

/// Writes a whole file so that `path` holds the old content or all of the new.
pub fn replace(disk: &dyn Disk, path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a path without a folder"))?;
    let temporary = temporary_name(path);
    disk.remove(&temporary)?;
    let written = disk.append(&temporary, content).and_then(|()| disk.sync(&temporary));
    if let Err(error) = written.and_then(|()| disk.rename(&temporary, path)) {
        // Best effort: a left-over is removed by the next replacement.
        let _ = disk.remove(&temporary);
        return Err(error);
    }
    disk.sync(folder)
}

/// `NAME.tmp` beside the file: the same file system, so that a rename is one.
pub fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    path.with_file_name(name)
}

/// Says which file an error is about.
pub fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// The real file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemDisk;

impl Disk for SystemDisk {
    fn read(&self, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(bytes_max + 1).read_to_end(&mut bytes))
            .map_err(|e| at(path, e))?;
        if bytes.len() as u64 > bytes_max {
            let error = io::Error::new(io::ErrorKind::FileTooLarge, format!("over {bytes_max} bytes"));
            return Err(at(path, error));
        }
        Ok(bytes)
    }

    fn read_at(&self, path: &Path, offset: u64, bytes_max: usize) -> io::Result<Vec<u8>> {
        let read = || {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(offset))?;
            let mut bytes = Vec::new();
            file.take(bytes_max as u64).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read().map_err(|e| at(path, e))
    }

    fn length(&self, path: &Path) -> io::Result<u64> {
        fs::metadata(path).map(|m| m.len()).map_err(|e| at(path, e))
    }

    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .and_then(|mut file| file.write_all(bytes))
            .map_err(|e| at(path, e))
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        File::open(path).and_then(|file| file.sync_all()).map_err(|e| at(path, e))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to).map_err(|e| at(from, e))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let removed = match fs::symlink_metadata(path) {
            Ok(m) if m.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path, error)),
            _ => Ok(()),
        }
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path).map_err(|e| at(path, e))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path).map_err(|e| at(path, e))?.take(LIST_MAX) {
            // We only ever write names in ASCII; others are not ours.
            if let Ok(name) = entry.map_err(|e| at(path, e))?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(path).map_err(|e| at(path, e.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn replacing_leaves_one_private_file_with_the_new_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        fs::write(temporary_name(&path), b"left over by a power cut, longer than the content").unwrap();
        replace(&SystemDisk, &path, b"one").unwrap();
        replace(&SystemDisk, &path, b"two").unwrap();
        assert_eq!(SystemDisk.read(&path, 3).unwrap(), b"two");
        assert_eq!(SystemDisk.list(folder.path()).unwrap(), ["state"]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn reads_are_bounded_and_errors_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large");
        fs::write(&path, b"1234").unwrap();
        let error = SystemDisk.read(&path, 3).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert!(error.to_string().contains("large"), "{error}");
        assert_eq!(
            SystemDisk.length(&folder.path().join("none")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        SystemDisk.remove(&folder.path().join("none")).unwrap();
    }
}
