//! What good frames look like, and how far a chart may climb on them. `reference.cbor` of a release.
//!
//! A reference is signed, but a signature says who wrote it, not that it is right: everything is checked when it is
//! read, so that no chart can be fed a NaN or run over a length.

use andon_protocol::codec::Wire;
use serde::{Deserialize, Serialize};

use crate::{
    FrameFeatures, bits,
    charts::{Chart, Mewma, Scores, Slacks},
    entropy,
    pca::Whitening,
    predicted,
    rank::Quantiles,
    stats::{LOG_NOISE, LOG_SD, LOG_SHARPNESS, STATS},
};

/// A fitted reference. Made by [`Reference::fit`](crate::Reference::fit), read by [`andon_protocol::decode`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    pub(crate) schema: String,
    /// Frames it was fitted on.
    pub(crate) frames: u32,
    /// How many independent frames these are worth: `frames / tau`.
    pub(crate) units: f32,
    /// Length of the blocks that calibration drew.
    pub(crate) block: u32,
    pub(crate) labels: u32,
    pub(crate) stats: Vec<Quantiles>,
    /// Of the six statistics, then of sharpness and noise relative to contrast, which tell focus and gain from light.
    pub(crate) moments: Vec<Moments>,
    pub(crate) projection: Option<Projection>,
    pub(crate) classes: Vec<ClassRate>,
    pub(crate) entropy: Quantiles,
    pub(crate) slacks: Slacks,
    /// In the order of the charts.
    pub(crate) ladders: Vec<Ladder>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Moments {
    pub(crate) mean: f32,
    /// Never 0.
    pub(crate) sd: f32,
}

/// [`Whitening`] as half floats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Projection {
    pub(crate) k: u32,
    pub(crate) d: u32,
    #[serde(with = "serde_bytes")]
    pub(crate) mean: Vec<u8>,
    #[serde(with = "serde_bytes")]
    pub(crate) rows: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClassRate {
    pub(crate) class: u32,
    /// Share of good frames for which the network says so.
    pub(crate) rate: f32,
}

/// Thresholds of one chart by mean frames between false alarms, both growing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ladder {
    pub(crate) steps: Vec<LadderStep>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct LadderStep {
    pub(crate) frames: f32,
    pub(crate) threshold: f32,
    /// Of `frames`, relative: what the simulation's finite length leaves open.
    pub(crate) standard_error: f32,
}

/// How far the stated false-alarm rate can be trusted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Assurance {
    /// The reference holds enough independent frames, and the rate asked for lies within what was simulated.
    pub assured: bool,
    /// Mean frames between false alarms of all charts together, as simulated on frames that the fit had not seen.
    pub frames: f64,
    /// Relative standard error of `frames`.
    pub standard_error: f64,
    /// Independent frames that the reference is worth.
    pub units: f64,
}

impl Reference {
    pub const SCHEMA: &'static str = "andon.reference.v1";
    pub(crate) const CLASSES_MAX: usize = 8;
    pub(crate) const COMPONENTS_MAX: usize = 32;
    pub(crate) const EMBEDDING_MAX: usize = 4096;
    /// Numbers in mean and projection together; what fits the size limit. All components of an embedding of 1280.
    pub(crate) const WEIGHTS_MAX: usize = 1280 * (Self::COMPONENTS_MAX + 1);
    const LADDER_STEPS_MAX: usize = 32;
    /// Fewer than these are too few to promise anything.
    pub(crate) const UNITS_ASSURED: f32 = 100.0;
    /// A mean run length that is known worse than to half its value is no promise.
    const ERROR_ASSURED: f64 = 0.5;

    pub(crate) fn schema() -> String {
        Self::SCHEMA.into()
    }

    /// Number of frames it was fitted on.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Length of the embedding it expects, if it watches one.
    pub fn embedding_len(&self) -> Option<usize> {
        self.projection.as_ref().map(|p| p.d as usize)
    }

    /// Number of classes it expects.
    pub fn labels(&self) -> usize {
        self.labels as usize
    }

