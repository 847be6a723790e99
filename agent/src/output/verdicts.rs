//! Verdicts as JSON lines in a file, one flush a line, so that a reader who follows the file sees whole lines only.
//! Bounded: at [`Config::bytes_max`] the file becomes `NAME.1` (the one before it goes) and a new one begins. Not
//! synced: a power cut may take the last lines, which is why telemetry counts frames on its own.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::PathBuf,
};

use serde::Deserialize;

use super::{Output, VerdictLine};

/// `[output]` of the agent's configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The JSON lines file.
    pub verdicts: PathBuf,
    /// Size at which a new file begins; the disk holds at most twice this.
    #[serde(default = "default_bytes_max")]
    pub bytes_max: u64,
}

fn default_bytes_max() -> u64 {
    64 * 1024 * 1024
}

#[derive(Debug)]
pub struct VerdictFile {
    config: Config,
    /// `None` after a failure; the next line tries again.
    file: Option<File>,
    bytes: u64,
    line: Vec<u8>,
}

impl VerdictFile {
    /// Appends to the file if there is one, and makes its folder if there is none.
    pub fn open(config: &Config) -> io::Result<Self> {
        let mut this = Self { config: config.clone(), file: None, bytes: 0, line: Vec::new() };
        this.reopen()?;
        Ok(this)
    }

    fn reopen(&mut self) -> io::Result<()> {
        if let Some(folder) = self.config.verdicts.parent().filter(|f| !f.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&self.config.verdicts)?;
        self.bytes = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        let mut old = self.config.verdicts.clone().into_os_string();
        old.push(".1");
        std::fs::rename(&self.config.verdicts, old)?;
        self.reopen()
    }
}

impl Output for VerdictFile {
    fn write(&mut self, line: &VerdictLine) -> io::Result<()> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, line)?;
        self.line.push(b'\n');
        if self.file.is_none() {
            self.reopen()?;
        }
        if self.bytes > 0 && self.bytes + self.line.len() as u64 > self.config.bytes_max {
            self.rotate()?;
        }
        let Some(file) = self.file.as_mut() else { return Ok(()) };
        // One write a line: with O_APPEND a reader never sees half of one.
        match file.write_all(&self.line) {
            Ok(()) => {
                self.bytes += self.line.len() as u64;
                Ok(())
            }
            Err(error) => {
                self.file = None;
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use andon_protocol::telemetry::DriftState;

    use super::*;
    use crate::decision::{Reason, Verdict};

    fn line(frame: u64) -> VerdictLine {
        VerdictLine {
            frame,
            at_ms: 5,
            source: "cell 17.png".into(),
            release: "solar-cell/1".parse().ok(),
            class: None,
            scores: vec![],
            verdict: Verdict::Fault,
            reason: Some(Reason::CameraFrozen),
            latency_us: 9,
            drift: DriftState::Armed,
            degraded: false,
        }
    }

    #[test]
    fn lines_are_json_in_order_and_the_disk_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/verdicts.jsonl");
        let config = Config { verdicts: path.clone(), bytes_max: 1000 };
        let mut file = VerdictFile::open(&config).unwrap();
        (0..50).for_each(|i| file.write(&line(i)).unwrap());
        drop(file);
        VerdictFile::open(&config).unwrap().write(&line(50)).unwrap();

        let old = std::fs::read_to_string(dir.path().join("new/verdicts.jsonl.1")).unwrap();
        let new = std::fs::read_to_string(&path).unwrap();
        assert!(old.len() <= 1000 && new.len() <= 1000);
        let numbers: Vec<u64> = old
            .lines()
            .chain(new.lines())
            .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["frame"].as_u64().unwrap())
            .collect();
        assert_eq!(numbers.last(), Some(&50));
        assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1), "{numbers:?}");
        let first: serde_json::Value = serde_json::from_str(new.lines().next().unwrap()).unwrap();
        assert_eq!(first["verdict"], "fault");
        assert_eq!(first["reason"], "camera_frozen");
        assert_eq!(first["release"], "solar-cell/1");
        assert_eq!(first["drift"], "armed");
    }
}
