//! The statistical charts. Each is a number that stays low on good frames and climbs on changed ones.

use serde::{Deserialize, Serialize};

/// Their order everywhere: in a reference's ladders, in a detector, in telemetry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Chart {
    /// CUSUM of the image statistics with a small slack: finds small changes that stay.
    StatsSlow,
    /// CUSUM of the image statistics with a large slack: finds large changes at once, even on correlated frames.
    StatsFast,
    /// MEWMA of the whitened embedding.
    Embedding,
    /// CUSUM of the predicted classes and of their entropy.
    Prediction,
}

impl Chart {
    pub(crate) const ALL: [Chart; 4] =
        [Chart::StatsSlow, Chart::StatsFast, Chart::Embedding, Chart::Prediction];
    pub(crate) const COUNT: usize = Self::ALL.len();

    pub(crate) fn name(self) -> &'static str {
        match self {
            Chart::StatsSlow => "stats_slow",
            Chart::StatsFast => "stats_fast",
            Chart::Embedding => "embedding",
            Chart::Prediction => "prediction",
        }
    }
}

/// Two-sided cumulative sums (Page 1954) of several series of standard scores; the chart is the largest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cusum {
    slack: f32,
    /// Up and down of each series.
    pub(crate) sums: Vec<f32>,
}

impl Cusum {
    pub(crate) fn new(slack: f32, series: usize) -> Self {
        Self { slack, sums: vec![0.0; 2 * series] }
    }

    /// No sum grows beyond `cap`, so that a chart comes down soon after a long change has ended.
    pub(crate) fn push(&mut self, scores: &[f32], cap: f32) -> f32 {
        let mut value = 0.0f32;
        for (sums, z) in self.sums.chunks_exact_mut(2).zip(scores) {
            sums[0] = (sums[0] + z - self.slack).max(0.0).min(cap);
            sums[1] = (sums[1] - z - self.slack).max(0.0).min(cap);
            value = value.max(sums[0]).max(sums[1]);
        }
        value
    }

    pub(crate) fn value(&self) -> f32 {
        self.sums.iter().fold(0.0, |max, s| max.max(*s))
    }

    pub(crate) fn reset(&mut self) {
        self.sums.fill(0.0);
    }
}

/// Multivariate exponentially weighted moving average (Lowry et al. 1992): `(2 - λ)/λ |z|²`, about chi-square
/// distributed with as many degrees of freedom as there are components.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Mewma {
    pub(crate) mean: Vec<f32>,
}

impl Mewma {
    const LAMBDA: f32 = 0.05;
    /// Largest component: one wild frame must not raise an alarm alone.
    pub(crate) const CLIP: f32 = 6.0;

    pub(crate) fn new(components: usize) -> Self {
        Self { mean: vec![0.0; components] }
    }

    pub(crate) fn push(&mut self, u: &[f32]) -> f32 {
        for (mean, u) in self.mean.iter_mut().zip(u) {
            *mean += Self::LAMBDA * (u.clamp(-Self::CLIP, Self::CLIP) - *mean);
        }
        self.value()
    }

    pub(crate) fn value(&self) -> f32 {
        (2.0 - Self::LAMBDA) / Self::LAMBDA * self.mean.iter().map(|m| m * m).sum::<f32>()
    }

    pub(crate) fn reset(&mut self) {
        self.mean.fill(0.0);
    }
}

/// The four charts side by side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Bank {
    pub(crate) slow: Cusum,
    pub(crate) fast: Cusum,
    pub(crate) embedding: Mewma,
    pub(crate) prediction: Cusum,
}

/// One frame, as the charts take it: standard scores of good frames.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Scores {
    pub(crate) stats: Vec<f32>,
    pub(crate) embedding: Vec<f32>,
    pub(crate) prediction: Vec<f32>,
}

/// Slacks of the CUSUM charts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Slacks {
    pub(crate) slow: f32,
    pub(crate) fast: f32,
    pub(crate) prediction: f32,
}

impl Bank {
    pub(crate) fn new(slacks: Slacks, stats: usize, components: usize, predictions: usize) -> Self {
        Self {
            slow: Cusum::new(slacks.slow, stats),
            fast: Cusum::new(slacks.fast, stats),
            embedding: Mewma::new(components),
            prediction: Cusum::new(slacks.prediction, predictions),
        }
    }

    pub(crate) fn push(
        &mut self,
        stats: &[f32],
        embedding: &[f32],
        prediction: &[f32],
        caps: &[f32; Chart::COUNT],
    ) -> [f32; Chart::COUNT] {
        [
            self.slow.push(stats, caps[Chart::StatsSlow as usize]),
            self.fast.push(stats, caps[Chart::StatsFast as usize]),
            self.embedding.push(embedding),
            self.prediction.push(prediction, caps[Chart::Prediction as usize]),
        ]
    }

    pub(crate) fn values(&self) -> [f32; Chart::COUNT] {
        [self.slow.value(), self.fast.value(), self.embedding.value(), self.prediction.value()]
    }

    pub(crate) fn reset(&mut self) {
        self.slow.reset();
        self.fast.reset();
        self.embedding.reset();
        self.prediction.reset();
    }
}

impl Bank {
    /// The series of each chart, for checks.
    pub(crate) fn sums(&self) -> impl Iterator<Item = &Vec<f32>> + Clone {
        [&self.slow.sums, &self.fast.sums, &self.embedding.mean, &self.prediction.sums].into_iter()
    }

    pub(crate) fn slacks(&self) -> [f32; 3] {
        [self.slow.slack, self.fast.slack, self.prediction.slack]
    }
}
