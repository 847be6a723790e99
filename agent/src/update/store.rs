//! The updater's folder: the state file and the releases.
//!
//! ```text
//! FOLDER/state.a, state.b     the state, written in turn; the one that checks with the higher generation is valid
//! FOLDER/releases/CONTENT/    a verified, immutable release; CONTENT is the digest of its list of files
//! FOLDER/staging/CONTENT/     one that is being fetched; FILE.part is not complete yet
//! FOLDER/trust/               `trust`: TUF metadata
//! ```
//!
//! Two copies of the state, since a file system may hand back a torn or empty file after a power cut although every
//! rule of replacing files was kept. A state file is `andon-updater 1 CRC32C LENGTH\n` and JSON.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use andon_protocol::{Digest, tuf::Target};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::state::{Slot, State};
use crate::files::{self, Disk};

const STATE_BYTES_MAX: u64 = 256 * 1024;
const LIST_BYTES_MAX: u64 = 2 * 1024 * 1024;
/// Targets can't begin with a dot, so it collides with none.
const LIST_FILE: &str = ".files.json";
const PIECE_BYTES: usize = 1 << 20;

/// A file of a release, by its path below the release's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    pub path: String,
    pub length: u64,
    pub digest: Digest,
}

/// The files of a release in the order of their paths, and the digest that names them all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileList {
    pub files: Vec<Listed>,
    bytes: Vec<u8>,
    pub content: Digest,
}

impl FileList {
    /// Of verified targets, whose paths begin with `MODEL/VERSION/`.
    pub fn of(targets: &[Target]) -> io::Result<Self> {
        let file = |target: &Target| Listed {
            path: target.path().splitn(3, '/').nth(2).unwrap_or_default().to_owned(),
            length: target.length(),
            digest: target.digest(),
        };
        let files: Vec<_> = targets.iter().map(file).collect();
        let bytes = serde_json::to_vec(&files)?;
        Ok(Self { files, content: Digest::of(&bytes), bytes })
    }
}

#[derive(Clone)]
pub struct Store {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
}

impl Store {
    pub fn open(disk: Arc<dyn Disk>, folder: &Path) -> io::Result<Self> {
        for name in ["releases", "staging", "trust"] {
            disk.create_folder(&folder.join(name))?;
        }
        disk.sync(folder)?;
        Ok(Self { disk, folder: folder.to_owned() })
    }

    pub fn disk(&self) -> &dyn Disk {
        self.disk.as_ref()
    }

