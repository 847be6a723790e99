//! From a release's folder to something that judges. The files are verified already (by digest, against signed
//! metadata); here they are read with a bound and checked for sense.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
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
    Classifier, EngineChoice, GuardPolicy, Guarding, Image, Judgement, Limits, Model, SessionOptions, onnx,
};

use super::{Judge, JudgeError, LoadedRelease};
use crate::clock::{Clock, SystemClock};

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

/// Loads the release in `folder`. A release without a reference is judged with, but not watched.
pub fn load_release(folder: &Path, engine: EngineChoice) -> Result<LoadedRelease, LoadReleaseError> {
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
    // A GPU that fails costs no frame; what happened to it is told.
    let clock = SystemClock::new();
    let clock = andon_runtime::Clock::new(move || clock.elapsed());
    let guarding = Some(Guarding { policy: GuardPolicy::default(), clock });
    let options = SessionOptions { engine, guarding, ..Default::default() };
    let classifier = Classifier::new(&model, &manifest, options).map_err(model_error)?;

    let path = folder.join(REFERENCE_FILE);
    let (reference, reference_digest) = if path.exists() {
        let bytes = read(&path, Reference::BYTES_MAX)?;
        let reference =
            decode(&bytes).map_err(|error| LoadReleaseError::Decode { path: path.clone(), error })?;
        (Some(reference), Digest::of(&bytes))
    } else {
        (None, Digest::of(&[]))
    };
    let running =
        Running { release: manifest.release.clone(), model: digest, engine: classifier.engine().to_owned() };
    Ok(LoadedRelease { manifest, running, reference, reference_digest, judge: Box::new(classifier) })
}

impl Judge for Classifier {
    fn judge(&mut self, image: &Image) -> Result<Judgement, JudgeError> {
        self.classify(image).map_err(|error| JudgeError(error.to_string()))
    }

    fn take_notes(&mut self) -> Vec<String> {
        self.take_events().iter().map(ToString::to_string).collect()
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
