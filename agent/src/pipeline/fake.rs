//! Fakes of the pipeline's seams, for tests.

use std::{
    sync::{Arc, Mutex, mpsc::Receiver},
    time::Duration,
};

use andon_protocol::{
    Digest,
    release::{Decision, Fit, Input, Lineage, Manifest, Outputs, Preprocessing},
    sample::SampleManifest,
    state::Running,
    telemetry::{Body, Event, Record},
};
use andon_runtime::{Image, Judgement};

use super::{Judge, JudgeError, LoadedRelease, Sink, lock};
use crate::camera::{Camera, CameraError, Frame};

/// Keeps what it is given.
#[derive(Default)]
pub(crate) struct Kept {
    pub(crate) records: Mutex<Vec<Record>>,
    pub(crate) samples: Mutex<Vec<(SampleManifest, Vec<u8>)>>,
}

impl Kept {
    pub(crate) fn events(&self) -> Vec<Event> {
        let event = |record: &Record| match &record.body {
            Body::Event(event) => Some(event.clone()),
            Body::Window(_) => None,
        };
        lock(&self.records).iter().filter_map(event).collect()
    }
}

impl Sink for Kept {
    fn record(&self, record: Record) {
        lock(&self.records).push(record);
    }

    fn sample(&self, manifest: SampleManifest, content: Vec<u8>) {
        lock(&self.samples).push((manifest, content));
    }
}

/// A camera that gives what a test sends.
pub(crate) struct Fed(pub(crate) Receiver<Result<Frame, CameraError>>);

impl Camera for Fed {
    fn next_frame(&mut self, patience: Duration) -> Result<Option<Frame>, CameraError> {
        self.0.recv_timeout(patience).map_or(Ok(None), |step| step.map(Some))
    }
}

/// A judge made of a function.
pub(crate) struct With<F>(pub(crate) F);

impl<F: FnMut(&Image) -> Result<Judgement, JudgeError> + Send> Judge for With<F> {
    fn judge(&mut self, image: &Image) -> Result<Judgement, JudgeError> {
        (self.0)(image)
    }
}

/// Sure that the part is good; the embedding is the picture's first pixels.
pub(crate) fn good(image: &Image) -> Judgement {
    let embedding = image.pixels().iter().take(16).map(|p| f32::from(*p)).collect();
    Judgement { scores: vec![0.9, 0.1], class: 0, embedding }
}

/// A release `m/VERSION` of two classes at 64 x 64 grey.
pub(crate) fn release(
    version: u32,
    judge: impl FnMut(&Image) -> Result<Judgement, JudgeError> + Send + 'static,
) -> LoadedRelease {
    let id = andon_protocol::ReleaseId::new("m", version).expect("a legal name");
    let manifest = Manifest {
        schema: Manifest::SCHEMA.into(),
        release: id.clone(),
        created_ms: 0,
        input: Input { name: "image".into(), width: 64, height: 64, channels: 1, fit: Fit::Stretched },
        preprocessing: Preprocessing { mean: vec![0.0], std: vec![1.0] },
        labels: vec!["ok".into(), "defect".into()],
        decision: Decision { reject: 1, threshold: 0.5 },
        outputs: Outputs { scores: "scores".into(), embedding: "embedding".into() },
        lineage: Lineage {
            parent: None,
            dataset: Digest::of(b""),
            float_model: Digest::of(b""),
            trainer: "test".into(),
            seed: 0,
        },
        metrics: Default::default(),
    };
    LoadedRelease {
        manifest,
        running: Running { release: id, model: Digest::of(b"model"), engine: "fake".into() },
        reference: None,
        reference_digest: Digest::of(b""),
        judge: Box::new(With(judge)),
    }
}

/// Asks again and again, for at most ten seconds.
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    for _ in 0..5000 {
        if let Some(answer) = ask() {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("never: {what}")
}

/// The same verdict lines for a pipeline and its test.
pub(crate) type Lines = Arc<Mutex<Vec<crate::output::VerdictLine>>>;
