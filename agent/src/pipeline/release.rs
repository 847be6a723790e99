//! From a release's folder to something that judges. The files are verified already (by digest, against signed
//! metadata); here they are read with a bound and checked for sense.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use andon_drift::Reference;
use andon_protocol::{
    DecodeError, Digest,
    codec::Wire,
    decode,
    release::{MANIFEST_BYTES_MAX, MANIFEST_FILE, MODEL_FILE, Manifest, REFERENCE_FILE},
    state::Running,
};
use andon_runtime::{
    Classifier, Failure, GuardEvent, Guarding, Image, Judgement, Limits, Model, SessionOptions,
    is_float_network, onnx,
};

use super::{Judge, JudgeError, LoadedRelease};
use crate::{
    clock::{Clock, SystemClock},
    engines::{Choice, Engines, Network, decide::Gpu, short},
    golden,
};

#[derive(Debug, thiserror::Error)]
pub enum LoadReleaseError {
    #[error("{}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{}: over {max} bytes", path.display())]
    TooLarge { path: PathBuf, max: usize },
    #[error("{}: {error}", path.display())]
    Decode { path: PathBuf, error: DecodeError },
    #[error("{}: {error}", path.display())]
    Model { path: PathBuf, error: andon_runtime::LoadError },
}

/// Loads the release in `folder`, on the engine that does best by it. A release without a reference is judged with, but
/// not watched.
pub fn load_release(folder: &Path, engines: &Arc<Engines>) -> Result<LoadedRelease, LoadReleaseError> {
    let limits = Limits::default();
    let path = folder.join(MANIFEST_FILE);
    let manifest = Manifest::from_json(&read(&path, MANIFEST_BYTES_MAX)?)
        .map_err(|error| LoadReleaseError::Decode { path, error })?;

    let path = folder.join(MODEL_FILE);
    // The store writes a release's files once, and never over one that is in use.
    let file = onnx::File::open(&path, limits.file_bytes_max)
        .map_err(|error| LoadReleaseError::Read { path: path.clone(), error })?;
    let digest = Digest::of(&file);
    file.let_go(&file);
    let model_error = |error| LoadReleaseError::Model { path: path.clone(), error };
    let model = Model::open(&file, &limits).map_err(model_error)?;
    // A release whose golden images cannot be read runs all the same; the self-test is what refuses it.
    let picture = golden::picture(folder).map(|sides| (sides, Classifier::pictures(&manifest))).ok();
    let input_shapes = Classifier::input_shapes(&manifest);
    let network = Network { model, digest, input_shapes, picture };
    let working = engines.working();
    let Choice { engine, tuning, tuned, pipelines, threads, gpu, why } = engines.choose(&network);
    let Network { model, digest, .. } = network;
    // A GPU that fails costs no frame; what happened to it is told.
    let clock = SystemClock::new();
    let clock = andon_runtime::Clock::new(move || clock.elapsed());
    let policy = engines.policy(gpu.as_ref(), tuned);
    let guarding = Some(Guarding { policy, clock });
    let kept = pipelines.clone();
    let adapter = gpu.as_ref().map(|gpu| gpu.key.clone());
    let options =
        SessionOptions { engine, threads, tuning, pipelines, adapter, guarding, ..Default::default() };
    let classifier = Classifier::new(&model, &manifest, options).map_err(|error| {
        // Which is no fault of the driver's.
        if gpu.is_some() {
            engines.tried();
        }
        model_error(error)
    })?;
    if let Some(pipelines) = kept {
        engines.keep(&pipelines);
    }
    let mut judge =
        Chosen::new(classifier, gpu, Arc::clone(engines), why, is_float_network(&model).then_some(digest));
    drop(working);
    let engine = judge.take_engine().unwrap_or_default();
    tracing::info!(release = %manifest.release, "runs on {engine}");

    let path = folder.join(REFERENCE_FILE);
    let (reference, reference_digest) = if path.exists() {
        let bytes = read(&path, Reference::BYTES_MAX)?;
        let reference =
            decode(&bytes).map_err(|error| LoadReleaseError::Decode { path: path.clone(), error })?;
        (Some(reference), Digest::of(&bytes))
    } else {
        (None, Digest::of(&[]))
    };
    let running = Running { release: manifest.release.clone(), model: digest, engine };
    Ok(LoadedRelease { manifest, running, reference, reference_digest, judge: Box::new(judge) })
}

