//! The golden set of a release: images with the scores that the trainer's copy of the device's engine gave.

use std::path::Path;

use andon_runtime::{ImageLimits, Judgement};

use crate::{
    finish::spread,
    release::{self, GoldenImage, ReleaseError},
};

/// Bounds of the tolerance, in score. Two engines that are both right differ where a value lies between two int8 steps.
const TOLERANCE_MIN: f32 = 0.02;
const TOLERANCE_MAX: f32 = 0.05;

/// Picks about `count` images, as many of each class, and reads their files. The tolerance is the mean difference
/// that quantisation itself made on them, within bounds: another engine's rounding must not matter more than the rounding
/// to int8 did. (Measured: ONNX Runtime, not fused, is within 0.008 of our engine on EfficientNet-Lite0; fused on a processor
/// without VNNI it saturates in its 8-bit products and is off by up to 0.6, which is no release's fault.)
pub(crate) fn choose(
    paths: &[&Path],
    labels: &[usize],
    judged: &[Judgement],
    float: &[Vec<f32>],
    count: usize,
) -> Result<(Vec<GoldenImage>, f32), ReleaseError> {
    let classes = labels.iter().max().map_or(0, |c| c + 1);
    let mut images = Vec::new();
    let (mut sum, mut compared) = (0.0f32, 0u32);
    for class in 0..classes {
        let members: Vec<usize> = (0..labels.len()).filter(|i| labels[*i] == class).collect();
        for i in spread(&members, count.div_ceil(classes)) {
            let bytes = release::read(paths[i], ImageLimits::default().file_bytes_max as u64)?;
            let scores = judged[i].scores.clone();
            sum += scores.iter().zip(&float[i]).map(|(a, b)| (a - b).abs()).sum::<f32>();
            compared += scores.len() as u32;
            images.push(GoldenImage { bytes, label: class, scores });
        }
    }
    Ok((images, (sum / compared.max(1) as f32).clamp(TOLERANCE_MIN, TOLERANCE_MAX)))
}
