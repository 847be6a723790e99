//! The golden set of a release: images with the scores that the trainer's copy of the device's engine gave.

use std::path::Path;

use andon_runtime::{ImageLimits, Judgement};

use crate::{
    finish::spread,
    release::{self, GoldenImage, ReleaseError},
};

/// Bounds of the tolerance, in score. Two engines that are both right differ where a value lies between two int8 steps.
const TOLERANCE_MIN: f32 = 0.01;
const TOLERANCE_MAX: f32 = 0.1;

/// Picks about `count` images, as many of each class, and reads their files. The tolerance is the largest difference
/// that quantisation itself made on them: another engine's rounding must not matter more than the rounding to int8 did.
pub(crate) fn choose(
    paths: &[&Path],
    labels: &[usize],
    judged: &[Judgement],
    float: &[Vec<f32>],
    count: usize,
) -> Result<(Vec<GoldenImage>, f32), ReleaseError> {
    let classes = labels.iter().max().map_or(0, |c| c + 1);
    let mut images = Vec::new();
    let mut tolerance = TOLERANCE_MIN;
    for class in 0..classes {
        let members: Vec<usize> = (0..labels.len()).filter(|i| labels[*i] == class).collect();
        for i in spread(&members, count.div_ceil(classes)) {
            let bytes = release::read(paths[i], ImageLimits::default().file_bytes_max as u64)?;
            let scores = judged[i].scores.clone();
            let differences = scores.iter().zip(&float[i]).map(|(a, b)| (a - b).abs());
            tolerance = differences.fold(tolerance, f32::max);
            images.push(GoldenImage { bytes, label: class, scores });
        }
    }
    Ok((images, tolerance.min(TOLERANCE_MAX)))
}
