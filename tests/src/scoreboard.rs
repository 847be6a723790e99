//! Verdicts as the devices wrote them, compared with the truth.
//!
//! Accuracy is balanced: the mean of the shares of good parts passed and of bad parts rejected. A fault is never right.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use andon_protocol::{ids::ReleaseId, telemetry::DriftState};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::dataset::REJECT_CLASS;

/// Read at once, at most.
const READ_BYTES_MAX: u64 = 8 * 1024 * 1024;
const LINE_BYTES_MAX: usize = 64 * 1024;

/// What is used here of a line of verdicts.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Verdict {
    /// From 1 with the first frame after a start.
    pub frame: u64,
    pub source: String,
    pub release: Option<ReleaseId>,
    pub verdict: Outcome,
    pub drift: DriftState,
    pub degraded: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Pass,
    Reject,
    Fault,
}

/// Follows a growing file of JSON lines.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    offset: u64,
}

impl Tail {
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), offset: 0 }
    }

    /// The whole lines written since the last call. The file need not exist yet.
    pub fn read(&mut self) -> Result<Vec<Verdict>> {
        let mut file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            opened => opened.with_context(|| format!("cannot open {}", self.path.display()))?,
        };
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        file.take(READ_BYTES_MAX).read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        ensure!(
            bytes.len() - whole <= LINE_BYTES_MAX,
            "a line over {LINE_BYTES_MAX} bytes in {}",
            self.path.display()
        );
        let verdicts = bytes[..whole]
            .split(|b| *b == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| {
                serde_json::from_slice(line)
                    .with_context(|| format!("{}: {:?}", self.path.display(), String::from_utf8_lossy(line)))
            })
            .collect::<Result<_>>()?;
        self.offset += whole as u64;
        Ok(verdicts)
    }
}

/// A stretch of a device's life that accuracy is told for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The first pass over the stream, as it came from the line.
    Before,
    /// The pass after it, with the first release; degraded, where the device is.
    Drift,
    /// The first pass with the second release.
    After,
}

/// Balanced accuracy, and what it rests on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// 0 to 1.
    pub accuracy: f64,
    /// Different images judged.
    pub images: usize,
}

/// All verdicts of one device.
#[derive(Debug)]
pub struct Scoreboard {
    /// Images in the stream; a pass is that many frames.
    stream: u64,
    verdicts: Vec<Verdict>,
}

impl Scoreboard {
    pub fn new(stream: usize) -> Self {
        Self { stream: stream as u64, verdicts: Vec::new() }
    }

    pub fn add(&mut self, verdicts: Vec<Verdict>) {
        self.verdicts.extend(verdicts);
    }

    /// Frames judged by a release.
    pub fn judged(&self) -> usize {
        self.verdicts.iter().filter(|v| v.release.is_some()).count()
    }

    /// Frames from the first degraded one to the first that was judged in alarm.
    pub fn frames_to_detection(&self) -> Option<u64> {
        let onset = self.verdicts.iter().find(|v| v.degraded)?.frame;
        let alarm = self.verdicts.iter().find(|v| v.frame >= onset && v.drift == DriftState::Alarm)?;
        Some(alarm.frame - onset + 1)
    }

    /// Frames judged in alarm before, or without, any degradation.
    pub fn false_alarms(&self) -> usize {
        let clean = self.verdicts.iter().take_while(|v| !v.degraded);
        clean.filter(|v| v.drift == DriftState::Alarm).count()
    }

    /// Frames seen of a phase, at most a pass.
    pub fn seen(&self, phase: Phase, second: &ReleaseId) -> u64 {
        let frames = self.of(phase, second).map(|v| v.frame);
        let (first, last) = frames.fold((u64::MAX, 0), |(first, last), f| (first.min(f), last.max(f)));
        if first == u64::MAX { 0 } else { (last - first + 1).min(self.stream) }
    }

    pub fn stream(&self) -> u64 {
        self.stream
    }

    /// Nothing, if a class was not seen in the phase.
    pub fn score(&self, phase: Phase, second: &ReleaseId, truth: &HashMap<String, String>) -> Option<Score> {
        let mut right = [0_u32; 2];
        let mut all = [0_u32; 2];
        let mut images = HashSet::new();
        for verdict in self.of(phase, second) {
            let bad = truth.get(&verdict.source)? == REJECT_CLASS;
            let expected = if bad { Outcome::Reject } else { Outcome::Pass };
            all[usize::from(bad)] += 1;
            right[usize::from(bad)] += u32::from(verdict.verdict == expected);
            images.insert(&verdict.source);
        }
        if all.contains(&0) {
            return None;
        }
        let share = |class: usize| f64::from(right[class]) / f64::from(all[class]);
        Some(Score { accuracy: (share(0) + share(1)) / 2.0, images: images.len() })
    }

