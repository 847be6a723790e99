//! Which images are trained on, in which look, and what they should come out as.

use andon_protocol::ids::DeviceId;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{Settings, inputs::Shot};
use crate::{
    appearance::Appearance,
    data::Pixels,
    finish,
    fit::{flips, smooth},
    train::{Sample, class_weights},
};

/// One image to run through the prefix.
pub(super) enum Version<'a> {
    Plain(&'a Pixels),
    Flipped(&'a Pixels, (bool, bool)),
    Matched { image: &'a Pixels, look: &'a Appearance, strength: f32, seed: u64 },
}

/// All images that training touches, and where each group lies.
pub(super) struct Plan<'a> {
    pub(super) versions: Vec<Version<'a>>,
    /// Old images as they are start at 0; then one group per look, then the labelled field images
    /// (each plain and mirrored), then validation plain, then validation per look.
    looks: Vec<usize>,
    labelled: usize,
    pub(super) validation: std::ops::Range<usize>,
}

impl<'a> Plan<'a> {
    pub(super) fn new(
        old: &[&'a Shot],
        validation: &[&'a Shot],
        labelled: &[&'a Shot],
        looks: &'a [(DeviceId, Appearance)],
        seed: u64,
    ) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x6c6f_6f6b);
        let mut versions: Vec<Version> = old.iter().map(|s| Version::Plain(&s.pixels)).collect();
        let mut starts = Vec::new();
        for (_, look) in looks {
            starts.push(versions.len());
            for shot in old {
                // Mostly the look itself and a little around it; at times a weaker form, as on the way there.
                let strength = if rng.random_bool(0.75) {
                    rng.random_range(0.85..1.1)
                } else {
                    rng.random_range(0.2..0.85)
                };
                versions.push(Version::Matched { image: &shot.pixels, look, strength, seed: rng.random() });
            }
        }
        let labelled_start = versions.len();
        for (shot, flip) in labelled.iter().zip(flips(labelled.len(), seed ^ 1)) {
            versions.extend([Version::Plain(&shot.pixels), Version::Flipped(&shot.pixels, flip)]);
        }
        let validation_start = versions.len();
        versions.extend(validation.iter().map(|s| Version::Plain(&s.pixels)));
        for (_, look) in looks {
            let matched = validation.iter().map(|s| Version::Matched {
                image: &s.pixels,
                look,
                strength: 1.0,
                seed: rng.random(),
            });
            versions.extend(matched.collect::<Vec<_>>());
        }
        let validation = validation_start..versions.len();
        Self { versions, looks: starts, labelled: labelled_start, validation }
    }

    pub(super) fn image(&self, i: usize) -> Pixels {
        match &self.versions[i] {
            Version::Plain(pixels) => (*pixels).clone(),
            Version::Flipped(pixels, (across, down)) => pixels.flipped(*across, *down),
            Version::Matched { image, look, strength, seed } => look.apply(image, *strength, *seed),
        }
    }

    /// Class of validation version `i`.
    pub(super) fn class(&self, i: usize, validation: &[&Shot]) -> usize {
        validation[(i - self.validation.start) % validation.len()].class
    }

    /// Some of everything, as the network will see it.
    pub(super) fn calibration(&self) -> Vec<Pixels> {
        let all: Vec<usize> = (0..self.validation.start).collect();
        finish::spread(&all, finish::CALIBRATION_IMAGES).into_iter().map(|i| self.image(i)).collect()
    }
}

/// Training and validation samples over the plan's versions.
pub(super) fn samples(
    plan: &Plan,
    old: &[&Shot],
    validation: &[&Shot],
    labelled: &[&Shot],
    teacher: &[Vec<f32>],
    settings: &Settings,
    classes: usize,
) -> (Vec<Sample>, Vec<Sample>) {
    let weight = class_weights(&old.iter().map(|s| s.class).collect::<Vec<_>>(), classes);
    let taught = |i: usize| -> Vec<f32> {
        let label = smooth(old[i].class, classes);
        label
            .iter()
            .zip(&teacher[i])
            .map(|(l, t)| (1.0 - settings.teacher) * l + settings.teacher * t)
            .collect()
    };
    let mut training = Vec::new();
    for (i, shot) in old.iter().enumerate() {
        for version in std::iter::once(i).chain(plan.looks.iter().map(|start| start + i)) {
            training.push(Sample { versions: vec![version], target: taught(i), weight: weight[shot.class] });
        }
    }
    for (i, shot) in labelled.iter().enumerate() {
        let first = plan.labelled + 2 * i;
        let target = smooth(shot.class, classes);
        let weight = weight[shot.class] * settings.field_weight;
        training.push(Sample { versions: vec![first, first + 1], target, weight });
    }
    let watched = plan.validation.clone().map(|i| {
        let class = plan.class(i, validation);
        Sample { versions: vec![i], target: smooth(class, classes), weight: weight[class] }
    });
    (training, watched.collect())
}
