//! What a device knows of its GPU, in a folder that a person can read: for each network and driver `DIGEST.DRIVER.json` with what
//! was measured, `checked.json` with what was compared, `blocked.json`, `looking.json` while drivers are asked what there is, and
//! `trying.json` while one is tried; beside them `pipelines.bin`, kernels as the driver compiled them.
//!
//! Invariants: files are replaced whole, reads are bounded; what is damaged counts as not there and is told once; the
//! folder keeps at most [`NETWORKS_MAX`] measurements, [`CHECKED_MAX`] comparisons and [`BLOCKED_MAX`] drivers, the newest.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use andon_protocol::{Digest, tuf::UtcTime};
use andon_runtime::{AdapterKey, GoldenReport, PipelineCache};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::decide::{Blocked, Kept};
use crate::{
    files::{self, Disk},
    pipeline::lock,
};

/// Networks whose measurements are kept: more than a device has releases.
const NETWORKS_MAX: usize = 8;
const BLOCKED_MAX: usize = 16;
const CHECKED_MAX: usize = 16;
const FILE_BYTES_MAX: u64 = 4 << 20;

const BLOCKED: &str = "blocked.json";
const CHECKED: &str = "checked.json";
const LOOKING: &str = "looking.json";
const TRYING: &str = "trying.json";
const PIPELINES: &str = "pipelines.bin";

pub struct Notes {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    /// Held while a file is read, changed and written.
    writing: Mutex<()>,
}

/// What a driver computes for a network, and for the cases of its kernels, was compared by this agent with the CPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Checked {
    pub(super) adapter: AdapterKey,
    pub(super) agent: String,
    pub(super) model: String,
    pub(super) at: UtcTime,
    pub(super) report: GoldenReport,
    /// Why the GPU is not used for the network, if that is so though nothing is wrong with its driver.
    #[serde(default)]
    pub(super) refused: Option<String>,
}

/// A driver that is being tried. It lies there before the driver is touched, so that a crash leaves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trying {
    pub(super) adapter: AdapterKey,
    /// In a row, this one included.
    pub(super) times: u32,
    /// How the last one ended, if that is known.
    pub(super) reason: Option<String>,
}

impl Notes {
    pub fn new(disk: Arc<dyn Disk>, data_dir: &Path) -> Self {
        Self { disk, folder: data_dir.join("tuning"), writing: Mutex::new(()) }
    }

    pub(super) fn tuning(&self, model: &str, adapter: &AdapterKey) -> Option<Kept> {
        self.read(&file_of(model, adapter))
    }

    /// Writes it down, and forgets the oldest ones.
    pub(super) fn keep(&self, kept: &Kept) -> io::Result<()> {
        let own = file_of(&kept.tuning.model, &kept.tuning.adapter);
        self.write(&own, kept)?;
        let models = self.disk.list(&self.folder)?.into_iter().filter_map(|name| {
            let model = name.strip_suffix(".json")?.split('.').next()?;
            model.parse::<Digest>().ok().map(|_| name.clone())
        });
        // What cannot be read is the oldest.
        let at = |name: &String| self.read::<Kept>(name).map(|kept| kept.at);
        let mut dated: Vec<_> = models.map(|name| (at(&name), name)).collect();
        dated.sort();
        let surplus = dated.len().saturating_sub(NETWORKS_MAX);
        for (_, name) in dated.iter().filter(|(_, name)| *name != own).take(surplus) {
            self.disk.remove(&self.folder.join(name))?;
        }
        Ok(())
    }

    pub fn blocked(&self) -> Vec<Blocked> {
        self.read(BLOCKED).unwrap_or_default()
    }

    /// An adapter and driver that is blocked already is blocked anew.
    pub(super) fn block(&self, blocked: Blocked) -> io::Result<()> {
        let _writing = lock(&self.writing);
        let mut all = self.blocked();
        all.retain(|other| other.adapter != blocked.adapter);
        all.push(blocked);
        let surplus = all.len().saturating_sub(BLOCKED_MAX);
        self.write(BLOCKED, &all[surplus..])
    }

    pub(super) fn checked(&self) -> Vec<Checked> {
        self.read(CHECKED).unwrap_or_default()
    }

    /// Networks, by digest, that a GPU is not used for, and why.
    pub fn refused(&self) -> Vec<(AdapterKey, String, String)> {
        let of = |checked: Checked| Some((checked.adapter, checked.model, checked.refused?));
        self.checked().into_iter().filter_map(of).collect()
    }

    pub(super) fn keep_check(&self, checked: Checked) -> io::Result<()> {
        let _writing = lock(&self.writing);
        let mut all = self.checked();
        all.retain(|other| (&other.adapter, &other.model) != (&checked.adapter, &checked.model));
        all.push(checked);
        let surplus = all.len().saturating_sub(CHECKED_MAX);
        self.write(CHECKED, &all[surplus..])
    }

    /// Forgets all that is blocked; how many that were. What was compared is compared again.
    pub fn unblock(&self) -> io::Result<usize> {
        let _writing = lock(&self.writing);
        let count = self.blocked().len();
        for name in [BLOCKED, CHECKED, LOOKING, TRYING, PIPELINES] {
            self.remove(name)?;
        }
        Ok(count)
    }

    /// Times in a row that drivers were asked what there is and the process ended over it.
    pub(super) fn looking(&self) -> u32 {
        self.read(LOOKING).unwrap_or_default()
    }

    pub(super) fn look(&self, times: u32) -> io::Result<()> {
        self.write(LOOKING, &times)
    }

    /// They have answered.
    pub(super) fn looked(&self) -> io::Result<()> {
        self.remove(LOOKING)
    }

    pub(super) fn trying(&self) -> Option<Trying> {
        self.read(TRYING)
    }

