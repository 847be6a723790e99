//! Tar archives from outside: plain files under names that the caller allows, and nothing else. No links, no devices,
//! no long-name extensions; the number of files and every size are bounded. A name never reaches the file system
//! before `place` has said where it goes. Blocking.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    path::PathBuf,
};

use tar::EntryType;

use crate::problem::Problem;

/// Extended headers only carry times and owners in the archives that we take.
const HEADER_BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("the archive is no tar file: {0}")]
    Malformed(io::Error),
    #[error("archive entry {name:?}: {rule}")]
    Entry { name: String, rule: String },
    #[error("the archive has over {max} files")]
    TooMany { max: usize },
    #[error("cannot store a file of the archive: {0}")]
    Store(io::Error),
}

impl From<UnpackError> for Problem {
    fn from(error: UnpackError) -> Self {
        match error {
            UnpackError::Store(cause) => Problem::internal(format_args!("unpacking: {cause}")),
            bad => Problem::invalid(bad.to_string()),
        }
    }
}

/// Where a file goes, and how large it may be.
pub struct Place {
    pub path: PathBuf,
    pub bytes_max: u64,
}

/// Unpacks at most `files_max` files. `place` is given each name (without a leading `./`), or refuses it. Files are
/// synced; their folders are the caller's.
pub fn unpack(
    archive: impl Read,
    files_max: usize,
    mut place: impl FnMut(&str) -> Result<Place, String>,
) -> Result<(), UnpackError> {
    let mut archive = tar::Archive::new(archive);
    let mut seen = BTreeSet::new();
    // Raw: otherwise long names are read into memory, however long they are.
    for entry in archive.entries().map_err(UnpackError::Malformed)?.raw(true) {
        let mut entry = entry.map_err(UnpackError::Malformed)?;
        let bytes = entry.path_bytes().into_owned();
        let name = String::from_utf8_lossy(bytes.strip_prefix(b"./").unwrap_or(&bytes)).into_owned();
        let refuse =
            |rule: &str| UnpackError::Entry { name: name.chars().take(120).collect(), rule: rule.into() };
        match entry.header().entry_type() {
            EntryType::Directory => continue,
            EntryType::XHeader | EntryType::XGlobalHeader => {
                if entry.size() > HEADER_BYTES_MAX {
                    return Err(refuse("its extended header is too large"));
                }
                let mut header = Vec::new();
                entry.read_to_end(&mut header).map_err(UnpackError::Malformed)?;
                if renames(&header) {
                    return Err(refuse("the next name is too long or not ASCII"));
                }
                continue;
            }
            EntryType::GNULongName | EntryType::GNULongLink => {
                return Err(refuse("the next name is too long"));
            }
            EntryType::Regular => {}
            _ => return Err(refuse("is no plain file")),
        }
        if seen.len() == files_max {
            return Err(UnpackError::TooMany { max: files_max });
        }
        let Place { path, bytes_max } = place(&name).map_err(|rule| refuse(&rule))?;
        if !seen.insert(path.clone()) {
            return Err(refuse("is there twice"));
        }
        let size = entry.size();
        if size > bytes_max {
            return Err(refuse(&format!("{size} bytes, allowed are {bytes_max}")));
        }
        let mut file = File::create_new(&path).map_err(UnpackError::Store)?;
        let written = io::copy(&mut entry, &mut file).map_err(UnpackError::Malformed)?;
        if written != size {
            return Err(refuse("is cut off"));
        }
        file.sync_all().map_err(UnpackError::Store)?;
    }
    Ok(())
}

/// Whether a pax header gives the next entry another name or size.
fn renames(header: &[u8]) -> bool {
    header.split(|&b| b == b'\n').any(|record| {
        let key = record.split(|&b| b == b' ').nth(1).unwrap_or_default();
        [&b"path="[..], b"linkpath=", b"size="].iter().any(|k| key.starts_with(k))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(write: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        write(&mut builder);
        builder.into_inner().unwrap()
    }

    fn entry(builder: &mut tar::Builder<Vec<u8>>, name: &[u8], kind: EntryType, content: &[u8]) {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }

    /// Allows `a` to `z` and `sub/x`, of at most 10 bytes, at most 3 files.
    fn take(archive: &[u8]) -> Result<Vec<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        let mut names = Vec::new();
        unpack(archive, 3, |name| {
            if name.len() != 1 && name != "sub/x" {
                return Err("is unknown".into());
            }
            names.push(name.to_owned());
            Ok(Place { path: dir.path().join(name), bytes_max: 10 })
        })
        .map_err(|e| e.to_string())?;
        let escaped = std::fs::read_dir(dir.path().parent().unwrap())
            .unwrap()
            .any(|e| e.unwrap().file_name() == "evil");
        assert!(!escaped);
        Ok(names)
    }

    #[test]
    fn plain_files_are_taken() {
        let tar = archive(|b| {
            entry(b, b"./", EntryType::Directory, b"");
            entry(b, b"./a", EntryType::Regular, b"1234567890");
            // As Python's tarfile writes times.
            entry(b, b"PaxHeader", EntryType::XHeader, b"28 mtime=1790000000.1234567\n");
            entry(b, b"sub/x", EntryType::Regular, b"");
        });
        assert_eq!(take(&tar).unwrap(), ["a", "sub/x"]);
        assert_eq!(take(&archive(|_| {})).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn anything_else_is_refused() {
        use EntryType as T;
        let rows: [(&str, &[u8], T, &[u8]); 13] = [
            ("is unknown", b"../evil", T::Regular, b"x"),
            ("is unknown", b"/evil", T::Regular, b"x"),
            ("is unknown", b"sub/../../evil", T::Regular, b"x"),
            ("is unknown", b"\xff\xfe", T::Regular, b"x"),
            ("is unknown", b"", T::Regular, b"x"),
            ("11 bytes, allowed are 10", b"b", T::Regular, b"12345678901"),
            ("is there twice", b"a", T::Regular, b"x"),
            ("is no plain file", b"b", T::Symlink, b""),
            ("is no plain file", b"b", T::Link, b""),
            ("is no plain file", b"b", T::Char, b""),
            ("is no plain file", b"b", T::GNUSparse, b""),
            ("too long", b"b", T::GNULongName, b"../evil"),
            ("too long or not ASCII", b"b", T::XHeader, b"16 path=../evil\n"),
        ];
        for (expected, name, kind, content) in rows {
            let tar = archive(|b| {
                entry(b, b"a", T::Regular, b"x");
                entry(b, name, kind, content);
            });
            let error = take(&tar).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
        let many = archive(|b| "abcd".bytes().for_each(|n| entry(b, &[n], T::Regular, b"")));
        assert!(take(&many).unwrap_err().contains("over 3 files"));
        let large = archive(|b| entry(b, b"x", T::XHeader, &vec![b'a'; 70_000]));
        assert!(take(&large).unwrap_err().contains("too large"));
    }

    #[test]
    fn cut_off_archives_are_refused() {
        let tar = archive(|b| {
            entry(b, b"a", EntryType::Regular, b"1234567890");
            entry(b, b"b", EntryType::Regular, b"1234567890");
        });
        for cut in [1, 511, 513, 520, 1025, 1537] {
            assert!(take(&tar[..cut]).is_err(), "{cut}");
        }
        assert!(take(&[b'x'; 2000]).unwrap_err().contains("no tar file"));
    }
}