    /// What a detector with this target can promise.
    pub fn assurance(&self, false_alarm_frames: f64) -> Assurance {
        let each = Self::frames_of_each_chart(false_alarm_frames);
        let steps: Vec<LadderStep> = self.ladders.iter().filter_map(|l| l.at(each)).collect();
        // Alarms of the charts add up (Bonferroni on the run length, which measures as nearly exact).
        let rate: f64 = steps.iter().map(|s| 1.0 / f64::from(s.frames)).sum();
        let error = steps.iter().map(|s| f64::from(s.standard_error)).fold(0.0, f64::max);
        let within = self.ladders.iter().all(|l| l.steps.last().is_none_or(|s| f64::from(s.frames) >= each));
        Assurance {
            assured: within
                && !steps.is_empty()
                && self.units >= Self::UNITS_ASSURED
                && error <= Self::ERROR_ASSURED,
            frames: if rate > 0.0 { 1.0 / rate } else { f64::INFINITY },
            standard_error: error,
            units: f64::from(self.units),
        }
    }

    fn frames_of_each_chart(false_alarm_frames: f64) -> f64 {
        false_alarm_frames.max(1.0) * Chart::COUNT as f64
    }

    /// The threshold of each chart for a mean of `false_alarm_frames` between false alarms of all together. Infinite
    /// for a chart that is off.
    pub(crate) fn thresholds(&self, false_alarm_frames: f64) -> [f32; Chart::COUNT] {
        let each = Self::frames_of_each_chart(false_alarm_frames);
        Chart::ALL.map(|c| self.ladders[c as usize].at(each).map_or(f32::INFINITY, |step| step.threshold))
    }

    pub(crate) fn whitening(&self) -> Option<Whitening> {
        let projection = self.projection.as_ref()?;
        Some(Whitening { mean: bits::unpack(&projection.mean), rows: bits::unpack(&projection.rows) })
    }

    pub(crate) fn predictions(&self) -> usize {
        self.classes.len() + 1
    }
}

/// A reference with its projection unpacked: turns features into scores.
#[derive(Debug, Clone)]
pub(crate) struct Scorer {
    pub(crate) stats: Vec<Quantiles>,
    pub(crate) whitening: Option<Whitening>,
    pub(crate) classes: Vec<ClassRate>,
    pub(crate) entropy: Quantiles,
    pub(crate) frames: u32,
}

impl Scorer {
    pub(crate) fn of(reference: &Reference) -> Self {
        Self {
            stats: reference.stats.clone(),
            whitening: reference.whitening(),
            classes: reference.classes.clone(),
            entropy: reference.entropy.clone(),
            frames: reference.frames,
        }
    }

    /// Scores of a frame whose features are finite and of the right lengths.
    pub(crate) fn score(&self, features: &FrameFeatures, scores: &mut Scores) {
        scores.stats.clear();
        scores
            .stats
            .extend(self.stats.iter().zip(features.stats).map(|(q, v)| q.normal_score(v, self.frames)));
        match &self.whitening {
            Some(whitening) => whitening.project(&features.embedding, &mut scores.embedding),
            None => scores.embedding.clear(),
        }
        scores.embedding.iter_mut().for_each(|u| *u = u.clamp(-Mewma::CLIP, Mewma::CLIP));
        let class = predicted(&features.scores);
        scores.prediction.clear();
        scores.prediction.extend(self.classes.iter().map(|c| {
            let is = f32::from(u8::from(c.class as usize == class));
            let z = (is - c.rate) / (c.rate * (1.0 - c.rate)).sqrt();
            z.clamp(-Quantiles::CLIP, Quantiles::CLIP)
        }));
        scores.prediction.push(self.entropy.normal_score(entropy(&features.scores), self.frames));
    }
}

/// The statistics, and with them sharpness and noise relative to contrast.
pub(crate) fn signature_of(stats: &[f32; STATS]) -> [f32; STATS + 2] {
    let mut all = [0.0; STATS + 2];
    all[..STATS].copy_from_slice(stats);
    all[STATS] = stats[LOG_SHARPNESS] - 2.0 * stats[LOG_SD];
    all[STATS + 1] = stats[LOG_NOISE] - stats[LOG_SD];
    all
}

impl Ladder {
    /// Between two steps along the logarithm of the frames, in which CUSUM thresholds are straight; held at the ends.
    pub(crate) fn at(&self, frames: f64) -> Option<LadderStep> {
        let above = self.steps.partition_point(|s| f64::from(s.frames) < frames);
        let (Some(low), Some(high)) = (self.steps.get(above.saturating_sub(1)), self.steps.get(above)) else {
            return self.steps.last().copied();
        };
        if above == 0 {
            return Some(*high);
        }
        let (a, b) = (f64::from(low.frames).ln(), f64::from(high.frames).ln());
        let share = ((frames.ln() - a) / (b - a)).clamp(0.0, 1.0) as f32;
        Some(LadderStep {
            frames: frames as f32,
            threshold: low.threshold + (high.threshold - low.threshold) * share,
            standard_error: low.standard_error.max(high.standard_error),
        })
    }

