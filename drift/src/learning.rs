//! The first frames of a device: is it one of the fleet, and where is its own mean?

use serde::{Deserialize, Serialize};

use crate::{
    FrameFeatures,
    charts::{Mewma, Scores, Slacks},
    detector::{DetectorOptions, Start},
    rank::Quantiles,
    reference::{Moments, Reference, signature_of},
    stats::STATS,
};

/// Independent frames that the knowledge of the fleet is worth against a device's own: with as many own frames the
/// device's mean is followed half way.
const PRIOR_UNITS: f32 = 100.0;
/// A device further from the fleet than this many standard deviations, and the error of measuring it, is no
/// variation but a drift.
const DISTANCE_MAX: f32 = 1.0;
const ERRORS_MAX: f32 = 3.0;
/// A release made in answer to a drift takes the device as it is, so it looks longer.
const ANSWERED_FACTOR: u32 = 4;

/// Sums over the frames so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Learning {
    pub(crate) frames: u32,
    pub(crate) wanted: u32,
    pub(crate) answered: bool,
    /// Frames that one independent frame is worth.
    pub(crate) tau: f32,
    pub(crate) signature: Vec<Sums>,
    pub(crate) embedding: Vec<Sums>,
    pub(crate) prediction: Vec<Sums>,
    /// Scores of the statistics.
    pub(crate) ranks: Vec<Sums>,
}

#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(from = "(f64, f64)", into = "(f64, f64)")]
pub(crate) struct Sums {
    pub(crate) sum: f64,
    pub(crate) squares: f64,
}

impl From<(f64, f64)> for Sums {
    fn from((sum, squares): (f64, f64)) -> Self {
        Self { sum, squares }
    }
}

impl From<Sums> for (f64, f64) {
    fn from(sums: Sums) -> Self {
        (sums.sum, sums.squares)
    }
}

impl From<(f32, f32)> for Shift {
    fn from((from, scale): (f32, f32)) -> Self {
        Self { from, scale }
    }
}

impl From<Shift> for (f32, f32) {
    fn from(shift: Shift) -> Self {
        (shift.from, shift.scale)
    }
}

impl Sums {
    fn push(&mut self, value: f32) {
        self.sum += f64::from(value);
        self.squares += f64::from(value) * f64::from(value);
    }

    fn mean(&self, n: u32) -> f32 {
        (self.sum / f64::from(n)) as f32
    }

    fn sd(&self, n: u32) -> f32 {
        let mean = self.sum / f64::from(n);
        (self.squares / f64::from(n) - mean * mean).max(0.0).sqrt() as f32
    }
}

/// Where a device's good frames lie in the reference's terms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Centre {
    /// Offsets of the statistics' scores. Of the scores and not of the values, since a statistic that most frames
    /// share (no pixel clipped) would be out of the ordinary for ever if it were moved by a hair.
    pub(crate) ranks: Vec<f32>,
    /// The device's own mean and deviation of each statistic, where it is so far from the fleet that the fleet's
    /// ranks say nothing about it.
    pub(crate) own: Option<Vec<Moments>>,
    pub(crate) embedding: Vec<Shift>,
    pub(crate) prediction: Vec<f32>,
    /// What of the signature's change is the device's own, in standard deviations.
    pub(crate) change: [f32; STATS + 2],
}

/// `(value - from) * scale`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(from = "(f32, f32)", into = "(f32, f32)")]
pub(crate) struct Shift {
    pub(crate) from: f32,
    pub(crate) scale: f32,
}

impl Shift {
    const NONE: Shift = Shift { from: 0.0, scale: 1.0 };

    fn apply(&self, value: f32) -> f32 {
        (value - self.from) * self.scale
    }

    pub(crate) fn is_sound(&self) -> bool {
        self.from.is_finite() && (0.1..=10.0).contains(&self.scale)
    }
}

impl Centre {
    pub(crate) fn none(components: usize, predictions: usize) -> Self {
        Self {
            ranks: vec![0.0; STATS],
            own: None,
            embedding: vec![Shift::NONE; components],
            prediction: vec![0.0; predictions],
            change: [0.0; STATS + 2],
        }
    }