    /// The newest state that checks, and how many copies were damaged.
    pub fn load_state(&self) -> io::Result<(State, u32)> {
        let mut newest: Option<State> = None;
        let mut damaged = 0;
        for copy in ["state.a", "state.b"] {
            let bytes = match self.disk.read(&self.folder.join(copy), STATE_BYTES_MAX) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Vec::new(),
                Err(error) => return Err(error),
            };
            match decode_state(&bytes) {
                Some(state) if newest.as_ref().is_none_or(|n| n.generation < state.generation) => {
                    newest = Some(state);
                }
                Some(_) => {}
                None => damaged += 1,
            }
        }
        Ok((newest.unwrap_or_default(), damaged))
    }

    /// Makes `state` the one that counts, under the next generation. Written over the older copy, and read back.
    pub fn save_state(&self, mut state: State) -> io::Result<State> {
        state.generation += 1;
        let path = self.folder.join(if state.generation.is_multiple_of(2) { "state.a" } else { "state.b" });
        let bytes = encode_state(&state)?;
        files::replace(self.disk.as_ref(), &path, &bytes)?;
        if self.disk.read(&path, STATE_BYTES_MAX)? != bytes {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the state file reads back differently"));
        }
        Ok(state)
    }

    pub fn release_folder(&self, content: &Digest) -> PathBuf {
        self.folder.join("releases").join(content.to_string())
    }

    pub fn staging_folder(&self, content: &Digest) -> PathBuf {
        self.folder.join("staging").join(content.to_string())
    }

    pub fn trust_folder(&self) -> PathBuf {
        self.folder.join("trust")
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Reads every byte of a release and compares it with its name.
    pub fn verify(&self, content: &Digest) -> Result<Vec<Listed>, String> {
        self.verify_in(&self.release_folder(content), content)
    }

    fn verify_in(&self, folder: &Path, content: &Digest) -> Result<Vec<Listed>, String> {
        let bytes = self.disk.read(&folder.join(LIST_FILE), LIST_BYTES_MAX).map_err(|e| e.to_string())?;
        if Digest::of(&bytes) != *content {
            return Err("the list of its files is damaged".into());
        }
        let files: Vec<Listed> = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
        for file in &files {
            if !self.matches(&folder.join(&file.path), file).map_err(|e| e.to_string())? {
                return Err(format!("{} is damaged", file.path));
            }
        }
        Ok(files)
    }

    /// Whether the file at `path` has the length and digest; read back from the disk piece by piece.
    pub fn matches(&self, path: &Path, file: &Listed) -> io::Result<bool> {
        match self.disk.length(path) {
            Ok(length) if length == file.length => {}
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => return Ok(false),
        }
        let mut hash = Sha256::new();
        let mut offset = 0;
        while offset < file.length {
            let piece = self.disk.read_at(path, offset, PIECE_BYTES)?;
            if piece.is_empty() {
                return Ok(false);
            }
            offset += piece.len() as u64;
            hash.update(&piece);
        }
        Ok(Digest::from_bytes(hash.finalize().into()) == file.digest)
    }

    /// A staged release whose files are all verified becomes a release. Everything in it is durable before its name.
    pub fn publish(&self, list: &FileList) -> io::Result<()> {
        let staged = self.staging_folder(&list.content);
        let release = self.release_folder(&list.content);
        files::replace(self.disk.as_ref(), &staged.join(LIST_FILE), &list.bytes)?;
        for folder in folders_of(&list.files) {
            self.disk.sync(&staged.join(folder))?;
        }
        self.disk.sync(&staged)?;
        self.disk.sync(&self.folder.join("staging"))?;
        // A damaged one with that name is in the way.
        self.disk.remove(&release)?;
        self.disk.rename(&staged, &release)?;
        self.disk.sync(&self.folder.join("releases"))?;
        self.disk.sync(&self.folder.join("staging"))
    }

    /// A verified copy of `file` in a release that is here: where it is.
    pub fn find_copy(&self, slots: &[&Slot], file: &Listed) -> io::Result<Option<PathBuf>> {
        for slot in slots {
            let folder = self.release_folder(&slot.content);
            let Ok(bytes) = self.disk.read(&folder.join(LIST_FILE), LIST_BYTES_MAX) else { continue };
            let Ok(files) = serde_json::from_slice::<Vec<Listed>>(&bytes) else { continue };
            for same in files.iter().filter(|f| f.digest == file.digest && f.length == file.length) {
                let path = folder.join(&same.path);
                if self.matches(&path, file)? {
                    return Ok(Some(path));
                }
            }
        }
        Ok(None)
    }

    /// Copies a file piece by piece; durable when it returns.
    pub fn copy(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.remove(to)?;
        let mut offset = 0;
        loop {
            let piece = self.disk.read_at(from, offset, PIECE_BYTES)?;
            if piece.is_empty() && offset > 0 {
                return self.disk.sync(to);
            }
            self.disk.append(to, &piece)?;
            if piece.is_empty() {
                return self.disk.sync(to);
            }
            offset += piece.len() as u64;
        }
    }

    /// Removes releases and stagings that nobody keeps.
    pub fn collect(&self, kept: &[&Slot], staging: Option<&Digest>) -> io::Result<()> {
        let kept: Vec<String> = kept.iter().map(|slot| slot.content.to_string()).collect();
        let staging = staging.map(Digest::to_string);
        for (part, keep) in [("releases", kept), ("staging", staging.into_iter().collect())] {
            let folder = self.folder.join(part);
            let stale: Vec<_> =
                self.disk.list(&folder)?.into_iter().filter(|name| !keep.contains(name)).collect();
            for name in &stale {
                self.disk.remove(&folder.join(name))?;
            }
            if !stale.is_empty() {
                self.disk.sync(&folder)?;
            }
        }
        Ok(())
    }
}

/// Folders below a release's that its files are in.
pub fn folders_of(files: &[Listed]) -> Vec<String> {
    let mut folders: Vec<String> = files
        .iter()
        .filter_map(|file| file.path.rsplit_once('/'))
        .flat_map(|(folder, _)| {
            let ends = folder.match_indices('/').map(|(at, _)| at).chain([folder.len()]);
            ends.map(|end| folder[..end].to_owned()).collect::<Vec<_>>()
        })
        .collect();
    folders.sort();
    folders.dedup();
    folders
}

fn encode_state(state: &State) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(state)?;
    let mut bytes = format!("andon-updater 1 {:08x} {}\n", crc32c::crc32c(&json), json.len()).into_bytes();
    bytes.extend_from_slice(&json);
    Ok(bytes)
}

fn decode_state(bytes: &[u8]) -> Option<State> {
    let end = bytes.iter().position(|b| *b == b'\n')?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let json = &bytes[end + 1..];
    let (sum, length) = head.strip_prefix("andon-updater 1 ")?.split_once(' ')?;
    let sound = u32::from_str_radix(sum, 16).ok()? == crc32c::crc32c(json)
        && length.parse::<usize>().ok()? == json.len();
    if sound { serde_json::from_slice(json).ok() } else { None }
}