    fn of<'a>(&'a self, phase: Phase, second: &'a ReleaseId) -> impl Iterator<Item = &'a Verdict> {
        let by_second = move |v: &Verdict| v.release.as_ref() == Some(second);
        let first_of_second = self.verdicts.iter().find(|v| by_second(v)).map_or(u64::MAX, |v| v.frame);
        let stream = self.stream;
        self.verdicts.iter().filter(move |v| match phase {
            Phase::Before => v.frame <= stream && v.release.is_some() && !by_second(v),
            Phase::Drift => v.frame > stream && v.frame <= 2 * stream && !by_second(v),
            Phase::After => by_second(v) && v.frame - first_of_second < stream,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn verdict(frame: u64, version: u32, bad: bool, outcome: Outcome) -> Verdict {
        Verdict {
            frame,
            source: if bad { "bad.png" } else { "good.png" }.to_owned(),
            release: Some(ReleaseId::new("m", version).unwrap()),
            verdict: outcome,
            drift: DriftState::Armed,
            degraded: false,
        }
    }

    fn truth() -> HashMap<String, String> {
        [("bad.png", "defect"), ("good.png", "ok")].map(|(f, c)| (f.to_owned(), c.to_owned())).into()
    }

    #[test]
    fn phases_are_told_apart_and_scored_by_class() {
        let second = ReleaseId::new("m", 2).unwrap();
        let mut board = Scoreboard::new(4);
        board.add(vec![
            verdict(1, 1, false, Outcome::Pass),
            verdict(2, 1, false, Outcome::Reject),
            verdict(3, 1, true, Outcome::Reject),
            verdict(4, 1, true, Outcome::Reject),
            // Only good parts were seen in the pass under drift.
            verdict(5, 1, false, Outcome::Fault),
            verdict(6, 2, true, Outcome::Fault),
            verdict(7, 2, false, Outcome::Pass),
            // Over a pass after the first frame of the second release.
            verdict(10, 2, true, Outcome::Reject),
        ]);
        let score = |phase| board.score(phase, &second, &truth());
        assert_eq!(score(Phase::Before), Some(Score { accuracy: 0.75, images: 2 }));
        assert_eq!(score(Phase::Drift), None);
        assert_eq!(score(Phase::After), Some(Score { accuracy: 0.5, images: 2 }));
        assert_eq!([Phase::Before, Phase::Drift, Phase::After].map(|p| board.seen(p, &second)), [4, 1, 2]);
    }

    #[test]
    fn detection_counts_from_the_first_degraded_frame() {
        let mut board = Scoreboard::new(4);
        let with =
            |frame, degraded, drift| Verdict { degraded, drift, ..verdict(frame, 1, false, Outcome::Pass) };
        board.add(vec![with(3, false, DriftState::Alarm), with(4, true, DriftState::Suspect)]);
        assert_eq!((board.frames_to_detection(), board.false_alarms()), (None, 1));
        board.add(vec![with(9, true, DriftState::Alarm), with(10, true, DriftState::Alarm)]);
        assert_eq!((board.frames_to_detection(), board.false_alarms()), (Some(6), 1));
    }

    #[test]
    fn a_tail_gives_whole_lines_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("verdicts.jsonl");
        let mut tail = Tail::new(&path);
        assert!(tail.read().unwrap().is_empty());
        let line = |frame| {
            format!(
                "{{\"frame\":{frame},\"at_ms\":1,\"source\":\"a.png\",\"release\":null,\"verdict\":\"fault\",\
                 \"drift\":\"armed\",\"degraded\":false}}\n"
            )
        };
        let mut file = File::create(&path).unwrap();
        write!(file, "{}{}", line(1), &line(2)[..20]).unwrap();
        assert_eq!(tail.read().unwrap().iter().map(|v| v.frame).collect::<Vec<_>>(), [1]);
        write!(file, "{}{}", &line(2)[20..], line(3)).unwrap();
        assert_eq!(tail.read().unwrap().iter().map(|v| v.frame).collect::<Vec<_>>(), [2, 3]);
        writeln!(file, "no verdict").unwrap();
        assert!(tail.read().unwrap_err().to_string().contains("no verdict"));
    }
}
