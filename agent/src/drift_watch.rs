//! The drift detector of the release that runs: features of a frame in, events and the detector's state out. State
//! outlives a restart in one small file, so that neither a power cut nor a crash ends an alarm.

use std::sync::Arc;

use andon_drift::{
    Alarm, Detector, DetectorOptions, FrameFeatures, Gate, Gray, Reference, Start, Step, image_stats,
};
use andon_protocol::{
    Digest,
    release::{Input, Manifest, Preprocessing},
    telemetry::{Chart, DriftState},
};
use andon_runtime::{Image, Judgement, preprocess};
use serde::Deserialize;

/// `[drift]` of the agent's configuration.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Mean frames between two false alarms (ARL0). 20,000 is one in 5.5 hours at one part a second.
    pub false_alarm_frames: f64,
    /// Frames at the start of which the camera is compared with the fleet's; 0: armed at once. More of them (1,000)
    /// follow a camera that differs from the fleet's better.
    pub commissioning_frames: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { false_alarm_frames: 20_000.0, commissioning_frames: 64 }
    }
}

/// The picture as the network sees it, in grey: `[height][width]` in 0 to 255.
#[derive(Debug, Clone, PartialEq)]
pub struct GrayPlane {
    pub width: usize,
    pub height: usize,
    pub pixels: Vec<f32>,
}

/// `None` for a manifest that the runtime cannot preprocess for, which it refuses at load.
pub fn gray_plane(image: &Image, input: &Input) -> Option<GrayPlane> {
    let gray = Input { channels: 1, ..input.clone() };
    let plain = Preprocessing { mean: vec![0.0], std: vec![1.0] };
    let tensor = preprocess(image, &gray, &plain).ok()?;
    let pixels = tensor.as_f32()?.to_vec();
    Some(GrayPlane { width: input.width as usize, height: input.height as usize, pixels })
}

/// What drift is measured on. `None` if the network's input is under 8 pixels a side.
pub fn features(gray: &GrayPlane, judgement: &Judgement) -> Option<FrameFeatures> {
    let view = Gray::new(gray.width, gray.height, &gray.pixels)?;
    let Judgement { scores, embedding, .. } = judgement;
    Some(FrameFeatures { stats: image_stats(&view), embedding: embedding.clone(), scores: scores.clone() })
}

/// Watches with one release at a time.
#[derive(Debug, Default)]
pub struct DriftWatch {
    config: Config,
    watching: Option<Watching>,
}

#[derive(Debug)]
struct Watching {
    detector: Detector,
    reference: Arc<Reference>,
    reference_digest: Digest,
    options: DetectorOptions,
}

impl DriftWatch {
    pub fn new(config: Config) -> Self {
        Self { config, watching: None }
    }

    /// Starts afresh with a release's reference. A release that comes while this device is in alarm answers it.
    pub fn switch(
        &mut self,
        manifest: &Manifest,
        reference: Option<&Arc<Reference>>,
        reference_digest: Digest,
    ) {
        let start = if self.state() == DriftState::Alarm { Start::Answered } else { Start::Fleet };
        let Config { false_alarm_frames, commissioning_frames } = self.config;
        let fits = |r: &&Arc<Reference>| {
            let fits = r.labels() == manifest.labels.len();
            if !fits {
                tracing::warn!(release = %manifest.release, labels = r.labels(), "the drift reference is of another set of labels; drift is not watched");
            }
            fits
        };
        self.watching = reference.filter(fits).map(|reference| {
            let assurance = reference.assurance(false_alarm_frames);
            if !assurance.assured {
                tracing::warn!(
                    release = %manifest.release,
                    independent_frames = assurance.units,
                    "the reference is too small to promise {false_alarm_frames} frames between false alarms"
                );
            }
            let options = DetectorOptions { false_alarm_frames, commissioning_frames, start };
            let detector = Detector::new(reference, &options);
            Watching { detector, reference: Arc::clone(reference), reference_digest, options }
        });
    }

    /// Goes on with a saved state, if it is one of the same reference. Says whether it does.
    pub fn restore(&mut self, reference_digest: &Digest, state: &[u8]) -> bool {
        let Some(watching) = self.watching.as_mut().filter(|w| w.reference_digest == *reference_digest)
        else {
            return false;
        };
        match Detector::restore(&watching.reference, &watching.options, state) {
            Ok(detector) => watching.detector = detector,
            Err(error) => {
                tracing::warn!(%error, "the saved drift state is not used");
                return false;
            }
        }
        true
    }

    /// What [`DriftWatch::restore`] needs; `None` while nothing is watched.
    pub fn save(&self) -> Option<(Digest, Vec<u8>)> {
        self.watching.as_ref().map(|w| (w.reference_digest, w.detector.save()))
    }

    pub fn state(&self) -> DriftState {
        self.watching.as_ref().map_or(DriftState::NoReference, |w| w.detector.state())
    }

    pub fn charts(&self) -> Vec<Chart> {
        self.watching.as_ref().map_or_else(Vec::new, |w| w.detector.charts())
    }

    /// Normal scores of the newest frame's statistics, and the projection of its embedding.
    pub fn newest(&self) -> (Vec<f32>, Vec<f32>) {
        let of = |w: &Watching| (w.detector.ranks().to_vec(), w.detector.projection().to_vec());
        self.watching.as_ref().map_or_else(Default::default, of)
    }

    pub fn acknowledge(&mut self) {
        if let Some(watching) = &mut self.watching {
            watching.detector.acknowledge();
        }
    }

    /// `None` for a frame that was not judged.
    pub fn push(
        &mut self,
        features: Option<&FrameFeatures>,
        identical: u32,
    ) -> (DriftState, Option<Alarm>, bool) {
        let Some(watching) = &mut self.watching else { return (DriftState::NoReference, None, false) };
        let gate = Gate { identical };
        let Step { state, alarm, cleared } = match features {
            Some(features) => watching.detector.push(features, gate),
            None => watching.detector.push_unjudged(gate),
        };
        (state, alarm, cleared)
    }
}
