//! Sizes of a demo. The quick one is the same with smaller numbers.

use crate::fleet::Degrade;

#[derive(Debug, Clone)]
pub struct Plan {
    pub model: &'static str,
    /// Images used of each split.
    pub train: usize,
    pub validation: usize,
    pub golden: usize,
    /// Images in the stream of each device; one pass over it is one phase.
    pub stream: usize,
    pub frames_per_second: f32,
    /// Of each device, in its order; `None` stays as it is.
    pub degrade: [Option<Degrade>; 3],
    pub upload_bytes_per_hour: u64,
    /// Labels that the inspector gives.
    pub labels: usize,
    pub trial_s: u32,
    /// The gates of a release. A flip of one image in a small set weighs more than what they tell apart.
    pub agreement_min: f64,
    pub clean_loss_max: f64,
    pub drift_gain_min: f64,
    /// Of the canary wave.
    pub soak_s: u32,
    /// Passed on to `andon-trainer fit`.
    pub fit: &'static [&'static str],
}

impl Plan {
    /// At most, where software plays the GPUs of three devices: it takes some fifty times as long as the CPU, and a camera
    /// that is faster has most of its frames dropped.
    pub const PLAYED_FRAMES_PER_SECOND: f32 = 1.5;

    pub const FULL: Plan = Plan {
        model: "solar-cell",
        train: 1000,
        validation: 300,
        golden: 124,
        stream: 400,
        frames_per_second: 8.0,
        degrade: [None, Some(Degrade::Gamma(4.2)), Some(Degrade::Defocus(3.5))],
        upload_bytes_per_hour: 100_000_000,
        labels: 100,
        trial_s: 5,
        // Of the retrained release, measured on drifted images, too: there a network is less decided.
        agreement_min: 0.96,
        clean_loss_max: 0.01,
        drift_gain_min: 0.02,
        soak_s: 5,
        fit: &[],
    };

    /// Its sets are too small to tell a better model from a worse one: 18 held-back images can lie by ten points. So its
    /// gates are wide open; what it shows is that the loop closes.
    pub const QUICK: Plan = Plan {
        train: 160,
        validation: 80,
        golden: 40,
        stream: 60,
        labels: 40,
        trial_s: 2,
        agreement_min: 0.85,
        clean_loss_max: 0.3,
        drift_gain_min: -0.3,
        soak_s: 1,
        fit: &["--quick", "--agreement-min", "0.85"],
        ..Plan::FULL
    };
}