    fn check(&self) -> Result<(), String> {
        if self.steps.len() > Reference::LADDER_STEPS_MAX {
            return Err(format!("a ladder of {} steps", self.steps.len()));
        }
        let sound = |s: &LadderStep| {
            s.frames.is_finite()
                && s.frames >= 1.0
                && s.threshold.is_finite()
                && s.threshold > 0.0
                && s.standard_error.is_finite()
                && s.standard_error >= 0.0
        };
        let growing =
            self.steps.windows(2).all(|w| w[0].frames < w[1].frames && w[0].threshold <= w[1].threshold);
        if self.steps.iter().all(sound) && growing {
            Ok(())
        } else {
            Err("a ladder that does not grow".into())
        }
    }
}

impl Projection {
    pub(crate) fn pack(whitening: &Whitening) -> Self {
        Self {
            k: whitening.k() as u32,
            d: whitening.mean.len() as u32,
            mean: bits::pack(&whitening.mean),
            rows: bits::pack(&whitening.rows),
        }
    }

    fn check(&self) -> Result<(), String> {
        let (k, d) = (self.k as usize, self.d as usize);
        if !(1..=Reference::COMPONENTS_MAX).contains(&k) || !(1..=Reference::EMBEDDING_MAX).contains(&d) {
            return Err(format!("a projection of {d} to {k}"));
        }
        if d * (k + 1) > Reference::WEIGHTS_MAX {
            return Err(format!("a projection of {d} to {k}, over {} numbers", Reference::WEIGHTS_MAX));
        }
        if self.mean.len() != 2 * d || self.rows.len() != 2 * d * k {
            return Err(format!(
                "a projection of {d} to {k} in {} and {} bytes",
                self.mean.len(),
                self.rows.len()
            ));
        }
        let finite = |bytes: &[u8]| bits::unpack(bytes).iter().all(|v| v.is_finite());
        if finite(&self.mean) && finite(&self.rows) {
            Ok(())
        } else {
            Err("a projection that is not finite".into())
        }
    }
}

impl Wire for Reference {
    const KIND: &'static str = "drift reference";
    const CONTENT_TYPE: &'static str = "application/vnd.andon.reference.v1+cbor";
    const BYTES_MAX: usize = 100_000;

    fn check(&self) -> Result<(), String> {
        if self.schema != Self::SCHEMA {
            return Err(format!("schema is not {}", Self::SCHEMA));
        }
        let counts = (self.stats.len(), self.moments.len(), self.ladders.len());
        if counts != (STATS, STATS + 2, Chart::COUNT) {
            return Err(format!("{counts:?} statistics, moments and ladders"));
        }
        if self.frames < 2 || !(self.units.is_finite() && self.units > 0.0) || self.block == 0 {
            return Err("a count of frames, units or block that cannot be".into());
        }
        if !self.stats.iter().chain([&self.entropy]).all(Quantiles::is_sound) {
            return Err("quantiles that fall, or are not finite".into());
        }
        if !self.moments.iter().all(|m| m.mean.is_finite() && m.sd.is_finite() && m.sd > 0.0) {
            return Err("moments that are not finite, or without deviation".into());
        }
        let rates = |c: &ClassRate| c.class < self.labels && c.rate > 0.0 && c.rate < 1.0;
        if !(1..=1024).contains(&self.labels)
            || self.classes.len() > Self::CLASSES_MAX
            || !self.classes.iter().all(rates)
        {
            return Err("classes, or rates that are not between 0 and 1".into());
        }
        let Slacks { slow, fast, prediction } = self.slacks;
        if ![slow, fast, prediction].iter().all(|s| (0.0..=4.0).contains(s)) {
            return Err("a slack that is not in 0 to 4".into());
        }
        self.projection.as_ref().map_or(Ok(()), Projection::check)?;
        if self.projection.is_none() && !self.ladders[Chart::Embedding as usize].steps.is_empty() {
            return Err("thresholds of an embedding that is not watched".into());
        }
        self.ladders.iter().try_for_each(Ladder::check)
    }
}
