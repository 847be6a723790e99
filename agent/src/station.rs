//! The updater's hands on the frame path: loads releases, has them judge their golden images, swaps them in.
//!
//! Invariants: a release is swapped in only from a folder that was verified; a self-test compares every golden score
//! with what the trainer's engine gave; one that panics or does not end has failed.

use std::{path::Path, sync::Arc, time::Duration};

use andon_protocol::{
    ReleaseId,
    release::GoldenSet,
    state::UpdatePhase,
    telemetry::{Body, Event, Record},
};
use tokio::sync::watch;

use crate::{
    clock::Clock,
    engines::{Engines, in_time},
    golden,
    line::Line,
    pipeline::{Judge, LoadedRelease, load_release},
    spool::writer::{Intake, Item},
    update::{Station, Status, trial::TrialHealth},
};

/// Loading a release and judging its golden images takes seconds on the slowest device, and so does measuring a GPU.
const WORK_MAX: Duration = Duration::from_secs(300);

pub struct DeviceStation {
    pub line: Line,
    pub engines: Arc<Engines>,
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
        let (engines, folder, release) = (Arc::clone(&self.engines), folder.to_owned(), release.clone());
        self.tested = Some(in_time("load", WORK_MAX, move || tested_release(&engines, &folder, &release))?);
        Ok(())
    }

    fn load(&mut self, folder: &Path, release: &ReleaseId) -> Result<(), String> {
        let loaded = match self.tested.take().filter(|tested| tested.running.release == *release) {
            Some(tested) => tested,
            None => {
                let (engines, folder, release) =
                    (Arc::clone(&self.engines), folder.to_owned(), release.clone());
                in_time("load", WORK_MAX, move || load_checked(&engines, &folder, &release))?
            }
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

fn tested_release(
    engines: &Arc<Engines>,
    folder: &Path,
    release: &ReleaseId,
) -> Result<LoadedRelease, String> {
    let mut loaded = load_checked(engines, folder, release)?;
    let set = golden::set(folder)?;
    judge_golden(&mut *loaded.judge, folder, &set)?;
    tracing::info!(%release, cases = set.cases.len(), "self-test passed");
    Ok(loaded)
}

fn load_checked(engines: &Arc<Engines>, folder: &Path, release: &ReleaseId) -> Result<LoadedRelease, String> {
    let loaded = load_release(folder, engines).map_err(|e| e.to_string())?;
    let named = &loaded.running.release;
    if named != release {
        return Err(format!("its manifest says it is {named}"));
    }
    Ok(loaded)
}

fn judge_golden(judge: &mut dyn Judge, folder: &Path, set: &GoldenSet) -> Result<(), String> {
    for case in &set.cases {
        let name = &case.image;
        let image = golden::image(folder, case)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::JudgeError;
    use andon_protocol::{Digest, release::GoldenCase};
    use andon_runtime::{Image, Judgement};

    /// Gives every image these scores.
    struct Fixed(Vec<f32>);

    impl Judge for Fixed {
        fn judge(&mut self, _: &Image) -> Result<Judgement, JudgeError> {
            let class = 0;
            Ok(Judgement { scores: self.0.clone(), class, embedding: vec![] })
        }
    }

    #[test]
    fn golden_scores_must_be_the_trainers() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("golden")).unwrap();
        let path = folder.path().join("golden/one.png");
        image::GrayImage::new(4, 4).save(&path).unwrap();
        let digest = Digest::of(&std::fs::read(&path).unwrap());
        let set = |digest| GoldenSet {
            tolerance: 0.01,
            cases: vec![GoldenCase { image: "one.png".into(), digest, label: 0, scores: vec![0.9, 0.1] }],
        };
        for (scores, expected) in [
            (vec![0.9, 0.1], None),
            (vec![0.895, 0.105], None),
            (vec![0.8, 0.2], Some("off by 0.1000")),
            (vec![f32::NAN, 0.1], Some("off by")),
            (vec![0.9], Some("1 scores, expected are 2")),
        ] {
            let result = judge_golden(&mut Fixed(scores.clone()), folder.path(), &set(digest));
            match (expected, result) {
                (None, Ok(())) => {}
                (Some(text), Err(error)) if error.contains(text) => {}
                (_, result) => panic!("{scores:?}: {result:?}"),
            }
        }
        let other = set(Digest::of(b"another image"));
        assert!(judge_golden(&mut Fixed(vec![0.9, 0.1]), folder.path(), &other).is_err());
    }

    #[test]
    fn a_panic_while_loading_is_an_error() {
        let result: Result<(), String> = in_time("load", WORK_MAX, || panic!("a bug in the engine"));
        assert_eq!(result, Err("the engine panicked".into()));
    }
}
