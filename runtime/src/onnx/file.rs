//! A model's file in memory: mapped, so that weights are there while they are read and not a moment longer.
//!
//! Whoever gives a file promises that nobody changes it while it is in use; files of releases are written once and never
//! again. A file that is cut short meanwhile ends the process (SIGBUS), as with every program that maps files.
#![allow(
    unsafe_code,
    reason = "a mapping is memory that others could change: every block says why it is safe"
)]

use std::{
    fs,
    io::{self, Read},
    ops::{Deref, Range},
    path::Path,
    sync::Arc,
};

use prost::bytes::Bytes;

/// Cheap to clone: all clones are one mapping.
#[derive(Debug, Clone)]
pub struct File(Arc<Held>);

#[derive(Debug)]
enum Held {
    Mapped(memmap2::Mmap),
    /// What is no file on a disk.
    Read(Vec<u8>),
}

impl File {
    /// Of at most `bytes_max`: a longer one is an error of the kind `FileTooLarge`.
    pub fn open(path: &Path, bytes_max: usize) -> io::Result<Self> {
        let file = fs::File::open(path)?;
        let too_large = || io::Error::new(io::ErrorKind::FileTooLarge, format!("over {bytes_max} bytes"));
        let about = file.metadata()?;
        if about.is_file() && about.len() > bytes_max as u64 {
            return Err(too_large());
        }
        // Safety: that nobody changes the file is what the caller promises; where it is broken, readers see other bytes, and
        // every reader of a model takes each byte for untrusted.
        let mapped = about.is_file().then(|| unsafe { memmap2::Mmap::map(&file) });
        if let Some(Ok(map)) = mapped {
            return Ok(Self(Arc::new(Held::Mapped(map))));
        }
        let mut bytes = Vec::new();
        file.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > bytes_max { Err(too_large()) } else { Ok(Self(Arc::new(Held::Read(bytes)))) }
    }

    /// The whole file, shared.
    pub(super) fn bytes(&self) -> Bytes {
        Bytes::from_owner(self.clone())
    }

    /// `part` of the file was read and is not needed for now: its memory is the system's again. Whoever reads it later gets
    /// it from the file once more. Parts of anything else are left alone.
    pub fn let_go(&self, part: &[u8]) {
        let (from, to) = (self.as_ptr_range(), part.as_ptr_range());
        let inside = from.start <= to.start && to.end <= from.end;
        let (Held::Mapped(map), true, false) = (&*self.0, inside, part.is_empty()) else { return };
        let start = to.start as usize - from.start as usize;
        drop_pages(map, start..start + part.len());
    }
}

#[cfg(unix)]
fn drop_pages(map: &memmap2::Mmap, part: Range<usize>) {
    // memmap2 wants a range; the system rounds its start down to a page, and its end up.
    // Safety: the mapping is of a file and nobody writes to it, so that pages that are dropped come back with the file's
    // bytes. That it fails is no harm.
    drop(unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, part.start, part.len()) });
}

#[cfg(not(unix))]
fn drop_pages(_map: &memmap2::Mmap, _part: Range<usize>) {}

impl Deref for File {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &*self.0 {
            Held::Mapped(map) => map,
            Held::Read(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for File {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// The same mapping.
impl PartialEq for File {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_the_same_bytes_after_letting_go() {
        let folder = std::env::temp_dir().join(format!("andon-file-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("model");
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        fs::write(&path, &bytes).unwrap();
        let file = File::open(&path, bytes.len()).unwrap();
        let shared = file.bytes();
        for part in [&file[..], &file[5000..70_000], &file[99_999..], &file[..0], &[1, 2, 3]] {
            file.let_go(part);
            assert_eq!((&file[..], &shared[..]), (&bytes[..], &bytes[..]));
        }
        let error = File::open(&path, bytes.len() - 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        fs::write(&path, []).unwrap();
        assert!(File::open(&path, 0).unwrap().is_empty());
        assert_eq!(File::open(&folder.join("none"), 1).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::remove_dir_all(&folder).unwrap();
    }
}