    /// Scores of a frame, as those of a device in the middle of the fleet.
    pub(crate) fn apply(&self, features: &FrameFeatures, scores: &mut Scores) {
        let clip = |z: f32| z.clamp(-Quantiles::CLIP, Quantiles::CLIP);
        match &self.own {
            Some(own) => {
                let own = own.iter().zip(features.stats);
                scores
                    .stats
                    .iter_mut()
                    .zip(own)
                    .for_each(|(z, (m, value))| *z = clip((value - m.mean) / m.sd));
            }
            None => scores.stats.iter_mut().zip(&self.ranks).for_each(|(z, offset)| *z = clip(*z - offset)),
        }
        scores.embedding.iter_mut().zip(&self.embedding).for_each(|(u, shift)| *u = shift.apply(*u));
        scores.prediction.iter_mut().zip(&self.prediction).for_each(|(z, offset)| *z = clip(*z - offset));
    }
}

impl Learning {
    pub(crate) fn new(reference: &Reference, options: &DetectorOptions) -> Self {
        let answered = options.start == Start::Answered;
        let factor = if answered { ANSWERED_FACTOR } else { 1 };
        let components = reference.projection.as_ref().map_or(0, |p| p.k as usize);
        Self {
            frames: 0,
            wanted: options.commissioning_frames.saturating_mul(factor),
            answered,
            tau: (reference.frames as f32 / reference.units).max(1.0),
            signature: vec![Sums::default(); STATS + 2],
            embedding: vec![Sums::default(); components],
            prediction: vec![Sums::default(); reference.predictions()],
            ranks: vec![Sums::default(); STATS],
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.frames >= self.wanted
    }

    pub(crate) fn push(&mut self, features: &FrameFeatures, scores: &Scores) {
        self.frames += 1;
        self.signature.iter_mut().zip(signature_of(&features.stats)).for_each(|(s, v)| s.push(v));
        self.embedding.iter_mut().zip(&scores.embedding).for_each(|(s, v)| s.push(*v));
        self.prediction.iter_mut().zip(&scores.prediction).for_each(|(s, v)| s.push(*v));
        self.ranks.iter_mut().zip(&scores.stats).for_each(|(s, v)| s.push(*v));
    }

    /// Independent frames that the wanted ones are worth.
    fn units(&self) -> f32 {
        (self.wanted as f32 / self.tau).max(1.0)
    }

    /// How far the device's own mean is followed.
    fn trust(&self) -> f32 {
        match (self.wanted, self.answered) {
            (0, _) => 0.0,
            (_, true) => 1.0,
            (_, false) => self.units() / (self.units() + PRIOR_UNITS),
        }
    }

    /// The reference's slacks, wider by the error of the device's own mean as far as that is followed.
    pub(crate) fn slacks(&self, reference: &Reference) -> Slacks {
        let error = 1.5 * self.trust() / self.units().sqrt();
        let wider = |slack: f32| (slack.powi(2) + error.powi(2)).sqrt();
        let Slacks { slow, fast, prediction } = reference.slacks;
        Slacks {
            slow: wider(slow).min(fast),
            fast,
            prediction: wider(prediction).min(1.0f32.max(prediction)),
        }
    }

    /// The device's centre, or the change in standard deviations that is too large for one.
    pub(crate) fn finish(&self, moments: &[Moments]) -> Result<Centre, [f32; STATS + 2]> {
        let (n, trust) = (self.frames, self.trust());
        let mut change = [0.0; STATS + 2];
        for ((change, sums), moments) in change.iter_mut().zip(&self.signature).zip(moments) {
            *change = (sums.mean(n) - moments.mean) / moments.sd;
        }
        let distance_max = DISTANCE_MAX + ERRORS_MAX / self.units().sqrt();
        if !self.answered && change[..STATS].iter().any(|c| c.abs() > distance_max) {
            return Err(change);
        }
        let own = self.signature.iter().zip(moments).take(STATS).map(|(sums, moments)| {
            // A device is never taken for much steadier than the fleet on so few frames.
            Moments { mean: sums.mean(n), sd: sums.sd(n).max(moments.sd / 3.0) }
        });
        let scale = |sd: f32| if self.answered { (1.0 / sd.max(1e-6)).clamp(1.0 / 3.0, 3.0) } else { 1.0 };
        let embedding = self.embedding.iter().map(|sums| {
            let bound = Mewma::CLIP;
            Shift { from: (trust * sums.mean(n)).clamp(-bound, bound), scale: scale(sums.sd(n)) }
        });
        // Class rates belong to the product, not to the device; only a new release for a new look moves them.
        let follow = if self.answered { 1.0 } else { 0.0 };
        Ok(Centre {
            ranks: self.ranks.iter().map(|sums| trust * sums.mean(n)).collect(),
            own: self.answered.then(|| own.collect()),
            embedding: embedding.collect(),
            prediction: self.prediction.iter().map(|sums| follow * sums.mean(n)).collect(),
            change: change.map(|c| trust * c),
        })
    }
}
