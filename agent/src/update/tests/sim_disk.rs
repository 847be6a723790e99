//! A disk in memory whose power can be cut at every call. What was not synced is lost, in part or whole, as a seed
//! decides: the names of files up to some point of their order of change, the contents up to some length beyond what
//! was synced, or zeros in their place. Syncing a folder makes durable what happened to names up to the last change
//! in that folder; syncing a file makes its bytes durable and not its name.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
};

use crate::files::Disk;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The process is killed before the call: the disk keeps everything.
    Kill,
    /// The power is cut before the call.
    Cut,
    /// The call fails once with this error; an append has written half.
    Error(io::ErrorKind),
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Folder,
    File(u64),
}

#[derive(Debug, Clone)]
enum Change {
    Link(PathBuf, Node),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf),
}

#[derive(Debug, Clone, Default)]
struct Content {
    bytes: Vec<u8>,
    synced: usize,
}

#[derive(Clone, Default)]
struct Sim {
    names: BTreeMap<PathBuf, Node>,
    durable: BTreeMap<PathBuf, Node>,
    pending: Vec<Change>,
    contents: HashMap<u64, Content>,
    next_inode: u64,
    calls: u64,
    faults: Vec<(u64, Fault)>,
    dead: Option<Fault>,
    free_bytes: u64,
}

pub(super) struct SimDisk(Mutex<Sim>);

impl SimDisk {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Sim { free_bytes: 1 << 40, ..Sim::default() }))
    }

    /// A disk with the same content and no faults.
    pub(super) fn fork(&self) -> Self {
        let sim = self.lock().clone();
        Self(Mutex::new(Sim { calls: 0, faults: Vec::new(), dead: None, ..sim }))
    }

    pub(super) fn inject(&self, call: u64, fault: Fault) {
        self.lock().faults.push((call, fault));
    }

    pub(super) fn calls(&self) -> u64 {
        self.lock().calls
    }

    pub(super) fn is_dead(&self) -> bool {
        self.lock().dead.is_some()
    }

    /// The process dies here and now.
    pub(super) fn kill(&self) {
        self.lock().dead = Some(Fault::Kill);
    }

    pub(super) fn set_free_bytes(&self, bytes: u64) {
        self.lock().free_bytes = bytes;
    }

    /// A point at which a fault may strike that is no call of the disk.
    pub(super) fn tick(&self) -> io::Result<()> {
        self.lock().tick().map(|_| ())
    }

    /// Starts again after a death; faults that have struck are gone.
    pub(super) fn reboot(&self, seed: u64) {
        let mut sim = self.lock();
        if sim.dead.take() == Some(Fault::Cut) {
            sim.lose_unsynced(seed);
        }
    }

    pub(super) fn flip_bit(&self, path: &Path) {
        let mut sim = self.lock();
        let Some(Node::File(inode)) = sim.names.get(path).cloned() else {
            panic!("{} is no file", path.display())
        };
        sim.contents.get_mut(&inode).unwrap().bytes[0] ^= 1;
    }

    pub(super) fn truncate(&self, path: &Path, length: usize) {
        let mut sim = self.lock();
        let Some(Node::File(inode)) = sim.names.get(path).cloned() else {
            panic!("{} is no file", path.display())
        };
        let content = sim.contents.get_mut(&inode).unwrap();
        content.bytes.truncate(length);
        content.synced = content.synced.min(length);
    }

    fn lock(&self) -> MutexGuard<'_, Sim> {
        self.0.lock().unwrap()
    }
}

impl Sim {
    /// Counts a call; `Some`: this one must fail with that error.
    fn tick(&mut self) -> io::Result<Option<io::ErrorKind>> {
        if self.dead.is_some() {
            return Err(io::Error::other("the power is off"));
        }
        self.calls += 1;
        let calls = self.calls;
        let Some(at) = self.faults.iter().position(|(call, _)| *call == calls) else { return Ok(None) };
        match self.faults.swap_remove(at).1 {
            Fault::Error(kind) => Ok(Some(kind)),
            fault => {
                self.dead = Some(fault);
                Err(io::Error::other("the power is off"))
            }
        }
    }

    fn call(&mut self) -> io::Result<()> {
        match self.tick()? {
            Some(kind) => Err(kind.into()),
            None => Ok(()),
        }
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.names, &change);
        self.pending.push(change);
    }

    fn file(&self, path: &Path) -> io::Result<u64> {
        match self.names.get(path) {
            Some(Node::File(inode)) => Ok(*inode),
            Some(Node::Folder) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn lose_unsynced(&mut self, seed: u64) {
        let mut random = Random(seed);
        let survive = random.below(self.pending.len() as u64 + 1) as usize;
        let pending = std::mem::take(&mut self.pending);
        pending[..survive].iter().for_each(|change| apply(&mut self.durable, change));
        self.names = self.durable.clone();
        let mut inodes: Vec<_> = self.contents.keys().copied().collect();
        inodes.sort_unstable();
        for inode in inodes {
            let Some(content) = self.contents.get_mut(&inode) else { continue };
            let unsynced = content.bytes.len() - content.synced;
            content.bytes.truncate(content.synced + random.below(unsynced as u64 + 1) as usize);
            if random.below(3) == 0 {
                content.bytes[content.synced..].fill(0);
            }
            content.synced = content.bytes.len();
        }
    }
}

fn apply(names: &mut BTreeMap<PathBuf, Node>, change: &Change) {
    match change {
        Change::Link(path, node) => {
            names.insert(path.clone(), node.clone());
        }
        Change::Remove(path) => names.retain(|name, _| !name.starts_with(path)),
        Change::Rename(from, to) => {
            let moved: Vec<_> = names.keys().filter(|name| name.starts_with(from)).cloned().collect();
            names.retain(|name, _| !name.starts_with(to) || name.starts_with(from));
            for name in moved {
                let Some(node) = names.remove(&name) else { continue };
                let rest = name.strip_prefix(from).unwrap();
                names.insert(if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) }, node);
            }
        }
    }
}