/// A driver that ends the process does so within these, mostly: at its first picture, or at the first ones after its device
/// was made anew.
const TRIAL_IMAGES: u32 = 10;

/// A classifier on the engine that was chosen for it.
struct Chosen {
    classifier: Classifier,
    engines: Arc<Engines>,
    gpu: Option<Gpu>,
    /// Images that the GPU is still to judge before its driver is taken to leave the process alone.
    on_trial: Option<u32>,
    /// Why it was chosen.
    why: String,
    /// Digest of a float network: those differ for more reasons than that a driver is bad.
    float: Option<Digest>,
    /// The newest failure was another result than the CPU's.
    has_differed: bool,
    /// What it runs on, if that has changed since the last call.
    engine: Option<String>,
}

impl Chosen {
    fn new(
        classifier: Classifier,
        gpu: Option<Gpu>,
        engines: Arc<Engines>,
        why: String,
        float: Option<Digest>,
    ) -> Self {
        let engine = Some(format!("{}: {why}", classifier.engine()));
        let is_refused = gpu.is_some() && classifier.engine() != "gpu";
        let on_trial = gpu.as_ref().map(|_| TRIAL_IMAGES);
        let mut chosen = Self { classifier, engines, gpu, on_trial, why, float, has_differed: false, engine };
        if let (Some(event), true) = (chosen.hear(), is_refused) {
            chosen.engine = Some(short(&format!("{}: {event}", chosen.classifier.engine())));
        }
        chosen
    }

    /// Tells what happened to the engine since the last call; the newest of it.
    fn hear(&mut self) -> Option<String> {
        let mut newest = None;
        for event in self.classifier.take_events() {
            match (&event, &self.gpu) {
                (GuardEvent::Failed { failure, .. }, Some(gpu)) => {
                    self.has_differed = *failure == Failure::Mismatch;
                    // It is made anew soon, and frames wait for nothing meanwhile.
                    let key = gpu.key.clone();
                    self.on_trial = None;
                    self.beside(move |engines| engines.try_again(&key));
                }
                (GuardEvent::Unavailable { .. }, _) => self.has_differed = false,
                (GuardEvent::Restored, _) => {
                    self.engine = Some(format!("gpu: {}", self.why));
                    self.on_trial = Some(TRIAL_IMAGES);
                }
                (GuardEvent::Blocked { failures, reason }, Some(gpu)) => {
                    let reason = format!("{failures} failures in a row, the last: {reason}");
                    let differs = self.float.filter(|_| self.has_differed);
                    let blocked = self.engines.bad(&gpu.key, &reason);
                    let what = differs.map_or_else(|| blocked.text(), |_| reason.clone());
                    self.engine = Some(short(&format!("{}: {what}", self.classifier.engine())));
                    self.beside(move |engines| {
                        match differs {
                            Some(network) => engines.refuse(&blocked.adapter, &network, &reason),
                            None => engines.block(blocked),
                        }
                        engines.tried();
                    });
                }
                _ => {}
            }
            self.engines.incidents().tell(event.to_string());
            newest = Some(event.to_string());
        }
        newest
    }

    /// Disks take their time, and a verdict waits for none.
    fn beside(&self, write: impl FnOnce(&Engines) + Send + 'static) {
        let engines = Arc::clone(&self.engines);
        if let Err(error) = thread::Builder::new().name("gpu-notes".into()).spawn(move || write(&engines)) {
            tracing::error!(%error, "no thread to write down what happened to the GPU");
        }
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        // An orderly end proves nothing against a driver.
        if self.on_trial.is_some() {
            self.engines.tried();
        }
    }
}

impl Judge for Chosen {
    fn judge(&mut self, image: &Image) -> Result<Judgement, JudgeError> {
        let judgement = self.classifier.classify(image);
        self.hear();
        let judgement = judgement.map_err(|error| JudgeError(error.to_string()))?;
        self.on_trial = match self.on_trial {
            Some(0) => {
                self.beside(Engines::tried);
                None
            }
            other => other.map(|left| left - 1),
        };
        Ok(judgement)
    }

    fn take_engine(&mut self) -> Option<String> {
        self.engine.take()
    }
}

fn read(path: &Path, max: usize) -> Result<Vec<u8>, LoadReleaseError> {
    let failed = |error| LoadReleaseError::Read { path: path.to_owned(), error };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    let read = file.take(max as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if read > max {
        return Err(LoadReleaseError::TooLarge { path: path.to_owned(), max });
    }
    Ok(bytes)
}
