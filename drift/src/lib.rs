//! Notices that the pictures of a line have changed, says what kind of change it is, and keeps its promise of how
//! rarely it cries wolf.
//!
//! | step | where | what |
//! |---|---|---|
//! | features | [`image_stats`], the embedding, the scores | six numbers of the picture and what the network made of it |
//! | reference | [`Reference::fit`] | what these look like on good frames, and thresholds that hold on frames it never saw |
//! | charts | [`Detector::push`] | CUSUM, MEWMA and gates, one update a frame, constant memory |
//! | cause | `attribution` | light, focus, gain, vignette, product, defect rate: from which charts fired and how |
//!
//! Invariants: no I/O, no clock, no randomness but a seed that the caller gives; memory does not grow with the number
//! of frames; a number that is not finite never enters a chart; a hostile reference is refused, never a panic.
//!
//! It deliberately learns nothing on the device beyond a bounded re-centring at the start: a chart that follows its
//! input learns slow drift as normal.

mod attribution;
mod bits;
mod calibrate;
mod charts;
mod detector;
mod fit;
mod learning;
mod pca;
mod rank;
mod reference;
mod saved;
mod stats;

pub use detector::{Alarm, Detector, DetectorOptions, Gate, Start, Step};
pub use fit::{FitError, FitOptions};
pub use rank::Quantiles;
pub use reference::{Assurance, Reference};
pub use saved::{RestoreError, STATE_BYTES_MAX};
pub use stats::{Gray, STATS, image_stats};

/// What drift is measured on, for one frame.
#[derive(Debug, Clone, PartialEq)]
pub struct FrameFeatures {
    /// Of the grey picture at the network's input size, see [`image_stats`].
    pub stats: [f32; STATS],
    /// Input of the network's last layer.
    pub embedding: Vec<f32>,
    /// After softmax, in the order of the labels.
    pub scores: Vec<f32>,
}

impl FrameFeatures {
    fn is_finite(&self) -> bool {
        self.stats.iter().chain(&self.embedding).chain(&self.scores).all(|v| v.is_finite())
    }
}

/// Shannon entropy of a distribution, in nats.
fn entropy(scores: &[f32]) -> f32 {
    scores.iter().map(|p| if *p > 0.0 { -p * p.ln() } else { 0.0 }).sum()
}

/// Index of the largest score, the lower one of equals.
fn predicted(scores: &[f32]) -> usize {
    (1..scores.len()).fold(0, |best, i| if scores[i] > scores[best] { i } else { best })
}