fn concerns(change: &Change, folder: &Path) -> bool {
    let within = |path: &Path| path.parent() == Some(folder);
    match change {
        Change::Link(path, _) | Change::Remove(path) => within(path),
        Change::Rename(from, to) => within(from) || within(to),
    }
}

impl Disk for SimDisk {
    fn read(&self, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
        let bytes = self.read_at(path, 0, usize::MAX)?;
        if bytes.len() as u64 > bytes_max { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
    }

    fn read_at(&self, path: &Path, offset: u64, bytes_max: usize) -> io::Result<Vec<u8>> {
        let mut sim = self.lock();
        sim.call()?;
        let inode = sim.file(path)?;
        let bytes = &sim.contents[&inode].bytes;
        let start = (offset as usize).min(bytes.len());
        Ok(bytes[start..bytes.len().min(start.saturating_add(bytes_max))].to_vec())
    }

    fn length(&self, path: &Path) -> io::Result<u64> {
        let mut sim = self.lock();
        sim.call()?;
        let inode = sim.file(path)?;
        Ok(sim.contents[&inode].bytes.len() as u64)
    }

    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut sim = self.lock();
        let failure = sim.tick()?;
        let parent = path.parent().unwrap().to_owned();
        if sim.names.get(&parent) != Some(&Node::Folder) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inode = match sim.file(path) {
            Ok(inode) => inode,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let inode = sim.next_inode;
                sim.next_inode += 1;
                sim.contents.insert(inode, Content::default());
                sim.change(Change::Link(path.to_owned(), Node::File(inode)));
                inode
            }
            Err(error) => return Err(error),
        };
        let written = if failure.is_some() { &bytes[..bytes.len() / 2] } else { bytes };
        sim.contents.get_mut(&inode).unwrap().bytes.extend_from_slice(written);
        failure.map_or(Ok(()), |kind| Err(kind.into()))
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        let mut sim = self.lock();
        sim.call()?;
        match sim.names.get(path).cloned() {
            None => Err(io::ErrorKind::NotFound.into()),
            Some(Node::File(inode)) => {
                let content = sim.contents.get_mut(&inode).unwrap();
                content.synced = content.bytes.len();
                Ok(())
            }
            Some(Node::Folder) => {
                let last = sim.pending.iter().rposition(|change| concerns(change, path));
                let durable: Vec<_> =
                    last.map(|last| sim.pending.drain(..=last).collect()).unwrap_or_default();
                durable.iter().for_each(|change| apply(&mut sim.durable, change));
                Ok(())
            }
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut sim = self.lock();
        sim.call()?;
        if !sim.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let in_the_way = sim.names.keys().any(|name| name.starts_with(to) && name != to);
        if in_the_way {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        sim.change(Change::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut sim = self.lock();
        sim.call()?;
        if sim.names.contains_key(path) {
            sim.change(Change::Remove(path.to_owned()));
        }
        Ok(())
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        let mut sim = self.lock();
        sim.call()?;
        let mut missing: Vec<_> = path.ancestors().filter(|p| !sim.names.contains_key(*p)).collect();
        missing.reverse();
        for folder in missing {
            sim.change(Change::Link(folder.to_owned(), Node::Folder));
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut sim = self.lock();
        sim.call()?;
        if sim.names.get(path) != Some(&Node::Folder) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let names = sim.names.keys().filter(|name| name.parent() == Some(path));
        Ok(names.map(|name| name.file_name().unwrap().to_str().unwrap().to_owned()).collect())
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        let mut sim = self.lock();
        sim.call()?;
        Ok(sim.free_bytes)
    }
}

/// SplitMix64: a seed replays.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n.max(1)
    }
}

#[test]
fn the_disk_loses_what_was_not_synced_and_nothing_else() {
    let base = Path::new("/d");
    let file = base.join("f");
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let disk = SimDisk::new();
        disk.create_folder(base).unwrap();
        disk.sync(Path::new("/")).unwrap();
        crate::files::replace(&disk, &file, b"old").unwrap();
        disk.append(&file, b"er").unwrap();
        disk.inject(disk.calls() + 1, Fault::Cut);
        assert!(disk.length(&file).is_err());
        disk.reboot(seed);
        seen.insert(disk.read(&file, 10).unwrap());
    }
    for kept in [&b"old"[..], b"olde", b"older", b"old\0", b"old\0\0"] {
        assert!(seen.contains(kept), "{kept:?} of {seen:?}");
    }
}
