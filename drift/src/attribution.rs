//! From the charts that fired and how the picture has changed to a cause. A suggestion with its evidence: chart
//! values travel with every alarm, so that a server or a person can overrule it.
//!
//! | what moved | cause |
//! |---|---|
//! | image statistics: brightness or contrast most | `lighting` |
//! | … detail, more than contrast explains, down | `blur` |
//! | … noise, more than contrast explains, up | `gain` |
//! | … edge against centre | `vignette` |
//! | the embedding, but not the picture's statistics | `product_or_process` |
//! | the predictions alone | `defect_rate` |
//!
//! A camera that moved is not told from a changed product: both show in the embedding alone.

use andon_protocol::telemetry::DriftCause;

use crate::{
    charts::Chart,
    stats::{LOG_EDGE, LOG_SD, MEAN, STATS},
};

/// Frames of which the mean change is taken before a cause is named.
pub(crate) const FRAMES_MAX: u32 = 64;
/// When the change is as clear as [`Evidence::is_decisive`] demands.
pub(crate) const FRAMES_MIN: u32 = 8;

/// Mean change of the signature since the first chart fired, in standard deviations of good frames.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Evidence {
    pub(crate) fired: [bool; Chart::COUNT],
    pub(crate) change: [f32; STATS + 2],
}

impl Evidence {
    /// Below this no statistic has moved enough to name a cause by it.
    const CHANGE_MIN: f32 = 0.4;

    fn picture_fired(&self) -> bool {
        self.fired[Chart::StatsSlow as usize] || self.fired[Chart::StatsFast as usize]
    }

    /// Optical causes by how far their statistic has moved, the farthest first.
    fn optical(&self) -> [(DriftCause, f32); 4] {
        let change = &self.change;
        let mut causes = [
            (DriftCause::Lighting, change[MEAN].abs().max(change[LOG_SD].abs())),
            (DriftCause::Blur, -change[STATS]),
            (DriftCause::Gain, change[STATS + 1]),
            (DriftCause::Vignette, change[LOG_EDGE].abs()),
        ];
        causes.sort_by(|a, b| b.1.total_cmp(&a.1));
        causes
    }

    pub(crate) fn cause(&self) -> DriftCause {
        if self.picture_fired() {
            let (cause, change) = self.optical()[0];
            return if change >= Self::CHANGE_MIN { cause } else { DriftCause::Unknown };
        }
        if self.fired[Chart::Embedding as usize] {
            DriftCause::ProductOrProcess
        } else if self.fired[Chart::Prediction as usize] {
            DriftCause::DefectRate
        } else {
            DriftCause::Unknown
        }
    }

    /// Waiting longer would hardly change the answer.
    pub(crate) fn is_decisive(&self) -> bool {
        let [first, second, ..] = self.optical();
        self.picture_fired() && first.1 >= 1.0 && first.1 >= 1.25 * second.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: usize = Chart::StatsSlow as usize;
    const EMBEDDING: usize = Chart::Embedding as usize;
    const PREDICTION: usize = Chart::Prediction as usize;

    /// Mean changes as measured on 656 solar cells at 128 pixels, rounded; the last two are detail and noise beyond
    /// what contrast explains.
    #[test]
    fn causes_by_signature() {
        let cases: &[(&str, &[usize], [f32; STATS + 2], DriftCause)] = &[
            (
                "gamma 2.2",
                &[SLOW, EMBEDDING],
                [-2.1, 0.0, 0.1, 0.4, -1.5, 0.5, 0.1, 0.3],
                DriftCause::Lighting,
            ),
            ("gain 0.5", &[SLOW], [-2.6, -2.6, -1.6, -1.2, 0.0, -0.1, 0.1, 0.9], DriftCause::Lighting),
            ("blur 3", &[SLOW, PREDICTION], [0.0, -0.4, -2.3, -2.7, 0.0, 0.0, -3.3, -2.2], DriftCause::Blur),
            ("blur 1", &[SLOW], [0.0, -0.1, -0.4, -0.5, 0.0, 0.0, -0.55, -0.45], DriftCause::Blur),
            ("noise 10", &[SLOW], [0.0, 0.0, 0.9, 3.7, 0.0, -0.1, 1.4, 3.4], DriftCause::Gain),
            (
                "vignette 0.4",
                &[SLOW, EMBEDDING],
                [-0.7, 0.3, -0.3, -0.1, -2.4, -0.1, -0.8, -0.3],
                DriftCause::Vignette,
            ),
            ("vignette 0.75", &[SLOW], [-1.3, 0.8, -0.7, -0.4, -5.6, -0.1, -1.9, -1.0], DriftCause::Vignette),
            ("other product", &[EMBEDDING, PREDICTION], [0.2; STATS + 2], DriftCause::ProductOrProcess),
            ("other product, same classes", &[EMBEDDING], [0.1; STATS + 2], DriftCause::ProductOrProcess),
            ("more defects", &[PREDICTION], [0.1; STATS + 2], DriftCause::DefectRate),
            ("nothing to see", &[SLOW], [0.1; STATS + 2], DriftCause::Unknown),
        ];
        for (what, charts, change, expected) in cases {
            let mut fired = [false; Chart::COUNT];
            charts.iter().for_each(|c| fired[*c] = true);
            assert_eq!(Evidence { fired, change: *change }.cause(), *expected, "{what}");
        }
    }
}
