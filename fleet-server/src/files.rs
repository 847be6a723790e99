//! Files that survive a power cut: written beside their place, synced, renamed into it, and the folder synced too.
//! Blocking; call from `spawn_blocking` where the content is large.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Who may read a file. Keys are `Secret`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privacy {
    /// Mode 0644, less the umask.
    Readable,
    /// Mode 0600.
    Secret,
}

impl Privacy {
    fn mode(self) -> u32 {
        match self {
            Privacy::Readable => 0o644,
            Privacy::Secret => 0o600,
        }
    }
}

/// Puts `content` at `path`, replacing what is there: readers see the old or the new file, never a part.
pub fn write_atomically(path: &Path, content: &[u8], privacy: Privacy) -> io::Result<()> {
    let temporary = temporary_beside(path)?;
    let written = (|| {
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(privacy.mode()).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written?;
    sync_parent(path)
}

/// A path in the same folder that no other writer uses.
pub fn temporary_beside(path: &Path) -> io::Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "path without a file name"))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.tmp", uuid::Uuid::new_v4().simple()));
    Ok(path.with_file_name(temporary))
}

/// Makes a rename, creation or removal in the folder of `path` durable.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)?.sync_all()
}

/// `mkdir -p` with mode 0700: everything below the data folder belongs to the server alone.
pub fn create_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// The whole file, refused when over `max` bytes.
pub fn read_bounded(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(max + 1).read_to_end(&mut content)?;
    if content.len() as u64 > max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("file of over {max} bytes")));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn writes_replace_and_leave_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_atomically(&path, b"one", Privacy::Readable).unwrap();
        write_atomically(&path, b"two", Privacy::Secret).unwrap();
        assert_eq!(read_bounded(&path, 3).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(read_bounded(&path, 2).is_err());
        assert!(write_atomically(&dir.path().join("no/such"), b"", Privacy::Readable).is_err());
    }
}
