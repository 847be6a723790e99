//! The updater's hands on the frame path: loads releases, has them judge their golden images, swaps them in.
//!
//! Invariants: a release is swapped in only from a folder that was verified; a self-test compares every golden score
//! with what the trainer's engine gave, and a panic in it is a failed self-test.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
};

use andon_protocol::{
    Digest, ReleaseId,
    release::{GOLDEN_BYTES_MAX, GOLDEN_FILE, GoldenSet},
    state::UpdatePhase,
    telemetry::{Body, Event, Record},
};
use andon_runtime::{EngineChoice, Image, ImageLimits};
use tokio::sync::watch;

use crate::{
    clock::Clock,
    files::{Disk, SystemDisk},
    line::Line,
    pipeline::{Judge, LoadedRelease, load_release},
    spool::writer::{Intake, Item},
    update::{Station, Status, trial::TrialHealth},
};

const GOLDEN_IMAGE_BYTES_MAX: u64 = 32 * 1024 * 1024;

pub struct DeviceStation {
    pub line: Line,
    pub engine: EngineChoice,
    pub clock: Arc<dyn Clock>,
    pub intake: Intake,
    pub status: watch::Sender<Status>,
    /// Loaded by the self-test, to be swapped in by the trial.
    pub tested: Option<LoadedRelease>,
    /// The pipeline's count of swaps that tells that the newest one is done.
    pub installs: u64,
}

impl Station for DeviceStation {
    fn self_test(&mut self, folder: &Path, release: &ReleaseId) -> Result<(), String> {
        self.tested = None;
        let mut loaded = self.load_checked(folder, release)?;
        let set = read(&folder.join(GOLDEN_FILE), GOLDEN_BYTES_MAX as u64)?;
        let set = GoldenSet::from_json(&set).map_err(|e| e.to_string())?;
        let tested = catch_unwind(AssertUnwindSafe(|| judge_golden(&mut *loaded.judge, folder, &set)));
        tested.map_err(|_| "the engine panicked on a golden image".to_owned())??;
        tracing::info!(%release, cases = set.cases.len(), "self-test passed");
        self.tested = Some(loaded);
        Ok(())
    }

    fn load(&mut self, folder: &Path, release: &ReleaseId) -> Result<(), String> {
        let loaded = match self.tested.take().filter(|tested| tested.running.release == *release) {
            Some(tested) => tested,
            None => self.load_checked(folder, release)?,
        };
        let before = self.line.health().ok_or("the frame path has ended")?.installs;
        self.installs = before + 1;
        if self.line.install(loaded) { Ok(()) } else { Err("the frame path has ended".into()) }
    }

    fn trial_health(&mut self) -> TrialHealth {
        let Some(health) = self.line.health() else { return TrialHealth::default() };
        let counts = &health.since_install;
        TrialHealth {
            alive: health.alive,
            installed: health.installs >= self.installs,
            judged: counts.judged(),
            faults: counts.release_faults,
        }
    }

    fn announce(&mut self, release: &ReleaseId, phase: UpdatePhase, detail: Option<String>) {
        let event = Event::Update { release: release.clone(), phase, detail };
        // Lost when the queue is full; the state itself is reported with every connection.
        self.intake.offer(Item::Record(Record { at_ms: self.clock.now_ms(), body: Body::Event(event) }));
    }

    fn status(&mut self, status: Status) {
        self.status.send_replace(status);
    }
}

impl DeviceStation {
    fn load_checked(&self, folder: &Path, release: &ReleaseId) -> Result<LoadedRelease, String> {
        let loaded = catch_unwind(AssertUnwindSafe(|| load_release(folder, self.engine)))
            .map_err(|_| "the engine panicked while loading".to_owned())?
            .map_err(|e| e.to_string())?;
        let named = &loaded.running.release;
        if named != release {
            return Err(format!("its manifest says it is {named}"));
        }
        Ok(loaded)
    }
}

fn judge_golden(judge: &mut dyn Judge, folder: &Path, set: &GoldenSet) -> Result<(), String> {
    for case in &set.cases {
        let name = &case.image;
        let bytes = read(&folder.join("golden").join(name), GOLDEN_IMAGE_BYTES_MAX)?;
        if Digest::of(&bytes) != case.digest {
            return Err(format!("golden image {name} is not the one of the golden set"));
        }
        let image = Image::decode(&bytes, &ImageLimits::default()).map_err(|e| format!("{name}: {e}"))?;
        let scores = judge.judge(&image).map_err(|e| format!("{name}: {e}"))?.scores;
        if scores.len() != case.scores.len() {
            return Err(format!("{name}: {} scores, expected are {}", scores.len(), case.scores.len()));
        }
        let difference = scores.iter().zip(&case.scores).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // Written so that a score that is no number fails, too.
        let within = difference <= set.tolerance && scores.iter().all(|score| score.is_finite());
        if !within {
            return Err(format!(
                "{name}: a score is off by {difference:.4}, allowed is {:.4}; this device computes the network \
                 differently",
                set.tolerance
            ));
        }
    }
    Ok(())
}

fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, String> {
    SystemDisk.read(path, bytes_max).map_err(|e| e.to_string())
}
