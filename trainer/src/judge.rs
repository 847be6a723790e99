//! Judging images with the engine that devices run: what the evaluator reports, what the golden set holds and what the
//! gate compares all come from here, not from the training engine.

use andon_protocol::release::{Manifest, Preprocessing};
use andon_runtime::{Classifier, Judgement, Limits, Model, SessionOptions, Tensor};

use crate::{data::Pixels, team::Team};

#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    #[error(transparent)]
    Load(#[from] andon_runtime::LoadError),
    #[error(transparent)]
    Run(#[from] andon_runtime::RunError),
    #[error("image {index} is not of the network's input size")]
    Size { index: usize },
}

/// Judges all images, in order. One classifier per thread.
pub fn judge(
    team: &Team,
    model: &[u8],
    manifest: &Manifest,
    images: &[&Pixels],
) -> Result<Vec<Judgement>, JudgeError> {
    let model = Model::load(model, &Limits::default())?;
    let share = images.len().div_ceil(team.threads()).max(1);
    let chunks = team.map(images.len().div_ceil(share), |i| {
        let mut classifier = Classifier::new(&model, manifest, SessionOptions::default())?;
        let chunk = images[i * share..].iter().take(share).enumerate();
        let judged = chunk.map(|(k, image)| {
            let tensor =
                tensor(image, &manifest.preprocessing).ok_or(JudgeError::Size { index: i * share + k })?;
            Ok(classifier.judge(tensor)?)
        });
        judged.collect::<Result<Vec<_>, JudgeError>>()
    })?;
    Ok(chunks.into_iter().flatten().collect())
}

fn tensor(image: &Pixels, constants: &Preprocessing) -> Option<Tensor> {
    let values = image.normalised(constants);
    Tensor::f32(vec![1, constants.mean.len(), image.height, image.width], values).ok()
}

pub fn scores(judged: &[Judgement]) -> Vec<Vec<f32>> {
    judged.iter().map(|j| j.scores.clone()).collect()
}
