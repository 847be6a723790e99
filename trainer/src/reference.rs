//! What drift will be measured against: image statistics, embedding and scores of good frames, as the device's engine
//! gives them. From frames that the network was not trained on: on its own training frames it is too sure.

use andon_drift::{FitOptions, FrameFeatures, Gray, Reference, image_stats};
use andon_protocol::codec;
use andon_runtime::Judgement;

use crate::data::Pixels;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ReferenceError {
    #[error("images of {width}x{height} are too small to watch for drift; at least 8x8 is needed")]
    Size { width: usize, height: usize },
    #[error("no reference for drift can be fitted to the validation and golden images: {0}")]
    Fit(#[from] andon_drift::FitError),
}

/// `images[i]` was judged as `judged[i]`; in the order of the line, where there is one. The bytes of `reference.cbor`.
pub(crate) fn fit<'a>(
    images: impl Iterator<Item = &'a Pixels>,
    judged: impl Iterator<Item = &'a Judgement>,
    seed: u64,
) -> Result<Vec<u8>, ReferenceError> {
    let frames = images.zip(judged).map(|(image, judged)| {
        let gray = image.gray();
        let size = ReferenceError::Size { width: image.width, height: image.height };
        let gray = Gray::new(image.width, image.height, &gray).ok_or(size)?;
        let (embedding, scores) = (judged.embedding.clone(), judged.scores.clone());
        Ok(FrameFeatures { stats: image_stats(&gray), embedding, scores })
    });
    let frames = frames.collect::<Result<Vec<_>, ReferenceError>>()?;
    Ok(codec::encode(&Reference::fit(&frames, &FitOptions { seed })?))
}