    pub(super) fn try_out(&self, trying: &Trying) -> io::Result<()> {
        self.write(TRYING, trying)
    }

    /// The driver has come through.
    pub(super) fn tried(&self) -> io::Result<()> {
        self.remove(TRYING)
    }

    /// What a driver has compiled, as far as it can be read.
    pub(super) fn pipelines(&self) -> PipelineCache {
        let path = self.folder.join(PIPELINES);
        match self.disk.read(&path, PipelineCache::BYTES_MAX as u64) {
            Ok(saved) => PipelineCache::new(&saved),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), %error, "kernels are compiled anew");
                }
                PipelineCache::default()
            }
        }
    }

    pub(super) fn keep_pipelines(&self, saved: &[u8]) -> io::Result<()> {
        self.disk.create_folder(&self.folder)?;
        files::replace(&*self.disk, &self.folder.join(PIPELINES), saved)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        let path = self.folder.join(name);
        let reason = match self.disk.read(&path, FILE_BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => error.to_string(),
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(value) => return Some(value),
                Err(error) => error.to_string(),
            },
        };
        tracing::warn!(path = %path.display(), reason, "what was written down about the GPU is not used");
        None
    }

    /// For good, also after a power cut.
    fn remove(&self, name: &str) -> io::Result<()> {
        if self.disk.length(&self.folder.join(name)).is_ok() {
            self.disk.remove(&self.folder.join(name))?;
            self.disk.sync(&self.folder)?;
        }
        Ok(())
    }

    fn write<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(value)?;
        text.push(b'\n');
        self.disk.create_folder(&self.folder)?;
        files::replace(&*self.disk, &self.folder.join(name), &text)
    }
}

/// Two drivers of one device have each their own.
fn file_of(model: &str, adapter: &AdapterKey) -> String {
    let driver = Digest::of(format!("{adapter:?}").as_bytes()).to_string();
    format!("{model}.{}.json", &driver[..8])
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{
        super::decide::tests::{kept, key},
        *,
    };
    use crate::files::SystemDisk;

    fn digest(number: usize) -> String {
        Digest::of(&number.to_le_bytes()).to_string()
    }

    #[test]
    fn what_was_measured_is_there_again_and_anything_else_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let notes = Notes::new(Arc::new(SystemDisk), dir.path());
        let one = kept(key("H200"), &digest(1), "gpu");
        assert_eq!(notes.tuning(&digest(1), &key("H200")), None);
        notes.keep(&one).unwrap();
        assert_eq!(notes.tuning(&digest(1), &key("H200")), Some(one.clone()));
        let path = dir.path().join("tuning").join(file_of(&digest(1), &key("H200")));
        let text = fs::read_to_string(&path).unwrap();
        // Another driver of the device has its own.
        let other = kept(key("H100"), &digest(1), "cpu");
        notes.keep(&other).unwrap();
        assert_eq!(notes.tuning(&digest(1), &key("H100")), Some(other));
        assert_eq!(notes.tuning(&digest(1), &key("H200")), Some(one));
        // For people.
        assert!(
            text.contains("\"at\": \"2026-11-26T23:04:05Z\"") && text.contains("\"gpu_ms\": 0.7"),
            "{text}"
        );
        for damaged in [&b"{}"[..], b"", &text.as_bytes()[..text.len() / 2], &vec![b' '; (4 << 20) + 1]] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(notes.tuning(&digest(1), &key("H200")), None);
        }
    }

    #[test]
    fn old_networks_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let notes = Notes::new(Arc::new(SystemDisk), dir.path());
        let folder = dir.path().join("tuning");
        notes.block(blocked("H200", "lost")).unwrap();
        let damaged = folder.join(file_of(&digest(999), &key("H200")));
        fs::write(&damaged, "what?").unwrap();
        for number in 0..NETWORKS_MAX + 3 {
            let at = format!("2026-11-26T23:04:{number:02}Z").parse().unwrap();
            // The clock went back before the last one.
            let at = if number == NETWORKS_MAX + 2 { "1970-01-01T00:00:00Z".parse().unwrap() } else { at };
            notes.keep(&Kept { at, ..kept(key("H200"), &digest(number), "gpu") }).unwrap();
        }
        let left: Vec<usize> = (0..NETWORKS_MAX + 3)
            .filter(|n| folder.join(file_of(&digest(*n), &key("H200"))).exists())
            .collect();
        assert_eq!(left, (3..NETWORKS_MAX + 3).collect::<Vec<_>>());
        assert!(!damaged.exists());
        assert_eq!(notes.blocked().len(), 1);
    }

    fn blocked(name: &str, reason: &str) -> Blocked {
        let since = "2026-11-26T23:04:05Z".parse().unwrap();
        Blocked { adapter: key(name), since, reason: reason.into() }
    }

    #[test]
    fn drivers_are_blocked_once_each_until_somebody_unblocks_them() {
        let dir = tempfile::tempdir().unwrap();
        let notes = Notes::new(Arc::new(SystemDisk), dir.path());
        assert_eq!((notes.blocked(), notes.unblock().unwrap()), (vec![], 0));
        notes.block(blocked("A", "lost")).unwrap();
        notes.block(blocked("B", "late")).unwrap();
        notes.block(blocked("A", "wrong")).unwrap();
        assert_eq!(notes.blocked(), [blocked("B", "late"), blocked("A", "wrong")]);
        for number in 0..BLOCKED_MAX {
            notes.block(blocked(&format!("C{number}"), "late")).unwrap();
        }
        assert_eq!(notes.blocked().len(), BLOCKED_MAX);
        assert_eq!((notes.unblock().unwrap(), notes.blocked()), (BLOCKED_MAX, vec![]));
    }
}
