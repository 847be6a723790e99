//! Samples on their way: `DEVICE/DIGEST.part` with the bytes at their places and `DIGEST.map` with a bit for each chunk.
//!
//! The map survives a crash of the process. After a power cut it may claim chunks that were lost, or miss some that were
//! not: the digest of the whole, checked before a sample counts as stored, is the only judge, and a wrong one means
//! that everything is asked for again. So a chunk costs no fsync. Blocking.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use andon_protocol::{DeviceId, Digest, sample::CHUNK_BYTES};

use crate::files;

/// Ranges told at once; more follow when these have come.
const RANGES_MAX: usize = 64;

#[derive(Debug)]
pub struct Part {
    data: PathBuf,
    map: PathBuf,
    size: u64,
    /// Chunk `i` is bit `i % 8` of byte `i / 8`.
    bits: Vec<u8>,
    missing: u32,
}

/// Why a chunk is not written.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    #[error("chunk {index} of a sample with {chunks}")]
    NoSuchChunk { index: u32, chunks: u32 },
    #[error("chunk {index} has {bytes} bytes, expected {expected}")]
    WrongLength { index: u32, bytes: usize, expected: u64 },
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Part {
    /// What is there of a sample of `size` bytes, at least 1.
    pub fn open(folder: &Path, device: &DeviceId, digest: Digest, size: u64) -> io::Result<Self> {
        let folder = folder.join(device.as_str());
        files::create_dir(&folder)?;
        let (data, map) = (folder.join(format!("{digest}.part")), folder.join(format!("{digest}.map")));
        let chunks = chunks(size);
        let mut bits = vec![0; chunks.div_ceil(8) as usize];
        match files::read_bounded(&map, bits.len() as u64) {
            // A map without its data is worth nothing.
            Ok(stored) if stored.len() == bits.len() && data.exists() => bits = stored,
            Ok(_) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {}
            Err(e) => return Err(e),
        }
        if let (Some(last), used @ 1..) = (bits.last_mut(), chunks % 8) {
            *last &= (1u8 << used) - 1;
        }
        let present: u32 = bits.iter().map(|byte| byte.count_ones()).sum();
        Ok(Self { data, map, size, bits, missing: chunks - present })
    }

    pub fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// The file of the whole, where it is complete.
    pub fn file(&self) -> &Path {
        &self.data
    }

    fn has(&self, index: u32) -> bool {
        self.bits[index as usize / 8] & (1 << (index % 8)) != 0
    }

    /// Half-open ranges of missing chunks, the first 64.
    pub fn missing(&self) -> Vec<(u32, u32)> {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for index in (0..chunks(self.size)).filter(|&i| !self.has(i)) {
            let full = ranges.len() == RANGES_MAX;
            match ranges.last_mut() {
                Some(last) if last.1 == index => last.1 += 1,
                _ if full => break,
                _ => ranges.push((index, index + 1)),
            }
        }
        ranges
    }

    /// Writes a chunk to its place. One that is there already is left as it is.
    pub fn write(&mut self, index: u32, bytes: &[u8]) -> Result<(), ChunkError> {
        let chunks = chunks(self.size);
        if index >= chunks {
            return Err(ChunkError::NoSuchChunk { index, chunks });
        }
        let start = u64::from(index) * CHUNK_BYTES as u64;
        let expected = (self.size - start).min(CHUNK_BYTES as u64);
        if bytes.len() as u64 != expected {
            return Err(ChunkError::WrongLength { index, bytes: bytes.len(), expected });
        }
        if self.has(index) {
            return Ok(());
        }
        let mut open = OpenOptions::new();
        open.write(true).create(true).truncate(false);
        open.open(&self.data)?.write_all_at(bytes, start)?;
        let byte = index as usize / 8;
        let new = self.bits[byte] | 1 << (index % 8);
        let map = open.open(&self.map)?;
        map.set_len(self.bits.len() as u64)?;
        map.write_all_at(&[new], byte as u64)?;
        self.bits[byte] = new;
        self.missing -= 1;
        Ok(())
    }

    /// Forgets everything received.
    pub fn remove(self) -> io::Result<()> {
        for path in [&self.map, &self.data] {
            match fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}

fn chunks(size: u64) -> u32 {
    size.div_ceil(CHUNK_BYTES as u64) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(size: usize) -> Vec<u8> {
        (0..size).map(|i| (i / 7) as u8).collect()
    }

    fn chunk(content: &[u8], index: usize) -> &[u8] {
        &content[index * CHUNK_BYTES..content.len().min((index + 1) * CHUNK_BYTES)]
    }

    #[test]
    fn chunks_in_any_order_over_restarts_make_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let device: DeviceId = "d".parse().unwrap();
        let content = content(9 * CHUNK_BYTES + 5);
        let digest = Digest::of(&content);
        let open = || Part::open(dir.path(), &device, digest, content.len() as u64).unwrap();
        assert_eq!(open().missing(), [(0, 10)]);
        for index in [9, 0, 3, 3, 8, 1] {
            open().write(index, chunk(&content, index as usize)).unwrap();
        }
        assert_eq!(open().missing(), [(2, 3), (4, 8)]);
        for index in [2, 4, 5, 6, 7] {
            open().write(index, chunk(&content, index as usize)).unwrap();
        }
        let part = open();
        assert!(part.is_complete());
        assert_eq!(fs::read(part.file()).unwrap(), content);
        part.remove().unwrap();
        assert_eq!(open().missing(), [(0, 10)]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut part =
            Part::open(dir.path(), &"d".parse().unwrap(), Digest::of(b""), CHUNK_BYTES as u64 + 1).unwrap();
        assert!(matches!(part.write(2, b"x"), Err(ChunkError::NoSuchChunk { chunks: 2, .. })));
        assert!(matches!(part.write(1, b"xy"), Err(ChunkError::WrongLength { expected: 1, .. })));
        assert!(matches!(part.write(0, b"x"), Err(ChunkError::WrongLength { .. })));
        part.write(1, b"x").unwrap();
        assert_eq!(part.missing(), [(0, 1)]);
    }
}
